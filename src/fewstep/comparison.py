"""The methods on the same ground: one data set, every recipe for it, one table and one plot over the number of steps."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.build import load_data, resolved, train
from fewstep.config import DDDMConfig, DigitsConfig, Recipe, ToyConfig, load_recipe, nearest
from fewstep.data import DENSITIES, ImageData, Mixture, PointData
from fewstep.errors import UserError
from fewstep.evaluation import heading, machine, usual_counts
from fewstep.files import replace_file
from fewstep.generator import Generator, load
from fewstep.measurement import Row, measure, protocol_record, suite_for, usual_samples
from fewstep.metrics.suite import Suite
from fewstep.training.checkpoint import checkpoints
from fewstep.training.run_folder import RunFolder
from fewstep.viz.plots import contact_sheet, quality_by_evaluations, target_panels

SHOWN = 2000  # samples a panel
COUNTS = (1, 2, 3, 4, 5, 10, 20, 50)  # steps at which a generator that has a choice is measured


@dataclass(frozen=True)
class Entry:
    """A method in the comparison: its recipe, what differs from it, and how it is called. `teacher` names another entry."""

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()
    teacher: str | None = None
    draws_power: bool = False  # whether it can aim at p^gamma

    @property
    def folder(self) -> str:
        """Where under the comparison's folder its run is."""
        return self.title.lower().replace(", ", "_").replace(" ", "_")


# plain diffusion: one network pass an item, where the distributional recipe makes m
CONTROL = ("method.lam=0", "method.beta=2", "method.m=1")
TOYS = (
    Entry("drift", "drift/ring", draws_power=True),
    Entry("DMD2, exact teacher", "dmd2/ring", draws_power=True),
    Entry("teacher", "teacher/ring"),
    Entry("DMD2, trained teacher", "dmd2/ring", ("network.sigma_data=null",), teacher="teacher", draws_power=True),
    Entry("DDDM", "dddm/ring"),
    Entry("plain diffusion", "dddm/ring", CONTROL),
)
DIGITS = (
    Entry("drift", "drift/digits"),
    Entry("teacher", "teacher/digits"),
    Entry("DMD2", "dmd2/digits", teacher="teacher"),
    Entry("DDDM", "dddm/digits"),
    Entry("plain diffusion", "dddm/digits", CONTROL),
)


def compare(
    data: str, out: Path, gamma: float = 1.0, scale: float = 1.0, seed: int = 0, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train every method on `data` (``toys/NAME`` or ``digits``) and measure each at every number of steps that it can serve.

    Each recipe runs for its own number of steps times `scale`, but for plain diffusion, which is the distributional recipe with
    lambda 0 and beta 2: it makes one network pass an item instead of m, and runs m times as long. Runs go to folders under `out`, and
    are gone on with if they are there already. Writes ``compare.json``, ``compare.png`` (samples) and ``steps.png`` (quality over
    evaluations) there, and returns the first. The exact teacher is left out for a density that is no mixture, and what only draws p
    where `gamma` is not 1. Raises UserError as `train` does.
    """
    density = None if data == "digits" else _density(data)
    if not 0 < scale < math.inf:
        raise UserError(f"--scale is {scale}; it must be positive and finite, and 1 runs each recipe whole")
    if not 0 < gamma < math.inf:
        raise UserError(f"--gamma is {gamma}; it must be positive and finite")
    if density is None and gamma != 1.0:
        raise UserError(f"--gamma is {gamma}; powers of a density are for toys/NAME, digits have 1")
    ground = load_data(ToyConfig(name="toy", density=density) if density else DigitsConfig(name="digits"), seed)
    mixture = isinstance(ground, PointData) and isinstance(ground.density, Mixture)
    entries = [entry for entry in (TOYS if density else DIGITS) if mixture or entry.title != "DMD2, exact teacher"]
    if gamma != 1.0:
        teachers = {entry.teacher for entry in entries}
        entries = [entry for entry in entries if entry.draws_power or entry.title in teachers]
    for number, entry in enumerate(entries, start=1):
        recipe = recipe_of(entry, out, density, gamma, scale, seed)
        run = RunFolder(out / entry.folder)
        say(f"{number}/{len(entries)} {entry.title} ({entry.recipe}, {recipe.steps} steps)")
        if run.recipe_file.exists():
            run.check(resolved(recipe), resume=True)  # the same run, and not one of another seed, gamma or density
        if run.model_step() == recipe.steps and checkpoints(run.checkpoint_folder):
            continue
        train(recipe, run.path, resume=run.recipe_file.exists(), title=entry.title)

    suite = suite_for(ground, gamma, seed)
    num = usual_samples(density is not None)
    floor = "exact samples" if density else "real train split"
    rows: dict[str, Row] = {floor: dict(suite.floor_row())}
    seconds = {entry.title: RunFolder(out / entry.folder).metrics()[-1]["seconds"] for entry in entries}
    generators: dict[str, Generator] = {}
    for entry in entries:
        if gamma != 1.0 and not entry.draws_power:
            continue
        generator = generators[entry.title] = load(out / entry.folder)
        counts = sorted({*COUNTS, generator.default_steps()}) if generator.any_steps else [generator.default_steps()]
        say(f"measuring {entry.title}, {', '.join(map(str, counts))} step{'s' * (counts != [1])}")
        took = seconds[entry.title] + (seconds[entry.teacher] if entry.teacher else 0.0)
        for count in counts:
            own = count == generator.default_steps()
            row = measure(suite, generator, num, seed, count, speed=own)
            rows[heading(entry.title, row["evaluations"])] = {"method": entry.title, "own_steps": own, **row, "training_seconds": took}
    results = {
        "data": data,
        "gamma": gamma,
        "scale": scale,
        "n": num,
        "seed": seed,
        "protocol": protocol_record(suite, num, density is None, (seed,)),
        "floor": suite.floor,
        "features": suite.network.name if isinstance(suite, Suite) else "the points themselves",
        "reference": f"{len(ground.heldout)} held-out images"
        if density is None
        else f"{num} exact samples of {density}" + (f"^{gamma:g}" if gamma != 1.0 else ""),
        "rows": rows,
        "machine": machine(),
    }
    replace_file(out / "compare.json", json.dumps(results, indent=1).encode())
    draw(ground, gamma, generators, rows, out / "compare.png", seed)
    figure = ("energy", "energy distance") if density else ("frechet_over_floor", "Frechet distance / floor")
    error = rows[floor].get("energy_error", 0.0)
    quality_by_evaluations(curves(rows, figure[0]), f"{data}: quality and network evaluations", figure[1], out / "steps.png", error)
    return results


def recipe_of(entry: Entry, out: Path, density: str | None, gamma: float, scale: float, seed: int) -> Recipe:
    """What `entry` trains: its recipe on `density`, at its own length times `scale`; the control with m times as many steps."""
    overrides = [*entry.overrides, f"seed={seed}", *([f"data.density={density}"] if density else [])]
    overrides += [f"method.gamma={gamma}"] * entry.draws_power
    overrides += [f"method.teacher={json.dumps(str(out / entry.teacher))}"] if entry.teacher else []
    recipe = load_recipe(entry.recipe, overrides)
    particles = 1
    if entry.overrides == CONTROL:
        whole = load_recipe(entry.recipe).method
        assert isinstance(whole, DDDMConfig)
        particles = whole.m
    return recipe.model_copy(update={"steps": max(1, round(recipe.steps * scale)) * particles})


def curves(rows: Mapping[str, Row], key: str) -> dict[str, tuple[list[int], list[float]]]:
    """Of each method: network evaluations, and the figure `key` there."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows.values():
        if "method" in row:
            x, y = found.setdefault(row["method"], ([], []))
            x.append(row["evaluations"])
            y.append(row[key])
    return found


def table_by_steps(results: Mapping[str, Any]) -> list[list[str]]:
    """One row a method, one column a number of steps: the energy distance, or the Frechet distance over its floor."""
    rows = [row for row in results["rows"].values() if "method" in row]
    key, form = ("energy", "{:.4f}") if "energy" in rows[0] else ("frechet_over_floor", "{:.2f}")
    counts = sorted({row["steps"] for row in rows if row["steps"] in COUNTS})
    lines = [["steps", *map(str, counts)]]
    for title in dict.fromkeys(row["method"] for row in rows):
        cells = {row["steps"]: form.format(row[key]) for row in rows if row["method"] == title}
        heun = " (Heun, 2 k - 1 evaluations)" * any(row["sampler"] == "heun" for row in rows if row["method"] == title)
        lines.append([title + heun, *(cells.get(count, "") for count in counts)])
    return lines


def own_rows(results: Mapping[str, Any]) -> dict[str, Any]:
    """`results` with the floor and each method at its own number of steps only."""
    return {**results, "rows": {name: row for name, row in results["rows"].items() if row.get("own_steps", True)}}


def _density(data: str) -> str:
    """``ring`` of ``toys/ring``. Raises UserError for anything else."""
    name = data.removeprefix("toys/")
    if not data.startswith("toys/") or name not in DENSITIES:
        raise UserError(
            f"{data!r} is nothing to compare on{nearest(data, ['digits', *(f'toys/{name}' for name in DENSITIES)])}; "
            f"give digits, or toys/NAME with NAME one of {', '.join(DENSITIES)}"
        )
    return name


def draw(
    data: ImageData | PointData, gamma: float, generators: Mapping[str, Generator], rows: Mapping[str, Row], path: Path, seed: int
) -> None:
    """Samples of each method at the numbers of steps that an evaluation measures, with their figures."""
    shown = [(title, generator, count) for title, generator in generators.items() for count in usual_counts(generator)]
    shown = [entry for entry in shown if entry[0] != "plain diffusion" or entry[2] > 1]  # at one step it is the mean, a point
    if isinstance(data, PointData):
        assert data.density is not None
        target = data.density.power(gamma)
        panels = [("exact samples", "", _figures(rows["exact samples"]), target.sample(SHOWN, torch.Generator().manual_seed(seed)))]
        for title, generator, count in shown:
            name = heading(title, generator.evaluations(count))
            panels.append((title, name.removeprefix(f"{title}, "), _figures(rows[name]), generator.sample(SHOWN, seed=seed, steps=count)))
        target_panels(target, panels, path)
        return
    labels, heldout = [k for k in range(10) for _ in range(2)], data.labels("heldout")
    assert heldout is not None
    real = {k: iter((heldout == k).nonzero().flatten().tolist()) for k in range(10)}
    blocks = [("real digits", "held out", data.images("heldout")[[next(real[k]) for k in labels]])]
    for title, generator, count in shown:
        name = heading(title, generator.evaluations(count))
        blocks.append((name, _figures(rows[name]), generator.sample(20, labels, seed, count)))
    contact_sheet(blocks, path, 20)


def _figures(row: Row) -> str:
    if "energy" in row:
        modes = f"\n{row['modes']:.0f} modes, TV {row['weight_tv']:.3f}, {row['inside']:.1%} inside" if "modes" in row else ""
        return f"energy distance {row['energy']:.4f}{modes}"
    return f"Frechet distance {row['frechet_over_floor']:.2f} x the floor, {row['class_accuracy']:.1%} show the class asked for"
