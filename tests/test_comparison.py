"""``fewstep compare``: every method on one density, small."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from fewstep import comparison, measurement, pictures
from fewstep.build import train
from fewstep.config import load_recipe
from fewstep.training.run_folder import RunFolder

STEPS = 4
EXACT_ROW, DRIFT, DISTILLED = "exact samples", "drift, 1 evaluation", "DMD2, trained teacher, 1 evaluation"
CLOSED_FORM, TEACHER = "DMD2, exact teacher, 1 evaluation", "teacher, 35 evaluations"


class NoDashboard:
    """Draws nothing."""

    def __init__(self, *arguments) -> None:
        pass

    def __getattr__(self, name):
        return lambda *arguments: None


@pytest.fixture
def small(monkeypatch):
    """Runs and measures of a second; the budget, folders and order are left to the comparison. Gives the recipes that were trained."""
    trained = []

    def load(source, overrides=()):
        sizes = ["network.widths=[16]", "data.size=500", "batch_size=16", "trainer.sample_every=100", "trainer.accelerator=cpu"]
        sizes += ["method.fake_widths=[16]"] * source.startswith("dmd2")
        return load_recipe(source, [*sizes, *overrides])

    def counted(recipe, *arguments, **options):
        trained.append(recipe)
        train(recipe, *arguments, **options)

    monkeypatch.setattr(pictures, "Dashboard", NoDashboard)  # the battery looks at these
    monkeypatch.setattr(comparison, "load_recipe", load)
    monkeypatch.setattr(comparison, "train", counted)
    for module in (comparison, measurement):
        monkeypatch.setattr(module, "EXACT_SAMPLES", 500)
    return trained


@pytest.mark.parametrize(
    ("density", "gamma", "titles"),
    [
        ("ring", "2", [EXACT_ROW, DRIFT, CLOSED_FORM, DISTILLED]),  # a teacher draws p, and not p^2
        ("moons", "1", [EXACT_ROW, DRIFT, TEACHER, DISTILLED]),  # has no closed form
    ],
)
def test_one_table_one_picture(density, gamma, titles, small, done, tmp_path):
    out = tmp_path / "there"
    arguments = ["compare", f"toys/{density}", "--steps", str(STEPS), "--gamma", gamma, "--seed", "3", "--out", out]
    first = done(*arguments)
    results = json.loads((out / "compare.json").read_text(), parse_constant=pytest.fail)
    assert list(results["rows"]) == titles
    assert (results["data"], results["gamma"], results["steps"], results["seed"]) == (f"toys/{density}", float(gamma), STEPS, 3)
    for title, row in results["rows"].items():
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, int | float))
        assert row["energy_error"] > 0
        assert ("modes" in row) == (density == "ring")
        assert ("training_seconds" in row) == (title != EXACT_ROW)
    assert abs(results["rows"][EXACT_ROW]["energy"]) < min(row["energy"] for title, row in results["rows"].items() if title != EXACT_ROW)
    for title in titles:
        assert sum(line.startswith(f"{title}  ") for line in first.out.splitlines()) == 1
    assert str(out / "compare.png") in first.out
    with Image.open(out / "compare.png") as picture:
        picture.load()
        assert picture.width > 300 * len(titles)  # a panel each

    # one budget: a trained teacher's steps are taken from its student's
    exact = [("dmd2", "exact", STEPS)] * (density == "ring")
    given = [(recipe.method.name, getattr(recipe.method, "teacher", None), recipe.steps) for recipe in small]
    half = STEPS // 2
    assert given == [("drift", None, STEPS), *exact, ("teacher", None, half), ("dmd2", str(out / "teacher"), half)]
    assert {(recipe.seed, recipe.data.density) for recipe in small} == {(3, density)}
    assert [recipe.method.gamma for recipe in small if recipe.method.name != "teacher"] == [float(gamma)] * (len(given) - 1)
    seconds = {folder: RunFolder(out / folder).metrics()[-1]["seconds"] for folder in ("drift", "teacher", "dmd2_trained_teacher")}
    assert results["rows"][DRIFT]["training_seconds"] == seconds["drift"]
    assert results["rows"][DISTILLED]["training_seconds"] == pytest.approx(seconds["dmd2_trained_teacher"] + seconds["teacher"])

    # a second call measures again and trains nothing
    small.clear()
    done(*arguments)
    assert small == []
    again = json.loads((out / "compare.json").read_text())
    figures = [
        [{key: value for key, value in row.items() if key != "images_per_second"} for row in found["rows"].values()]
        for found in (results, again)
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toys/rign"], ["'toys/rign' is no density to compare on", "did you mean 'ring'?", "toys/NAME", "moons"]),
        (["ring"], ["'ring' is no density to compare on", "toys/NAME", "ring, grid25"]),
        (["digits"], ["'digits' is no density to compare on", "toys/NAME"]),
        (["toys/ring", "--steps", "1"], ["--steps is 1", "at least 2"]),
        (["toys/ring", "--gamma", "0"], ["--gamma is 0", "must be positive"]),
        (["toys/ring", "--gamma", "nan"], ["--gamma is nan"]),
        (["toys/ring", "--gamma", "inf"], ["--gamma is inf"]),
        (["toys/ring", "--seed", "-1"], ["seed is -1"]),
    ],
)
@pytest.mark.parametrize("place", [["--out", "there"], []])
def test_what_cannot_be_compared_is_said_before_anything_is_written(arguments, words, place, mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = mistake("compare", *arguments, *place)
    for word in words:
        assert word in message
    assert list(Path.cwd().iterdir()) == []
