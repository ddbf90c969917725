"""A run that is killed before any of its operations on the disk goes on to the same end.

Python itself tells of each operation (`sys.addaudithook`), so that none is left out, whoever writes. A few of them here; all of them with
``pytest -m slow tests/faults``.
"""

import os
import random
import shutil
import signal
import sys

import pytest

from copies import in_a_child
from fewstep import measurement
from fewstep.training.run_folder import RunFolder
from same_run import assert_same_run

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
RUN = (
    "train",
    "drift/mixture8d",
    "data.size=500",
    "network.widths=[8]",
    "batch_size=16",
    "steps=4",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
    "trainer.checkpoint_every=1",
    "trainer.keep_checkpoints=1",
    "trainer.sample_every=2",
    "trainer.evaluate_every=2",
    "trainer.evaluate_samples=50",
    "trainer.keep_best=energy",
)


@pytest.fixture(scope="module", autouse=True)
def few():
    """Measuring takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "EXACT_SAMPLES", 200)
        yield


def changes(event: str, arguments: tuple, folder: str) -> bool:
    """Whether an operation changes something in `folder`."""
    path = arguments[0] if arguments else None
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(folder):
        return False
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return event in CHANGES or (event == "open" and bool(arguments[2] & writes))


def train(done, folder, killed_before: int | None) -> int:
    """How many operations a run has; or the exit status of one that is killed before operation number `killed_before`."""
    counted = folder.parent / "counted"

    def work() -> None:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if changes(event, arguments, str(folder)):
                if seen == killed_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(hook)
        done(*RUN, "--out", folder)
        counted.write_text(str(seen))

    status = in_a_child(work)
    if killed_before is None:
        assert status == 0
        return int(counted.read_text())
    return status


@pytest.fixture(scope="module")
def whole(done, tmp_path_factory):
    """A run that was left alone, and how many operations it took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(done, folder, None)


def check(whole, done, number, tmp_path):
    folder = tmp_path / "run"
    assert train(done, folder, number) == -signal.SIGKILL
    done(*RUN, "--out", folder, *["--resume"] * folder.exists())
    assert_same_run(folder, whole[0])
    assert RunFolder(folder).best() == RunFolder(whole[0]).best()
    left = [path.name for path in folder.rglob("*.partial")]
    assert not left, f"left behind: {left}"


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.4, 0.6, 0.8, 0.97])
def test_killed_before_an_operation(share, whole, done, tmp_path):
    check(whole, done, int(share * whole[1]), tmp_path)


@pytest.mark.slow
def test_killed_before_every_operation(whole, done, tmp_path):
    assert whole[1] > 50
    for number in range(whole[1]):
        check(whole, done, number, tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_again_and_again(seed, whole, done, tmp_path):
    """Also while it goes on from the kill before."""
    rng, folder = random.Random(seed), tmp_path / "run"
    for _ in range(6):
        number = rng.randrange(whole[1] // 2)

        def work(number=number) -> None:
            seen = 0

            def hook(event, arguments):
                nonlocal seen
                if changes(event, arguments, str(folder)):
                    if seen == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen += 1

            sys.addaudithook(hook)
            done(*RUN, "--out", folder, *["--resume"] * folder.exists())

        assert in_a_child(work) in (-signal.SIGKILL, 0)
    done(*RUN, "--out", folder, *["--resume"] * folder.exists())
    assert_same_run(folder, whole[0])
