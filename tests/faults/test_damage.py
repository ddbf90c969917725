"""A finished run of which one file is damaged: every command goes on without it, or says in a sentence what is wrong.

A few of all combinations here; all of them with ``pytest -m slow tests/faults``.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep import measurement
from test_cuts import RUN


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x20
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a bit": flipped,
    "other": lambda path: path.write_bytes(b'[{"step": "one"}, null]\n'),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00 \x80" * 40),
    "a folder": a_folder,
    "a loop": lambda path: (path.unlink(), path.symlink_to(path)),
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": (*RUN, "--out", "{run}", "--resume"),
    "train longer": (*RUN, "steps=5", "--out", "{run}", "--resume"),
    "sample": ("sample", "{run}", "-n", "4", "--out", "{out}.npz"),
    "evaluate": ("evaluate", "{run}", "-n", "40"),
    "best": ("evaluate", "{run}/best", "-n", "40"),
    "export": ("export", "{run}", "--format", "onnx", "--out", "{out}"),
}


@pytest.fixture(scope="module", autouse=True)
def few():
    """Measuring takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "EXACT_SAMPLES", 200)
        yield


@pytest.fixture(scope="module")
def finished(done, tmp_path_factory):
    """A finished run, evaluated."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done(*RUN, "--out", folder)
    done("evaluate", folder, "-n", "40")
    return folder


def combinations(finished: Path) -> list[tuple[str, str, str]]:
    files = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    assert len(files) > 12
    return [(file, damage, name) for file in files for damage in DAMAGES for name in COMMANDS]


def check(finished: Path, command, file: str, damage: str, name: str, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    DAMAGES[damage](run / file)
    arguments = [part.format(run=run, out=tmp_path / "out") for part in COMMANDS[name]]
    outcome = command(*arguments)
    where = f"{name} with {file}: {damage}\n{outcome.err}"
    assert outcome.code in (0, 2), where
    assert "Traceback" not in outcome.err, where
    if outcome.code == 2:
        assert outcome.err.count("error: ") == 1, where
        assert len(outcome.err.splitlines()[-1]) > 20, where
    again = command(*arguments)  # and does not break more
    assert again.code in (0, 2), where + again.err
    shutil.rmtree(tmp_path)


def test_a_damaged_file(finished, command, tmp_path):
    """A sample of all combinations, each file, damage and command among them."""
    every = combinations(finished)
    for number in range(0, len(every), 47):
        check(finished, command, *every[number], tmp_path / str(number))


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_every_file(damage, finished, command, tmp_path):
    for number, case in enumerate(combinations(finished)):
        if case[1] == damage:
            check(finished, command, *case, tmp_path / str(number))
