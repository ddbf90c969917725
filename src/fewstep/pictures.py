"""What a run draws as it goes: grids of images, or for points the dashboard of the 2D laboratory."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data import Density, Mixture, PointData
from fewstep.data.prompts import PromptData
from fewstep.generator import Generator
from fewstep.methods.base import Method
from fewstep.metrics.modes import mode_counts
from fewstep.recipe import Recipe
from fewstep.streams import stream, stream_seed
from fewstep.training.health import older_names
from fewstep.training.run_folder import RunFolder
from fewstep.viz.dashboard import Dashboard, Frame, Scene
from fewstep.viz.plots import image_grid, scatter

SHOWN = 1000  # samples in a frame
PROMPTS = 8  # the first, that are drawn
GRID = 24  # arrows of a field, in each direction
RESOLUTION = 160  # of a density's picture
WITHIN = 3.0  # standard deviations round a mode that count as near it


class ImagePictures:
    """A grid of samples on each call, two rows of all classes."""

    def __init__(self, recipe: Recipe, data: Any, run: RunFolder) -> None:
        self.run, self.seed = run, stream_seed(recipe.seed, "pictures")
        # latents are decoded, one by one, by a network that is large
        self.classes = PROMPTS // 2 if isinstance(data, PromptData) else data.num_classes or 10

    def begin(self, step: int) -> bool:
        """Take away the pictures of what came after `step`, from which training goes on; whether that of `step` itself is missing."""
        return _forgotten(self.run, step)

    def __call__(self, generator: Generator, step: int) -> Path:
        """The picture's file."""
        count = 2 * self.classes if self.classes <= 16 else 32
        path = self.run.sample_folder / f"step_{step}.png"
        image_grid(generator.pixels(generator.sample(count, seed=self.seed)), columns=count // 2).save(path)
        return path

    def close(self) -> None:
        """Nothing is open."""


class PointPictures:
    """The dashboard for points in the plane; the first two coordinates of others."""

    def __init__(self, recipe: Recipe, data: PointData, run: RunFolder, method: Method, total: int) -> None:
        self.run, self.data, self.method, self.total, self.seed = run, data, method, total, stream_seed(recipe.seed, "pictures")
        self.gamma = recipe.power(points=True)
        self.shown_gamma = self.gamma if recipe.method.draws_power else math.nan
        self.target = data.density.power(self.gamma) if data.density else None
        self.mixture = isinstance(data.density, Mixture)
        self.low, self.high = _limits(data, self.target)
        self.rng = stream(recipe.seed, "pictures of the data")
        ticks = torch.linspace(self.low, self.high, GRID + 2)[1:-1]
        self.points = torch.cartesian_prod(ticks, ticks)
        self.dashboard = Dashboard(run.dashboard_folder, self._scene(recipe)) if data.shape == (2,) else None

    def begin(self, step: int) -> bool:
        """As of `ImagePictures`; a frame that was handed over and not drawn when the run was killed is missing."""
        if self.dashboard is None:
            return _forgotten(self.run, step)
        self.dashboard.forget_after(step or -1)
        return step > 0 and not self.dashboard.has(step)

    def _scene(self, recipe: Recipe) -> Scene:
        drawn = self.data.batch(torch.arange(min(20_000, len(self.data.train))), self.rng, torch.device("cpu"))[0]
        where = torch.linspace(self.low, self.high, RESOLUTION, dtype=torch.float64)
        y, x = torch.meshgrid(where, where, indexing="ij")
        grid = torch.stack([x.flatten(), y.flatten()], 1)
        reference = _density(self.data.density, grid) if self.data.density else _histogram(self.data.heldout, self.low, self.high)
        target = _density(self.target, grid) if self.target else _histogram(drawn, self.low, self.high)
        modes = weights = None
        if self.mixture and self.target:
            modes, weights = self.target.modes.numpy(), self.target.mode_weights.numpy()
        standard = ", in standard deviations" if self.data.units is not None else ""
        return Scene(f"{recipe.method.name} on {self.data.name}{standard}", self.low, self.high, reference, target, modes, weights)

    def __call__(self, generator: Generator, step: int) -> Path | None:
        """Hand a frame to the dashboard, which draws it in its own time; or the file of a scatter plot."""
        samples = generator.sample(SHOWN, seed=self.seed).cpu()
        if self.data.units is not None:  # columns of any units in one square
            samples = self.data.units.standard(samples)
        if self.dashboard is None:
            path = self.run.sample_folder / f"step_{step}.png"
            scatter(samples, path, (self.low, self.high))
            return path
        shares = inside = None
        if self.mixture and self.target:
            near = mode_counts(samples, self.target.modes, self.target.mode_stds, self.target.mode_weights, WITHIN) / len(samples)
            shares, inside = near.numpy(), near.sum().item()
        real = self.data.batch(torch.arange(512) % len(self.data.train), self.rng, torch.device("cpu"))[0]
        device = generator.device
        known = self.method.field(self.points.to(device), samples.to(device), real.to(device))
        where, field = known or (self.points[:0], self.points[:0])
        now = self.method.settings_now()
        records = [record for record in self.run.metrics(older_names(self.method)) if record["step"] <= step]
        loss = _curve(records, self.method.main)
        self.dashboard.record(
            Frame(
                step,
                self.total,
                samples.numpy(),
                where.cpu().numpy(),
                field.cpu().numpy(),
                loss,
                shares,
                inside,
                self.shown_gamma,
                now.get("temperature", math.nan),
            )
        )
        return None

    def close(self) -> None:
        """Wait for the drawing, and make the animation and the still."""
        if self.dashboard is not None:
            self.dashboard.close()


def _forgotten(run: RunFolder, step: int) -> bool:
    """Remove the pictures in ``samples/`` later than `step`; whether there is none of `step`."""
    for path in run.sample_folder.glob("step_*.png"):
        number = path.stem.removeprefix("step_")
        if number.isdigit() and int(number) > step:
            path.unlink()
    return step > 0 and not (run.sample_folder / f"step_{step}.png").exists()


def _limits(data: PointData, target: Density | None) -> tuple[float, float]:
    """Square limits that hold both the data and its target."""
    if data.density is not None and target is not None:
        pairs = (data.density.limits, target.limits)
        return min(low for low, _ in pairs), max(high for _, high in pairs)
    low, high = (data.heldout[:, :2].quantile(q, 0) for q in (0.001, 0.999))
    middle, half = (low + high) / 2, 0.65 * (high - low).max()
    return (middle.min() - half).item(), (middle.max() + half).item()


def _density(density: Density, grid: Tensor) -> np.ndarray:
    log = density.log_prob(grid)
    return (log - log.max()).exp().reshape(RESOLUTION, RESOLUTION).numpy()


def _histogram(points: Tensor, low: float, high: float) -> np.ndarray:
    counts, _, _ = np.histogram2d(points[:, 1].numpy(), points[:, 0].numpy(), bins=RESOLUTION, range=[[low, high], [low, high]])
    return counts / max(1.0, counts.max())


def _curve(records: list[dict[str, Any]], name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the logged term `name`, where it is above 0."""
    points = [(record["step"], record[name]) for record in records if record.get(name, 0) > 0] if name else []
    if not points:
        return np.zeros(0), np.zeros(0)
    steps, values = zip(*points, strict=True)
    return np.asarray(steps), np.asarray(values)
