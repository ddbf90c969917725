"""Image data sets in memory, and two that scikit-learn includes: its digits, and crops of its two photographs.

Pixels are stored as unsigned bytes; ``pixels / half - 1`` maps them to [-1, 1] when a batch is made, on the batch's device.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.origin import Origin
from fewstep.data.parts import InMemory
from fewstep.streams import uniform


@dataclass(frozen=True)
class ImageData(InMemory):
    """An image data set in memory, in two splits.

    Attributes:
        name: name of the data set in tables.
        train, heldout: images of the two splits, uint8 [N, C, H, W] and [M, C, H, W]; or floats in [-1, 1].
        train_label, heldout_label: labels of the two splits, int64 [N] and [M]; None without classes.
        half: the byte value that ``pixels / half - 1`` maps to 0; None for floats.
        class_names: one name per class; empty without classes.
        flip: whether a training image may be mirrored left to right.
        note: assumptions made when the data was read, to be shown to the user; "" if there are none.
        origin: where the images come from; None for data made in Python.

    """

    name: str
    train: Tensor
    heldout: Tensor
    train_label: Tensor | None
    heldout_label: Tensor | None
    half: float | None
    class_names: tuple[str, ...]
    flip: bool = False
    note: str = ""
    origin: Origin | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one image."""
        return tuple(self.train.shape[1:])

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without classes."""
        return len(self.class_names) or None

    @property
    def mixture(self) -> None:
        """None: the density of images is not known."""
        return None

    def images(self, split: str) -> Tensor:
        """All images of split "train" or "heldout", float32 [N, C, H, W] in [-1, 1]."""
        return self._scaled(self.train if split == "train" else self.heldout)

    def labels(self, split: str) -> Tensor | None:
        """Return the labels of split "train" or "heldout", int64 [N]; None without classes."""
        return self.train_label if split == "train" else self.heldout_label

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return training images float32 [B, C, H, W] in [-1, 1] and their labels [B], on `device`, for `index` int64 [B].

        If `flip` is set, each image is mirrored left to right with probability 1/2, drawn from `rng`. The labels are None without classes.
        """
        pixels = self.train[index.to(self.train.device)]
        if device.type == "cuda" and pixels.device.type == "cpu":
            pixels = pixels.pin_memory()  # so that the copy to the GPU is asynchronous
        x = self._scaled(pixels.to(device, non_blocking=device.type == "cuda"))
        if self.flip:
            mirrored = uniform((len(x),), rng).to(device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x, None if self.train_label is None else self.train_label[index.to(self.train_label.device)].to(device)

    def _scaled(self, pixels: Tensor) -> Tensor:
        return pixels.float() if self.half is None else pixels.float() / self.half - 1


def digests(pixels: Tensor) -> list[bytes]:
    """Return a BLAKE2b checksum of 16 bytes for each of the images `pixels` uint8 [N, ...]."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.contiguous().numpy()]


def copies(train: Tensor, heldout: Tensor) -> int:
    """Return how many of the images `heldout` uint8 [M, ...] are exact copies of a training image in `train` [N, ...]."""
    known = set(digests(train))
    return sum(digest in known for digest in digests(heldout))


def stratified_split(labels: Any, num: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Return the indices of a random training split of `num` items and of the held-out `fraction`, by scikit-learn with random_state 0.

    The split is stratified by `labels`, unless these are None.
    """
    import numpy as np
    from sklearn.model_selection import train_test_split

    train, heldout = train_test_split(np.arange(num), test_size=fraction, stratify=labels, random_state=0)
    return torch.from_numpy(train), torch.from_numpy(heldout)


def load_digits() -> ImageData:
    """Return scikit-learn's digits: 1,797 real 8x8 grey images of 10 classes, 1,437 to train and 360 held out (stratified)."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    pixels = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    train, heldout = stratified_split(digits.target, len(pixels), 0.2)
    names = tuple(str(k) for k in range(10))
    origin = Origin("scikit-learn's digits", "image", len(pixels), (), "the digit", "80% of each digit", "20% of each digit, seed 0")
    return ImageData("digits", pixels[train], pixels[heldout], labels[train], labels[heldout], 8.0, names, origin=origin)


def photo_crops(size: int = 32, stride: int = 8) -> ImageData:
    """Return crops of scikit-learn's two sample photographs, RGB, class = photograph; the lowest fifth of each photograph is held out.

    Crops are `size` x `size` pixels, `stride` pixels apart. No training crop overlaps a held-out crop. Raises DataError if `size` is larger
    than the held-out strip.
    """
    from sklearn.datasets import load_sample_images

    photos = load_sample_images()
    parts: dict[str, list[Tensor]] = {"train": [], "heldout": []}
    for photo in photos.images:
        pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)
        border = pixels.shape[1] * 4 // 5
        for split, region in (("train", pixels[:, :border]), ("heldout", pixels[:, border:])):
            if min(region.shape[1:]) < size:
                raise DataError(f"data.size is {size}; crops of the sample photographs can be at most {pixels.shape[1] - border} wide")
            crops = region.unfold(1, size, stride).unfold(2, size, stride)
            parts[split].append(crops.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size))
    label = {split: torch.cat([torch.full((len(c),), k) for k, c in enumerate(crops)]) for split, crops in parts.items()}
    joined = {split: torch.cat(crops) for split, crops in parts.items()}
    names = tuple(Path(name).stem for name in photos.filenames)
    place = "two photographs of scikit-learn, without the crops across the border between the two parts"
    num = sum(map(len, joined.values()))
    origin = Origin(place, "crop", num, (), "the photograph", "of the upper four fifths", "of the lowest fifth")
    return ImageData("photos", joined["train"], joined["heldout"], label["train"], label["heldout"], 127.5, names, True, origin=origin)
