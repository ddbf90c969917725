"""The items of a user's own data set: the forms they may have, their batches, and the messages about invalid items.

An item is a tensor, ``(tensor, label)``, ``(tensor,)``, or a dict with exactly one tensor of at least one dimension and, for classes, an
entry with one of the names `fewstep.data.tables.LABELS`, such as "label"; the dict's other entries are ignored. Images are [C, H, W],
either floats in [-1, 1] or bytes, of which 0 to 255 are mapped to [-1, 1]; points are floats [D]. Labels are integers from 0.
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

HALF = 127.5  # the byte value that is mapped to 0
BEYOND = 1.01  # largest absolute value in an image of floats: above 1 for rounding, but too small for another scale

Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Spec:
    """What all items of a data set have in common.

    Attributes:
        name: name of the data set, for messages.
        shape: shape of one item.
        bytes: whether items are unsigned bytes.
        num_classes: number of classes, which labels lie below; None if labels are ignored.
        units: units in which points come, and from which batches are converted to standard units; None if batches keep the points
            unchanged.

    """

    name: str
    shape: tuple[int, ...]
    bytes: bool
    num_classes: int | None
    units: Units | None = field(default=None, compare=False)

    def fail(self, place: object, what: str) -> DataError:
        """Return an error whose message says `what` is wrong with the item at `place`."""
        return DataError(f"the data set {self.name}: item {place} {what}")

    def batch(self, items: Sequence[Any], places: Sequence[object]) -> Pair:
        """Return `items` as one batch: bytes or float32 [B, ...], and labels int64 [B] or None.

        Points are converted to standard units if `units` are set. Raises DataError, naming the item by its entry in `places`, for an
        invalid item.
        """
        x, label = self.stacked(items, places)
        if self.units is not None:
            return self.units.standard(x), label
        if x.dtype == torch.float64:
            x = x.float()
            self._check_finite(x, places)
        return x if self.bytes else x.float(), label

    def stacked(self, items: Sequence[Any], places: Sequence[object]) -> Pair:
        """Return `items` as one batch in their own dtype and units, and labels int64 [B] or None. Raises DataError as `batch` does."""
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
    """Return the tensor of an item, and its label or None.

    Raises DataError for an invalid item; its message is the end of a sentence, and the caller puts the item's name before it.
    """
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
    """Return what all items must have in common, derived from the first `items`; labels are left to the caller.

    `shape` is the attribute of that name of the data set, if it has one. Raises DataError for items that are invalid or of another shape.
    """
    try:
        first, _ = parted(items[0])
    except DataError as error:
        raise DataError(f"the data set {name}: item {places[0]} {error}") from None
    found = tuple(first.shape)
    if len(found) not in (1, 3) or 0 in found:
        raise DataError(f"the data set {name}: item {places[0]} is of shape {list(found)}; items are images [C, H, W] or points [D]")
    # an attribute `shape` of another length describes something else, such as the whole array
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
    """Make what torch, numpy and random draw on the CPU inside the context depend on `seed` alone, and restore their states afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's generator as well
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def in_words(error: Exception) -> str:
    """Return the type and the first line of an exception that a user's code raised."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
