"""Feature networks: what distances are measured in. Any callable from images [N, C, H, W] in [-1, 1] to [N, D] will do."""

from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fewstep.metrics.inception import FeatureError, ScriptedFeatures, load_inception

NAMED = ("inception", "digits-v1", "pixels-8x8")


class FeatureNetwork(Protocol):
    """Maps images [N, C, H, W] in [-1, 1] to features [N, D]. `name` stands beside every number measured in it.

    One that comes from a file has an attribute `sha256`, too, which tells it from others of the name.
    """

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 [N, D]."""
        ...


class DigitClassifier(nn.Module):
    """A small convolutional classifier of 8x8 digits; its features are the 64 activations before the last layer.

    Trained by ``tools/train_digit_features.py`` on the train split alone and shipped with the package, so that numbers
    compare across runs and versions. Having seen the train split it tells copies of it from new digits: copies score 1
    floor, unseen real digits about 0.4 of one (``benchmarks/feature_calibration.py``).
    """

    name = "digits-v1"

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.SiLU(),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(64 * 2 * 2, 64)
        self.output = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, 64] of images [N, 1, 8, 8]."""
        return nn.functional.silu(self.hidden(self.convolutions(images).flatten(1)))

    def classify(self, features: Tensor) -> Tensor:
        """Class logits [N, 10] from features [N, 64]."""
        return self.output(features)

    @classmethod
    def load(cls) -> "DigitClassifier":
        """The shipped network, frozen."""
        from safetensors.torch import load_file

        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
            network = cls()
        with as_file(files("fewstep.metrics") / "digit_features.safetensors") as path:
            network.load_state_dict(load_file(path))
        return network.requires_grad_(False).eval()


class PooledPixels:
    """Pixels averaged over an 8x8 grid: [N, 64 C]. Sees layout and colour, not content; for data without a better network."""

    name = "pixels-8x8"

    def __call__(self, images: Tensor) -> Tensor:
        """Features [N, 64 C] of images [N, C, H, W]."""
        return adaptive_avg_pool2d(images, 8).flatten(1)


def feature_network(data_name: str) -> FeatureNetwork:
    """The feature network for a data set: the digit classifier for "digits", pooled pixels for anything else."""
    return DigitClassifier.load() if data_name == "digits" else PooledPixels()


def named_features(name: str, device: torch.device | str = "cpu", say: Callable[[str], None] = lambda text: None) -> FeatureNetwork:
    """The feature network called `name`, of `NAMED`, or in the TorchScript file that `name` is the path of.

    "inception" is downloaded once, of which `say` is told. Raises FeatureError for another name, and where there is no such file.
    """
    if name == "inception":
        return load_inception(device, say)
    if name in ("digits-v1", "pixels-8x8"):
        return DigitClassifier.load() if name == "digits-v1" else PooledPixels()
    if Path(name).suffix not in (".pt", ".pth", ".pkl", ".jit", ".ts"):
        raise FeatureError(f"there are no features {name!r}; allowed: {', '.join(NAMED)}, or the path of a TorchScript file (.pt)")
    return ScriptedFeatures(Path(name), device=device)


@torch.no_grad()
def extract(network: FeatureNetwork, images: Tensor, batch_size: int = 500) -> Tensor:
    """Features [N, D] of images [N, C, H, W], a batch at a time."""
    return torch.cat([network(batch) for batch in images.split(batch_size)])
