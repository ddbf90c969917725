"""The frames on disk, the readings stored in them, and the animated GIF made of them at the end of a run."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.files import replace_file, step_pictures
from fewstep.pil import opened
from fewstep.text import parse_json
from fewstep.viz.colours import COLOURS, SAMPLE
from fewstep.viz.dashboard.scene import GRID, HEIGHT, INK, SOFT, WIDTH, Reading

# largest number of frames, bytes and seconds of a GIF, and how many of these seconds the last frame is shown
GIF_FRAMES, GIF_BYTES, GIF_SECONDS, GIF_HOLD = 60, 4_000_000, 8.0, 1.5


def earlier(frames: Path) -> list[Reading]:
    """Return the readings stored in the frames that an earlier part of the run left in the folder `frames`."""
    found = []
    for path in step_pictures(frames):
        with contextlib.suppress(OSError, SyntaxError, ValueError), opened(path) as image:
            for step, shares, inside in parse_json(image.info.get("readings", "[]")):
                found.append(Reading(step, None if shares is None else np.array(shares, np.float64), inside))
    return found


def make_gif(pictures: Sequence[Path], path: Path) -> None:
    """Write the PNG files `pictures` to `path` as an animated GIF that loops.

    At most `GIF_FRAMES` evenly spaced pictures are used, always including the last. All frames share one palette, and each holds only the
    pixels that changed; if the file is still larger than `GIF_BYTES`, the picture is made smaller.
    """
    from PIL import Image

    chosen = [pictures[i] for i in sorted({round(i) for i in np.linspace(0, len(pictures) - 1, min(len(pictures), GIF_FRAMES))})]
    each = int(np.clip((GIF_SECONDS - GIF_HOLD) / max(1, len(chosen) - 1), 0.02, 0.25) * 100) * 10
    durations = [each] * (len(chosen) - 1) + [int(GIF_HOLD * 1000)]
    for width in (1200, 1000, 800, 600):

        def small(picture: Path, size: tuple[int, int] = (width, round(width * HEIGHT / WIDTH))) -> Image.Image:
            with opened(picture) as image:
                return image.convert("RGB").resize(size, Image.Resampling.BOX)

        some = [np.asarray(small(chosen[i])) for i in (0, len(chosen) // 2, -1)]
        colours = _colours(Image.fromarray(np.concatenate(some)))
        rounded = Image.new("P", (1, 1))
        rounded.putpalette((colours // 4 * 4).ravel().tolist())  # Pillow rounds pixels in this way when it looks up the nearest colour
        indexed = [small(picture).quantize(palette=rounded, dither=Image.Dither.NONE) for picture in chosen]
        for image in indexed:
            image.putpalette(colours.ravel().tolist())
        first, *rest = indexed
        content = io.BytesIO()
        first.save(content, format="gif", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
        if content.tell() < GIF_BYTES:
            break
    replace_file(path, content.getvalue())


def _colours(image: Any) -> np.ndarray:
    """Return a palette [colours, 3] for `image`: the figure's own colours exactly, and others.

    It has at most 255 colours, which leaves one of the GIF's 256 to mark unchanged pixels.
    """
    figure = (*COLOURS, INK, SOFT, GRID, SAMPLE, "#ffffff")
    own = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in figure])
    return np.concatenate([own, np.array(image.quantize(255 - len(own)).getpalette()).reshape(-1, 3)])[:255]
