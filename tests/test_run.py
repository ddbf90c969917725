import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fewstep
from fewstep.build import load_data, make_method
from fewstep.data import load_digits
from fewstep.engine import choose_threads
from fewstep.errors import UserError
from fewstep.recipe import load_recipe
from fewstep.run import describe, train_recipe
from fewstep.training.run_folder import RunFolder

# --- parts of a batch ------------------------------------------------------------------------------------------------


def test_every_part_of_a_batch_has_an_item_for_every_step(teacher_run, tmp_path):
    few = [f"method.teacher={teacher_run}", "method.sampler_steps=4", "batch_size=12", "steps=1", "trainer.accelerator=cpu"]
    with pytest.raises(UserError) as error:
        describe(load_recipe("dmd2/digits", [*few, "trainer.devices=2", "trainer.accumulate=2"]))
    assert str(error.value) == "batch_size is 12, in 4 part(s) of 3; method dmd2 needs 4 items in each: give at least 16"
    with pytest.raises(UserError) as error:
        train_recipe(load_recipe("dmd2/digits", [*few, "trainer.accumulate=4"]), tmp_path / "run")
    assert str(error.value).startswith("batch_size is 12, in 4 part(s) of 3; ")
    assert not (tmp_path / "run").exists()
    describe(load_recipe("dmd2/digits", [*few, "batch_size=4"]))


def test_a_drift_is_of_a_whole_batch_of_two_samples_at_least():
    """Each leaves itself out, of the field as of the temperatures that the recipe finds by itself."""
    few = ["data.size=500", "network.widths=[8]", "steps=1", "trainer.accelerator=cpu"]
    for recipe in ("drift/ring", "drift/vanilla"):
        with pytest.raises(UserError, match=r"trainer\.accumulate is 4, but method drift learns from a batch as a whole"):
            describe(load_recipe(recipe, [*few, "batch_size=4", "trainer.accumulate=4"]))
        with pytest.raises(UserError, match="batch_size is 1; drift needs at least 2 samples a step"):
            describe(load_recipe(recipe, [*few, "batch_size=1"]))


@pytest.mark.parametrize("batch_size", [10, 2])
def test_a_batch_that_cannot_be_dealt_out_is_refused_before_anything_is_written(batch_size, teacher_overrides, tmp_path):
    recipe = load_recipe("teacher/digits", [*teacher_overrides, f"batch_size={batch_size}", "trainer.accumulate=4"])
    for start in (describe, lambda recipe: train_recipe(recipe, tmp_path / "run")):
        with pytest.raises(UserError, match=f"batch_size is {batch_size}, which does not divide by 1 device"):
            start(recipe)
    assert not (tmp_path / "run").exists()


# --- a run that draws ------------------------------------------------------------------------------------------------


def test_a_run_that_draws_is_sampled_in_any_number_of_steps(done, mistake, tmp_path):
    run, small = tmp_path / "run", ["data.size=500", "network.widths=[8]", "batch_size=16", "steps=2", "method.lam_warmup=.5"]
    done("train", "dddm/ring", *small, "trainer.accelerator=cpu", "trainer.log_every=1", "trainer.sample_every=2", "--out", run)
    for name, options, evaluations in (("a", [], 20), ("b", ["--steps", "1"], 1), ("c", ["--steps", "3"], 3)):
        out = done("sample", run, "-n", "5", "--seed", "1", "--out", tmp_path / f"{name}.npz", *options).out
        assert f"5 samples, {evaluations} evaluation(s) each" in out
    made = [np.load(tmp_path / f"{name}.npz")["samples"] for name in "abc"]
    assert all(np.isfinite(samples).all() and samples.shape == (5, 2) for samples in made)
    assert not np.allclose(made[0], made[1])
    for steps in ("0", "-1"):
        message = mistake("sample", run, "--steps", steps, "--out", tmp_path / "d.npz")
        assert message == f"error: steps is {steps}; give at least 1\n"
    assert not (tmp_path / "d.npz").exists()
    # lambda's ramp is over after the first of two updates, and the particles' distances change their name
    records = RunFolder(run).metrics()
    assert [("denoiser.apart" in record, "denoiser.calibration" in record) for record in records] == [(True, False), (False, True)]
    with pytest.raises(UserError) as error:
        make_method(
            load_recipe("dmd2/ring", [f"method.teacher={run}", "data.size=500"]),
            load_data(load_recipe("dddm/ring", ["data.size=500"]).data),
        )
    refusal = str(error.value)
    assert refusal.startswith(f"the teacher {run} does not fit this recipe: ")
    assert "it draws samples of the posterior, and a teacher gives the mean of the posterior" in refusal


# --- threads ---------------------------------------------------------------------------------------------------------


def test_small_networks_get_one_thread_and_large_ones_every_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    network = nn.Linear(1000, 999)  # a million parameters with the bias
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == 999_999
    side = 32
    assert choose_threads("auto", network, (3, side, side)) == 6  # 1e9 multiply-adds and more
    assert choose_threads("auto", network, (1, 8, 8)) == 1
    assert choose_threads("auto", network, (64,)) == 1
    assert choose_threads(3, network, (1, 8, 8)) == 3  # what is asked for is done
    assert choose_threads(1, network, (3, side, side)) == 1


def test_the_shipped_teacher_is_a_small_network(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    generator = make_method(load_recipe("teacher/digits"), load_digits()).generator
    assert choose_threads("auto", generator.denoiser, generator.shape) == 1


def test_threads_are_set_for_a_run(monkeypatch, teacher_overrides, tmp_path):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for threads in ("auto", "3"):
        recipe = load_recipe("teacher/digits", [*teacher_overrides, "steps=1", f"trainer.threads={threads}"])
        train_recipe(recipe, tmp_path / threads)
    assert asked == [1, 3]


def test_the_commit_is_the_package_s_own_and_not_that_of_a_repository_around_it(tmp_path):
    """An installed package lies in the user's .venv, which may lie in the user's repository."""
    code = "import json, fewstep.run; print(json.dumps(fewstep.run.made_by()['commit']))"
    copy = shutil.copytree(Path(fewstep.__file__).parent, tmp_path / "theirs" / ".venv" / "fewstep")
    git = ("git", "-c", "user.name=me", "-c", "user.email=me@example.org", "-C", str(tmp_path / "theirs"))
    (tmp_path / "theirs" / ".gitignore").write_text(".venv\n")

    def told():
        environment = {**os.environ, "PYTHONPATH": str(copy.parent)}
        return json.loads(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)

    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "theirs")):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert told() is None
    subprocess.run([*git, "add", "-f", str(copy / "run.py")], check=True)
    subprocess.run([*git, "commit", "-qm", "with the package"], check=True)
    assert told().startswith(subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip())


def test_a_run_of_settings_that_are_refused_today_says_what_is_left_to_do_with_it(done, mistake, tmp_path):
    """Evaluated as it is; by --resume there is no use in being told to change settings that the run was begun with."""
    small = ("steps=2", "network.widths=[8]", "batch_size=16", "data.size=500", "trainer.accelerator=cpu")
    now = (*small, "method.gamma_by=data", "method.gamma_start=0.5")
    told = mistake("train", "drift/ring", *now, "--out", tmp_path / "new")
    assert "set it to null" in told
    assert "was trained with this" not in told
    run = tmp_path / "run"
    done("train", "drift/ring", *small, "method.gamma_by=data", "--out", run)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("gamma_start: null", "gamma_start: 0.5"))
    told = mistake("train", "drift/ring", *now, "steps=3", "--out", run, "--resume")
    assert "method.gamma_start is 0.5, but with method.gamma_by=data gamma is the same in the whole run" in told
    assert f"{run} was trained with this by a version that allowed it: it can be sampled, measured and exported as it is, but not" in told
    done("evaluate", run, "-n", 60)
