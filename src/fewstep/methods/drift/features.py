"""What a drift on images can act on instead of pixels: features [N, D] with a gradient (Deng et al. 2026, arXiv 2602.04770, Eqs. 13-14).

Features of several parts, such as a hidden state and the pixels, are brought to one scale by what real items have: on digits the squared
distances of a random network's means are a 300th of the pixels', and those of a teacher's bottleneck 20 times theirs.
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
SOME = 256  # real items by which parts are brought to one scale


class Parts:
    """Features that are joined from `parts`, each times its scale: 1 until `even` has found better ones."""

    scales: Sequence[float] | None = None

    def parts(self, images: Tensor) -> list[Tensor]:
        """The parts [N, ...] of images [N, C, H, W]."""
        raise NotImplementedError

    def joined(self, images: Tensor) -> Tensor:
        """Features [N, D] of images [N, C, H, W]."""
        parts = self.parts(images)
        return torch.cat([part * scale for part, scale in zip(parts, self.scales or [1.0] * len(parts), strict=True)], 1)

    @torch.no_grad()
    def even(self, images: Tensor) -> None:
        """Give each part a mean squared distance of 1 between two of the real `images`; one that they all share stays as it is."""
        self.scales = [(mean_square_distance(part.float()) or 1.0) ** -0.5 for part in self.parts(images)]


class RandomFeatures(Parts, nn.Module):
    """A small convolutional network that was never trained, seed 0: [N, 2 width + pixels]. A baseline for learned features."""

    name = "random"

    def __init__(self, shape: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(shape[0], width, 3, padding=1)
            self.second = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.requires_grad_(False)

    def parts(self, images: Tensor) -> list[Tensor]:
        """Means over the image of two layers, and the pixels themselves."""
        first = nn.functional.silu(self.first(images))
        second = nn.functional.silu(self.second(first))
        return [first.mean((2, 3)), second.mean((2, 3)), images.flatten(1)]

    def forward(self, images: Tensor) -> Tensor:
        """Features, float32 [N, D]."""
        return self.joined(images)


class TeacherFeatures(Parts):
    """The hidden state of a diffusion teacher at its bottleneck, with the pixels beside it (arXiv 2605.07327).

    The images are seen by `denoiser` at one noise level, without noise.
    """

    name = "teacher"

    def __init__(self, denoiser: nn.Module, sigma: float = 0.2) -> None:
        self.denoiser, self.sigma = denoiser, sigma

    def parts(self, images: Tensor) -> list[Tensor]:
        """The bottleneck and the pixels."""
        sigma = torch.tensor(self.sigma, device=images.device)
        assert isinstance(self.denoiser, FeatureDenoiser)
        hidden = self.denoiser.features(images, sigma, None, 1)[0]
        return [hidden.flatten(1), images.flatten(1)]

    def __call__(self, images: Tensor) -> Tensor:
        """Features [N, D] of images [N, C, H, W]."""
        return self.joined(images)


def features_named(name: str, given: Given) -> Features | None:
    """What the setting ``method.features`` names, for the data given; None for the items themselves. Raises ValueError."""
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
    except ValueError as error:  # a model with classes and none that means no class
        raise ValueError(f"method.features is {name!r}, which gives no features without a class: {error}") from error
    features.even(given.data.some(SOME, given.seed))
    return features
