"""What a denoiser is, and the named forms of those that are told, or give, something more.

Symbols: ``x = x0 + sigma n`` noised data [B, ...], ``sigma`` [B] or [], ``label`` int64 [B] or None, which asks for no class.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


class Denoiser(Protocol):
    """Anything that estimates the clean data: a trained network, a closed form, a set of samples, a foreign checkpoint."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The estimate of x0, like `x` [B, ...]. `label` None asks for the unconditional estimate."""
        ...


@runtime_checkable
class FeatureDenoiser(Protocol):
    """A denoiser that shows what its network has inside."""

    @property
    def feature_shapes(self) -> Sequence[tuple[int, tuple[int, int]]]:
        """(channels, (height, width)) of each level of features, the coarsest first; empty for a network without."""
        ...

    def features(self, x: Tensor, sigma: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """So many `levels` of inner features [B, C', h, w] at `x` [B, C, H, W], the coarsest first."""
        ...


class PosteriorDenoiser(Protocol):
    """A denoiser that draws from ``x0 | x_t`` with a second noise xi, instead of averaging; its noise levels are times t of a path."""

    @property
    def xi_shape(self) -> tuple[int, ...]:
        """Shape of one xi."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None, xi: Tensor) -> Tensor:
        """Draws of x0, [B, m, ...] for `xi` [B, m, *xi_shape], or like `x` [B, ...] for `xi` [B, *xi_shape]."""
        ...


class StepDenoiser(Protocol):
    """A denoiser of samples that were made in different ways, told which."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None, step: Tensor) -> Tensor:
        """The estimate of x0, like `x` [B, ...], for samples of `step`, int64 [B]."""
        ...


class TwoTime(Protocol):
    """A denoiser that is also told where its estimate will be used: at which lower noise level the next point is to lie (MATHS 5c)."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None, rho: Tensor) -> Tensor:
        """The point, like `x`, that one Euler step from `sigma` to `rho`, 0 <= rho <= sigma, must aim at; D(x, sigma) at rho = sigma."""
        ...


class Guided:
    """Classifier-free guidance ``D_uncond + scale (D_cond - D_uncond)`` of any denoiser (arXiv 2207.12598, Eq. 6, in x0 terms).

    What a denoiser is told beside the label (a noise, a second level) it is told both times.
    """

    def __init__(self, denoiser: Any, scale: float) -> None:
        self.denoiser, self.scale = denoiser, scale

    @classmethod
    def of(cls, denoiser: Callable[..., Tensor], scale: float) -> Callable[..., Tensor]:
        """`denoiser` itself for scale 1, which needs one evaluation and not two; else the guided one."""
        return denoiser if scale == 1.0 else cls(denoiser, scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["denoiser"], name)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, *told: Tensor) -> Tensor:
        """The guided estimate, like the denoiser's own."""
        conditional = self.denoiser(x, sigma, label, *told)
        return self.denoiser(x, sigma, None, *told).lerp(conditional, self.scale)


def label_or_null(label: Tensor | None, num_classes: int | None, x: Tensor) -> Tensor | None:
    """What a network is told of `label` for `x` [B, ...]: nothing without classes; the null class, ``num_classes``, where it is None."""
    if num_classes is None:
        return None
    return torch.full((x.shape[0],), num_classes, device=x.device) if label is None else label
