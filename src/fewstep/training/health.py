"""Is it working? Figures that tell, and alarms that name the cause.

A distillation loss says little: it is the disagreement of two networks, and may rise while the samples improve. What tells
is the samples beside real data of the same batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@torch.no_grad()
def sample_figures(x: Tensor, label: Tensor | None, real: Tensor, real_label: Tensor | None) -> dict[str, Tensor]:
    """How generated `x` [B, ...] stands to `real` [B', ...]: scalars, all measured on one batch and so to be averaged.

    ``spread``: within-class standard deviation of an element over the real one (below 1: diversity is being lost).
    ``shift``: difference of the overall means, in real standard deviations (DMD2 issue 33: the mean drifts).
    ``saturation``, of images: share of elements beyond 1.1 in magnitude (CausVid issue 18).
    """
    spread = _within_class_variance(x, label).sqrt() / _within_class_variance(real, real_label).sqrt().clamp_min(1e-12)
    shift = (x.mean() - real.mean()).abs() / real.std().clamp_min(1e-12)
    figures = {"spread": spread, "shift": shift}
    if x.ndim == 4:
        figures["saturation"] = (x.abs() > 1.1).float().mean()
    return figures


def _within_class_variance(x: Tensor, label: Tensor | None) -> Tensor:
    """Mean variance of an element about its class mean, unbiased: a scalar."""
    x = x.flatten(1).float()
    if label is None:
        return x.var(0).mean()
    member = torch.nn.functional.one_hot(label).to(x)  # [B, classes]
    count = member.sum(0)
    means = (member.T @ x) / count.clamp_min(1)[:, None]
    freedom = (len(x) - (count > 0).sum()).clamp_min(1)
    return (x - means[label]).square().sum(0).mean() / freedom


@dataclass(frozen=True)
class Alarm:
    """Something is wrong: `name` in one word, and a sentence that says what, why, and what to change."""

    name: str
    message: str


@dataclass(frozen=True)
class Rule:
    """Raise `name` when `figure` leaves the range from `low` to `high`; `message` says what is seen, `advice` why and what to change."""

    name: str
    figure: str
    low: float
    high: float
    message: str
    advice: str


RULES = (
    Rule(
        "collapse",
        "health.spread",
        0.8,
        float("inf"),
        "samples of a class differ {value:.0%} as much as real ones: diversity is being lost",
        "The fake network lags behind the generator, or the batch is very small: raise method.dfake_gen_update_ratio or "
        "method.guidance_lr, or batch_size",
    ),
    Rule(
        "noise",
        "health.spread",
        0.0,
        1.3,
        "samples of a class differ {value:.0%} as much as real ones: they still hold noise, or training is unstable",
        "Early on this passes; later, lower method.generator_lr",
    ),
    Rule(
        "drift",
        "health.shift",
        0.0,
        0.25,
        "the samples' mean is {value:.2f} standard deviations from the data's",
        "The teacher does not fit the data (sigma_data, pixel range), or guidance is too strong: check the teacher's own samples, "
        "lower method.guidance_scale",
    ),
    Rule(
        "saturation",
        "health.saturation",
        0.0,
        0.15,
        "{value:.0%} of the pixels lie beyond the data's range",
        "Guidance or gamma is too strong, or the learning rate too high: lower method.guidance_scale, method.gamma or method.generator_lr",
    ),
    Rule(
        "disagreement",
        "generator.gap",
        0.0,
        1.5,
        "the teacher and the fake network disagree {value:.1f} times as much as the teacher misses the sample",
        "The fake network does not follow: raise method.guidance_lr or method.dfake_gen_update_ratio, or lower method.generator_lr",
    ),
    Rule(
        "escape",
        "generator.escaped",
        0.0,
        0.5,
        "{value:.0%} of the samples lie where real ones hardly are, and the field may not bring them back",
        "Raise method.temperature_start or method.temperatures",
    ),
    Rule(
        "overconfident",
        "denoiser.calibration",
        0.5,
        float("inf"),
        "particles lie {value:.0%} as far from each other as from the truth (100% for draws from the posterior): xi is being ignored",
        "Raise method.lam (1 asks for the whole spread) or method.m, or lower method.lr; samples from few steps will be blurred until then",
    ),
    Rule(
        "untrained",
        "denoiser.denoising",
        0.0,
        0.9,
        "the denoising loss is {value:.2f} (about 1 for a network that knows nothing)",
        "Check network.sigma_data against the data's standard deviation, and method.lr",
    ),
)


def alarms(figures: Mapping[str, float], progress: float, advice: Mapping[str, str] | None = None) -> list[Alarm]:
    """The alarms that `figures` raise at `progress` (0 to 1) of the run; none in its first fifth, when all is unsettled.

    `advice` replaces a rule's own, by its name.
    """
    if progress < 0.2:
        return []
    return [
        Alarm(rule.name, f"{rule.message.format(value=figures[rule.figure])}. {(advice or {}).get(rule.name, rule.advice)}")
        for rule in RULES
        if rule.figure in figures and not rule.low <= figures[rule.figure] <= rule.high
    ]
