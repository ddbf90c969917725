"""Measure time and memory of one training step of a network - forward, backward and AdamW - at increasing batch sizes.

The step is a bare one - a denoising loss, no data loading, no exponential moving average, no logging - so that its floating-point
operations are known (counted on tensors without content); `step_overhead.py` measures what the training loop adds.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fewstep.build import make_method
from fewstep.data.images import ImageData
from fewstep.errors import first_line
from fewstep.recipe import load_recipe
from gpu_peaks import share
from measuring import peak_mib

ENOUGH = 2.0  # seconds of timed steps behind each figure
LARGEST = 2**15  # items of a batch; kernels count elements in 32 bits
PLAIN = (("tf32", False), ("bf16", False))  # precision, compiled
COMPILED = ("bf16", True)

SDXL = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY_SDXL = SDXL | {
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 8 + 6 * 4,
}
TINY = {
    "teacher/cifar10_small": ("network.channels=[8,16]", "network.groups=4", "network.head_dim=8"),
    "teacher/cifar10": ("network.channels=16", "network.blocks=1", "network.multipliers=[1,1]", "network.attention=[]"),
}


@dataclass(frozen=True)
class Work:
    """A network, its inputs, and the batch sizes to measure.

    Attributes:
        make: makes the network, untrained, on a device.
        inputs: makes the network's arguments for so many items on a device; the first argument has the shape of the output.
        first: items in the smallest batch; each next batch has twice as many, up to `largest`.
        usual: the batch size of the network's recipe, at which the compiled network is measured, too.

    """

    make: Callable[[str], nn.Module]
    inputs: Callable[[int, str], tuple[tuple[Any, ...], dict[str, Any]]]
    first: int
    usual: int
    largest: int = LARGEST


def works(tiny: bool) -> dict[str, Callable[[], Work]]:
    """Return the networks by name; `tiny` ones have the same parts and few channels."""
    return {
        "small": lambda: _of_recipe("teacher/cifar10_small", tiny),
        "edm": lambda: _of_recipe("teacher/cifar10", tiny),
        "sdxl": lambda: _sdxl(tiny),
    }


def _of_recipe(name: str, tiny: bool) -> Work:
    size = 8 if tiny else 32
    recipe = load_recipe(name, TINY[name] if tiny else ())
    pixels, label = torch.zeros(20, 3, size, size, dtype=torch.uint8), torch.arange(20) % 10
    data = ImageData("cifar10", pixels, pixels, label, label, 127.5, tuple(map(str, range(10))))

    def make(device: str) -> nn.Module:
        return make_method(recipe, data).networks["denoiser"].network.to(device)

    def inputs(items: int, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.randn(items, 3, size, size, device=device)
        return (x, torch.zeros(items, device=device), torch.zeros(items, dtype=torch.long, device=device)), {}

    return Work(make, inputs, 2, 2, 4) if tiny else Work(make, inputs, 32, recipe.batch_size)


def _sdxl(tiny: bool) -> Work:
    config = TINY_SDXL if tiny else SDXL
    side, width, (tokens, pooled) = config["sample_size"], config["cross_attention_dim"], (4, 8) if tiny else (77, 1280)

    def make(device: str) -> nn.Module:
        from diffusers import UNet2DConditionModel

        with torch.device(device):  # 2.6 billion random weights are drawn quickly on a GPU
            return UNet2DConditionModel(**config)

    def inputs(items: int, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, text = torch.randn(items, 4, side, side, device=device), torch.randn(items, tokens, width, device=device)
        more = {"text_embeds": torch.randn(items, pooled, device=device), "time_ids": torch.zeros(items, 6, device=device)}
        return (x, torch.zeros(items, device=device), text), {"added_cond_kwargs": more, "return_dict": False}

    return Work(make, inputs, 1, 1, 2) if tiny else Work(make, inputs, 1, 8)


def counted(work: Work) -> tuple[int, float]:
    """Return (parameters of the network, floating-point operations of a step for one item); a multiplication and its addition are two.

    They are counted on tensors without content (device "meta"), whatever device is measured.
    """
    made = work.make("meta")
    args, kwargs = work.inputs(2, "meta")
    with FlopCounterMode(display=False) as counter:
        _output(made(*args, **kwargs)).sum().backward()
    return sum(p.numel() for p in made.parameters()), counter.get_total_flops() / 2


def _output(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


@dataclass
class Step:
    """A network in training, in one precision, with its optimizer."""

    work: Work
    device: str
    precision: str
    compiled: bool
    backend: str
    network: Any = field(init=False)

    def __post_init__(self) -> None:
        self.network = self.work.make(self.device).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-6, fused=True)
        if self.compiled:
            torch._dynamo.reset()
            # one graph for each batch size: a graph for all sizes is slower
            self.network = torch.compile(self.network, dynamic=False, backend=self.backend)

    def prepared(self, items: int) -> Callable[[], None]:
        """Return a function that takes one training step on a batch of `items`."""
        args, kwargs = self.work.inputs(items, self.device)
        target = torch.randn_like(args[0])

        def step() -> None:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
                output = _output(self.network(*args, **kwargs))
            (output.float() - target).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return step


@contextmanager
def tf32(device: str) -> Iterator[None]:
    """Compute 32-bit products on a GPU in TF32 inside the context."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def timed_step(step: Callable[[], None], device: str, enough: float) -> tuple[float, int]:
    """Return (median seconds of a step, number of timed steps), over `enough` seconds and at least three steps, after two untimed ones."""

    def once() -> float:
        began = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(2):
        once()
    found: list[float] = []
    while len(found) < 3 or (sum(found) < enough and len(found) < 200):
        found.append(once())
    return statistics.median(found), len(found)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


Known = Mapping[tuple[str, bool, int], Mapping[str, Any]]


def due(known: Known, work: Work) -> Iterator[tuple[str, bool, int]]:
    """Yield (precision, compiled, items) of each measurement that is due, given the rows in `known`, which the caller adds to meanwhile.

    Each precision doubles the batch until one does not fit or fails. Compiling takes minutes for each batch size, so the compiled network
    is measured at two: the recipe's batch size, and the one with most images per second without compiling.
    """
    for precision, compiled in PLAIN:
        for items in itertools.takewhile(lambda items: items <= work.largest, (work.first << n for n in itertools.count())):
            if (precision, compiled, items) not in known:
                yield precision, compiled, items
            if "images_per_second" not in known[precision, compiled, items]:
                break
    plain = {items: row["images_per_second"] for (p, c, items), row in known.items() if (p, c) == PLAIN[1] and "images_per_second" in row}
    sizes = {max(plain, key=lambda items: plain[items]), *({work.usual} & set(plain))} if plain else set()
    for items in sorted(sizes):
        if (*COMPILED, items) not in known:
            yield *COMPILED, items


def measure(name: str, place: Any, known: dict[tuple[str, bool, int], dict[str, Any]], send: Callable[[dict[str, Any]], None]) -> bool:
    """Measure the rows of the network called `name` that are not `known`, and `send` each when it is begun and when it is done.

    `place` has the ``device``, the ``gpu``'s name and whether networks are ``tiny``. Returns whether all rows were measured: False if one
    has left the device unusable for this process.
    """
    work, device = works(place.tiny)[name](), place.device
    parameters, flops = counted(work)
    step: Step | None = None
    with tf32(device):
        for precision, compiled, items in due(known, work):
            row: dict[str, Any] = {"network": name, "precision": precision, "compiled": compiled, "batch": items, "device": place.gpu}
            send({**row, "begun": True})
            fit = True
            try:
                if step is None or (step.precision, step.compiled) != (precision, compiled):
                    step = None
                    _free(device)
                    step = Step(work, device, precision, compiled, "eager" if place.tiny else "inductor")
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds, steps = timed_step(step.prepared(items), device, 0.0 if place.tiny else ENOUGH)
                rate = flops * items / seconds / 1e12
                row |= {"parameters": parameters, "flops_per_image": flops, "steps": steps, "step_ms": 1e3 * seconds}
                row |= {"images_per_second": items / seconds, "tflops": rate, "share": share(place.gpu, precision, rate)}
                row |= {"peak_mib": peak_mib()}
            except Exception as error:  # a missing kernel, a graph that cannot be compiled: recorded, and the next is tried
                row |= {"out_of_memory": True} if is_out_of_memory(error) else {"failed": first_line(error)[:300]}
                step = None
                fit = is_out_of_memory(error) or _answers(device)
            known[precision, compiled, items] = row
            send(row)
            if not fit:
                return False
            _free(device)
    return True


def _answers(device: str) -> bool:
    """Whether the device can still be used: after some faults it fails every further call of the same process."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
