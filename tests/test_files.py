"""What is written is there whole or not at all, whichever change of the disk a kill comes before or an error hits."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import files
from fewstep.errors import UserError

# what Python tells its audit hooks before it changes a file or a folder
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
SURVIVED, FAILED, SWALLOWED, KILLED = 0, 3, 4, 9


class Full(OSError):
    pass


def at_the_change(number, work, deed) -> int:
    """Do `work` in a copy of this process, and `deed` before its change of the disk with that number, from 0; the exit status.

    It is SURVIVED where there are fewer changes, and SWALLOWED where `work` goes on after the deed: what was to be made was there, or what
    was to be swept could stay.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event, arguments):
            nonlocal count
            opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or opened:
                count += 1
                if count == number + 1:
                    deed()

        try:
            sys.addaudithook(hook)  # which nothing takes away: hence the copy
            work()
        except Full:
            os._exit(FAILED)
        except BaseException:
            os._exit(1)
        os._exit(SWALLOWED if count > number else SURVIVED)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill():
    os._exit(KILLED)


def fail():
    raise Full(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tree(path):
    """Contents by name of what is at `path`, a file or a folder; None for nothing."""
    if path.is_file():
        return path.read_bytes()
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.exists() else None


OLD, NEW = {"a": b"old a", "b": b"old b"}, {"a": b"new a", "c": b"new c"}


def write_all(folder, contents):
    for name, content in contents.items():
        files.write_file(folder / name, content)


def by_replace_file(path):
    files.replace_file(path, b"new")


def by_whole_file(path):
    with files.whole_file(path) as file:
        file.write(b"ne")
        file.write(b"w")


def by_whole_folder(path):
    with files.whole_folder(path) as folder:
        write_all(folder, NEW)


def by_replace_folder(path):
    with files.replace_folder(path) as folder:
        write_all(folder, NEW)


# how it is written, what is there before, what afterwards
WAYS = [
    (by_replace_file, None, b"new"),
    (by_replace_file, b"old", b"new"),
    (by_whole_file, None, b"new"),
    (by_whole_file, b"old", b"new"),
    (by_whole_folder, None, NEW),
    (by_whole_folder, {}, NEW),
    (by_replace_folder, None, NEW),
    (by_replace_folder, OLD, NEW),
]
NAMES = [f"{way.__name__}-{'nothing' if old is None else 'old' if old else 'empty'}" for way, old, _ in WAYS]


def prepare(path, old):
    if isinstance(old, bytes):
        path.write_bytes(old)
    elif old is not None:
        path.mkdir()
        write_all(path, old)


def steps(way, old, folder, deed):
    """(`path` of a new copy, exit status) for `deed` before each change of the disk that `way` makes, to the first that it survives."""
    for number in range(100):
        path = folder / str(number) / "thing"
        path.parent.mkdir()
        prepare(path, old)
        status = at_the_change(number, lambda path=path: way(path), deed)
        yield path, status
        if status == SURVIVED:
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize(("way", "old", "new"), WAYS, ids=NAMES)
def test_killed_before_any_change_the_old_or_the_new_is_there(way, old, new, tmp_path):
    found = []
    for path, status in steps(way, old, tmp_path, kill):
        assert status in (KILLED, SURVIVED)
        if way is by_replace_folder:
            files.recover_folder(path)
        state = tree(path)
        assert state in (old, new) or (old == {} and state is None)  # an empty folder may go before the new one comes
        found.append(state == new)
        left = [name.name for name in path.parent.iterdir() if name != path]
        assert all(name.startswith(".thing.") and name.endswith(files.PARTIAL) for name in left)
        if status == KILLED and not (way is by_whole_folder and state == new):
            way(path)  # whoever writes next is not in its way, and sweeps up
            assert tree(path) == new
            swept = [".thing" + files.PARTIAL, ".thing.old" + files.PARTIAL]
            assert not [name for name in swept if (path.parent / name).exists()]
    assert len(found) >= 2  # a file opened, and moved: else nothing was tried
    assert found == sorted(found)  # once the new one is there it stays
    assert found[-1]
    assert not found[0]


@pytest.mark.parametrize(("way", "old", "new"), WAYS, ids=NAMES)
def test_an_error_at_any_change_leaves_the_old_and_nothing_besides(way, old, new, tmp_path):
    failures = 0
    for path, status in steps(way, old, tmp_path, fail):
        assert status in (FAILED, SWALLOWED, SURVIVED)
        state = tree(path)
        if status != FAILED or state == new:  # at the end, where only sweeping fails
            assert state == new
            continue
        failures += 1
        assert state == old or (old == {} and state is None)
        assert [name for name in path.parent.iterdir() if name != path] == []
    assert failures >= 2


@pytest.mark.parametrize("way", [files.whole_file, files.whole_folder, files.replace_folder])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_whoever_writes_may_fail(way, error, tmp_path):
    def work():
        with way(tmp_path / "thing") as given:
            if way is files.whole_file:
                given.write(b"half")
            else:
                (given / "a").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        work()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("way", [by_replace_file, by_whole_file])
def test_a_disk_that_takes_the_half_of_a_file(way, old, tmp_path, monkeypatch):
    path = tmp_path / "thing"
    prepare(path, old)

    def full(descriptor):
        os.ftruncate(descriptor, 1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            way(path)
    assert tree(tmp_path) == ({"thing": old} if old else {})
    way(path)
    assert tree(tmp_path) == {"thing": b"new"}


@pytest.mark.parametrize("way", [by_replace_file, by_whole_file, by_whole_folder, by_replace_folder])
def test_it_is_moved_into_place_after_it_reached_the_disk(way, tmp_path, monkeypatch):
    fsync, synced = os.fsync, []

    def spy(descriptor):
        synced.append((tmp_path / "thing").exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    way(tmp_path / "thing")
    assert synced == [False] * (1 if way in (by_replace_file, by_whole_file) else 2)


def test_what_is_written_reaches_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_size), fsync(number)))
    assert files.write_file(tmp_path / "a", b"12345") == hashlib.sha256(b"12345").hexdigest()
    assert synced == [5]


@pytest.mark.parametrize("size", [0, 5, files.CHUNK - 1, files.CHUNK, 2 * files.CHUNK + 3])
def test_the_checksum_of_a_file_of_any_size(size, tmp_path):
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "a").write_bytes(content)
    assert files.sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_two_processes_that_write_one_file_do_not_meet(tmp_path):
    """Each writes under its own name: one that is half through does not spoil the other's."""
    path = tmp_path / "thing"
    with files.whole_file(path) as file:
        file.write(b"mine, ")
        file.flush()
        status = at_the_change(99, lambda: by_whole_file(path), kill)
        assert status == SURVIVED
        assert tree(path) == b"new"
        file.write(b"whole")
    assert tree(tmp_path) == {"thing": b"mine, whole"}


def test_between_the_two_moves_both_are_there_and_neither_is_swept(tmp_path, monkeypatch):
    """The one moment at which a folder that is replaced is at no place: its new version is found, also by the next writer."""
    path = tmp_path / "thing"
    partial, old = tmp_path / ".thing.partial", tmp_path / ".thing.old.partial"
    for folder, contents in ((old, OLD), (partial, NEW)):
        folder.mkdir()
        write_all(folder, contents)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_file", lambda path, content: fail())
        with pytest.raises(Full):
            by_replace_folder(path)
    assert tree(path) == NEW
    assert [name.name for name in tmp_path.iterdir()] == ["thing"]
    path.rename(old)  # with nothing to take its place
    files.recover_folder(path)
    assert tree(path) == NEW
    shutil.copytree(path, old)  # killed before the last sweep
    files.recover_folder(path)
    assert tree(path) == NEW
    assert [name.name for name in tmp_path.iterdir()] == ["thing"]


def test_half_a_folder_is_not_taken_for_a_whole_one(tmp_path):
    path, partial = tmp_path / "thing", tmp_path / ".thing.partial"
    partial.mkdir()
    (partial / "config.json").write_bytes(b"half")
    files.recover_folder(path)
    assert not path.exists()
    by_replace_folder(path)
    assert tree(path) == NEW
    assert [name.name for name in tmp_path.iterdir()] == ["thing"]


def test_what_killed_writers_left_is_swept(tmp_path):
    (tmp_path / "whole").write_bytes(b"theirs")
    for number in range(2):
        at_the_change(number, lambda: by_whole_file(tmp_path / "frame"), kill)
        at_the_change(number, lambda: by_replace_file(tmp_path / "frame"), kill)
    assert len(list(tmp_path.iterdir())) > 1
    files.sweep(tmp_path)
    assert tree(tmp_path) == {"whole": b"theirs"}


def test_a_new_folder_takes_the_place_of_nothing_that_holds_something(tmp_path):
    path = tmp_path / "deep" / "thing"

    def work():
        with files.whole_folder(path) as folder:
            write_all(folder, NEW)
            path.mkdir()
            (path / "theirs").write_bytes(b"came meanwhile")

    with pytest.raises(OSError, match="not empty"):
        work()
    assert tree(path) == {"theirs": b"came meanwhile"}
    assert [name.name for name in path.parent.iterdir()] == ["thing"]


def test_only_a_new_or_an_empty_folder_is_free(tmp_path):
    files.check_free(tmp_path / "new" / "deep")
    (tmp_path / "empty").mkdir()
    files.check_free(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, said in (("file", "is a file"), ("link", "is a link"), ("dangling", "is a link"), (".", "holds something already")):
        with pytest.raises(UserError, match=said):
            files.check_free(tmp_path / name)


def test_the_ground_is_light(tmp_path):
    code = "import sys, json, fewstep.files; print(json.dumps(list(sys.modules)))"
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert {name for name in found if name.startswith("fewstep")} == {"fewstep", "fewstep.errors", "fewstep.files", "fewstep.version"}
    assert not {"torch", "numpy", "yaml", "pydantic"} & set(found)


def test_no_other_file_writes_so_by_itself():
    """Nothing else in the package renames, syncs or makes temporary folders."""
    words = ("os.replace", "os.rename", ".rename(", "fsync", "TemporaryDirectory", '.partial"')
    texts = {path.name: path.read_text() for path in Path(files.__file__).parent.rglob("*.py")}
    found = {name for name, text in texts.items() if any(word in text for word in words)}
    assert found == {"files.py"}
