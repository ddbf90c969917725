"""Measure what a run made, beside its floor and its teacher; write results.json."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep import __version__
from fewstep.build import choose_threads, load_data
from fewstep.config import Recipe, validated
from fewstep.data import ImageData, PointData
from fewstep.generator import Generator, load
from fewstep.measurement import Row, check_samples, measure, suite_for, usual_samples
from fewstep.metrics.point_suite import PointSuite
from fewstep.metrics.suite import Suite
from fewstep.training.run_folder import RunFolder, replace_file

# in the order in which tables show them: key of a row, heading, format
COLUMNS = (
    ("frechet", "FD", "{:.3f}"),
    ("frechet_over_floor", "FD / floor", "{:.2f}"),
    ("frechet_train", "FD to train", "{:.3f}"),
    ("class_accuracy", "class asked for", "{:.1%}"),
    ("precision", "precision", "{:.2f}"),
    ("recall", "recall", "{:.2f}"),
    ("within_class_std", "class std", "{:.0%}"),
    ("spacing", "spacing", "{:.0%}"),
    ("train_distance", "to train", "{:.0%}"),
    ("energy", "energy distance", "{:.5f}"),
    ("mmd", "MMD^2", "{:.5f}"),
    ("sliced_wasserstein", "SW2", "{:.3f}"),
    ("modes", "modes", "{:.0f}"),
    ("weight_tv", "weights, TV", "{:.4f}"),
    ("inside", "inside", "{:.3f}"),
    ("variance", "variance", "{:.2f}"),
    ("median_radius", "radius", "{:.2f}"),
    ("training_seconds", "trained, s", "{:.0f}"),
    ("images_per_second", "samples/s", "{:,.0f}"),
)


def run_recipe(path: Path) -> Recipe:
    """The recipe of the run in `path`. Raises UserError."""
    tree = RunFolder(path).recipe()
    tree.pop("made_by", None)
    return validated(tree, str(path / "recipe.yaml"))


def evaluate(
    path: Path,
    num: int | None = None,
    seed: int = 0,
    threads: int | str = "auto",
    say: Callable[[str], None] = lambda text: None,
    steps: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Measure the run in `path`, write its results.json, and return it.

    A distilled run is measured beside its teacher. What can be sampled with any number of steps is measured at its own and at
    one, a distributional denoiser at 4 too; or at `steps`. `say` is told what is being done. Raises UserError for a folder that
    holds no run or no model yet, for too small a `num`, and for `steps` that nothing in the run can serve.
    """
    run = RunFolder(path)
    recipe = run_recipe(path)
    generator = load(path)
    points = len(generator.shape) == 1
    num = usual_samples(points) if num is None else num
    check_samples(num, "-n", points, generator.num_classes)
    teacher = load(run.teacher_folder) if run.has_teacher() else None
    models: dict[str, Generator] = {recipe.method.name: generator} if teacher is None else {"teacher": teacher, "student": generator}
    counts = _step_counts(models, steps)
    data = load_data(recipe.data, recipe.seed)
    torch.set_num_threads(choose_threads(threads, generator.denoiser, data.shape))
    say("measuring the floor")
    suite = suite_for(data, recipe.power, seed)
    floor = (
        "exact samples" if points and isinstance(data, PointData) and data.density else "held-out half" if points else "real train split"
    )
    rows: dict[str, Row] = {floor: dict(suite.floor_row())}
    for name, model in models.items():
        for count in counts[name]:
            title = heading(name, model.evaluations(count))
            say(f"measuring {title}")
            rows[title] = measure(suite, model, num, seed, count)
    results = {
        "recipe": f"{recipe.method.name}/{data.name}",
        "data": data.name,
        "reference": _reference(data, suite, recipe.power),
        "features": suite.network.name if isinstance(suite, Suite) else "the points themselves",
        "drift_features": generator.info.get("drift_features"),
        "n": num,
        "seed": seed,
        "training_seed": recipe.seed,
        "step": generator.info.get("step"),
        "floor": suite.floor,
        "rows": rows,
        "machine": machine(),
        "fewstep": __version__,
    }
    replace_file(run.results_file, json.dumps(results, indent=1).encode())
    return results


def usual_counts(model: Generator) -> list[int]:
    """Where nothing else is asked: its own number of steps, and of what has a choice one; of a distributional denoiser 4, too."""
    few = [1] if model.is_denoiser else [4, 1] if model.any_steps else []
    return list(dict.fromkeys([model.default_steps(), *few]))


def heading(name: str, evaluations: int) -> str:
    """What a row of a table is called: ``dddm, 4 evaluations``."""
    return f"{name}, {evaluations} evaluation{'s' * (evaluations > 1)}"


def _step_counts(models: Mapping[str, Generator], steps: Sequence[int] | None) -> dict[str, list[int]]:
    """At which numbers of steps each of `models` is measured. Raises UserError for `steps` that none can serve."""
    counts = {}
    for name, model in models.items():
        counts[name] = usual_counts(model)
        if steps and (model.any_steps or len(models) == 1):
            for count in steps:
                model.sigmas(count)
            counts[name] = list(dict.fromkeys(steps))
    return counts


def _reference(data: ImageData | PointData, suite: Suite | PointSuite, gamma: float) -> str:
    if isinstance(suite, Suite):
        return f"{len(data.heldout)} held-out images"
    if isinstance(data, PointData) and data.density:
        return f"{len(suite.target)} exact samples of {data.name}" + (f"^{gamma:g}" if gamma != 1.0 else "")
    return f"{len(suite.target)} held-out points"


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(results: dict[str, Any]) -> list[list[str]]:
    """The rows of `results` as text, headings first; a column that no row has is left out."""
    rows = results["rows"]
    columns = [column for column in COLUMNS if any(column[0] in row for row in rows.values())]
    lines = [["", *(heading for _, heading, _ in columns)]]
    for name, row in rows.items():
        lines.append([name, *(form.format(row[key]) if key in row else "" for key, _, form in columns)])
    return lines
