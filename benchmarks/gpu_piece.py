"""What all pieces of `gpu.py` share: where they work, what they are asked, and the process that each has to itself.

A piece leaves rows in its folder as it goes, so that whoever ends it, and how, loses nothing but what it was at.
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
PIECE = 480.0  # seconds that no piece takes more of at once


@dataclass(frozen=True)
class Place:
    """Where and on what a call works.

    Attributes:
        out: folder of the pieces' folders.
        data: folder of CIFAR-10; None where it has not been found.
        tiny: whether all is small, and on the CPU.
        device: "cuda" or "cpu".
        gpu: the name of the device.
        minutes: of training that each run is planned for when it begins.

    """

    out: Path
    data: Path | None
    tiny: bool
    device: str = "cpu"
    gpu: str = "cpu"
    minutes: float = 6.0


class Piece:
    """What is done in one sitting or several.

    Attributes:
        name, what: what it is called and does.
        budget: seconds of one sitting at most.
        least: seconds below which none is begun.
        saving: of those it has, kept for saving when it is asked to stop.
        everywhere: whether it is done once for all devices.

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
        """Whether it has come to its end, on this device where that makes a difference."""
        states = results["pieces"].get(self.name, {}).get("states", {})
        return any(state["state"] == "done" for gpu, state in states.items() if self.everywhere or gpu == self.place.gpu)

    def waits(self, results: Mapping[str, Any]) -> str | None:
        """What it waits for, in words; None where it can begin."""
        return None

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Go on for so many seconds at most, with the `rows` known so far; whether it came to its end."""
        raise NotImplementedError

    def rows(self, known: list[Row]) -> list[Row]:
        """What is known now: what its folder holds, and of what was `known` before that which it does not hold."""
        raise NotImplementedError

    def news(self, rows: list[Row]) -> str:
        """Where it stands, in a few words."""
        raise NotImplementedError

    def ended(self, code: int, rows: list[Row]) -> tuple[str, str]:
        """("done", "part" or "failed", why) of a process that ended with `code` and said nothing."""
        return ("part", "stopped") if code == -15 else ("failed", f"its process ended with {_code(code)}; see {self.folder / 'log.txt'}")


def _code(code: int) -> str:
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def united(known: list[Row], found: list[Row], keys: tuple[str, ...]) -> list[Row]:
    """Both, each by what it has under `keys` once: what was found last stands for it, in the order in which they first came."""
    rows: dict[tuple[Any, ...], Row] = {}
    for row in (*known, *found):
        rows[tuple(row.get(key) for key in keys)] = row
    return list(rows.values())


def read_rows(path: Path) -> list[Row]:
    """The rows in a file of one JSON object a line; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(errors="replace").split("\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut short, and gone on with by the next sitting
            continue
    return found


def work(piece: Piece, seconds: float, rows: list[Row], say: Callable[[tuple[str, str]], None]) -> None:
    """Run `piece` in this process, which is its own, and say how it ended; what it prints goes into its folder."""
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
