"""Data that comes one item after another: a data set that can only be iterated, dealt out to readers, shuffled, and gone on with exactly.

A source is an iterable; one with ``num_shards`` and ``shard(num_shards=, index=)``, as a `datasets.IterableDataset` of parquet files has
them, is read a shard at a time. Each of several readers (processes times workers) takes as many shards of its own as all can have; of those
left over, which all of them read, each takes items of its own, every k-th for k readers. So nothing comes twice in an epoch, and all
readers come to the end of it together where the shards are of one size.

Shuffling is by blocks: the next `buffer` items, in a random order of their own, while the block after it is read as fast as this one is
used up. So the content of the buffer need not be kept: where it began, and how far it was used, says it all. A state is a few plain
numbers, and going on reads a block again at most. A source with ``state_dict`` and ``load_state_dict`` goes on where it stood; any other
is read again from the beginning of the shard, and what had come is passed over.
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

SPREAD = 16  # shards that the held-out items are taken from


class Shards:
    """A source that can be iterated, in its shards.

    Args:
        source: what is iterated.
        name: for messages.
        convert: from what comes to an item; it raises DataError with the end of a sentence.
        heldout: items that are held out, the first of up to `SPREAD` shards; readers pass over them.
        drawn: whether the source may draw from torch, numpy or random, which is then made to depend on the item's place alone.

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
        """How many of `num` items fall to which shards: up to `SPREAD` of them, evenly spaced."""
        used = min(self.num, SPREAD, num)
        return {k * self.num // used: num // used + (k < num % used) for k in range(used)}

    def part(self, number: int) -> Any:
        """Shard `number`, as at its beginning."""
        if self.sharded:
            return self.source.shard(num_shards=self.num, index=number)
        if self.initial is not None:
            self.source.load_state_dict(self.initial)
        return self.source

    def first(self, number: int, num: int) -> list[tuple[str, Any]]:
        """The first `num` items of shard `number`, or all, converted, and their places. Raises DataError."""
        found: list[tuple[str, Any]] = []
        for raw in islice(self.items(number), num):
            place = self.place(len(found), number)
            found.append((place, self.converted(raw, place)))
        return found

    def place(self, count: int, number: int) -> str:
        """What to call an item in a message."""
        return f"{count} of shard {number}" if self.num > 1 else str(count)

    def converted(self, raw: Any, place: str) -> Any:
        """The item that has come as `raw`. Raises DataError."""
        try:
            return self.convert(raw)
        except DataError as error:
            raise DataError(f"the data set {self.name}: item {place} {error}") from None

    def state(self, part: Any) -> Any:
        """Where `part` stands, or None where it does not say. Raises DataError for what a checkpoint cannot hold."""
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
        """What comes from shard `number`, or from it as `part`. Raises DataError for whatever goes wrong."""
        try:
            yield from self.part(number) if part is None else part
        except DataError:
            raise
        except Exception as error:  # whatever somebody's code, a network or a damaged file raises
            where = f", in shard {number} of {self.num}" if self.num > 1 else ""
            raise DataError(f"the data set {self.name} raised {in_words(error)}{where}") from error


class Share:
    """What one of `readers` readers reads, epoch after epoch.

    Args:
        shards: of the source.
        spec: of its items.
        number: of the reader.
        readers: how many there are.
        seed: of the order of shards, and within a block.
        buffer: items of a block.

    """

    def __init__(self, shards: Shards, spec: Spec, number: int, readers: int, seed: int, buffer: int) -> None:
        self.shards, self.spec, self.number, self.seed, self.buffer = shards, spec, number, seed, buffer
        self.readers, self.whole = readers, shards.num // readers * readers  # shards below `whole` are dealt out, others read by all
        self.mine = [*range(number, self.whole, readers), *range(self.whole, shards.num)]
        self.epoch = self.place = self.given = 0
        self.order: tuple[int, list[int]] | None = None
        self.file: tuple[Any, Iterator[Any]] | None = None
        self.count = 0  # items that have come from the open shard, those passed over included
        self.block: list[tuple[str, Any]] = []
        self.taken = self.blocks = 0
        self.began: dict[str, Any] = {}
        self.next: list[tuple[str, Any]] = []
        self.next_began: dict[str, Any] | None = None
        self.next_whole = False

    def take(self, num: int) -> Pair:
        """The next `num` items as a batch. Raises DataError."""
        raw: list[tuple[str, Any]] = []
        while len(raw) < num:
            if self.taken == len(self.block):
                self._begin_block()
            part = self.block[self.taken : self.taken + num - len(raw)]
            self.taken += len(part)
            raw += part
            self._read_ahead(len(part))  # as fast as this block is used up: no step waits for a whole one
        return self.spec.batch([self.shards.converted(one, place) for place, one in raw], [place for place, _ in raw])

    def state(self) -> dict[str, Any]:
        """Where it stands between two batches, as plain numbers."""
        return {**self.began, "blocks": self.blocks, "taken": self.taken} if self.began else {}

    def go_on(self, state: dict[str, Any]) -> None:
        """Stand where `state` was; an empty one is the beginning. Reads the present block again. Raises DataError."""
        if not state:
            return
        self.epoch, self.place, self.given = state["epoch"], state["place"], state["given"]
        if state["file"] is not None:
            self._open(state["file"])
        # a part that was just opened may not yet say where it stands
        self.next_began = {key: state[key] for key in ("epoch", "place", "given", "file")}
        self.blocks = state["blocks"] - 1
        self._begin_block()
        self.taken = state["taken"]

    def begin_epoch(self, epoch: int) -> None:
        """Stand at the beginning of `epoch`."""
        self.epoch = epoch

    def _begin_block(self) -> None:
        self._read_ahead(self.buffer)
        assert self.next_began is not None
        order = torch.randperm(len(self.next), generator=stream(self.seed, "blocks", self.number, self.blocks)).tolist()
        self.block, self.began, self.taken = [self.next[k] for k in order], self.next_began, 0
        self.next, self.next_began, self.next_whole = [], None, False
        self.blocks += 1

    def _read_ahead(self, num: int) -> None:
        """Up to `num` more items of the next block, which ends with the epoch."""
        if self.next_began is None:
            self.next_began = self._position()
        wanted = min(self.buffer, len(self.next) + num)
        while not self.next_whole and len(self.next) < wanted:
            item = self._one()
            if item is not None:
                self.next.append(item)
            elif self.next:
                self.next_whole = True  # the next epoch is another block's
            else:
                self.next_began = self._position()
        self.next_whole |= len(self.next) == self.buffer

    def _one(self) -> tuple[str, Any] | None:
        """The next item and its place; None where an epoch has ended, of which the next call begins another."""
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
        """The shards of this epoch, in their order."""
        if self.order is None or self.order[0] != self.epoch:
            order = torch.randperm(len(self.mine), generator=stream(self.seed, "shards", self.number, self.epoch))
            self.order = (self.epoch, [self.mine[k] for k in order.tolist()])
        return self.order[1]

    def _chance(self) -> contextlib.AbstractContextManager[None]:
        """What the next item is drawn with."""
        if not self.shards.drawn:
            return contextlib.nullcontext()
        return chance(stream_seed(self.seed, "stream items", self.number, self.epoch, self.place, self.count))

    def _position(self) -> dict[str, Any]:
        file = None if self.file is None else {"count": self.count, "source": self.shards.state(self.file[0])}
        return {"epoch": self.epoch, "place": self.place, "given": self.given, "file": file}

    def _open(self, state: dict[str, Any] | None) -> None:
        """Open the shard at hand, where it stood or at its beginning."""
        shard = self._order()[self.place]
        part = self.shards.part(shard)
        self.count = state["count"] if state else 0
        source = state["source"] if state else None
        if source is not None:
            part.load_state_dict(source)
        items = self.shards.items(shard, part)
        if source is None and self.count:
            with chance(0):  # what these draw is no matter: each item is drawn anew
                deque(islice(items, self.count), 0)
        self.file = (part, items)
