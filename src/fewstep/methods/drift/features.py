"""Features [N, D] with a gradient, on which a drift on images can act instead of pixels (Deng et al. 2026, arXiv 2602.04770, Eqs. 13-14).

Features that are joined from several parts, such as hidden activations and the pixels, are scaled so that real items lie equally far apart
in each part: on digits, unscaled squared distances of a random network's activations are a 300th of the pixels', and those of a teacher's
bottleneck 20 times the pixels'.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import FeatureDenoiser
from fewstep.errors import UserError
from fewstep.generator import frozen
from fewstep.methods.base import Given
from fewstep.methods.drift.classes import mean_square_distance

Features = Callable[[Tensor], Tensor]
SOME = 256  # real items from which the scales of the parts are measured


class Parts:
    """Features that are joined from `parts`, each multiplied by its scale, which is 1 until `even` has measured the scales."""

    scales: Sequence[float] | None = None

    def parts(self, images: Tensor) -> list[Tensor]:
        """Return the parts [N, ...] of the features of images [N, C, H, W]."""
        raise NotImplementedError

    def joined(self, images: Tensor) -> Tensor:
        """Return the joined features [N, D] of images [N, C, H, W]."""
        parts = self.parts(images)
        return torch.cat([part * scale for part, scale in zip(parts, self.scales or [1.0] * len(parts), strict=True)], 1)

    @torch.no_grad()
    def even(self, images: Tensor) -> None:
        """Scale each part to a mean squared distance of 1 between two of the real `images`; a part that is constant keeps scale 1."""
        self.scales = [(mean_square_distance(part.float()) or 1.0) ** -0.5 for part in self.parts(images)]


class RandomFeatures(Parts, nn.Module):
    """Features [N, 2 width + pixels] of a small convolutional network with random weights (seed 0): a baseline for learned features."""

    name = "random"

    def __init__(self, shape: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(shape[0], width, 3, padding=1)
            self.second = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.requires_grad_(False)

    def parts(self, images: Tensor) -> list[Tensor]:
        """Return the means over the image of the activations of two layers, and the pixels themselves."""
        first = nn.functional.silu(self.first(images))
        second = nn.functional.silu(self.second(first))
        return [first.mean((2, 3)), second.mean((2, 3)), images.flatten(1)]

    def forward(self, images: Tensor) -> Tensor:
        """Return features, float32 [N, D], of images [N, C, H, W]."""
        return self.joined(images)


class TeacherFeatures(Parts):
    """The activations of a diffusion teacher's bottleneck, joined with the pixels (arXiv 2605.07327).

    The images go into `denoiser` without noise, with the noise level `sigma`.
    """

    name = "teacher"

    def __init__(self, denoiser: nn.Module, sigma: float = 0.2) -> None:
        self.denoiser, self.sigma = denoiser, sigma

    def parts(self, images: Tensor) -> list[Tensor]:
        """Return the bottleneck's activations and the pixels."""
        sigma = torch.tensor(self.sigma, device=images.device)
        assert isinstance(self.denoiser, FeatureDenoiser)
        hidden = self.denoiser.features(images, sigma, None, 1)[0]
        return [hidden.flatten(1), images.flatten(1)]

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [N, D] of images [N, C, H, W]."""
        return self.joined(images)


def features_named(name: str, given: Given) -> Features | None:
    """Return the features that the setting ``method.features`` names; None for the items themselves.

    Raises ValueError for a name that is not known, or features that the given data cannot have.
    """
    if name == "none":
        return None
    if len(given.data.shape) == 1:
        raise ValueError(f"method.features is {name!r}; points drift as they are, with 'none'")
    if name == "random":
        random = RandomFeatures(given.data.shape)
        random.even(given.data.some(SOME, given.seed))
        return random
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
    except ValueError as error:  # a model with classes and no null class
        raise ValueError(f"method.features is {name!r}, which gives no features without a class: {error}") from error
    features.even(given.data.some(SOME, given.seed))
    return features
