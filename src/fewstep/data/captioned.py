"""Images with one caption each, from any kind of table: a folder with metadata, parquet, ``save_to_disk``, or the Hugging Face Hub."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fewstep.data.checks import Kind, Mistakes
from fewstep.data.errors import DataError
from fewstep.data.image_sets import read_found
from fewstep.data.images import ImageData
from fewstep.data.prompt_files import Prompts, chosen_column, cleaned, gathered
from fewstep.data.scanning import scan
from fewstep.data.splits import NO_LABELS, Bar, no_bar
from fewstep.data.tables import WORDS, table_splits

BARE = Kind("image{s} without a caption", "caption or remove what is named")


@dataclass(frozen=True)
class Captioned:
    """Images and their different captions: the label of an image is the index of its caption in ``captions.texts``."""

    images: ImageData
    captions: Prompts


def captioned_images(path: str, size: int, column: str | None = None, *, bar: Bar = no_bar) -> Captioned:
    """Return the images at `path` as `size` x `size` RGB pixels, with their captions from the column `column`.

    Without `column`, the caption column is chosen by `fewstep.data.prompt_files.chosen_column`. A split named "test" or "validation" is
    held out, or else a tenth of the images. `bar` shows the progress of reading. Raises DataError as `fewstep.data.image_folder` does, for
    a column that does not exist, and for images without a caption.
    """
    source = f"data.path is {path!r}"
    mistakes = Mistakes(source)
    root = Path(path)
    lies = scan(root, source) if root.is_dir() else None
    if lies is not None and not (lies.metadata or lies.tables or (lies.archives and not lies.images)):
        raise DataError(
            f"{source}, which holds {'' if lies.images else 'no '}images and no captions; put metadata.csv there with the columns "
            "file_name and text, or give a .parquet with a column of captions"
        )
    found = table_splits(path, None, None, NO_LABELS, mistakes, lies, 3 * size * size)
    mistakes.check()
    features = found.splits[0].features
    words = [name for name, feature in features.items() if re.fullmatch(WORDS, getattr(feature, "dtype", ""))]
    name = chosen_column(path, words, column, {name: f"a {type(feature).__name__}" for name, feature in features.items()})
    values = [[text or "" for array in split.arrays(name) for text in array.to_pylist()] for split in found.splits]
    for split, texts in zip(found.splits, values, strict=True):
        mistakes.add_all(BARE, [split.place(row, None) for row, text in enumerate(texts) if not cleaned(text)])
    mistakes.check()
    captions = gathered((text for texts in values for text in texts), lambda number: f"row {number} of {path}")
    rows = torch.tensor(captions.rows).split([len(texts) for texts in values])
    origin = replace(found.origin, classes=f"captions by the column {name!r}")
    return Captioned(read_found(replace(found, labels=list(rows), origin=origin), mistakes, path, size, bar=bar), captions)
