"""Decoding of one image, a file or a string of bytes, by Pillow into bytes of one size, and the images that are refused.

Pillow converts silently: it drops transparency, clips 16 bits to 8, and shows the first of several frames. Here transparent pixels are
composited on white and a camera's orientation mark is applied; grey images of more than 8 bits and images of several frames are refused.
Of colours of 16 bits Pillow gives the high byte, which is right where all 16 are used; `fewstep.data.image_sets` notes where they are not.
"""

import os
import stat
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fewstep.data.checks import Kind
from fewstep.limits import TooLarge
from fewstep.pil import opened

Resize = Literal["fit", "stretch", "pad", "none"]

DAMAGED = Kind("image{s} that cannot be read", "mend or remove what is named")
FRAMES = Kind("image{s} of several frames", "data are single images; save one frame of each, or remove them")
DEEP = Kind("image{s} of more than 8 bits a pixel and channel", "which Pillow would clip; save them with 8 bits")
UNEQUAL = Kind("image{s} not of data.size", "data.resize is none; resize the images, change data.size, or set data.resize: fit")
NO_FILE = Kind("image{s} that no plain file holds", "a pipe or a device among images would be waited for; take it away")
OUTSIDE_FOLDER = Kind(
    "row{s} naming a file outside the data set's folder", "it would bring any picture of this machine into training; mend the paths"
)
LARGE = Kind("image{s} larger than data.size", "data.resize is pad, which only adds; raise data.size, or set data.resize: fit")
HUGE = Kind(
    "image{s} too large to be read", "a damaged or hostile header claims such sizes: make the image smaller first, or remove what is named"
)

ONE_AT_ONCE = 2**23  # pixels of an image, above which images are decoded one at a time, however many threads there are
_alone = threading.Lock()


class Unfit(Exception):
    """Raised for an image that cannot be used: the kind of mistake, and what was found."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def read_pixels(source: str | IO[bytes], size: int, channels: int, resize: Resize) -> NDArray[np.uint8]:
    """Return the image in `source` as uint8 [channels, size, size]; grey for `channels` 1, RGB for 3.

    `resize` is "fit" (the shorter side becomes `size`, then a centre crop), "stretch" (both sides become `size`), "pad" (centred without
    resampling on a background of byte 0, which is -1 in [-1, 1]; an odd row or column is added below or to the right) or "none" (the image
    must be size x size). Resampling uses Pillow's Lanczos filter. Transparent pixels are composited on white. Raises Unfit for an image
    that cannot be used.
    """
    return fitted(flat_image(source, "L" if channels == 1 else "RGB"), size, resize)


def flat_image(source: str | IO[bytes], mode: Literal["L", "RGB"]) -> Any:
    """Return the image in `source` as a Pillow image of its own size, converted to `mode`.

    A camera's orientation mark is applied, and transparent pixels are composited on white. Raises Unfit for an image that cannot be used.
    """
    from PIL import ImageOps

    try:
        if isinstance(source, str) and not stat.S_ISREG(os.stat(source).st_mode):
            raise Unfit(NO_FILE, "no plain file")
        with opened(source) as image, _alone if image.width * image.height > ONE_AT_ONCE else nullcontext():
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # MPO is a camera's JPEG whose further frames are previews
                raise Unfit(FRAMES, f"{frames} frames")
            if image.mode.startswith(("I", "F")):
                raise Unfit(DEEP, f"mode {image.mode}")
            ImageOps.exif_transpose(image, in_place=True)
            return _opaque(image).convert(mode)
    except Unfit:
        raise
    except TooLarge as error:
        raise Unfit(HUGE, str(error)) from None
    except MemoryError:
        raise Unfit(HUGE, "more than there is memory for") from None
    except Exception as error:  # Pillow raises many types of exception for a damaged file, by format
        raise Unfit(DAMAGED, " ".join(str(error).split())[:100] or type(error).__name__) from error


def fitted(flat: Any, size: int, resize: Resize) -> NDArray[np.uint8]:
    """Return the Pillow image `flat`, of mode L or RGB, as uint8 [channels, size, size], resized as in `read_pixels`.

    Raises Unfit if `resize` is "none" and the image has another size, or if it is "pad" and the image is too large.
    """
    from PIL import Image, ImageOps

    if flat.size != (size, size):
        detail = f"{flat.width} x {flat.height}"
        if resize == "none":
            raise Unfit(UNEQUAL, detail)
        if resize == "pad":
            if max(flat.size) > size:
                raise Unfit(LARGE, detail)
            padded = Image.new(flat.mode, (size, size))
            padded.paste(flat, ((size - flat.width) // 2, (size - flat.height) // 2))
            flat = padded
        elif resize == "stretch":
            flat = flat.resize((size, size), Image.Resampling.LANCZOS)
        else:
            flat = ImageOps.fit(flat, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(flat).reshape(size, size, len(flat.getbands())).transpose(2, 0, 1)


def inside(folders: tuple[Path, ...], path: str) -> str:
    """Return the absolute path of the file that `path`, from a row of a table, names in the first of the `folders` that contains it.

    Raises Unfit if the file lies in none of the folders.
    """
    for folder in folders:
        whole = os.path.abspath(os.path.join(folder, path))
        if os.path.commonpath([whole, os.path.abspath(folder)]) == os.path.abspath(folder):
            return whole
    raise Unfit(OUTSIDE_FOLDER, path)


def _opaque(image: Any) -> Any:
    """Return `image` composited on white if it may be transparent."""
    if "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "RGBa"):
        return image
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
