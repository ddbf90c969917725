"""Is it working? Figures that tell, and alarms that name the cause.

A distillation loss says little: it is the disagreement of two networks, and may rise while the samples improve. What tells
is the samples beside real data of the same batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.methods.base import Alarm


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
class Raised:
    """Something is wrong: `name` in one word, and a sentence that says what, why, and what to change."""

    name: str
    message: str


# what any method's samples can suffer from; a method says in its own words what to do about it, and has alarms of its own beside these
COMMON = (
    Alarm(
        "collapse",
        "health.spread",
        "samples of a class differ {value:.0%} as much as real ones: diversity is being lost",
        "Raise batch_size, lower the learning rate, or train longer",
        low=0.8,
    ),
    Alarm(
        "noise",
        "health.spread",
        "samples of a class differ {value:.0%} as much as real ones: they still hold noise, or training is unstable",
        "Early on this passes; later, lower the learning rate",
        high=1.3,
    ),
    Alarm(
        "drift",
        "health.shift",
        "the samples' mean is {value:.2f} standard deviations from the data's",
        "Check network.sigma_data and the pixel range, or train longer",
        high=0.25,
    ),
    Alarm(
        "saturation",
        "health.saturation",
        "{value:.0%} of the pixels lie beyond the data's range",
        "Lower the learning rate, or the guidance",
        high=0.15,
    ),
)


SETTLED = 0.2  # share of a run before which all figures still move


def alarms(
    figures: Mapping[str, float], progress: float, own: Sequence[Alarm] = (), advice: Mapping[str, str] | None = None
) -> list[Raised]:
    """The alarms that `figures` raise at `progress` (0 to 1) of the run; none in its first fifth, when all is unsettled.

    `own` are the method's, and `advice` replaces that of a common one, by its name.
    """
    if progress < SETTLED:
        return []
    return [
        Raised(rule.name, f"{rule.message.format(value=figures[rule.figure])}. {(advice or {}).get(rule.name, rule.advice)}")
        for rule in (*COMMON, *own)
        if rule.figure in figures and not rule.low <= figures[rule.figure] <= rule.high
    ]
