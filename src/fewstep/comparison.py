"""The methods on the same ground: one density, one budget, one table, one picture."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewstep.build import load_data, train
from fewstep.config import ToyConfig, load_recipe, nearest
from fewstep.data import DENSITIES, Mixture, PointData
from fewstep.errors import UserError
from fewstep.evaluation import EXACT_SAMPLES, machine, measure, suite_for
from fewstep.generator import load
from fewstep.metrics.point_suite import PointSuite
from fewstep.training.checkpoint import checkpoints
from fewstep.training.run_folder import RunFolder, replace_file

SHOWN = 2000  # samples a panel


def density_name(data: str) -> str:
    """``ring`` of ``toys/ring``. Raises UserError for anything else."""
    name = data.removeprefix("toys/")
    if not data.startswith("toys/") or name not in DENSITIES:
        raise UserError(
            f"{data!r} is no density to compare on{nearest(name, DENSITIES)}; give toys/NAME with NAME one of {', '.join(DENSITIES)}"
        )
    return name


def compare(
    data: str, out: Path, gamma: float = 1.0, steps: int = 3000, seed: int = 0, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train drift and DMD2 (exact teacher; trained teacher) on `data` (``toys/NAME``) with the same number of samples seen.

    Each method sees ``steps`` batches of 512, of which a trained teacher takes half. Runs go to folders under `out`, and are gone
    on with if they are there already. Writes ``compare.json`` and ``compare.png`` there, and returns the former. The exact teacher
    is left out for a density that is no mixture. Raises UserError as `train` does.
    """
    name = density_name(data)
    if steps < 2:
        raise UserError(f"--steps is {steps}; give at least 2")
    if not 0 < gamma < math.inf:
        raise UserError(f"--gamma is {gamma}; it must be positive and finite")
    points = load_data(ToyConfig(name="toy", density=name), seed)
    assert isinstance(points, PointData)
    common = (f"data.density={name}", f"seed={seed}")
    runs: dict[str, tuple[str, tuple[str, ...]]] = {"drift": ("drift/ring", (f"steps={steps}", f"method.gamma={gamma}"))}
    if isinstance(points.density, Mixture):
        runs["DMD2, exact teacher"] = ("dmd2/ring", (f"steps={steps}", f"method.gamma={gamma}"))
    runs["teacher"] = ("teacher/ring", (f"steps={steps // 2}",))
    kept = f"method.teacher={json.dumps(str(out / 'teacher'))}"
    runs["DMD2, trained teacher"] = ("dmd2/ring", (f"steps={steps - steps // 2}", f"method.gamma={gamma}", "network.sigma_data=null", kept))
    folders = {title: out / title.lower().replace(", ", "_").replace(" ", "_") for title in runs}
    for number, (title, (source, overrides)) in enumerate(runs.items(), start=1):
        recipe = load_recipe(source, (*common, *overrides))
        run = RunFolder(folders[title])
        say(f"{number}/{len(runs)} {title} ({recipe.steps} steps)")
        if run.model_step() == recipe.steps and checkpoints(run.checkpoint_folder):
            continue
        train(recipe, run.path, resume=run.recipe_file.exists(), title=title)
    suite = suite_for(points, gamma, seed)
    assert isinstance(suite, PointSuite)
    say("measuring")
    rows: dict[str, dict[str, Any]] = {"exact samples": dict(suite.floor_row())}
    shown = {"exact samples": suite.other[:SHOWN]}
    seconds = {title: RunFolder(folder).metrics()[-1]["seconds"] for title, folder in folders.items()}
    for title, folder in folders.items():
        if title == "teacher" and gamma != 1.0:
            continue  # it draws p, not p^gamma
        generator = load(folder)
        calls = generator.evaluations()
        row = measure(suite, generator, EXACT_SAMPLES, seed)
        took = seconds[title] + (seconds["teacher"] if title == "DMD2, trained teacher" else 0.0)
        heading = f"{title}, {calls} evaluation{'s' * (calls > 1)}"
        rows[heading] = {**row, "training_seconds": took}
        shown[heading] = generator.sample(SHOWN, seed=seed)
    results = {
        "data": data,
        "gamma": gamma,
        "steps": steps,
        "batch_size": 512,
        "n": EXACT_SAMPLES,
        "seed": seed,
        "reference": f"{EXACT_SAMPLES} exact samples of {name}" + (f"^{gamma:g}" if gamma != 1.0 else ""),
        "rows": rows,
        "machine": machine(),
    }
    replace_file(out / "compare.json", json.dumps(results, indent=1).encode())
    draw(points, gamma, shown, rows, out / "compare.png")
    return results


def draw(data: PointData, gamma: float, shown: dict[str, torch.Tensor], rows: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel for each of `shown`, on the density aimed at, with its figures above."""
    from matplotlib.figure import Figure

    assert data.density is not None
    target = data.density.power(gamma)
    low, high = target.limits
    figure = Figure(figsize=(2.75 * len(shown), 4.0), dpi=130, layout="constrained", facecolor="white")
    where = torch.linspace(low, high, 200, dtype=torch.float64)
    y, x = torch.meshgrid(where, where, indexing="ij")
    for i, (title, samples) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown), i + 1)
        if target.dim == 2:
            log = target.log_prob(torch.stack([x.flatten(), y.flatten()], 1)).view(200, 200)
            axes.imshow((log - log.max()).exp().sqrt(), extent=(low, high, low, high), origin="lower", cmap="Blues", vmax=1.6)
        axes.scatter(samples[:, 0], samples[:, 1], s=3, color="#d1400f", linewidths=0)
        row = rows[title]
        name, _, calls = title.rpartition(", ") if "evaluation" in title else (title, "", " ")
        text = f"{calls}\nenergy distance {row['energy']:.4f}"
        if "modes" in row:
            text += f"\n{row['modes']:.0f} modes, TV {row['weight_tv']:.3f}, {row['inside']:.1%} inside"
        axes.set_title(name, fontsize=11, fontweight="bold", loc="left", pad=46 if "modes" in row else 33)
        axes.text(0, 1.015, text, transform=axes.transAxes, fontsize=9.5, va="bottom")
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    figure.savefig(path, bbox_inches="tight")
