"""A look at images before a run: how large they are, whether they are grey, how many there are, and how their pixels vary.

What settings follow from that is `fewstep.finding`'s to say.
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

LOOKED_AT = 1000  # images at most, evenly over the training split: their standard deviation is then known to about a hundredth
FIRST = 16  # of them, which tell how large the others are
PIXELS = 3e8  # that are decoded in all, a matter of seconds: of larger images fewer are looked at
FEWEST = 64
NEAR = 12  # of 255: a twentieth
KEPT_SIDE = 128  # pixels of the shorter side of what is kept of each


@dataclass(frozen=True)
class Probe:
    """What was seen of a set of images.

    Attributes:
        num: training images.
        sides: the shorter side of each that was opened, int64 [looked_at].
        shapes: how many shapes (width, height) they have.
        grey: whether no pixel of them has a colour.
        images: those that were opened, of Pillow's modes L (if `grey`) or RGB, made smaller where they are large.

    """

    num: int
    sides: np.ndarray
    shapes: int
    grey: bool
    images: list[Any]

    @property
    def looked_at(self) -> int:
        """How many images were opened."""
        return len(self.images)

    def spread(self, size: int, channels: int, resize: Resize) -> float:
        """Standard deviation of the elements in [-1, 1] of the images that were opened, as `size`, `channels` and `resize` make them.

        Raises DataError where they are all one colour.
        """
        found = float(self._pixels(size, channels, resize).std(dtype=np.float64)) / 127.5
        if not found > 0:
            raise DataError(f"the {self.looked_at} images that were looked at are all one colour; there is nothing to learn")
        return found

    def extreme(self, size: int, channels: int, resize: Resize) -> float:
        """Share of those elements that are at most `NEAR` from the least or the greatest value: most of a drawing, little of a photograph.

        Raises DataError as `spread` does.
        """
        pixels = self._pixels(size, channels, resize)
        return float(((pixels <= NEAR) | (pixels >= 255 - NEAR)).mean())

    def _pixels(self, size: int, channels: int, resize: Resize) -> np.ndarray:
        """Bytes [looked_at, size, size, ...] of the images that were opened."""
        mode = "L" if channels == 1 else "RGB"
        try:
            # those that are kept smaller than they are have no size to be held to
            ways: list[Resize] = ["fit" if side > KEPT_SIDE and resize != "stretch" else resize for side in self.sides]
            return np.stack([fitted(image.convert(mode), size, way) for image, way in zip(self.images, ways, strict=True)])
        except Unfit as reason:
            raise DataError(f"data.resize is {resize} with data.size {size}, and an image is {reason.detail}; change one of them") from None


def probe(path: str, config: str | None = None, image_column: str | None = None, label_column: str | None = None) -> Probe:
    """A look at the images at `path`, named as for `fewstep.data.image_folder`: at no more than `LOOKED_AT` of them.

    Images that cannot be read are left to be told of when all are. Raises DataError for a place that holds no images that can.
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
    """One image that was opened."""

    shape: tuple[int, int]
    grey: bool
    reduced: Any  # Pillow's, in RGB, of at most `KEPT_SIDE`

    @property
    def side(self) -> int:
        return min(self.shape)

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]


def _evenly(num: int, most: int) -> np.ndarray:
    """Up to `most` of `num` rows, from the first to the last."""
    return np.unique(np.linspace(0, num - 1, min(most, num)).round().astype(np.int64))


def _seen(split: Split, column: str, wanted: np.ndarray) -> list[_Seen]:
    """Those of the `wanted` rows of `split` that can be read."""
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
    """The split that is trained on, and its column of images. Raises DataError."""
    source = f"data.path is {path!r}"
    mistakes = Mistakes(source)  # told of when the data are opened
    found = find_images(path, config, image_column, label_column, mistakes)
    return found.splits[0], found.image


def _image(split: Split, content: Any, path: str | None) -> _Seen | None:
    """One image of `split`, or None where it cannot be read."""
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
