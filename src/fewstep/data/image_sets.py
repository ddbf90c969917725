"""Image data sets of any origin: folders of images, parquet, ``save_to_disk``, and the Hugging Face Hub.

What is found (`fewstep.data.folders`, `fewstep.data.tables`) are one or two `fewstep.data.splits.Split`; here their images are read, and a
part of the only one is held out.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fewstep.data.checks import Mistakes
from fewstep.data.class_order import natural_order, renumbered
from fewstep.data.errors import DataError
from fewstep.data.folders import folder_splits, is_of_images
from fewstep.data.holdout import hold_out
from fewstep.data.images import ImageData, copies
from fewstep.data.parquet import check_rows
from fewstep.data.pixels import Resize
from fewstep.data.scanning import scan
from fewstep.data.splits import NO_LABELS, Bar, Found, decode_split, no_bar
from fewstep.data.tables import table_splits


def image_folder(
    path: str,
    size: int,
    channels: int = 3,
    holdout: float = 0.1,
    flip: bool = False,
    resize: Resize = "fit",
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    *,
    bar: Bar = no_bar,
) -> ImageData:
    """The images at `path`: a folder (class = sub-folder), parquet, a ``save_to_disk`` folder, or a data set of the Hugging Face Hub.

    Each image becomes `size` x `size` as `resize` says, see `fewstep.data.pixels.read_pixels`; `channels` 1 makes them grey. A split named
    "test" or "validation" is held out (one whose labels are withheld is passed over), else the fraction `holdout` of the only one,
    stratified. Columns are found by their type, or named: `image_column`, and `label_column`, which is a ClassLabel, integers or words
    ("none": no classes). Integers, words and sub-folders become classes in ascending order, numbers in words as numbers, of those that the
    training split holds. `config` names one of several configurations of a data set. `bar` shows how far reading is.

    Raises:
        DataError: for a place that holds no images, or several things that could be meant; and, naming file or row, for images that are
            damaged, of several frames, of more than 8 bits or of a wrong size, for labels that are missing, negative or outside the
            classes, and for classes without images.

    """
    source = f"data.path is {path!r}"
    mistakes = Mistakes(source)
    found = find_images(path, config, image_column, label_column, mistakes, channels * size * size)
    mistakes.check()
    return read_found(found, mistakes, path, size, channels, holdout, flip, resize, bar)


def read_found(
    found: Found,
    mistakes: Mistakes,
    path: str,
    size: int,
    channels: int = 3,
    holdout: float = 0.1,
    flip: bool = False,
    resize: Resize = "fit",
    bar: Bar = no_bar,
) -> ImageData:
    """The images of what was `found` at `path`, see `image_folder`; labels without names are kept as they are. Raises DataError."""
    source = mistakes.source
    used, image, labels, names, origin = found.splits, found.image, found.labels, found.names, found.origin
    title = f"reading {Path(path).name or path}"
    if len(used) > 1:
        with bar(title, sum(split.num for split in used)) as advance:
            pixels = [decode_split(split, image, np.arange(split.num), size, channels, resize, mistakes, advance) for split in used]
        mistakes.check()
    else:
        keep, out, how = hold_out(source, used[0].num, labels[0] if names else None, names, holdout)
        origin = replace(origin, heldout=how)
        # each image goes to where it is wanted: a selection afterwards would hold all of them twice
        place = torch.cat([keep, out]).argsort().numpy()
        with bar(title, used[0].num) as advance:
            whole = decode_split(used[0], image, place, size, channels, resize, mistakes, advance)
        mistakes.check()
        pixels = [whole[: len(keep)], whole[len(keep) :]]
        labels = [labels[0][keep], labels[0][out]] if labels else labels
    if found.named and names:  # only now: the split has always been made in the order of words
        order = natural_order(names)
        labels, names = [renumbered(one, names, order) for one in labels], order
    train_label, heldout_label = labels or (None, None)
    if twice := copies(*pixels):
        mistakes.notes.append(
            f"{twice} of the {len(pixels[1])} images held out are trained on, too, as exact copies: a model that learns by heart would "
            "look better than it is; take the copies out"
        )
    origin = replace(origin, remarks=(*origin.remarks, *(f"{text}." for text in mistakes.notes)))
    root = Path(path)
    known = root.resolve() if root.exists() else root
    name, note = known.stem if known.is_file() else known.name, "; ".join(mistakes.notes)
    return ImageData(name, pixels[0], pixels[1], train_label, heldout_label, 127.5, names, flip, note, origin)


def find_images(
    path: str, config: str | None, image_column: str | None, label_column: str | None, mistakes: Mistakes, each: int = 0
) -> Found:
    """The splits at `path` and how to read them, before any image is read; the arguments are those of `image_folder`.

    What is wrong with files and labels goes to `mistakes`. Raises DataError for a place that holds no images, or several things that could
    be meant, and for more images, of `each` bytes, than there is memory for.
    """
    root, source = Path(path), mistakes.source
    lies = scan(root, source) if root.is_dir() else None
    if lies is None or not is_of_images(lies, root, label_column, source):
        return table_splits(path, config, image_column, label_column, mistakes, lies, each)
    label = None if label_column == NO_LABELS else label_column
    for key, value in (("image_column", image_column), ("label_column", label), ("config", config)):
        if value is not None:
            raise DataError(f"data.{key} is {value!r}; {source}, a folder of images, which has none to name; leave the key out")
    found = folder_splits(root, lies, label_column != NO_LABELS, mistakes)
    check_rows(source, sum(split.num for split in found.splits), each)
    return found
