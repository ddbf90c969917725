"""The lower row of the dashboard, curves over the steps: the loss, each mode's share of the samples, and the share of modes covered."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fewstep.viz.colours import BLUE, COLOURS, RED
from fewstep.viz.dashboard.scene import GRID, INK, Reading
from fewstep.viz.dashboard.sheet import Sheet, mode_colours

# a mode counts as covered if the share of samples near it is at least this times its target weight (as in fewstep.metrics.modes, which
# cannot be imported here because it needs torch)
COVERED = 0.2


class Loss:
    """The chart of the loss as logged and its moving average; `wide` fills the row, where there are no other charts."""

    def __init__(self, sheet: Sheet, wide: bool) -> None:
        axes = self.axes = _chart(sheet, 80, 1385 if wide else 440, "Loss")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        (self.values,) = axes.plot([], [], color="#8cc4e6", linewidth=1.1, label="as logged")
        (self.mean,) = axes.plot([], [], color="#004a75", linewidth=2.2, label="moving average")
        sheet.move(axes, axes.yaxis, self.values, self.mean)
        _legend(sheet, axes, "upper right")

    def show(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Draw the loss `values` [n] at `steps` [n]; values that are not finite and positive are left out."""
        from matplotlib.ticker import LogLocator

        keep = np.isfinite(values) & (values > 0)
        steps, values = steps[keep], values[keep].astype(np.float64)
        self.values.set_data(steps, values)
        window = max(1, len(values) // 20)
        sums = np.concatenate([[0.0], np.cumsum(values)])
        starts = np.maximum(0, np.arange(1, len(values) + 1) - window)
        self.mean.set_data(steps, (sums[1:] - sums[starts]) / (np.arange(1, len(values) + 1) - starts))
        low, high = (float(values.min()) / 1.2, float(values.max()) * 1.2) if len(values) else (0.1, 1.0)
        self.axes.set_ylim(low, high)
        decades = np.log10(high / low)
        self.axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.6 else range(1, 10)))


class Shares:
    """The chart of each mode's share of the samples, for `modes` modes, with the modes' target `weights` [modes] if they are known."""

    def __init__(self, sheet: Sheet, modes: int, weights: np.ndarray | None) -> None:
        axes = self.axes = _chart(sheet, 603, 372, "Share of samples per mode")
        axes.yaxis.set_major_formatter(_percent)
        sheet.move(axes, axes.yaxis)
        colours = mode_colours(modes)
        few = modes <= len(COLOURS)
        drawn: dict[str, Any] = {"linewidth": 1.9, "marker": "o", "markersize": 2.2} if few else {"linewidth": 1.0}
        self.lines = [axes.plot([], [], color=colour, **drawn)[0] for colour in colours]
        self.most = 1.0 / modes if weights is None else float(np.max(weights))
        sheet.move(axes, *self.lines)
        if weights is not None:
            equal = bool(np.ptp(weights) < 1e-6)
            pairs = [(weights[0], INK)] if equal else list(zip(weights, colours, strict=True))
            style: dict[str, Any] = {"linewidth": 1.6 if few or equal else 0.7, "linestyle": (0, (5, 3)), "zorder": 3}
            lines = [axes.axhline(float(weight), color=colour, **style) for weight, colour in pairs]
            lines[0].set_label("target weight" if equal else "target weights")
            sheet.move(axes, *lines)
            _legend(sheet, axes, "upper right")

    def show(self, history: Sequence[Reading]) -> None:
        """Draw the shares in all readings of `history`."""
        steps, shares = _shares(history, len(self.lines))
        for line, share in zip(self.lines, shares.T, strict=True):
            line.set_data(steps, share)
        self.axes.set_ylim(0, min(1.3, max(2.2 * self.most, 1.3 * float(np.nanmax(shares, initial=0.0)))))


class Coverage:
    """The chart of the share of `modes` modes that are covered, and of the share of samples that are near any mode.

    `weights` [modes] are the modes' weights in the target; None for equal weights.
    """

    def __init__(self, sheet: Sheet, modes: int, weights: np.ndarray | None) -> None:
        self.weights = np.full(modes, 1.0 / modes) if weights is None else np.asarray(weights, np.float64)
        axes = self.axes = _chart(sheet, 1063, 402, "Coverage")
        axes.set_ylim(0, 1.45)  # room for the legend
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.yaxis.set_major_formatter(_percent)
        (self.covered,) = axes.plot([], [], color=BLUE, linewidth=2.2, marker="o", markersize=3.0, label=" ")
        (self.inside,) = axes.plot([], [], color=RED, linewidth=2.2, marker="s", markersize=3.0, label=" ")
        sheet.move(axes, self.covered, self.inside)
        self.legend = _legend(sheet, axes, "upper left")

    def show(self, history: Sequence[Reading]) -> None:
        """Draw the two shares in all readings of `history`, with their last values in the legend."""
        modes = len(self.weights)
        steps, shares = _shares(history, modes)
        covered = (shares >= COVERED * self.weights).sum(axis=1)
        self.covered.set_data(steps, covered / modes)
        near = [(reading.step, reading.inside) for reading in history if reading.inside is not None]
        self.inside.set_data(*np.array(near, np.float64).reshape(-1, 2).T)
        texts = self.legend.get_texts()
        texts[0].set_text(f"modes covered: {covered[-1]} of {modes}" if len(covered) else "modes covered")
        texts[1].set_text(f"samples near a mode: {near[-1][1]:.0%}" if near else "samples near a mode")


def _shares(history: Sequence[Reading], modes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps [n] and shares [n, modes] of those readings in `history` that have shares of `modes` modes."""
    rows = [reading for reading in history if reading.shares is not None and len(reading.shares) == modes]
    steps = np.array([reading.step for reading in rows], np.float64)
    return steps, np.array([reading.shares for reading in rows], np.float64).reshape(-1, modes)


def _chart(sheet: Sheet, left: float, width: float, title: str) -> Any:
    from matplotlib.ticker import MaxNLocator

    axes = sheet.axes(left, 62, width, 255, title)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", fontsize=13, color=INK, labelpad=3)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if axes.get_xlim()[1] < 100_000 else f"{value / 1000:,g}k")
    return axes


def _legend(sheet: Sheet, axes: Any, place: str) -> Any:
    handles = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    legend = axes.legend(handles=handles, loc=place, fontsize=12, framealpha=0.85, edgecolor="none", borderpad=0.2)
    legend.set_zorder(5)
    sheet.move(axes, legend)
    return legend


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.3g}%" if value <= 1 else ""
