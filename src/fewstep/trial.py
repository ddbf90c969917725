"""Estimate how long a run will take on this machine, from a few of its real training steps, whose results are discarded."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric

from fewstep.data.own import ForeignData
from fewstep.files import passing_folder
from fewstep.generator import Generator
from fewstep.limits import memory
from fewstep.measurement import BATCH, usual_samples
from fewstep.methods.base import Method
from fewstep.recipe import Recipe
from fewstep.training.batches import TrainingData
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

ENOUGH = 1.0  # seconds of training steps that are enough for an estimate
LONG = 5.0  # most seconds of a step that is tried with a whole batch; for longer steps a smaller batch is tried
ROOM = 0.5  # largest share of the memory that a step may need to be tried with a whole batch


@dataclass(frozen=True)
class Trial:
    """Times measured on one device.

    Attributes:
        step: seconds of a step with the run's batch size, averaged over the phases into which turns divide the run.
        made: number of steps that were made.
        batch: batch size of these steps; less than the run's where a whole batch would take too long or too much memory.
        sample: seconds for drawing one sample.
        where: the device, on a CPU with the number of threads.

    """

    step: float
    made: int
    batch: int
    sample: float
    where: str


def tried(recipe: Recipe, data: TrainingData | ForeignData, method: Method, needed: int, fabric: Fabric, threads: int) -> Trial:
    """Make a few steps of `recipe` with `method` on `data` in this process, and return the times measured.

    `method` is trained by this, and must not be used afterwards. `needed` is the memory in bytes that a step takes, `fabric` the engine,
    and `threads` the number of CPU threads. Files are written only to a temporary folder.
    """
    whole, trainer = recipe.batch_size, recipe.trainer
    least = method.least_items * trainer.accumulate
    size = min(whole, trainer.accumulate * math.ceil(max(least, 8) / trainer.accumulate))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.random.fork_rng(devices=[]), passing_folder() as folder:

        def steps(items: int) -> tuple[float, int]:
            settings = LoopSettings(recipe.steps, items, recipe.seed, trainer.accumulate, ema_decay=recipe.method.ema_decay)
            loop = Loop(method, data, fabric, RunFolder(folder), settings)
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
    """Return the seconds of a step, averaged over the phases into which turns divide a run of `steps`, and the number of steps made."""
    ends = sorted({0, steps, *(math.ceil(share * steps) for turn in loop.method.turns for share in (turn.begins, turn.ends))})
    total, made = 0.0, 0
    for begin, end in itertools.pairwise(ends):
        loop.state.step = begin
        _timed(loop.advance, loop)  # the first step of a phase also allocates its memory
        cycle = min(math.lcm(*(turn.every for turn in loop.method.turns)), end - begin)
        found: list[float] = []
        while not found or (sum(found) < ENOUGH / (len(ends) - 1) and len(found) * cycle < 50):
            found.append(sum(_timed(loop.advance, loop) for _ in range(cycle)) / cycle)
        total += statistics.median(found) * (end - begin) / steps
        made += len(found) * cycle
    return total, made


def _sampling(generator: Generator) -> float:
    """Return the seconds for drawing one sample, measured on a batch of samples."""
    images = len(generator.shape) == 3
    num = 4 if images else usual_samples(points=True)
    generator.sample(1, seed=0)
    began = time.perf_counter()
    generator.sample(num, seed=0).cpu()
    seconds = time.perf_counter() - began
    if images and seconds * BATCH / num < LONG:  # a larger batch takes less time for each sample
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
    """Return lines on the time of a step, of the whole run, and of drawing samples for measurements during the run."""
    steps = f"{trial.made} step{'s' * (trial.made > 1)}"
    how = f"{steps} tried" if trial.batch == recipe.batch_size else f"from {steps} on {trial.batch} items each"
    told = [
        f"time: about {in_words(trial.step)} a step, {in_words(trial.step * recipe.steps)} for {recipe.steps:,} steps "
        f"({how}; {trial.where})"
    ]
    if recipe.trainer.evaluate_every is not None:
        times, num = math.ceil(recipe.steps / recipe.trainer.evaluate_every), recipe.trainer.evaluate_samples or usual_samples(points)
        each = f"{num:,} samples of {evaluations} evaluation{'s' * (evaluations > 1)}"
        cost = trial.sample * num
        often = f"{times} time{'s' * (times > 1)}"
        told.append(f"measuring: {often} {each}; to draw them takes about {in_words(cost)} each time, {in_words(cost * times)} in all")
    return told


def in_words(seconds: float) -> str:
    """Return a duration with a unit and about two significant digits, such as 12 ms, 3.4 s, 7 min, 2.5 h or 12 days."""
    for least, unit in ((86_400 * 2, "days"), (3600 * 1.5, "h"), (90, "min"), (1, "s")):
        if seconds >= least:
            number = seconds / {"days": 86_400, "h": 3600, "min": 60, "s": 1}[unit]
            return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{seconds * 1000:.2g} ms" if seconds < 0.0995 else f"{seconds * 1000:.0f} ms"
