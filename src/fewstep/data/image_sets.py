"""Image data sets of any origin: folders of images, parquet, ``save_to_disk``, and the Hugging Face Hub.

`fewstep.data.folders` and `fewstep.data.tables` find one or two splits (`fewstep.data.splits.Split`). This module reads their images, and
if there is only one split, holds a part of it out.
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

DARK = 64  # of 255: if no pixel of a data set is as bright, its values were hardly saved in the range that its files have


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
    """Return the images at `path`: a folder (class = sub-folder), parquet, a ``save_to_disk`` folder, or a Hugging Face Hub data set.

    Each image becomes `size` x `size` as `resize` says, see `fewstep.data.pixels.read_pixels`; `channels` 1 makes the images grey. A split
    named "test" or "validation" is held out (unless its labels are withheld); without such a split, the fraction `holdout` of the only
    split is held out, stratified by class. The columns are found by their type unless `image_column` and `label_column` name them; labels
    may be ClassLabels, integers or words, and the label column "none" stands for no classes. Integers, words and sub-folders in the
    training split become classes in ascending order, with the digits in words compared as numbers. `config` names one of several
    configurations of a data set. `flip` mirrors half of the training images, and `bar` shows the progress of reading.

    Raises:
        DataError: if `path` holds no images, or several things that could be meant; and, naming file or row, for images that are damaged,
            have several frames, grey of more than 8 bits or a wrong size, for labels that are missing, negative or outside the classes,
            and for classes without images.

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
    """Return the images of the splits `found` at `path`; the other arguments are those of `image_folder`.

    Labels without class names are kept unchanged. Raises DataError if images are invalid or a single split cannot be divided.
    """
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
        # each image is decoded into its final place: selecting the parts afterwards would hold all images twice
        place = torch.cat([keep, out]).argsort().numpy()
        with bar(title, used[0].num) as advance:
            whole = decode_split(used[0], image, place, size, channels, resize, mistakes, advance)
        mistakes.check()
        pixels = [whole[: len(keep)], whole[len(keep) :]]
        labels = [labels[0][keep], labels[0][out]] if labels else labels
    if found.named and names:  # after the split, which is made with the classes in alphabetical order and must stay the same
        order = natural_order(names)
        labels, names = [renumbered(one, names, order) for one in labels], order
    train_label, heldout_label = labels or (None, None)
    if (brightest := max(int(part.max()) for part in pixels)) < DARK:
        mistakes.notes.append(
            f"no pixel of any image is above {brightest} of 255, and all look nearly black, as files of 16 bits a channel do whose values "
            "have only 12 or 14, and numbers of classes saved as grey values; if that is not meant, save images whose values reach 255"
        )
    if twice := copies(*pixels):
        mistakes.notes.append(
            f"{twice} of the {len(pixels[1])} images held out are trained on, too, as exact copies: a model that memorizes would look "
            "better than it is; take the copies out"
        )
    origin = replace(origin, remarks=(*origin.remarks, *(f"{text}." for text in mistakes.notes)))
    root = Path(path)
    known = root.resolve() if root.exists() else root
    name, note = known.stem if known.is_file() else known.name, "; ".join(mistakes.notes)
    return ImageData(name, pixels[0], pixels[1], train_label, heldout_label, 127.5, names, flip, note, origin)


def find_images(
    path: str, config: str | None, image_column: str | None, label_column: str | None, mistakes: Mistakes, each: int = 0
) -> Found:
    """Return the splits at `path` and how to read them, without reading images; the arguments are those of `image_folder`.

    Mistakes in files and labels are recorded in `mistakes`. Raises DataError if `path` holds no images, or several things that could be
    meant, and if the images, of `each` bytes, do not fit into memory.
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
