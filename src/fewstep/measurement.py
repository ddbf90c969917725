"""What is measured of a generator on a data set: in an evaluation, in a comparison, and on a cadence while it trains."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.build import in_memory, tell_prompts
from fewstep.data import Mixture, PointData
from fewstep.data.prompts import PromptData
from fewstep.data.protocol import Data
from fewstep.denoisers.adapted import Adapted
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.metrics.asking import asked_labels, how_asked
from fewstep.metrics.features import WithoutClasses, feature_network, fitted, named_features, second_judge
from fewstep.metrics.figures import BY_KEY, choices
from fewstep.metrics.inception import FeatureError, cache_folder
from fewstep.metrics.least import summed_up, without
from fewstep.metrics.point_suite import PointSuite, split
from fewstep.metrics.protocol import Preset, differences
from fewstep.metrics.statistics import load_statistics, scaled
from fewstep.metrics.suite import Suite, images_per_second
from fewstep.pipelines.agreement import Agreement
from fewstep.pipelines.vae import measured_size
from fewstep.streams import stream, stream_seed
from fewstep.training.measuring import Measuring
from fewstep.training.progress import Progress

Row = dict[str, Any]

EXACT_SAMPLES = 10_000  # of a density, in each of two sets
IMAGE_SAMPLES = 2_000
CHUNK = 2_500  # images held at once
BATCH = 256  # of them, that go through the network together
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


def suite_for(
    data: Data,
    gamma: float = 1.0,
    seed: int = 0,
    features: str | None = None,
    reference: str | Path = "heldout",
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    num: int | None = None,
    judges: int = 1,
) -> Suite | PointSuite:
    """The measures for a data set: images in the features that belong to it, points against exact samples of ``p^gamma``.

    Points of an unknown density are measured against the held-out ones, which are of gamma 1 (UserError for another). Images are
    measured in `features` where they are named (see `named_features`), which run on `device`, and against the split "heldout" or
    "train" or the statistics in a file. The floor is that of `num` real images; of `judges` 2 the second is the other network that the
    package has for the data, if there is one. What a network in a file finds in the data is kept in the cache. Raises UserError for
    features or a reference that cannot be had or do not fit.
    """
    of_prompts = isinstance(data, PromptData)
    data = in_memory(data)
    if isinstance(data, PointData):
        if features is not None or reference != "heldout":
            raise UserError("features and statistics are for images; points are measured as they are, against others: leave them out")
        rng = stream(seed, "exact samples")  # no stream of the noise that samples are made of, nor of the data
        if data.density is None:
            if gamma != 1.0:
                raise UserError(f"method.gamma is {gamma}, and p^gamma of {data.name} is not known: only gamma 1 can be measured")
            if len(data.heldout) < FEWEST_POINTS:
                raise UserError(f"{data.name} has {len(data.heldout)} points held out; measuring needs {FEWEST_POINTS}: raise data.holdout")
            return PointSuite(*split(data.heldout, rng), standard=data.units.standard if data.units else None)
        target = data.density.power(gamma)
        modes = (target.modes, target.mode_stds, target.mode_weights) if isinstance(data.density, Mixture) else None
        return PointSuite(target.sample(EXACT_SAMPLES, rng), target.sample(EXACT_SAMPLES, rng), modes)
    if len(data.heldout) < FEWEST_IMAGES:
        raise UserError(f"{data.name} has {len(data.heldout)} images held out; measuring needs {FEWEST_IMAGES}: raise data.holdout")
    try:
        usual = features is None
        network = feature_network(data.name, data.shape, data.num_classes) if usual else named_features(str(features), device, say)
        fitted(network, data.shape, data.num_classes, data.class_names, say)
        if of_prompts:
            network = WithoutClasses(network)
        second = second_judge(network, data.shape, data.num_classes) if judges > 1 else None
        return Suite(
            data.train,
            data.heldout,
            data.labels("train"),
            data.labels("heldout"),
            network,
            data.half,
            load_statistics(reference)[0] if isinstance(reference, Path) else reference,
            cache_folder() / "statistics" if hasattr(network, "sha256") else None,
            tracked,
            num,
            data.class_names,
            second,
        )
    except FeatureError as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"{reference}: {error}") from error


def sample_seeds(seed: int, first: int, num: int) -> list[int]:
    """A seed for each of `num` samples from number `first` on that are measured under `seed`: any split gives the same ones."""
    return [stream_seed(seed, "measured samples", number) for number in range(first, first + num)]


def tracked(batches: Iterable[Tensor], total: int, title: str) -> Iterator[Tensor]:
    """`batches`, with a bar of `total` under `title` while they come."""
    progress = Progress(title, total)
    try:
        if total > 10:
            progress.begin()
        for batch in batches:
            yield batch
            if total > 10:
                progress.advance()
    finally:
        progress.close()


def protocol_record(suite: Suite | PointSuite, num: int, classes: bool, seeds: Iterable[int], labels: str | None = None) -> dict[str, Any]:
    """How `num` samples are measured by `suite`: what goes into results, see `fewstep.metrics.protocol`."""
    labels = labels or how_asked(real_labels(suite))
    if isinstance(suite, Suite):
        how = suite.protocol()
    else:
        how = {
            "features": {"name": "the points themselves", "sha256": None},
            "reference": {"what": "points", "num": len(suite.target), "sha256": None},
            "quantisation": "none",
        }
    return {"n": num, **how, "labels": labels if classes else "none", "seeds": list(seeds)}


def check_same_protocol(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str] = ("one", "the other")) -> None:
    """Raise UserError unless the results `a` and `b` (of results.json, called `names`) were measured in the same way.

    What counts: number of samples, features, reference, quantisation and choice of labels. The data and the seeds do not.
    """
    for results, name in zip((a, b), names, strict=True):
        if not isinstance(results.get("protocol"), Mapping):
            raise UserError(f"{name} does not say by which protocol it was measured; run `fewstep evaluate` on it again")
    wrong = differences(a["protocol"], b["protocol"])
    if wrong:
        raise UserError(
            f"{names[0]} and {names[1]} were measured by different protocols and do not compare: {'; '.join(wrong)}. "
            "Evaluate both with the same options"
        )


def real_labels(suite: Suite | PointSuite) -> Tensor | None:
    """Labels int64 [N] of the training split that `suite` measures against; None for data without."""
    return suite.train_label if isinstance(suite, Suite) else None


def labels_for(generator: Generator, num: int, seed: int, real: Tensor | None, how: str | None = None) -> Tensor | None:
    """Labels int64 [num] of samples that are measured against data whose training split has `real`; see `fewstep.metrics.asking`.

    Of a generator that is told prompts they are rows: those of the samples that it is held beside, in turn.
    """
    if generator.told is not None and real is not None:
        return real[torch.arange(num) % len(real)]
    return None if generator.num_classes is None else asked_labels(num, generator.num_classes, seed, how or how_asked(real), real)


def drawn(
    generator: Generator,
    num: int,
    label: Tensor | None,
    seed: int,
    steps: int | None = None,
    sampler: str | None = None,
    title: str = "sampling",
    measuring: Measuring | None = None,
) -> Iterator[Tensor]:
    """`num` images in batches [n, C, H, W] on the CPU, each image from a seed of its own (`sample_seeds`).

    The processes of a run share the work by `measuring`, and the first alone has the images.
    """
    measuring = measuring or Measuring()
    progress = Progress(title, num, quiet=num <= BATCH or measuring.rank > 0)
    try:
        progress.begin()
        for start in range(0, num, CHUNK):
            count = min(CHUNK, num - start)

            def draw(first: int, last: int) -> Tensor:
                part = None if label is None else label[first:last]
                samples = generator.sample(last - first, part, sample_seeds(seed, first, last - first), steps, sampler)
                samples = (samples if generator.latents is None else measured_size(generator.pixels(samples))).cpu()
                progress.advance(min(measuring.world * (last - first), num - progress.done))
                return samples

            ends = [(first, min(first + BATCH, start + count)) for first in range(start, start + count, BATCH)]
            batches = measuring.share([partial(draw, *where) for where in ends])
            if batches is not None:
                yield torch.cat(batches)
    finally:
        progress.close()


def measure(
    suite: Suite | PointSuite,
    generator: Generator,
    num: int,
    seed: int,
    steps: int | None = None,
    sampler: str | None = None,
    speed: bool = True,
    labels: str | None = None,
    slow: bool = False,
    agreement: Agreement | None = None,
) -> Row:
    """All figures of `num` samples drawn with `seed` that so many can carry, and with `speed` that of drawing them.

    `labels` is `how` in `labels_for`; `slow` as in `Suite.measure_batches`; `agreement` with prompts is measured where it is given. Why a
    figure is not there, ``too_few`` says by its key.
    """
    label = labels_for(generator, num, seed, real_labels(suite), labels)
    row: Row = {
        "sampler": sampler or generator.sampler["name"],
        "steps": steps or generator.default_steps(),
        "evaluations": generator.evaluations(steps, sampler),
        **({} if generator.guidance_scale == 1.0 else {"guidance_scale": generator.guidance_scale}),
    }
    if isinstance(suite, Suite):
        batches = drawn(generator, num, label, seed, steps, sampler)
        if agreement is not None and label is not None:
            batches = agreement.listen(batches, label, row)
        row |= suite.measure_batches(batches, label, slow)
    else:
        row |= suite.measure(generator.sample(num, label, stream_seed(seed, "measured samples"), steps, sampler).cpu(), label)
    row = without(row, suite.lacks(num))
    if speed:
        batch = min(num, 256 if isinstance(suite, Suite) else 10_000)
        # on the CPU at the end, for a GPU returns before it is done
        row["images_per_second"] = images_per_second(lambda n: generator.sample(n, seed=seed, steps=steps, sampler=sampler).cpu(), batch)
    return row


def floor_row(suite: Suite | PointSuite, agreement: Agreement | None = None) -> Row:
    """The figures of the floor that its items can carry; ``too_few`` and `agreement` as in `measure`."""
    row = without(suite.floor_row(), suite.floor_lacks())
    if agreement is not None and isinstance(suite, Suite) and suite.heldout_label is not None:
        parts = (scaled(part, suite.half) for part in suite.heldout.split(BATCH))
        for _ in agreement.listen(parts, suite.heldout_label, row):
            pass
    return row


def on_one_network(teacher: Generator, student: Generator) -> Generator:
    """The `teacher`, on the network that the `student` only changes, where it is that one: it is in memory once then."""
    mine, theirs = student.base, teacher.base
    if isinstance(student.denoiser, Adapted) and mine is not None and theirs is not None and mine.weights == theirs.weights:
        teacher.denoiser = student.denoiser.slot.as_it_is()
    return teacher


def as_drawn(data: PromptData, models: Mapping[str, Generator]) -> None:
    """Have the teacher among `models` sampled as its samples in `data` were, and all told these prompts."""
    for name, model in models.items():
        tell_prompts(model, data, f"the {name}")
        if model.is_denoiser and data.samples is not None:
            drawn = data.samples.drawn
            model.sampler |= {"steps": drawn.steps, "guidance_scale": drawn.guidance_scale}


def measure_by(
    preset: Preset, suite: Suite, generator: Generator, num: int, steps: int | None = None, agreement: Agreement | None = None
) -> Row:
    """The figures of a named protocol with `num` samples a block: ``frechet`` is the least over its blocks.

    ``frechet_blocks`` are all of them and ``frechet_mean`` is their mean; every other figure is of the first block, see `measure`.
    """
    row = measure(suite, generator, num, preset.seeds[0], steps, labels=preset.labels, slow=True, agreement=agreement)
    if "frechet" not in row:
        return row
    blocks = [row["frechet"]]
    for seed in preset.seeds[1:]:
        label = labels_for(generator, num, seed, suite.train_label, preset.labels)
        blocks.append(suite.frechet_of(drawn(generator, num, label, seed, steps, title=f"sampling from seed {seed}")))
    least = min(blocks)
    ratio = {"frechet_over_floor": least / suite.floor} if "frechet_over_floor" in row else {}
    return {
        **row,
        "frechet": least,
        **ratio,
        "frechet_mean": sum(blocks) / len(blocks),
        "frechet_blocks": blocks,
    }


class Watch:
    """Measures the averaged generator on the evaluation cadence; what it finds goes into metrics.jsonl and to the tracker.

    Args:
        data: what the figures are measured against.
        num: samples; None for the usual number.
        gamma: of the power of the data's density that is aimed at.
        seed: of the samples, the same each time.
        features: name or path of a feature network for images; None for the one that belongs to the data.
        device: where a scripted feature network runs.
        keep_best: key of the figure by which the best model is chosen, if one is kept.

    Raises UserError for what cannot be measured, a figure that the data can never have included.

    """

    def __init__(
        self,
        data: Data,
        num: int | None = None,
        gamma: float = 1.0,
        seed: int = 0,
        features: str | None = None,
        device: torch.device | str = "cpu",
        keep_best: str | None = None,
    ) -> None:
        points = len(data.shape) == 1
        self.num = num or usual_samples(points)
        classes = None if isinstance(data, PromptData) else data.num_classes
        check_samples(self.num, "trainer.evaluate_samples", points, classes)
        try:
            self.suite, self.seed = suite_for(data, gamma, seed, features, device=device, num=self.num), seed
        except UserError as error:
            raise UserError(f"trainer.evaluate_features is {features!r}: {error}" if features is not None else str(error)) from error
        self.lacks = self.suite.lacks(self.num)
        if keep_best in self.lacks:
            raise UserError(
                f"trainer.keep_best is {keep_best!r}, and there are {self.lacks[keep_best].reason(keep_best)}: give more (data.holdout, "
                "trainer.evaluate_samples), or another figure"
            )
        if keep_best in self.suite.undefined:
            known = [key for key in choices("points" if points else "images") if key not in {*self.suite.undefined, *self.lacks}]
            raise UserError(f"trainer.keep_best is {keep_best!r}, which the data {data.name} never has; give one of {', '.join(known)}")

    def untold(self) -> list[str]:
        """Which figures are not given, and why: a phrase for each reason."""
        lacks = {key: lack for key, lack in self.lacks.items() if key not in self.suite.undefined and BY_KEY[key].is_watched}
        return summed_up([without(dict.fromkeys(lacks), lacks)])

    def __call__(self, generator: Generator, measuring: Measuring | None = None) -> dict[str, float]:
        """Every figure of the evaluation at the generator's own number of steps, each under ``eval.NAME``.

        All processes of a run share drawing images by `measuring`, see `watched_elsewhere`.
        """
        label, measuring = labels_for(generator, self.num, self.seed, real_labels(self.suite)), measuring or Measuring()
        if isinstance(self.suite, Suite):
            batches = drawn(generator, self.num, label, self.seed, title="measuring", measuring=measuring)
            row = self.suite.measure_batches(batches, label)
        else:
            row = self.suite.measure(generator.sample(self.num, label, stream_seed(self.seed, "measured samples")).cpu(), label)
        numbers = {name: value for name, value in row.items() if not isinstance(value, str)}  # and not whose least one is
        return {f"eval.{name}": value for name, value in numbers.items() if not name.endswith("_error") and name not in self.lacks}


def watched_elsewhere(num: int, real: Tensor | None, seed: int = 0) -> Callable[[Generator, Measuring], dict[str, float]]:
    """What stands for a `Watch` of `num` samples in all processes but the first: it draws its share of the images, and has no figures.

    `real` int64 [N] are the labels of the training split, or None.
    """

    def draw(generator: Generator, measuring: Measuring) -> dict[str, float]:
        if len(generator.shape) == 3:
            for _ in drawn(generator, num, labels_for(generator, num, seed, real), seed, measuring=measuring):
                raise AssertionError("only the first process has the images")
        return {}

    return draw
