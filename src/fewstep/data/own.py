"""A user's own data set, whose items are read on request: map-style, stored anywhere, and possibly larger than memory.

`ItemData` has items by number, from any ``torch.utils.data.Dataset`` with a length; iterables become `fewstep.data.iterables.StreamData`.
`fewstep.training.loading` makes the batches of both for the training loop.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.holdout import advice, count_fitting
from fewstep.data.images import ImageData
from fewstep.data.items import HALF, Pair, Spec, chance, first_spec, in_words, parted
from fewstep.data.origin import Origin
from fewstep.data.parts import TwoParts
from fewstep.data.points import PointData
from fewstep.data.tables import LABELS
from fewstep.data.units import Units, units_of
from fewstep.streams import uniform

HOLDOUT = 0.1  # fraction of the items held out by default, if the data set has no held-out part
LOOKED_AT = 8  # first items, from which the shape and dtype of all items are taken
EXCERPT = 10_000  # items of each part that are held in memory for measuring, at most
EXCERPT_BYTES = 2**29  # bytes of these items, at most
READ = 500  # items read together
UNCOUNTED = "the items of each class are not counted, because items are read on demand."

Say = Callable[[str], None]


class Items:
    """The items of a map-style `dataset`: all, or those at `index` int64 [N]; `spec` is what they have in common."""

    def __init__(self, dataset: Any, spec: Spec, index: Tensor | None = None) -> None:
        self.dataset, self.spec, self.index = dataset, spec, index

    def __len__(self) -> int:
        return len(self.dataset) if self.index is None else len(self.index)

    def read(self, rows: Sequence[int], seed: int) -> Pair:
        """Return the items `rows` as bytes or float32 [B, ...], and their labels or None.

        What the data set draws at random depends on `seed` alone. Raises DataError if the data set raises an exception, or for an invalid
        item.
        """
        places = list(rows) if self.index is None else self.index[torch.as_tensor(rows)].tolist()
        with chance(seed):
            items = fetched(self.dataset, self.spec.name, places)
        return self.spec.batch(items, places)

    def numbers(self, num: int) -> Tensor:
        """Return `num` random items, or all if there are fewer, [N, ...] in their own dtype and units. Raises DataError as `read` does."""
        num = min(num, len(self))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:num].sort().values
        found = []
        for first in range(0, num, READ):
            rows = order[first : first + READ]
            places = rows.tolist() if self.index is None else self.index[rows].tolist()
            with chance(first):
                items = fetched(self.dataset, self.spec.name, places)
            found.append(self.spec.stacked(items, places)[0])
        return torch.cat(found)

    def excerpt(self, seed: int, num: int | None = None) -> Pair:
        """Return `num` random items and their labels, or all items in their own order if there are no more; None stands for `most_items`.

        Raises DataError as `read` does.
        """
        num = min(len(self), most_items(self.spec) if num is None else num)
        order = torch.arange(num) if num == len(self) else torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:num]
        x = torch.empty((num, *self.spec.shape), dtype=torch.uint8 if self.spec.bytes else torch.float32)
        label = None if self.spec.num_classes is None else torch.empty(num, dtype=torch.long)
        for first in range(0, num, READ):  # written in place: joining a list of parts would hold all items twice
            part, its_label = self.read(order[first : first + READ].tolist(), seed + first)
            x[first : first + READ] = part
            if label is not None and its_label is not None:
                label[first : first + READ] = its_label
        return x, label


def fetched(dataset: Any, name: str, places: Sequence[int]) -> list[Any]:
    """Return the items at `places`, in one call if the data set has the method ``__getitems__``.

    Raises DataError for any exception that the data set raises.
    """
    together = getattr(dataset, "__getitems__", None)
    if together is not None:
        try:
            return list(together(list(places)))
        except Exception as error:
            raise DataError(f"the data set {name} raised {in_words(error)}, at items {places[0]} to {places[-1]}") from error
    items = []
    for place in places:
        try:
            items.append(dataset[place])
        except Exception as error:  # a user's code may raise anything
            raise DataError(f"the data set {name} raised {in_words(error)}, at item {place}") from error
    return items


def most_items(spec: Spec) -> int:
    """Return how many items of each part are held in memory for measuring."""
    size = (1 if spec.bytes else 4) * torch.Size(spec.shape).numel()
    return max(100, min(EXCERPT, EXCERPT_BYTES // size))


class ForeignData(ABC):
    """Base class of a user's own data set, with the interface of `fewstep.data.protocol.Data`.

    Args:
        spec: what all items have in common.
        class_names: one name per class; empty without classes.
        flip: whether a training image may be mirrored left to right.
        origin: where the items come from.

    """

    def __init__(self, spec: Spec, class_names: tuple[str, ...], flip: bool = False, origin: Origin | None = None) -> None:
        self.spec, self.class_names, self.flip = spec, class_names, flip
        self.origin = origin
        self._excerpt: ImageData | PointData | None = None

    @property
    def name(self) -> str:
        """Name of the data set in tables."""
        return self.spec.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item: (C, H, W) of images, (D,) of points."""
        return self.spec.shape

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without classes."""
        return self.spec.num_classes

    @property
    def mixture(self) -> None:
        """None: the density of the data is not known."""
        return None

    @property
    def units(self) -> Units | None:
        """Units in which the points come, if training uses standard units; None if it uses the points unchanged."""
        return self.spec.units

    def standardize(self, units: Units | None = None) -> None:
        """Convert points to standard units from here on: from `units`, or else from the units found in at most 10,000 training items.

        Raises DataError if `units` have another number of columns, and as `fewstep.data.units.units_of` does.
        """
        if units is None:
            x, which = self._numbers()
            array = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
            units = units_of(array, f"the data set {self.name}{which}")
        elif units.scale.shape != self.shape:
            raise DataError(
                f"the data set {self.name} has items of shape {list(self.shape)}, and the run was trained on {len(units.scale)} columns; "
                "give the data that it was trained on, or begin another run"
            )
        self.spec, self._excerpt = replace(self.spec, units=units), None

    @abstractmethod
    def _numbers(self) -> tuple[Tensor, str]:
        """Return some training points [N, D] in their own units, and which of the points these are, in words; "" for all."""

    @property
    @abstractmethod
    def train_size(self) -> int | None:
        """Number of training items; None if it is unknown."""

    @property
    @abstractmethod
    def heldout_size(self) -> int:
        """Number of held-out items."""

    @abstractmethod
    def some(self, num: int, seed: int) -> Tensor:
        """Return `num` training items [num, ...], or all if there are fewer, drawn with `seed` and prepared as for training."""

    def placed(self, pair: Pair, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return the batch `pair` as read, on `device`, scaled and mirrored as in training: float32 [B, ...], and labels or None."""
        x, label = pair
        x = x.to(device, non_blocking=True)
        if self.spec.bytes:
            x = x.float() / HALF - 1
        if self.flip:
            mirrored = uniform((len(x),), rng).to(device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x, None if label is None else label.to(device, non_blocking=True)

    def excerpt(self) -> ImageData | PointData:
        """Return both parts in memory for measuring, each of at most 10,000 items and, above 100 items, 512 MiB.

        The items are read once. Raises DataError if the data set raises an exception, or for an invalid item.
        """
        if self._excerpt is None:
            (x, label), (held, held_label) = self._read_excerpt()
            if len(self.shape) == 1:
                self._excerpt = PointData(self.name, x, held, units=self.units, origin=self.origin)
            else:
                half = HALF if self.spec.bytes else None
                self._excerpt = ImageData(self.name, x, held, label, held_label, half, self.class_names, self.flip, origin=self.origin)
        return self._excerpt

    @abstractmethod
    def _read_excerpt(self) -> tuple[Pair, Pair]:
        """Return training items and held-out items, each with labels or None."""


class ItemData(TwoParts, ForeignData):
    """A map-style data set in two parts, `train` and `heldout`."""

    def __init__(
        self, train: Items, heldout: Items, class_names: tuple[str, ...], flip: bool = False, origin: Origin | None = None
    ) -> None:
        super().__init__(train.spec, class_names, flip, origin)
        self.train, self.heldout = train, heldout

    def standardize(self, units: Units | None = None) -> None:
        """Convert the points of both parts to standard units from here on, as `ForeignData.standardize` does."""
        super().standardize(units)
        self.train.spec = self.heldout.spec = self.spec

    def _numbers(self) -> tuple[Tensor, str]:
        num = most_items(self.spec)
        return self.train.numbers(num), f", {num:,} of its items" if num < len(self.train) else ""

    def some(self, num: int, seed: int) -> Tensor:
        """Return `num` training items [num, ...], or all if there are fewer, drawn with `seed` and prepared as for training."""
        rng = torch.Generator().manual_seed(seed)
        return self.placed(self.train.excerpt(seed, num), rng, torch.device("cpu"))[0]

    def _read_excerpt(self) -> tuple[Pair, Pair]:
        return self.train.excerpt(0), self.heldout.excerpt(0)


def item_data(
    dataset: Any,
    name: str,
    heldout: Any = None,
    holdout: float | None = None,
    num_classes: int | None = None,
    say: Say = lambda text: None,
) -> ItemData:
    """Return the user's map-style `dataset` as an `ItemData`.

    The held-out part is `heldout`, another map-style data set, or the attribute ``heldout`` of `dataset`, or else the fraction `holdout`
    (0.1 by default) of the items, chosen with seed 0. The number of classes is `num_classes` (0: labels are ignored), or given by an
    attribute (``class_names``, ``classes``, ``num_classes``), or else found in the labels (attributes ``targets`` or ``labels``, or all
    items, which are then read). `say` is called with each assumption that was made. Raises DataError, with one sentence, for a data set or
    items that are invalid.
    """
    other = heldout if heldout is not None else getattr(dataset, "heldout", None)
    _check_length(dataset, name)
    places = range(min(LOOKED_AT, len(dataset)))
    with chance(0):
        first = fetched(dataset, name, places)
    spec = first_spec(name, first, places, getattr(dataset, "shape", None))
    names = class_names(dataset, name, first[0], num_classes, lambda: _labels(dataset, name, say))
    spec = Spec(name, spec.shape, spec.bytes, len(names) or None)
    spec.batch(first, places)
    if other is not None:
        if holdout is not None:
            raise DataError(f"data.holdout is {holdout}, and the data set {name} has a held-out part of its own; leave the key out")
        if not is_map_style(other):
            raise DataError(f"the data set {name}: its heldout is a {type(other).__name__}; give a data set with __len__ and __getitem__")
        _check_length(other, f"{name}, its held-out part,")
        train, held = Items(dataset, spec), Items(other, spec)
    else:
        train, held = _split(dataset, spec, HOLDOUT if holdout is None else holdout)
    held.read(range(min(LOOKED_AT, len(held))), 0)
    if len(spec.shape) == 3 and not spec.bytes and min(parted(item)[0].min().item() for item in first) >= 0:
        say(f"{name}: no pixel of its first images is below 0, and images must lie in [-1, 1]; check whether these need scaling")
    if len(train) > most_items(spec):
        say(f"{name}: measuring looks at {most_items(spec):,} of its {len(train):,} training items, at random")
    fraction = HOLDOUT if holdout is None else holdout
    how = "a data set of its own" if other is not None else f"the fraction {fraction:.15g} of the items (data.holdout), chosen by seed 0"
    place = f"a data set of one's own, {type(dataset).__module__}:{type(dataset).__qualname__}"
    classes = "the data set itself" if names else "data.num_classes is 0" if num_classes == 0 else "its items have no labels"
    origin = Origin(place, "item", len(train) + len(held), (), classes, "", how, (UNCOUNTED,) if names else ())
    return ItemData(train, held, names, origin=origin)


def _split(dataset: Any, spec: Spec, holdout: float) -> tuple[Items, Items]:
    held = round(holdout * len(dataset))
    if not 0 < held < len(dataset):
        value = count_fitting(holdout, len(dataset), 1)
        raise DataError(
            f"the data set {spec.name} has {len(dataset)} item(s), of which data.holdout {holdout} takes {held}; each part needs one: "
            + advice(value)
        )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    return Items(dataset, spec, order[held:].sort().values), Items(dataset, spec, order[:held].sort().values)


def _check_length(dataset: Any, name: str) -> None:
    try:
        num = len(dataset)
    except Exception as error:
        raise DataError(f"the data set {name} raised {in_words(error)}, asked for its length") from error
    if not num:
        raise DataError(f"the data set {name} has no items")


def is_map_style(dataset: Any) -> bool:
    """Return whether a data set has items by number: ``__len__`` and ``__getitem__``, and not an iterable data set, text or dict."""
    iterable = isinstance(dataset, torch.utils.data.IterableDataset)
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not iterable and not isinstance(dataset, str | dict)


def class_names(
    dataset: Any, name: str, first: Any, num_classes: int | None, labels: Callable[[], Sequence[Any] | None]
) -> tuple[str, ...]:
    """Return the names of the classes; empty without classes.

    They follow from `num_classes` or the attributes of `dataset`; if neither gives a number, `labels` is called, which returns all labels
    or None. Raises DataError if the number of classes cannot be found, or if the `first` item has no label although there are classes.
    """
    label = parted(first)[1]
    if num_classes == 0 or (label is None and num_classes is None and _declared(dataset) is None):
        return ()
    declared = _declared(dataset)
    found: int | tuple[str, ...] | None = declared if num_classes is None else num_classes
    if isinstance(declared, tuple) and found == len(declared):
        found = declared
    if label is None:
        count = found if isinstance(found, int) else len(found or ())
        raise DataError(
            f"the data set {name} has {count} classes, and its items have no label; give (tensor, label), or data.num_classes: 0"
        )
    if found is None:
        values = labels()
        if values is None:
            raise DataError(
                f"the data set {name} has labels, and does not say of how many classes; give data.num_classes (0: without classes)"
            )
        found = max(values) + 1
        if min(values) < 0:
            raise DataError(f"the data set {name} has the label {min(values)}; labels are whole numbers from 0")
    return found if isinstance(found, tuple) else tuple(map(str, range(found)))


def _declared(dataset: Any) -> int | tuple[str, ...] | None:
    """Return the names or the number of the classes; None if `dataset` states neither.

    They are stated by attributes, or by the features of a data set of the library `datasets`.
    """
    for attribute in ("class_names", "classes", "num_classes"):
        value = getattr(dataset, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if isinstance(value, list | tuple) and value:
            return tuple(map(str, value))
    features = getattr(dataset, "features", None)
    if isinstance(features, dict):
        for key in LABELS:
            if names := getattr(features.get(key), "names", None):
                return tuple(map(str, names))
    return None


def _labels(dataset: Any, name: str, say: Say) -> list[int]:
    """Return the labels of all items, from an attribute of the same length, or else by reading every item.

    Raises DataError for a label that is missing or invalid. `say` is called before items are read.
    """
    for attribute in ("targets", "labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and hasattr(values, "__len__") and len(values) == len(dataset):
            try:
                return [parted((torch.zeros(1), value))[1] or 0 for value in (values.tolist() if hasattr(values, "tolist") else values)]
            except DataError as error:
                raise DataError(f"the data set {name}: an item {error}") from None
    say(
        f"{name}: reading the labels of all {len(dataset):,} items, because it does not state its classes; data.num_classes, or an "
        "attribute num_classes or class_names, avoids this"
    )
    found: list[int] = []
    for first in range(0, len(dataset), READ):
        places = range(first, min(first + READ, len(dataset)))
        with chance(0):
            items = fetched(dataset, name, places)
        for item, place in zip(items, places, strict=True):
            try:
                label = parted(item)[1]
            except DataError as error:
                raise DataError(f"the data set {name}: item {place} {error}") from None
            if label is None:
                raise DataError(f"the data set {name}: item {place} has no label, and others have; give all items one")
            found.append(label)
    return found
