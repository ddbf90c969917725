"""Data that comes one item after another, from any iterable, such as a `datasets.IterableDataset`; the held-out part is in memory."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.items import Pair, Spec, chance, first_spec
from fewstep.data.origin import Origin
from fewstep.data.own import EXCERPT, LOOKED_AT, UNCOUNTED, ForeignData, Items, class_names, is_map_style, most_items
from fewstep.data.shares import Shards, Share
from fewstep.data.units import Units

HELD_OUT = 2_000  # items held out by default
BUFFER = 1_000  # items shuffled together by default
EXCERPT_TIMES = 5  # training items in an excerpt for each held-out item, at most


class StreamData(ForeignData):
    """A data set whose items come one after another.

    Args:
        shards: the source of the items, in its shards.
        spec: what all items have in common.
        class_names: one name per class; empty without classes.
        buffer: number of items that are shuffled together.
        heldout: the source of the held-out items, and their number; None if they are the items of `shards` that training skips.
        flip: whether a training image may be mirrored left to right.
        origin: where the items come from.

    """

    def __init__(
        self,
        shards: Shards,
        spec: Spec,
        class_names: tuple[str, ...],
        buffer: int,
        heldout: tuple[Shards | Items, int] | None = None,
        flip: bool = False,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(spec, class_names, flip, origin)
        self.shards, self.buffer, self.heldout = shards, buffer, heldout

    @property
    def train_size(self) -> None:
        """None: the number of items in a stream is unknown."""
        return None

    @property
    def heldout_size(self) -> int:
        """Number of held-out items."""
        return self.heldout[1] if self.heldout else sum(self.shards.heldout.values())

    @property
    def note(self) -> str | None:
        """A note for the user that the first items are held out; None if the held-out items have another source."""
        if self.heldout is not None:
            return None
        spread = f", spread over {len(self.shards.heldout)} of its {self.shards.num} shards," if self.shards.num > 1 else ""
        return f"{self.name}: its first {self.heldout_size:,} items{spread} are held out"

    def share(self, number: int, readers: int, seed: int) -> Share:
        """Return the `Share` of the items that reader `number` of `readers` reads, in an order drawn from `seed`."""
        return Share(self.shards, self.spec, number, readers, seed, self.buffer)

    def standardize(self, units: Units | None = None) -> None:
        """Convert points to standard units from here on, as `ForeignData.standardize` does, held-out points included."""
        super().standardize(units)
        if self.heldout is not None and isinstance(self.heldout[0], Items):
            self.heldout[0].spec = self.spec

    def _numbers(self) -> tuple[Tensor, str]:
        """Return the first training items of some shards, and how many they are, in words; training still uses these items."""
        own, more = self.shards.heldout, self.shards.spread(most_items(self.spec))
        items: list[tuple[str, Any]] = []
        with chance(0):
            for shard in sorted(more):
                items += self.shards.first(shard, own.get(shard, 0) + more[shard])[own.get(shard, 0) :]
        if not items:
            raise DataError(
                f"the data set {self.name} has too few items to train on, {self.heldout_size} held out; lower data.heldout_items"
            )
        found = self.spec.stacked([item for _, item in items], [place for place, _ in items])[0]
        return found, f", the {len(items):,} of its items that were looked at"

    def some(self, num: int, seed: int) -> Tensor:
        """Return `num` of the training items in the excerpt [num, ...], or all if there are fewer, drawn with `seed`."""
        return self.excerpt().some(num, seed)

    def _read_excerpt(self) -> tuple[Pair, Pair]:
        """Return training and held-out items; the training items are the first of some shards, after the held-out ones.

        Raises DataError if there are too few items to train on or to hold out.
        """
        own = self.shards.heldout
        more = self.shards.spread(min(EXCERPT, EXCERPT_TIMES * self.heldout_size, most_items(self.spec)))
        train: list[tuple[str, Any]] = []
        held: list[tuple[str, Any]] = []
        with chance(0):
            for shard in sorted({*own, *more}):
                items = self.shards.first(shard, own.get(shard, 0) + more.get(shard, 0))
                held += items[: own.get(shard, 0)]
                train += items[own.get(shard, 0) :]
            if self.heldout and isinstance(self.heldout[0], Shards):
                for shard, num in self.heldout[0].spread(self.heldout[1]).items():
                    held += self.heldout[0].first(shard, num)
        for items, what in ((train, "train on"), (held, "hold out")):
            if not items and not (what == "hold out" and self.heldout and isinstance(self.heldout[0], Items)):
                num = len(train) + len(held)
                advice = "lower data.heldout_items" if self.heldout else f"data.heldout_items={max(1, num // 10)} would do"
                raise DataError(
                    f"the data set {self.name} has too few items to {what}, {self.heldout_size} held out of {num} found; "
                    + (advice if num > 1 or self.heldout else "give at least 2 items")
                )
        if self.heldout and isinstance(self.heldout[0], Items):
            return self._together(train), self.heldout[0].excerpt(0, self.heldout[1])
        return self._together(train), self._together(held)

    def _together(self, items: list[tuple[str, Any]]) -> Pair:
        return self.spec.batch([item for _, item in items], [place for place, _ in items])


def stream_data(
    source: Any,
    name: str,
    heldout: Any = None,
    num_classes: int | None = None,
    heldout_items: int | None = None,
    buffer: int | None = None,
    convert: Callable[[Any], Any] = lambda item: item,
    names: tuple[str, ...] | None = None,
    flip: bool = False,
    drawn: bool = True,
    place: str = "",
    classes_by: str = "the data set itself",
) -> StreamData:
    """Return the user's iterable `source` as a `StreamData`.

    The held-out part is the first `heldout_items` items (2,000 by default) of `heldout`, which is another data set, or of the attribute
    ``heldout`` of `source`; without either, of `source` itself, and training skips them. `buffer` items (1,000 by default) are shuffled
    together. `convert` turns what `source` yields into an item. The classes are `names`, or `num_classes` (0: labels are ignored), or given
    by attributes of `source` as in `fewstep.data.own.item_data`. `drawn` is an argument of `Shards`. For the audit, `place` is where the
    data lies, and `classes_by` is what determines the classes. Raises DataError, with one sentence, for a source or items that are invalid.
    """
    other = heldout if heldout is not None else getattr(source, "heldout", None)
    held = HELD_OUT if heldout_items is None else heldout_items
    shards = Shards(source, name, convert, 0 if other is not None else held, drawn)
    with chance(0):
        first = [item for _, item in shards.first(0, LOOKED_AT)]
    if not first:
        raise DataError(f"the data set {name} has no items")
    places = range(len(first))
    spec = first_spec(name, first, places, getattr(source, "shape", None))
    if names is None:
        names = class_names(source, name, first[0], num_classes, lambda: None)
    spec = Spec(name, spec.shape, spec.bytes, len(names) or None)
    spec.batch(first, places)
    kept: tuple[Shards | Items, int] | None = None
    if other is not None and is_map_style(other):
        kept = (Items(other, spec), min(held, len(other)))
    elif other is not None:
        if not hasattr(other, "__iter__"):
            raise DataError(f"the data set {name}: its heldout is a {type(other).__name__}; give a data set")
        kept = (Shards(other, f"{name}, its held-out part,", convert), held)
    spread = f", spread over {len(shards.heldout)} of {shards.num} shards" if shards.num > 1 else ""
    how = f"the first items (data.heldout_items){spread}" if kept is None else "the first items of another data set (data.heldout_items)"
    shown = f"{shards.num:,} shard{'s' * (shards.num > 1)} of {place or name}, read on demand"
    classes = classes_by if names else "labels are ignored" if num_classes == 0 else "its items have no labels"
    origin = Origin(shown, classes=classes, train="all other items of the stream", heldout=how, remarks=(UNCOUNTED,) if names else ())
    return StreamData(shards, spec, names, BUFFER if buffer is None else buffer, kept, flip, origin)
