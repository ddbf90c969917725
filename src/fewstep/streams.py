"""Named streams of random numbers: one a purpose, so that no two purposes ever draw the same numbers from one seed.

Training's own stream is the loop's (`Draws`); all others are named.
"""

import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError

Seed = int | Sequence[int] | None
"""One seed for all samples, one for each, or None for a new one; numpy's and torch's whole numbers will do."""


def stream_seed(seed: int, purpose: str, *numbers: int) -> int:
    """The seed, of 64 bits, of the stream for `purpose` that belongs to a run's `seed` and `numbers`, such as a first item."""
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def stream(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A new generator on the CPU at the beginning of that stream."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *numbers))


class Draws(torch.Generator):
    """The random numbers of one of the processes that learn from the parts of one batch.

    As a generator it is this process's own. What is drawn by `normal`, `uniform` and `integers` belongs to an item's place in the whole
    batch, whichever process and part the item is dealt to: every process draws for the whole batch, and takes the rows of its items. In one
    process, with the batch in one part, both are one stream.

    Args:
        seed: of the run.
        batch_size: items of the whole batch.
        rank: of this process, of `world_size`; see `dealt`.
        accumulate: parts that its items are dealt into, one after the other.
        device: where numbers are drawn.

    """

    def __new__(
        cls, seed: int, batch_size: int, rank: int = 0, world_size: int = 1, accumulate: int = 1, device: torch.device | str = "cpu"
    ) -> "Draws":
        """A generator on `device`."""
        return super().__new__(cls, device)  # type: ignore[call-arg]

    def __init__(
        self, seed: int, batch_size: int, rank: int = 0, world_size: int = 1, accumulate: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.total, self.part = batch_size, 0
        self.rows = dealt(torch.arange(batch_size), rank, world_size, accumulate)
        self.is_dealt = world_size * accumulate > 1
        self.shared = torch.Generator(device) if self.is_dealt else self
        self.begin_own(seed, rank)
        self.shared.manual_seed(seed * 1_000_003)

    def begin_own(self, seed: int, rank: int, step: int = 0) -> None:
        """Begin this process's own stream anew, at `step`."""
        self.manual_seed(stream_seed(seed, "process", rank, step))

    def parts(self) -> Iterator[int]:
        """The number of each part in turn; those who draw for one part after the other draw from the same place of the stream."""
        start = self.shared.get_state() if len(self.rows) > 1 else None
        for number in range(len(self.rows)):
            if number and start is not None:
                self.shared.set_state(start)
            self.part = number
            yield number
        self.part = 0


def dealt(batch: Tensor, rank: int, world_size: int, accumulate: int) -> list[Tensor]:
    """The items of a whole `batch` [B] that a process has in each of its parts: every so-manieth, so that all parts are alike."""
    return [batch[rank::world_size][part::accumulate] for part in range(accumulate)]


def parts(count: int, rng: torch.Generator) -> Iterator[int]:
    """The numbers of `count` parts, each of which draws from the same place of the stream; of a plain generator one after the other."""
    yield from rng.parts() if isinstance(rng, Draws) else range(count)


def part_of(rng: torch.Generator) -> int:
    """The number of the part that is being drawn for, from 0."""
    return rng.part if isinstance(rng, Draws) else 0


def places(num: int, rng: torch.Generator) -> Tensor:
    """The places of a part's `num` items in the whole batch, int64 [num]."""
    if not isinstance(rng, Draws) or not rng.is_dealt:
        return torch.arange(num)
    rows = rng.rows[rng.part]
    if len(rows) != num:
        raise ValueError(f"numbers for {num} items were asked for, in a part of {len(rows)}; draw one row an item")
    return rows


def shares(count: int, num: int, rng: torch.Generator) -> Tensor:
    """Which of `count` equal shares of the whole batch each of a part's `num` items is in, int64 [num]; all occur in a part of `count`."""
    total = rng.total if isinstance(rng, Draws) and rng.is_dealt else num
    return places(num, rng) * count // total


def normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Standard normal numbers, float32 `shape` [B, ...], a row an item of the batch, where `rng` is; see `Draws`."""
    return _rows(lambda size, source: torch.randn(size, generator=source, device=source.device), shape, rng)


def uniform(shape: Sequence[int], rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers from 0 to 1, `shape` [B, ...], a row an item of the batch, where `rng` is; see `Draws`."""
    return _rows(lambda size, source: torch.rand(size, generator=source, device=source.device, dtype=dtype), shape, rng)


def integers(low: int, high: int, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Whole numbers from `low` to below `high`, int64 `shape` [B, ...], a row an item of the batch, where `rng` is; see `Draws`."""
    return _rows(lambda size, source: torch.randint(low, high, size, generator=source, device=source.device), shape, rng)


def _rows(draw: Callable[[tuple[int, ...], torch.Generator], Tensor], shape: Sequence[int], rng: torch.Generator) -> Tensor:
    if not isinstance(rng, Draws) or not rng.is_dealt:
        return draw(tuple(shape), rng)
    rows = places(shape[0], rng)
    return draw((rng.total, *shape[1:]), rng.shared)[rows.to(rng.device)]


class Noise:
    """Standard normal numbers for a batch: from one generator, or from one for each item.

    With one for each item, what an item gets depends on its own generator alone, however items are dealt into batches.
    """

    def __init__(self, source: torch.Generator | Sequence[torch.Generator] | None = None) -> None:
        if source is None:
            source = torch.Generator()
            source.seed()
        self.source = source

    def __call__(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Noise of `shape` [B, ...], on the device and in the type of `like`; it is drawn where the generators are."""
        if isinstance(self.source, torch.Generator):
            return torch.randn(tuple(shape), generator=self.source, device=self.source.device).to(like)
        rows = [torch.randn(tuple(shape[1:]), generator=one, device=one.device) for one in self.source]
        return torch.stack(rows).to(like)


def seeded(seed: Seed, num: int) -> torch.Generator | list[torch.Generator]:
    """What the noise of `num` samples comes from: one generator, or one for each. Raises UserError."""
    if seed is None:
        rng = torch.Generator()
        rng.seed()
        return rng
    given: Any = seed.tolist() if isinstance(seed, Tensor | np.ndarray | np.generic) else seed
    several = isinstance(given, Iterable) and not isinstance(given, str | Tensor)
    seeds = [_whole(one) for one in given] if several else [_whole(given)]
    if not several:
        return torch.Generator().manual_seed(seeds[0])
    if len(seeds) != num:
        raise UserError(f"there are {len(seeds)} seeds for {num} samples; give one seed, or one for each sample")
    return [torch.Generator().manual_seed(one) for one in seeds]


def _whole(seed: Any) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = 2**64
    if isinstance(seed, bool) or not -(2**63) <= number < 2**64:
        raise UserError(f"seed is {seed!r}; allowed are whole numbers of at most 64 bits")
    return number
