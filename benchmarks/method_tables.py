"""Tables that compare every method: quality by network evaluations, and training time, in the plane, on digits and on MNIST.

The figures were measured by `flows.py`, `dddm.py`, `quality.py`, `dmd2.py`, `laboratory.py` and `images.py`, each with its recipes as they
are shipped; their results are read here.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cells import ranged
from image_tables import EARLIER, groups, is_earlier, own_rows
from images import as_shipped

RESULTS = Path(__file__).parent / "results"
COUNTS = (1, 2, 4)  # evaluations with a column each; the largest other number has a column of its own
SCRATCH, EXACT = "none", "exact"

Runs = Sequence[Mapping[str, Any]]
Row = Mapping[str, Any]
Read = Callable[[str], dict[str, Any]]  # name -> content of results/NAME.json
Study = tuple[str, str, str, str | float]  # name of the results, title of their runs, name of the method, its teacher as in `Measured`


class Measured(NamedTuple):
    """The measurements of a method on a data set.

    Attributes:
        title: name of the method.
        teacher: "none", "exact" for a closed form, or the training seconds of a trained teacher; NaN if these are not known.
        values: number of evaluations -> the figure of each training seed.
        seconds: training seconds of each seed.

    """

    title: str
    teacher: str | float
    values: Mapping[int, Sequence[float]]
    seconds: Sequence[float]

    def cells(self, form: str) -> list[str]:
        """Return the method's row of the table, with figures in `form`."""
        most = max(self.values)
        told = [ranged(self.values.get(count, ()), form) for count in COUNTS]
        more = f"{ranged(self.values[most], form)} at {most}" if most not in COUNTS else ""
        minutes = statistics.median(self.seconds) / 60
        name, whole = "trained", f"{minutes:.1f}"
        if isinstance(self.teacher, str):
            name = self.teacher
        else:
            whole += " + ?" if math.isnan(self.teacher) else f" + {self.teacher / 60:.1f}"
        return [self.title, name, *told, more, whole, str(max(len(values) for values in self.values.values()))]


def titled(runs: Iterable[Mapping[str, Any]], title: str) -> Runs:
    """Return the runs with this title, one for each training seed."""
    return [run for run in runs if run["title"] == title]


def by_evaluations(rows: Iterable[Row], key: str) -> dict[int, list[float]]:
    """Return, for each number of evaluations, the figures `key` of the rows with this number."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row["evaluations"], []).append(row[key])
    return found


def of_steps(runs: Runs, key: str) -> dict[int, list[float]]:
    """Return `by_evaluations` of runs whose rows are named by their number of steps, with one evaluation a step."""
    return by_evaluations(({"evaluations": int(steps), **row} for run in runs for steps, row in run["rows"].items()), key)


def in_steps(read: Read, listed: Iterable[Study], key: str) -> list[Measured]:
    """Return what the studies `listed` measured by numbers of steps, each with the CPU time of its training."""
    found = []
    for study, title, name, teacher in listed:
        runs = titled(read(study)["runs"], title)
        found.append(Measured(name, teacher, of_steps(runs, key), [run["cpu_seconds"] for run in runs]))
    return found


def plane(read: Read) -> list[Measured]:
    """Return the methods on the ring of eight Gaussians, by the share of samples near a mode."""
    key, found = "inside", []
    for study, title, name, teacher in (
        ("laboratory_ring", "drift/ring, gamma 1", "drift", EXACT),
        ("laboratory_dmd2", "dmd2/ring, exact teacher", "DMD2", EXACT),
    ):
        runs = titled(read(study)["runs"], title)
        found.append(Measured(name, teacher, by_evaluations((run["row"] for run in runs), key), [run["seconds"] for run in runs]))
    listed: tuple[Study, ...] = (
        ("flows", "consistency, ring", "consistency", EXACT),
        ("flows", "flow map, ring", "flow map", EXACT),
        ("dddm_ring", "beta 1", "DDDM", SCRATCH),
        ("dddm_ring", "plain diffusion, 8 x the steps", "diffusion, as many passes as DDDM", SCRATCH),
    )
    return found + in_steps(read, listed, key)


def digits(read: Read) -> list[Measured]:
    """Return the methods on real digits, 8x8, by FD / floor."""
    key, quality = "frechet_over_floor", read("quality")["runs"]
    rows = {
        role: [row for run in quality for title, row in run["rows"].items() if title.startswith(role)] for role in ("teacher", "student")
    }
    seconds = {role: [run["seconds"][role] for run in quality] for role in rows}
    teacher = statistics.median(seconds["teacher"])
    found = [
        Measured("diffusion: the teacher", SCRATCH, by_evaluations(rows["teacher"], key), seconds["teacher"]),
        Measured("DMD2", teacher, by_evaluations(rows["student"], key), seconds["student"]),
    ]
    four = titled(read("dmd2_digits")["runs"], "4 steps")
    found.append(Measured("DMD2, 4 steps", teacher, by_evaluations((run["row"] for run in four), key), [run["seconds"] for run in four]))
    listed: tuple[Study, ...] = (
        ("flows", "consistency, from the teacher", "consistency", teacher),
        ("flows", "flow map, from the teacher", "flow map", teacher),
        ("flows", "consistency, from scratch", "consistency, from scratch", SCRATCH),
        ("flows", "flow map, from scratch", "flow map, from scratch", SCRATCH),
        ("dddm_digits", "dddm/digits", "DDDM", SCRATCH),
        ("dddm_digits", "plain diffusion, 1 of the compute", "diffusion, as many passes as DDDM", SCRATCH),
    )
    found += in_steps(read, listed, key)
    drift = titled(read("laboratory_digits")["runs"], "drift/digits")
    found.append(Measured("drift", SCRATCH, by_evaluations((run["row"] for run in drift), key), [run["seconds"] for run in drift]))
    return found


NAMES = {"teacher": "diffusion: the teacher", "dmd2": "DMD2", "dmd2, 4 steps": "DMD2, 4 steps", "dddm": "DDDM"}


def images(read: Read, name: str = "mnist") -> list[Measured]:
    """Return the methods on the real images called `name`, by FD / floor, each by its recipe as it is shipped."""
    arms, found = groups(read(f"images_{name}")), []
    for title in (title for title in as_shipped(name) if title in arms):
        runs = arms[title]
        taught = runs[0]["taught"]
        teacher: str | float = SCRATCH
        if taught is not None:
            teacher = statistics.median(run["cpu_seconds"] for run in arms[taught]) if taught in arms else math.nan
        values = by_evaluations((row for run in runs for row in own_rows(run)), "frechet_over_floor")
        found.append(Measured(NAMES.get(title, title) + EARLIER * is_earlier(runs), teacher, values, [run["cpu_seconds"] for run in runs]))
    return found


def stored(name: str) -> dict[str, Any]:
    """Return the content of results/NAME.json."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


# name of a table -> function that gives its rows, form of the figure, name of the figure in headings
SETS: dict[str, tuple[Callable[[Read], list[Measured]], str, str]] = {
    "ring": (plane, "{:.3f}", "inside"),
    "digits": (digits, "{:.2f}", "FD / floor"),
    "mnist": (images, "{:.2f}", "FD / floor"),
}


def method_lines(name: str, read: Read = stored) -> list[list[str]]:
    """Return the table of `name` in `SETS`: headings, and a row for each method."""
    make, form, figure = SETS[name]
    columns = [f"{figure}, {count} evaluation{'s' * (count > 1)}" for count in COUNTS]
    lines = [["", "teacher", *columns, "with most evaluations", "training (+ its teacher's), min", "seeds"]]
    return lines + [measured.cells(form) for measured in make(read)]
