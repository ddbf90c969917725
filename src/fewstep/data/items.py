"""Items of a data set of one's own: what one may be, how several become a batch, and what is said of one that will not do.

An item is a tensor, ``(tensor, label)``, ``(tensor,)``, or a dict with one tensor of at least one dimension and, where there are classes,
an entry "label", "labels" or "class"; what else a dict holds is left alone. Images are [C, H, W], as floats in [-1, 1] or as bytes, which
stand for [-1, 1] as 0 to 255; points are floats [D]. Labels are integers from 0.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.tables import LABELS
from fewstep.data.units import Units

HALF = 127.5  # the byte that would mean 0
BEYOND = 1.01  # images may be rounded, and not be of another scale

Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Spec:
    """What every item of a data set is.

    Attributes:
        name: of the data set, for messages.
        shape: of one item.
        bytes: whether items are unsigned bytes.
        num_classes: labels lie below it; None where they are left alone.
        units: that points come in; batches are then in standard units. None where they are learned as they come.

    """

    name: str
    shape: tuple[int, ...]
    bytes: bool
    num_classes: int | None
    units: Units | None = field(default=None, compare=False)

    def fail(self, place: object, what: str) -> DataError:
        """A sentence about the item at `place`."""
        return DataError(f"the data set {self.name}: item {place} {what}")

    def batch(self, items: Sequence[Any], places: Sequence[object]) -> Pair:
        """`items` as one batch: bytes or float32 [B, ...], and labels int64 [B] or None. Raises DataError naming one of `places`."""
        x, label = self.stacked(items, places)
        if self.units is not None:
            return self.units.standard(x), label
        if x.dtype == torch.float64:
            x = x.float()
            self._check_finite(x, places)
        return x if self.bytes else x.float(), label

    def stacked(self, items: Sequence[Any], places: Sequence[object]) -> Pair:
        """The same, of the type and in the units that the items are of."""
        found, labels = [], []
        for item, place in zip(items, places, strict=True):
            try:
                x, label = parted(item)
            except DataError as error:
                raise self.fail(place, str(error)) from None
            if tuple(x.shape) != self.shape:
                raise self.fail(place, f"is of shape {list(x.shape)}, where others are of {list(self.shape)}; give all items one shape")
            if (x.dtype == torch.uint8) != self.bytes or not (self.bytes or x.is_floating_point()):
                kind = "bytes (torch.uint8)" if self.bytes else "floats"
                raise self.fail(place, f"is of type {x.dtype}, where others are {kind}; give all items one type")
            if self.num_classes is not None:
                if label is None:
                    raise self.fail(place, f"has no label, and there are {self.num_classes} classes; give (tensor, label)")
                if not 0 <= label < self.num_classes:
                    raise self.fail(
                        place, f"has the label {label}, which is none of the classes 0 to {self.num_classes - 1}; mend it, or num_classes"
                    )
                labels.append(label)
            found.append(x)
        x = torch.stack(found)
        if not self.bytes:
            self._check_finite(x, places)
        return x, torch.tensor(labels) if self.num_classes is not None else None

    def _check_finite(self, x: Tensor, places: Sequence[object]) -> None:
        if not (fine := x.isfinite()).all():
            bad = next(place for row, place in zip(fine, places, strict=True) if not row.all())
            raise self.fail(bad, "holds NaN or infinity; mend or remove it")


def parted(item: Any) -> tuple[Tensor, int | None]:
    """The tensor of an item and its label, if it has one. Raises DataError with the end of a sentence."""
    x, label = item, None
    if isinstance(item, Mapping):
        label_key = next((key for key in LABELS if key in item), None)
        tensors = [key for key, value in item.items() if key != label_key and isinstance(value, Tensor) and value.ndim]
        if len(tensors) != 1:
            raise DataError(f"is a dict with {len(tensors)} tensors (keys {', '.join(map(str, item))}); give one tensor beside 'label'")
        x, label = item[tensors[0]], item.get(label_key)
    elif isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise DataError(f"is a {type(item).__name__} of {len(item)}; give a tensor, or (tensor, label)")
        x, label = (*item, None)[:2]
    if not isinstance(x, Tensor):
        raise DataError(f"is a {type(x).__name__}, where a torch.Tensor is needed; turn it into one")
    return x, None if label is None else _label(label)


def _label(label: Any) -> int:
    whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if isinstance(label, Tensor):
        whole = label.ndim == 0 and not label.is_floating_point() and label.dtype != torch.bool
    if not whole:
        raise DataError(f"has the label {label!r}; labels are whole numbers from 0")
    return int(label)


def first_spec(name: str, items: Sequence[Any], places: Sequence[object], shape: Any = None) -> Spec:
    """What all items are to be, by the first ones (and `shape`, where the data set gives one), labels aside. Raises DataError."""
    try:
        first, _ = parted(items[0])
    except DataError as error:
        raise DataError(f"the data set {name}: item {places[0]} {error}") from None
    found = tuple(first.shape)
    if len(found) not in (1, 3) or 0 in found:
        raise DataError(f"the data set {name}: item {places[0]} is of shape {list(found)}; items are images [C, H, W] or points [D]")
    # a shape of another length is that of something else, such as of the whole array
    if isinstance(shape, Sequence) and len(shape) == len(found) and tuple(shape) != found:
        raise DataError(f"the data set {name} says shape {list(shape)}, and item {places[0]} is of {list(found)}; give the same")
    if not (first.is_floating_point() or (first.dtype == torch.uint8 and len(found) == 3)):
        allowed = "floats in [-1, 1] or bytes (torch.uint8)" if len(found) == 3 else "floats"
        raise DataError(f"the data set {name}: item {places[0]} is of type {first.dtype}; give {allowed}")
    spec = Spec(name, found, first.dtype == torch.uint8, None)
    x, _ = spec.batch(items, places)
    if len(found) == 3 and not spec.bytes and x.abs().max() > BEYOND:
        raise DataError(
            f"the data set {name}: its first images lie in [{x.min():.3g}, {x.max():.3g}], where images lie in [-1, 1]; scale them, "
            "or give bytes (torch.uint8)"
        )
    return spec


@contextlib.contextmanager
def chance(seed: int) -> Iterator[None]:
    """Inside, what a data set draws from torch, numpy or random on the CPU depends on `seed` alone; afterwards they are as they were."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not the GPU's, as torch.manual_seed would
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def in_words(error: Exception) -> str:
    """An exception of somebody's code in half a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
