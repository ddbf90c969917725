"""Runs that version 0.1.0 began go on: they load, sample, are measured, exported and resumed. See old_runs/README.md."""

import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fewstep
from fewstep import measurement, registry
from fewstep.evaluation import run_recipe
from fewstep.run_report import report
from fewstep.training.health import COMMON, older_names

FOLDER = Path(__file__).parent / "old_runs"
TIMES = ("seconds", "images_per_second")


class OldRun(NamedTuple):
    """A copy of one of them, and what came of it."""

    path: Path
    expected: dict[str, Any]


@pytest.fixture(params=sorted(file.parent.name for file in FOLDER.glob("*/expected.json")))
def old_run(request, tmp_path, monkeypatch) -> OldRun:
    """A run at step 2 of 4; the current folder holds nothing else, and so not the teacher that a recipe names."""
    monkeypatch.chdir(tmp_path)
    return unpacked(request.param, tmp_path / "run")


def unpacked(name: str, path: Path) -> OldRun:
    with tarfile.open(FOLDER / name / "run.tar.xz") as archive:
        archive.extractall(path, filter="data")
    return OldRun(path, json.loads((FOLDER / name / "expected.json").read_text()))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_samples(run: Path, step: int, expected: dict[str, Any]) -> None:
    generator = fewstep.load(run)
    assert generator.info["step"] == step
    samples = generator.sample(2, seed=0)
    assert samples.shape == (2, *generator.shape)
    torch.testing.assert_close(samples.flatten(), torch.tensor(expected[f"samples_at_{step}"]), rtol=0, atol=1e-4)


def test_it_loads_and_samples(old_run, done, tmp_path):
    assert_samples(old_run.path, 2, old_run.expected)
    done("sample", old_run.path, "-n", "2", "--seed", "0", "--out", tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"].ravel(), old_run.expected["samples_at_2"], atol=1e-4)


@pytest.mark.parametrize("recipe", ["by its name and overrides", "as it lies in the folder"])
def test_it_is_resumed(old_run, recipe, done):
    run, expected = old_run
    command = expected["command"] if recipe.startswith("by") else ["train", run / "recipe.yaml"]
    older = older_names(registry.room("methods", run_recipe(run).method.name))
    before = records(run)
    assert "going on from step 2" in done(*command, "--out", run, "--resume").err
    after = records(run)
    assert after[:2] == before
    assert [record["step"] for record in after] == [1, 2, 3, 4]
    for record, wanted in zip(after[2:], expected["metrics"], strict=True):
        # figures of health were of single batches then, and are pooled now
        numbers = {older.get(key, key): x for key, x in wanted.items() if isinstance(x, int | float) and not key.startswith("health.")}
        assert {key: record.get(key) for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-7)
        common = {rule.name for rule in COMMON}
        wanted_alarms = {older.get(name, name) for name in wanted["alarms"]}
        assert set(record["alarms"]) - common == wanted_alarms - common
    assert_samples(run, 4, expected)


def test_it_is_measured(old_run, done, monkeypatch):
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 1000)
    done("evaluate", old_run.path, "-n", 1000 if "ring" in old_run.expected["command"][1] else 50)
    rows = json.loads((old_run.path / "results.json").read_text())["rows"]
    method, distils = old_run.expected["command"][1].split("/")[0], (old_run.path / "teacher").exists()
    assert list(rows)[-1].startswith("student" if distils else method)
    # the copy of the teacher is measured beside its student
    assert any(title.startswith("teacher") for title in rows) == (distils or method == "teacher")


def test_figures_and_alarms_of_older_names_are_in_the_report(tmp_path):
    path = unpacked("dmd2", tmp_path / "run").path
    lines = records(path)
    for line in lines:
        line |= {"generator.gap": 0.5, "alarms": ["drift"]}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(path)
    page = (path / "report.html").read_text()
    assert "disagreement" in page
    assert "generator.gap" not in page
    assert "shift" in page.split('id="alarms"')[1]


def test_the_student_is_exported(done, tmp_path):
    done("export", unpacked("dmd2", tmp_path / "run").path, "--format", "diffusers", "--out", tmp_path / "pipeline")
    assert (tmp_path / "pipeline" / "model_index.json").is_file()
