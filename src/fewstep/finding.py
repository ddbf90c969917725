"""Settings that a recipe leaves to be found: from the images, from the teacher, and from each other, each with the reason that is said.

A recipe names them in `finds`. What is given is never found.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.build import load_data
from fewstep.data.errors import DataError
from fewstep.data.probing import Probe, probe
from fewstep.errors import UserError
from fewstep.generator import Generator, load
from fewstep.networks.base import num_parameters
from fewstep.recipe import Recipe, resolved, validated

SMALLEST, LARGEST, LARGEST_ON_A_GPU = 8, 32, 64  # sides that are found; any other can be set
MANY = 5_000  # images from which on a network does not learn them by heart in a run of this length


@dataclass(frozen=True)
class Facts:
    """What settings are found from: what is known of the images, the teacher if there is one, and the recipe as far as it is found."""

    images: Probe
    teacher: Generator | None
    tree: Mapping[str, Any]

    def setting(self, key: str) -> Any:
        """The value at `key`, with dots."""
        inner: Any = self.tree
        for part in key.split("."):
            inner = inner[part]
        return inner


Found = tuple[Any, str]


def _size(facts: Facts) -> Found:
    if facts.teacher is not None:
        return facts.teacher.shape[-1], "as the teacher has it"
    most = LARGEST_ON_A_GPU if torch.cuda.is_available() else LARGEST
    side = facts.images.side
    size = min(most, max(SMALLEST, side // 4 * 4))
    why = f"half of the images have a shorter side of {side} or less"
    limit = f"; a {'GPU' if most == LARGEST_ON_A_GPU else 'CPU'} trains {most} in bearable time" if side >= most + 4 else ""
    return size, why + limit + (", and sides are multiples of 4" if size not in (side, most) else "")


def _channels(facts: Facts) -> Found:
    if facts.teacher is not None:
        return facts.teacher.shape[0], "as the teacher has it"
    return (1, "all images looked at are grey") if facts.images.grey else (3, "the images have colours")


def _network(facts: Facts) -> Found:
    size = facts.setting("data.size")
    channels = [32, 64] if size <= 12 else [32, 64, 128] if size <= 32 else [64, 128, 256]
    return channels, f"for {size} x {size}"


def _batch(facts: Facts) -> Found:
    num = facts.images.num
    size = min(128, max(16, 2 ** int(math.log2(max(1, num / 8)))))
    return size, f"of {num:,} images"


def _rate(facts: Facts) -> Found:
    widest = max(facts.setting("network.channels"))
    return _rounded(2e-3 * 64 / widest), f"for a network of up to {widest} channels"


def _student_rate(facts: Facts) -> Found:
    assert facts.teacher is not None
    size = num_parameters(facts.teacher.denoiser)
    return _rounded(min(2e-4, max(1e-5, 2e-4 * math.sqrt(7e5 / size)))), f"for the teacher's {size:,} parameters"


def _fake_rate(facts: Facts) -> Found:
    return _rounded(2.5 * facts.setting("method.generator_optimizer.lr")), "2.5 times the student's"


def _warmup(facts: Facts) -> Found:
    return min(500, max(20, facts.setting("steps") // 50)), "a fiftieth of the run"


def _average(facts: Facts) -> Found:
    steps = facts.setting("steps")
    return float(f"{0.5 ** (20 / steps):.6f}"), "half of it is forgotten in a twentieth of the run"


def _weight_decay(facts: Facts) -> Found:
    if facts.images.num < MANY:
        return 0.3, f"against learning {facts.images.num:,} images by heart"
    return 0.01, f"{facts.images.num:,} images are not soon learned by heart"


# in this order: a later one may look at what was found before
FINDERS: dict[str, Callable[[Facts], Found]] = {
    "data.size": _size,
    "data.channels": _channels,
    "network.channels": _network,
    "batch_size": _batch,
    "method.optimizer.lr": _rate,
    "method.optimizer.warmup": _warmup,
    "method.optimizer.weight_decay": _weight_decay,
    "method.generator_optimizer.lr": _student_rate,
    "method.generator_optimizer.warmup": _warmup,
    "method.guidance_optimizer.lr": _fake_rate,
    "method.ema_decay": _average,
}


def found(recipe: Recipe, kept: Mapping[str, Any] | None = None) -> tuple[Recipe, list[str]]:
    """`recipe` with all that it leaves to be found, and a line for each: ``data.size=28 (half of the images ...)``.

    `kept` is the recipe of a run that is gone on with, which has found them once and for all. Raises UserError for images and teachers that
    cannot be read.
    """
    if not recipe.finds:
        return recipe, []
    unknown = [key for key in recipe.finds if key not in FINDERS]
    if unknown:
        raise UserError(f"finds holds {unknown[0]!r}; what can be found is {', '.join(FINDERS)}: give {unknown[0]} a value instead")
    tree = resolved(recipe)
    wanted = tree.pop("finds")
    path = recipe.method.teacher_path
    if recipe.method.taught and path is None:  # told of, with the way to one, when the method is made
        return validated(tree, "the recipe"), []
    try:
        teacher = None if path is None else load(path)
    except UserError as error:
        raise UserError(f"method.teacher: {error}") from error
    facts, lines = Facts(_probed(recipe), teacher, tree), []
    for key, find in FINDERS.items():
        if key not in wanted:
            continue
        value, why = find(facts)
        *sections, last = key.split(".")
        inner: Any = tree
        for section in sections:
            inner = inner[section]
        if kept is not None:
            before: Any = kept
            for part in (*sections, last):
                before = before.get(part, {}) if isinstance(before, Mapping) else {}
            value, why = (before, "as this run has it") if before != {} else (value, why)
        inner[last] = value
        lines.append(f"{key}={value} ({why})")
    return validated(tree, "the recipe"), lines


def _probed(recipe: Recipe) -> Probe:
    """What is known of the images before they are read; of a data set that does not tell, once it is read. Raises UserError."""
    if recipe.data.name == "images":
        try:
            return probe(recipe.data)
        except DataError as error:
            raise UserError(str(error)) from error
    data = load_data(recipe.data, recipe.seed)
    if len(data.shape) != 3:
        raise UserError(f"the recipe leaves settings to be found from images, and {data.name} has points; take a recipe of points")
    return Probe(data.train_size or MANY, data.shape[-1], data.shape[0] == 1)


def _rounded(number: float) -> float:
    return float(f"{number:.1e}")
