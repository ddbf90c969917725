"""The list of the pieces of `gpu.py`, and those that are not training: the GPU tests, and the training steps of a network."""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_piece import Piece, Place, Row, read_rows, united
from gpu_training import Figures, Training

ROOT = Path(__file__).resolve().parents[1]
TRIES = 2  # sittings of at least half the budget each, after which an unfinished row is given up


class Tests(Piece):
    """The tests that need a GPU, run by pytest, one row each; tests that have passed on this device are not run again."""

    name, what = "tests", "the tests marked gpu"
    keys = ("device", "test")
    TINY = "tests/test_gpu.py::test_distances_of_particles_are_those_of_the_cpu"

    def command(self, rows: list[Row]) -> list[str]:
        """Return the command of pytest that runs the tests not passed so far."""
        files = [self.TINY] if self.place.tiny else [str(p.relative_to(ROOT)) for p in marked_files()]
        passed = [row["test"] for row in rows if row["outcome"] in ("passed", "skipped") and row["device"] == self.place.gpu]
        chosen = ["-m", "not gpu"] if self.place.tiny else ["-m", "gpu"]
        options = ["-v", "-p", "no:cacheprovider", "--tb=short", "-rf", "--color=no"]
        return [sys.executable, "-m", "pytest", *options, *chosen, *files, *(f"--deselect={test}" for test in passed)]

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Replace this process by pytest, whose output goes to tests.log."""
        log = self.folder / "tests.log"
        with log.open("a") as file:
            file.write(f"\ndevice: {self.place.gpu}\n")
            file.flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["COLUMNS"] = "400"  # reasons are cut at the width of the terminal
        os.chdir(ROOT)
        command = self.command(rows)
        os.execv(command[0], command)

    def rows(self, known: list[Row]) -> list[Row]:
        """Return one row for each test: its outcome and, if it failed, the reason."""
        log, found, device = self.folder / "tests.log", [], self.place.gpu
        for line in log.read_text(errors="replace").splitlines() if log.is_file() else ():
            if line.startswith("device: "):
                device = line.removeprefix("device: ")
            elif match := re.match(r"(\S+\.py::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
                found.append({"device": device, "test": match[1], "outcome": match[2].lower()})
            elif match := re.match(r"FAILED (\S+\.py::.*?) - (.*)", line):
                found.append({"device": device, "test": match[1], "outcome": "failed", "reason": match[2][:300]})
        return united(known, found, self.keys)

    def news(self, rows: list[Row]) -> str:
        """Return how many tests have passed, failed or been skipped on this device."""
        mine = [row["outcome"] for row in rows if row["device"] == self.place.gpu]
        return ", ".join(f"{mine.count(kind)} {kind}" for kind in ("passed", "failed", "error", "skipped") if kind in mine) or "none yet"

    def ended(self, code: int, rows: list[Row]) -> tuple[str, str]:
        """Return (state, reason) by pytest's exit code: 0 all passed, 1 some failed, 5 no test was left."""
        if code in (0, 5):
            return "done", ""
        failed = [row for row in rows if row["device"] == self.place.gpu and row["outcome"] in ("failed", "error")]
        if code == 1 and failed:
            first = failed[0]
            return "failed", f"{len(failed)} of {len(rows)} tests fail, first {first['test']}: {first.get('reason', first['outcome'])}"
        return super().ended(code, rows)


def marked_files() -> list[Path]:
    """Return the files with tests marked gpu, so that pytest need not import the others."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]


class Steps(Piece):
    """Time, throughput and memory of a training step of one network, by precision and batch size."""

    keys = ("device", "precision", "compiled", "batch")

    def __init__(self, place: Place, network: str, title: str) -> None:
        self.network, self.name, self.what = network, f"steps_{network}", f"a training step of {title}, by precision and batch"
        super().__init__(place)

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Measure the rows that are missing; a row that `TRIES` sittings could not finish is given up."""
        from gpu_steps import measure

        tries: dict[tuple[Any, ...], int] = {}

        def send(row: Row) -> None:
            if row.get("begun"):  # how often the row was begun with enough time
                row = {**row, "begun": tries.get(_key(row), 0) + 1, "had": seconds}
            with (self.folder / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

        known = {}
        for row in rows:
            if row["device"] != self.place.gpu:
                continue
            if row.get("begun"):
                tries[_key(row)] = row["begun"] if row["had"] >= self.budget / 2 else row["begun"] - 1
                if tries[_key(row)] < TRIES:
                    continue
                given_up = f"not done in {TRIES} sittings, the last of {row['had']:.0f} s"
                row = {key: value for key, value in row.items() if key not in ("begun", "had")} | {"failed": given_up}
                send(row)
            known[_key(row)] = row
        return measure(self.network, self.place, known, send)

    def rows(self, known: list[Row]) -> list[Row]:
        """Return one row for each device, precision, compiled or not, and batch size."""
        return united(known, read_rows(self.folder / "rows.jsonl"), self.keys)

    def news(self, rows: list[Row]) -> str:
        """Return how many rows there are, and the last one."""
        measured = [row for row in rows if not row.get("begun")]
        return f"{len(measured)} rows, last {told(measured[-1])}" if measured else "none yet"


def _key(row: Row) -> tuple[str, bool, int]:
    """Return what identifies a row of `Steps` on one device: precision, whether compiled, batch size."""
    return row["precision"], row["compiled"], row["batch"]


def told(row: Mapping[str, Any]) -> str:
    """Return a row of `Steps` in a few words."""
    how = f"{row['precision']}{' compiled' * row['compiled']}, batch {row['batch']}"
    if "images_per_second" not in row:
        return f"{how}: {row.get('failed', 'out of memory')}"
    part = "" if row["share"] is None else f", {row['share']:.0%} of the peak"
    return f"{how}: {row['images_per_second']:,.0f} images/s, {row['tflops']:.3g} TFLOP/s{part}"


def all_pieces(place: Place) -> list[Piece]:
    """Return the pieces, the most valuable first: GPU tests, the cost of a step, a teacher, its students, then the largest network."""
    return [
        Tests(place),
        Steps(place, "small", "the small U-Net (teacher/cifar10_small)"),
        Steps(place, "edm", "the EDM network of CIFAR-10"),
        Training(place, "teacher", "a diffusion teacher of CIFAR-10 (teacher/cifar10_small)"),
        Training(place, "student", "the teacher distilled into one step (dmd2/cifar10_small)"),
        Figures(place, "student"),
        Training(place, "flow_map", "the teacher distilled into a flow map (flow_map/cifar10)"),
        Figures(place, "flow_map"),
        Steps(place, "sdxl", "an SDXL-shaped network (random weights)"),
    ]
