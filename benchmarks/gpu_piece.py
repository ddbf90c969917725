"""The base class of the pieces of `gpu.py`, the place where they work, and the function that runs one in a process of its own.

A piece writes result rows into its folder while it works, so that whatever ends it, only the row that was being measured is lost.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError

Row = dict[str, Any]
PIECE = 480.0  # the most seconds that a piece takes in one sitting


@dataclass(frozen=True)
class Place:
    """The folders and the device that a call of `gpu.py` works with.

    Attributes:
        out: folder of the pieces' folders.
        data: folder of CIFAR-10; None where it has not been found.
        tiny: whether every piece runs at a small size, on the CPU.
        device: "cuda" or "cpu".
        gpu: the name of the device.
        minutes: minutes of training that each run is planned for when it begins.

    """

    out: Path
    data: Path | None
    tiny: bool
    device: str = "cpu"
    gpu: str = "cpu"
    minutes: float = 6.0


class Piece:
    """A part of the work of `gpu.py`, done in one sitting or several.

    Attributes:
        name, what: its name, and a description of what it does.
        budget: the most seconds of one sitting.
        least: the fewest seconds with which a sitting is begun.
        saving: seconds of a sitting that are kept for saving when the piece is asked to stop.
        everywhere: whether the piece is done once for all devices, rather than once for each.

    """

    name: str
    what: str
    budget: float = PIECE
    least: float = 60.0
    saving: float = 0.0
    everywhere: bool = False

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = place.out / self.name
        if place.tiny:
            self.least, self.saving = 1.0, min(self.saving, 1.0)

    def done(self, results: Mapping[str, Any]) -> bool:
        """Whether the piece is complete: on any device if `everywhere`, else on this one."""
        states = results["pieces"].get(self.name, {}).get("states", {})
        return any(state["state"] == "done" for gpu, state in states.items() if self.everywhere or gpu == self.place.gpu)

    def waits(self, results: Mapping[str, Any]) -> str | None:
        """Return what the piece waits for, in words; None if it can begin."""
        return None

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Work for at most `seconds`, given the `rows` known so far; return whether the piece is complete."""
        raise NotImplementedError

    def rows(self, known: list[Row]) -> list[Row]:
        """Return the rows in the piece's folder, with those of the rows `known` before that the folder lacks."""
        raise NotImplementedError

    def news(self, rows: list[Row]) -> str:
        """Return the progress that `rows` show, in a few words."""
        raise NotImplementedError

    def ended(self, code: int, rows: list[Row]) -> tuple[str, str]:
        """Return ("done", "part" or "failed", reason) for a process that ended with exit `code` and reported nothing."""
        return ("part", "stopped") if code == -15 else ("failed", f"its process ended with {_code(code)}; see {self.folder / 'log.txt'}")


def _code(code: int) -> str:
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def united(known: list[Row], found: list[Row], keys: tuple[str, ...]) -> list[Row]:
    """Return `known` and `found` without duplicates under `keys`: the last row replaces earlier ones, in the place of the first."""
    rows: dict[tuple[Any, ...], Row] = {}
    for row in (*known, *found):
        rows[tuple(row.get(key) for key in keys)] = row
    return list(rows.values())


def read_rows(path: Path) -> list[Row]:
    """Return the rows in a file of one JSON object a line, without a last line that was cut short; empty if there is no file."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(errors="replace").split("\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:  # a line that was cut short, and to which the next sitting has appended
            continue
    return found


def work(piece: Piece, seconds: float, rows: list[Row], say: Callable[[tuple[str, str]], None]) -> None:
    """Run `piece` in this process, which is its own, and pass its outcome to `say`; the output goes to log.txt in its folder."""
    began = time.perf_counter()
    with (piece.folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        whole = piece.run(seconds, rows)
        say(("done", "") if whole else ("part", f"stopped after {time.perf_counter() - began:.0f} s"))
    except UserError as error:
        say(("failed", " ".join(str(error).split())))
    except Exception as error:
        import traceback

        traceback.print_exc()
        say(("failed", f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}; see {piece.folder / 'log.txt'}"))
