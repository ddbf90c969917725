"""What a drift on images can act on instead of pixels: features [N, D] with a gradient (Deng et al. 2026, arXiv 2602.04770, Eqs. 13-14)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import FeatureDenoiser
from fewstep.errors import UserError
from fewstep.generator import frozen
from fewstep.methods.base import Given

Features = Callable[[Tensor], Tensor]


class RandomFeatures(nn.Module):
    """A small convolutional network that was never trained, seed 0: [N, 2 width + pixels]. A baseline for learned features."""

    name = "random"

    def __init__(self, shape: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(shape[0], width, 3, padding=1)
            self.second = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Means over the image of two layers, and the pixels themselves: float32 [N, D]."""
        first = nn.functional.silu(self.first(images))
        second = nn.functional.silu(self.second(first))
        return torch.cat([first.mean((2, 3)), second.mean((2, 3)), images.flatten(1)], 1)


class TeacherFeatures:
    """The hidden state of a diffusion teacher at its bottleneck, with the pixels beside it (arXiv 2605.07327).

    The images are seen by `denoiser` at one noise level, without noise.
    """

    name = "teacher"

    def __init__(self, denoiser: nn.Module, sigma: float = 0.2) -> None:
        self.denoiser, self.sigma = denoiser, sigma

    def __call__(self, images: Tensor) -> Tensor:
        """Features [N, D] of images [N, C, H, W]."""
        sigma = torch.tensor(self.sigma, device=images.device)
        assert isinstance(self.denoiser, FeatureDenoiser)
        hidden = self.denoiser.features(images, sigma, None, 1)[0]
        return torch.cat([hidden.flatten(1), images.flatten(1)], 1)


def features_named(name: str, given: Given) -> Features | None:
    """What the setting ``method.features`` names, for the data given; None for the items themselves. Raises ValueError."""
    if name == "none":
        return None
    if len(given.data.shape) == 1:
        raise ValueError(f"method.features is {name!r}; points drift as they are, with 'none'")
    if name == "random":
        return RandomFeatures(given.data.shape)
    if name == "pooled":
        return given.feature_network("pixels-8x8")
    if name == "evaluator":
        return given.feature_network("")
    try:
        teacher = given.open_generator(name)
    except UserError as error:
        raise ValueError(f"method.features is {name!r}; allowed: none, random, pooled, evaluator, or a run folder: {error}") from error
    if teacher.shape != given.data.shape or not isinstance(teacher.denoiser, FeatureDenoiser) or not teacher.denoiser.feature_shapes:
        raise ValueError(
            f"method.features is {name!r}, which is no U-Net that denoises items of shape {list(given.data.shape)}; give one that is"
        )
    features = TeacherFeatures(frozen(teacher.denoiser))
    try:
        features(torch.zeros(2, *given.data.shape))
    except ValueError as error:  # a model with classes and none that means no class
        raise ValueError(f"method.features is {name!r}, which gives no features without a class: {error}") from error
    return features
