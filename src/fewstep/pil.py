"""Work with Pillow: open image files within limits, turn samples into Pillow images, and join images into a PNG."""

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

# formats that are opened, recognized by content; for others, such as EPS, Pillow starts external programs
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
TILE = (322, 323)  # TIFF tags of a tile's width and height, which may be larger than the image


@contextmanager
def opened(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[Any]:
    """Open the `PIL.Image.Image` in `source`, reading only its header, and close it when the block ends.

    Raises TooLarge, with the size that the header claims, for an image of more than `fewstep.limits.image_pixels` or a file of more than
    `IMAGE_BYTES`; and Pillow's own exceptions where `source` is not an image in one of the `FORMATS`.
    """
    from PIL import Image

    if isinstance(source, str | os.PathLike) and (size := os.stat(source).st_size) > IMAGE_BYTES:
        raise TooLarge(f"a file of {in_units(size)}, where {in_units(IMAGE_BYTES)} are allowed")
    most = image_pixels()
    with open(source, "rb") if isinstance(source, str | os.PathLike) else nullcontext(source) as file:
        try:
            image = _identified(file)
        except Image.DecompressionBombError as error:  # for a first frame that is larger than the image
            raise TooLarge(f"{first_line(error)}, where {most:,} are allowed") from None
        with image:
            for width, height in (image.size, _tile(image)):
                if width * height > most:
                    raise TooLarge(f"{width} x {height} pixels, where {most:,} are allowed")
            yield image


def _identified(file: IO[bytes]) -> Any:
    """Do as `PIL.Image.open` on `file`, but only for `FORMATS`, and without Pillow's warning about sizes that are allowed here."""
    from PIL import Image, UnidentifiedImageError

    prefix = file.read(16)
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(prefix) is not True:  # accept may also return a text that says why the format does not fit
            continue
        file.seek(0)
        try:
            return factory(file, getattr(file, "name", ""))
        except (SyntaxError, IndexError, TypeError, struct.error):  # as in Pillow itself, the file is of another format
            continue
    raise UnidentifiedImageError("cannot identify image file")


def _tile(image: Any) -> tuple[int, int]:
    """Return the width and height of the tiles of a TIFF image; (0, 0) for images without tiles."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(number, 0) for number in TILE)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that the installed version of Pillow can read."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_pil(samples: "Tensor") -> list[Any]:
    """Return a `PIL.Image.Image` for each of `samples` [N, C, H, W] in [-1, 1], C being 1 or 3. Raises UserError for other shapes."""
    from PIL import Image

    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise UserError(f"samples have shape {list(samples.shape)}; pictures are [N, C, H, W] of 1 or 3 channels")
    pixels = ((samples.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def row_png(images: Sequence[Any]) -> bytes:
    """Return a PNG of `images`, all of one size, side by side; small ones are enlarged without smoothing to at most 64 pixels a side."""
    from PIL import Image

    scale = max(1, 64 // max(images[0].size))
    width, height = (side * scale for side in images[0].size)
    row = Image.new(images[0].mode, (width * len(images), height))
    for place, image in enumerate(images):
        row.paste(image.resize((width, height), Image.Resampling.NEAREST), (place * width, 0))
    buffer = BytesIO()
    row.save(buffer, format="png")
    return buffer.getvalue()
