"""Feature networks, in whose features distances are measured. Any callable from images [N, C, H, W] in [-1, 1] to [N, D] can be one."""

from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fewstep.errors import first_line
from fewstep.metrics.classifiers import ResidualClassifier, load_classifier
from fewstep.metrics.inception import FeatureError, ScriptedFeatures, load_inception

PIXELS = "pixels-8x8"
# names of the package's classifiers; the second judge of a data set is another network, trained separately from the first
CLASSIFIERS = ("mnist", "mnist-second", "cifar10", "cifar10-second")
SECOND = "-second"
NAMED = ("inception", "digits-v1", *CLASSIFIERS, PIXELS)
OF_DATA = {"digits": "digits-v1", "mnist": "mnist", "cifar10": "cifar10"}  # the feature network of a data set, by the data set's name
SCRIPTS = (".pt", ".pth", ".pkl", ".jit", ".ts")


class FeatureNetwork(Protocol):
    """Maps images [N, C, H, W] in [-1, 1] to features [N, D]. Every figure is reported with the `name` of its feature network.

    A network that comes from a file also has an attribute `sha256`, the checksum of the file.
    """

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Return features, float32 [N, D]."""
        ...


class DigitClassifier(nn.Module):
    """A small convolutional classifier of 8x8 digits; its features are the 64 activations before the last layer.

    Trained by ``tools/train_features.py digits`` on the train split alone and shipped with the package, so that figures
    compare across runs and versions. As it was trained on the train split, its features of training images differ from those
    of new digits: copies of the train split score 1 floor, unseen real digits about 0.4 of a floor
    (``benchmarks/feature_calibration.py``).
    """

    name = "digits-v1"
    shape, num_classes = (1, 8, 8), 10

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
        """Return features [N, 64] of images [N, 1, 8, 8]."""
        return nn.functional.silu(self.hidden(self.convolutions(images).flatten(1)))

    def classify(self, features: Tensor) -> Tensor:
        """Return class logits [N, 10] for features [N, 64]."""
        return self.output(features)

    @classmethod
    def load(cls) -> "DigitClassifier":
        """Return the shipped network, frozen."""
        from safetensors.torch import load_file

        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
            network = cls()
        with as_file(files("fewstep.metrics") / "digit_features.safetensors") as path:
            network.load_state_dict(load_file(path))
        return network.requires_grad_(False).eval()


class PooledPixels:
    """Pixels averaged over an 8x8 grid: [N, 64 C]. They show layout and colour, not content; for data without a better network."""

    name = PIXELS

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [N, 64 C] of images [N, C, H, W]."""
        return adaptive_avg_pool2d(images, 8).flatten(1)


class WithoutClasses:
    """A feature network without its classifier, for images whose labels are not the classes that the network knows."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        if name == "classify":
            raise AttributeError(name)
        return getattr(self.__dict__["network"], name)

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [N, D] of images [N, C, H, W]."""
        return self.network(images)


def feature_network(data_name: str, shape: Sequence[int] | None = None, num_classes: int | None = None) -> FeatureNetwork:
    """Return the feature network for a data set: the package's classifier that was trained on it, or pooled pixels for any other data.

    Pooled pixels are also returned for a `shape` of images or a number of classes that the classifier does not take, whatever the data
    set's name; None stands for any shape or number of classes.
    """
    name = OF_DATA.get(data_name, PIXELS)
    if name in CLASSIFIERS and not is_shipped(name):
        return PooledPixels()
    network = _of_package(name)
    try:
        return network if shape is None else fitted(network, shape, num_classes)
    except FeatureError:
        return PooledPixels()


def second_judge(network: FeatureNetwork, shape: Sequence[int], num_classes: int | None) -> FeatureNetwork | None:
    """Return the package's other network for images of `shape` that was trained on the same data as `network`; None if there is none."""
    name = network.name.removesuffix(" at 2x")
    other = name.removesuffix(SECOND) if name.endswith(SECOND) else name + SECOND
    if name not in CLASSIFIERS or other not in CLASSIFIERS or not is_shipped(other):
        return None
    return fitted(_of_package(other), shape, num_classes)


def is_shipped(name: str) -> bool:
    """Return whether the package contains the classifier `name`, of `CLASSIFIERS`."""
    return (files("fewstep.metrics") / _file(name)).is_file()


def _file(name: str) -> str:
    return f"{name.replace('-', '_')}_features.safetensors"


def _of_package(name: str) -> FeatureNetwork:
    if name == PIXELS:
        return PooledPixels()
    if name == "digits-v1":
        return DigitClassifier.load()
    if not is_shipped(name):
        raise FeatureError(f"this installation has no {_file(name)}, which holds the features {name}; install the package again")
    with as_file(files("fewstep.metrics") / _file(name)) as path:
        return load_classifier(path, name)


def named_features(name: str, device: torch.device | str = "cpu", say: Callable[[str], None] = lambda text: None) -> FeatureNetwork:
    """Return the feature network `name`, of `NAMED`, or that in the file at the path `name`: TorchScript, or a classifier's safetensors.

    "inception" is downloaded on first use, which `say` reports. Raises FeatureError for another name, and where there is no such file.
    """
    if name == "inception":
        return load_inception(device, say)
    if name in NAMED:
        return _of_package(name)
    if Path(name).suffix == ".safetensors":
        return load_classifier(Path(name))
    if Path(name).suffix not in SCRIPTS:
        raise FeatureError(
            f"there are no features {name!r}; allowed: {', '.join(NAMED)}, the path of a TorchScript file (.pt), or of a .safetensors file "
            "that tools/train_features.py wrote"
        )
    return ScriptedFeatures(Path(name), device=device)


def fitted(
    network: FeatureNetwork,
    shape: Sequence[int],
    num_classes: int | None,
    class_names: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> FeatureNetwork:
    """Return `network`, set to images of `shape` (C, H, W) in `num_classes` classes (None: no classes), numbered as in `class_names`.

    A classifier also takes images of half its size, which it enlarges. `say` reports where classes of other names are matched by number.
    Raises FeatureError for images that the network cannot take, and for another number of classes than it distinguishes.
    """
    known, classes = getattr(network, "shape", None), getattr(network, "num_classes", None)
    if isinstance(network, ResidualClassifier) and tuple(shape) == (network.shape[0], *(side // 2 for side in network.shape[1:])):
        network.take_half_size()
    elif known is not None and tuple(shape) != tuple(known):
        raise FeatureError(
            f"features {network.name} cannot be computed from images of shape {list(shape)}, only from {list(known)}; give others, "
            f"such as --features {PIXELS}"
        )
    if classes is not None and num_classes not in (None, classes):
        raise FeatureError(
            f"features {network.name} distinguish {classes} classes, and the data has {num_classes}; give others, such as "
            f"--features {PIXELS}, or measure without classes (data.label_column=none)"
        )
    if isinstance(network, ResidualClassifier) and num_classes and class_names and not network.number_as(class_names):
        say(f"the features {network.name} were trained on classes of other names, and are matched by number")
    try:
        with torch.no_grad():
            network(torch.zeros(2, *shape))
    except Exception as error:  # whatever the network raises
        raise FeatureError(
            f"features {network.name} cannot be computed from images of shape {list(shape)} ({first_line(error)[:100]}); take others"
        ) from error
    return network


@torch.no_grad()
def extract(network: FeatureNetwork, images: Tensor, batch_size: int = 500) -> Tensor:
    """Return features [N, D] of images [N, C, H, W], computed `batch_size` images at a time."""
    return torch.cat([network(batch) for batch in images.split(batch_size)])
