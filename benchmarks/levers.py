"""Time a training step of an image U-Net on a CPU while levers that make it cheaper are added one after the other.

    python benchmarks/levers.py [--repeats 9] [--only mnist]

A forward and backward pass of the U-Net on 64 images, in CPU seconds of the process (user and system, one thread). Each row adds one lever
to the row above it; all rows are measured in turn, in every repeat, so that other work on the machine affects all of them. Ratios are
medians of the ratios within a repeat. In the first row of MNIST the images are padded to 32x32. Writes results/levers.json.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fewstep.allocator import keep_freed_memory
from fewstep.machine import machine
from fewstep.networks import make_network, num_parameters

RESULTS = Path(__file__).parent / "results" / "levers.json"
BATCH = 64


@dataclass(frozen=True)
class Way:
    """The settings of a row: image shape, channels and patch size of the U-Net, and the levers that are on."""

    shape: tuple[int, ...]
    channels: tuple[int, ...]
    patch: int = 1
    keep: bool = False
    channels_last: bool = False
    bf16: bool = False

    def ready(self) -> tuple[Callable[[], Tensor], int]:
        """Return a function that computes the loss of a pass, and the network's number of parameters."""
        settings = {
            "name": "unet",
            "channels": list(self.channels),
            "patch": self.patch,
            "layers_per_block": 1,
            "groups": 8,
            "head_dim": 32,
        }
        torch.manual_seed(0)
        network = make_network(settings, self.shape, 10)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        x, c_noise, label = torch.randn(BATCH, *self.shape), torch.randn(BATCH), torch.randint(0, 10, (BATCH,))

        def loss() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                out: Tensor = network(x, c_noise, label)
            return out.float().square().mean()

        return loss, num_parameters(network)


def ladder(first: Way, *steps: tuple[str, dict]) -> dict[str, Way]:
    """Return rows of which each has one lever more than the row before; `first` has none."""
    rows = {"as it was": first}
    for title, change in steps:
        rows[title] = replace(list(rows.values())[-1], **change)
    return rows


LADDERS = {
    "mnist": ladder(
        Way((1, 32, 32), (32, 64, 128)),
        ("28x28 as it is", {"shape": (1, 28, 28)}),
        ("freed memory kept", {"keep": True}),
        ("channels last", {"channels_last": True}),
        ("patches of 2, (64, 128)", {"patch": 2, "channels": (64, 128)}),
        ("(48, 96)", {"channels": (48, 96)}),
        ("bfloat16", {"bf16": True}),
    ),
    "cifar10": ladder(
        Way((3, 32, 32), (64, 128, 256)),
        ("freed memory kept", {"keep": True}),
        ("channels last", {"channels_last": True}),
        ("patches of 2, (128, 256)", {"patch": 2, "channels": (128, 256)}),
        ("(96, 192)", {"channels": (96, 192)}),
        ("bfloat16", {"bf16": True}),
    ),
}


def cpu_seconds(loss: Callable[[], Tensor]) -> tuple[float, float]:
    """Return (CPU seconds, system seconds among them) of a forward and backward pass that follows an untimed one."""
    loss().backward()
    before = os.times()
    loss().backward()
    after = os.times()
    system = after.system - before.system
    return after.user - before.user + system, system


def main() -> None:
    """Time the ladders that are asked for, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=list(LADDERS), default=list(LADDERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = {"command": "python benchmarks/levers.py", "machine": machine(), "batch_size": BATCH, "repeats": arguments.repeats}
    content["ladders"] = json.loads(RESULTS.read_text())["ladders"] if RESULTS.exists() else {}
    for name in arguments.only:
        ready = {title: (way, *way.ready()) for title, way in LADDERS[name].items()}
        found: dict[str, list[tuple[float, float]]] = {title: [] for title in ready}
        for _ in range(arguments.repeats):
            for title, (way, loss, _) in ready.items():
                if not keep_freed_memory(way.keep) and way.keep:
                    raise SystemExit("glibc could not be told; this needs Linux, and none of glibc's own variables set")
                found[title].append(cpu_seconds(loss))
        rows, above = [], "as it was"
        for title, seconds in found.items():
            pairs = list(zip(seconds, found["as it was"], found[above], strict=True))
            rows.append(
                {
                    "title": title,
                    "parameters": ready[title][2],
                    "milliseconds_an_image": 1000 / BATCH * statistics.median(mine for mine, _ in seconds),
                    "system_share": statistics.median(system / mine for mine, system in seconds),
                    "of_the_first": statistics.median(mine[0] / first[0] for mine, first, _ in pairs),
                    "of_the_one_above": statistics.median(mine[0] / last[0] for mine, _, last in pairs),
                }
            )
            above = title
            print(f"{name:8} {title:26} {rows[-1]['milliseconds_an_image']:6.2f} ms an image, {rows[-1]['of_the_first']:.2f} of the first")
        content["ladders"][name] = rows
        RESULTS.write_text(json.dumps(content, indent=1))
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
