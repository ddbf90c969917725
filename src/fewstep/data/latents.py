"""Images as the latents that a VAE makes of them: for teachers and students that work in latent space.

`fewstep encode --images` writes a folder of

* ``train-00000.safetensors`` and so on, ``heldout-...``: `CHUNK` items each, with ``latents`` float16 [n, C, h, w], ``pixels`` uint8
  [n, 3, H, W] and, where there are classes, ``label`` int64 [n];
* ``latents.json``, which is written last: the VAE, sizes, classes, and the SHA-256 of each file.

Latents are held in memory, as they are trained on; pixels are read from the disk when something is measured.
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
    """What was encoded.

    Attributes:
        name: of the data set.
        source: where its images come from, in words.
        model: whose VAE it was.
        vae: what tells that VAE from any other.
        shape: (C, h, w) of the latents.
        num: images of each split.
        class_names: one for each label; empty without.
        files: SHA-256 of each file.
        labelled: whether items have labels, if these have no names: then they are rows of prompts that lie beside them.
        version: of this format.

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
        """What ``latents.json`` holds."""
        return json.dumps(asdict(self), indent=1).encode()


def chunks(split: str, num: int) -> Iterator[tuple[str, int, int]]:
    """(name, first item, one past the last) of each file of a `split` of `num` items."""
    for number, start in enumerate(range(0, num, CHUNK)):
        yield f"{split}-{number:05}.safetensors", start, min(start + CHUNK, num)


@dataclass(frozen=True)
class LatentData(ImageData):
    """An `ImageData` whose items are latents, float16 [N, C, h, w].

    Attributes:
        latents: ``model``, the pipeline whose VAE they are of, and ``vae``, what tells that VAE from any other.
        folder: where they, and the pixels, lie.

    """

    latents: Mapping[str, str] | None = None
    folder: Path = Path()

    are_pixels = False

    def excerpt(self) -> ImageData:  # type: ignore[override]
        """The pixels of a share of both splits, as many as fit."""
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
    """The latents that `fewstep encode --images` has written to the folder `path`. Raises DataError."""
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} is no folder of latents (fewstep encode IMAGES --images --model MODEL --out {folder})")
    try:
        tree = read_json(folder / MANIFEST)
        found = Encoded(**{**tree, "shape": tuple(tree["shape"]), "class_names": tuple(tree["class_names"])})
        if found.version != VERSION or not all(type(found.num[split]) is int and found.num[split] > 0 for split in SPLITS):
            raise ValueError("its numbers are none, or it is of another version")
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
        f"{folder}, encoded of {found.source} by the VAE of {found.model}",
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
    """The first `num` of `whole` items of a `split`: the tensors called `key`, joined. Raises DataError."""
    from safetensors import safe_open

    parts: list[Any] = []
    for name, first, last in chunks(split, whole):
        if first >= num:
            break
        try:
            with safe_open(folder / name, "pt") as file:
                part = file.get_tensor(key)
        except Exception as error:  # the library's own, and those of a disk
            raise DataError(f"{folder / name} cannot be read ({str(error).splitlines()[0]}); {REMEDY}") from None
        if len(part) != last - first:
            raise DataError(f"{folder / name} does not hold the {last - first} items that {MANIFEST} names; {REMEDY}")
        parts.append(part[: num - first])
    return torch.cat(parts)
