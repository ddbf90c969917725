"""The checkpoint that was best by a figure is kept, through kills and resumes."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep import files
from fewstep.build import load_data
from fewstep.errors import Interrupted, UserError
from fewstep.generator import load
from fewstep.measurement import suite_for
from fewstep.metrics.figures import choices
from fewstep.recipe import load_recipe
from fewstep.training.run_folder import RunFolder
from linear_method import Linear, Shipped, run_loop
from picture_folders import put, saved
from same_run import assert_same_run, snapshot

VALUES = {2: 3.0, 4: 1.6, 6: 0.9, 8: 2.0}


class Kept(Linear):
    """Ships what can be saved as a generator."""

    def ship(self, network, step):
        shipped = Shipped(network, step)
        shipped.info = {"step": step}
        shipped.config = {"info": shipped.info}
        return shipped


def figures(values):
    return lambda generator, measuring: {"eval.made": values[generator.info["step"]], "eval.other": 1.0}


def settings(values=VALUES, best_is="least"):
    return {"steps": 8, "evaluate_every": 2, "on_evaluate": figures(values), "keep_best": "made", "best_is": best_is}


@pytest.mark.parametrize(
    ("values", "best_is", "step"),
    [
        (VALUES, "least", 6),
        (VALUES, "greatest", 2),
        (VALUES, "nearest 1", 6),
        ({2: 0.5, 4: 1.2, 6: 0.7, 8: 3.0}, "nearest 1", 4),
        ({2: 1.0, 4: 1.0, 6: 2.0, 8: 1.0}, "least", 2),  # the first of equals
        ({2: float("nan"), 4: float("inf"), 6: 5.0, 8: 6.0}, "least", 6),
    ],
)
def test_the_best_is_kept(values, best_is, step, tmp_path):
    run = run_loop(tmp_path / "run", Kept(), **settings(values, best_is))
    best = {"step": step, "metric": "made", "value": values[step]}
    assert run.best() == best
    assert json.loads((run.path / "best" / "config.json").read_text())["info"] == {"step": step, "best": best}
    seldom = run_loop(tmp_path / "seldom", Kept(), **{**settings(values, best_is), "sample_every": 99})
    assert snapshot(run.best_folder) == snapshot(seldom.best_folder)
    state = json.loads((run.path / "checkpoints" / "step_8" / "state.json").read_text())
    assert state["best"] == best
    assert "best" not in json.loads((run.path / "model" / "config.json").read_text())["info"]


def test_it_is_the_average_of_that_step(tmp_path):
    run = run_loop(tmp_path / "run", Kept(), checkpoint_every=1, keep_checkpoints=9, **settings())
    from safetensors.torch import load_file

    average = load_file(run.path / "checkpoints" / "step_6" / "ema.safetensors")
    assert torch.equal(load_file(run.best_folder / "model.safetensors")["weight"], average["0.weight"])
    last = load_file(run.path / "checkpoints" / "step_8" / "ema.safetensors")
    assert not torch.equal(last["0.weight"], average["0.weight"])


@pytest.mark.parametrize("values", [{2: float("nan"), 4: float("inf"), 6: float("nan"), 8: float("nan")}, {8: 2.0}])
def test_a_figure_without_a_value_at_every_measurement_is_said_once(values, tmp_path, capsys):
    run = run_loop(tmp_path / "run", Kept(), **settings({2: float("nan"), 4: float("nan"), 6: float("nan"), **values}))
    said = capsys.readouterr().err.count("trainer.keep_best is 'made', which had no value at any measurement: no best model is kept")
    assert (said, run.best_folder.exists()) == ((0, True) if values[8] == 2.0 else (1, False))


def test_nothing_is_kept_unless_asked_for(tmp_path):
    run = run_loop(tmp_path / "run", Kept(), **{**settings(), "keep_best": None})
    assert not run.best_folder.exists()


@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_was_stopped_keeps_the_same_best(step, kept, tmp_path):
    """Also where the best came after the checkpoint that it goes on from."""
    whole = run_loop(tmp_path / "whole", Kept(), **settings())
    method = Kept()
    method.before = lambda turn, call: os.kill(os.getpid(), signal.SIGTERM) if (turn, call) == ("second", step) else None
    with pytest.raises(Interrupted):
        run_loop(tmp_path / "run", method, **settings())
    if not kept:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{step}")
    run = run_loop(tmp_path / "run", Kept(), resume=True, **settings())
    assert_same_run(run.path, whole.path)
    assert snapshot(run.best_folder) == snapshot(whole.best_folder)
    assert run.best()["step"] == 6


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["model.safetensors", "config.json", "rename"])
def test_a_kill_while_the_best_is_replaced_loses_neither(where, tmp_path, monkeypatch):
    """The old one is there until the new one is whole; between the two names the new one is found under its first."""
    whole = run_loop(tmp_path / "whole", Kept(), **settings())
    writes = []
    replace_file, rename = files.replace_file, Path.rename

    def dying(path, content):
        if path.parent.name == ".best.partial" and path.name == where:
            writes.append(path)
            if len(writes) == 3:  # the third improvement, at step 6
                os._exit(9)
        replace_file(path, content)

    def moving(path, target):
        if where == "rename" and (path.name, target.name) == (".best.partial", "best"):
            writes.append(path)
            if len(writes) == 3:
                os._exit(9)
        return rename(path, target)

    child = os.fork()
    if child == 0:
        files.replace_file, files.Path.rename = dying, moving
        try:
            run_loop(tmp_path / "run", Kept(), **settings())
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert RunFolder(tmp_path / "run").best() == {
        "step": 6 if where == "rename" else 4,
        "metric": "made",
        "value": 0.9 if where == "rename" else 1.6,
    }
    run = run_loop(tmp_path / "run", Kept(), resume=True, **settings())
    assert snapshot(run.best_folder) == snapshot(whole.best_folder)
    assert not list(run.path.glob(".best*"))


def test_a_full_disk_leaves_the_old_best(tmp_path, monkeypatch):
    run = run_loop(tmp_path / "run", Kept(), **{**settings(), "steps": 2})
    before = snapshot(run.best_folder)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replace_file", full)
    with pytest.raises(OSError, match="No space"):
        run.save_best(Kept().ship(Kept().networks["model"], 4))
    assert snapshot(run.best_folder) == before
    assert not list(run.path.glob(".best*"))


def test_another_figure_begins_anew(tmp_path, capsys):
    run = run_loop(tmp_path / "run", Kept(), **settings())
    shutil.rmtree(run.path / "checkpoints" / "step_8")
    run_loop(run.path, Kept(), resume=True, **{**settings(), "keep_best": "other"})
    assert run.best() == {"step": 8, "metric": "other", "value": 1.0}
    assert "best/ holds the best model by made; from here on it will hold the best by other" in capsys.readouterr().err


def test_a_figure_that_is_measured_otherwise_begins_anew(tmp_path, capsys):
    """A Frechet distance of fewer samples is larger by its bias: the old best would stay for ever."""
    run = run_loop(tmp_path / "run", Kept(), **settings(), measured_by="of 2,000 samples in a")
    shutil.rmtree(run.path / "checkpoints" / "step_8")
    run_loop(run.path, Kept(), resume=True, **settings(), measured_by="of 500 samples in a")
    assert run.best() == {"step": 8, "metric": "made", "value": 2.0, "by": "of 500 samples in a"}
    told = capsys.readouterr().err
    assert "best model by made of 2,000 samples in a; from here on it will hold the best by made of 500 samples in a" in told
    shutil.rmtree(run.path / "checkpoints" / "step_8")
    run_loop(run.path, Kept(), resume=True, **settings(), measured_by="of 500 samples in a")
    assert "best/" not in capsys.readouterr().err


def test_a_best_that_was_taken_away_is_said(tmp_path, capsys):
    run = run_loop(tmp_path / "run", Kept(), **settings())
    shutil.rmtree(run.path / "checkpoints" / "step_8")
    shutil.rmtree(run.best_folder)
    run_loop(run.path, Kept(), resume=True, **settings())
    assert run.best() == {"step": 8, "metric": "made", "value": 2.0}
    assert "best/ (of step 4) is missing" in capsys.readouterr().err


def test_a_checkpoint_from_before_there_was_a_best_is_gone_on_with(tmp_path):
    from fewstep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

    run = run_loop(tmp_path / "run", Kept(), **{**settings(), "keep_best": None})
    shutil.rmtree(run.path / "checkpoints" / "step_8")
    folder = run.path / "checkpoints" / "step_6"
    old = load_checkpoint(folder)
    save_checkpoint(folder, Checkpoint(old.networks, old.optimizers, old.rng, {k: v for k, v in old.state.items() if k != "best"}))
    run_loop(run.path, Kept(), resume=True, **settings())
    assert run.best()["step"] == 8


# --- by a recipe -----------------------------------------------------------------------------------------------------


def test_the_figures_that_can_be_chosen_are_those_that_are_measured(teacher_run, done, tmp_path):
    small = ("network.channels=[8]", "network.groups=4", "network.head_dim=4", "method.sampler_steps=1", "batch_size=16", "steps=2")
    cadence = ("trainer.evaluate_every=1", "trainer.evaluate_samples=250", "trainer.accelerator=cpu")
    done("train", "teacher/digits", *small, *cadence, "trainer.keep_best=class_accuracy", "--out", tmp_path / "run")
    records = RunFolder(tmp_path / "run").metrics()
    assert {name.removeprefix("eval.") for name in records[0] if name.startswith("eval.")} == set(choices("images"))
    found = [record["eval.class_accuracy"] for record in records]
    best = RunFolder(tmp_path / "run").best()
    assert best["value"] == max(found)
    assert best["step"] == 1 + found.index(max(found))
    generator = load(tmp_path / "run" / "best")
    assert generator.info["best"] == best
    assert generator.info["step"] == best["step"]
    done("sample", tmp_path / "run" / "best", "-n", 4, "--out", tmp_path / "grid.png")
    out = done("evaluate", tmp_path / "run" / "best", "-n", 250, "--steps", 1).out
    results = json.loads((tmp_path / "run" / "best" / "results.json").read_text())
    assert results["best"] == best
    assert results["rows"]["teacher, 1 evaluation"]["class_accuracy"] == best["value"]
    assert not (tmp_path / "run" / "results.json").exists()
    assert f"wrote {tmp_path / 'run' / 'best' / 'results.json'}\n" in out


def test_points_too(done, tmp_path):
    small = ("data.size=500", "network.widths=[8]", "batch_size=16", "steps=2", "method.m=2", "method.sampler_steps=2")
    cadence = ("trainer.evaluate_every=1", "trainer.evaluate_samples=100", "trainer.accelerator=cpu", "trainer.keep_best=energy")
    done("train", "dddm/ring", *small, *cadence, "--out", tmp_path / "run")
    records = RunFolder(tmp_path / "run").metrics()
    assert {name.removeprefix("eval.") for name in records[0] if name.startswith("eval.")} <= set(choices("points"))
    assert RunFolder(tmp_path / "run").best()["value"] == pytest.approx(min(record["eval.energy"] for record in records), rel=1e-8)


@pytest.mark.parametrize(
    ("recipe", "options", "says"),
    [
        (
            "teacher/digits",
            ["trainer.keep_best=frechet"],
            "keep_best is 'frechet', but nothing is measured while training; give evaluate_every",
        ),
        ("teacher/digits", ["trainer.evaluate_features=inception"], "evaluate_features is 'inception', but nothing is measured"),
        ("teacher/digits", ["trainer.keep_best=freshet", "trainer.evaluate_every=1"], "did you mean 'frechet'.*allowed: frechet, "),
        ("dddm/ring", ["trainer.keep_best=frechet", "trainer.evaluate_every=1"], "allowed: energy, "),
        (
            "dddm/ring",
            ["trainer.evaluate_features=inception", "trainer.evaluate_every=1"],
            "is for images; points are measured as they are",
        ),
    ],
)
def test_what_cannot_be_kept_is_said(recipe, options, says):
    with pytest.raises(UserError, match=says):
        load_recipe(recipe, options)


@pytest.mark.parametrize("figure", ["modes", "inside", "weight_tv", "variance", "median_radius"])
def test_a_figure_that_the_data_can_never_have_is_refused_before_training(figure, mistake, tmp_path):
    told = mistake(
        "train", "drift/ring", "data.density=moons", f"trainer.keep_best={figure}", "trainer.evaluate_every=1", "--out", tmp_path / "run"
    )
    assert f"trainer.keep_best is '{figure}', which the data moons never has, for its modes are not known; give one of energy, mmd" in told
    assert not (tmp_path / "run").exists()


def test_accuracy_needs_labels_and_a_network_that_tells_classes():
    data = load_data(load_recipe("teacher/digits").data)
    assert suite_for(data).undefined == {}
    assert suite_for(data, features="pixels-8x8").undefined.keys() == {"class_accuracy", "least_class_accuracy"}


def test_a_ratio_to_a_real_figure_of_0_is_refused_before_training(mistake, tmp_path):
    for number in range(60):  # one image a class, again and again
        pixels = np.random.default_rng(number % 2).integers(0, 256, (8, 8), np.uint8)
        put(tmp_path / "images" / f"{number % 2}" / f"{number}.png", saved(pixels))
    data = f"data={{name: images, path: '{tmp_path / 'images'}', size: 8, channels: 1, holdout: .2}}"
    small = ("steps=1", "trainer.evaluate_every=1", "trainer.evaluate_samples=40", "trainer.keep_best=train_distance")
    told = mistake("train", "teacher/digits", data, *small, "--out", tmp_path / "run")
    assert "trainer.keep_best is 'train_distance', which the data images never has, for all held-out images are copies of training" in told
    assert not (tmp_path / "run").exists()
