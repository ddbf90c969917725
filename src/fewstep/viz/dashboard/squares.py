"""The upper row of the dashboard, three square plots of the plane: reference density, target with samples, and how samples would move.

Symbols: density ``p``, target ``p^gamma``, field ``V``.
"""

from typing import Any

import numpy as np

from fewstep.viz.colours import COLOURS, SAMPLE
from fewstep.viz.dashboard.scene import INK, Scene
from fewstep.viz.dashboard.sheet import Sheet, mode_colours

TARGET, TARGET_POWER = "Target  $p$  and generated samples", "Target  $p^{\\gamma}$  and generated samples"
FIELD, NO_FIELD = "How samples would move  $V$", "Generated samples"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw_reference(sheet: Sheet, scene: Scene, modes: np.ndarray | None) -> None:
    """Draw the density ``p``, and the number of each mode beside it if there are at most eight `modes` [K, 2]."""
    axes = _square(sheet, scene, 0, "Reference density  $p$")
    _heat(axes, scene, scene.reference)
    if modes is not None and len(modes) <= len(COLOURS):
        span = scene.high - scene.low
        middle = modes.mean(axis=0)
        for k, (mode, colour) in enumerate(zip(modes, mode_colours(len(modes)), strict=True)):
            away = mode - middle  # the number is placed on the mode's outer side
            distance = float(np.linalg.norm(away))
            x, y = mode + 0.075 * span * (away / distance if distance > 1e-6 * span else np.array([0.0, 1.0]))
            axes.text(x, y, str(k + 1), color=colour, fontsize=13, fontweight="bold", ha="center", va="center")


class Target:
    """The plot of the target ``p^gamma`` with the samples drawn over it; the target is ``p`` for a method without a gamma."""

    def __init__(self, sheet: Sheet, scene: Scene) -> None:
        self.sheet, self.scene = sheet, scene
        self.axes = axes = _square(sheet, scene, 1, TARGET_POWER)
        _heat(axes, scene, scene.target)
        (self.samples,) = axes.plot([], [], "o", markersize=3.4, color=SAMPLE, markeredgecolor="white", markeredgewidth=0.3)
        style = {"fontsize": 12, "color": INK, "transform": axes.transAxes, "va": "bottom", "ha": "right"}
        self.outside = axes.text(0.985, 0.015, "", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}, **style)
        sheet.move(axes, self.samples)
        grid = np.linspace(scene.low, scene.high, len(scene.target))
        peak = float(np.nan_to_num(scene.target).max())
        if peak > 0:  # contour lines above the samples show the target where samples cover it
            contour = axes.contour(grid, grid, scene.target, levels=[0.1 * peak, 0.6 * peak], colors=INK, linewidths=0.9, zorder=3)
            sheet.move(axes, contour)
        sheet.move(axes, self.outside)

    def show(self, samples: np.ndarray, gamma: float) -> None:
        """Draw the finite `samples` [n, 2], and the number of samples outside the plot's limits; `gamma` is NaN for a method without."""
        self.sheet.entitle(self.axes, TARGET_POWER if np.isfinite(gamma) else TARGET)
        self.samples.set_data(*samples.T)
        beyond = int(((samples < self.scene.low) | (samples > self.scene.high)).any(axis=1).sum())
        self.outside.set_text(f"{beyond:,} of {len(samples):,} outside" if beyond else "")


class Field:
    """The plot of the field ``V`` as arrows with a colour bar, and the samples faintly under them; of the samples alone without a field."""

    def __init__(self, sheet: Sheet, scene: Scene) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.ticker import MaxNLocator

        self.sheet = sheet
        self.axes = _square(sheet, scene, 2, FIELD)
        (self.samples,) = self.axes.plot([], [], "o", markersize=2.6, color="#c4c4c4", markeredgewidth=0)
        sheet.move(self.axes, self.samples)
        self.arrows: Any = None
        self.spots = np.empty((0, 2))
        self.colours = LinearSegmentedColormap.from_list("drift", colormaps["plasma"](np.linspace(0.0, 0.82, 128)))
        self.scale = sheet.axes(1423, 397, 16, 400, "")
        self.scale_name = self.scale.text(1.0, 1.025, "", fontsize=14, color=INK, ha="center", transform=self.scale.transAxes)
        self.exponent = 0
        self.gradient = self.scale.imshow(
            np.linspace(0, 1, 128)[:, None], origin="lower", aspect="auto", extent=(0, 1, 0, 1), cmap=self.colours
        )
        self.scale.set_xticks([])
        self.scale.yaxis.tick_right()
        self.scale.yaxis.set_major_locator(MaxNLocator(5))
        self.scale.yaxis.set_major_formatter(lambda value, _: f"{value / 10.0**self.exponent:.3g}")
        sheet.move(self.scale, self.scale.yaxis, self.scale_name)

    def show(self, points: np.ndarray, field: np.ndarray, samples: np.ndarray) -> None:
        """Draw the values `field` [m, 2] at `points` [m, 2], where both are finite, and the finite `samples` [n, 2]."""
        self.samples.set_data(*samples.T)
        self.sheet.entitle(self.axes, FIELD if len(points) else NO_FIELD)
        for part in (self.scale, self.scale.yaxis, self.scale_name):
            part.set_visible(len(points) > 0)
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
        # an arrow's length grows with the root of the magnitude, as a field is often strong in few places; its colour shows the magnitude
        arrows = field * (0.8 * spacing / np.sqrt(longest * np.maximum(size, 1e-12 * longest)))[:, None]
        if self.arrows is None or points.shape != self.spots.shape or not np.array_equal(points, self.spots):
            if self.arrows is not None:
                self.sheet.remove(self.arrows)
            self.spots = points
            self.arrows = self.axes.quiver(
                *points.T, *arrows.T, size / longest, angles="xy", scale_units="xy", scale=1, cmap=self.colours, clim=(0, 1),
                width=0.0045, headwidth=3.5, headlength=3.7, headaxislength=3.3, minlength=0.3,
            )  # fmt: skip
            self.sheet.move(self.axes, self.arrows)
        else:
            self.arrows.set_UVC(*arrows.T, size / longest)


def _square(sheet: Sheet, scene: Scene, column: int, title: str) -> Any:
    from matplotlib.ticker import MaxNLocator

    axes = sheet.axes(55 + 478 * column, 397, 400, 400, title)
    axes.set(xlim=(scene.low, scene.high), ylim=(scene.low, scene.high), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    return axes


def _heat(axes: Any, scene: Scene, density: np.ndarray) -> None:
    low, high = scene.low, scene.high
    half = (high - low) / max(1, len(density) - 1) / 2  # half a pixel: grid points are pixel centres
    extent = (low - half, high + half, low - half, high + half)
    values = np.nan_to_num(np.asarray(density, np.float64))
    axes.imshow(values, origin="lower", extent=extent, cmap="Blues", vmin=0, vmax=max(values.max(), 1e-30), interpolation="bilinear")
    axes.set(xlim=(low, high), ylim=(low, high))
