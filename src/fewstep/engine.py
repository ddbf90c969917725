"""Choose what a run computes with: the engine (lightning-fabric), mixed precision, and the number of CPU threads.

``trainer.precision=auto`` takes bfloat16 where it is faster by `PAYS`, and ``trainer.threads=auto`` the fewest threads that are nearly as
fast as more. Where no rule decides, both are measured on this machine for about a second each: the losses of the run's own method and
networks on random items, with their backward passes, by the alternatives in turn. They are computed by a copy of the method that shares its
weights, so that no weight, state or random stream of the run changes. The choice is recorded in the run folder, and holds when the run is
resumed.
"""

import contextlib
import copy
import inspect
import io
import itertools
import math
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from fewstep.allocator import keep_freed_memory
from fewstep.errors import UserError, first_line
from fewstep.generator import Generator
from fewstep.limits import cores
from fewstep.methods.base import Method
from fewstep.networks.base import num_parameters
from fewstep.recipe import Recipe, Trainer
from fewstep.training import sharding
from fewstep.training.batches import random_batch
from fewstep.training.learned import set_learning
from fewstep.training.precision import FULL, MIXED, Mixed, in_precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# multiply-adds for one image below which a second CPU thread costs more than it gains (measured: README, "Threads")
THREADS_FROM = 1e9
MIXED_FROM = 1e9  # multiply-adds for one batch below which a step spends little of its time in layers, so that bfloat16 is not tried
PAYS = 1.15  # least speed of bfloat16 relative to float32 for which it is chosen
SCALES = 1.1  # least speed of a larger number of threads relative to the next smaller one for which it is chosen
SECOND = 1.0  # seconds that a measurement takes, or a little more, as at least `ROUNDS` rounds are made
ROUNDS = 3
PATIENCE = 3.0  # most seconds of the first pass, which also prepares kernels; a slower one ends the measurement
LARGEST = 2e10  # multiply-adds of all networks on the smallest batch above which nothing is measured, as one pass would take seconds
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # Linux's names of CPU features, of x86 and of Arm

Precise = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Chosen:
    """What a run computes with: `precision` of its layers, CPU `threads` of all processes together, and a `line` that gives the reasons."""

    precision: Precise
    threads: int
    line: str


def own_buffers() -> dict[str, Any]:
    """Return the argument of DistributedDataParallel, as this version of torch names it, that leaves buffers unsynchronized."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def make_fabric(trainer: Trainer) -> "Fabric":
    """Return lightning-fabric set up by the trainer section; precision "auto" is float32 until `settle` is called.

    Raises UserError where this machine lacks what the section asks for.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    several = trainer.strategy == "ddp" or trainer.devices != 1 or trainer.num_nodes > 1
    strategy: Any = DDPStrategy(**own_buffers()) if several else "auto"
    if trainer.strategy == "fsdp":
        strategy = sharding.strategy()
    mixed = Mixed()
    mixed.on = trainer.precision == MIXED
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that a GPU is not used, where the user asked for the CPU
            fabric = Fabric(
                accelerator=trainer.accelerator, devices=trainer.devices, strategy=strategy, plugins=mixed, num_nodes=trainer.num_nodes
            )
    except Exception as error:  # Fabric raises several kinds of exceptions where a machine lacks something
        raise UserError(
            f"trainer: this machine cannot run {trainer.accelerator} with precision {trainer.precision}: {first_line(error)}"
        ) from error
    mixed.device = fabric.device.type
    if trainer.strategy == "fsdp":
        sharding.check_device(mixed.device)
    return fabric


def settle(fabric: "Fabric", precision: Precise) -> None:
    """Have `fabric`, made by `make_fabric`, compute in `precision`."""
    mixed = fabric.strategy.precision
    assert isinstance(mixed, Mixed)
    mixed.on = precision == MIXED


def choose_threads(threads: int | str, network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the number of CPU threads for `network` on items of `shape`: `threads`, or for "auto" 1 for small networks, else all cores.

    Raises UserError for more threads than this machine can use.
    """
    if isinstance(threads, int):
        if threads > (most := max(16, 4 * cores())):
            raise UserError(f"threads is {threads}; this machine has {cores()} core{'s' * (cores() > 1)}: give at most {most}, or auto")
        return threads
    return 1 if _work(network, shape) < THREADS_FROM else cores()


def use_threads(number: int) -> None:
    """Set the number of CPU threads of this process, and have it keep freed memory for reuse; see `fewstep.allocator`."""
    torch.set_num_threads(number)
    keep_freed_memory()


def choose(
    recipe: Recipe,
    method: Method,
    shape: tuple[int, ...],
    num_classes: int | None,
    device: torch.device,
    processes: int = 1,
    begun: Mapping[str, Any] | None = None,
) -> Chosen:
    """Choose the precision and the number of CPU threads for training `method` by `recipe`.

    Args:
        recipe: its trainer section decides, except where it says "auto".
        method: the method to train, which is not changed.
        shape: shape of one item.
        num_classes: number of classes of the data, or None.
        device: device that trains.
        processes: number of processes, which share the batch and the cores.
        begun: content of the recipe.yaml of a run that is resumed, whose precision and threads are kept; None for a new run.

    Raises:
        UserError: for more threads than this machine can use.

    """
    probe = _Probe(recipe, method, shape, num_classes, processes)
    threads = choose_threads(recipe.trainer.threads, method.networks[method.ships], shape)
    probe.threads = max(1, threads // processes)
    precision, why = _precision(recipe, method, shape, device, probe, begun)
    lines = [f"precision: {'bf16' if precision == MIXED else 'fp32'}{why}"]
    if device.type == "cpu":
        threads, why = _threads(recipe, threads, precision, probe, processes, begun)
        lines.append(f"CPU threads: {threads}{why}")
    elif device.type == "cuda":
        lines.append("fp32 matrix products in TF32")  # during training steps, see `fewstep.training.called`
    return Chosen(precision, threads, "; ".join(lines))


def _precision(
    recipe: Recipe, method: Method, shape: tuple[int, ...], device: torch.device, probe: "_Probe", begun: Mapping[str, Any] | None
) -> tuple[Precise, str]:
    """Return the precision, and the reason as words to follow its name."""
    asked = recipe.trainer.precision
    if asked != "auto":
        return asked, ", as given"
    trainer = None if begun is None else begun.get("trainer")
    kept = trainer.get("precision") if isinstance(trainer, Mapping) else None
    if kept in (FULL, MIXED):
        return kept, ", as when the run began"
    if len(shape) == 1:
        return FULL, ", because the data are points"
    if sum(_work(network, shape) for network in method.networks.values()) * recipe.batch_size < MIXED_FROM:
        return FULL, ", because the network is small"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return MIXED, ", which this GPU is made for"
        return FULL, ", because this GPU has no bf16 arithmetic"
    if device.type != "cpu":
        return FULL, f", because fp32 is reliable on {device.type}"
    if not has_bf16():
        return FULL, ", because this CPU has no bf16 arithmetic"
    ratio = probe.speedup()
    if ratio is None:
        return FULL, f", because bf16 could not be tried ({probe.fault})"
    if ratio >= PAYS:
        return MIXED, f", {ratio:.1f}x as fast as fp32 here"
    return FULL, f", because bf16 is {ratio:.1f}x as fast on this CPU"


def _threads(
    recipe: Recipe, usual: int, precision: Precise, probe: "_Probe", processes: int, begun: Mapping[str, Any] | None
) -> tuple[int, str]:
    """Return the number of CPU threads of all `processes` together, and the reason as words to follow it.

    Where nothing is measured, given or recorded, the number is `usual`.
    """
    if recipe.trainer.threads != "auto":
        return usual, ", as given"
    made_by = None if begun is None else begun.get("made_by")
    kept = made_by.get("threads") if isinstance(made_by, Mapping) else None
    if isinstance(kept, int) and 1 <= kept <= cores():
        return kept, ", as when the run began"
    most = cores() // processes
    if usual == 1 or most < 2:
        return usual, ""
    found = probe.scaling(precision, most)
    if found is None:
        return usual, ""
    number, ratio, against = found
    return number * processes, f", {ratio:.1f}x as fast as with {against * processes} here"


def has_bf16() -> bool:
    """Return whether this CPU has instructions for products in bfloat16, and ``ONEDNN_MAX_CPU_ISA`` does not keep torch from using them."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if limit not in ("ALL", "DEFAULT") and not any(word in limit for word in ("BF16", "AMX", "AVX10")):
        return False
    try:
        return not BF16_FLAGS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except (OSError, UnicodeDecodeError):  # not Linux
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in names)


def _work(network: nn.Module, shape: tuple[int, ...]) -> float:
    """Return an upper bound on the multiply-adds of a convolutional network on one item."""
    return num_parameters(network) * math.prod(shape[1:])


class _Probe:
    """Time forward and backward passes of a run's own losses on random items.

    Attributes:
        fault: message of the error for which nothing could be timed; "" without one.
        threads: number of CPU threads of this process while precisions are compared.

    """

    def __init__(self, recipe: Recipe, method: Method, shape: tuple[int, ...], num_classes: int | None, processes: int) -> None:
        self.recipe, self.method, self.shape, self.num_classes = recipe, method, shape, num_classes
        self.most = max(1, recipe.batch_size // (processes * recipe.trainer.accumulate))
        self.fault, self.threads = "", 1

    def speedup(self) -> float | None:
        """Return how many times as fast bfloat16 is as float32; None where it could not be measured."""
        ways: dict[Any, tuple[Precise, int]] = {name: (name, self.threads) for name in (FULL, MIXED)}
        rounds = self._alternating(ways)
        return None if rounds is None else statistics.median(one[FULL] / one[MIXED] for one in rounds)

    def scaling(self, precision: Precise, most: int) -> tuple[int, float, int] | None:
        """Return the best number of threads up to `most`, its speed relative to another number, and that other number.

        The other number is the next smaller one that was tried, or for 1 thread the next larger. None where nothing could be measured.
        """
        numbers = [number for power in range(most.bit_length()) if (number := 2**power) < most] + [most]
        rounds = self._alternating({number: (precision, number) for number in numbers})
        if rounds is None:
            return None
        gains = [statistics.median(one[few] / one[more] for one in rounds) for few, more in itertools.pairwise(numbers)]
        place = next((place for place, gain in enumerate(gains) if gain < SCALES), len(gains))
        return (numbers[place], gains[place - 1], numbers[place - 1]) if place else (numbers[0], 1 / gains[0], numbers[1])

    def _alternating(self, ways: Mapping[Any, tuple[Precise, int]]) -> list[dict[Any, float]] | None:
        """Return the seconds of a pass by each of `ways` (a precision and a number of threads), for several rounds; None on failure."""
        before = torch.get_num_threads()
        try:
            with _twin(self.method) as twin, torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):
                return self._rounds(twin, ways)
        except (
            Exception
        ) as error:  # such as of a user's own method that cannot be copied or fails; if it fails in training, too, it is reported then
            self.fault = f"{type(error).__name__}: {first_line(error)}"
            return None
        finally:
            torch.set_num_threads(before)

    def _rounds(self, twin: Method, ways: Mapping[Any, tuple[Precise, int]]) -> list[dict[Any, float]]:
        least = min(self.most, max(2, twin.least_items))

        def timed(way: tuple[Precise, int], items: int) -> float:
            if way[1] != torch.get_num_threads():
                torch.set_num_threads(way[1])
                self._pass(twin, way[0], items)  # warms up the pool of threads
            return self._pass(twin, way[0], items)

        first, too_long = next(iter(ways.values())), TimeoutError(f"even {least} items take too long here")
        if least * sum(_work(network, self.shape) for network in twin.networks.values()) > LARGEST:
            raise too_long
        began = time.perf_counter()
        timed(first, least)  # allocates memory and prepares kernels
        if time.perf_counter() - began > PATIENCE:
            raise too_long
        each = timed(first, least) / least
        items = int(min(self.most, max(least, SECOND / (2 * ROUNDS * len(ways)) / max(each, 1e-9))))
        for way in ways.values():
            timed(way, items)
        rounds: list[dict[Any, float]] = []
        began = time.perf_counter()
        while len(rounds) < ROUNDS or time.perf_counter() - began < SECOND / 2:
            rounds.append({name: timed(way, items) for name, way in ways.items()})
        return rounds

    def _pass(self, twin: Method, precision: Precise, items: int) -> float:
        """Return the seconds of a step's losses and gradients, each turn weighted by the share of the run's steps in which it is due."""
        rng = torch.Generator().manual_seed(0)
        batch, scratch = random_batch(items, self.shape, self.num_classes, rng), dict[str, Any]()
        mixed, seconds = Mixed(), 0.0
        mixed.on = precision == MIXED
        networks = {name: in_precision(network, mixed) for name, network in twin.networks.items()}
        for turn in twin.turns:
            for name, network in twin.networks.items():
                set_learning(network, name in turn.trains)
            learning = [p for name in turn.trains for p in twin.networks[name].parameters() if p.requires_grad]
            began = time.perf_counter()
            output = twin.loss(turn.name, networks, batch, rng, scratch)
            torch.autograd.grad(output.loss, learning, allow_unused=True)
            seconds += (time.perf_counter() - began) * turn.updates(self.recipe.steps) / self.recipe.steps
        return seconds


@contextlib.contextmanager
def _twin(method: Method) -> Iterator[Method]:
    """Give a copy of `method` that shares its weights, and restore which weights require gradients when the block ends."""
    held: list[nn.Module] = [*method.networks.values()]
    for part in vars(method).values():
        held += [part] if isinstance(part, nn.Module) else [part.denoiser] if isinstance(part, Generator) else []
    shared = {id(p): p for module in held for p in module.parameters()}
    flags = [(p, p.requires_grad) for p in shared.values()]
    try:
        yield copy.deepcopy(method, dict[int, Any](shared))
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
