"""How long a run will take on this machine: a few of its steps are made for real, and thrown away."""

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from fewstep.data.own import ForeignData
from fewstep.generator import Generator
from fewstep.limits import memory
from fewstep.measurement import BATCH, usual_samples
from fewstep.methods.base import Method
from fewstep.recipe import Recipe
from fewstep.training.batches import TrainingData
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

ENOUGH = 1.0  # seconds of steps that make an estimate
LONG = 5.0  # seconds that one step may take to be tried as it is; a longer one is tried on a part of its batch
ROOM = 0.5  # of the memory, that a step may need to be tried as it is


@dataclass(frozen=True)
class Trial:
    """What was found of one device.

    Attributes:
        step: seconds of a step, the mean over the run's parts.
        made: steps that were made for that.
        batch: items of the batches that were tried; less than the run's where a whole one would take too long here.
        sample: seconds that one sample takes.
        where: the device, and its threads.

    """

    step: float
    made: int
    batch: int
    sample: float
    where: str


def tried(recipe: Recipe, data: TrainingData | ForeignData, method: Method, needed: int, fabric: Fabric, threads: int) -> Trial:
    """Make a few steps of `recipe` by `method`, which is used up, on `data` in one process of `fabric`, with so many `threads`.

    `needed` are the bytes that a step takes. Nothing is written but into a folder that is taken away again.
    """
    whole, trainer = recipe.batch_size, recipe.trainer
    least = method.least_items * trainer.accumulate
    size = min(whole, trainer.accumulate * math.ceil(max(least, 8) / trainer.accumulate))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:

        def steps(items: int) -> tuple[float, int]:
            settings = LoopSettings(recipe.steps, items, recipe.seed, trainer.accumulate, ema_decay=recipe.method.ema_decay)
            loop = Loop(method, data, fabric, RunFolder(Path(folder)), settings)
            try:
                return _steps(loop, recipe.steps)
            finally:
                loop.state.batches.close()

        try:
            seconds, made = steps(size)
            if size < whole and seconds * whole / size < LONG and needed < ROOM * memory():
                size, (seconds, made) = whole, steps(whole)
            sample = _sampling(method.ship(method.networks[method.ships], 0))
        finally:
            torch.set_num_threads(before)
    where = fabric.device.type if fabric.device.type != "cpu" else f"cpu, {threads} thread{'s' * (threads > 1)}"
    return Trial(seconds * whole / size, made, size, sample, where)


def _steps(loop: Loop, steps: int) -> tuple[float, int]:
    """Seconds of a step, over the parts that the turns divide a run of `steps` into, and how many steps were made."""
    ends = sorted({0, steps, *(math.ceil(share * steps) for turn in loop.method.turns for share in (turn.begins, turn.ends))})
    total, made = 0.0, 0
    for begin, end in itertools.pairwise(ends):
        loop.state.step = begin
        _timed(loop.advance, loop)  # the first of a kind makes its memory ready
        cycle = min(math.lcm(*(turn.every for turn in loop.method.turns)), end - begin)
        found: list[float] = []
        while not found or (sum(found) < ENOUGH / (len(ends) - 1) and len(found) * cycle < 50):
            found.append(sum(_timed(loop.advance, loop) for _ in range(cycle)) / cycle)
        total += statistics.median(found) * (end - begin) / steps
        made += len(found) * cycle
    return total, made


def _sampling(generator: Generator) -> float:
    """Seconds of one sample."""
    images = len(generator.shape) == 3
    num = 4 if images else usual_samples(points=True)
    generator.sample(1, seed=0)
    began = time.perf_counter()
    generator.sample(num, seed=0).cpu()
    seconds = time.perf_counter() - began
    if images and seconds * BATCH / num < LONG:  # many at once take less
        began, num = time.perf_counter(), BATCH
        generator.sample(num, seed=0).cpu()
        seconds = time.perf_counter() - began
    return seconds / num


def _timed(do: Callable[[], object], loop: Loop) -> float:
    began = time.perf_counter()
    do()
    if loop.fabric.device.type == "cuda":
        torch.cuda.synchronize(loop.fabric.device)
    return time.perf_counter() - began


def lines(recipe: Recipe, trial: Trial, points: bool, evaluations: int) -> list[str]:
    """In words: the time of a step, of the run, and of what is measured on the way."""
    steps = f"{trial.made} step{'s' * (trial.made > 1)}"
    how = f"{steps} tried" if trial.batch == recipe.batch_size else f"from {steps} on {trial.batch} items each"
    told = [f"time: about {in_words(trial.step)} a step, {in_words(trial.step * recipe.steps)} for {recipe.steps:,} ({how}; {trial.where})"]
    if recipe.trainer.evaluate_every is not None:
        times, num = math.ceil(recipe.steps / recipe.trainer.evaluate_every), recipe.trainer.evaluate_samples or usual_samples(points)
        each = f"{num:,} samples of {evaluations} evaluation{'s' * (evaluations > 1)}"
        cost = trial.sample * num
        often = f"{times} time{'s' * (times > 1)}"
        told.append(f"measuring: {often} {each}; to draw them takes about {in_words(cost)} each time, {in_words(cost * times)} in all")
    return told


def in_words(seconds: float) -> str:
    """A length of time, with the two figures that matter: 12 ms, 3.4 s, 7 min, 2.5 h, 12 days."""
    for least, unit in ((86_400 * 2, "days"), (3600 * 1.5, "h"), (90, "min"), (1, "s")):
        if seconds >= least:
            number = seconds / {"days": 86_400, "h": 3600, "min": 60, "s": 1}[unit]
            return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{seconds * 1000:.2g} ms" if seconds < 0.0995 else f"{seconds * 1000:.0f} ms"
