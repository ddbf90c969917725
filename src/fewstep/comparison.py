"""Compare methods: train every recipe for one data set, and show quality against the number of sampling steps in a table and a plot."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep import registry
from fewstep.build import in_memory, load_data
from fewstep.data import DENSITIES, ImageData, Mixture, PointData
from fewstep.errors import UserError, going_on
from fewstep.evaluation import heading
from fewstep.evaluation_sampling import usual_counts
from fewstep.evaluation_text import in_words
from fewstep.files import replace_file
from fewstep.generator import Generator, load
from fewstep.machine import machine
from fewstep.measurement import Row, floor_row, measure, protocol_record, suite_for, usual_samples
from fewstep.metrics.judging import disagreement
from fewstep.metrics.least import summed_up
from fewstep.metrics.suite import Suite
from fewstep.recipe import Recipe, load_recipe, resolved, shipped_recipes
from fewstep.recipe.mistakes import nearest
from fewstep.run import train_recipe
from fewstep.sections import Compared
from fewstep.streams import stream, stream_seed
from fewstep.training.run_folder import RunFolder
from fewstep.viz.plots import contact_sheet, quality_by_evaluations, target_panels

SHOWN = 2000  # samples in each panel of the picture
COUNTS = (1, 2, 3, 4, 5, 10, 20, 50)  # numbers of steps at which a generator that allows any number is measured


@dataclass(frozen=True)
class Entry:
    """A method in the comparison.

    Attributes:
        stands: its title and settings in the comparison.
        recipe: name or path of the recipe that is trained.
        draws_power: whether it can learn ``p^gamma``, a power of the data's density.
        teacher: folder, below that of the comparison, of the run that teaches it; None without a trained teacher.

    """

    stands: Compared
    recipe: str
    draws_power: bool = False
    teacher: str | None = None

    @property
    def title(self) -> str:
        """Name of the method in the table and the plots."""
        return self.stands.title

    @property
    def folder(self) -> str:
        """Name of the folder of the method's run, below that of the comparison."""
        return folder_of(self.title)


def folder_of(title: str) -> str:
    """Return `title` in lower case with underscores, as the name of a folder."""
    return title.lower().replace(", ", "_").replace(" ", "_")


def entries_for(points: bool, mixture: bool, gamma: float, recipes: Sequence[str] = ()) -> list[Entry]:
    """Return the methods to compare: all that have a recipe for toy points, or else for digits, and those of the further `recipes`.

    `mixture` says whether the points are a mixture of Gaussians. Where `gamma` is not 1, methods that only learn the density p itself are
    left out, except one that teaches others.
    """
    items, ground = ("points", "ring") if points else ("images", "digits")
    rooms: list[tuple[Any, str]] = []
    for name in registry.names("methods"):
        if (recipe := f"{name}/{ground}") in shipped_recipes():
            rooms.append((registry.settings("methods", name), recipe))
    rooms += [(type(load_recipe(recipe).method), recipe) for recipe in recipes]
    teaching = next((settings.compared[0].title for settings, _ in rooms if settings.teaches), None)
    entries: list[Entry] = []
    for settings, recipe in rooms:
        whole = load_recipe(recipe)
        # where there is no closed form of the denoiser to learn from, a trained teacher takes its place
        needs_one = whole.network.role == "copy" or (getattr(whole.method, "exact", False) and not mixture)
        for stands in settings.compared or (Compared(whole.method.name),):
            if items in stands.items and (mixture or not stands.needs_mixture):
                taught = stands.taught or needs_one
                teacher = folder_of(teaching) if taught and teaching else None
                stands = replace(stands, title=_unlike(stands.title, {entry.title for entry in entries}, recipe))
                entries.append(Entry(stands, recipe, settings.draws_power, teacher))
    if gamma != 1.0:
        teachers = {entry.teacher for entry in entries}
        entries = [entry for entry in entries if entry.draws_power or entry.folder in teachers]
    return entries


def _unlike(title: str, taken: Collection[str], recipe: str) -> str:
    """Return `title`, or if it is `taken`, the title with the name of `recipe` and, where that is taken too, with a number."""
    names = (title, f"{title}, {Path(recipe).stem}", *(f"{title}, {Path(recipe).stem} {number}" for number in range(2, len(taken) + 2)))
    return next(name for name in names if name not in taken)


def compare(
    data: str,
    out: Path,
    gamma: float = 1.0,
    scale: float = 1.0,
    seed: int = 0,
    say: Callable[[str], None] = print,
    recipes: Sequence[str] = (),
) -> dict[str, Any]:
    """Train every method on `data`, and measure each at all numbers of steps that it can be sampled with, or at `COUNTS`.

    Args:
        data: ``toys/NAME`` or ``digits``.
        out: folder for the runs, which are continued if they are there already, and for ``compare.json``, ``compare.png`` (samples) and
            ``steps.png`` (quality over network evaluations).
        gamma: power of the density of toy points that is to be learned; unless it is 1, methods that only learn the density are left out.
        scale: factor on each recipe's number of steps, beside the factor that the method itself declares (`Compared.costs`).
        seed: of the data, the training and the samples.
        say: called with a line for each thing that is done.
        recipes: names or paths of further recipes, such as those of one's own methods.

    Returns:
        The content of ``compare.json``.

    Raises:
        UserError: as `train` does, and for `data`, `gamma` or `scale` that cannot be compared on.

    """
    density = None if data == "digits" else _density(data)
    if not 0 < scale < math.inf:
        raise UserError(f"--scale is {scale}; it must be positive and finite, and 1 runs each recipe at its full length")
    if not 0 < gamma < math.inf:
        raise UserError(f"--gamma is {gamma}; it must be positive and finite")
    if density is None and gamma != 1.0:
        raise UserError(f"--gamma is {gamma}; powers of a density are for toys/NAME: leave --gamma out for digits")
    ground = _ground(density, seed)
    mixture = isinstance(ground, PointData) and isinstance(ground.density, Mixture)
    entries = entries_for(density is not None, mixture, gamma, recipes)
    for number, entry in enumerate(entries, start=1):
        recipe = recipe_of(entry, out, density, gamma, scale, seed)
        run = RunFolder(out / entry.folder)
        say(f"{number}/{len(entries)} {entry.title} ({entry.recipe}, {recipe.steps:,} steps)")
        if run.recipe_file.exists():
            run.check(resolved(recipe), resume=True)  # raises UserError for a run of another seed, gamma or density
        if run.is_finished(recipe.steps):
            continue
        with going_on():
            train_recipe(recipe, run.path, resume=run.recipe_file.exists(), title=entry.title, source=entry.recipe)

    num = usual_samples(density is not None)
    suite = suite_for(ground, gamma, seed, num=num, judges=2)
    floor = "exact samples" if density else "real train split"
    rows: dict[str, Row] = {floor: floor_row(suite)}
    seconds = {entry.folder: RunFolder(out / entry.folder).metrics()[-1]["seconds"] for entry in entries}
    generators: dict[str, Generator] = {}
    for entry in entries:
        if gamma != 1.0 and not entry.draws_power:
            continue
        generator = generators[entry.title] = load(out / entry.folder)
        counts = generator.step_counts or sorted({*COUNTS, generator.default_steps()})
        say(f"measuring {entry.title}, {', '.join(map(str, counts))} step{'s' * (counts != [1])}")
        took = seconds[entry.folder] + (seconds[entry.teacher] if entry.teacher else 0.0)
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
        "reference": f"{len(ground.heldout):,} held-out images"
        if density is None
        else f"{num:,} exact samples of {density}" + (f"^{gamma:g}" if gamma != 1.0 else ""),
        "rows": rows,
        "warnings": [*summed_up(rows.values()), *filter(None, [disagreement(rows)])],
        "machine": machine(),
    }
    replace_file(out / "compare.json", json.dumps(results, indent=1).encode())
    means = {entry.title for entry in entries if not entry.stands.one_step}
    draw(ground, gamma, generators, rows, out / "compare.png", seed, means)
    figure = ("energy", "energy distance") if density else ("frechet_over_floor", "Frechet distance / floor")
    error = rows[floor].get("energy_error", 0.0)
    if drawn := curves(rows, figure[0]):
        quality_by_evaluations(drawn, f"{data}: {claim(drawn, means, error)}", figure[1], out / "steps.png", error)
    return results


def _ground(density: str | None, seed: int) -> ImageData | PointData:
    """Return the data set on which all methods are trained and measured, in memory."""
    name, settings = ("toy", {"density": density}) if density else ("digits", {})
    return in_memory(load_data(registry.settings("data", name)(name=name, **settings), seed))  # type: ignore[arg-type,call-arg]


def recipe_of(entry: Entry, out: Path, density: str | None, gamma: float, scale: float, seed: int) -> Recipe:
    """Return the recipe that `entry` trains, on `density` if given, with its steps multiplied by `scale` and the method's cost factor."""
    overrides = [*entry.stands.overrides, f"seed={seed}", *([f"data.density={density}"] if density else [])]
    overrides += [f"method.gamma={gamma}"] * entry.draws_power
    overrides += [f"method.teacher={json.dumps(str(out / entry.teacher))}"] if entry.teacher else []
    recipe = load_recipe(entry.recipe, overrides)
    costs = entry.stands.costs(load_recipe(entry.recipe).method)
    return recipe.model_copy(update={"steps": max(1, round(recipe.steps * scale)) * costs})


def curves(rows: Mapping[str, Row], key: str) -> dict[str, tuple[list[int], list[float]]]:
    """Return for each method its numbers of network evaluations, and the values of the figure `key` at them."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows.values():
        if "method" in row and key in row:
            x, y = found.setdefault(row["method"], ([], []))
            x.append(row["evaluations"])
            y.append(row[key])
    return found


def table_by_steps(results: Mapping[str, Any]) -> list[list[str]]:
    """Return a table with a row for each method and a column for each number of steps: energy distance, or Frechet distance over floor."""
    rows = [row for row in results["rows"].values() if "method" in row]
    points = any("energy" in row for row in rows) or results.get("features") == "the points themselves"
    key, form = ("energy", "{:.4f}") if points else ("frechet_over_floor", "{:.2f}")
    counts = sorted({row["steps"] for row in rows if row["steps"] in COUNTS})
    lines = [["steps", *map(str, counts)]]
    for title in dict.fromkeys(row["method"] for row in rows):
        cells = {row["steps"]: form.format(row[key]) for row in rows if row["method"] == title and key in row}
        heun = " (Heun, 2 k - 1 evaluations)" * any(row["sampler"] == "heun" for row in rows if row["method"] == title)
        lines.append([title + heun, *(cells.get(count, "") for count in counts)])
    return lines


def own_rows(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return `results` with only the rows of the floor and of each method at its default number of steps."""
    return {**results, "rows": {name: row for name, row in results["rows"].items() if row.get("own_steps", True)}}


def _density(data: str) -> str:
    """Return the name in ``toys/NAME``, such as ``ring``. Raises UserError for any other `data`, and for a name that is not known."""
    name = data.removeprefix("toys/")
    if not data.startswith("toys/") or name not in DENSITIES:
        raise UserError(
            f"{data!r} is no data set that methods are compared on{nearest(data, ['digits', *(f'toys/{name}' for name in DENSITIES)])}; "
            f"give digits, or toys/NAME with NAME one of {', '.join(DENSITIES)}"
        )
    return name


def claim(found: Mapping[str, tuple[Sequence[int], Sequence[float]]], means: Collection[str], floor: float = 0.0) -> str:
    """Return the plot's title: the best method at one evaluation, compared with the methods in `means`, which need several.

    `found` holds for each method its numbers of evaluations and the figures at them. Smaller figures are better, and those below `floor`
    count as equal.
    """
    alone = {name: max(y[0], floor) for name, (x, y) in found.items() if name not in means and x[0] == 1}
    if not alone or not means & found.keys():
        return "quality by network evaluations"
    best = min(alone, key=lambda name: alone[name])
    equal = {name: [n for n, value in zip(*found[name], strict=True) if max(value, floor) <= alone[best]] for name in means & found.keys()}
    first = {name: counts[0] for name, counts in equal.items() if counts}
    if not first:
        most = {name: found[name][0][-1] for name in equal}
        return f"{best} at one evaluation is better than {' and '.join(f'{name} at {most[name]}' for name in sorted(most))}"
    slow = min(first, key=lambda name: (first[name], name))
    return f"{best} at one evaluation is as good as {slow} at {first[slow]}"


def draw(
    data: ImageData | PointData,
    gamma: float,
    generators: Mapping[str, Generator],
    rows: Mapping[str, Row],
    path: Path,
    seed: int,
    means: Collection[str] = (),
) -> None:
    """Draw a picture with samples and figures of each method at the numbers of steps that `fewstep evaluate` measures.

    One-step samples of the methods in `means` are left out, and real data, or exact samples of the density, come first.
    """
    shown = [(title, generator, count) for title, generator in generators.items() for count in usual_counts(generator)]
    shown = [(title, generator, count) for title, generator, count in shown if count > 1 or title not in means]
    if isinstance(data, PointData):
        assert data.density is not None
        target = data.density.power(gamma)
        panels = [("exact samples", "", in_words(rows["exact samples"]), target.sample(SHOWN, stream(seed, "pictures of the data")))]
        for title, generator, count in shown:
            name = heading(title, generator.evaluations(count))
            samples = generator.sample(SHOWN, seed=stream_seed(seed, "pictures"), steps=count)
            panels.append((title, name.removeprefix(f"{title}, "), in_words(rows[name]), samples))
        target_panels(target, panels, path)
        return
    labels, heldout = [k for k in range(10) for _ in range(2)], data.labels("heldout")
    assert heldout is not None
    real = {k: iter((heldout == k).nonzero().flatten().tolist()) for k in range(10)}
    blocks = [("real digits", "held out", data.images("heldout")[[next(real[k]) for k in labels]])]
    for title, generator, count in shown:
        name = heading(title, generator.evaluations(count))
        blocks.append((name, in_words(rows[name]), generator.sample(20, labels, stream_seed(seed, "pictures"), count)))
    contact_sheet(blocks, path, 20)
