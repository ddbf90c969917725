"""The study of students of a text-to-image model: every row, at a size that learns nothing."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fewstep.interop.text_teacher import text_teacher
from fewstep.pipelines.vae import VAE

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
    monkeypatch.setitem(text_digits.OTHERWISE, "sd3", text_digits.OTHERWISE["sd3"][:1])
    learn = train_tiny_text_model.train
    monkeypatch.setattr(train_tiny_text_model, "train", lambda out, form: learn(out, 3, 3, form=form))
    yield text_digits
    for name in ("text_digits", "train_tiny_text_model"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sd", "sd3"])
def test_every_row_is_made_once(form, study, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    command = ["text_digits.py", "--folder", str(tmp_path / "runs"), "--results", str(results), "--form", form]
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


def test_a_flow_is_learned_at_the_times_of_its_scheduler(study, tmp_path):
    """A network that knows the clean latents has loss 0, and is told what the stock pipeline would be."""
    import train_tiny_text_model as tool

    made = tool.train(tmp_path / "model", form="sd3")
    x0, row, told = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 29, 30, 30, 1]), []

    def knows(z, hidden, pooled, time):
        told.extend([hidden, pooled, time])
        return SimpleNamespace(sample=(z - x0) / (time / 1000).view(-1, 1, 1, 1))

    assert tool.flow_loss(made, knows)(x0, row).item() < 1e-6
    hidden, pooled, time = told
    with torch.no_grad():
        expected = made.encode_prompt([*(tool.prompts()[i] for i in (0, 3, 29)), "", "", tool.prompts()[1]], None, None, "cpu", 1, False)
    torch.testing.assert_close(hidden, expected[0])
    torch.testing.assert_close(pooled, expected[2])
    assert all((made.scheduler.sigmas - found / 1000).abs().min() < 1e-6 for found in time)
    # what was written is a pipeline of its own latents, of mean 0 and standard deviation 1
    latents = VAE(str(tmp_path / "model")).encoded(tool.digits()[0][:500])
    assert latents.mean().item() == pytest.approx(0, abs=1e-4)
    assert latents.std().item() == pytest.approx(1, abs=1e-3)
    assert text_teacher(str(tmp_path / "model")).sample(2, seed=0, steps=2, prompts="a photo of a seven").shape == (2, 4, 8, 8)
    assert len((tmp_path / "model" / "prompts.txt").read_text().splitlines()) == 30


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
