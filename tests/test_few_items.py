"""A run of few images, from training to the model card: no figure that they cannot carry is to be found anywhere, and each reason is."""

import html
import json
import re

import pytest
import torch
from PIL import Image

from fewstep import measurement
from fewstep.interop.export import export

NONE = {"frechet", "frechet_over_floor", "kernel", "precision", "recall"}
SMALL = ["network.widths=[16]", "batch_size=20", "steps=2", "trainer.evaluate_every=1", "trainer.evaluate_samples=120"]


@pytest.fixture(scope="module")
def few(tmp_path_factory, command):
    """A trained and measured run of 60 images, 12 of them held out: its folder, and what both commands said."""
    folder, rng = tmp_path_factory.mktemp("few"), torch.Generator().manual_seed(0)
    for number in range(60):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (8, 8), generator=rng, dtype=torch.uint8).numpy()).save(path)
    data = f"data={{name: images, path: '{folder / 'images'}', size: 8, channels: 1, holdout: .2}}"
    trained = command("train", "drift/digits", data, *SMALL, "--out", folder / "run")
    assert trained.code == 0, trained.err
    measured = command("evaluate", folder / "run", "-n", 150)
    assert measured.code == 0, measured.err
    return folder, trained.out + trained.err, measured.out


def test_training_does_not_log_them_and_says_why(few):
    folder, said, _ = few
    for line in (folder / "run" / "metrics.jsonl").read_text().splitlines():
        keys = {key.removeprefix("eval.") for key in json.loads(line)}
        assert not NONE & keys
        assert {"train_distance", "spacing"} <= keys or "eval.spacing" not in line
    assert "12 held-out images, too few for" in " ".join(said.split())
    assert "precision (75 needed)" in " ".join(said.split())


def test_the_terminal_the_results_and_the_report_leave_them_out(few):
    folder, _, said = few
    results = json.loads((folder / "run" / "results.json").read_text())
    assert len(results["rows"]) == 2
    for row in results["rows"].values():
        assert not NONE & row.keys()
        assert row["too_few"]["precision"] == "12 held-out images; precision needs at least 75"
    heading = said.splitlines()[0]
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", (folder / "run" / "report.html").read_text())).split())
    for shown in (" ".join(said.split()), text):
        assert "12 held-out images, too few for FD, FD / floor" in shown
        assert "precision (75 needed)" in shown
    assert "precision" not in heading
    assert "FD" not in heading.replace("FD to train", "")
    assert results["floor"] is None
    assert "None" not in said


def test_the_model_card_has_none_of_them_and_the_reason(few, tmp_path):
    folder, _, _ = few
    export(folder / "run", "onnx", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "too few for" in card
    assert "12 held-out images" in card
    quality = card.split("## Quality")[1].split("12 held-out images")[0]
    assert not re.search(r"precision|recall|frechet over floor|kernel", quality)
    assert not re.search(r"metric_type|type: (precision|recall|frechet|kernel)\b", card.split("---")[1].replace("frechet_train", ""))


@pytest.mark.parametrize(("key", "needed"), [("precision", 75), ("frechet", 50), ("recall", 25), ("kernel", 150)])
def test_the_best_cannot_be_kept_by_one_of_them(few, mistake, tmp_path, key, needed):
    folder, _, _ = few
    data = f"data={{name: images, path: '{folder / 'images'}', size: 8, channels: 1, holdout: .2}}"
    said = " ".join(mistake("train", "drift/digits", data, *SMALL, f"trainer.keep_best={key}", "--out", tmp_path / "run").split())
    assert f"trainer.keep_best is '{key}', and there are 12 held-out images;" in said
    assert f"needs at least {needed}: give more (data.holdout, trainer.evaluate_samples), or another figure" in said
    assert not (tmp_path / "run").exists()


def test_a_comparison_of_few_says_so(monkeypatch, done, tmp_path):
    from fewstep import comparison

    monkeypatch.setattr(measurement, "IMAGE_SAMPLES", 40)
    entry = next(entry for entry in comparison.entries_for(points=False, mixture=False, gamma=1.0) if entry.recipe == "drift/digits")
    monkeypatch.setattr(comparison, "entries_for", lambda *arguments: [entry])
    said = done("compare", "digits", "--scale", "0.0005", "--out", tmp_path / "out").out
    assert "warning: 40 samples, too few for FD, FD / floor" in said
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert not {"frechet", "recall", "kernel"} & next(row for row in rows.values() if "method" in row).keys()
