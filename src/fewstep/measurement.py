"""Measure a generator against a data set: in an evaluation, in a comparison, and at intervals during training."""

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
from fewstep.metrics.protocol import POINTS, Preset
from fewstep.metrics.statistics import scaled, statistics_for
from fewstep.metrics.suite import Suite, images_per_second
from fewstep.pipelines.agreement import Agreement
from fewstep.pipelines.vae import measured_size
from fewstep.streams import stream, stream_seed
from fewstep.training.measuring import Measuring
from fewstep.training.progress import Progress

Row = dict[str, Any]

EXACT_SAMPLES = 10_000  # exact samples of a density in each of two sets, and default number of generated points
IMAGE_SAMPLES = 2_000  # default number of generated images
CHUNK = 2_500  # images held in memory together
BATCH = 256  # images in one batch of the network
FEWEST_POINTS = 80  # least held-out points: two halves of 40, below which standard errors mean nothing
FEWEST_IMAGES = 5  # least held-out images, as needed for a manifold of nearest neighbours


def usual_samples(points: bool) -> int:
    """Return the default number of samples to measure: 10,000 points or 2,000 images."""
    return EXACT_SAMPLES if points else IMAGE_SAMPLES


def check_samples(num: int, key: str, points: bool, num_classes: int | None) -> None:
    """Raise UserError where `num`, which the user gave by the option or setting `key`, is too few samples to measure."""
    fewest = 40 if points else max(10, 2 * (num_classes or 1))  # the spread within a class needs two samples
    if num < fewest:
        raise UserError(f"{key} is {num}; give at least {fewest} samples ({usual_samples(points)} for comparable figures)")


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
    """Return what measures samples against `data`: a `Suite` for images, a `PointSuite` for points.

    Points are compared with exact samples of ``p^gamma``, or where the density p is not known with held-out points, for which `gamma` must
    be 1. Images are compared in `features` (see `named_features`; None for the network that belongs to the data), computed on `device`,
    with the split "heldout" or "train" or with the statistics in a file, as `reference` says. The floor is the distance of `num` real
    images. With `judges` 2 a second feature network of the package judges, too, if there is one for the data. Features of the data by a
    network from a file are cached. `say` is called with messages on progress. Raises UserError for features or a reference that cannot be
    loaded or do not fit, and for too few held-out items.
    """
    of_prompts, drawn = isinstance(data, PromptData), isinstance(data, PromptData) and data.samples is not None
    data = in_memory(data)
    if isinstance(data, PointData):
        if features is not None or reference != "heldout":
            raise UserError("features and statistics are for images; points are measured as they are, against others: leave them out")
        rng = stream(seed, "exact samples")  # a stream apart from the noise of generated samples and from that of the data
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
        what, more = ("samples of the model", "draw more into a new folder (--samples)") if drawn else ("images", "raise data.holdout")
        raise UserError(f"{data.name} has {len(data.heldout)} {what} held out; measuring needs {FEWEST_IMAGES}: {more}")
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
            statistics_for(network, reference) if isinstance(reference, Path) else reference,
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
    """Return the seeds of the measured samples `first` to ``first + num - 1``; each depends on `seed` and the sample's number alone."""
    return [stream_seed(seed, "measured samples", number) for number in range(first, first + num)]


def tracked(batches: Iterable[Tensor], total: int, title: str) -> Iterator[Tensor]:
    """Yield `batches` with a progress bar called `title` of `total` batches; no bar is shown for 10 or fewer."""
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
    """Return the record of how `num` samples are measured by `suite`, which is stored with results (see `fewstep.metrics.protocol`)."""
    labels = labels or how_asked(real_labels(suite))
    if isinstance(suite, Suite):
        how = suite.protocol()
    else:
        how = {
            "features": {"name": "the points themselves", "sha256": None},
            "reference": {"what": POINTS, "num": len(suite.target), "sha256": None},
            "quantisation": "none",
        }
    return {"n": num, **how, "labels": labels if classes else "none", "seeds": list(seeds)}


def real_labels(suite: Suite | PointSuite) -> Tensor | None:
    """Return the labels int64 [N] of the training split in `suite`; None for data without labels."""
    return suite.train_label if isinstance(suite, Suite) else None


def labels_for(generator: Generator, num: int, seed: int, real: Tensor | None, how: str | None = None) -> Tensor | None:
    """Return labels int64 [num] for samples to measure against data whose training split has the labels `real`; None without classes.

    `how` is the choice of labels (see `fewstep.metrics.asking`; None for the usual one). For a text-to-image generator the labels are rows
    of its table of prompts: those in `real`, in turn.
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
    """Yield `num` images in batches [n, C, H, W] on the CPU, each image drawn from a seed of its own (`sample_seeds`).

    The processes of a run share the work by `measuring`, and only the first process yields images.
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
    """Return the figures of `num` samples drawn with `seed`, and with `speed` the number of samples drawn in a second.

    `labels` is the argument `how` of `labels_for`; `slow` is that of `Suite.measure_batches`; `agreement` with prompts is measured if it is
    given. Figures for which the items are too few are left out, and ``too_few`` gives the reason by their key.
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
        # moved to the CPU, which waits for the GPU to finish
        row["images_per_second"] = images_per_second(lambda n: generator.sample(n, seed=seed, steps=steps, sampler=sampler).cpu(), batch)
    return row


def floor_row(suite: Suite | PointSuite, agreement: Agreement | None = None) -> Row:
    """Return the figures of the floor, that is of real items in place of samples; ``too_few`` and `agreement` are as in `measure`."""
    row = without(suite.floor_row(), suite.floor_lacks())
    if agreement is not None and isinstance(suite, Suite) and suite.heldout_label is not None:
        parts = (scaled(part, suite.half) for part in suite.heldout.split(BATCH))
        for _ in agreement.listen(parts, suite.heldout_label, row):
            pass
    return row


def on_one_network(teacher: Generator, student: Generator) -> Generator:
    """Return `teacher`; if `student` is low-rank changes (LoRA) to the same network, the two share that network in memory."""
    mine, theirs = student.base, teacher.base
    if isinstance(student.denoiser, Adapted) and mine is not None and theirs is not None and mine.weights == theirs.weights:
        teacher.denoiser = student.denoiser.slot.as_it_is()
    return teacher


def as_drawn(data: PromptData, models: Mapping[str, Generator]) -> None:
    """Give all `models` the prompts in `data`, and set the teacher's steps and guidance to those of its stored samples in `data`."""
    for name, model in models.items():
        tell_prompts(model, data, f"the {name}")
        if model.is_denoiser and data.samples is not None:
            drawn = data.samples.drawn
            model.sampler |= {"steps": drawn.steps, "guidance_scale": drawn.guidance_scale}


def measure_by(
    preset: Preset, suite: Suite, generator: Generator, num: int, steps: int | None = None, agreement: Agreement | None = None
) -> Row:
    """Return the figures of the protocol `preset` with `num` samples in each of its blocks; ``frechet`` is the least over the blocks.

    ``frechet_blocks`` has the Frechet distance of each block and ``frechet_mean`` their mean; all other figures are those of the first
    block, see `measure`.
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
    """Measures the generator with averaged weights at intervals during training, for metrics.jsonl and the tracker.

    Args:
        data: data that samples are measured against.
        num: number of samples; None for the default of `usual_samples`.
        gamma: power of the data's density that is to be learned.
        seed: of the samples, the same for every measurement.
        features: name or path of a feature network for images; None for the one that belongs to the data.
        device: device of a TorchScript feature network.
        keep_best: key of the figure by which the best model is chosen; None where no best model is kept.

    Raises UserError where the data cannot be measured, and where the figure `keep_best` cannot be given for it.

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
        self.undefined = self.suite.undefined
        if keep_best in self.undefined:
            known = [key for key in choices("points" if points else "images") if key not in {*self.undefined, *self.lacks}]
            raise UserError(
                f"trainer.keep_best is {keep_best!r}, which the data {data.name} never has, for {self.undefined[keep_best]}; give one of "
                f"{', '.join(known)}"
            )

    @property
    def by(self) -> str:
        """How figures are measured, a phrase: by other numbers of samples or other features they do not compare."""
        return f"of {self.num:,} samples" + (f" in {self.suite.network.name}" if isinstance(self.suite, Suite) else "")

    def untold(self) -> list[str]:
        """Return which figures are left out for too few items: a phrase for each reason."""
        lacks = {key: lack for key, lack in self.lacks.items() if key not in self.undefined and BY_KEY[key].is_watched}
        return summed_up([without(dict.fromkeys(lacks), lacks)])

    def __call__(self, generator: Generator, measuring: Measuring | None = None) -> dict[str, float]:
        """Return the evaluation's figures at the generator's own number of steps, each with the key ``eval.NAME``.

        The processes of a run share the drawing of images by `measuring`, see `watched_elsewhere`.
        """
        label, measuring = labels_for(generator, self.num, self.seed, real_labels(self.suite)), measuring or Measuring()
        if isinstance(self.suite, Suite):
            batches = drawn(generator, self.num, label, self.seed, title="measuring", measuring=measuring)
            row = self.suite.measure_batches(batches, label)
        else:
            row = self.suite.measure(generator.sample(self.num, label, stream_seed(self.seed, "measured samples")).cpu(), label)
        numbers = {name: value for name, value in row.items() if not isinstance(value, str)}  # without names of classes
        return {f"eval.{name}": value for name, value in numbers.items() if not name.endswith("_error") and name not in self.lacks}


def watched_elsewhere(num: int, real: Tensor | None, seed: int = 0) -> Callable[[Generator, Measuring], dict[str, float]]:
    """Return what takes the place of a `Watch` in all processes but the first: it draws its share of `num` images, and returns no figures.

    `real` int64 [N] are the labels of the training split, or None.
    """

    def draw(generator: Generator, measuring: Measuring) -> dict[str, float]:
        if len(generator.shape) == 3:
            for _ in drawn(generator, num, labels_for(generator, num, seed, real), seed, measuring=measuring):
                raise AssertionError("only the first process has the images")
        return {}

    return draw
