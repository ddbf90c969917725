"""Find settings that a recipe leaves open, from the images that are to be learned or from the teacher that is to be distilled.

A recipe lists the keys of such settings in ``finds``; setting one of them removes it from that list. The rules below are those that have
worked on digits, MNIST and CIFAR-10. Every value is printed with its reason, and recorded in the run folder like a value that was given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.build import generator_at, in_memory, load_data, teaching_recipe
from fewstep.data import ImageData
from fewstep.data.errors import DataError
from fewstep.data.probing import LOOKED_AT, Probe, probe
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.networks.base import num_parameters
from fewstep.pil import to_pil
from fewstep.recipe import Recipe, resolved, validated
from fewstep.recipe.older import at, leaves, put
from fewstep.training.run_folder import RunFolder

LARGEST = 64  # largest data.size that is found: larger images take long even on a GPU
FEW = 5000  # number of images below which a network can memorize them

# for images up to this many pixels a side: channels of each level of the U-Net for grey images, and for colour images
WIDTHS = {
    8: ([32, 64], [32, 64]),
    16: ([32, 64], [64, 128]),
    32: ([48, 96], [96, 192]),
    LARGEST: ([48, 96, 96], [96, 192, 192]),
}
# pixels a side from which patches of 2x2 pixels become one position: for 28x28 images at these widths a step takes a third of the time that
# three levels at full resolution take (benchmarks/results/levers.json)
PATCHED = 24
DRAWN = 0.5  # share of black or white pixels from which images count as drawings
NARROW = 64  # channels below which groups and heads are those of the recipes for digits and MNIST
LARGE = 20_000_000  # parameters above which a teacher's learning rate is assumed to be that of the recipes for CIFAR-10
DATA_OF_TEACHER = tuple(f"data.{key}" for key in ("path", "config", "image_column", "label_column", "resize", "holdout", "flip"))
RATES = {64: 1e-3, 128: 5e-4}  # learning rates of networks whose first level has up to this many channels


@dataclass(frozen=True)
class Found:
    """A setting that was found: its `key`, its `value`, and the `reason` for it in words."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"found: {self.key}={_plain(self.value)}, {self.reason}"


def settled(recipe: Recipe, run: RunFolder | None = None) -> tuple[Recipe, list[Found]]:
    """Return `recipe` with values for all settings in its ``finds``, and the list of these settings.

    If the folder `run` holds a run already, its values are taken. Raises UserError for a teacher or data that cannot be read, or from which
    no values can be found.
    """
    if not recipe.finds:
        return recipe, []
    tree = resolved(recipe) | {"finds": []}
    if run is not None and run.recipe_file.is_file():
        begun, why = leaves(run.recipe()), f"as the run in {run.path} was begun"
        found = [Found(key, begun[key], why) for key in recipe.finds if key in begun]
    else:
        found = _from_teacher(recipe, tree) if recipe.network.role == "copy" else _from_images(recipe, tree)
    for one in found:
        put(tree, one.key.split("."), one.value)
    return validated(tree, "what was found with what was given"), found


class _Findings(list[Found]):
    """The settings found so far.

    Args:
        keys: the settings that are to be found.
        tree: the recipe as nested dicts, into which each found value is written, so that later rules can read it.

    """

    def __init__(self, keys: Sequence[str], tree: dict[str, Any]) -> None:
        super().__init__()
        self.keys, self.tree = keys, tree

    def find(self, key: str, rule: Callable[[], tuple[Any, str]]) -> Any:
        """Return the value of the setting `key`: the one that `rule` gives, with a reason, if it is to be found, else the given value."""
        if key in self.keys and key in leaves(self.tree):  # the setting is missing if the user chose another network
            value, reason = rule()
            put(self.tree, key.split("."), value)
            self.append(Found(key, value, reason))
        return at(self.tree, key)


def _from_images(recipe: Recipe, tree: dict[str, Any]) -> list[Found]:
    """Return the settings that a teacher's recipe leaves open, found from its images; values are also written into `tree`."""
    seen = _probe(recipe)
    # data sets other than a folder of the user's images define size and channels themselves
    found = _Findings([key for key in recipe.finds if recipe.data.name == "images" or not key.startswith("data.")], tree)
    size = found.find("data.size", lambda: _size(seen)) or int(seen.sides[0])
    channels = found.find(
        "data.channels", lambda: (1, "all images that were looked at are grey") if seen.grey else (3, "the images have colours")
    ) or (1 if seen.grey else 3)

    def spread() -> tuple[float, str]:
        value = _user(lambda: seen.spread(size, channels, at(tree, "data.resize") or "none"))
        return float(f"{value:.2g}"), f"the standard deviation of {seen.looked_at:,} images"

    found.find("network.sigma_data", spread)
    # in networks without `channels`, other than the U-Net, `patch` means something else
    patch = (found.find("network.patch", lambda: _patch(size)) if "network.channels" in leaves(tree) else None) or 1
    widths = found.find("network.channels", lambda: _widths(size, channels, patch))
    found.find("network.groups", lambda: (_divisor(widths, 32 if min(widths) >= NARROW else 8), "a divisor of every width"))
    found.find("network.head_dim", lambda: (_divisor(widths[-1:], 64 if min(widths) >= NARROW else 32), "a divisor of the last width"))
    batch = found.find("batch_size", lambda: _batch(size, seen.num))
    found.find("method.optimizer.lr", lambda: _rate(widths, size))
    _of_length(found, recipe.steps, "method.optimizer")
    found.find(
        "method.optimizer.weight_decay",
        lambda: (
            (0.3, f"against memorizing {seen.num:,} images, each seen {_passes(recipe.steps, batch, seen.num)} times")
            if seen.num < FEW
            else (0.01, f"for {seen.num:,} images, each seen {_passes(recipe.steps, batch, seen.num)} times")
        ),
    )

    def level() -> tuple[float, str]:
        if size <= 12:
            return -0.6, "because images of so few pixels are decided at high noise"
        share = _user(lambda: seen.extreme(size, channels, at(tree, "data.resize") or "none"))
        if share >= DRAWN:
            return 1.0, f"as for MNIST: {share:.0%} of the pixels are black or white, and shapes are decided at high noise"
        return -1.2, "the value of EDM"

    found.find("method.sigma_mean", level)
    return list(found)


def _from_teacher(recipe: Recipe, tree: dict[str, Any]) -> list[Found]:
    """Return the settings that a student's recipe leaves open; values are also written into `tree`.

    The data's size, channels and classes are the teacher's; learning rates are fractions of the rate that the teacher was trained with.
    """
    path = recipe.method.teacher_path
    if path is None:
        own = teaching_recipe("images")
        raise UserError(
            f"method.teacher is missing. Train one with\n  fewstep train {own} data.path=DIR --out runs/teacher\n"
            "or take one that exists with\n  fewstep import FILE --out runs/teacher\nthen add method.teacher=runs/teacher"
        )
    teacher = _named(path)
    theirs = f"as in the teacher {path}"
    trained = RunFolder(Path(path)).recipe() if (Path(path) / "recipe.yaml").is_file() else {}
    found = _Findings(recipe.finds, tree)
    if len(teacher.shape) != 3 or teacher.shape[1] != teacher.shape[2]:
        raise UserError(
            f"method.teacher is {path}, which makes items of shape {list(teacher.shape)}; this recipe is for square images: give another"
        )
    found.find("data.size", lambda: (teacher.shape[1], theirs))
    found.find("data.channels", lambda: (teacher.shape[0], theirs))
    if teacher.num_classes is None:
        found.find("data.label_column", lambda: ("none", f"because the teacher {path} has no classes"))
    for key in DATA_OF_TEACHER:
        same = at(trained, "data.name") == recipe.data.name and at(trained, key) is not None
        if same and not (key == "data.label_column" and teacher.num_classes is None):
            found.find(key, lambda key=key: (at(trained, key), f"as in the run of the teacher {path}"))  # type: ignore[misc]
    found.find("network.sigma_data", lambda: (teacher.sigma_data, theirs))
    found.find("batch_size", lambda: _batch(teacher.shape[1], None))
    rate = at(trained, "method.optimizer.lr")
    reason = f"a fraction of the teacher's learning rate {rate}" if rate else "for a teacher whose learning rate is not known"
    rate = rate or (2e-4 if num_parameters(teacher.denoiser) > LARGE else 1e-3)
    found.find("method.generator_optimizer.lr", lambda: (float(f"{rate / 10:.2g}"), reason))
    found.find("method.guidance_optimizer.lr", lambda: (float(f"{rate / 4:.2g}"), reason))
    _of_length(found, recipe.steps, "method.generator_optimizer")
    return list(found)


def _of_length(found: _Findings, steps: int, optimizer: str) -> None:
    """Find the warm-up of `optimizer` and the decay of the weight average, which depend on the number of `steps` alone."""
    warmup = min(1000, max(20, steps // 50))
    found.find(f"{optimizer}.warmup", lambda: (warmup, f"for {steps:,} steps"))
    decay = min(0.9999, max(0.99, float(f"{1 - 20 / steps:.4g}")))
    found.find("method.ema_decay", lambda: (decay, f"an average over about a twentieth of {steps:,} steps"))


def _probe(recipe: Recipe) -> Probe:
    """Return what a first look at the images of `recipe` shows. Raises UserError where its data are not images or cannot be read."""
    if recipe.data.name == "images":
        named: Mapping[str, Any] = recipe.data.arguments()
        return _user(lambda: probe(*(named[key] for key in ("path", "config", "image_column", "label_column"))))
    data = in_memory(load_data(recipe.data, recipe.seed))
    if not isinstance(data, ImageData):
        raise UserError(f"data.name is {recipe.data.name!r}, which is points; this recipe is for images: begin from one for points")
    images = data.images("train")
    looked_at = to_pil(images[:: -(-len(images) // LOOKED_AT)])
    return Probe(len(images), np.full(len(looked_at), min(data.shape[1:])), 1, data.shape[0] == 1, looked_at)


def _user(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except DataError as error:
        raise UserError(str(error)) from error


def _named(path: str) -> Generator:
    try:
        return generator_at(path, None)
    except UserError as error:
        raise UserError(f"method.teacher: {error}") from error


def _size(seen: Probe) -> tuple[int, str]:
    """Return the image size to learn, with the reason: the shortest side of all images, so that none is enlarged, and at most `LARGEST`.

    It is rounded down so that a U-Net can halve it often enough. Raises UserError for images with a side below 4 pixels.
    """
    least = int(seen.sides.min())
    if least < 4:
        raise UserError(f"an image is {least} pixel{'s' * (least > 1)} wide or high; take such images out, or give data.size")
    size = min(least, LARGEST)
    size -= size % (8 if size > 32 else 4 if size > 8 else 2)
    if least > LARGEST:
        return size, f"because larger images take long (these have {least} pixels and more): set data.size if you have the time"
    if size < least:
        return size, f"because {least} cannot be halved often enough"
    return size, "as in all images" if seen.shapes == 1 else f"the shortest side of {seen.looked_at:,} images of {seen.shapes:,} shapes"


def _patch(size: int) -> tuple[int, str]:
    """Return the side, in pixels, of the patches that are one position to the network, with the reason."""
    if size >= PATCHED and size % 4 == 0:
        return 2, f"because a network on {size // 2}x{size // 2} patches takes a fraction of the time"
    return 1, f"for {size}x{size} images"


def _widths(size: int, channels: int, patch: int) -> tuple[list[int], str]:
    """Return the channels of each level of the U-Net, with the reason; levels for which `size` cannot be halved further are left out."""
    side = next((side for side in WIDTHS if size <= side), LARGEST)
    widths = list(WIDTHS[side][channels == 3])
    while len(widths) > 1 and size % (patch * 2 ** (len(widths) - 1)):
        widths.pop()
    return widths, f"for {size}x{size} images {'in colour' if channels == 3 else 'in grey'}"


def _divisor(widths: list[int], most: int) -> int:
    """Return the largest number up to `most` that divides all of `widths`."""
    return next(number for number in range(most, 0, -1) if all(width % number == 0 for width in widths))


def _batch(size: int, num: int | None) -> tuple[int, str]:
    """Return the batch size for images of `size` pixels a side, with the reason: 128 or 64, and no more than half of the `num` images."""
    batch = 128 if size <= 32 else 64
    if num is not None and batch > num // 2:
        while batch > max(num // 2, 4):
            batch //= 2
        return batch, f"no more than half of {num:,} images"
    return batch, f"for {size}x{size} images"


def _rate(widths: Any, size: int) -> tuple[float, str]:
    if not isinstance(widths, list):
        return 2e-4, "for another network than the plain U-Net"
    rate = 2e-3 if size <= 8 else next((rate for width, rate in RATES.items() if widths[0] <= width), 2e-4)
    return rate, f"for a network of width {widths[0]}"


def _passes(steps: int, batch: int, num: int) -> str:
    return f"{steps * batch / num:,.0f}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
