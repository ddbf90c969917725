"""Pictures of samples and curves of a run."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


def to_pixels(images: Tensor) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] as bytes [N, H, W, 3]; grey ones get three equal channels."""
    pixels = ((images.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels if pixels.shape[3] == 3 else pixels[..., :1].repeat(3, axis=3)


def image_grid(images: Tensor, columns: int = 10, side: int = 48, gap: int = 2) -> Image.Image:
    """Images [N, C, H, W] in [-1, 1], row by row, each enlarged without smoothing to about `side` pixels."""
    pixels = to_pixels(images)
    scale = max(1, round(side / pixels.shape[1]))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    rows = -(-len(pixels) // columns)
    height, width = pixels.shape[1] + gap, pixels.shape[2] + gap
    sheet = np.full((rows * height + gap, min(columns, len(pixels)) * width + gap, 3), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * height + gap, i % columns * width + gap
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(sheet)


def contact_sheet(blocks: Sequence[tuple[str, str, Tensor]], path: Path, columns: int = 20) -> None:
    """Write a picture of several sets of images, one under the other, to `path` (PNG).

    Each block is (title, a line of figures, images [N, C, H, W] in [-1, 1]).
    """
    from matplotlib.figure import Figure

    grids = [np.asarray(image_grid(images, columns, 40)) for _, _, images in blocks]
    heights = [grid.shape[0] for grid in grids]
    caption = 46
    total, width = sum(heights) + caption * len(grids), grids[0].shape[1]
    figure = Figure(figsize=(width / 100, total / 100), dpi=100, facecolor="white")
    top = total
    for (title, line, _), grid, height in zip(blocks, grids, heights, strict=True):
        figure.text(4 / width, (top - 18) / total, title, fontsize=11, fontweight="bold", color="black", va="center")
        figure.text(4 / width, (top - 35) / total, line, fontsize=9, color="#333333", va="center")
        top -= caption + height
        axes = figure.add_axes((0, top / total, 1, height / total))
        axes.imshow(grid, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
    figure.savefig(path)


def scatter(points: Tensor, path: Path, limits: tuple[float, float] | None = None) -> None:
    """Write a scatter plot of the first two coordinates of `points` [N, D] to `path` (PNG); a line of ticks for one coordinate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    x = points.detach().cpu().numpy()
    axes.scatter(x[:, 0], x[:, 1] if x.shape[1] > 1 else np.zeros(len(x)), s=4 if len(x) > 2000 else 9, color="#d1400f", linewidths=0)
    axes.set(aspect="equal", xlabel="first coordinate", ylabel="second coordinate" if x.shape[1] > 1 else "")
    if limits:
        axes.set(xlim=limits, ylim=limits)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def curves(records: Sequence[Mapping[str, Any]], names: Sequence[str], title: str, log: bool = False) -> bytes:
    """A PNG of the named figures of `records` (lines of metrics.jsonl) over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name in names:
        points = [(record["step"], record[name]) for record in records if name in record]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.6)
    axes.set(title=title, xlabel="step")
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
