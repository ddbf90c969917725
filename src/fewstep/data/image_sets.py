"""Image data sets of any origin: folders of images, parquet, ``save_to_disk``, and the Hugging Face Hub.

What is found (`fewstep.data.folders`, `fewstep.data.tables`) are one or two `fewstep.data.splits.Split`; here their images are read, and a
part of the only one is held out.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.data.checks import Mistakes
from fewstep.data.errors import DataError
from fewstep.data.folders import folder_splits, image_files
from fewstep.data.images import ImageData, copies, stratified_split
from fewstep.data.parquet import check_rows
from fewstep.data.pixels import Resize
from fewstep.data.splits import NO_LABELS, decode_split
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
) -> ImageData:
    """The images at `path`: a folder (class = sub-folder), parquet, a ``save_to_disk`` folder, or a data set of the Hugging Face Hub.

    Each image becomes `size` x `size` as `resize` says, see `fewstep.data.pixels.read_pixels`; `channels` 1 makes them grey. A split named
    "test" or "validation" is held out (one whose labels are withheld is passed over), else the fraction `holdout` of the only one,
    stratified. Columns are found by their type, or named: `image_column`, and `label_column`, which is a ClassLabel, integers or words
    ("none": no classes). Integers and words become classes in ascending order, of those that the training split holds. `config` names one
    of several configurations of a data set.

    Raises:
        DataError: for a place that holds no images; and, naming file or row, for images that are damaged, of several frames, of more than
            8 bits or of a wrong size, for labels that are missing, negative or outside the classes, and for classes without images.

    """
    source = f"data.path is {path!r}"
    mistakes = Mistakes(source)
    root = Path(path)
    each = channels * size * size
    if files := image_files(root, source):
        label = None if label_column == NO_LABELS else label_column
        for key, value in (("image_column", image_column), ("label_column", label), ("config", config)):
            if value is not None:
                raise DataError(f"data.{key} is {value!r}; {source}, a folder of images, which has none to name; leave the key out")
        image = "path"
        used, names, labels = folder_splits(root, files, label_column != NO_LABELS, mistakes)
        check_rows(source, sum(split.num for split in used), each)
    else:
        used, image, names, labels = table_splits(path, config, image_column, label_column, mistakes, each)
    mistakes.check()
    if len(used) > 1:
        pixels = [decode_split(split, image, np.arange(split.num), size, channels, resize, mistakes) for split in used]
        mistakes.check()
    else:
        keep, out = _hold_out(source, used[0].num, labels[0] if labels else None, holdout)
        # each image goes to where it is wanted: a selection afterwards would hold all of them twice
        place = torch.cat([keep, out]).argsort().numpy()
        whole = decode_split(used[0], image, place, size, channels, resize, mistakes)
        mistakes.check()
        pixels = [whole[: len(keep)], whole[len(keep) :]]
        labels = [labels[0][keep], labels[0][out]] if labels else labels
    train_label, heldout_label = labels or (None, None)
    if twice := copies(*pixels):
        mistakes.notes.append(
            f"{twice} of the {len(pixels[1])} images held out are trained on, too, as exact copies: a model that learns by heart would "
            "look better than it is; take the copies out"
        )
    known = root.resolve() if root.exists() else root
    name, note = known.stem if known.is_file() else known.name, "; ".join(mistakes.notes)
    return ImageData(name, pixels[0], pixels[1], train_label, heldout_label, 127.5, names, flip, note)


def _hold_out(source: str, num: int, labels: Tensor | None, holdout: float) -> tuple[Tensor, Tensor]:
    """Indices to train on and to hold out, of `num` images."""
    smallest = None if labels is None else int(labels.bincount().min())
    if num < 2 or (smallest is not None and smallest < 2):
        raise DataError(f"{source}, with {num} images and {smallest} in its smallest class; at least 2 are needed")
    try:
        return stratified_split(None if labels is None else labels.numpy(), num, holdout)
    except ValueError as error:
        classes = f" of {len(labels.unique())} classes" if labels is not None else ""
        raise DataError(f"data.holdout is {holdout}, which cannot split {num} images{classes}: {error}; change it") from error
