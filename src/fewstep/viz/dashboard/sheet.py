"""A matplotlib figure laid out in pixels, whose constant parts are drawn once as a background, and whose moving parts are drawn over it."""

from typing import Any

import numpy as np

from fewstep.viz.colours import COLOURS
from fewstep.viz.dashboard.scene import DPI, HEIGHT, INK, SOFT, WIDTH


class Sheet:
    """A figure, empty at first.

    Attributes:
        figure, canvas: the figure and canvas of matplotlib.
        moving: (axes, artist) of all artists that are not in the background, in the order of drawing.
        background: the pixels of the constant parts; None where they must be drawn again.

    """

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.moving: list[tuple[Any, Any]] = []
        self.background: Any = None

    def place(self, left: float, bottom: float, width: float, height: float) -> Any:
        """Return bare axes whose frame has this position and size in pixels."""
        return self.figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))

    def axes(self, left: float, bottom: float, width: float, height: float, title: str) -> Any:
        """Return axes with a title and ticks, whose frame has this position and size in pixels."""
        axes = self.place(left, bottom, width, height)
        axes.set_title(title, loc="left", fontsize=15, fontweight="bold", color=INK, pad=9)
        axes.tick_params(labelsize=12, colors=INK, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_color(SOFT)
        return axes

    def entitle(self, axes: Any, title: str) -> None:
        """Give `axes` another title; what surrounds it in the background is drawn anew."""
        if axes.get_title(loc="left") != title:
            axes.set_title(title, loc="left", fontsize=15, fontweight="bold", color=INK, pad=9)
            self.background = None

    def move(self, axes: Any, *artists: Any) -> None:
        """Leave `artists` of `axes` out of the background, because they change from frame to frame."""
        for artist in artists:
            artist.set_animated(True)
            self.moving.append((axes, artist))

    def remove(self, artist: Any) -> None:
        """Remove a moving artist from the figure."""
        artist.remove()
        self.moving = [pair for pair in self.moving if pair[1] is not artist]

    def show(self) -> None:
        """Draw the moving artists over the background."""
        if self.background is None:
            self.canvas.draw()
            self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        self.canvas.restore_region(self.background)
        for axes, artist in self.moving:
            axes.draw_artist(artist)


def mode_colours(modes: int) -> list[Any]:
    """Return a colour for each of `modes` modes: for up to eight those of `fewstep.viz.colours`, for more a continuous colour scale."""
    from matplotlib import colormaps

    return list(COLOURS[:modes]) if modes <= len(COLOURS) else list(colormaps["viridis"](np.linspace(0, 0.9, modes)))
