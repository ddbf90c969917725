"""Find what a run will cost before it is started: floating-point operations (FLOPs) for each item, and memory on each device.

A training step of the method is performed on a few items, each of its turns with its real loss and gradients, while the FLOPs and the
memory of its operations are counted (see `fewstep.counting`).
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.counting import Counted
from fewstep.denoisers.adapted import grounds
from fewstep.methods.base import Batch, Method, Turn
from fewstep.own_parts import check_output
from fewstep.quantities import in_words, short
from fewstep.training.learned import learned, set_learning
from fewstep.training.precision import MIXED, Mixed, in_precision
from fewstep.training.sharding import peak

PAIR = 2  # least items of the smaller of the two batches that are measured, as some losses compare the samples of a batch with each other
LONG = 5040  # most steps of a run that are looked at to see which turns are due together; divisible by all small numbers
ADAM_MOMENTS = 2  # numbers that AdamW stores for each trained weight


@dataclass(frozen=True)
class Memory:
    """Peak memory in bytes on one device during training, by what it holds.

    Attributes:
        base: the frozen network that several networks share, each as low-rank changes (LoRA) to it.
        networks: all other parameters and buffers of the networks.
        average: the exponential moving average of the weights that ship.
        gradients: the gradients of the turn that needs most memory, and the copies of gradients that processes exchange.
        moments: AdamW's moments.
        activations: the most that all other tensors of that turn hold: what the loss keeps for its gradients, and temporary tensors.
            Workspace that kernels allocate for themselves is not counted.
        gathered: estimated weights that are gathered while a sharded network is called (FSDP). With sharding all attributes but the last
            two are one device's share.

    """

    base: int
    networks: int
    average: int
    gradients: int
    moments: int
    activations: int
    gathered: int = 0

    @property
    def weights(self) -> int:
        """Bytes that do not depend on the batch size: all but `activations` and `gathered`."""
        return self.base + self.networks + self.average + self.gradients + self.moments

    @property
    def total(self) -> int:
        """Bytes of all attributes together."""
        return self.weights + self.activations + self.gathered

    def __str__(self) -> str:
        what = {
            "frozen network": self.base,
            "low-rank adapters" if self.base else "weights": self.networks,
            "moving average": self.average,
            "gradients": self.gradients,
            "AdamW's moments": self.moments,
            "gathered (about)": self.gathered,
            "activations (about)": self.activations,
        }
        return f"{short(self.total, 'B')}: " + ", ".join(f"{short(size, 'B')} {name}" for name, size in what.items() if size)


@dataclass(frozen=True)
class Costs:
    """The costs of a run, found by `measure`. FLOPs are for one item, and a multiplication and an addition count as two.

    Attributes:
        evaluation: FLOPs of one evaluation of the network that ships.
        evaluations: network evaluations for one sample.
        step: FLOPs of a training step, averaged over steps with different turns. Operations on pairs of a batch's items count as many as in
            the small batches measured.
        memory: peak memory on each device.

    """

    evaluation: float
    evaluations: int
    step: float
    memory: Memory

    def lines(self, item: str, seen: int) -> list[str]:
        """Return the costs in words: FLOPs for one `item` (such as "image") and for a run that sees `seen` of them, and memory."""
        sample = ""
        if self.evaluations > 1:
            sample = f", {in_words(self.evaluation * self.evaluations, 'FLOP')} a sample ({self.evaluations} evaluations)"
        return [
            f"FLOPs per {item}: {in_words(self.evaluation, 'FLOP')} an evaluation{sample}; {in_words(self.step, 'FLOP')} a training step, "
            f"{in_words(self.step * seen, 'FLOP')} in the whole run",
            f"memory per device: {self.memory}",
        ]


@dataclass(frozen=True)
class _Found:
    """What was counted of one turn's loss and gradients.

    Attributes:
        items: items in the batch.
        flops: FLOPs of the loss and its gradients on all items.
        held: bytes held after each operation, those of the loss first.
        loss: how many entries of `held` are from the loss.

    """

    items: int
    flops: int
    held: list[int]
    loss: int


def measure(
    method: Method,
    shape: tuple[int, ...],
    num_classes: int | None,
    steps: int,
    batch_size: int,
    devices: int = 1,
    accumulate: int = 1,
    precision: str = "32-true",
    sharded: bool = False,
) -> Costs:
    """Return what it costs to train `method`.

    Args:
        method: newly made, and not to be used afterwards: it is told of all updates of the run without learning anything, so that what is
            measured is not special to the first updates.
        shape: shape of one item.
        num_classes: number of classes of the data, or None.
        steps: training steps of the run.
        batch_size: items in a batch, over all devices.
        devices: number of devices; with several, the copies of gradients that DistributedDataParallel exchanges are part of the memory.
        accumulate: parts into which each device's share of a batch is divided (gradient accumulation).
        precision: "32-true", or "bf16-mixed" for layers that work in bfloat16.
        sharded: whether networks are sharded over the devices (FSDP).

    """
    for turn in method.turns:
        for _ in range(turn.updates(steps)):
            method.after_update(turn.name)
    with _apart(method):
        generator = method.ship(method.networks[method.ships], 0)
        shortest = min(generator.step_counts or [1]) if generator.any_steps else None
        with Counted() as counter:
            generator.sample(1, seed=0, steps=shortest)
        evaluation = counter.flops / generator.evaluations(shortest)
        # multiples of least_items, so that a batch divides evenly among, for example, a student's numbers of steps
        sizes = max(PAIR, method.least_items), max(PAIR, method.least_items) + method.least_items
        kinds = _kinds(method, steps)
        walks = {due: [_step(method, due, shape, num_classes, items, precision) for items in sizes] for due in kinds}
    each = {due: sum(found.flops / found.items for walk in both for found in walk.values()) / 2 for due, both in walks.items()}
    step = sum(each[due] * share for due, share in kinds.items())

    def size(*names: str) -> int:
        return sum(_bytes(p) for name in names for p in learned(method.networks[name]).values())

    turns = []  # for each turn in each kind of step: bytes of its gradients, and the most bytes held beside them
    for few, more in walks.values():
        for name, small in few.items():
            gradients = size(*next(turn.trains for turn in method.turns if turn.name == name))
            turns.append((gradients, _most(small, more[name], batch_size / (devices * accumulate), gradients, accumulate) - gradients))
    gradients, activations = max(turns, key=sum)
    trained = size(*{name for turn in method.turns for name in turn.trains})
    base = {id(tensor): tensor for network in method.networks.values() for ground in grounds(network) for tensor in _of(ground)}
    held = {id(tensor): tensor for network in method.networks.values() for tensor in _of(network)}  # shared tensors count once
    whole = {
        "base": sum(map(_bytes, base.values())),
        "networks": sum(_bytes(tensor) for key, tensor in held.items() if key not in base),
        "average": size(method.ships) + sum(_bytes(buffer) for buffer in method.networks[method.ships].buffers()),
        "gradients": gradients + (trained if devices > 1 and not sharded else 0),
        "moments": ADAM_MOMENTS * trained,
    }
    if sharded:
        gathered = max(peak(owner) for network in method.networks.values() for owner in (network, *grounds(network)))
        divided = {key: -(-number // devices) for key, number in whole.items()}
        memory = Memory(**divided, activations=activations, gathered=gathered)
    else:
        memory = Memory(**whole, activations=activations)
    return Costs(evaluation, generator.evaluations(), step, memory)


def _most(small: _Found, large: _Found, items: float, gradients: int, accumulate: int) -> int:
    """Return the peak bytes of a turn on `items` items, its gradients included, extrapolated from the two batches measured.

    The bytes after each operation are extrapolated linearly in the number of items, and the peak is the maximum over operations, which may
    be another operation for larger batches.
    """

    def at(a: list[int], b: list[int]) -> float:
        ends = [(max(a), max(b))] if len(a) != len(b) else list(zip(a, b, strict=True))
        return max(few + (items - small.items) * (more - few) / (large.items - small.items) for few, more in ends)

    most = at(small.held, large.held)
    if accumulate > 1:  # the gradients of the first part are held while the loss of the second is computed
        most = max(most, gradients + at(small.held[: small.loss], large.held[: large.loss]))
    return max(round(most), gradients)


def _kinds(method: Method, steps: int) -> dict[tuple[str, ...], float]:
    """Return for each set of turns that are due in the same step, by their names, the share of the run's steps with just these turns."""
    length = min(steps, LONG)
    seen = Counter(tuple(turn.name for turn in method.turns if turn.is_due(step, length)) for step in range(length))
    return {due: number / length for due, number in seen.items()}


def _step(
    method: Method, due: tuple[str, ...], shape: tuple[int, ...], num_classes: int | None, items: int, precision: str
) -> dict[str, _Found]:
    """Return what one training step on `items` items costs, for each of the turns that are `due`."""
    rng = torch.Generator().manual_seed(0)
    label = None if num_classes is None else torch.zeros(items, dtype=torch.long)
    batch, scratch = Batch(torch.randn(items, *shape, generator=rng), label), dict[str, Any]()
    return {turn.name: _turn(method, turn, batch, rng, scratch, precision) for turn in method.turns if turn.name in due}


def _turn(method: Method, turn: Turn, batch: Batch, rng: torch.Generator, scratch: dict[str, Any], precision: str) -> _Found:
    networks, mixed = method.networks, Mixed()
    mixed.on = precision == MIXED
    called = {name: in_precision(network, mixed) for name, network in networks.items()}
    known = [tensor for network in networks.values() for part in (network, *grounds(network)) for tensor in _of(part)]
    for name, network in networks.items():
        set_learning(network, name in turn.trains)
    with Counted([*known, batch.x]) as counter:
        output = method.loss(turn.name, called, batch, rng, scratch)
        loss = len(counter.held)
        check_output(method, turn, output)
        learning = [p for name in turn.trains for p in learned(networks[name]).values()]
        torch.autograd.grad(output.loss, learning, allow_unused=True)
    return _Found(len(batch.x), counter.flops, counter.held, loss)


@contextlib.contextmanager
def _apart(method: Method) -> Iterator[None]:
    """Restore which parameters of `method` require gradients, and torch's random state, when the block ends."""
    flags = {name: [p.requires_grad for p in network.parameters()] for name, network in method.networks.items()}
    with torch.random.fork_rng(devices=[]):
        yield
    for name, network in method.networks.items():
        for p, flag in zip(network.parameters(), flags[name], strict=True):
            p.requires_grad_(flag)


def _of(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
