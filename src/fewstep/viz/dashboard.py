"""A picture of a training run in the plane, drawn by another process while training goes on.

Symbols: density ``p`` on a grid of G x G points, target ``p^gamma`` with K modes, drift field ``V`` at m points, temperature ``T``.

matplotlib takes longer for a picture than training for many steps, so the training process only hands arrays to a thread
(`Dashboard.record`), which writes them to the worker's standard input. The worker (``python -m fewstep.viz.dashboard``: numpy
and matplotlib, no torch) draws them at the lowest priority and ends with its input, that is, with the training process. Where
there is a display, the worker starts a third process, which shows the newest picture in a window; nothing depends on it.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

WAITING = 32  # pictures that may wait to be drawn
PATIENCE = 180.0  # seconds without a new picture after which `Dashboard.close` gives the worker up
SAMPLES, LOSSES = 4000, 2000  # at most so many are drawn: more cannot be told apart
COVERED = 0.2  # of its target weight near it: then a mode counts as covered (as in fewstep.metrics.modes, which needs torch)

WIDTH, HEIGHT, DPI, SHARP = 1500, 900, 100, 180  # pixels of a frame; its resolution, and that of dashboard.png
GIF_FRAMES, GIF_BYTES, GIF_SECONDS, GIF_HOLD = 60, 4_000_000, 8.0, 1.5  # at most; the last frame's seconds are among them

INK, SOFT, GRID = "#1a1a1a", "#555555", "#d9d9d9"
BLUE, ORANGE, SAMPLE = "#0072b2", "#d55e00", "#d1400f"
MODES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#4b0082")  # after Okabe and Ito

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scene:
    """What all frames share.

    Args:
        title: of the run.
        low, high: limits of both axes.
        reference: [G, G], ``p`` at ``linspace(low, high, G)`` in both directions; a row has one y.
        target: [G, G], ``p^gamma``, likewise.
        modes: [K, 2], centres of the modes; None for a density without known modes.
        weights: [K], of the modes in the target.

    """

    title: str
    low: float
    high: float
    reference: np.ndarray
    target: np.ndarray
    modes: np.ndarray | None = None
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """The run at one step.

    Args:
        step, total: this step, and the steps of the whole run.
        samples: [n, 2], of the generator.
        points, field: [m, 2], where the drift field was evaluated, and its values there.
        loss: steps and values so far, two arrays of one length.
        shares: [K], part of the samples that is near each mode; what is near none must not count, or strays would cover modes.
        inside: part of the samples that is near any mode.
        gamma, temperature: of the drift at this step; NaN, and not shown, where the method has none.

    """

    step: int
    total: int
    samples: np.ndarray
    points: np.ndarray
    field: np.ndarray
    loss: tuple[np.ndarray, np.ndarray]
    shares: np.ndarray | None
    inside: float | None
    gamma: float
    temperature: float


@dataclass(frozen=True)
class Reading:
    """What a frame says about the modes; kept of every frame, drawn or not."""

    step: int
    shares: np.ndarray | None
    inside: float | None

    @classmethod
    def of(cls, frame: Frame) -> "Reading":
        """That of `frame`."""
        return cls(frame.step, frame.shares, frame.inside)


# ---------------------------------------------------------------------------------------------------------------- the picture


class Picture:
    """The figure of a scene. What never changes is drawn once; `show` draws a frame over it, `save` writes a PNG."""

    def __init__(self, scene: Scene) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.scene = scene
        self.modes = None if scene.modes is None or not len(scene.modes) else np.asarray(scene.modes, np.float64)
        self.figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.moving: list[tuple[Any, Any]] = []  # axes and artist, in the order of drawing
        self.total = 0
        self.background: Any = None
        self._header()
        self._reference()
        self._target()
        self._field()
        self._loss()
        if self.modes is not None:
            self._shares(len(self.modes))
            self._coverage()

    def show(self, frame: Frame, history: Sequence[Reading]) -> None:
        """Draw `frame`; `history` ends with its own reading."""
        if frame.total != self.total:
            self.total, self.background = frame.total, None
            for axes in self.charts:
                axes.set_xlim(0, max(1, frame.total))
        self._set_header(frame)
        self._set_samples(frame.samples)
        self._set_field(frame.points, frame.field)
        self._set_loss(*frame.loss)
        if self.modes is not None:
            self._set_modes(history)
        if self.background is None:
            self.canvas.draw()
            self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        self.canvas.restore_region(self.background)
        for axes, artist in self.moving:
            axes.draw_artist(artist)

    def save(self, path: Path, dpi: int = DPI, readings: Sequence[Reading] = ()) -> None:
        """Write what `show` drew to `path` (PNG), which either appears whole or not at all; `readings` go into the file."""
        from PIL import Image, PngImagePlugin

        partial = path.with_name(path.name + ".partial")
        if dpi == DPI:
            text = PngImagePlugin.PngInfo()
            rows = [(r.step, None if r.shares is None else np.asarray(r.shares, np.float64).tolist(), r.inside) for r in readings]
            text.add_text("readings", json.dumps(rows))
            pixels = np.asarray(self.canvas.buffer_rgba())[..., :3]
            Image.fromarray(np.ascontiguousarray(pixels)).save(partial, format="png", compress_level=1, pnginfo=text)
        else:
            self.figure.savefig(partial, format="png", dpi=dpi)
            self.background = None
        os.replace(partial, path)

    def _axes(self, left: float, bottom: float, width: float, height: float, title: str) -> Any:
        """Axes whose frame lies at these pixels."""
        axes = self.figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))
        axes.set_title(title, loc="left", fontsize=15, fontweight="bold", color=INK, pad=9)
        axes.tick_params(labelsize=12, colors=INK, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_color(SOFT)
        return axes

    def _move(self, axes: Any, *artists: Any) -> None:
        """Leave `artists` out of the background: they change from frame to frame."""
        for artist in artists:
            artist.set_animated(True)
            self.moving.append((axes, artist))

    def _header(self) -> None:
        axes = self.figure.add_axes((55 / WIDTH, 843 / HEIGHT, 1415 / WIDTH, 48 / HEIGHT))
        axes.set(xlim=(0, 1), ylim=(0, 48))
        axes.set_axis_off()
        size = min(21.0, 21.0 * 50 / max(1, len(self.scene.title)))
        axes.text(0, 24, self.scene.title, fontsize=size, fontweight="bold", color=INK, va="center", parse_math=False)
        self.state = axes.text(1, 24, "", fontsize=16, color=INK, va="center", ha="right")
        axes.barh(2, 1, 4, color=GRID)
        (self.bar,) = axes.barh(2, 0, 4, color=BLUE)
        self._move(axes, self.state, self.bar)

    def _set_header(self, frame: Frame) -> None:
        settings = {"γ": frame.gamma, "T": frame.temperature}
        known = "".join(f"     {name} = {value:.3g}" for name, value in settings.items() if np.isfinite(value))
        self.state.set_text(f"step {frame.step:,} of {frame.total:,}{known}")
        self.bar.set_width(min(1.0, frame.step / max(1, frame.total)))

    def _square(self, column: int, title: str) -> Any:
        from matplotlib.ticker import MaxNLocator

        axes = self._axes(55 + 478 * column, 397, 400, 400, title)
        axes.set(xlim=(self.scene.low, self.scene.high), ylim=(self.scene.low, self.scene.high), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        return axes

    def _heat(self, axes: Any, density: np.ndarray) -> None:
        low, high = self.scene.low, self.scene.high
        half = (high - low) / max(1, len(density) - 1) / 2  # of a pixel, whose centre is the grid's point
        extent = (low - half, high + half, low - half, high + half)
        values = np.nan_to_num(np.asarray(density, np.float64))
        axes.imshow(values, origin="lower", extent=extent, cmap="Blues", vmin=0, vmax=max(values.max(), 1e-30), interpolation="bilinear")
        axes.set(xlim=(low, high), ylim=(low, high))

    def _reference(self) -> None:
        axes = self._square(0, "Reference density  $p$")
        self._heat(axes, self.scene.reference)
        if self.modes is not None and len(self.modes) <= len(MODES):
            span = self.scene.high - self.scene.low
            middle = self.modes.mean(axis=0)
            for k, (mode, colour) in enumerate(zip(self.modes, mode_colours(len(self.modes)), strict=True)):
                away = mode - middle  # the number stands outwards
                distance = float(np.linalg.norm(away))
                x, y = mode + 0.075 * span * (away / distance if distance > 1e-6 * span else np.array([0.0, 1.0]))
                axes.text(x, y, str(k + 1), color=colour, fontsize=13, fontweight="bold", ha="center", va="center")

    def _target(self) -> None:
        axes = self._square(1, "Target  $p^{\\gamma}$  and generated samples")
        self._heat(axes, self.scene.target)
        (self.samples,) = axes.plot([], [], "o", markersize=3.4, color=SAMPLE, markeredgecolor="white", markeredgewidth=0.3)
        style = {"fontsize": 12, "color": INK, "transform": axes.transAxes, "va": "bottom", "ha": "right"}
        self.outside = axes.text(0.985, 0.015, "", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}, **style)
        self._move(axes, self.samples)
        grid = np.linspace(self.scene.low, self.scene.high, len(self.scene.target))
        peak = float(np.nan_to_num(self.scene.target).max())
        if peak > 0:  # over the samples, so that the target can be seen where they cover it
            contour = axes.contour(grid, grid, self.scene.target, levels=[0.1 * peak, 0.6 * peak], colors=INK, linewidths=0.9, zorder=3)
            self._move(axes, contour)
        self._move(axes, self.outside)

    def _set_samples(self, samples: np.ndarray) -> None:
        samples = samples[np.isfinite(samples).all(axis=1)]
        self.samples.set_data(*samples.T)
        self.faint.set_data(*samples.T)
        beyond = int(((samples < self.scene.low) | (samples > self.scene.high)).any(axis=1).sum())
        self.outside.set_text(f"{beyond:,} of {len(samples):,} outside" if beyond else "")

    def _field(self) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.ticker import MaxNLocator

        self.arrows_axes = self._square(2, "Drift field  $V$")
        (self.faint,) = self.arrows_axes.plot([], [], "o", markersize=2.6, color="#c4c4c4", markeredgewidth=0)
        self._move(self.arrows_axes, self.faint)
        self.arrows: Any = None
        self.spots = np.empty((0, 2))
        self.arrow_colours = LinearSegmentedColormap.from_list("drift", colormaps["plasma"](np.linspace(0.0, 0.82, 128)))
        self.scale = self._axes(1423, 397, 16, 400, "")
        self.scale_name = self.scale.text(1.0, 1.025, "", fontsize=14, color=INK, ha="center", transform=self.scale.transAxes)
        self.exponent = 0
        self.gradient = self.scale.imshow(
            np.linspace(0, 1, 128)[:, None], origin="lower", aspect="auto", extent=(0, 1, 0, 1), cmap=self.arrow_colours
        )
        self.scale.set_xticks([])
        self.scale.yaxis.tick_right()
        self.scale.yaxis.set_major_locator(MaxNLocator(5))
        self.scale.yaxis.set_major_formatter(lambda value, _: f"{value / 10.0**self.exponent:.3g}")
        self._move(self.scale, self.scale.yaxis, self.scale_name)

    def _set_field(self, points: np.ndarray, field: np.ndarray) -> None:
        keep = np.isfinite(points).all(axis=1) & np.isfinite(field).all(axis=1)
        points, field = points[keep].astype(np.float64), field[keep].astype(np.float64)
        size = np.linalg.norm(field, axis=1)
        longest = max(float(size.max(initial=0.0)), 1e-12)
        power = int(np.floor(np.log10(longest)))
        self.exponent = 0 if -2 <= power <= 2 else power
        self.scale_name.set_text("|V|" + (" / 10" + str(power).translate(RAISED) if self.exponent else ""))
        self.gradient.set_extent((0, 1, 0, longest))
        self.scale.set(xlim=(0, 1), ylim=(0, longest))
        spacing = np.ptp(points, axis=0).max(initial=0.0) / max(1.0, len(points) ** 0.5 - 1) if len(points) else 0.0
        # lengths go with the square root, for a field is often strong in few places; the colour tells the magnitude
        arrows = field * (0.8 * spacing / np.sqrt(longest * np.maximum(size, 1e-12 * longest)))[:, None]
        if self.arrows is None or points.shape != self.spots.shape or not np.array_equal(points, self.spots):
            if self.arrows is not None:
                self.arrows.remove()
                self.moving = [pair for pair in self.moving if pair[1] is not self.arrows]
            self.spots = points
            self.arrows = self.arrows_axes.quiver(
                *points.T, *arrows.T, size / longest, angles="xy", scale_units="xy", scale=1, cmap=self.arrow_colours, clim=(0, 1),
                width=0.0045, headwidth=3.5, headlength=3.7, headaxislength=3.3, minlength=0.3,
            )  # fmt: skip
            self._move(self.arrows_axes, self.arrows)
        else:
            self.arrows.set_UVC(*arrows.T, size / longest)

    def _chart(self, left: float, width: float, title: str) -> Any:
        from matplotlib.ticker import MaxNLocator

        axes = self._axes(left, 62, width, 255, title)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("step", fontsize=13, color=INK, labelpad=3)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if self.total < 100_000 else f"{value / 1000:,g}k")
        self.charts.append(axes)
        return axes

    def _loss(self) -> None:
        self.charts: list[Any] = []
        axes = self.loss_axes = self._chart(80, 440 if self.modes is not None else 1385, "Loss")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        (self.losses,) = axes.plot([], [], color="#8cc4e6", linewidth=1.1, label="as logged")
        (self.mean_loss,) = axes.plot([], [], color="#004a75", linewidth=2.2, label="moving average")
        self._move(axes, axes.yaxis, self.losses, self.mean_loss)
        self._legend(axes, "upper right")

    def _legend(self, axes: Any, place: str) -> Any:
        handles = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
        legend = axes.legend(handles=handles, loc=place, fontsize=12, framealpha=0.85, edgecolor="none", borderpad=0.2)
        legend.set_zorder(5)
        self._move(axes, legend)
        return legend

    def _set_loss(self, steps: np.ndarray, values: np.ndarray) -> None:
        from matplotlib.ticker import LogLocator

        keep = np.isfinite(values) & (values > 0)
        steps, values = steps[keep], values[keep].astype(np.float64)
        self.losses.set_data(steps, values)
        window = max(1, len(values) // 20)
        sums = np.concatenate([[0.0], np.cumsum(values)])
        starts = np.maximum(0, np.arange(1, len(values) + 1) - window)
        self.mean_loss.set_data(steps, (sums[1:] - sums[starts]) / (np.arange(1, len(values) + 1) - starts))
        low, high = (float(values.min()) / 1.2, float(values.max()) * 1.2) if len(values) else (0.1, 1.0)
        self.loss_axes.set_ylim(low, high)
        decades = np.log10(high / low)
        self.loss_axes.yaxis.set_major_locator(
            LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.6 else range(1, 10))
        )

    def _shares(self, modes: int) -> None:
        axes = self.shares_axes = self._chart(603, 372, "Share of samples per mode")
        axes.yaxis.set_major_formatter(_percent)
        self._move(axes, axes.yaxis)
        colours = mode_colours(modes)
        few = modes <= len(MODES)
        drawn: dict[str, Any] = {"linewidth": 1.9, "marker": "o", "markersize": 2.2} if few else {"linewidth": 1.0}
        self.share_lines = [axes.plot([], [], color=colour, **drawn)[0] for colour in colours]
        weights = self.scene.weights
        self.most = 1.0 / modes if weights is None else float(np.max(weights))
        self._move(axes, *self.share_lines)
        if weights is not None:
            equal = bool(np.ptp(weights) < 1e-6)
            pairs = [(weights[0], INK)] if equal else list(zip(weights, colours, strict=True))
            style: dict[str, Any] = {"linewidth": 1.6 if few or equal else 0.7, "linestyle": (0, (5, 3)), "zorder": 3}
            lines = [axes.axhline(float(weight), color=colour, **style) for weight, colour in pairs]
            lines[0].set_label("target weight" if equal else "target weights")
            self._move(axes, *lines)
            self._legend(axes, "upper right")

    def _coverage(self) -> None:
        axes = self.coverage_axes = self._chart(1063, 402, "Coverage")
        axes.set_ylim(0, 1.45)  # room for the legend
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.yaxis.set_major_formatter(_percent)
        (self.covered,) = axes.plot([], [], color=BLUE, linewidth=2.2, marker="o", markersize=3.0, label=" ")
        (self.inside,) = axes.plot([], [], color=ORANGE, linewidth=2.2, marker="s", markersize=3.0, label=" ")
        self._move(axes, self.covered, self.inside)
        self.figures = self._legend(axes, "upper left")

    def _set_modes(self, history: Sequence[Reading]) -> None:
        modes = len(self.share_lines)
        rows = [reading for reading in history if reading.shares is not None and len(reading.shares) == modes]
        steps = np.array([reading.step for reading in rows], np.float64)
        shares = np.array([reading.shares for reading in rows], np.float64).reshape(-1, modes)
        for line, share in zip(self.share_lines, shares.T, strict=True):
            line.set_data(steps, share)
        self.shares_axes.set_ylim(0, min(1.3, max(2.2 * self.most, 1.3 * float(np.nanmax(shares, initial=0.0)))))
        weights = np.full(modes, 1.0 / modes) if self.scene.weights is None else np.asarray(self.scene.weights, np.float64)
        covered = (shares >= COVERED * weights).sum(axis=1)
        self.covered.set_data(steps, covered / modes)
        near = [(reading.step, reading.inside) for reading in history if reading.inside is not None]
        self.inside.set_data(*np.array(near, np.float64).reshape(-1, 2).T)
        texts = self.figures.get_texts()
        texts[0].set_text(f"modes covered: {covered[-1]} of {modes}" if len(covered) else "modes covered")
        texts[1].set_text(f"samples near a mode: {near[-1][1]:.0%}" if near else "samples near a mode")


def mode_colours(modes: int) -> list[Any]:
    """A colour for each mode: told apart by everybody for the first eight, else a scale."""
    from matplotlib import colormaps

    return list(MODES[:modes]) if modes <= len(MODES) else list(colormaps["viridis"](np.linspace(0, 0.9, modes)))


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.3g}%" if value <= 1 else ""


def draw(scene: Scene, frames: Sequence[Frame], path: Path, dpi: int = DPI) -> None:
    """Write a picture of the last of `frames` to `path` (PNG of 15 x 9 inches); the ones before give the curves of the modes."""
    picture = Picture(scene)
    picture.show(frames[-1], [Reading.of(frame) for frame in frames])
    picture.save(path, dpi)


def make_gif(pictures: Sequence[Path], path: Path) -> None:
    """Write the PNGs `pictures`, at most `GIF_FRAMES` of them at even distances and always the last, to `path` as a loop.

    One palette serves all frames, and a frame holds only what changed; where that is still more than `GIF_BYTES`, the loop is
    made smaller.
    """
    from PIL import Image

    chosen = [pictures[i] for i in sorted({round(i) for i in np.linspace(0, len(pictures) - 1, min(len(pictures), GIF_FRAMES))})]
    each = int(np.clip((GIF_SECONDS - GIF_HOLD) / max(1, len(chosen) - 1), 0.02, 0.25) * 100) * 10
    durations = [each] * (len(chosen) - 1) + [int(GIF_HOLD * 1000)]
    partial = path.with_name(path.name + ".partial")
    for width in (1200, 1000, 800, 600):

        def small(picture: Path, size: tuple[int, int] = (width, round(width * HEIGHT / WIDTH))) -> Image.Image:
            with Image.open(picture) as image:
                return image.convert("RGB").resize(size, Image.Resampling.BOX)

        some = [np.asarray(small(chosen[i])) for i in (0, len(chosen) // 2, -1)]
        colours = _colours(Image.fromarray(np.concatenate(some)))
        rounded = Image.new("P", (1, 1))
        rounded.putpalette((colours // 4 * 4).ravel().tolist())  # as Pillow rounds the pixels that it looks up
        indexed = [small(picture).quantize(palette=rounded, dither=Image.Dither.NONE) for picture in chosen]
        for image in indexed:
            image.putpalette(colours.ravel().tolist())
        first, *rest = indexed
        first.save(partial, format="gif", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
        if partial.stat().st_size < GIF_BYTES:
            break
    os.replace(partial, path)


def _colours(image: Any) -> np.ndarray:
    """At most 255 colours for `image`, so that one is left for "as before", [colours, 3]: the figure's own, exactly, and others."""
    figure = (*MODES, INK, SOFT, GRID, SAMPLE, ORANGE, "#ffffff")
    own = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in figure])
    return np.concatenate([own, np.array(image.quantize(255 - len(own)).getpalette()).reshape(-1, 3)])[:255]


# ------------------------------------------------------------------------------------------------- between the two processes


def pack(item: Scene | Frame | Reading | None) -> bytes:
    """`item` as a message: its length in eight bytes, then an npz archive; None says that the run ended well."""
    arrays: dict[str, Any] = {"kind": type(item).__name__}
    if item is not None:
        arrays |= {field.name: getattr(item, field.name) for field in fields(item) if getattr(item, field.name) is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return struct.pack("<Q", buffer.tell()) + buffer.getvalue()


def unpack(content: bytes) -> Scene | Frame | Reading | None:
    """What `pack` made a message of, without the length."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        values = {name: array if array.ndim else array.item() for name, array in archive.items()}
    kinds: dict[str, type[Scene] | type[Frame] | type[Reading]] = {"Scene": Scene, "Frame": Frame, "Reading": Reading}
    kind = kinds.get(values.pop("kind"))
    if kind is None:
        return None
    return kind(**{field.name: values.get(field.name) for field in fields(kind)})  # type: ignore[arg-type]


def messages(stream: BinaryIO) -> Iterator[Scene | Frame | Reading | None]:
    """All that was written to the other end of `stream`, until it is closed."""

    def read(size: int) -> bytes:
        content = b""
        while len(content) < size and (part := stream.read(size - len(content))):
            content += part
        return content

    while len(head := read(8)) == 8:
        (size,) = struct.unpack("<Q", head)
        if len(content := read(size)) < size:
            return
        yield unpack(content)


# -------------------------------------------------------------------------------------------------------- the training's side


class Dashboard:
    """Pictures of a run under `folder`: ``frames/step_00000100.png`` while it goes on, ``dashboard.gif`` and ``.png`` at its end.

    Args:
        folder: of the pictures. Frames that it holds already are those of an earlier part of the run, see `forget_after`.
        scene: what all frames share.
        live: show the newest picture in a window, too; None: where there is a display. Without one there are only the files.

    """

    def __init__(self, folder: Path, scene: Scene, live: bool | None = None) -> None:
        self.folder, self.frames = folder, folder / "frames"
        self.frames.mkdir(parents=True, exist_ok=True)
        self.scene, self.live = scene, window_wanted() if live is None else live
        self.waiting: deque[Frame | Reading] = deque()
        self.ready = threading.Condition()
        self.ending = self.finished = False
        self.reason = self.last_words = ""
        self.thread: threading.Thread | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def forget_after(self, step: int) -> None:
        """Remove the frames later than `step`, before the first `record`: a run that resumes at `step` draws them again.

        A run that starts anew in a folder that was used before forgets all: -1.
        """
        assert self.thread is None, "forget_after comes before the first record"
        stale = [path for path in saved_frames(self.frames) if step_of(path) > step]
        for path in [*stale, *self.frames.glob("*.partial")]:
            path.unlink()
        if stale:
            for name in ("dashboard.gif", "dashboard.png"):
                (self.folder / name).unlink(missing_ok=True)

    def record(self, frame: Frame) -> None:
        """Have `frame` drawn; returns at once. Its arrays are copied. Steps must increase.

        When `WAITING` pictures wait because drawing is slower than training, every second of them, counted from the newest,
        is dropped, so that memory stays bounded and what remains is spread evenly. The shares of all frames are kept.
        """
        assert not self.ending, "the dashboard is closed"
        kept = replace(
            frame,
            samples=np.array(thinned(frame.samples, SAMPLES), np.float32),
            points=np.array(frame.points, np.float32),
            field=np.array(frame.field, np.float32),
            loss=np.stack([np.array(thinned(values, LOSSES), np.float64) for values in frame.loss]),  # type: ignore[arg-type]
            shares=None if frame.shares is None else np.array(frame.shares, np.float64),
        )
        with self.ready:
            if self.reason:
                return
            self.waiting.append(kept)
            pictures = [i for i, item in enumerate(self.waiting) if isinstance(item, Frame)]
            if len(pictures) > WAITING:
                for i in pictures[-2::-2]:
                    dropped = self.waiting[i]
                    assert isinstance(dropped, Frame)
                    self.waiting[i] = Reading.of(dropped)
            self.ready.notify()
        if self.thread is None:
            self.thread = threading.Thread(target=self._work, name="dashboard", daemon=True)
            self.thread.start()

    def close(self) -> tuple[Path, Path]:
        """Wait for the pictures, then make the loop and the last picture; returns their paths.

        What could not be made is said in a sentence on stderr, not raised, and a worker that hangs is given up after `PATIENCE`.
        """
        gif, png = self.folder / "dashboard.gif", self.folder / "dashboard.png"
        if self.ending:
            return gif, png
        with self.ready:
            self.ending = True
            self.ready.notify()
        if self.thread is not None:
            self._wait(self.thread)
        try:
            pictures = saved_frames(self.frames)
            if pictures:
                make_gif(pictures, gif)
                if not self.finished and (self.thread is not None or not png.exists()):
                    shutil.copyfile(pictures[-1], png)
        except OSError as error:
            self.reason = self.reason or f"{error}"
        if self.reason:
            say(f"the dashboard's pictures are not complete: {self.reason}. Training was not affected; what was drawn is in {self.folder}")
        return gif, png

    def _wait(self, thread: threading.Thread) -> None:
        """Until `thread` ends, as long as there is progress: on a busy machine the worker, at the lowest priority, is slow."""
        drawn, since = -1, time.monotonic()
        while thread.is_alive():
            thread.join(0.1)
            now = len(saved_frames(self.frames))
            if now != drawn:
                drawn, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                self.reason = f"nothing was drawn for {PATIENCE:.0f} s"
                if self.worker is not None:
                    self.worker.kill()
                thread.join(5.0)
                return

    def _work(self) -> None:
        """Start the worker, send it what waits, and see it end; the thread's own work."""
        if hasattr(signal, "pthread_sigmask"):  # the worker inherits it: Ctrl-C is for the training process
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        reason = ""
        try:
            self.worker = start("draw", str(self.folder), "window" if self.live else "frames", stderr=subprocess.PIPE)
            listener = threading.Thread(target=self._listen, daemon=True)
            listener.start()
            with contextlib.suppress(OSError), self.worker.stdin as pipe:  # type: ignore[union-attr]  # a broken pipe: see its exit code
                pipe.write(pack(self.scene))
                while True:
                    with self.ready:
                        self.ready.wait_for(lambda: self.waiting or self.ending)
                        item = self.waiting.popleft() if self.waiting else None
                    pipe.write(pack(item))
                    pipe.flush()
                    if item is None:
                        break
            code = self.worker.wait()
            listener.join(1.0)
            if code < 0:
                reason = f"the process that draws was killed by signal {-code}"
            elif code > 0:
                reason = f"the process that draws failed ({self.last_words or f'exit code {code}'})"
        except OSError as error:
            reason = f"the process that draws could not be started ({error})"
        with self.ready:
            self.finished = not reason
            self.reason = self.reason or reason
            self.waiting.clear()

    def _listen(self) -> None:
        """Pass on what the worker says, and keep what it died of."""
        assert self.worker is not None
        assert self.worker.stderr is not None
        for line in io.TextIOWrapper(self.worker.stderr, errors="replace"):
            if line.startswith(SAYS):
                say(line[len(SAYS) :].strip())
            elif line.strip():
                self.last_words = line.strip()


SAYS = "fewstep: "


def say(sentence: str) -> None:
    """Say it on stderr, above the bar if there is one."""
    from tqdm import tqdm

    tqdm.write(SAYS + sentence, file=sys.stderr)


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `values`, at even distances."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).round().astype(int)]


def saved_frames(folder: Path) -> list[Path]:
    """The pictures in `folder`, by step."""
    return sorted(folder.glob("step_*.png"), key=step_of)


def step_of(path: Path) -> int:
    """The step in a frame's name."""
    return int(path.stem.removeprefix("step_"))


def start(*arguments: str, stderr: Any) -> "subprocess.Popen[bytes]":
    """Run this module as a program of its own, on one thread, with this process's import path and a pipe to its standard input."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "fewstep.viz.dashboard", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr,
        env={**os.environ, **threads, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        creationflags=getattr(subprocess, "IDLE_PRIORITY_CLASS", 0),
    )  # fmt: skip


def window_wanted() -> bool:
    """Whether a display is there, and matplotlib was not told (MPLBACKEND) to leave it alone."""
    display = sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return display and interactive()


def interactive() -> bool:
    """Whether MPLBACKEND leaves room for a window."""
    backend = os.environ.get("MPLBACKEND", "").lower()
    return backend not in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template") and "inline" not in backend


# ----------------------------------------------------------------------------------------------------------- the worker's side


class Window:
    """A process of its own that shows the newest frame: a toolkit that aborts or a display that hangs costs no frame."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self.process: subprocess.Popen[bytes] | None = start("show", str(folder), stderr=self.errors)

    def check(self) -> None:
        """Say so, once, if it could not be opened."""
        if self.process is None or self.process.poll() is None:
            return
        if self.process.returncode != 0:
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1].strip() if lines else f"exit code {self.process.returncode}"
            sys.stderr.write(f"{SAYS}no window for the dashboard ({reason}); its pictures are saved in {self.folder}\n")
            sys.stderr.flush()
        self.process = None

    def close(self) -> None:
        """The run ended: so does the window, even one that is still being opened."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.check()


def work(folder: Path, live: bool, stream: BinaryIO) -> bool:
    """Draw the frames that `stream` brings, into ``folder/frames``; whether the run said that it ended."""
    import matplotlib as mpl

    mpl.rcdefaults()  # the same picture whatever the user's matplotlibrc says
    frames = folder / "frames"
    window = Window(folder) if live else None
    incoming = messages(stream)
    scene = next(incoming, None)
    if not isinstance(scene, Scene):
        return False
    picture, history = Picture(scene), earlier(frames)
    kept = len(history)  # of the readings, so many are in the files
    last = False
    for item in incoming:
        if isinstance(item, Frame):
            history.append(Reading.of(item))
            picture.show(item, history)
            picture.save(frames / f"step_{item.step:08d}.png", readings=history[kept:])
            kept, last = len(history), True
        elif isinstance(item, Reading):
            history.append(item)
        else:
            if last:
                picture.save(folder / "dashboard.png", SHARP)
            if window is not None:
                window.close()
            return True
        if window is not None:
            window.check()
    return False


def earlier(frames: Path) -> list[Reading]:
    """The readings in the pictures that an earlier part of the run left."""
    from PIL import Image

    found = []
    for path in saved_frames(frames):
        with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
            for step, shares, inside in json.loads(image.info.get("readings", "[]")):
                found.append(Reading(step, None if shares is None else np.array(shares, np.float64), inside))
    return found


def show(folder: Path) -> None:
    """Show the newest frame in a window until the user closes it or standard input ends.

    Raises:
        SystemExit: no window can be opened.

    """
    if not interactive():
        os.environ.pop("MPLBACKEND")
    import matplotlib.pyplot as plt

    plt.rcParams["toolbar"] = "None"
    figure = plt.figure(figsize=(WIDTH * 0.8 / DPI, HEIGHT * 0.8 / DPI), dpi=DPI, facecolor="white")
    if figure.canvas.required_interactive_framework is None:
        raise SystemExit("no display can be reached, or matplotlib finds neither Qt, GTK, Tk nor wx")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    image = axes.imshow(np.full((HEIGHT, WIDTH, 3), 255, np.uint8), interpolation="antialiased")
    if figure.canvas.manager is not None:
        figure.canvas.manager.set_window_title("fewstep")
    plt.show(block=False)
    ended = threading.Event()

    def wait() -> None:
        while os.read(0, 1024):
            pass
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    shown = None
    with contextlib.suppress(Exception):  # it was open: whatever a toolkit raises when a window is closed is no news
        while not ended.is_set() and plt.fignum_exists(figure.number):
            pictures = saved_frames(folder / "frames")
            if pictures and pictures[-1] != shown:
                shown = pictures[-1]
                image.set_data(plt.imread(shown))
                figure.canvas.draw_idle()
            figure.canvas.start_event_loop(0.1)


def main(task: str, folder: Path, live: bool) -> int:
    """The worker, or its window."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process
    if hasattr(os, "nice"):
        os.nice(19)
    if task == "show":
        show(folder)
        return 0
    return 0 if work(folder, live, open(0, "rb", buffering=0, closefd=False)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[-1] == "window"))
