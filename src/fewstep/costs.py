"""What a run costs before it is started: floating-point operations of each image, and memory of each device.

A step of the method is gone through on a few items, every turn with its real loss and its real gradients. What takes time in it,
convolutions, matrix products and attention, is counted and left out: its results are zeros of the right shape.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from fewstep.denoisers.adapted import grounds
from fewstep.methods.base import Batch, Method, Turn
from fewstep.own_parts import check_output
from fewstep.quantities import in_words, short
from fewstep.training.learned import learned, set_learning
from fewstep.training.sharding import peak

ITEMS = (2, 3)  # of the two batches that are measured: the first number with which samples can repel each other, and another
ADAM_MOMENTS = 2  # numbers that AdamW keeps for each one that it trains

_aten = torch.ops.aten
# torch has no formula for the CPU's attention; arguments are those of the operation, tensors or shadows of them
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)
    ),
}


@dataclass(frozen=True)
class Costs:
    """What `measure` found. FLOPs are for one item and count a multiplication and an addition as two; memory is in bytes a device.

    `evaluation` is one call of the network that ships, of which a sample takes `evaluations`; `step` is a training step, averaged over
    the turns' cadence; what is done on pairs of a batch's items counts as in the small batch measured. `weights` holds parameters,
    gradients, AdamW's moments and the weight average, as many as there are at once, and is exact where networks are not in shares;
    `activations` is what the losses keep for their gradients, in 32-bit precision, and an estimate. The turn that needs most is counted.
    """

    evaluation: float
    evaluations: int
    step: float
    weights: int
    activations: int

    def lines(self, item: str, seen: int) -> list[str]:
        """In words: FLOPs of one `item` ("image") and of a run that sees `seen` of them, and memory."""
        sample = f", {in_words(self.evaluation * self.evaluations, 'FLOP')} a sample of {self.evaluations}" if self.evaluations > 1 else ""
        return [
            f"FLOPs per {item}: {in_words(self.evaluation, 'FLOP')} an evaluation{sample}; {in_words(self.step, 'FLOP')} a training step, "
            f"{in_words(self.step * seen, 'FLOP')} in the whole run",
            f"memory per device: {short(self.weights, 'B')} for weights, gradients, AdamW's moments and the average, and about "
            f"{short(self.activations, 'B')} for activations (an estimate for 32-bit; bf16-mixed takes roughly half of that)",
        ]


@dataclass(frozen=True)
class _Found:
    """FLOPs of a turn's loss and its gradients, and bytes that the loss keeps for these."""

    flops: int
    kept: int


def measure(
    method: Method,
    shape: tuple[int, ...],
    num_classes: int | None,
    steps: int,
    batch_size: int,
    devices: int = 1,
    accumulate: int = 1,
    sharded: bool = False,
) -> Costs:
    """What training `method` for `steps` steps costs, on items [*shape] of `num_classes` classes, `batch_size` of them over all `devices`.

    `method` is to be fresh, and is used up: it goes through the updates of all `steps` without learning anything, to be past what only
    the first ones do. On several devices the copies of gradients that DistributedDataParallel exchanges are part of the memory.
    """
    for turn in method.turns:
        for _ in range(turn.updates(steps)):
            method.after_update(turn.name)
    with _apart(method):
        generator = method.ship(method.networks[method.ships], 0)
        shortest = min(generator.step_counts or [1]) if generator.any_steps else None
        with _Counted() as counter:
            generator.sample(1, seed=0, steps=shortest)
        evaluation = counter.flops / generator.evaluations(shortest)
        few, more = (_step(method, shape, num_classes, items, 0) for items in ITEMS)
        # a student of several steps may learn at a random one of them, after as many evaluations as that takes
        others = [_step(method, shape, num_classes, ITEMS[0], seed) for seed in range(1, generator.evaluations(shortest))]
    walks = [(more, ITEMS[1]), *((walk, ITEMS[0]) for walk in (few, *others))]
    shares = [turn.updates(steps) / steps for turn in method.turns]
    step = sum(f.flops / items * share for walk, items in walks for f, share in zip(walk, shares, strict=True)) / len(walks)

    def size(*names: str) -> int:
        return sum(_bytes(p) for name in names for p in learned(method.networks[name]).values())

    needed = []  # (gradients, activations) of each turn; what is kept whatever the batch is, such as foreign weights, is kept once
    for turn, small, large in zip(method.turns, few, more, strict=True):
        each = (large.kept - small.kept) / (ITEMS[1] - ITEMS[0])
        kept = small.kept + (batch_size / (devices * accumulate) - ITEMS[0]) * each
        needed.append((size(*turn.trains), kept))
    gradients, activations = max(needed, key=sum)
    trained = size(*{name for turn in method.turns for name in turn.trains})
    held = {id(tensor): tensor for network in method.networks.values() for tensor in _tensors(network)}  # what is shared counts once
    average = size(method.ships) + sum(_bytes(buffer) for buffer in method.networks[method.ships].buffers())
    fixed = sum(_bytes(tensor) for tensor in held.values()) + average
    weights = fixed + ADAM_MOMENTS * trained + gradients
    if sharded:
        weights = -(-weights // devices) + max(
            peak(owner) for network in method.networks.values() for owner in (network, *grounds(network))
        )
    elif devices > 1:
        weights += trained
    return Costs(evaluation, generator.evaluations(), step, weights, round(activations))


def _step(method: Method, shape: tuple[int, ...], num_classes: int | None, items: int, seed: int) -> list[_Found]:
    """One training step on so many items, turn by turn."""
    rng = torch.Generator().manual_seed(seed)
    label = None if num_classes is None else torch.zeros(items, dtype=torch.long)
    batch, scratch = Batch(torch.randn(items, *shape, generator=rng), label), dict[str, Any]()
    return [_turn(method, turn, batch, rng, scratch) for turn in method.turns]


def _turn(method: Method, turn: Turn, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> _Found:
    networks = method.networks
    weights = {tensor.untyped_storage()._cdata for network in networks.values() for tensor in _tensors(network)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    for name, network in networks.items():
        set_learning(network, name in turn.trains)
    with _Counted() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = method.loss(turn.name, networks, batch, rng, scratch)
        check_output(method, turn, output)
        learning = [p for name in turn.trains for p in learned(networks[name]).values()]
        torch.autograd.grad(output.loss, learning, allow_unused=True)
    return _Found(counter.flops, sum(kept.values()))


@contextlib.contextmanager
def _apart(method: Method) -> Iterator[None]:
    """What is done to the networks in here, and the random numbers that dropout draws, leave no trace."""
    flags = {name: [p.requires_grad for p in network.parameters()] for name, network in method.networks.items()}
    with torch.random.fork_rng(devices=[]):
        yield
    for name, network in method.networks.items():
        for p, flag in zip(network.parameters(), flags[name], strict=True):
            p.requires_grad_(flag)


class _Counted(TorchDispatchMode):
    """Inside, operations with a formula for their FLOPs are counted, and give zeros of the shape and layout that they would have given."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        inputs, options = tree_map_only(Tensor, _shadow, (args, kwargs))
        outputs = func(*inputs, **options)
        self.flops += formula(*inputs, **options, out_val=outputs)
        # gradients that nobody keeps need no memory of their own: one 0, seen everywhere
        light = func.overloadpacket is _aten.convolution_backward and not torch.is_grad_enabled()

        def zeros(shadow: Tensor) -> Tensor:
            return torch.zeros((), dtype=shadow.dtype).expand(shadow.shape) if light else torch.zeros_like(shadow, device="cpu")

        return tree_map_only(Tensor, zeros, outputs)


def _shadow(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _tensors(network: nn.Module) -> list[Tensor]:
    owners = [network, *grounds(network)]
    return [tensor for owner in owners for tensor in (*owner.parameters(), *owner.buffers())]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
