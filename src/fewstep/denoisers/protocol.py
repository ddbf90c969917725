"""The interface of a denoiser, and of denoisers that take further arguments or give further outputs.

Symbols: ``x = x0 + sigma n`` noised data [B, ...], ``sigma`` its noise level [B] or [], ``label`` its classes, int64 [B], or None for the
unconditional estimate.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


class Denoiser(Protocol):
    """Anything that estimates the clean data: a trained network, a closed form, a set of samples, a foreign checkpoint."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the estimate of x0, like `x` [B, ...]; the unconditional estimate where `label` is None."""
        ...


@runtime_checkable
class FeatureDenoiser(Protocol):
    """A denoiser that gives access to the inner features of its network."""

    @property
    def feature_shapes(self) -> Sequence[tuple[int, tuple[int, int]]]:
        """(channels, (height, width)) of each level of features, the coarsest first; empty for a network without features."""
        ...

    def features(self, x: Tensor, sigma: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """Return `levels` levels of inner features [B, C', h, w] at `x` [B, C, H, W], the coarsest first."""
        ...


class PosteriorDenoiser(Protocol):
    """A denoiser that draws from ``x0 | x_t`` by a second noise xi, instead of averaging; its `sigma` is the time t of a path."""

    @property
    def xi_shape(self) -> tuple[int, ...]:
        """Shape of the second noise xi of one draw."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None, xi: Tensor) -> Tensor:
        """Return draws of x0, [B, m, ...] for `xi` [B, m, *xi_shape], or like `x` [B, ...] for `xi` [B, *xi_shape]."""
        ...


class StepDenoiser(Protocol):
    """A denoiser of samples that a generator's different steps have made, which is told the step of each."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None, step: Tensor) -> Tensor:
        """Return the estimate of x0, like `x` [B, ...], for samples made by the generator's step `step`, int64 [B]."""
        ...


class TwoTime(Protocol):
    """A denoiser that is also told rho, the lower noise level to which its estimate will be used to step (docs/lessons/flows.md)."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None, rho: Tensor) -> Tensor:
        """Return the point, like `x`, at which an Euler step from `sigma` to `rho`, in [0, sigma], must aim; D(x, sigma) at rho = sigma."""
        ...


class Guided:
    """Classifier-free guidance ``D_uncond + scale (D_cond - D_uncond)`` of any denoiser (arXiv 2207.12598, Eq. 6, in x0 terms).

    Both evaluations get the denoiser's further arguments (a noise, a second noise level). Of a denoiser that draws from the posterior these
    are two draws from the same noise xi, and what is guided is the draw.
    """

    def __init__(self, denoiser: Any, scale: float) -> None:
        self.denoiser, self.scale = denoiser, scale

    @classmethod
    def of(cls, denoiser: Callable[..., Tensor], scale: float) -> Callable[..., Tensor]:
        """Return the guided `denoiser`, or for scale 1 `denoiser` itself, which needs one evaluation instead of two."""
        return denoiser if scale == 1.0 else cls(denoiser, scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["denoiser"], name)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, *told: Tensor) -> Tensor:
        """Return the guided estimate, shaped like the denoiser's own."""
        conditional = self.denoiser(x, sigma, label, *told)
        return self.denoiser(x, sigma, None, *told).lerp(conditional, self.scale)


def label_or_null(label: Tensor | None, num_classes: int | None, x: Tensor) -> Tensor | None:
    """Return the label to give a network for `x` [B, ...]: None without classes; the null class, ``num_classes``, where `label` is None."""
    if num_classes is None:
        return None
    return torch.full((x.shape[0],), num_classes, dtype=torch.long, device=x.device) if label is None else label
