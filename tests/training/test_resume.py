"""A run that was stopped and resumed ends with the same bits as one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from copies import in_a_child, in_a_copy
from fewstep import files, measurement
from fewstep.errors import Interrupted
from fewstep.training import resume
from fewstep.training.checkpoint import checkpoints
from fewstep.training.run_folder import RunFolder
from linear_method import Linear, run_loop
from same_run import assert_same_run, snapshot, truncate


def assert_left_in_the_middle(run, last: int) -> None:
    assert checkpoints(run / "checkpoints")[0].name == f"step_{last}", "the kill came too late, or too early"


# --- killed processes ------------------------------------------------------------------------------------------------


def test_a_killed_teacher_ends_with_the_same_bits(teacher_run, teacher_overrides, done, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "teacher/digits", *teacher_overrides, "--out", str(run)]
    process = subprocess.Popen([sys.executable, "-m", "fewstep", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "step_2").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert not (run / "checkpoints" / "step_6").exists(), "it was through before the kill"
    outcome = done(*arguments, "--resume")
    assert "going on from step" in outcome.err
    assert_same_run(run, teacher_run)


def killed(arguments, command, folder):
    """The end of a copy of this process that dies half-way through writing the checkpoint of step 4."""

    def work() -> None:
        write_file = files.write_file

        def dying(path, content):
            if (path.parent.name, path.name) == (".step_4.partial", "optimizers.pt"):
                path.write_bytes(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write_file(path, content)

        files.write_file = dying
        raise AssertionError(command(*arguments))

    ended = in_a_copy(work, folder)
    assert ended.code == -signal.SIGKILL, ended.err


def test_a_student_killed_while_it_writes_a_checkpoint_ends_with_the_same_bits(student_run, student_overrides, done, command, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "dmd2/digits", *student_overrides, "--out", str(run)]
    killed(arguments, command, tmp_path / "killed")
    assert_left_in_the_middle(run, 2)
    assert (run / "checkpoints" / ".step_4.partial").is_dir()
    assert [record["step"] for record in RunFolder(run).metrics()] == [2]  # a step is saved before it is logged
    outcome = done(*arguments, "--resume")
    assert "going on from step 2" in outcome.err
    assert not (run / "checkpoints" / ".step_4.partial").exists()
    assert_same_run(run, student_run)


POINTS = ("data.size=500", "network.widths=[8]", "batch_size=16", "steps=6", "trainer.accelerator=cpu")
CADENCE = ("trainer.log_every=2", "trainer.checkpoint_every=2", "trainer.sample_every=3")
BY_FIELD = ("method.gamma=1.5", "method.gamma_start=.2", "method.gamma_warmup=5", "method.temperatures=[.1, .3]")
BY_FIELD += ("method.temperature_start=2.0", "method.temperature_warmup=.9", "method.temperature_schedule=log")
BY_DATA = ("method.gamma=2", "method.temperature_warmup=.9")


@pytest.mark.parametrize(("recipe", "ramps"), [("drift/vanilla", BY_FIELD), ("drift/mixture8d", BY_DATA)])
@pytest.mark.usefixtures("drawn")
def test_a_drift_killed_while_it_writes_a_checkpoint_ends_with_the_same_bits(recipe, ramps, done, command, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments = ["train", recipe, *POINTS, *CADENCE, *ramps]
    done(*arguments, "--out", whole)
    killed([*arguments, "--out", str(run)], command, tmp_path / "killed")
    assert_left_in_the_middle(run, 2)
    torch.manual_seed(99)  # what the process did before is no matter
    assert "going on from step 2" in done(*arguments, "--out", run, "--resume").err
    assert_same_run(run, whole)
    frames = [{path.name: path.read_bytes() for path in r.glob("dashboard/frames/*")} for r in (run, whole)]
    assert len(frames[0]) == (0 if recipe == "drift/mixture8d" else 2)
    assert frames[0] == frames[1]
    temperatures = [record["temperature"] for record in RunFolder(run).metrics()]
    assert len(set(temperatures)) == 3  # the ramp was under way, and went on where it was


def stubborn() -> Linear:
    return Linear(noise=0.3, dropout=0.5)


SETTINGS = {"steps": 8, "log_every": 3, "checkpoint_every": 3}  # the window is in the middle of its mean at no save but the last


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run_loop(tmp_path_factory.mktemp("linear") / "run", stubborn(), **SETTINGS).path


def killed_at(number: int, path) -> int:
    """A run in a child that is killed half-way through its write number `number` (from 0)."""

    def work() -> None:
        count = 0
        write_file = files.write_file

        def dying(file, content):
            nonlocal count
            if count == number:
                file.write_bytes(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return write_file(file, content)

        files.write_file = dying
        run_loop(path, stubborn(), **SETTINGS)

    return in_a_child(work)


# recipe.yaml; three times: eight files of a checkpoint, and the model folder's two
@pytest.mark.parametrize("number", range(31))
def test_killed_while_writing_any_file(number, uninterrupted, tmp_path):
    assert killed_at(number, tmp_path / "run") == -signal.SIGKILL
    run_loop(tmp_path / "run", stubborn(), resume=(tmp_path / "run" / "recipe.yaml").exists(), **SETTINGS)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_there_is_no_further_write(uninterrupted, tmp_path):
    assert killed_at(31, tmp_path / "run") == 0  # or the test above would miss some


@pytest.mark.parametrize("step", [3, 6, 8])
def test_killed_while_writing_a_line_of_metrics(step, uninterrupted, tmp_path):
    def work() -> None:
        log = RunFolder.log

        def dying(self, record):
            if record["step"] == step:
                with self.metrics_file.open("a") as file:
                    file.write(json.dumps(record)[:25])
                os.kill(os.getpid(), signal.SIGKILL)
            log(self, record)

        RunFolder.log = dying
        run_loop(tmp_path / "run", stubborn(), **SETTINGS)

    assert in_a_child(work) == -signal.SIGKILL
    run_loop(tmp_path / "run", stubborn(), resume=True, **SETTINGS)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("step", range(1, 8))
def test_stopped_by_a_signal_at_any_step(step, uninterrupted, tmp_path):
    """Also between two records, where half a mean is saved."""
    method = stubborn()
    method.before = lambda turn, call: os.kill(os.getpid(), signal.SIGTERM) if (turn, call) == ("second", step) else None
    with pytest.raises(Exception, match=f"stopped at step {step}"):
        run_loop(tmp_path / "run", method, **SETTINGS)
    run_loop(tmp_path / "run", stubborn(), resume=True, **SETTINGS)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_the_noise_and_the_dropout_matter(uninterrupted, tmp_path):
    """The comparisons above would see a random state that was not restored."""
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    run_loop(run, Linear(noise=0.3, dropout=0.4), resume=True, **SETTINGS)  # finished: nothing to do
    assert_same_run(run, uninterrupted)
    for method in (Linear(noise=0.3, dropout=0.4), Linear(noise=0.2, dropout=0.5)):
        other = run_loop(tmp_path / f"other{method.noise}", method, **SETTINGS).path
        with pytest.raises(AssertionError):
            assert_same_run(other, uninterrupted)


# --- the same seed ---------------------------------------------------------------------------------------------------


def test_the_same_seed_twice_gives_the_same_teacher(teacher_run, teacher_overrides, done, tmp_path):
    torch.manual_seed(99)  # what the process did before is no matter
    done("train", "teacher/digits", *teacher_overrides, "--out", tmp_path / "run")
    assert_same_run(tmp_path / "run", teacher_run)
    done("train", "teacher/digits", *teacher_overrides, "seed=1", "--out", tmp_path / "other")
    assert (tmp_path / "other" / "model" / "model.safetensors").read_bytes() != (teacher_run / "model" / "model.safetensors").read_bytes()


def test_the_same_seed_twice_gives_the_same_student(student_run, student_overrides, done, tmp_path):
    torch.manual_seed(99)
    done("train", "dmd2/digits", *student_overrides, "--out", tmp_path / "run")
    assert_same_run(tmp_path / "run", student_run)


# --- damaged checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_said(damage, teacher_run, teacher_overrides, done, tmp_path):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    if damage == "truncated":
        truncate(run / "checkpoints" / "step_6" / "ema.safetensors")
    else:
        (run / "checkpoints" / "step_6" / "manifest.json").unlink()
    outcome = done("train", "teacher/digits", *teacher_overrides, "--out", run, "--resume")
    lines = [line for line in outcome.err.splitlines() if not line.startswith(("data: ", "precision: "))]
    assert lines[0].startswith("step_6 is ")
    assert lines[0].endswith("; going on from the one before")
    assert ("ema.safetensors" if damage == "truncated" else "manifest.json") in lines[0]
    assert "going on from step 4" in lines
    assert_same_run(run, teacher_run)


def test_a_damaged_checkpoint_of_a_student(student_run, student_overrides, done, tmp_path):
    """The weight of the adversarial term, measured so far, is in the checkpoint too."""
    run = shutil.copytree(student_run, tmp_path / "run")
    truncate(run / "checkpoints" / "step_6" / "state.json")
    outcome = done("train", "dmd2/digits", *student_overrides, "--out", run, "--resume")
    assert "going on from step 4" in outcome.err
    assert_same_run(run, student_run)
    weight = json.loads((run / "checkpoints" / "step_6" / "state.json").read_text())["method"]["gan_weight_generator"]
    assert weight > 0


def test_only_damaged_checkpoints(teacher_run, teacher_overrides, mistake, tmp_path):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    for step in (4, 6):
        truncate(run / "checkpoints" / f"step_{step}" / "rng.safetensors")
    before = (run / "metrics.jsonl").read_bytes()
    message = mistake("train", "teacher/digits", *teacher_overrides, "--out", run, "--resume")
    for word in ("step_4", "step_6", "rng.safetensors", "another folder"):
        assert word in message
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_damaged_newer_checkpoint_does_not_push_out_a_good_one(uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    truncate(run / "checkpoints" / "step_8" / "ema.safetensors")
    newest = {}

    def look(generator, step: int) -> None:
        found, _ = RunFolder(run).latest_checkpoint()
        newest[step] = found.state["step"]

    run_loop(run, stubborn(), resume=True, on_sample=look, **{**SETTINGS, "sample_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1})
    assert newest == {7: 7, 8: 8}  # a step is saved before it is shown


# --- measured on a cadence -------------------------------------------------------------------------------------------


def norm(generator, measuring) -> dict[str, float]:
    return {"eval.norm": generator.weight.norm().item()}


WATCHED = {"steps": 8, "log_every": 3, "checkpoint_every": 3, "evaluate_every": 5, "on_evaluate": norm}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    run = run_loop(tmp_path_factory.mktemp("linear") / "run", stubborn(), **WATCHED)
    assert [(record["step"], "eval.norm" in record) for record in run.metrics()] == [(3, False), (5, True), (6, False), (8, True)]
    return run.path


@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_is_measured_goes_on_in_the_same_bits(step, kept, watched, tmp_path):
    """Stopped at any step; or killed after it was logged, shown and measured, before its checkpoint was there."""
    method = stubborn()
    method.before = lambda turn, call: os.kill(os.getpid(), signal.SIGTERM) if (turn, call) == ("second", step) else None
    with pytest.raises(Interrupted):
        run_loop(tmp_path / "run", method, **WATCHED)
    assert_left_in_the_middle(tmp_path / "run", step)
    if not kept:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{step}")
    torch.manual_seed(99)
    run = run_loop(tmp_path / "run", stubborn(), resume=True, **WATCHED)
    assert_same_run(run.path, watched)


def test_a_recipe_that_is_measured_goes_on_in_the_same_bits(done, tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 400)
    whole, run = tmp_path / "whole", tmp_path / "run"
    cadence = ("trainer.log_every=2", "trainer.checkpoint_every=2", "trainer.evaluate_every=5", "trainer.evaluate_samples=50")
    small = ("method.m=2", "method.sampler_steps=2", "method.lam_warmup=.5")
    arguments = ["train", "dddm/ring", *POINTS, *small, *cadence, "trainer.sample_every=6"]
    done(*arguments, "--out", whole)
    records = RunFolder(whole).metrics()
    assert [(record["step"], "eval.energy" in record) for record in records] == [(2, False), (4, False), (5, True), (6, True)]
    shutil.copytree(whole, run)
    truncate(run / "checkpoints" / "step_6" / "ema.safetensors")
    assert "going on from step 5" in done(*arguments, "--out", run, "--resume").err  # saved there before it was measured
    assert_same_run(run, whole)


def test_the_cadence_of_measuring_may_change_when_a_run_goes_on(uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_8")
    run_loop(run, stubborn(), resume=True, **{**WATCHED, "evaluate_every": 7})
    assert [record["step"] for record in RunFolder(run).metrics() if "eval.norm" in record] == [7, 8]
    assert (run / "model" / "model.safetensors").read_bytes() == (uninterrupted / "model" / "model.safetensors").read_bytes()


# --- what a kill between two files leaves ----------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["nothing", "older", "half"])
def test_a_run_killed_between_its_last_checkpoint_and_its_model(left, teacher_run, teacher_overrides, done, tmp_path):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    if left == "nothing":
        shutil.rmtree(run / "model")
    elif left == "half":
        (run / "model" / "model.safetensors").unlink()
    else:
        config = json.loads((run / "model" / "config.json").read_text())
        config["info"]["step"] = 4
        (run / "model" / "config.json").write_text(json.dumps(config, indent=2))
        (run / "model" / "model.safetensors").write_bytes((run / "checkpoints" / "step_4" / "ema.safetensors").read_bytes())
    done("train", "teacher/digits", *teacher_overrides, "--out", run, "--resume")
    assert_same_run(run, teacher_run)


@pytest.mark.parametrize("left", ["config.json", "empty"])
def test_a_student_killed_while_it_copied_its_teacher(left, student_run, student_overrides, done, tmp_path):
    run = tmp_path / "run"
    (run / "teacher").mkdir(parents=True)
    shutil.copy(student_run / "recipe.yaml", run)
    if left == "config.json":
        shutil.copy(student_run / "teacher" / "config.json", run / "teacher")
    done("train", "dmd2/digits", *student_overrides, "--out", run, "--resume")
    assert_same_run(run, student_run)
    assert (run / "teacher" / "model.safetensors").read_bytes() == (student_run / "teacher" / "model.safetensors").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_again(teacher_run, teacher_overrides, done, tmp_path):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    shutil.copy(teacher_run / "recipe.yaml", run)
    (run / "metrics.jsonl").write_text('{"step": 2, "seconds": 0.1}\n{"st')
    outcome = done("train", "teacher/digits", *teacher_overrides, "--out", run, "--resume")
    assert "no checkpoint yet; starting from the beginning" in outcome.err
    assert_same_run(run, teacher_run)


def test_resuming_what_was_never_begun_begins_it(teacher_run, teacher_overrides, done, tmp_path):
    done("train", "teacher/digits", *teacher_overrides, "--out", tmp_path / "run", "--resume")
    assert_same_run(tmp_path / "run", teacher_run)


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["teacher", "dmd2"])
def test_resuming_a_finished_run_changes_nothing(method, teacher_run, student_run, teacher_overrides, student_overrides, done, tmp_path):
    finished, overrides = (teacher_run, teacher_overrides) if method == "teacher" else (student_run, student_overrides)
    run = shutil.copytree(finished, tmp_path / "run")
    before = snapshot(run)
    done("train", f"{method}/digits", *overrides, "--out", run, "--resume")
    after = snapshot(run)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name] and name != "report.html"] == []


def test_a_resumed_run_with_another_recipe_names_what_differs(teacher_run, teacher_overrides, mistake):
    before = snapshot(teacher_run)
    changes = ["method.optimizer.lr=1e-4", "seed=7", "network.channels=[16,32]"]
    message = mistake("train", "teacher/digits", *teacher_overrides, *changes, "--out", teacher_run, "--resume")
    lines = message.splitlines()
    assert str(teacher_run) in lines[0]
    assert sorted(line.strip() for line in lines[1:4]) == [
        "method.optimizer.lr was 0.002, now 0.0001",
        "network.channels was [8, 32], now [16, 32]",
        "seed was 0, now 7",
    ]
    assert "another folder" in lines[4]
    assert snapshot(teacher_run) == before


def test_a_resumed_run_of_another_method_names_it(teacher_run, student_overrides, mistake):
    message = mistake("train", "dmd2/digits", *student_overrides, "--out", teacher_run, "--resume")
    assert "method.name was 'teacher', now 'dmd2'" in message


def test_a_resumed_run_may_change_the_trainer(teacher_run, teacher_overrides, done, tmp_path):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_6")
    done("train", "teacher/digits", *teacher_overrides, "trainer.keep_checkpoints=1", "trainer.sample_every=100", "--out", run, "--resume")
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step_6"]
    assert (run / "model" / "model.safetensors").read_bytes() == (teacher_run / "model" / "model.safetensors").read_bytes()


def test_a_folder_that_holds_a_run_is_not_trained_into(teacher_run, teacher_overrides, mistake):
    before = snapshot(teacher_run)
    message = mistake("train", "teacher/digits", *teacher_overrides, "--out", teacher_run)
    assert str(teacher_run) in message
    assert "--resume" in message
    assert "another folder" in message
    assert snapshot(teacher_run) == before


def test_a_recipe_file_that_is_damaged(teacher_run, teacher_overrides, mistake, tmp_path):
    for text in ("", "a: [", "- 1"):
        run = shutil.copytree(teacher_run, tmp_path / f"run{len(text)}")
        (run / "recipe.yaml").write_text(text)
        for arguments in (["train", "teacher/digits", *teacher_overrides, "--out", run, "--resume"], ["evaluate", run]):
            assert "recipe.yaml" in mistake(*arguments)


def test_a_student_needs_its_first_teacher_no_more(teacher_run, student_run, student_overrides, done, tmp_path):
    """A run is a folder from which everything else can be made again."""
    run = shutil.copytree(student_run, tmp_path / "run")
    gone = str(tmp_path / "gone")
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace(str(teacher_run), gone))
    truncate(run / "checkpoints" / "step_6" / "state.json")
    overrides = [override.replace(str(teacher_run), gone) for override in student_overrides]
    done("train", "dmd2/digits", *overrides, "--out", run, "--resume")
    assert_same_run(run, student_run)


def test_a_window_of_an_older_version_goes_on_under_the_names_of_today():
    window = {"sums": {"generator.gap": [1.0, 2.0], "generator.dm": 0.5}, "counts": {"generator.gap": 3, "generator.dm": 3}}
    named = resume._named(window, {"generator.gap": "generator.disagreement"})
    assert named["sums"] == {"generator.disagreement": [1.0, 2.0], "generator.dm": 0.5}
    assert named["counts"] == {"generator.disagreement": 3, "generator.dm": 3}
