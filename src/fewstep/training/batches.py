"""Which items each step learns from: a function of the seed and the step, so that a run that was stopped goes on with the same ones."""

from collections.abc import Sized
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fewstep.data import ImageData
from fewstep.methods.base import Batch
from fewstep.streams import dealt, parts

OnDevice = bool | Literal["auto"]
SHARE = 0.1  # of the memory of a GPU that is free, that images may take there for good


class TrainingData(Protocol):
    """A data set in memory, as the loop asks for it."""

    @property
    def train(self) -> Sized:
        """All training items, of which there are so many."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an item."""
        ...

    @property
    def num_classes(self) -> int | None:
        """How many classes there are, or None."""
        ...

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Data [B, ...] and labels for `index` [B], on `device`."""
        ...


def on_the_device(data: TrainingData, device: torch.device, wanted: OnDevice) -> TrainingData:
    """`data` with its training images, as the bytes that they are, on a GPU `device` for good: no step waits for a copy then.

    With "auto" they are where they take at most a tenth of the memory that is free. Points, a few numbers each, stay where they are.
    """
    if wanted is False or device.type != "cuda" or not isinstance(data, ImageData):
        return data
    if wanted == "auto" and data.train.nbytes > SHARE * torch.cuda.mem_get_info(device)[0]:
        return data
    label = None if data.train_label is None else data.train_label.to(device)
    return replace(data, train=data.train.to(device), train_label=label)


def random_batch(items: int, shape: tuple[int, ...], num_classes: int | None, rng: torch.Generator) -> Batch:
    """So many random items [*shape] in [-1, 1], of all classes in turn, where `rng` is: to see what a step on such costs."""
    label = None if num_classes is None else torch.arange(items, device=rng.device) % num_classes
    return Batch(2 * torch.rand(items, *shape, generator=rng, device=rng.device) - 1, label)


class Batches(Protocol):
    """What a step learns from, for one of several processes."""

    def __call__(self, step: int) -> list[Batch]:
        """The share of this process in the batch of `step`, from 0, in as many parts as gradients are accumulated over.

        Raises DataError where the data set fails; it then stands where it stood.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain numbers; empty where the step tells it all."""
        ...

    def load_state_dict(self, states: list[dict[str, Any]]) -> str | None:
        """Take back what `state_dict` gave in each of the processes; what is to be said where that cannot be done exactly."""
        ...

    def spare(self) -> list[Batch]:
        """Something of the right shape, for a step whose batch could not be read while other processes wait."""
        ...

    def close(self) -> None:
        """End what was begun."""
        ...


class Shuffled:
    """Indices of each step's batch: one permutation after another, a function of the seed and the step alone."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """Indices int64 [batch_size]; an item comes again only when all others have come."""
        parts, position, end = [], step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, offset = divmod(position, self.size)
            if epoch != self.epoch:
                rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                self.epoch, self.order = epoch, torch.randperm(self.size, generator=rng)
            parts.append(self.order[offset : offset + end - position])
            position += len(parts[-1])
        return torch.cat(parts)


class InMemory:
    """Batches of data that lies in memory: rows of tensors, put on the device as they are asked for.

    Args:
        data: where the rows come from; it may draw from `rng`, such as which images are mirrored.
        indices: of the whole batch of a step.
        rank, world_size: of this process among all.
        accumulate: parts.
        rng: the loop's own stream.
        device: where the batches go.

    """

    def __init__(
        self, data: TrainingData, indices: Shuffled, rank: int, world_size: int, accumulate: int, rng: torch.Generator, device: torch.device
    ) -> None:
        self.data, self.indices, self.rank, self.world_size = data, indices, rank, world_size
        self.accumulate, self.rng, self.device = accumulate, rng, device

    def __call__(self, step: int) -> list[Batch]:
        """The share of this process in the batch of `step`, in parts."""
        index = dealt(self.indices(step), self.rank, self.world_size, self.accumulate)
        return [Batch(*self.data.batch(index[number], self.rng, self.device)) for number in parts(self.accumulate, self.rng)]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step tells it all."""
        return {}

    def load_state_dict(self, states: list[dict[str, Any]]) -> str | None:
        """Nothing to take back."""
        return None

    def spare(self) -> list[Batch]:
        """Never needed: rows of a tensor can always be read."""
        raise AssertionError("data in memory does not fail")

    def close(self) -> None:
        """Nothing is open."""
