"""Settings that a recipe leaves to be found: from the images that it is to learn, or from the teacher that it is to distil.

A recipe names such keys in ``finds``; whoever sets one takes it from there. The rules are what has worked here on digits, MNIST and
CIFAR-10, each in one place below, and every value is said with its reason, and recorded in the run like one that was given.
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

LARGEST = 64  # pixels a side that are learned where nothing is said: more is a GPU's long work
FEW = 5000  # images, below which a network can learn them by heart

# by the largest side that it is for: width of each level of the U-Net for grey images, and for colour
WIDTHS = {
    8: ([32, 64], [32, 64]),
    16: ([32, 64], [64, 128]),
    32: ([48, 96], [96, 192]),
    LARGEST: ([48, 96, 96], [96, 192, 192]),
}
# pixels a side, from which squares of four become one place: of 28x28, at these widths, a step takes a third of the time that three levels
# at full size take (benchmarks/results/levers.json)
PATCHED = 24
DRAWN = 0.5  # of the pixels being black or white, from which images count as drawings
NARROW = 64  # channels, below which groups and heads are those of the recipes for digits and MNIST
LARGE = 20_000_000  # parameters, from which the rates of the recipes for CIFAR-10 are taken
DATA_OF_TEACHER = tuple(f"data.{key}" for key in ("path", "config", "image_column", "label_column", "resize", "holdout", "flip"))
RATES = {64: 1e-3, 128: 5e-4}  # by the width of its first level


@dataclass(frozen=True)
class Found:
    """One setting that was found, and from what."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"found: {self.key}={_plain(self.value)}, {self.reason}"


def settled(recipe: Recipe, run: RunFolder | None = None) -> tuple[Recipe, list[Found]]:
    """`recipe` with all that it leaves to be found, and what that was; of the run that `run` holds already, if it does, as it was then.

    Raises UserError for a teacher or data that are not there, or that nothing can be found in.
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
    """What has been found so far, of the keys that are to be found; each is put into `tree`, where later rules read it."""

    def __init__(self, keys: Sequence[str], tree: dict[str, Any]) -> None:
        super().__init__()
        self.keys, self.tree = keys, tree

    def find(self, key: str, rule: Callable[[], tuple[Any, str]]) -> Any:
        """The value of `key`: by `rule`, which gives it with a reason, if it is to be found, else as it was given."""
        if key in self.keys and key in leaves(self.tree):  # another network than the recipe's may have no such setting
            value, reason = rule()
            put(self.tree, key.split("."), value)
            self.append(Found(key, value, reason))
        return at(self.tree, key)


def _from_images(recipe: Recipe, tree: dict[str, Any]) -> list[Found]:
    """What a teacher's recipe leaves to be found."""
    seen = _probe(recipe)
    # other sets than images of one's own have a size and channels of their own, or as they are set
    found = _Findings([key for key in recipe.finds if recipe.data.name == "images" or not key.startswith("data.")], tree)
    size = found.find("data.size", lambda: _size(seen)) or int(seen.sides[0])
    channels = found.find(
        "data.channels", lambda: (1, "all images that were looked at are grey") if seen.grey else (3, "the images have colours")
    ) or (1 if seen.grey else 3)

    def spread() -> tuple[float, str]:
        value = _user(lambda: seen.spread(size, channels, at(tree, "data.resize") or "none"))
        return float(f"{value:.2g}"), f"the standard deviation of {seen.looked_at:,} images"

    found.find("network.sigma_data", spread)
    # the patches of other networks are of another kind
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
            (0.3, f"against learning {seen.num:,} images by heart, each seen {_passes(recipe.steps, batch, seen.num)} times")
            if seen.num < FEW
            else (0.01, f"of {seen.num:,} images, each seen {_passes(recipe.steps, batch, seen.num)} times")
        ),
    )

    def level() -> tuple[float, str]:
        if size <= 12:
            return -0.6, "so few pixels are decided at high noise"
        share = _user(lambda: seen.extreme(size, channels, at(tree, "data.resize") or "none"))
        if share >= DRAWN:
            return 1.0, f"as for MNIST: {share:.0%} of the pixels are black or white, and forms are decided at high noise"
        return -1.2, "EDM's"

    found.find("method.sigma_mean", level)
    return list(found)


def _from_teacher(recipe: Recipe, tree: dict[str, Any]) -> list[Found]:
    """What a student's recipe leaves to be found: the form of its items from the teacher, and the rates from how that was trained."""
    path = recipe.method.teacher_path
    if path is None:
        own = teaching_recipe("images")
        raise UserError(
            f"method.teacher is missing. Train one with\n  fewstep train {own} data.path=DIR --out runs/teacher\n"
            "or take one that exists with\n  fewstep import FILE --out runs/teacher\nthen add method.teacher=runs/teacher"
        )
    teacher = _named(path)
    theirs = f"the teacher's {path}"
    trained = RunFolder(Path(path)).recipe() if (Path(path) / "recipe.yaml").is_file() else {}
    found = _Findings(recipe.finds, tree)
    if len(teacher.shape) != 3 or teacher.shape[1] != teacher.shape[2]:
        raise UserError(
            f"method.teacher is {path}, which makes items of shape {list(teacher.shape)}; this recipe is for square images: give another"
        )
    found.find("data.size", lambda: (teacher.shape[1], theirs))
    found.find("data.channels", lambda: (teacher.shape[0], theirs))
    if teacher.num_classes is None:
        found.find("data.label_column", lambda: ("none", f"{theirs}: it knows no classes"))
    for key in DATA_OF_TEACHER:
        same = at(trained, "data.name") == recipe.data.name and at(trained, key) is not None
        if same and not (key == "data.label_column" and teacher.num_classes is None):
            found.find(key, lambda key=key: (at(trained, key), f"as the teacher's run {path} has it"))  # type: ignore[misc]
    found.find("network.sigma_data", lambda: (teacher.sigma_data, theirs))
    found.find("batch_size", lambda: _batch(teacher.shape[1], None))
    rate = at(trained, "method.optimizer.lr")
    reason = f"a share of the teacher's {rate}" if rate else "for a teacher whose own rate is not known"
    rate = rate or (2e-4 if num_parameters(teacher.denoiser) > LARGE else 1e-3)
    found.find("method.generator_optimizer.lr", lambda: (float(f"{rate / 10:.2g}"), reason))
    found.find("method.guidance_optimizer.lr", lambda: (float(f"{rate / 4:.2g}"), reason))
    _of_length(found, recipe.steps, "method.generator_optimizer")
    return list(found)


def _of_length(found: _Findings, steps: int, optimizer: str) -> None:
    """What follows from the length of the run alone."""
    warmup = min(1000, max(20, steps // 50))
    found.find(f"{optimizer}.warmup", lambda: (warmup, f"of {steps:,} steps"))
    decay = min(0.9999, max(0.99, float(f"{1 - 20 / steps:.4g}")))
    found.find("method.ema_decay", lambda: (decay, f"an average over about a twentieth of {steps:,} steps"))


def _probe(recipe: Recipe) -> Probe:
    """A look at the images of `recipe`. Raises UserError where they are none that can be looked at."""
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
    """The smallest shorter side, so that no image is blown up; less what a U-Net cannot halve."""
    least = int(seen.sides.min())
    if least < 4:
        raise UserError(f"an image is {least} pixel{'s' * (least > 1)} wide or high; take such images out, or give data.size")
    size = min(least, LARGEST)
    size -= size % (8 if size > 32 else 4 if size > 8 else 2)
    if least > LARGEST:
        return size, f"larger images (these have {least} and more) take long: set it if you have the time"
    if size < least:
        return size, f"as {least} cannot be halved often enough"
    return size, "which all have" if seen.shapes == 1 else f"the least side of {seen.looked_at:,} images, which have {seen.shapes:,} shapes"


def _patch(size: int) -> tuple[int, str]:
    """Side of the squares of pixels that are one place to the network."""
    if size >= PATCHED and size % 4 == 0:
        return 2, f"a network of {size // 2}x{size // 2} places takes a fraction of the time"
    return 1, f"for {size}x{size} images"


def _widths(size: int, channels: int, patch: int) -> tuple[list[int], str]:
    """Width of each level, the deepest of which still has whole places."""
    side = next((side for side in WIDTHS if size <= side), LARGEST)
    widths = list(WIDTHS[side][channels == 3])
    while len(widths) > 1 and size % (patch * 2 ** (len(widths) - 1)):
        widths.pop()
    return widths, f"for {size}x{size} images {'in colour' if channels == 3 else 'in grey'}"


def _divisor(widths: list[int], most: int) -> int:
    """The largest number up to `most` that divides all of `widths`."""
    return next(number for number in range(most, 0, -1) if all(width % number == 0 for width in widths))


def _batch(size: int, num: int | None) -> tuple[int, str]:
    """Items a step: what fits a machine of the size, and no more than half of what there is."""
    batch = 128 if size <= 32 else 64
    if num is not None and batch > num // 2:
        while batch > max(num // 2, 4):
            batch //= 2
        return batch, f"no more than half of {num:,} images"
    return batch, f"for {size}x{size} images"


def _rate(widths: Any, size: int) -> tuple[float, str]:
    if not isinstance(widths, list):
        return 2e-4, "for a network that is no plain U-Net"
    rate = 2e-3 if size <= 8 else next((rate for width, rate in RATES.items() if widths[0] <= width), 2e-4)
    return rate, f"for a network of width {widths[0]}"


def _passes(steps: int, batch: int, num: int) -> str:
    return f"{steps * batch / num:,.0f}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
