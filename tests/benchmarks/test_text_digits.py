"""The study of students of a text-to-image model: every row, at a size that learns nothing."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import text_digits
    import train_tiny_text_model

    monkeypatch.setattr(text_digits, "NUM", 60)
    monkeypatch.setattr(text_digits, "TEACHER_STEPS", 5)
    monkeypatch.setattr(
        text_digits, "COMMON", (*text_digits.COMMON, "steps=2", "batch_size=8", "trainer.log_every=1", "trainer.sample_every=5")
    )
    learn = train_tiny_text_model.train
    monkeypatch.setattr(train_tiny_text_model, "train", lambda out, steps, vae_steps: learn(out, 3, 3))
    yield text_digits
    for name in ("text_digits", "train_tiny_text_model"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_every_row_is_made_once(study, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    command = ["text_digits.py", "--folder", str(tmp_path / "runs"), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "teacher", "LoRA, 1 step"])
    study.main()
    rows = json.loads(results.read_text())["rows"]
    titles = [f"teacher, {steps}, guidance {scale}" for steps in ("5 steps", "4 steps", "1 step") for scale in (2, 1)]
    assert [row["title"] for row in rows] == [*titles, "LoRA, 1 step"]
    assert all(0 <= row["class_accuracy"] <= 1 for row in rows)
    assert rows[-1]["parameters"] < rows[0]["parameters"]
    before = results.read_text()
    study.main()
    assert results.read_text() == before
    monkeypatch.setattr(sys, "argv", [*command, "--only", "whole, 4 steps", "--try", "method.generator_optimizer.lr=1e-3"])
    capsys.readouterr()
    study.main()
    assert "try_whole_4_steps" in capsys.readouterr().out
    assert results.read_text() == before


def test_prompts_and_digits_of_the_teacher(study):
    import train_tiny_text_model as tool

    assert tool.prompts()[21:24] == ["a photo of a seven", "seven, thin", "seven, bold"]
    images, label, third = tool.digits()
    assert images.shape == (1437, 3, 16, 16)
    for digit in range(10):
        ink = [images[(label == digit) & (third == k)].mean().item() for k in range(3)]
        assert ink == sorted(ink)

    # latents that decode to an image come back as the image that was enlarged
    class Decodes:
        def pixels(self, latents):
            return latents

    torch.testing.assert_close(study.as_digits(Decodes(), images[:5]), images[:5, :1, ::2, ::2])
