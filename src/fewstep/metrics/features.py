"""Feature networks: what distances are measured in. Any callable from images [N, C, H, W] in [-1, 1] to [N, D] will do."""

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
# of the package, by name; the second judge of a data set is another network, trained apart from the first
CLASSIFIERS = ("mnist", "mnist-second", "cifar10", "cifar10-second")
SECOND = "-second"
NAMED = ("inception", "digits-v1", *CLASSIFIERS, PIXELS)
OF_DATA = {"digits": "digits-v1", "mnist": "mnist", "cifar10": "cifar10"}  # which belong to a data set, by its name
SCRIPTS = (".pt", ".pth", ".pkl", ".jit", ".ts")


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

    Trained by ``tools/train_features.py digits`` on the train split alone and shipped with the package, so that numbers
    compare across runs and versions. Having seen the train split it tells copies of it from new digits: copies score 1
    floor, unseen real digits about 0.4 of one (``benchmarks/feature_calibration.py``).
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

    name = PIXELS

    def __call__(self, images: Tensor) -> Tensor:
        """Features [N, 64 C] of images [N, C, H, W]."""
        return adaptive_avg_pool2d(images, 8).flatten(1)


class WithoutClasses:
    """A feature network as it is, but that it tells no classes: of images whose labels are none that it knows."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        if name == "classify":
            raise AttributeError(name)
        return getattr(self.__dict__["network"], name)

    def __call__(self, images: Tensor) -> Tensor:
        """Features [N, D] of images [N, C, H, W]."""
        return self.network(images)


def feature_network(data_name: str, shape: Sequence[int] | None = None, num_classes: int | None = None) -> FeatureNetwork:
    """The feature network for a data set: the classifier of the package that was trained on it, pooled pixels for anything else.

    Images of another `shape` or with another number of classes than those that the classifier knows are something else, whatever they are
    called. None stands for any.
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
    """The other network of the package that was trained on the same data as `network`, for the same images; None where there is none."""
    name = network.name.removesuffix(" at 2x")
    other = name.removesuffix(SECOND) if name.endswith(SECOND) else name + SECOND
    if name not in CLASSIFIERS or other not in CLASSIFIERS or not is_shipped(other):
        return None
    return fitted(_of_package(other), shape, num_classes)


def is_shipped(name: str) -> bool:
    """Whether the package has the classifier called `name`, of `CLASSIFIERS`."""
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
    """The feature network called `name`, of `NAMED`, or in the file that `name` is the path of: TorchScript, or a classifier's safetensors.

    "inception" is downloaded once, of which `say` is told. Raises FeatureError for another name, and where there is no such file.
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
    """`network` for images of `shape` (C, H, W) in `num_classes` classes (None: without), numbered as in `class_names`.

    A classifier takes images of half its size, too, enlarged. `say` is told where classes of other names are matched by number. Raises
    FeatureError for images that it cannot take, and for another number of classes than those it tells apart.
    """
    known, classes = getattr(network, "shape", None), getattr(network, "num_classes", None)
    if isinstance(network, ResidualClassifier) and tuple(shape) == (network.shape[0], *(side // 2 for side in network.shape[1:])):
        network.take_half_size()
    elif known is not None and tuple(shape) != tuple(known):
        raise FeatureError(
            f"features {network.name} cannot be had of images of shape {list(shape)}, for they are those of {list(known)}; give others, "
            f"such as --features {PIXELS}"
        )
    if classes is not None and num_classes not in (None, classes):
        raise FeatureError(
            f"features {network.name} tell {classes} classes apart, and the data has {num_classes}; give others, such as "
            f"--features {PIXELS}, or measure without classes (data.label_column=none)"
        )
    if isinstance(network, ResidualClassifier) and num_classes and class_names and not network.number_as(class_names):
        say(f"the features {network.name} were trained on classes of other names, and are matched by number")
    try:
        with torch.no_grad():
            network(torch.zeros(2, *shape))
    except Exception as error:  # whatever the network raises
        raise FeatureError(
            f"features {network.name} cannot be had of images of shape {list(shape)} ({first_line(error)[:100]}); take others"
        ) from error
    return network


@torch.no_grad()
def extract(network: FeatureNetwork, images: Tensor, batch_size: int = 500) -> Tensor:
    """Features [N, D] of images [N, C, H, W], a batch at a time."""
    return torch.cat([network(batch) for batch in images.split(batch_size)])
