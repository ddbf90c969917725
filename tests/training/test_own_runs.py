"""Runs on a data set of one's own, by the command line: killed, failed, stopped and gone on with, and in two processes."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from copies import in_two
from fewstep.training.checkpoint import checkpoints
from fewstep.training.run_folder import RunFolder
from same_run import assert_same_run, truncate
from test_resume import killed

OWN = Path(__file__).parent.parent / "data"
SMALL = ("network.widths=[8]", "batch_size=12", "trainer.accelerator=cpu", "trainer.log_every=2", "trainer.checkpoint_every=2")
MEASURED = ("trainer.sample_every=6", "trainer.evaluate_every=4", "trainer.evaluate_samples=50")


@pytest.fixture(autouse=True)
def _own_sets(monkeypatch):
    monkeypatch.syspath_prepend(str(OWN))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(OWN), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> str:
    """Three shards of 80 numbered points."""
    import datasets

    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        rows = {"x": [[float(80 * shard + k) / 100, 0.1 * k] for k in range(80)]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{shard}.parquet")
    return str(folder)


def stream(parquet) -> str:
    return f"data={{name: 'own_sets:shards', folder: '{parquet}', heldout_items: 90, buffer: 20}}"


PLANE = "data={name: 'own_sets:Plane', size: 250, holdout: .4}"
NOISY = "data={name: 'own_sets:Noisy', size: 40}"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_streaming_run_ends_with_the_same_bits(workers, parquet, done, command, tmp_path):
    """Over two epochs, measured on the way."""
    arguments = ["train", "teacher/ring", stream(parquet), *SMALL, *MEASURED, "steps=30", f"trainer.workers={workers}"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    done(*arguments, "--out", whole)
    killed([*arguments, "--out", str(run)], command, tmp_path / "killed")
    assert checkpoints(run / "checkpoints")[0].name == "step_2"
    assert "going on from step 2" in done(*arguments, "--out", run, "--resume").err
    assert_same_run(run, whole)
    state = json.loads((whole / "checkpoints" / "step_30" / "state.json").read_text())["batches"]
    assert [inner["epoch"] for inner in state[0]["states"]] == ([2] if workers == 0 else [2, 2])  # 360 items of 150: the third
    assert [name for name in RunFolder(run).metrics()[1] if name == "eval.energy"]


def test_chance_in_items_goes_on_too_and_workers_may_change(teacher_overrides, done, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments = ["train", "teacher/digits", NOISY, *teacher_overrides]
    done(*arguments, "--out", whole)
    shutil.copytree(whole, run)
    truncate(run / "checkpoints" / "step_6" / "ema.safetensors")
    assert "going on from step 4" in done(*arguments, "trainer.workers=2", "--out", run, "--resume").err
    assert_same_run(run, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_that_fails_in_the_middle_loses_nothing(workers, teacher_overrides, done, mistake, tmp_path):
    whole, run, gone = tmp_path / "whole", tmp_path / "run", tmp_path / "gone"
    data = f"data={{name: 'own_sets:FailsLater', size: 80, fail: '{gone}'}}"
    arguments = ["train", "teacher/digits", data, *teacher_overrides, f"trainer.workers={workers}", "trainer.checkpoint_every=100"]
    done(*arguments, "--out", whole)
    gone.touch()
    message = mistake(*arguments, "--out", run)
    line = message.splitlines()[-1]
    assert line.startswith("error: step 4: the data set FailsLater raised OSError: the disk is gone, at items ")
    assert line.endswith("Nothing is lost: the last good checkpoint is step 3; mend the data set, and go on with --resume")
    gone.unlink()
    assert "going on from step 3" in done(*arguments, "--out", run, "--resume").err
    assert_same_run(run, whole)


def test_a_stream_read_by_other_workers_than_before_says_so(parquet, done, tmp_path):
    arguments = ["train", "teacher/ring", stream(parquet), *SMALL, "trainer.sample_every=6", "--out", tmp_path / "run"]
    done(*arguments, "steps=6")
    truncate(tmp_path / "run" / "checkpoints" / "step_6" / "ema.safetensors")
    err = done(*arguments, "steps=6", "trainer.workers=2", "--resume").err
    assert "shards is read by other processes or workers than before: going on at the beginning of epoch 2" in err


def test_workers_for_data_in_memory_are_not_started(teacher_overrides, done, tmp_path):
    err = done("train", "teacher/digits", *teacher_overrides, "steps=1", "trainer.workers=2", "--out", tmp_path / "run").err
    assert "note: trainer.workers is 2, and digits lies in memory: no worker is started" in err


# --- two processes ---------------------------------------------------------------------------------------------------


def both(commands, command) -> None:
    """Each run whole; then without its last checkpoint, gone on with; then one that fails in one of the processes."""
    for number, arguments in enumerate(commands):
        folders = [Path(arguments[-1])]
        if number < len(commands) - 1:
            folders.append(folders[0].with_name(folders[0].name + "_again"))
        for run in folders:
            if run != folders[0] and os.environ["LOCAL_RANK"] == "0":
                shutil.copytree(folders[0], run)
                shutil.rmtree(run / "checkpoints" / "step_6")
            outcome = command(*arguments[:-1], run, *["--resume"] * (run != folders[0]))
            sys.stderr.write(outcome.err)
            if outcome.code:
                sys.exit(outcome.code)


def test_two_processes(parquet, teacher_overrides, command, tmp_path):
    two = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.workers=2")
    runs = {"stream": ["teacher/ring", stream(parquet), *SMALL], "noisy": ["teacher/digits", NOISY, *teacher_overrides]}
    commands = [["train", *what, *two, "steps=6", "--out", str(tmp_path / name)] for name, what in runs.items()]
    fails = ["teacher/digits", "data={name: 'own_sets:OneFails', size: 40}", *teacher_overrides, *two, "steps=40"]
    commands.append(["train", *fails, "--out", str(tmp_path / "fails")])
    code, _, err = in_two(lambda: both(commands, command), tmp_path / "said", seconds=240)
    assert code is not None, f"it hangs: {err}"
    for name in runs:
        assert err.count("going on from step 4") == 2, err
        assert_same_run(tmp_path / f"{name}_again", tmp_path / name)
    states = json.loads((tmp_path / "stream" / "checkpoints" / "step_6" / "state.json").read_text())["batches"]
    assert [len(state["states"]) for state in states] == [2, 2]  # of each process, those of its workers
    assert code == 2, err
    assert "Traceback" not in err
    assert "the data set OneFails raised OSError: the disk is gone, at item 30. Nothing is lost: " in err
