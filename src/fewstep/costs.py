"""What a run costs before it is started: floating-point operations of each image, and memory of each device.

A step of the method is gone through on a few items, every turn with its real loss and its real gradients, and what its operations cost is
counted; see `fewstep.counting`.
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

PAIR = 2  # items of the smaller of the two batches that are measured, where the method needs no more: samples can repel each other
LONG = 5040  # steps of a longer run that are gone through to see which turns are due together: all small numbers divide it
ADAM_MOMENTS = 2  # numbers that AdamW keeps for each one that it trains


@dataclass(frozen=True)
class Memory:
    """Bytes on a device while it trains, as many as there are at once.

    Attributes:
        base: what several networks stand on and none of them learns.
        networks: all else that networks hold.
        average: of the weights that ship.
        gradients: of the turn that needs most, with the copies that processes exchange.
        moments: of AdamW.
        activations: what the tensors of that turn hold at most beside these: what the loss keeps for its gradients, and what comes and goes
            in between. What kernels need for themselves is not in it.
        gathered: of networks in shares, while they are called; an estimate. All but the last two are a device's share then.

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
        """All but activations, which does not depend on the batch."""
        return self.base + self.networks + self.average + self.gradients + self.moments

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.activations + self.gathered

    def __str__(self) -> str:
        what = {
            "one network for all": self.base,
            "changes of it" if self.base else "weights": self.networks,
            "their average": self.average,
            "gradients": self.gradients,
            "AdamW's moments": self.moments,
            "gathered (about)": self.gathered,
            "activations (about)": self.activations,
        }
        return f"{short(self.total, 'B')}: " + ", ".join(f"{short(size, 'B')} {name}" for name, size in what.items() if size)


@dataclass(frozen=True)
class Costs:
    """What `measure` found. FLOPs are for one item and count a multiplication and an addition as two.

    `evaluation` is one call of the network that ships, of which a sample takes `evaluations`; `step` is a training step, averaged over
    the turns' cadence; what is done on pairs of a batch's items counts as in the small batch measured.
    """

    evaluation: float
    evaluations: int
    step: float
    memory: Memory

    def lines(self, item: str, seen: int) -> list[str]:
        """In words: FLOPs of one `item` ("image") and of a run that sees `seen` of them, and memory."""
        sample = f", {in_words(self.evaluation * self.evaluations, 'FLOP')} a sample of {self.evaluations}" if self.evaluations > 1 else ""
        return [
            f"FLOPs per {item}: {in_words(self.evaluation, 'FLOP')} an evaluation{sample}; {in_words(self.step, 'FLOP')} a training step, "
            f"{in_words(self.step * seen, 'FLOP')} in the whole run",
            f"memory per device: {self.memory}",
        ]


@dataclass(frozen=True)
class _Found:
    """FLOPs of a loss and its gradients on so many items, and bytes held after each operation, of which `loss` many are the loss's."""

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
    """What training `method` for `steps` steps costs, on items [*shape] of `num_classes` classes, `batch_size` of them over all `devices`.

    `method` is to be fresh, and is used up: it goes through the updates of all `steps` without learning anything, to be past what only
    the first ones do. On several devices the copies of gradients that DistributedDataParallel exchanges are part of the memory. With
    `precision` "bf16-mixed" layers work in bfloat16; `sharded` networks are in shares on the devices.
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
        # whole rounds of what a batch is dealt to, such as a student's steps
        sizes = max(PAIR, method.least_items), max(PAIR, method.least_items) + method.least_items
        kinds = _kinds(method, steps)
        walks = {due: [_step(method, due, shape, num_classes, items, precision) for items in sizes] for due in kinds}
    each = {due: sum(found.flops / found.items for walk in both for found in walk.values()) / 2 for due, both in walks.items()}
    step = sum(each[due] * share for due, share in kinds.items())

    def size(*names: str) -> int:
        return sum(_bytes(p) for name in names for p in learned(method.networks[name]).values())

    turns = []  # (gradients, the most that is held beside them) of each, in each kind of step
    for few, more in walks.values():
        for name, small in few.items():
            gradients = size(*next(turn.trains for turn in method.turns if turn.name == name))
            turns.append((gradients, _most(small, more[name], batch_size / (devices * accumulate), gradients, accumulate) - gradients))
    gradients, activations = max(turns, key=sum)
    trained = size(*{name for turn in method.turns for name in turn.trains})
    base = {id(tensor): tensor for network in method.networks.values() for ground in grounds(network) for tensor in _of(ground)}
    held = {id(tensor): tensor for network in method.networks.values() for tensor in _of(network)}  # what is shared counts once
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
    """The most that is held of so many `items`, gradients included, by what is held of the two batches measured.

    Each operation's share is a line through both, and the most that of another operation as batches grow.
    """

    def at(a: list[int], b: list[int]) -> float:
        ends = [(max(a), max(b))] if len(a) != len(b) else list(zip(a, b, strict=True))
        return max(few + (items - small.items) * (more - few) / (large.items - small.items) for few, more in ends)

    most = at(small.held, large.held)
    if accumulate > 1:  # gradients of the first part are there while the second has its loss
        most = max(most, gradients + at(small.held[: small.loss], large.held[: large.loss]))
    return max(round(most), gradients)


def _kinds(method: Method, steps: int) -> dict[tuple[str, ...], float]:
    """The names of the turns that are due together, and the share of a run's steps in which they are."""
    length = min(steps, LONG)
    seen = Counter(tuple(turn.name for turn in method.turns if turn.is_due(step, length)) for step in range(length))
    return {due: number / length for due, number in seen.items()}


def _step(
    method: Method, due: tuple[str, ...], shape: tuple[int, ...], num_classes: int | None, items: int, precision: str
) -> dict[str, _Found]:
    """One training step on so many items, by the turns that are `due`."""
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
    """What is done to the networks in here, and the random numbers that dropout draws, leave no trace."""
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
