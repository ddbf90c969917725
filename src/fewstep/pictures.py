"""Draw pictures during a run: grids of sample images, or for points in the plane the frames of a dashboard."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data import Density, Mixture, PointData
from fewstep.data.prompts import PromptData
from fewstep.files import step_of, step_pictures
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
PROMPTS = 8  # number of prompts, the first of the table, whose samples are drawn
GRID = 24  # arrows of a vector field in each direction
RESOLUTION = 160  # pixels a side of the picture of a density
WITHIN = 3.0  # standard deviations around a mode within which a sample counts as near it


class ImagePictures:
    """Draws a grid of samples on each call: two rows, each with a sample of every class, or 32 samples for more than 16 classes."""

    def __init__(self, recipe: Recipe, data: Any, run: RunFolder) -> None:
        self.run, self.seed = run, stream_seed(recipe.seed, "pictures")
        # few samples, as latents are decoded one by one by a large network
        self.classes = PROMPTS // 2 if isinstance(data, PromptData) else data.num_classes or 10

    def begin(self, step: int) -> bool:
        """Remove pictures of steps after `step`, from which training continues; return whether the picture of `step` itself is missing."""
        return _forgotten(self.run, step)

    def __call__(self, generator: Generator, step: int) -> Path:
        """Draw the samples of `generator` at `step` into a PNG, and return its path."""
        count = 2 * self.classes if self.classes <= 16 else 32
        path = self.run.sample_folder / f"step_{step}.png"
        image_grid(generator.pixels(generator.sample(count, seed=self.seed)), columns=count // 2).save(path)
        return path

    def close(self) -> None:
        """Do nothing, as no file or process is left open."""


class PointPictures:
    """Records the dashboard for points in the plane; for points of other dimensions, draws their first two coordinates."""

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
        """Do as `ImagePictures.begin`; a dashboard frame that was recorded but not drawn when the run was killed counts as missing."""
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
        """Hand a frame to the dashboard, which draws it in the background, and return None; or draw a scatter plot and return its path."""
        samples = generator.sample(SHOWN, seed=self.seed).cpu()
        if self.data.units is not None:  # columns may have different units, and are drawn in one square
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
        """Wait for the dashboard's frames to be drawn, and write its animation and its still picture."""
        if self.dashboard is not None:
            self.dashboard.close()


def _forgotten(run: RunFolder, step: int) -> bool:
    """Remove the pictures in ``samples/`` of steps after `step`; return whether that of `step` is missing (False for step 0)."""
    for path in step_pictures(run.sample_folder):
        if step_of(path) > step:
            path.unlink()
    return step > 0 and not (run.sample_folder / f"step_{step}.png").exists()


def _limits(data: PointData, target: Density | None) -> tuple[float, float]:
    """Return (low, high) of a square that contains both the data and the `target` density."""
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
    """Return the steps and values of the logged term `name` in `records`, where it is above 0."""
    points = [(record["step"], record[name]) for record in records if record.get(name, 0) > 0] if name else []
    if not points:
        return np.zeros(0), np.zeros(0)
    steps, values = zip(*points, strict=True)
    return np.asarray(steps), np.asarray(values)
