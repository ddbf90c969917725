"""Take a step of DMD2 as LoRA on SD 1.5's U-Net at its true size, with random weights, on latents of 16x16.

    python benchmarks/text_size.py            about ten minutes and 12 GB

The published weights cannot be had here, and images would be noise, but a network of 859,520,964 parameters shows what a small one does
not: whether every layer takes its adapters, whether the adapters alone get a gradient, how long a step takes, and whether the memory that
is counted beforehand (`fewstep train --dry-run`) is the memory that is taken. Measures each turn's loss and its gradients in float32, with
activations kept and with activations computed again (`trainer.checkpointing`). Writes results/text_size.json.
"""

import argparse
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fewstep.costs import measure
from fewstep.denoisers import ForeignDenoiser
from fewstep.denoisers.adapted import grounds
from fewstep.generator import Generator, standing_on
from fewstep.machine import machine
from fewstep.methods.base import Batch, Turn
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.dmd2.settings import DMD2Settings
from fewstep.methods.recomputing import recompute
from fewstep.networks.prompts import EncodedPrompts
from fewstep.networks.text_unet.network import TextUNet
from fewstep.pipelines.lora import RANK, TARGETS
from fewstep.pipelines.reference import Base
from fewstep.training.learned import learned, set_learning
from scaling import BETAS, SD15

RESULTS = Path(__file__).parent / "results" / "text_size.json"
SIDE = 16  # height and width of latents
CONFIG = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, **SD15}


def teacher(config: Mapping[str, Any], side: int = SIDE, tokens: int = 77) -> Generator:
    """Return a generator of latents [4, side, side] by a U-Net of `config` with random weights, with two prompts encoded as noise."""
    torch.manual_seed(0)
    network = TextUNet((4, side, side), **config)
    network.prompts = EncodedPrompts(torch.randn(3, tokens, config["cross_attention_dim"]))
    denoiser = ForeignDenoiser(network, 1.0, 2, betas=BETAS).eval()
    arguments = {
        "shape": [4, side, side],
        "num_classes": 2,
        "sigma_data": 1.0,
        "network": {"name": "text_unet", **config},
        "denoiser": {"name": "ddpm", "betas": BETAS, "prediction": "epsilon"},
        "sampler": {"name": "euler", "steps": 50, "sigma_min": denoiser.sigma_min, "sigma_max": denoiser.sigma_max, "rho": 7.0},
        "info": {"method": "teacher", "label_dropout": True},
        "base": Base("random weights", "none").config,
    }
    return standing_on(denoiser, arguments)


def step(made: Generator, items: int, rank: int, again: bool) -> dict[str, Any]:
    """Return seconds and bytes of one step of DMD2 on `made`, and which tensors get finite gradients. `made` cannot be used again.

    With `again`, activations are computed again (gradient checkpointing).
    """
    lora = {"rank": rank, "targets": list(TARGETS["text_unet"])}
    settings = DMD2Settings(name="dmd2", lora=lora, times="teacher", loss="dmd", guidance_scale=1.75, ema_decay=0.99)
    method = DMD2(settings, made, 1000)
    if again:
        recompute(method)
    rng, scratch = torch.Generator().manual_seed(0), dict[str, Any]()
    batch = Batch(torch.zeros(items, *made.shape), torch.arange(items) % 2)
    base = [parameter for ground in grounds(method.networks["teacher"]) for parameter in ground.parameters()]
    found: dict[str, Any] = {"activations computed again": again}
    most = 0
    for turn in method.turns:
        for name, network in method.networks.items():
            set_learning(network, name in turn.trains)
        learning = [p for name in turn.trains for p in learned(method.networks[name]).values()]

        def gradients(turn: Turn = turn) -> float:
            loss = method.loss(turn.name, method.networks, batch, rng, scratch).loss
            loss.backward()
            return loss.item()

        began = time.perf_counter()
        loss = gradients()
        seconds = time.perf_counter() - began
        for parameter in learning:
            parameter.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
            gradients()
        held = [event.nbytes() for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
        most = max(most, max(itertools.accumulate(held)))
        mine = {id(p) for p in learning}
        others = [p for network in method.networks.values() for p in network.parameters() if id(p) not in mine]
        found[turn.name] = {
            "seconds": seconds,
            "loss": loss,
            "tensors": len(learning),
            "with_gradient": sum(p.grad is not None and bool(p.grad.isfinite().all()) for p in learning),
            "others_with_gradient": sum(p.grad is not None for p in (*others, *base)),
        }
        for parameter in learning:
            parameter.grad = None
    found["taken"] = most
    memory = measure(method, tuple(made.shape), 2, 1000, items).memory
    found["counted"] = memory.activations + memory.gradients
    found["memory"] = {key: getattr(memory, key) for key in ("base", "networks", "average", "gradients", "moments", "activations")}
    return found


def main() -> None:
    """Take a step with activations kept and with activations computed again, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for again in (False, True):
        made = teacher(CONFIG)  # made anew: a step uses its generator up
        parameters = sum(parameter.numel() for parameter in made.denoiser.parameters())
        rows.append(step(made, arguments.items, RANK, again))
        print(json.dumps(rows[-1], indent=1), flush=True)
        del made
    told = {"command": "python benchmarks/text_size.py", "machine": machine(), "threads": arguments.threads, "items": arguments.items}
    arguments.results.write_text(json.dumps({**told, "parameters": parameters, "side": SIDE, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
