"""The table of docs/alarms.md: its arms can be run, what was measured holds, and the page is what the measurements say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from fewstep import measurement
from fewstep.recipe import resolved

ROOT = Path(__file__).parents[1]


def module_of(name):
    """A script of benchmarks/."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        spec.loader.exec_module(module)
    return module


ALARMS, TABLES = module_of("alarms"), module_of("tables")
FOUND = json.loads((ROOT / "benchmarks" / "results" / "alarms.json").read_text())


@pytest.mark.parametrize("arm", [*ALARMS.FAILURES, *ALARMS.SOUND], ids=lambda arm: arm.title)
def test_every_arm_can_be_built_and_its_fault_is_one(arm, monkeypatch, tmp_path):
    monkeypatch.setattr(ALARMS, "taught", lambda name, folder: folder / name)
    failing, sound = (resolved(ALARMS.recipe_of(arm, changes, tmp_path)) for changes in (arm.fault, ()))
    assert (failing != sound) == (bool(arm.fault))
    if arm in ALARMS.FAILURES:
        assert arm.fault or arm.teacher


def test_there_are_ten_failures_and_ten_sound_runs_of_all_methods():
    assert len(ALARMS.FAILURES) >= 10
    assert {"teacher", "dmd2", "drift", "dddm", "consistency", "flow_map"} <= {arm.recipe.split("/")[0] for arm in ALARMS.SOUND}
    assert set(FOUND["failures"]) == {arm.title for arm in ALARMS.FAILURES}
    assert len(FOUND["sound"]) >= 10
    assert set(FOUND["sound"]) <= {arm.title for arm in ALARMS.SOUND}


@pytest.mark.parametrize("title", FOUND["failures"])
def test_each_failure_was_told_of_and_the_advice_helped(title):
    row = FOUND["failures"][title]
    assert row["expected"] in {alarm["alarm"] for alarm in row["before"]["alarms"]}
    key = "class_accuracy" if title == "labels shuffled" else next(iter(row["before"]["figures"]))
    before, after = row["before"]["figures"][key], row["followed"][-1]["figures"][key]
    assert after > before if key == "class_accuracy" else after < before


@pytest.mark.parametrize("title", FOUND["sound"])
def test_no_sound_run_raised_an_alarm(title):
    assert FOUND["sound"][title]["alarms"] == []


@pytest.mark.parametrize("name", ["alarms_failures", "alarms_sound", "figure_errors"])
def test_the_page_is_what_was_measured(name):
    text = (ROOT / "docs" / "alarms.md").read_text()
    table = text.split(f"<!-- table: {name} -->\n")[1].split("\n<!-- end -->")[0]
    assert table == TABLES.TABLES[name]()


@pytest.mark.parametrize(
    ("advice", "done"),
    [
        ("It was better before (1). Lower method.generator_optimizer.lr", ["method.generator_optimizer.lr=0.0001"]),
        ("It has hardly moved since the start (1). Train longer (steps), or raise method.generator_optimizer.lr", ["steps=9000"]),
        ("Raise batch_size (64 items or more, of each class) for samples to feel the data", ["batch_size=8192"]),
        ("Set method.ema_decay to 0.99 or more", ["method.ema_decay=0.99"]),
        ("Set network.sigma_data to the standard deviation of the data", ["network.sigma_data=10.0"]),
        ("Look at the curves", []),
    ],
)
def test_advice_is_followed_as_it_reads(advice, done):
    recipe = ALARMS.load_recipe("dmd2/ring", ["network.sigma_data=2"])
    message = "the data's standard deviation is 5 times network.sigma_data"
    assert ALARMS.follow(advice, recipe, {"message": message}) == done


@pytest.mark.parametrize("title", ["rate too high", "batch of 4"])
def test_the_cheapest_failures_again(title, tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 1000)
    monkeypatch.setattr(ALARMS, "POINTS", 400)
    arm = next(arm for arm in ALARMS.FAILURES if arm.title == title)
    recipe = ALARMS.recipe_of(arm, (*arm.fault, "steps=200"), tmp_path)
    found = {alarm["alarm"]: alarm for alarm in ALARMS.ran(recipe, tmp_path / "run", title)["alarms"]}
    assert arm.alarm in found
    assert found[arm.alarm]["first"] <= 0.5
    assert ALARMS.follow(found[arm.alarm]["advice"], recipe, found[arm.alarm])
