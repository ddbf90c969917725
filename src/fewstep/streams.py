"""Named streams of random numbers: one for each purpose, so that no two purposes draw the same numbers from one seed.

Training draws from the stream of `Draws`; all other streams are named by their purpose.
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
"""One seed for all samples, one seed for each sample, or None for a new random seed; integers of numpy and torch are allowed, too."""


def stream_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return the 64-bit seed of the stream for `purpose` under a run's `seed`; `numbers`, such as that of a sample, tell streams apart."""
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def stream(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Return a new random generator on the CPU, at the beginning of the stream that `stream_seed` names."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *numbers))


class Draws(torch.Generator):
    """The random numbers of one of the processes that train on the parts of a batch.

    Numbers drawn directly from this generator differ between processes. Numbers drawn by `normal`, `uniform` and `integers` belong to an
    item's position in the whole batch, and do not depend on the process and the part that get the item: every process draws for the whole
    batch, and takes the rows of its own items. With one process and one part both streams are the same.

    Args:
        seed: seed of the run.
        batch_size: items in the whole batch.
        rank: number of this process, from 0.
        world_size: number of processes; see `dealt`.
        accumulate: number of parts, one after another, into which the items of this process are divided (gradient accumulation).
        device: device on which numbers are drawn.

    """

    def __new__(
        cls, seed: int, batch_size: int, rank: int = 0, world_size: int = 1, accumulate: int = 1, device: torch.device | str = "cpu"
    ) -> "Draws":
        """Make the underlying torch generator on `device`."""
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
        """Set this process's own stream to its beginning for `step`."""
        self.manual_seed(stream_seed(seed, "process", rank, step))

    def parts(self) -> Iterator[int]:
        """Yield the number of each part in turn, with the shared stream at the same position for all of them."""
        start = self.shared.get_state() if len(self.rows) > 1 else None
        for number in range(len(self.rows)):
            if number and start is not None:
                self.shared.set_state(start)
            self.part = number
            yield number
        self.part = 0


def dealt(batch: Tensor, rank: int, world_size: int, accumulate: int) -> list[Tensor]:
    """Return the items of a whole `batch` [B] in each part of the process `rank`: evenly spaced items, so that all parts are alike."""
    return [batch[rank::world_size][part::accumulate] for part in range(accumulate)]


def parts(count: int, rng: torch.Generator) -> Iterator[int]:
    """Yield the numbers of a batch's `count` parts; with `Draws` the shared stream is at the same position for each of them."""
    yield from rng.parts() if isinstance(rng, Draws) else range(count)


def part_of(rng: torch.Generator) -> int:
    """Return the number, from 0, of the part for which numbers are being drawn; 0 for a plain generator."""
    return rng.part if isinstance(rng, Draws) else 0


def places(num: int, rng: torch.Generator) -> Tensor:
    """Return the positions in the whole batch of the current part's `num` items, int64 [num].

    Raises ValueError where the part does not have `num` items.
    """
    if not isinstance(rng, Draws) or not rng.is_dealt:
        return torch.arange(num)
    rows = rng.rows[rng.part]
    if len(rows) != num:
        raise ValueError(f"numbers for {num} items were asked for, in a part of {len(rows)}; draw one row an item")
    return rows


def shares(count: int, num: int, rng: torch.Generator) -> Tensor:
    """Return for each of a part's `num` items in which of `count` equal shares of the whole batch it lies, int64 [num].

    In a part of `count` items or more every share occurs.
    """
    total = rng.total if isinstance(rng, Draws) and rng.is_dealt else num
    return places(num, rng) * count // total


def normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Draw standard normal numbers, float32 `shape` [B, ...], a row for each item of the batch, on the device of `rng`; see `Draws`."""
    return _rows(lambda size, source: torch.randn(size, generator=source, device=source.device), shape, rng)


def uniform(shape: Sequence[int], rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw uniform numbers from 0 to 1, of `dtype` and `shape` [B, ...], a row for each item, on the device of `rng`; see `Draws`."""
    return _rows(lambda size, source: torch.rand(size, generator=source, device=source.device, dtype=dtype), shape, rng)


def integers(low: int, high: int, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Draw integers from `low` to ``high - 1``, int64 `shape` [B, ...], a row for each item, on the device of `rng`; see `Draws`."""
    return _rows(lambda size, source: torch.randint(low, high, size, generator=source, device=source.device), shape, rng)


def _rows(draw: Callable[[tuple[int, ...], torch.Generator], Tensor], shape: Sequence[int], rng: torch.Generator) -> Tensor:
    if not isinstance(rng, Draws) or not rng.is_dealt:
        return draw(tuple(shape), rng)
    rows = places(shape[0], rng)
    return draw((rng.total, *shape[1:]), rng.shared)[rows.to(rng.device)]


class Noise:
    """Draws standard normal numbers for a batch from one random generator, or from one for each item; None is a new generator.

    With a generator for each item, an item's numbers depend on its own generator alone, however items are divided into batches.
    """

    def __init__(self, source: torch.Generator | Sequence[torch.Generator] | None = None) -> None:
        if source is None:
            source = torch.Generator()
            source.seed()
        self.source = source

    def __call__(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw noise of `shape` [B, ...] on the generators' device, and return it with the device and dtype of `like`."""
        if isinstance(self.source, torch.Generator):
            return torch.randn(tuple(shape), generator=self.source, device=self.source.device).to(like)
        rows = [torch.randn(tuple(shape[1:]), generator=one, device=one.device) for one in self.source]
        return torch.stack(rows).to(like)


def seeded(seed: Seed, num: int) -> torch.Generator | list[torch.Generator]:
    """Return the random generator for the noise of `num` samples, or a list with one for each sample if `seed` has one for each.

    Raises UserError for another number of seeds, and for seeds that are not integers of at most 64 bits.
    """
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
