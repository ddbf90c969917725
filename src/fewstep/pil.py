"""Pillow's images: the one place where they are opened, samples as such images, and a row of them as a PNG."""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

from fewstep.errors import UserError, first_line
from fewstep.limits import IMAGE_BYTES, TooLarge, image_pixels, in_units

if TYPE_CHECKING:
    from torch import Tensor

# what is opened by its content; others, such as EPS, Pillow hands to a program of its own
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
TILE = (322, 323)  # TIFF's numbers of a tile's width and height, which may be larger than the image


@contextmanager
def opened(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[Any]:
    """The `PIL.Image.Image` in `source`, of which only the header has been read.

    Raises TooLarge, saying what the header claims, for an image of more than `fewstep.limits.image_pixels` or a file of more than
    `IMAGE_BYTES`; and whatever Pillow raises for what is no image of `FORMATS`.
    """
    from PIL import Image

    if isinstance(source, str | os.PathLike) and (size := os.stat(source).st_size) > IMAGE_BYTES:
        raise TooLarge(f"a file of {in_units(size)}, where {in_units(IMAGE_BYTES)} are allowed")
    most = image_pixels()
    with open(source, "rb") if isinstance(source, str | os.PathLike) else nullcontext(source) as file:
        try:
            image = _identified(file)
        except Image.DecompressionBombError as error:  # of a first frame that is larger than the image
            raise TooLarge(f"{first_line(error)}, where {most:,} are allowed") from None
        with image:
            for width, height in (image.size, _tile(image)):
                if width * height > most:
                    raise TooLarge(f"{width} x {height} pixels, where {most:,} are allowed")
            yield image


def _identified(file: IO[bytes]) -> Any:
    """What `PIL.Image.open` makes of `file`, without the warning that it would give of sizes that are allowed here."""
    from PIL import Image, UnidentifiedImageError

    prefix = file.read(16)
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(prefix) is not True:  # a text says why not
            continue
        file.seek(0)
        try:
            return factory(file, getattr(file, "name", ""))
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Pillow has it: of another format
            continue
    raise UnidentifiedImageError("cannot identify image file")


def _tile(image: Any) -> tuple[int, int]:
    """Width and height of the tiles that a TIFF is made of; 0 for others."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(number, 0) for number in TILE)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow knows."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_pil(samples: "Tensor") -> list[Any]:
    """One `PIL.Image.Image` for each of `samples` [N, C, H, W] in [-1, 1], of one channel or three. Raises UserError for points."""
    from PIL import Image

    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise UserError(f"samples have shape {list(samples.shape)}; pictures are [N, C, H, W] of 1 or 3 channels")
    pixels = ((samples.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def row_png(images: Sequence[Any]) -> bytes:
    """A PNG of `images` of one size side by side, enlarged without smoothing to about 64 pixels."""
    from PIL import Image

    scale = max(1, 64 // max(images[0].size))
    width, height = (side * scale for side in images[0].size)
    row = Image.new(images[0].mode, (width * len(images), height))
    for place, image in enumerate(images):
        row.paste(image.resize((width, height), Image.Resampling.NEAREST), (place * width, 0))
    buffer = BytesIO()
    row.save(buffer, format="png")
    return buffer.getvalue()
