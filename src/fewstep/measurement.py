"""What is measured of a generator on a data set: in an evaluation, in a comparison, and on a cadence while it trains."""

from typing import Any

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


def usual_samples(points: bool) -> int:
    """How many samples make figures that compare."""
    return EXACT_SAMPLES if points else IMAGE_SAMPLES


def suite_for(data: ImageData | PointData, gamma: float = 1.0, seed: int = 0) -> Suite | PointSuite:
    """The measures for a data set: images in the features that belong to it, points against exact samples of ``p^gamma``.

    Points of an unknown density are measured against the held-out ones, which are of gamma 1 (UserError for another).
    """
    if isinstance(data, PointData):
        rng = torch.Generator().manual_seed(2**40 + seed)  # other draws than those trained on
        if data.density is None:
            if gamma != 1.0:
                raise UserError(f"method.gamma is {gamma}, and p^gamma of {data.name} is not known: only gamma 1 can be measured")
            return PointSuite(*split(data.heldout, rng))
        target = data.density.power(gamma)
        modes = (target.modes, target.mode_stds, target.mode_weights) if isinstance(data.density, Mixture) else None
        return PointSuite(target.sample(EXACT_SAMPLES, rng), target.sample(EXACT_SAMPLES, rng), modes)
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
        self.num = num or usual_samples(isinstance(data, PointData))

    def __call__(self, generator: Generator) -> dict[str, float]:
        """Every figure of the evaluation at the generator's own number of steps, each under ``eval.NAME``."""
        label = generator.labels(self.num)
        row = self.suite.measure(generator.sample(self.num, label, self.seed).cpu(), label)
        return {f"eval.{name}": value for name, value in row.items() if not name.endswith("_error")}
