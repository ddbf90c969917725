"""Pictures of samples, curves of a run, and plots for comparisons of methods."""

import hashlib
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewstep.viz.colours import BLUE, COLOURS, SAMPLE


def to_pixels(images: Tensor) -> np.ndarray:
    """Return images [N, C, H, W] in [-1, 1] as uint8 [N, H, W, 3]; unless there are three channels, the first is used for all three."""
    pixels = ((images.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels if pixels.shape[3] == 3 else pixels[..., :1].repeat(3, axis=3)


def image_grid(images: Tensor, columns: int = 10, side: int = 48, gap: int = 2) -> Image.Image:
    """Return a picture of images [N, C, H, W] in [-1, 1] in a grid, row by row, each enlarged without smoothing to about `side` pixels."""
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


def captioned(images: Tensor, texts: Sequence[str], columns: int = 4, side: int = 160, lines: int = 3) -> Image.Image:
    """Return a picture of images [N, C, H, W] in [-1, 1] in a grid, row by row, each with its text below in at most `lines` lines.

    Each image is enlarged without smoothing to about `side` pixels; a longer text ends in "...".
    """
    font, gap = ImageFont.load_default(12), 8
    pixels = to_pixels(images)
    scale = max(1, round(side / pixels.shape[2]))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = pixels.shape[1:3]
    wrapped = [textwrap.wrap(text, max(8, width // 7), max_lines=lines, placeholder=" ...") for text in texts]
    below = 15 * max(map(len, wrapped)) + gap
    columns = min(columns, len(pixels))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, -(-len(pixels) // columns) * (height + below + gap) + gap), "white")
    drawing = ImageDraw.Draw(sheet)
    for number, (image, text) in enumerate(zip(pixels, wrapped, strict=True)):
        left, top = gap + number % columns * (width + gap), gap + number // columns * (height + below + gap)
        sheet.paste(Image.fromarray(image), (left, top))
        drawing.multiline_text((left, top + height + 3), "\n".join(text), fill="#222222", font=font, spacing=2)
    return sheet


def contact_sheet(blocks: Sequence[tuple[str, str, Tensor]], path: Path, columns: int = 20, claim: str = "") -> None:
    """Write a picture of several sets of images, one below the other, to `path` (PNG), with the line `claim` above them.

    Each of `blocks` is (title, line of figures, images [N, C, H, W] in [-1, 1]).
    """
    from matplotlib.figure import Figure

    grids = [np.asarray(image_grid(images, columns, 40)) for _, _, images in blocks]
    heights = [grid.shape[0] for grid in grids]
    caption, head = 46, 36 if claim else 0
    total, width = sum(heights) + caption * len(grids) + head, grids[0].shape[1]
    figure = Figure(figsize=(width / 100, total / 100), dpi=100, facecolor="white")
    figure.text(4 / width, 1 - 20 / total, claim, fontsize=14, fontweight="bold", color=BLUE, va="center")
    top = total - head
    for (title, line, _), grid, height in zip(blocks, grids, heights, strict=True):
        figure.text(4 / width, (top - 18) / total, title, fontsize=11, fontweight="bold", color="black", va="center")
        figure.text(4 / width, (top - 35) / total, line, fontsize=9, color="#333333", va="center")
        top -= caption + height
        figure.figimage(grid, 0, top)  # pixel for pixel
    figure.savefig(path)


def scatter(points: Tensor, path: Path | io.BytesIO, limits: tuple[float, float] | None = None) -> None:
    """Write a scatter plot of the first two coordinates of `points` [N, D] to `path` (PNG); points of one coordinate lie on a line.

    `limits` are those of both axes; None fits them to the points.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=110)
    axes = figure.add_axes((0.13, 0.09, 0.85, 0.89))  # fixed room for the tick labels: an automatic layout would draw twice
    x = points.detach().cpu().numpy()
    axes.scatter(x[:, 0], x[:, 1] if x.shape[1] > 1 else np.zeros(len(x)), s=4 if len(x) > 2000 else 9, color=SAMPLE, linewidths=0)
    axes.set(aspect="equal", xlabel="first coordinate", ylabel="second coordinate" if x.shape[1] > 1 else "")
    if limits:
        axes.set(xlim=limits, ylim=limits)
    axes.grid(alpha=0.3)
    figure.savefig(path)


# placeholder colours of curves in a page, replaced after drawing by the page's variables, which differ in light and dark mode
INK, GRID = "#010101", "#020202"
LINES = tuple(f"#0300{number:02x}" for number in range(8))


def curves(records: Sequence[Mapping[str, Any]], names: Sequence[str], log: bool = False) -> str:
    """Return an SVG element, for use in a page, that plots the figures `names` of `records` (lines of metrics.jsonl) over steps.

    Text stays text, in the page's font and colour; the colours of lines and grid are the page's variables ``--line-0`` to ``--line-7`` and
    ``--grid``. Values that are not finite leave a gap. With `log`, the vertical axis is logarithmic.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    buffer = io.StringIO()
    style: dict[Any, Any] = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with rc_context(style | {"svg.fonttype": "none", "svg.hashsalt": " ".join(names), "font.size": 9}):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for number, name in enumerate(names):
            points = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
            mark = "." if len(points) == 1 else ""
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                label=name,
                linewidth=1.5,
                linestyle=("-", "--")[number // len(LINES) % 2],
                marker=mark,
                color=LINES[number % len(LINES)],
            )
        axes.set(xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log:
            axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GRID, linewidth=0.6)
        axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, handlelength=1.4)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in ((INK, "currentColor"), (GRID, "var(--grid)"), *((line, f"var(--line-{i})") for i, line in enumerate(LINES))):
        text = text.replace(colour, variable)
    # ids must be unique in a page that holds several pictures
    own = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = re.sub(r'href="#', f'href="#{own}-', text)
    text = text.replace("url(#", f"url(#{own}-")
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # a style element would apply to the whole page
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # not needed inside an HTML page
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    return re.sub(r' (width|height)="[0-9.]+pt"', "", text, count=2)


class Target(Protocol):
    """The interface of a density over which samples are drawn."""

    @property
    def dim(self) -> int:
        """The number of coordinates of its points."""
        ...

    @property
    def limits(self) -> tuple[float, float]:
        """The lower and upper limit, in both directions, of a square that contains the density."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density [N] at points `x` [N, D]."""
        ...


def target_panels(target: Target, panels: Sequence[tuple[str, str, str, Tensor]], path: Path, columns: int = 6) -> None:
    """Write a picture with one panel per set of samples, drawn over the density `target`, to `path` (PNG).

    Each of `panels` is (name, network evaluations, figures, points [N, D]); of more than two coordinates the first two are shown, without
    the density.
    """
    from matplotlib.figure import Figure

    low, high = target.limits
    rows, columns = -(-len(panels) // columns), min(columns, len(panels))
    figure = Figure(figsize=(2.75 * columns, 3.35 * rows), dpi=110, layout="constrained", facecolor="white")
    where = torch.linspace(low, high, 200, dtype=torch.float64)
    y, x = torch.meshgrid(where, where, indexing="ij")
    for i, (name, calls, figures, points) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        if target.dim == 2:
            log = target.log_prob(torch.stack([x.flatten(), y.flatten()], 1)).view(200, 200)
            axes.imshow((log - log.max()).exp().sqrt().numpy(), extent=(low, high, low, high), origin="lower", cmap="Blues", vmax=1.6)
        axes.scatter(points[:, 0], points[:, 1], s=3, color=SAMPLE, linewidths=0)
        lines = f"{calls}\n{figures}"
        axes.set_title(name, fontsize=11, fontweight="bold", loc="left", pad=5 + 14 * (1 + lines.count("\n")))
        axes.text(0, 1.015, lines, transform=axes.transAxes, fontsize=9.5, va="bottom")
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    figure.savefig(path, bbox_inches="tight")


def quality_by_evaluations(
    found: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str, quantity: str, path: Path, floor: float = 0.0
) -> None:
    """Write a plot of a figure (lower is better) over network evaluations per sample, both logarithmic, to `path` (PNG).

    `found` holds for each method its numbers of evaluations and the figure at each; a method with one value is drawn as a mark, others as a
    line. Values below `floor`, the standard error of measuring, are drawn at `floor`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=120, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    marks, styles = "osDv^PX*", ("-", "--", "-.", ":")
    alone = [name for name, (x, _) in found.items() if len(x) == 1]
    for i, (name, (x, y)) in enumerate(found.items()):
        values = [max(value, floor) for value in y]
        line = styles[i % len(styles)] if len(x) > 1 else ""
        aside = 1.07 ** (alone.index(name) - (len(alone) - 1) / 2) if name in alone else 1.0  # places equal marks side by side
        axes.plot(
            [value * aside for value in x],
            values,
            marker=marks[i % len(marks)],
            linestyle=line,
            linewidth=1.7,
            markersize=6 if len(x) > 1 else 10,
            color=COLOURS[i % len(COLOURS)],
            label=name,
        )
    if floor:
        axes.axhline(floor, color="#777777", linewidth=0.8, label="standard error of the figure;\nsmaller values are drawn here")
    ticks = [value for value in (1, 2, 3, 5, 10, 20, 50, 100) if value <= 1.2 * max(max(x) for x, _ in found.values())]
    axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a sample", ylabel=quantity)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks(ticks, [str(value) for value in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3, which="major")
    axes.legend(fontsize=9)
    figure.savefig(path)
