"""Data that comes one item after another, with a held-out part in memory: from any iterable, such as a `datasets.IterableDataset`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.items import Pair, Spec, chance, first_spec
from fewstep.data.origin import Origin
from fewstep.data.own import EXCERPT, LOOKED_AT, UNCOUNTED, ForeignData, Items, class_names, is_map_style, most_items
from fewstep.data.shares import Shards, Share
from fewstep.data.units import Units

HELD_OUT = 2_000  # items, where nobody says
BUFFER = 1_000
EXCERPT_TIMES = 5  # as many training items as held-out ones are measured


class StreamData(ForeignData):
    """Items that come one after another.

    Args:
        shards: of the source.
        spec: of its items.
        class_names: one for each class.
        buffer: items that are shuffled together.
        heldout: where the held-out items come from, and how many of them; None for those that `shards` passes over.
        flip: whether a training image may be mirrored left to right.
        origin: where its items come from.

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
        """None: a stream does not say."""
        return None

    @property
    def heldout_size(self) -> int:
        """Items held out."""
        return self.heldout[1] if self.heldout else sum(self.shards.heldout.values())

    @property
    def note(self) -> str | None:
        """What a reader should know of the held-out items, if they are the first ones."""
        if self.heldout is not None:
            return None
        spread = f", spread over {len(self.shards.heldout)} of its {self.shards.num} shards," if self.shards.num > 1 else ""
        return f"{self.name}: its first {self.heldout_size:,} items{spread} are held out"

    def share(self, number: int, readers: int, seed: int) -> Share:
        """What reader `number` of `readers` reads."""
        return Share(self.shards, self.spec, number, readers, seed, self.buffer)

    def standardize(self, units: Units | None = None) -> None:
        """As of all data sets of one's own."""
        super().standardize(units)
        if self.heldout is not None and isinstance(self.heldout[0], Items):
            self.heldout[0].spec = self.spec

    def _numbers(self) -> tuple[Tensor, str]:
        """The first training items of some shards, which are not taken from training."""
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
        """`num` training items [num, ...] of those that `excerpt` holds, or all of them, drawn with `seed`."""
        return self.excerpt().some(num, seed)

    def _read_excerpt(self) -> tuple[Pair, Pair]:
        """The training items are the first of some shards, behind those that are held out."""
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
    """An iterable `source` of somebody's, as the package wants it.

    Its held-out part is `heldout`, another data set, or its own attribute ``heldout``: of either the first `heldout_items` (2,000); or
    else as many of its own first items, which are then not trained on. So many as `buffer` (1,000) are shuffled together. Its classes are
    `names`, or `num_classes` (0: labels are left alone), or what its attributes say as in `item_data`. `drawn` as in `Shards`. For the
    audit, `place` is where it lies, and `classes_by` what tells the classes. Raises DataError, one sentence, for what will not do.
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
    shown = f"{shards.num:,} shard{'s' * (shards.num > 1)} of {place or name}, read as it is asked for"
    classes = classes_by if names else "labels are left alone" if num_classes == 0 else "its items have no labels"
    origin = Origin(shown, classes=classes, train="all others of a stream", heldout=how, remarks=(UNCOUNTED,) if names else ())
    return StreamData(shards, spec, names, BUFFER if buffer is None else buffer, kept, flip, origin)
