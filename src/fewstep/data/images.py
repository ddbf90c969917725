"""Image data sets: scikit-learn's digits, crops of its two photographs, and whatever the `datasets` library opens.

Pixels stay unsigned bytes until they are asked for; ``pixels / half - 1`` takes them to [-1, 1].
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class DataError(ValueError):
    """A data set that is missing or not what it should be; the message says which and what to change."""


@dataclass(frozen=True)
class ImageData:
    """A data set in two splits.

    Attributes:
        name: what it is called in tables.
        train, heldout: uint8 [N, C, H, W] and [M, C, H, W].
        train_label, heldout_label: int64 [N] and [M], or None without classes.
        half: the byte that means 0, so that ``pixels / half - 1`` lies in [-1, 1].
        class_names: one for each label; empty without classes.
        flip: whether a training image may be mirrored left to right.

    """

    name: str
    train: Tensor
    heldout: Tensor
    train_label: Tensor | None
    heldout_label: Tensor | None
    half: float
    class_names: tuple[str, ...]
    flip: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.train.shape[1:])

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None."""
        return len(self.class_names) or None

    def images(self, split: str) -> Tensor:
        """All images of split "train" or "heldout", float32 [N, C, H, W] in [-1, 1]."""
        return self._scaled(self.train if split == "train" else self.heldout)

    def labels(self, split: str) -> Tensor | None:
        """The labels of that split."""
        return self.train_label if split == "train" else self.heldout_label

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Training images float32 [B, C, H, W] in [-1, 1] and their labels [B], on `device`, for `index` int64 [B]."""
        x = self._scaled(self.train[index].to(device))
        if self.flip:
            mirrored = torch.rand(len(x), generator=rng, device=device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x, None if self.train_label is None else self.train_label[index].to(device)

    def _scaled(self, pixels: Tensor) -> Tensor:
        return pixels.float() / self.half - 1


def _split(labels: Any, num: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of a stratified train split and the held-out rest, by scikit-learn with random_state 0."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    train, heldout = train_test_split(np.arange(num), test_size=fraction, stratify=labels, random_state=0)
    return torch.from_numpy(train), torch.from_numpy(heldout)


def load_digits() -> ImageData:
    """scikit-learn's digits: 1,797 real 8x8 grey images of 10 classes, 1,437 to train and 360 held out (stratified)."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    pixels = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    train, heldout = _split(digits.target, len(pixels), 0.2)
    names = tuple(str(k) for k in range(10))
    return ImageData("digits", pixels[train], pixels[heldout], labels[train], labels[heldout], 8.0, names)


def photo_crops(size: int = 32, stride: int = 8) -> ImageData:
    """Crops of scikit-learn's two sample photographs, RGB, class = photograph; the lowest fifth of each is held out.

    No crop of one split overlaps a crop of the other. Raises DataError for a size that leaves no held-out crop.
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
    return ImageData("photos", joined["train"], joined["heldout"], label["train"], label["heldout"], 127.5, names, flip=True)


def image_folder(path: str, size: int, channels: int = 3, holdout: float = 0.1, flip: bool = False) -> ImageData:
    """A folder of images (class = sub-folder) or a data set of the Hugging Face Hub, read by the `datasets` library.

    Images are resized so that the shorter side is `size` (Pillow's Lanczos filter) and cropped in the centre; `channels` 1
    makes them grey. A split named "test" or "validation" is held out, else the fraction `holdout` of the only one.
    Raises DataError for a place that holds no images.
    """
    import datasets
    from PIL import Image, ImageOps

    if Path(path).exists() or path.count("/") != 1:
        if not Path(path).is_dir():
            raise DataError(f"data.path is {path!r}, which is not a folder; give a folder of images, or the Hub id of a data set")
        if not any(Path(path).rglob("*.*")):
            raise DataError(f"data.path is {path!r}, an empty folder; put images into it, one sub-folder a class")
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(path)
    except Exception as error:  # the library raises many kinds, by where the data set lies
        raise DataError(f"data.path is {path!r}, which `datasets` cannot open: {str(error).splitlines()[0]}") from error
    features = next(iter(loaded.values())).features
    image_column = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
    label_column = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if label_column is not None and any(None in split[label_column] for split in loaded.values()):
        label_column = None  # what `datasets` makes of splits without class folders
    if image_column is None:
        raise DataError(f"data.path is {path!r}, whose columns {sorted(features)} hold no images")

    def read(split: Any) -> tuple[Tensor, Tensor | None]:
        import numpy as np

        pixels = np.empty((len(split), size, size, channels), np.uint8)
        raw = split.cast_column(image_column, datasets.Image(decode=False))[image_column]
        for i, item in enumerate(raw):
            try:
                with Image.open(io.BytesIO(item["bytes"]) if item["bytes"] else item["path"]) as image:
                    fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.LANCZOS)
            except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged file, by format
                raise DataError(
                    f"data.path is {path!r}: {item['path'] or f'image {i}'} cannot be read ({error}); mend or remove it"
                ) from error
            pixels[i] = np.asarray(fitted).reshape(size, size, channels)
        labels = None if label_column is None else torch.tensor(list(split[label_column]))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels

    train, train_label = read(loaded["train"] if "train" in loaded else next(iter(loaded.values())))
    held = next((name for name in ("test", "validation") if name in loaded), None)
    if held is not None:
        heldout, heldout_label = read(loaded[held])
    else:
        smallest = None if train_label is None else train_label.bincount().min().item()
        if len(train) < 2 or (smallest is not None and smallest < 2):
            raise DataError(f"data.path is {path!r}, with {len(train)} images and {smallest} in its smallest class; at least 2 are needed")
        try:
            keep, out = _split(None if train_label is None else train_label.numpy(), len(train), holdout)
        except ValueError as error:
            classes = f" of {len(train_label.unique())} classes" if train_label is not None else ""
            raise DataError(f"data.holdout is {holdout}, which cannot split {len(train)} images{classes}: {error}; change it") from error
        train, heldout = train[keep], train[out]
        heldout_label = None if train_label is None else train_label[out]
        train_label = None if train_label is None else train_label[keep]
    names = tuple(features[label_column].names) if label_column is not None else ()
    return ImageData(Path(path).name, train, heldout, train_label, heldout_label, 127.5, names, flip)
