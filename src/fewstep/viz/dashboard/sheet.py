"""The figure as a sheet ruled in pixels, on which what never changes is drawn once, and what moves is drawn over it."""

from typing import Any

import numpy as np

from fewstep.viz.colours import COLOURS
from fewstep.viz.dashboard.scene import DPI, HEIGHT, INK, SOFT, WIDTH


class Sheet:
    """An empty figure.

    Attributes:
        figure, canvas: of matplotlib.
        moving: axes and artist, in the order of drawing, of what is not in the background.
        background: what stays, as drawn by the last `show`; None where it has changed.

    """

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.moving: list[tuple[Any, Any]] = []
        self.background: Any = None

    def place(self, left: float, bottom: float, width: float, height: float) -> Any:
        """Bare axes whose frame lies at these pixels."""
        return self.figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))

    def axes(self, left: float, bottom: float, width: float, height: float, title: str) -> Any:
        """Axes with a title and with ticks, whose frame lies at these pixels."""
        axes = self.place(left, bottom, width, height)
        axes.set_title(title, loc="left", fontsize=15, fontweight="bold", color=INK, pad=9)
        axes.tick_params(labelsize=12, colors=INK, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_color(SOFT)
        return axes

    def move(self, axes: Any, *artists: Any) -> None:
        """Leave `artists` out of the background: they change from frame to frame."""
        for artist in artists:
            artist.set_animated(True)
            self.moving.append((axes, artist))

    def remove(self, artist: Any) -> None:
        """Take away an artist that moves."""
        artist.remove()
        self.moving = [pair for pair in self.moving if pair[1] is not artist]

    def show(self) -> None:
        """Draw what moves over what stays."""
        if self.background is None:
            self.canvas.draw()
            self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        self.canvas.restore_region(self.background)
        for axes, artist in self.moving:
            axes.draw_artist(artist)


def mode_colours(modes: int) -> list[Any]:
    """A colour for each mode: told apart by everybody for the first eight, else a scale."""
    from matplotlib import colormaps

    return list(COLOURS[:modes]) if modes <= len(COLOURS) else list(colormaps["viridis"](np.linspace(0, 0.9, modes)))
