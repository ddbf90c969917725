"""A run folder that another process is at work in, and one that something has happened to."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from fewstep.errors import UserError
from fewstep.files import held_folder
from fewstep.training.run_folder import RunFolder
from same_run import assert_same_run

HOLDER = """
import os, sys, time
from pathlib import Path
from fewstep.files import held_folder
with held_folder(Path(sys.argv[1])):
    if sys.argv[2] == "plain" or os.fork() == 0:  # a child has let go when it is there
        print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """``holder(how)``: a process that holds the folder; all that are left of it are killed at the end."""
    started = []

    def start(how="plain"):
        command = [sys.executable, "-c", HOLDER, str(tmp_path), how]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_a_folder_is_held_by_one_process_until_that_ends_however_it_ends(how, holder, tmp_path):
    process = holder(how)
    with pytest.raises(UserError, match="another process is training into"), held_folder(tmp_path):
        raise AssertionError
    os.kill(process.pid, signal.SIGKILL)
    process.wait()  # its child lives on
    with held_folder(tmp_path):
        pass
    with held_folder(tmp_path):  # and is let go at the end
        pass


SMALL = (
    "data.density=mixture8d",
    "network.widths=[8]",
    "batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.checkpoint_every=2",
    "trainer.log_every=1",
    "trainer.sample_every=4",
)


def test_a_run_that_another_process_trains_is_left_alone(holder, done, mistake, tmp_path):
    done("train", "teacher/ring", *SMALL, "steps=4", "--out", tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "aside")
    shutil.copytree(tmp_path / "aside", tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "aside")
    holder()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told = mistake("train", "teacher/ring", *SMALL, "steps=4", "--out", tmp_path, "--resume")
    assert "another process is training into" in told
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_of_two_that_begin_at_once_one_goes_on(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fewstep",
        "train",
        "teacher/ring",
        *SMALL,
        "steps=300",
        "trainer.sample_every=300",
        "trainer.checkpoint_every=60",
    ]
    both = [
        subprocess.Popen([*command, "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    loser = next(err for process, (_, err) in zip(both, told, strict=True) if process.returncode)
    assert "Traceback" not in loser
    assert "another process is training into" in loser or "already holds a run" in loser
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 301))


# --- damage -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(done, tmp_path_factory):
    """A finished run of eight steps, a checkpoint at every second, two kept. Read only."""
    path = tmp_path_factory.mktemp("folder") / "run"
    done("train", "teacher/ring", *SMALL, "steps=8", "--out", path)
    return path


@pytest.fixture
def half(whole, tmp_path):
    """The same, stopped after step 6."""
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_8")
    return run


BAD = [b"{", b"null", b"{}", b"[1]", b"3", b'"step"', b"\xff\xfe", b""]
BAD += [b'{"step": %s}' % value for value in (b"null", b"true", b"-1", b'"4"')]


@pytest.mark.parametrize("bad", BAD)
def test_a_broken_line_in_the_middle_takes_no_other_with_it(bad, half, whole, done):
    file = half / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")
    spoilt = b"\n".join([*lines[:2], bad, *lines[2:]])
    file.write_bytes(spoilt)
    assert [record["step"] for record in RunFolder(half).metrics()] == list(range(1, 9))
    told = done("train", "teacher/ring", *SMALL, "steps=8", "--out", half, "--resume").err
    assert "1 line of" in told
    assert "(line 3)" in told
    assert (half / "metrics.damaged.jsonl").read_bytes() == spoilt
    assert_same_run(whole, half)


def test_a_last_line_that_a_kill_cut_is_no_damage(half, whole, done):
    file = half / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert RunFolder(half).damage() == []
    assert "cannot be read" not in done("train", "teacher/ring", *SMALL, "steps=8", "--out", half, "--resume").err
    assert_same_run(whole, half)
    assert not (half / "metrics.damaged.jsonl").exists()


def test_a_line_of_a_far_step_is_of_an_undone_part(half, whole, done):
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1000000000}\n')
    done("train", "teacher/ring", *SMALL, "steps=8", "--out", half, "--resume")
    assert_same_run(whole, half)


@pytest.mark.parametrize("name", ["checkpoints", "samples", "model"])
def test_a_file_where_a_folder_should_be_is_named(name, half, mistake):
    shutil.rmtree(half / name, ignore_errors=True)
    (half / name).write_text("mine")
    told = mistake("train", "teacher/ring", *SMALL, "steps=8", "--out", half, "--resume")
    assert f"{half / name} is a file, where a run has a folder" in told
    assert (half / name).read_text() == "mine"


def test_a_folder_where_the_log_should_be_is_named(half, mistake):
    (half / "metrics.jsonl").unlink()
    (half / "metrics.jsonl").mkdir()
    assert "is a folder, where a run has a file" in mistake("train", "teacher/ring", *SMALL, "steps=8", "--out", half, "--resume")


@pytest.mark.parametrize("step", [7, 10**9])
@pytest.mark.parametrize("how", ["file", "empty", "copy"])
def test_what_is_no_checkpoint_of_its_step_is_passed_over(how, step, half, whole, done):
    place = half / "checkpoints" / f"step_{step}"
    if how == "file":
        place.write_text("mine")
    elif how == "empty":
        place.mkdir()
    else:
        shutil.copytree(half / "checkpoints" / "step_6", place)
    told = done("train", "teacher/ring", *SMALL, "steps=8", "--out", half, "--resume").err
    assert "going on from step 6" in told
    assert "nothing left to do" not in told
    if how == "file":
        place.unlink()
    assert_same_run(whole, half)
