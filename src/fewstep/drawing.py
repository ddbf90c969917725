"""Check what is asked of a generator, and draw samples from it one batch after another."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.class_labels import Labels, label_tensor
from fewstep.denoisers import Guided
from fewstep.errors import UserError
from fewstep.limits import memory
from fewstep.model_config import MOST_STEPS
from fewstep.pipelines.encoders import encoded
from fewstep.samplers import SAMPLERS
from fewstep.screen import SCREEN
from fewstep.streams import Noise, Seed, seeded

IMAGES, POINTS = 256, 10_000  # default batch sizes: samples for each network evaluation
LATENT_NUMBERS = 2**17  # most numbers in a default batch of latents, whose networks are far larger than those for pixels


@contextlib.contextmanager
def asked(generator: Any, prompts: str | Sequence[str], num: int) -> Iterator[None]:
    """Give `generator` the `prompts` of `num` samples, encoded by the pipeline that it was made from, as its table until the block ends.

    Labels are then their numbers, in turn. A line says which prompts were longer than the encoders read. Raises UserError for a generator
    that takes no prompts, for an empty list and one of more than `num` prompts, and where the pipeline's text encoders are not those that
    the generator was trained with.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if generator.told is None or generator.latents is None:
        raise UserError("prompts were given, and this generator takes none; leave them out")
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"prompts are {texts!r:.100}; give at least one, each in words")
    if len(texts) > num:
        raise UserError(f"there are {len(texts):,} prompts for {num:,} samples; give one for each sample, or fewer, which are repeated")
    before, classes = generator.told.prompts, generator.num_classes
    generator.tell(encoded(str(generator.latents["model"]), texts, generator.info.get("encoders"), say=SCREEN.say))
    try:
        yield
    finally:
        generator.tell(before)
        generator.num_classes = classes


def usual_batch(generator: Any) -> int:
    """Return the default batch size for drawing samples from `generator`."""
    if generator.latents is not None:
        return max(1, min(IMAGES, LATENT_NUMBERS // math.prod(generator.shape)))
    return IMAGES if len(generator.shape) == 3 else POINTS


def checked_steps(generator: Any, steps: int | None) -> int:
    """Return `steps`, or for None the default number of steps of `generator`. Raises UserError for a number that it does not allow."""
    default, counts = generator.default_steps(), generator.step_counts
    steps = default if steps is None else steps
    if not 1 <= steps <= MOST_STEPS and counts is None:
        raise UserError(f"steps is {steps}; give {'at least 1' if steps < 1 else f'at most {MOST_STEPS:,}'}")
    if counts is not None and steps not in counts:
        if len(counts) > 1:
            raise UserError(f"steps is {steps}; this generator was made for {', '.join(map(str, counts))}: give one of these")
        raise UserError(f"steps is {steps}; this generator was made for {default}: leave steps out, or give {default}")
    return steps


def check_memory(generator: Any, num: int) -> None:
    """Raise UserError where `num` samples of `generator` take more memory than this machine has."""
    if num > 0 and (size := 4 * num * math.prod(generator.shape)) > (most := memory()):
        raise UserError(
            f"num is {num:,}: so many samples are {size / 1e9:,.0f} GB, and this machine has {most / 1e9:,.0f} GB; draw fewer at "
            "a time, each part with a seed of its own, or use `batches`"
        )


def draw_batches(
    generator: Any,
    num: int,
    labels: Labels,
    seed: Seed,
    steps: int | None,
    sampler: str | None,
    guidance_scale: float | None,
    batch_size: int | None,
    churn: float | None,
) -> Iterator[Tensor]:
    """Return an iterator over batches of samples: the implementation of `Generator.batches`, for `generator`. Raises UserError."""
    if num < 1:
        raise UserError(f"num is {num}; give at least 1")
    batch_size = usual_batch(generator) if batch_size is None else batch_size
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least 1")
    name = sampler or generator.sampler["name"]
    of_its_grid = [key for key, kind in SAMPLERS.items() if kind.every_level and kind.needs == generator.kind.needs]
    allowed = list(dict.fromkeys([*(of_its_grid if generator.is_denoiser else ()), generator.sampler["name"]]))  # its own may be a user's
    if name not in allowed:
        raise UserError(f"sampler is {name!r}; allowed for this generator: {' or '.join(allowed)}")
    guidance_scale = generator.guidance_scale if guidance_scale is None else guidance_scale
    if not abs(guidance_scale) <= torch.finfo(torch.float32).max:
        raise UserError(f"guidance_scale is {guidance_scale}; give a number that float32 can hold, 1 for none")
    if guidance_scale != 1.0 and not generator.info.get("label_dropout"):
        raise UserError(f"guidance_scale is {guidance_scale}, but this network was trained without label dropout; only 1 is allowed")
    kind = SAMPLERS.get(name, generator.kind)
    options = {key: generator.sampler[key] for key in kind.options if key in generator.sampler}
    if churn is not None:
        if "churn" not in kind.options:
            raise UserError(f"churn is {churn}, but the sampler {name} of this generator has no churn; leave it out")
        if not 0 <= churn <= 1:
            raise UserError(f"churn is {churn}; allowed are values from 0 to 1")
        options["churn"] = churn
    generator.labels(1, labels)  # raises UserError for labels that are not allowed
    if labels is not None and (given := len(label_tensor(labels, generator.class_names, generator.num_classes))) > num:
        raise UserError(f"there are {given:,} labels for {num:,} samples; give one for each sample, or fewer, which are repeated")
    if generator.lacks_prompts:
        table = generator.info.get("prompts")
        there = f", and {table} does not hold those that it was trained with" if table else ""
        raise UserError(
            f"this generator needs prompts, and none were given{there}; give prompts, or first a table of them (`tell`), whose rows labels "
            "stand for"
        )
    denoiser, sources, sigmas = Guided.of(generator.denoiser, guidance_scale), seeded(seed, num), generator.sigmas(steps)

    def drawn(start: int, count: int) -> Tensor:
        noise = Noise(sources if isinstance(sources, torch.Generator) else sources[start : start + count])
        latents = noise((count, *generator.latent_shape), torch.empty((), device=generator.device))
        label = generator.labels(count, labels, start)
        samples = kind.draw(denoiser, latents, sigmas, None if label is None else label.to(generator.device), noise, **options)
        if bad := int((~samples.flatten(1).isfinite().all(1)).sum()):
            raise UserError(
                f"{bad} of {count} samples are not finite (NaN or infinity): this generator's training diverged, or it is sampled "
                "where it was never trained; take an earlier checkpoint of it, or train again with a lower learning rate"
            )
        if generator.units is not None:
            return generator.units.back(samples)
        pixels = len(generator.shape) == 3 and generator.latents is None
        return samples.clamp_(-1, 1) if pixels else samples

    return _each(generator, drawn, num, batch_size)


def _each(generator: Any, drawn: Callable[[int, int], Tensor], num: int, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, num, batch_size):
        training = generator.training
        generator.eval()
        try:
            with torch.no_grad():
                batch = drawn(start, min(batch_size, num - start))
        finally:
            generator.train(training)
        yield batch
