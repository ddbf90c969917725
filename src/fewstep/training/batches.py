"""The choice of each step's training items: a function of the seed and the step, so that a resumed run sees the same batches."""

from collections.abc import Sized
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fewstep.data import ImageData
from fewstep.methods.base import Batch
from fewstep.streams import dealt, parts

OnDevice = bool | Literal["auto"]
SHARE = 0.1  # largest share of a GPU's free memory that the training images may occupy for the whole run


class TrainingData(Protocol):
    """The interface of an in-memory data set to the training loop."""

    @property
    def train(self) -> Sized:
        """All training items; its length is their number."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item, without the batch dimension."""
        ...

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None for data without labels."""
        ...

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return the items [B, ...] and labels [B] (or None) at the row numbers `index` [B], on `device`; augmentation draws from `rng`."""
        ...


def on_the_device(data: TrainingData, device: torch.device, wanted: OnDevice) -> TrainingData:
    """Return `data` with its training images moved to a GPU `device` for the whole run, so that no step waits for a copy.

    The images keep their stored type, such as uint8. With `wanted` "auto" they are moved only where they take at most a tenth of the GPU's
    free memory. Points, which are a few numbers each, are never moved.
    """
    if wanted is False or device.type != "cuda" or not isinstance(data, ImageData):
        return data
    if wanted == "auto" and data.train.nbytes > SHARE * torch.cuda.mem_get_info(device)[0]:
        return data
    label = None if data.train_label is None else data.train_label.to(device)
    return replace(data, train=data.train.to(device), train_label=label)


def random_batch(items: int, shape: tuple[int, ...], num_classes: int | None, rng: torch.Generator) -> Batch:
    """Return a batch of `items` uniform random items [*shape] in [-1, 1], with labels that cycle through all classes, on `rng`'s device.

    It stands in for real data when the time or the memory of a step is measured.
    """
    label = None if num_classes is None else torch.arange(items, device=rng.device) % num_classes
    return Batch(2 * torch.rand(items, *shape, generator=rng, device=rng.device) - 1, label)


class Batches(Protocol):
    """The batches that one of several training processes learns from."""

    def __call__(self, step: int) -> list[Batch]:
        """Return this process's share of the batch of `step` (from 0), in as many parts as gradients are accumulated over.

        Raises DataError where the data set cannot be read; the position in the data set is then unchanged.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data set as plain numbers; an empty dict where the step alone determines it."""
        ...

    def load_state_dict(self, states: list[dict[str, Any]]) -> str | None:
        """Restore the position from the `state_dict` of every process; return a message for the user where that is not exactly possible."""
        ...

    def spare(self) -> list[Batch]:
        """Return placeholder batches of the right shape, for a step whose data could not be read while other processes wait."""
        ...

    def close(self) -> None:
        """End the worker processes that read ahead, if any were started."""
        ...


class Shuffled:
    """The row numbers of each step's batch, from one random permutation per epoch; a function of the seed and the step alone."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """Return the row numbers int64 [batch_size] of the batch of `step`; every item occurs once an epoch."""
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
    """Batches of in-memory data: rows of tensors, copied to the device when they are requested.

    Args:
        data: the data set; it may draw from `rng`, such as which images are mirrored.
        indices: the row numbers of each step's whole batch.
        rank, world_size: this process's number, and the number of processes.
        accumulate: the number of parts for gradient accumulation.
        rng: the training loop's random stream.
        device: the device that the batches are put on.

    """

    def __init__(
        self, data: TrainingData, indices: Shuffled, rank: int, world_size: int, accumulate: int, rng: torch.Generator, device: torch.device
    ) -> None:
        self.data, self.indices, self.rank, self.world_size = data, indices, rank, world_size
        self.accumulate, self.rng, self.device = accumulate, rng, device

    def __call__(self, step: int) -> list[Batch]:
        """Return this process's share of the batch of `step`, in `accumulate` parts."""
        index = dealt(self.indices(step), self.rank, self.world_size, self.accumulate)
        return [Batch(*self.data.batch(index[number], self.rng, self.device)) for number in parts(self.accumulate, self.rng)]

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: the step alone determines the batch."""
        return {}

    def load_state_dict(self, states: list[dict[str, Any]]) -> str | None:
        """Do nothing: the step alone determines the batch."""
        return None

    def spare(self) -> list[Batch]:
        """Raise AssertionError: rows of a tensor can always be read, so that no placeholder is needed."""
        raise AssertionError("data in memory does not fail")

    def close(self) -> None:
        """Do nothing: there are no worker processes."""
