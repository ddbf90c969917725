"""A look at a data set's images before a run: their sizes, whether they are grey, how many there are, and how their pixels vary.

`fewstep.finding` derives settings from what is found here.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.checks import Mistakes
from fewstep.data.errors import DataError
from fewstep.data.image_sets import find_images
from fewstep.data.pixels import Resize, Unfit, fitted, flat_image, inside
from fewstep.data.splits import Split, encoded
from fewstep.limits import cores

LOOKED_AT = 1000  # images opened at most, evenly over the training split: their standard deviation is then known to about a hundredth
FIRST = 16  # images opened first, from which the size of the others is estimated
PIXELS = 3e8  # pixels decoded in all, a matter of seconds: the larger the images, the fewer are opened
FEWEST = 64  # images opened at least, however large they are
NEAR = 12  # byte values from 0 or 255, about a twentieth of the range
KEPT_SIDE = 128  # pixels of the shorter side to which a larger image is reduced before it is kept in memory


@dataclass(frozen=True)
class Probe:
    """What was found in a sample of a data set's images.

    Attributes:
        num: number of training images.
        sides: shorter side of each opened image in pixels, int64 [looked_at].
        shapes: number of different shapes (width, height) of the opened images.
        grey: whether every pixel of the opened images is grey.
        images: the opened images, of Pillow's mode L (if `grey`) or RGB, reduced to a shorter side of `KEPT_SIDE` if they are larger.

    """

    num: int
    sides: np.ndarray
    shapes: int
    grey: bool
    images: list[Any]

    @property
    def looked_at(self) -> int:
        """Number of images that were opened."""
        return len(self.images)

    def spread(self, size: int, channels: int, resize: Resize) -> float:
        """Return the standard deviation of all pixel values of the opened images, resized by `size`, `channels` and `resize`, in [-1, 1].

        Raises DataError if all images are of one colour, or if `resize` does not admit the size of an image.
        """
        found = float(self._pixels(size, channels, resize).std(dtype=np.float64)) / 127.5
        if not found > 0:
            raise DataError(f"the {self.looked_at} images that were looked at are all one colour; there is nothing to learn")
        return found

    def extreme(self, size: int, channels: int, resize: Resize) -> float:
        """Return the share of pixel values, resized as in `spread`, within `NEAR` of 0 or 255: large for drawings, small for photographs.

        Raises DataError if `resize` does not admit the size of an image.
        """
        pixels = self._pixels(size, channels, resize)
        return float(((pixels <= NEAR) | (pixels >= 255 - NEAR)).mean())

    def _pixels(self, size: int, channels: int, resize: Resize) -> np.ndarray:
        """Return the opened images, resized, as bytes [looked_at, ...]. Raises DataError if `resize` does not admit the size of one."""
        mode = "L" if channels == 1 else "RGB"
        try:
            # a reduced image lacks the original size that "pad" and "none" would check, so it is fitted
            ways: list[Resize] = ["fit" if side > KEPT_SIDE and resize != "stretch" else resize for side in self.sides]
            return np.stack([fitted(image.convert(mode), size, way) for image, way in zip(self.images, ways, strict=True)])
        except Unfit as reason:
            raise DataError(f"data.resize is {resize} with data.size {size}, and an image is {reason.detail}; change one of them") from None


def probe(path: str, config: str | None = None, image_column: str | None = None, label_column: str | None = None) -> Probe:
    """Open up to `LOOKED_AT` of the images at `path`, and return what was found; the arguments are those of `fewstep.data.image_folder`.

    Images that cannot be read are passed over; they are reported when the whole data set is read. Raises DataError if `path` holds no
    images, or if none of the opened images can be read.
    """
    split, column = _training_split(path, config, image_column, label_column)
    first = _seen(split, column, _evenly(split.num, FIRST))
    pixels = sum(image.pixels for image in first) / max(1, len(first))
    num = int(min(LOOKED_AT, max(FEWEST, PIXELS / max(1.0, pixels))))
    seen = first if split.num <= FIRST else _seen(split, column, _evenly(split.num, num))
    if not seen:
        raise DataError(f"data.path is {path!r}, and none of the {min(num, split.num)} images that were looked at can be read; mend them")
    grey = all(image.grey for image in seen)
    images = [image.reduced.convert("L") if grey else image.reduced for image in seen]
    return Probe(split.num, np.array([image.side for image in seen], np.int64), len({image.shape for image in seen}), grey, images)


class _Seen(NamedTuple):
    """One opened image."""

    shape: tuple[int, int]
    grey: bool
    reduced: Any  # Pillow image in RGB, whose shorter side is at most `KEPT_SIDE`

    @property
    def side(self) -> int:
        return min(self.shape)

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]


def _evenly(num: int, most: int) -> np.ndarray:
    """Return the numbers of up to `most` of `num` rows, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, num - 1, min(most, num)).round().astype(np.int64))


def _seen(split: Split, column: str, wanted: np.ndarray) -> list[_Seen]:
    """Return the `wanted` rows of `split` as opened images, without those that cannot be read."""
    found: list[_Seen | None] = []
    first = 0
    with ThreadPoolExecutor(cores()) as pool:
        for batch in split.arrays(column):
            here = wanted[(wanted >= first) & (wanted < first + len(batch))] - first
            first += len(batch)
            if len(here):
                content, paths = encoded(batch)
                rows = [(content[row].as_buffer(), paths[row].as_py()) for row in here.tolist()]
                found += pool.map(lambda row: _image(split, *row), rows)
    return [image for image in found if image is not None]


def _training_split(path: str, config: str | None, image_column: str | None, label_column: str | None) -> tuple[Split, str]:
    """Return the training split and its column of images. Raises DataError as `find_images` does."""
    source = f"data.path is {path!r}"
    mistakes = Mistakes(source)  # discarded here, because they are reported when the whole data set is read
    found = find_images(path, config, image_column, label_column, mistakes)
    return found.splits[0], found.image


def _image(split: Split, content: Any, path: str | None) -> _Seen | None:
    """Return one image of `split`, opened; None if it cannot be read."""
    try:
        if content is None and path is not None and split.root is None:
            path = inside(split.folders, path)
        source = path if content is None else BytesIO(content)
        if source is None:
            return None
        image = flat_image(source, "RGB")
    except Unfit:
        return None
    red, green, blue = (np.asarray(band) for band in image.split())
    grey = bool((red == green).all() and (green == blue).all())
    shape, ratio = image.size, KEPT_SIDE / min(image.size)
    if ratio < 1:
        image = image.resize((max(1, round(shape[0] * ratio)), max(1, round(shape[1] * ratio))))
    return _Seen(shape, grey, image)
