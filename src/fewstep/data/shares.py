"""Data that comes one item after another: an iterable data set, divided among readers, shuffled, and resumed exactly.

A source is an iterable. One with ``num_shards`` and ``shard(num_shards=, index=)``, such as a `datasets.IterableDataset` of parquet files,
is read one shard at a time. Each of several readers (processes times workers) gets the same number of shards to itself; the shards left
over are read by all k readers, each of which takes every k-th item. So no item comes twice in an epoch, and all readers finish the epoch
together if the shards have equal sizes.

Shuffling is by blocks: the next `buffer` items come in a random order, while the following block is read at the pace at which the current
one is used. The content of a block need not be saved: the position at which it began, and the number of its items already used, determine
it. A state is therefore a few plain numbers, and resuming reads at most one block again. A source with ``state_dict`` and
``load_state_dict`` resumes at its position; any other source is read again from the beginning of the shard, and the items already used are
skipped.
"""

import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch

from fewstep.data.errors import DataError
from fewstep.data.items import Pair, Spec, chance, in_words
from fewstep.streams import stream, stream_seed

SPREAD = 16  # shards, at most, from which the held-out items are taken


class Shards:
    """An iterable source, divided into its shards.

    Args:
        source: the iterable.
        name: name of the data set, for messages.
        convert: function from what the source yields to an item; it raises DataError with the end of a sentence, which begins with the
            item's name.
        heldout: number of held-out items, the first of up to `SPREAD` shards; readers skip them.
        drawn: whether the source may draw from torch, numpy or random; if so, what it draws is made to depend on the item's position alone.

    """

    def __init__(
        self, source: Any, name: str, convert: Callable[[Any], Any] = lambda item: item, heldout: int = 0, drawn: bool = True
    ) -> None:
        self.source, self.name, self.convert, self.drawn = source, name, convert, drawn
        self.sharded = hasattr(source, "shard") and hasattr(source, "num_shards")
        self.num = max(1, int(source.num_shards)) if self.sharded else 1
        self.heldout = self.spread(heldout)
        self.initial = None if self.sharded else self.state(source)

    def spread(self, num: int) -> dict[int, int]:
        """Return how many of `num` items to take from each of up to `SPREAD` evenly spaced shards, by number of the shard."""
        used = min(self.num, SPREAD, num)
        return {k * self.num // used: num // used + (k < num % used) for k in range(used)}

    def part(self, number: int) -> Any:
        """Return shard `number`, at its beginning."""
        if self.sharded:
            return self.source.shard(num_shards=self.num, index=number)
        if self.initial is not None:
            self.source.load_state_dict(self.initial)
        return self.source

    def first(self, number: int, num: int) -> list[tuple[str, Any]]:
        """Return the first `num` items of shard `number`, or all if there are fewer: pairs of the item's name and the item.

        Raises DataError if the source raises an exception, or for an invalid item.
        """
        found: list[tuple[str, Any]] = []
        for raw in islice(self.items(number), num):
            place = self.place(len(found), number)
            found.append((place, self.converted(raw, place)))
        return found

    def place(self, count: int, number: int) -> str:
        """Return the name of an item in messages: `count` is its position in shard `number`."""
        return f"{count} of shard {number}" if self.num > 1 else str(count)

    def converted(self, raw: Any, place: str) -> Any:
        """Return the item converted from `raw`, as the source yielded it. Raises DataError, naming `place`, if it is invalid."""
        try:
            return self.convert(raw)
        except DataError as error:
            raise DataError(f"the data set {self.name}: item {place} {error}") from None

    def state(self, part: Any) -> Any:
        """Return the state of `part`, or None if it has no ``state_dict``. Raises DataError for a state that a checkpoint cannot hold."""
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            return None
        state = part.state_dict()
        try:
            text = json.dumps(state)
            plain = json.loads(text) == state
        except (TypeError, ValueError):
            plain = False
        if not plain:
            raise DataError(
                f"the data set {self.name}: its state_dict() holds more than a checkpoint keeps; give strings, numbers, lists and dicts "
                "with strings for keys"
            )
        return json.loads(text)

    def items(self, number: int, part: Any = None) -> Iterator[Any]:
        """Yield the items of shard `number`, read from `part` if that is given. Raises DataError for any exception of the source."""
        try:
            yield from self.part(number) if part is None else part
        except DataError:
            raise
        except Exception as error:  # a user's code, a network or a damaged file may raise anything
            where = f", in shard {number} of {self.num}" if self.num > 1 else ""
            raise DataError(f"the data set {self.name} raised {in_words(error)}{where}") from error


class Share:
    """The items that one of several readers reads, epoch after epoch.

    Args:
        shards: the source of the items, in its shards.
        spec: what all items have in common.
        number: number of the reader, from 0.
        readers: number of readers.
        seed: seed of the order of shards, and of items within a block.
        buffer: number of items in a block.

    """

    def __init__(self, shards: Shards, spec: Spec, number: int, readers: int, seed: int, buffer: int) -> None:
        self.shards, self.spec, self.number, self.seed, self.buffer = shards, spec, number, seed, buffer
        self.readers, self.whole = readers, shards.num // readers * readers  # shards below `whole` are dealt out, others read by all
        self.mine = [*range(number, self.whole, readers), *range(self.whole, shards.num)]
        self.epoch = self.place = self.given = 0
        self.order: tuple[int, list[int]] | None = None
        self.file: tuple[Any, Iterator[Any]] | None = None
        self.count = 0  # items read from the open shard, including skipped ones
        self.block: list[tuple[str, Any]] = []
        self.taken = self.blocks = 0
        self.began: dict[str, Any] = {}
        self.next: list[tuple[str, Any]] = []
        self.next_began: dict[str, Any] | None = None
        self.next_whole = False

    def take(self, num: int) -> Pair:
        """Return the next `num` items as a batch. Raises DataError if the source raises an exception, or for an invalid item."""
        raw: list[tuple[str, Any]] = []
        while len(raw) < num:
            if self.taken == len(self.block):
                self._begin_block()
            part = self.block[self.taken : self.taken + num - len(raw)]
            self.taken += len(part)
            raw += part
            self._read_ahead(len(part))  # at the pace of this block's use, so that no step waits for a whole block
        return self.spec.batch([self.shards.converted(one, place) for place, one in raw], [place for place, _ in raw])

    def state(self) -> dict[str, Any]:
        """Return the reader's position between two batches as plain numbers; empty before the first batch."""
        return {**self.began, "blocks": self.blocks, "taken": self.taken} if self.began else {}

    def go_on(self, state: dict[str, Any]) -> None:
        """Resume at the position `state`; an empty one is the beginning.

        The current block is read again. Raises DataError as `take` does.
        """
        if not state:
            return
        self.epoch, self.place, self.given = state["epoch"], state["place"], state["given"]
        if state["file"] is not None:
            self._open(state["file"])
        # from `state`, because a shard that was just opened may not yet report its position
        self.next_began = {key: state[key] for key in ("epoch", "place", "given", "file")}
        self.blocks = state["blocks"] - 1
        self._begin_block()
        self.taken = state["taken"]

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch that is read next, before any item is taken."""
        self.epoch = epoch

    def _begin_block(self) -> None:
        self._read_ahead(self.buffer)
        assert self.next_began is not None
        order = torch.randperm(len(self.next), generator=stream(self.seed, "blocks", self.number, self.blocks)).tolist()
        self.block, self.began, self.taken = [self.next[k] for k in order], self.next_began, 0
        self.next, self.next_began, self.next_whole = [], None, False
        self.blocks += 1

    def _read_ahead(self, num: int) -> None:
        """Read up to `num` more items of the next block, which ends with the epoch at the latest."""
        if self.next_began is None:
            self.next_began = self._position()
        wanted = min(self.buffer, len(self.next) + num)
        while not self.next_whole and len(self.next) < wanted:
            item = self._one()
            if item is not None:
                self.next.append(item)
            elif self.next:
                self.next_whole = True  # items of the next epoch belong to another block
            else:
                self.next_began = self._position()
        self.next_whole |= len(self.next) == self.buffer

    def _one(self) -> tuple[str, Any] | None:
        """Return the name of the next item, and the item; None at the end of an epoch, after which the next call begins another epoch."""
        order = self._order()
        while self.place < len(order):
            shard = order[self.place]
            if self.file is None:
                self._open(None)
            assert self.file is not None
            held = self.shards.heldout.get(shard, 0)
            every, first = (1, 0) if shard < self.whole else (self.readers, (self.number + shard) % self.readers)
            with self._chance():
                for item in self.file[1]:
                    self.count += 1
                    if self.count > held and (self.count - held - 1) % every == first:
                        self.given += 1
                        return self.shards.place(self.count - 1, shard), item
            self.place, self.file = self.place + 1, None
        if not self.given:
            raise DataError(
                f"the data set {self.spec.name}: no item is left for reader {self.number + 1} to train on, "
                f"{sum(self.shards.heldout.values())} being held out; lower data.heldout_items, the number of processes or trainer.workers"
            )
        self.epoch, self.place, self.given = self.epoch + 1, 0, 0
        return None

    def _order(self) -> list[int]:
        """Return the shards of the current epoch in the order in which they are read."""
        if self.order is None or self.order[0] != self.epoch:
            order = torch.randperm(len(self.mine), generator=stream(self.seed, "shards", self.number, self.epoch))
            self.order = (self.epoch, [self.mine[k] for k in order.tolist()])
        return self.order[1]

    def _chance(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the source draws for the next item."""
        if not self.shards.drawn:
            return contextlib.nullcontext()
        return chance(stream_seed(self.seed, "stream items", self.number, self.epoch, self.place, self.count))

    def _position(self) -> dict[str, Any]:
        file = None if self.file is None else {"count": self.count, "source": self.shards.state(self.file[0])}
        return {"epoch": self.epoch, "place": self.place, "given": self.given, "file": file}

    def _open(self, state: dict[str, Any] | None) -> None:
        """Open the current shard at the position `state`, or at its beginning for None."""
        shard = self._order()[self.place]
        part = self.shards.part(shard)
        self.count = state["count"] if state else 0
        source = state["source"] if state else None
        if source is not None:
            part.load_state_dict(source)
        items = self.shards.items(shard, part)
        if source is None and self.count:
            with chance(0):  # what skipped items draw does not matter: the seed is set anew for each item
                deque(islice(items, self.count), 0)
        self.file = (part, items)
