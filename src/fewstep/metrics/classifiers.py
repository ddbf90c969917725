"""Classifiers whose activations are the features of MNIST and CIFAR-10, and their files.

``tools/train_features.py`` trains a classifier on the train split of a data set alone and writes it as a safetensors file: matrices in half
precision, vectors in single precision, and in the metadata the network's arguments, its classes, its accuracy and the command. Figures
measured in the features of different files do not compare, so each is reported with the file's SHA-256.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, max_pool2d, pixel_unshuffle, silu

from fewstep.errors import first_line
from fewstep.files import sha256_of, whole_file
from fewstep.metrics.inception import FeatureError
from fewstep.text import parse_json

METADATA = "fewstep.features"  # the metadata key under which a file describes its network
LONGEST = 2**20  # most characters of this description
MOST = {"channels": 64, "size": 1024, "num_classes": 100_000}
MOST_LEVELS, MOST_WIDTH = 8, 4096
LATER = ("pooled", "mirrored")  # arguments that older files lack
WHITE = 5e-4  # added to the variances that whitening divides by
COUNTERS = "num_batches_tracked"  # a buffer of batch norms that only training needs


class Normed(nn.Sequential):
    """A 3x3 convolution with batch norm, whose output is [B, width, H / stride, W / stride]."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))


class Residual(nn.Module):
    """Two convolutions with a residual connection (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Normed(width, width), Normed(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, like x [B, width, H, W]."""
        return silu(x + self.second(silu(self.first(x))))


class Pooled(nn.Module):
    """A convolution with 2x2 max pooling, and another convolution with a residual connection."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.second, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [B, width, H / 2, W / 2] for x [B, before, H, W]."""
        x = silu(self.norm1(max_pool2d(self.first(x), 2)))
        return silu(x + self.norm2(self.second(x)))


class ResidualClassifier(nn.Module):
    """A small residual network over images [B, C, size, size], and its features: the averages over the image of its last activations.

    Each feature is standardised by its mean and standard deviation on the train split. Activations of earlier levels are no features here:
    they follow contrast, which all real digits share, so that an invisible loss of 3% of the contrast outweighs broken digits.

    Args:
        channels: C.
        size: height and width, even.
        num_classes: number of classes that the network distinguishes.
        widths: channels of each level; the first level works at half of `size`, each next one at half of the one before.
        residual: whether levels hold residual blocks, or plain convolutions.
        pooled: whether each level starts with max pooling instead of a strided convolution, at the size of the level before, and the first
            level on whitened patches of 2x2 pixels (`whiten`); more expensive, and better for photographs.
        mirrored: whether features are averaged over an image and its mirror image; for classes that mirroring preserves.

    Attributes:
        name: name with which figures measured in these features are reported.
        sha256: SHA-256 of the network's file; None before it has a file.
        class_names: name of each class, by its number.
        shape: (C, size, size) of the images that the network takes.

    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        num_classes: int,
        widths: Sequence[int],
        residual: bool = True,
        pooled: bool = False,
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        self.architecture = {"channels": channels, "size": size, "num_classes": num_classes, "widths": list(widths)}
        self.architecture |= {"residual": residual, "pooled": pooled, "mirrored": mirrored}
        self.mirrored = mirrored
        self.name = "untrained"
        self.sha256: str | None = None
        self.class_names: tuple[str, ...] = ()
        self.shape = (channels, size, size)
        self.enlarges = 1
        self.num_classes = num_classes
        levels: list[nn.Module] = []
        before = 8 * channels if pooled else 4 * channels
        self.stem = nn.Conv2d(channels, before, 2, bias=False) if pooled else None
        for level, width in enumerate(widths):
            if pooled:
                levels.append(Pooled(before, width))
                before = width
                continue
            inner: nn.Module = Residual(width) if residual else nn.Sequential(Normed(width, width), nn.SiLU())
            levels.append(nn.Sequential(Normed(before, width, 1 if level == 0 else 2), nn.SiLU(), inner))
            before = width
        self.levels = nn.ModuleList(levels)
        self.output = nn.Linear(widths[-1], num_classes)
        self.register_buffer("mean", torch.zeros(widths[-1]))
        self.register_buffer("std", torch.ones(widths[-1]))

    def activations(self, images: Tensor) -> Tensor:
        """Return the averages over the image of the last level's activations [B, D], without mirroring and standardisation."""
        x = pixel_unshuffle(images, 2) if self.stem is None else silu(self.stem(images))
        for block in self.levels:
            x = block(x)
        return adaptive_avg_pool2d(x, 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return features [B, D] of images [B, C, size, size] in [-1, 1]. Raises ValueError for images of another shape."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"the images are {list(images.shape[1:])}, and these features are for {list(self.shape)}")
        if self.enlarges > 1:
            images = interpolate(images, scale_factor=self.enlarges, mode="bilinear")
        seen = self.activations(images)
        if self.mirrored:
            seen = (seen + self.activations(images.flip(3))) / 2
        return (seen - self.mean) / self.std

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first convolution's filters to the principal directions of 2x2 patches of `images` [N, C, H, W], and their negatives.

        Each filter is divided by its direction's standard deviation, so that its outputs are white; the filters are not trained
        (Coates and Ng 2012). Does nothing in a network that is not `pooled`.
        """
        if self.stem is None:
            return
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1).double()
        values, directions = torch.linalg.eigh(torch.cov(patches.T))
        filters = (directions / (values + WHITE).sqrt()).T.reshape(-1, images.shape[1], 2, 2).float()
        self.stem.weight.copy_(torch.cat([filters, -filters]))
        self.stem.requires_grad_(False)

    def classify(self, features: Tensor) -> Tensor:
        """Return class logits [B, num_classes] for features [B, D]."""
        return self.output(features * self.std + self.mean)

    def take_half_size(self) -> None:
        """Set the network to images of half the width and height that it was trained on, which it enlarges, and its name to say so."""
        channels, size, _ = self.shape
        self.shape, self.enlarges, self.name = (channels, size // 2, size // 2), 2, f"{self.name} at 2x"

    @torch.no_grad()
    def number_as(self, names: Sequence[str]) -> bool:
        """Number the classes as in `names` and return True; change nothing and return False where `names` are not the network's classes."""
        if sorted(names) != sorted(self.class_names) or len(set(names)) != len(names):
            return False
        order = [self.class_names.index(name) for name in names]
        self.output.weight.copy_(self.output.weight[order].clone())
        self.output.bias.copy_(self.output.bias[order].clone())
        self.class_names = tuple(names)
        return True


def save_classifier(network: ResidualClassifier, path: Path, about: Mapping[str, Any]) -> None:
    """Write `network` to `path`, atomically, with `about` (data, accuracy, command) in the metadata. Raises OSError."""
    from safetensors.torch import save

    told = {**about, "architecture": network.architecture, "classes": list(network.class_names)}
    with whole_file(path) as file:
        file.write(save(in_half(network), {METADATA: json.dumps(told)}))


def in_half(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights as a file stores them: matrices in half precision, vectors in single precision."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items() if not key.endswith(COUNTERS)}
    return {key: value.half() if value.ndim > 1 else value.float() for key, value in state.items()}


def load_classifier(path: Path, name: str | None = None) -> ResidualClassifier:
    """Return the network in a file that `save_classifier` wrote, frozen, with the name `name` or that of the file. Raises FeatureError."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        raise FeatureError(f"there is no file {path}; give a .safetensors file that tools/train_features.py wrote")
    other = "give a file that tools/train_features.py wrote"
    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(METADATA)
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
        if about is None or len(about) > LONGEST:
            raise FeatureError(f"{path} does not describe a feature network in its metadata; {other}")
        told = parse_json(about)
        arguments, classes = _checked(told["architecture"]), told["classes"]
        if not isinstance(classes, list) or len(classes) != arguments["num_classes"]:
            raise ValueError(f"it names {len(classes)} classes of {arguments['num_classes']}")
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            expected = {key: tuple(value.shape) for key, value in ResidualClassifier(**arguments).state_dict().items()}
        expected = {key: shape for key, shape in expected.items() if not key.endswith(COUNTERS)}
        if wrong := sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key)):
            raise ValueError(f"{wrong[0]} has shape {shapes.get(wrong[0])}, and its metadata asks for {expected.get(wrong[0])}")
        weights = {key: value.float() for key, value in load_file(path).items()}
        if bad := sorted(key for key, value in weights.items() if not value.isfinite().all()):
            raise ValueError(f"{bad[0]} holds values that are not finite")
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
            network = ResidualClassifier(**arguments)
        network.load_state_dict(weights, strict=False)
    except FeatureError:
        raise
    except Exception as error:  # whatever safetensors, json or the network raise for a wrong file
        raise FeatureError(f"{path} is not a feature network ({first_line(error)[:150]}); {other}") from error
    # the memory format in which convolutions are faster on a CPU
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.name, network.sha256 = name or path.stem, sha256_of(path)
    network.class_names = tuple(map(str, classes))
    return network.requires_grad_(False).eval()


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's `arguments` from a file, complete. Raises ValueError for arguments that a file may not have."""
    if set(arguments) - set(LATER) != {*MOST, "widths", "residual"}:
        raise ValueError(f"its metadata has the arguments {', '.join(sorted(map(str, arguments)))}")
    for key, most in MOST.items():
        if type(arguments[key]) is not int or not 1 <= arguments[key] <= most:
            raise ValueError(f"{key} is {arguments[key]!r}, allowed are 1 to {most}")
    widths = arguments["widths"]
    fits = isinstance(widths, list) and 2 <= len(widths) <= MOST_LEVELS
    if not fits or not all(type(width) is int and 1 <= width <= MOST_WIDTH for width in widths):
        raise ValueError(f"widths is {str(widths)[:50]}, allowed are 2 to {MOST_LEVELS} numbers up to {MOST_WIDTH}")
    if arguments["size"] % 2:
        raise ValueError(f"size is {arguments['size']}, which is odd")
    return {**arguments, "residual": bool(arguments["residual"]), **{key: bool(arguments.get(key, False)) for key in LATER}}
