"""A disk that fills up: one message, nothing lost, and after room is made the run ends with the same bits."""

import errno
import os
import shutil
import subprocess

import pytest

from fewstep import files
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.run_folder import RunFolder
from same_run import assert_same_run, snapshot


def check_message(message: str) -> None:
    assert "No space left on device" in message
    assert "all else is untouched" in message
    assert "free some space" in message
    assert "--resume" in message


@pytest.fixture
def fails_once(monkeypatch):
    """``fails_once(folder, name)``: the disk is full when that file is written first, and takes the first half of it."""

    def call(folder: str, name: str) -> list[str]:
        write_file, failed = files.write_file, []

        def full(path, content):
            if not failed and (path.parent.name, path.name) == (folder, name):
                failed.append(name)
                path.write_bytes(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write_file(path, content)

        monkeypatch.setattr(files, "write_file", full)
        return failed

    return call


@pytest.mark.parametrize(
    ("folder", "name", "kept"),
    [
        (".step_2.partial", "denoiser.safetensors", []),
        (".step_4.partial", "optimizers.pt", [2]),
        (".step_6.partial", "manifest.json", [2, 4]),
        ("model", ".model.safetensors.partial", [2]),
        ("model", ".config.json.partial", [2]),
    ],
)
def test_a_disk_that_is_full_for_one_file(folder, name, kept, fails_once, mistake, done, teacher_overrides, teacher_run, tmp_path):
    failed = fails_once(folder, name)
    run = tmp_path / "run"
    arguments = ["train", "teacher/digits", *teacher_overrides, "--out", run]
    check_message(mistake(*arguments))
    assert failed == [name]
    found = run / "checkpoints"
    assert sorted(path.name for path in found.iterdir()) == [f"step_{step}" for step in kept]  # and nothing half-written
    for step in kept:
        assert load_checkpoint(found / f"step_{step}").state["step"] == step
    assert not list(run.rglob("*.partial"))
    done(*arguments, "--resume")
    assert_same_run(run, teacher_run)


def test_a_disk_that_is_full_for_the_log(mistake, done, teacher_overrides, teacher_run, monkeypatch, tmp_path):
    log = RunFolder.log

    def full(self, record):
        if record["step"] == 4:
            with self.metrics_file.open("a") as file:
                file.write('{"step": 4, "seco')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        log(self, record)

    run = tmp_path / "run"
    arguments = ["train", "teacher/digits", *teacher_overrides, "--out", run]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", full)
        check_message(mistake(*arguments))
    assert load_checkpoint(run / "checkpoints" / "step_2").state["step"] == 2
    done(*arguments, "--resume")
    assert_same_run(run, teacher_run)


def test_a_disk_that_is_full_for_the_results(mistake, student_run, fails_once, tmp_path):
    run = shutil.copytree(student_run, tmp_path / "run")
    (run / "results.json").write_text('{"older": 1}')
    before = snapshot(run)
    fails_once("run", ".results.json.partial")
    message = mistake("evaluate", run, "-n", "20")
    assert "No space left on device" in message
    assert snapshot(run) == before


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(kib)``: a file system of that size, or of another once it is there."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def call(kib: int):
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kib}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small file system needs root and mount; the tests above play one")
        mounted = True
        return place

    yield call
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_real_disk_that_is_full(small_disk, mistake, done, teacher_overrides, teacher_run):
    one = sum(path.stat().st_size for path in (teacher_run / "checkpoints" / "step_4").iterdir()) // 1024
    rest = sum(path.stat().st_size for name in ("model", "samples") for path in (teacher_run / name).iterdir()) // 1024
    run = small_disk(rest + one * 3 // 2 + 100) / "run"  # room for one checkpoint and a half
    arguments = ["train", "teacher/digits", *teacher_overrides, "--out", run]
    check_message(mistake(*arguments))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_2"]
    assert load_checkpoint(run / "checkpoints" / "step_2").state["step"] == 2
    check_message(mistake(*arguments, "--resume"))  # and again, while there is no room
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_2"]
    small_disk(20 * 1024)
    done(*arguments, "--resume")
    assert_same_run(run, teacher_run)
