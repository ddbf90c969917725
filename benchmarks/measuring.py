"""Shared by the benchmarks of single steps: their recipes and data, the time of a call, and the peak memory of a process."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from fewstep.build import Data, load_data
from fewstep.data import ImageData
from fewstep.recipe import load_recipe, shipped_recipes

# shapes of random images in place of data sets, whose files are not needed; names of recipes, of which the first that is shipped is taken
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
NETWORKS = {"cifar10": ("cifar10_cpu", "cifar10_small")}
BATCH = {"digits": 64, "photos": 64, "mnist": 64, "cifar10": 64}


def recipe_name(method: str, network: str) -> str:
    """Return the shipped recipe of `method` for the data set that is called `network` here."""
    names = [f"{method}/{name}" for name in NETWORKS.get(network, (network,))]
    return next(name for name in names if name in shipped_recipes())


def data_for(network: str) -> Data:
    """Return the data of `network`: its recipe's, or random bytes of its shape in ten classes."""
    if network not in SHAPES:
        return load_data(load_recipe(recipe_name("teacher", network)).data)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (1100, *SHAPES[network]), dtype=torch.uint8, generator=rng)
    label = torch.arange(len(pixels)) % 10
    names = tuple(str(k) for k in range(10))
    return ImageData(network, pixels[:1000], pixels[1000:], label[:1000], label[1000:], 127.5, names, flip=network == "cifar10")


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one call by `clock`, including work that it has left running on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = clock()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def peak_mib() -> float:
    """Return the peak memory in MiB so far: of the GPU if there is one, else of this process (Linux)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # not getrusage: after exec its maximum still holds the memory of the process that forked this one
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10
