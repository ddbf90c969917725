"""Images encoded as latents by a VAE, for teachers and students that work in latent space.

`fewstep encode --images` writes a folder of

* ``train-00000.safetensors`` and so on, and ``heldout-00000.safetensors`` and so on: `CHUNK` items each, with ``latents`` float16
  [n, C, h, w], ``pixels`` uint8 [n, 3, H, W] and, with classes, ``label`` int64 [n];
* ``latents.json``, which is written last: the VAE, sizes, classes, and the SHA-256 checksum of each file.

Latents are held in memory for training; pixels are read from the disk when something is measured.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.images import ImageData
from fewstep.data.origin import Origin
from fewstep.data.own import EXCERPT, EXCERPT_BYTES
from fewstep.text import read_json

MANIFEST = "latents.json"
CHUNK = 256
VERSION = 1
SPLITS = ("train", "heldout")
REMEDY = "encode the images anew, with fewstep encode --images"


@dataclass(frozen=True)
class Encoded:
    """The manifest of a folder of latents, ``latents.json``.

    Attributes:
        name: name of the data set.
        source: where the images come from, in words.
        model: folder or Hub id of the model whose VAE encoded the images.
        vae: checksum of the VAE's configuration and weights.
        shape: shape (C, h, w) of one latent.
        num: number of images in each split.
        class_names: one name per class; empty without class names.
        files: SHA-256 checksum of each file.
        labelled: whether items have labels without class names, which are rows of the encoded prompts in the same folder.
        version: version of this format.

    """

    name: str
    source: str
    model: str
    vae: str
    shape: tuple[int, ...]
    num: Mapping[str, int]
    class_names: tuple[str, ...]
    files: Mapping[str, str]
    labelled: bool = False
    version: int = VERSION

    def json(self) -> bytes:
        """Return the content of ``latents.json``."""
        return json.dumps(asdict(self), indent=1).encode()


def chunks(split: str, num: int) -> Iterator[tuple[str, int, int]]:
    """Yield (name, first item, one past the last item) of each file of a `split` with `num` items."""
    for number, start in enumerate(range(0, num, CHUNK)):
        yield f"{split}-{number:05}.safetensors", start, min(start + CHUNK, num)


@dataclass(frozen=True)
class LatentData(ImageData):
    """An `ImageData` whose items are latents, float16 [N, C, h, w].

    Attributes:
        latents: ``model``, the pipeline whose VAE made the latents, and ``vae``, the checksum of that VAE.
        folder: the folder of the latents and the pixels.

    """

    latents: Mapping[str, str] | None = None
    folder: Path = Path()

    are_pixels = False

    def excerpt(self) -> ImageData:  # type: ignore[override]
        """Return the pixels of the first images of both splits, at most 10,000 images and 512 MiB of each."""
        parts: list[Tensor] = []
        for split, items in zip(SPLITS, (self.train, self.heldout), strict=True):
            each = _read(self.folder, split, 1, len(items), "pixels")[0].numel()
            num = max(1, min(len(items), EXCERPT, EXCERPT_BYTES // each))
            parts.append(_read(self.folder, split, num, len(items), "pixels"))
        train, heldout = parts
        labels = self.train_label, self.heldout_label
        train_label, heldout_label = (None if label is None else label[: len(part)] for label, part in zip(labels, parts, strict=True))
        return ImageData(self.name, train, heldout, train_label, heldout_label, 127.5, self.class_names, origin=self.origin)


def latent_folder(path: str) -> LatentData:
    """Return the latents that `fewstep encode --images` wrote to the folder `path`. Raises DataError if files are missing or damaged."""
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} is no folder of latents (fewstep encode IMAGES --images --model MODEL --out {folder})")
    try:
        tree = read_json(folder / MANIFEST)
        found = Encoded(**{**tree, "shape": tuple(tree["shape"]), "class_names": tuple(tree["class_names"])})
        if found.version != VERSION or not all(type(found.num[split]) is int and found.num[split] > 0 for split in SPLITS):
            raise ValueError("its numbers of items are not whole, or it is of another version")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder / MANIFEST} cannot be read ({error}); {REMEDY}") from None
    train, heldout = (_read(folder, split, found.num[split], found.num[split], "latents") for split in SPLITS)
    train_label = heldout_label = None
    if found.class_names or found.labelled:
        train_label, heldout_label = (_read(folder, split, found.num[split], found.num[split], "label") for split in SPLITS)
    for part in (train, heldout):
        if tuple(part.shape[1:]) != found.shape:
            raise DataError(f"the latents in {folder} have shape {list(part.shape[1:])}, and {MANIFEST} says {list(found.shape)}; {REMEDY}")
    origin = Origin(
        f"{folder}, encoded from {found.source} by the VAE of {found.model}",
        "image",
        sum(found.num.values()),
        classes="the data set's own labels" if found.class_names else "",
        train="as encoded",
        heldout="as encoded",
    )
    latents = {"model": found.model, "vae": found.vae}
    return LatentData(
        found.name,
        train,
        heldout,
        train_label,
        heldout_label,
        None,
        found.class_names,
        origin=origin,
        latents=latents,
        folder=folder,
    )


def _read(folder: Path, split: str, num: int, whole: int, key: str) -> Tensor:
    """Return the tensors called `key` of the first `num` items of a `split`, joined; the split has `whole` items.

    Raises DataError if a file is damaged or incomplete.
    """
    from safetensors import safe_open

    parts: list[Any] = []
    for name, first, last in chunks(split, whole):
        if first >= num:
            break
        try:
            with safe_open(folder / name, "pt") as file:
                part = file.get_tensor(key)
        except Exception as error:  # safetensors' own exceptions, and those of a disk
            raise DataError(f"{folder / name} cannot be read ({str(error).splitlines()[0]}); {REMEDY}") from None
        if len(part) != last - first:
            raise DataError(f"{folder / name} does not hold the {last - first} items that {MANIFEST} names; {REMEDY}")
        parts.append(part[: num - first])
    return torch.cat(parts)
