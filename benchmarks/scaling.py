"""Count what DMD2 of published networks costs on many GPUs - memory of each GPU, operations, communication - beside published runs.

    python benchmarks/scaling.py

Counts on networks of full size without weights or content, and writes results/scaling.json: a minute on a CPU. `benchmarks/tables.py`
turns the results into the tables of docs/scaling.md.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fewstep.denoisers.foreign import ForeignDenoiser
from fewstep.interop.text_teacher import lora_bytes
from fewstep.networks.prompts import EncodedPrompts
from fewstep.networks.text_unet import TextUNet
from fewstep.pipelines.lora import TARGETS
from fewstep.training.sharding import blocks, peak
from gpu_steps import SDXL

RESULTS = Path(__file__).parent / "results" / "scaling.json"
SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
BETAS = {"schedule": "scaled_linear", "start": 0.00085, "end": 0.012, "num": 1000}
ITEMS = 2  # in the batch on which operations and memory are counted
SIZES = (1024, 1024, 0, 0, 1024, 1024)  # that SDXL is conditioned on


@dataclass(frozen=True)
class Run:
    """A published run with its hours (https://github.com/tianweiy/DMD2, experiments/). `batch` is the size over all `gpus`."""

    network: str
    steps: int
    ratio: int
    guided: bool
    gan: bool
    gpus: int
    batch: int
    iterations: int
    hours: float
    recomputed: bool


RUNS = {
    "SD 1.5, one step": Run("sd15", 1, 10, True, False, 64, 2048, 39_000, 25, True),
    "SDXL, four steps, GAN": Run("sdxl", 4, 5, True, True, 64, 128, 19_000, 57, False),
}


def made(name: str) -> ForeignDenoiser:
    """Return the denoiser called `name`, without weights."""
    config, ids = {"sd15": (SD15, None), "sdxl": (SDXL, SIZES)}[name]
    side = config["sample_size"]
    with torch.device("meta"):
        network = TextUNet((4, side, side), time_ids=ids, **{"in_channels": 4, "out_channels": 4, "layers_per_block": 2, **config})
        width, pooled = network.takes
        network.prompts = EncodedPrompts(torch.empty(ITEMS + 1, 77, width), None if pooled is None else torch.empty(ITEMS + 1, pooled))
        return ForeignDenoiser(network, 1.0, ITEMS, betas=BETAS)


def operations(call: Callable[[], Any], learns: bool) -> float:
    """Return the floating-point operations of `call` for one item, with `learns` also those of its gradients: two for a multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(learns):
        found = call()
        if learns:
            sum(x.sum() for x in tree_leaves(found)).backward()
    return counter.get_total_flops() / ITEMS


def kept(network: nn.Module, call: Callable[[], Any], recomputed: bool) -> float:
    """Return the bytes of activations for one item that `call` keeps for its gradients.

    With `recomputed` (gradient checkpointing) these are the inputs of each part that is computed again, and the activations inside the
    largest of these parts.
    """
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    outer: dict[int, int] = {}
    counts, largest = [outer], [0]
    held: list[Tensor] = []  # so that no storage is freed, and its number given to another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            counts[-1][storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    def part(module: Callable[..., Any], *told: Any) -> Any:
        for tensor in tree_leaves(told):
            if isinstance(tensor, Tensor):
                keep(tensor)
        counts.append({})
        found = module(*told)
        largest.append(sum(counts.pop().values()))
        return found

    unet: Any = network.unet
    if recomputed:
        unet.train()
        unet.enable_gradient_checkpointing(part)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    unet.disable_gradient_checkpointing()
    return (sum(outer.values()) + max(largest)) / ITEMS


def counted(name: str) -> dict[str, float]:
    """Return the parameters, operations and memory of the network called `name`."""
    denoiser = made(name)
    network: Any = denoiser.network
    side = network.unet.config.sample_size
    with torch.device("meta"):
        x, time, label = torch.empty(ITEMS, 4, side, side), torch.empty(ITEMS), torch.zeros(ITEMS, dtype=torch.long)
    levels = len(network.feature_shapes)
    found: dict[str, float] = {
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "forward": operations(lambda: network(x, time, label), False),
        "both": operations(lambda: network(x, time, label), True),
        "encoder_forward": operations(lambda: network.features(x, time, label, levels), False),
        "encoder_both": operations(lambda: network.features(x, time, label, levels), True),
        "blocks": len(blocks(denoiser)),
        "gathered": peak(denoiser),
        "lora": lora_bytes(denoiser, TARGETS["text_unet"]),
        "lora_4": lora_bytes(denoiser, TARGETS["text_unet"], 4),
    }
    half = network.bfloat16()
    for key, recomputed in (("activations", False), ("recomputed", True)):
        found[key] = kept(half, lambda: half(x.bfloat16(), time.bfloat16(), label), recomputed)
    return found


def step_flops(one: dict[str, float], steps: int, ratio: int, guided: bool, gan: bool) -> float:
    """Return the operations of a training step for one item, on average over `ratio` steps, of which one trains the generator.

    A generator of several steps first takes the steps before the one that learns, on average ``(steps - 1) / 2``; in a step that trains it,
    its samples train the fake network as well. The discriminator sees real and generated items through the fake network's encoder, and the
    generator learns through this encoder, too.
    """
    forward, both = one["forward"], one["both"]
    before = (steps - 1) / 2 * forward
    generator = before + both + (2 if guided else 1) * forward + forward + gan * (2 * one["encoder_forward"])
    fake = both + gan * 2 * one["encoder_both"]
    return fake + (1 - 1 / ratio) * (before + forward) + generator / ratio


def exchanged(one: dict[str, float], steps: int, ratio: int, bytes_each: int = 4) -> float:
    """Return the bytes that a device receives in a step where every network is sharded: a network is gathered whenever it is called.

    A network that learns is gathered a second time for its gradients, and the gradients are exchanged once.
    """
    generator = (steps - 1) + 2 + 1 + 1 + 1  # the generator's steps, the last with gradients; teacher; fake network; gradients
    fake = 2 + 1
    return (fake + (1 - 1 / ratio) * steps + generator / ratio) * bytes_each * one["parameters"]


def main() -> None:
    """Count the networks and the published runs, print and write the results."""
    networks = {name: counted(name) for name in ("sd15", "sdxl")}
    for name, one in networks.items():
        print(name, {key: f"{value:.4g}" for key, value in one.items()})
    runs = {}
    for title, run in RUNS.items():
        one = networks[run.network]
        flops = step_flops(one, run.steps, run.ratio, run.guided, run.gan)
        rate = flops * run.batch * run.iterations / run.gpus / (run.hours * 3600)
        runs[title] = {**asdict(run), "flops": flops, "rate": rate, "exchanged": exchanged(one, run.steps, run.ratio)}
        print(f"{title}: {flops / 1e12:.1f} TFLOP an image a step, {rate / 1e12:.1f} TFLOP/s a GPU as published")
    RESULTS.write_text(json.dumps({"command": "python benchmarks/scaling.py", "networks": networks, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
