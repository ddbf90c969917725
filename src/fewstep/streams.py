"""Named streams of random numbers: one a purpose, so that no two purposes ever draw the same numbers from one seed.

Training's own streams are a function of the seed, the process and the epoch, and are where the loop is; all others are named here.
"""

import hashlib
import operator
from collections.abc import Iterable, Sequence
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
