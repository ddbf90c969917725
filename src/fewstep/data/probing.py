"""A look at images before a run: how large they are, whether they are grey, how many there are, and how their pixels vary.

What settings follow from that is `fewstep.finding`'s to say.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from fewstep.data.checks import Mistakes
from fewstep.data.errors import DataError
from fewstep.data.image_sets import find_images
from fewstep.data.pixels import Resize, Unfit, fitted, flat_image, inside
from fewstep.data.splits import Split, encoded

LOOKED_AT = 1000  # images, evenly over the training split: their standard deviation is then known to about a hundredth


@dataclass(frozen=True)
class Probe:
    """What was seen of a set of images.

    Attributes:
        num: training images.
        looked_at: how many of them were opened.
        sides: the shorter side of each that was opened, int64 [looked_at].
        shapes: how many shapes (width, height) they have.
        grey: whether no pixel of them has a colour.
        images: those that were opened, of Pillow's modes L (if `grey`) or RGB.

    """

    num: int
    looked_at: int
    sides: np.ndarray
    shapes: int
    grey: bool
    images: list[Any]

    def spread(self, size: int, channels: int, resize: Resize) -> float:
        """Standard deviation of the elements in [-1, 1] of the images that were opened, as `size`, `channels` and `resize` make them.

        Raises DataError where they are all one colour.
        """
        mode = "L" if channels == 1 else "RGB"
        try:
            pixels = np.stack([fitted(image.convert(mode), size, resize) for image in self.images])
        except Unfit as reason:
            raise DataError(f"data.resize is {resize} with data.size {size}, and an image is {reason.detail}; change one of them") from None
        found = float(pixels.std(dtype=np.float64)) / 127.5
        if not found > 0:
            raise DataError(f"the {self.looked_at} images that were looked at are all one colour; there is nothing to learn")
        return found


def probe(path: str, config: str | None = None, image_column: str | None = None, label_column: str | None = None) -> Probe:
    """A look at the images at `path`, named as for `fewstep.data.image_folder`: at no more than `LOOKED_AT` of them.

    Images that cannot be read are left to be told of when all are. Raises DataError for a place that holds no images that can.
    """
    split, column = _training_split(path, config, image_column, label_column)
    wanted = np.unique(np.linspace(0, split.num - 1, min(LOOKED_AT, split.num)).round().astype(np.int64))
    flat, first = [], 0
    for batch in split.arrays(column):
        here = wanted[(wanted >= first) & (wanted < first + len(batch))] - first
        first += len(batch)
        if not len(here):
            continue
        content, paths = encoded(batch)
        for row in here.tolist():
            image = _image(split, content[row].as_buffer(), paths[row].as_py())
            if image is not None:
                flat.append(image)
    if not flat:
        raise DataError(f"data.path is {path!r}, and none of the {len(wanted)} images that were looked at can be read; mend them")
    grey = all(map(_is_grey, flat))
    images = [image.convert("L") for image in flat] if grey else flat
    sides = np.array([min(image.size) for image in flat], np.int64)
    return Probe(split.num, len(flat), sides, len({image.size for image in flat}), grey, images)


def _training_split(path: str, config: str | None, image_column: str | None, label_column: str | None) -> tuple[Split, str]:
    """The split that is trained on, and its column of images. Raises DataError."""
    source = f"data.path is {path!r}"
    mistakes = Mistakes(source)  # told of when the data are opened
    found = find_images(path, config, image_column, label_column, mistakes)
    return found.splits[0], found.image


def _image(split: Split, content: Any, path: str | None) -> Any:
    """One image of `split` in RGB, or None where it cannot be read."""
    try:
        if content is None and path is not None and split.root is None:
            path = inside(split.folders, path)
        source = path if content is None else BytesIO(content)
        return None if source is None else flat_image(source, "RGB")
    except Unfit:
        return None


def _is_grey(image: Any) -> bool:
    red, green, blue = (np.asarray(band) for band in image.split())
    return bool((red == green).all() and (green == blue).all())
