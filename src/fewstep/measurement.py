"""What is measured of a generator on a data set: in an evaluation, in a comparison, and on a cadence while it trains."""

from typing import Any

import numpy as np
import torch

from fewstep.data import ImageData, Mixture, PointData
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.metrics.features import feature_network
from fewstep.metrics.point_suite import PointSuite, split
from fewstep.metrics.suite import Suite, images_per_second

Row = dict[str, Any]

EXACT_SAMPLES = 10_000  # of a density, in each of two sets
IMAGE_SAMPLES = 2_000
MEASURING = 1  # marks the stream of what is measured against
FEWEST_POINTS = 80  # held out: two halves of 40, below which standard errors mean nothing
FEWEST_IMAGES = 5  # held out: a manifold of nearest neighbours needs as many


def usual_samples(points: bool) -> int:
    """How many samples make figures that compare."""
    return EXACT_SAMPLES if points else IMAGE_SAMPLES


def check_samples(num: int, key: str, points: bool, num_classes: int | None) -> None:
    """Raise UserError where `num`, which the user gave as `key`, is too few samples to measure."""
    fewest = 40 if points else max(10, 2 * (num_classes or 1))  # a spread within each class needs two
    if num < fewest:
        raise UserError(f"{key} is {num}; give at least {fewest} samples ({usual_samples(points)} for figures that compare)")


def suite_for(data: ImageData | PointData, gamma: float = 1.0, seed: int = 0) -> Suite | PointSuite:
    """The measures for a data set: images in the features that belong to it, points against exact samples of ``p^gamma``.

    Points of an unknown density are measured against the held-out ones, which are of gamma 1 (UserError for another).
    """
    if isinstance(data, PointData):
        # hashed, so that exact samples share no stream with the noise that samples are made of, nor with the data
        rng = torch.Generator().manual_seed(int(np.random.SeedSequence([seed % 2**64, MEASURING]).generate_state(1, np.uint64)[0]))
        if data.density is None:
            if gamma != 1.0:
                raise UserError(f"method.gamma is {gamma}, and p^gamma of {data.name} is not known: only gamma 1 can be measured")
            if len(data.heldout) < FEWEST_POINTS:
                raise UserError(f"{data.name} has {len(data.heldout)} points held out; measuring needs {FEWEST_POINTS}: raise data.holdout")
            return PointSuite(*split(data.heldout, rng))
        target = data.density.power(gamma)
        modes = (target.modes, target.mode_stds, target.mode_weights) if isinstance(data.density, Mixture) else None
        return PointSuite(target.sample(EXACT_SAMPLES, rng), target.sample(EXACT_SAMPLES, rng), modes)
    if len(data.heldout) < FEWEST_IMAGES:
        raise UserError(f"{data.name} has {len(data.heldout)} images held out; measuring needs {FEWEST_IMAGES}: raise data.holdout")
    splits = (data.images("train"), data.images("heldout"), data.labels("train"), data.labels("heldout"))
    return Suite(*splits, feature_network(data.name))


def measure(
    suite: Suite | PointSuite,
    generator: Generator,
    num: int,
    seed: int,
    steps: int | None = None,
    sampler: str | None = None,
    speed: bool = True,
) -> Row:
    """All figures of `num` samples drawn with `seed`, balanced over the classes, and with `speed` that of drawing them."""
    label = generator.labels(num)
    samples = generator.sample(num, label, seed, steps, sampler)
    row: Row = {
        "sampler": sampler or generator.sampler["name"],
        "steps": steps or generator.default_steps(),
        "evaluations": generator.evaluations(steps, sampler),
    }
    row |= suite.measure(samples.cpu(), label)
    if speed:
        batch = min(num, 256 if isinstance(suite, Suite) else 10_000)
        row["images_per_second"] = images_per_second(lambda n: generator.sample(n, seed=seed, steps=steps, sampler=sampler), batch)
    return row


class Watch:
    """Measures the averaged generator on the evaluation cadence; what it finds goes into metrics.jsonl and to the tracker.

    Args:
        data: what the figures are measured against.
        num: samples; None for the usual number.
        gamma: of the power of the data's density that is aimed at.
        seed: of the samples, the same each time.

    """

    def __init__(self, data: ImageData | PointData, num: int | None = None, gamma: float = 1.0, seed: int = 0) -> None:
        self.suite, self.seed = suite_for(data, gamma, seed), seed
        points = isinstance(data, PointData)
        self.num = num or usual_samples(points)
        check_samples(self.num, "trainer.evaluate_samples", points, data.num_classes)

    def __call__(self, generator: Generator) -> dict[str, float]:
        """Every figure of the evaluation at the generator's own number of steps, each under ``eval.NAME``."""
        label = generator.labels(self.num)
        row = self.suite.measure(generator.sample(self.num, label, self.seed).cpu(), label)
        return {f"eval.{name}": value for name, value in row.items() if not name.endswith("_error")}
