"""Batches of data that is read on demand: by the training process itself, or by worker processes that read ahead.

For a data set of numbered items, the batches are the same with any number of workers: the indices are those that in-memory data would get,
and the data set's own random numbers are seeded by the step. For an iterable, each worker reads a share of its own, and the position in
each share goes into the checkpoint.
"""

import contextlib
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from fewstep.data.errors import DataError
from fewstep.data.items import in_words
from fewstep.data.iterables import StreamData
from fewstep.data.own import ForeignData, ItemData, Items
from fewstep.data.shares import Share
from fewstep.methods.base import Batch
from fewstep.streams import dealt, parts, stream_seed
from fewstep.training.batches import Batches, InMemory, OnDevice, Shuffled, TrainingData, on_the_device
from fewstep.training.signals import SIGNALS

AHEAD = 2  # batches that each worker reads ahead


@dataclass(frozen=True)
class Dealt:
    """How batches are divided: among `world_size` processes with `workers` workers each, in `accumulate` parts; `rank` is this process."""

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    workers: int = 0


def make_batches(
    data: TrainingData | ForeignData, dealt: Dealt, rng: torch.Generator, device: torch.device, on_device: OnDevice = "auto"
) -> Batches:
    """Return the batches of `data`, in memory or read on demand, put on `device`.

    Args:
        data: the data set.
        dealt: how each batch is divided among processes and parts.
        rng: the training loop's random stream.
        device: the device that the batches are put on.
        on_device: whether in-memory images are kept on a GPU; see `on_the_device`.

    """
    if isinstance(data, ItemData):
        return Loaded(data, dealt, rng, device)
    if isinstance(data, StreamData):
        return Streamed(data, dealt, rng, device)
    memory = on_the_device(cast(TrainingData, data), device, on_device)
    indices = Shuffled(len(memory.train), dealt.batch_size, dealt.seed)
    return InMemory(memory, indices, dealt.rank, dealt.world_size, dealt.accumulate, rng, device)


def dealt_to(fabric: Fabric, batch_size: int, seed: int, accumulate: int, workers: int) -> Dealt:
    """Return how batches are divided among the processes of `fabric`, for this process."""
    return Dealt(batch_size, seed, fabric.global_rank, fabric.world_size, accumulate, workers)


@dataclass(frozen=True)
class _Failed:
    """The placeholder of a batch that could not be read, with the reason: an exception raised in a worker would carry its traceback."""

    why: str


class _Reading:
    """The common base of `Loaded` and `Streamed`: it starts a `DataLoader`, reads from it and ends it."""

    def __init__(self, data: ForeignData, dealt: Dealt, rng: torch.Generator, device: torch.device) -> None:
        self.foreign, self.dealt, self.rng, self.device = data, dealt, rng, device
        self.iterator: Iterator[Any] | None = None

    def _begin(self, source: Dataset[Any], keys: Iterable[Any] | None = None) -> None:
        self.close()
        workers = self.dealt.workers
        loader = DataLoader(
            source,
            batch_size=None,  # the source yields whole batches
            sampler=keys,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_deaf,
            generator=torch.Generator().manual_seed(0),  # otherwise it draws from the process's global generator
        )
        self.iterator = iter(loader)

    def _next(self) -> Any:
        assert self.iterator is not None
        try:
            found = next(self.iterator)
        except RuntimeError as error:  # a worker that has died
            self.close()
            raise DataError(f"the data set {self.foreign.name}: a worker has died ({in_words(error)})") from error
        if isinstance(found, _Failed):
            self.close()  # the next call starts again at the same position
            raise DataError(found.why)
        return found

    def spare(self) -> list[Batch]:
        """Return random placeholder batches, for a step whose data could not be read while other processes wait for this one."""
        size = self.dealt.batch_size // self.dealt.world_size // self.dealt.accumulate
        label = None if self.foreign.num_classes is None else torch.zeros(size, dtype=torch.long, device=self.device)
        x = torch.randn((size, *self.foreign.shape), generator=self.rng, device=self.device)
        return [Batch(x, label)] * self.dealt.accumulate

    def close(self) -> None:
        """End the worker processes, including any that hang."""
        iterator, self.iterator = self.iterator, None
        workers = list(getattr(iterator, "_workers", ()))
        if workers:
            with contextlib.suppress(Exception):
                cast(Any, iterator)._shutdown_workers()
            for worker in workers:
                if worker.is_alive():
                    worker.kill()  # the worker ignores all weaker signals
                    worker.join(5)


def _deaf(number: int) -> None:
    """Make worker `number` ignore the signals that ask a run to stop: they are meant for the training process, which ends its workers."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)


class _Parts(Dataset[Any]):
    """A map-style data set whose key is (step, part, row numbers), and whose value is that part's batch, or `_Failed`."""

    def __init__(self, items: Items, seed: int, rank: int) -> None:
        self.items, self.seed, self.rank = items, seed, rank

    def __getitem__(self, key: tuple[int, int, list[int]]) -> Any:
        step, part, rows = key
        try:
            return self.items.read(rows, stream_seed(self.seed, "items", step, self.rank, part))
        except DataError as error:
            return _Failed(str(error))


class _Steps:
    """An endless sampler of the keys (step, part, row numbers) of all parts of all steps from `step` on."""

    def __init__(self, indices: Shuffled, dealt: Dealt, step: int) -> None:
        self.indices, self.dealt, self.step = indices, dealt, step

    def __iter__(self) -> Iterator[tuple[int, int, list[int]]]:
        step = self.step
        while True:
            index = dealt(self.indices(step), self.dealt.rank, self.dealt.world_size, self.dealt.accumulate)
            for part, rows in enumerate(index):
                yield step, part, rows.tolist()
            step += 1


class Loaded(_Reading):
    """Batches of a data set of numbered items; each step gets the rows that `InMemory` would take.

    Args:
        data: the data set.
        dealt: how each batch is divided among processes, parts and workers.
        rng: the training loop's random stream.
        device: the device that the batches are put on.

    """

    def __init__(self, data: ItemData, dealt: Dealt, rng: torch.Generator, device: torch.device) -> None:
        super().__init__(data, dealt, rng, device)
        self.data, self.at = data, -1

    def __call__(self, step: int) -> list[Batch]:
        """Return this process's share of the batch of `step`, in parts. Raises DataError where the data cannot be read."""
        if self.iterator is None or step != self.at:
            indices = Shuffled(len(self.data.train), self.dealt.batch_size, self.dealt.seed)
            self._begin(_Parts(self.data.train, self.dealt.seed, self.dealt.rank), _Steps(indices, self.dealt, step))
        self.at = -1  # stays so if reading fails, and the loader is then started anew
        found = [self._next() for _ in range(self.dealt.accumulate)]
        self.at = step + 1
        return [Batch(*self.data.placed(found[number], self.rng, self.device)) for number in parts(self.dealt.accumulate, self.rng)]

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: the step alone determines the batch."""
        return {}

    def load_state_dict(self, states: list[dict[str, Any]]) -> str | None:
        """Do nothing: the step alone determines the batch."""
        return None


class _Shares(IterableDataset[Any]):
    """An endless stream of batches, each with the state of its share after it; in a worker process, those of that worker's share."""

    def __init__(self, shares: list[Share], states: list[dict[str, Any]], size: int) -> None:
        self.shares, self.states, self.size = shares, states, size

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        number = 0
        if info is not None:
            number = info.id
            # the share belongs to this worker alone: a data set that reads the worker's number would divide it a second time
            torch.utils.data._utils.worker._worker_info = None
        share = self.shares[number]
        try:
            share.go_on(self.states[number])
            while True:
                x, label = share.take(self.size)
                yield x, label, share.state()
        except DataError as error:
            yield _Failed(str(error))


class Streamed(_Reading):
    """Batches of an iterable: each worker of each process reads a share of its own, and batches come from the workers in turn.

    Args:
        data: the data set.
        dealt: how each batch is divided among processes, parts and workers.
        rng: the training loop's random stream.
        device: the device that the batches are put on.

    """

    def __init__(self, data: StreamData, dealt: Dealt, rng: torch.Generator, device: torch.device) -> None:
        super().__init__(data, dealt, rng, device)
        self.data, self.count = data, max(1, dealt.workers)
        self.size = dealt.batch_size // dealt.world_size // dealt.accumulate
        self.turn = 0  # number of the share that the next batch comes from
        self.epoch = 0
        self.states: list[dict[str, Any]] = [{} for _ in range(self.count)]

    def __call__(self, step: int) -> list[Batch]:
        """Return this process's share of the batch of `step`, in parts. Raises DataError where the data cannot be read."""
        if self.iterator is None:
            # a DataLoader takes the first batch from its first worker, which therefore gets the share whose turn it is
            order = [(self.turn + number) % self.count for number in range(self.count)]
            readers = self.count * self.dealt.world_size
            shares = [self.data.share(self.dealt.rank * self.count + number, readers, self.dealt.seed) for number in order]
            for share in shares:
                share.begin_epoch(self.epoch)
            self._begin(_Shares(shares, [self.states[number] for number in order], self.size))
        turn, states, found = self.turn, list(self.states), []
        for _ in range(self.dealt.accumulate):
            x, label, states[turn] = self._next()
            turn = (turn + 1) % self.count
            found.append((x, label))
        self.turn, self.states = turn, states  # set last, so that a step that fails leaves the position unchanged
        return [Batch(*self.data.placed(found[number], self.rng, self.device)) for number in parts(self.dealt.accumulate, self.rng)]

    def state_dict(self) -> dict[str, Any]:
        """Return the positions in the shares of this process, the epoch, and the number of the share whose turn it is."""
        return {"turn": self.turn, "epoch": self.epoch, "states": self.states}

    def load_state_dict(self, states: list[dict[str, Any]]) -> str | None:
        """Restore the positions from the `state_dict` of every process.

        With another number of processes or workers the shares differ: a new epoch is begun then, and a message that says so is returned.
        """
        self.close()
        if len(states) == self.dealt.world_size and all(len(state["states"]) == self.count for state in states):
            mine: Mapping[str, Any] = states[self.dealt.rank]
            self.turn, self.epoch, self.states = mine["turn"], mine["epoch"], list(mine["states"])
            return None
        epochs = [inner.get("epoch", state["epoch"]) for state in states for inner in state["states"]]
        self.turn, self.epoch, self.states = 0, 1 + max(epochs, default=0), [{} for _ in range(self.count)]
        return f"{self.data.name} is read by other processes or workers than before: going on at the beginning of epoch {self.epoch + 1}"


def from_all(state: dict[str, Any], fabric: Fabric) -> list[dict[str, Any]]:
    """Return the `state` of every process, in the order of their ranks; a `state` that is empty must be empty in all processes."""
    if fabric.world_size == 1 or not state:
        return [state]
    states: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(states, state)
    return states
