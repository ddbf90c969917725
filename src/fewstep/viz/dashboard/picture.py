"""A frame of the dashboard: a header, three square plots of the plane, and below them the curves over the steps."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewstep.files import replace_file
from fewstep.viz.colours import BLUE
from fewstep.viz.dashboard.charts import Coverage, Loss, Shares
from fewstep.viz.dashboard.scene import DPI, GRID, INK, Frame, Reading, Scene
from fewstep.viz.dashboard.sheet import Sheet
from fewstep.viz.dashboard.squares import Field, Target, draw_reference


class Picture:
    """The figure of a scene. Its constant parts are drawn once; `show` draws a frame over them, and `save` writes a PNG file."""

    def __init__(self, scene: Scene) -> None:
        modes = None if scene.modes is None or not len(scene.modes) else np.asarray(scene.modes, np.float64)
        self.sheet = Sheet()
        self.header = Header(self.sheet, scene.title)
        draw_reference(self.sheet, scene, modes)
        self.target = Target(self.sheet, scene)
        self.field = Field(self.sheet, scene)
        self.loss = Loss(self.sheet, wide=modes is None)
        self.shares = None if modes is None else Shares(self.sheet, len(modes), scene.weights)
        self.coverage = None if modes is None else Coverage(self.sheet, len(modes), scene.weights)
        self.total = 0

    def show(self, frame: Frame, history: Sequence[Reading]) -> None:
        """Draw `frame`; `history` holds all readings so far, the last of which is that of `frame`."""
        if frame.total != self.total:
            self.total, self.sheet.background = frame.total, None
            for chart in (self.loss, self.shares, self.coverage):
                if chart is not None:
                    chart.axes.set_xlim(0, max(1, frame.total))
        samples = frame.samples[np.isfinite(frame.samples).all(axis=1)]
        self.header.show(frame)
        self.target.show(samples, frame.gamma)
        self.field.show(frame.points, frame.field, samples)
        self.loss.show(*frame.loss)
        for chart in (self.shares, self.coverage):
            if chart is not None:
                chart.show(history)
        self.sheet.show()

    def save(self, path: Path, dpi: int = DPI, readings: Sequence[Reading] = ()) -> None:
        """Write the frame that `show` drew to `path` (PNG), completely or not at all; at the default `dpi`, `readings` are stored in it."""
        from PIL import Image, PngImagePlugin

        content = io.BytesIO()
        if dpi == DPI:
            text = PngImagePlugin.PngInfo()
            rows = [(r.step, None if r.shares is None else np.asarray(r.shares, np.float64).tolist(), r.inside) for r in readings]
            text.add_text("readings", json.dumps(rows))
            pixels = np.asarray(self.sheet.canvas.buffer_rgba())[..., :3]
            Image.fromarray(np.ascontiguousarray(pixels)).save(content, format="png", compress_level=1, pnginfo=text)
        else:
            self.sheet.figure.savefig(content, format="png", dpi=dpi)
            self.sheet.background = None
        replace_file(path, content.getvalue())


class Header:
    """The header of the picture: the run's title, the step with gamma and temperature at that step, and a progress bar."""

    def __init__(self, sheet: Sheet, title: str) -> None:
        axes = sheet.place(55, 843, 1415, 48)
        axes.set(xlim=(0, 1), ylim=(0, 48))
        axes.set_axis_off()
        size = min(21.0, 21.0 * 50 / max(1, len(title)))
        axes.text(0, 24, title, fontsize=size, fontweight="bold", color=INK, va="center", parse_math=False)
        self.state = axes.text(1, 24, "", fontsize=16, color=INK, va="center", ha="right")
        axes.barh(2, 1, 4, color=GRID)
        (self.bar,) = axes.barh(2, 0, 4, color=BLUE)
        sheet.move(axes, self.state, self.bar)

    def show(self, frame: Frame) -> None:
        """Draw the step, the settings and the progress of `frame`."""
        settings = {"γ": frame.gamma, "T": frame.temperature}
        known = "".join(f"     {name} = {value:.3g}" for name, value in settings.items() if np.isfinite(value))
        self.state.set_text(f"step {frame.step:,} of {frame.total:,}{known}")
        self.bar.set_width(min(1.0, frame.step / max(1, frame.total)))
