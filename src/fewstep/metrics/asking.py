"""Which classes a generator is asked for when its samples are measured against real items.

Among the real items each class is as frequent as in the data. On MNIST, whose commonest class is a quarter more frequent than its rarest,
a perfect generator that is asked for all classes equally often therefore has twice the floor's distance. Where frequencies differ, classes
are asked for as often as in the training split, drawn as the floor's images are.
"""

import torch
from torch import Tensor

from fewstep.streams import stream

BALANCED, UNIFORM, AS_IN_DATA = "balanced", "uniform", "as in the data"
EVEN = 0.9  # the share of the commonest class's items from which the rarest class counts as equally frequent
FEWEST = 2  # least number of samples of each class: a spread needs two


def how_asked(label: Tensor | None) -> str:
    """Return how classes are chosen beside real items with labels `label` int64 [N], or None for data without classes."""
    if label is None or len(label) == 0:
        return BALANCED
    counts = _counts(label)
    return BALANCED if counts.min() >= EVEN * counts.max() else AS_IN_DATA


def _counts(label: Tensor) -> Tensor:
    """Return the number of items of each class that has any, int64."""
    counts = label.bincount()
    return counts[counts > 0]


def rarest_share(label: Tensor) -> float:
    """Return the share of samples of the class that is asked for least often, beside real items with labels `label` int64 [N]."""
    counts = _counts(label)
    return 1 / len(counts) if how_asked(label) == BALANCED else counts.min().item() / len(label)


def asked_labels(num: int, num_classes: int, seed: int, how: str, real: Tensor | None = None) -> Tensor:
    """Return labels int64 [num] to ask for: the classes in turn ("balanced"), at random ("uniform"), or as often as in `real`.

    For "as in the data", labels are taken from `real` int64 [N] in a random order by `seed`, repeatedly; a class with fewer than two labels
    then takes those that it lacks from the commonest class, as long as that has more than two. Raises ValueError for another way to choose,
    and for missing `real` labels.
    """
    if how == BALANCED:
        return torch.arange(num) % num_classes
    rng = stream(seed, "measured labels")
    if how == UNIFORM:
        return torch.randint(num_classes, (num,), generator=rng)
    if how != AS_IN_DATA or real is None:
        raise ValueError(f"labels cannot be chosen {how!r} {'without' if real is None else 'from'} real labels")
    passes = [torch.randperm(len(real), generator=rng) for _ in range(-(-num // len(real)))]
    label = real.cpu()[torch.cat(passes)[:num]]
    counts = label.bincount(minlength=num_classes)
    while counts.min() < FEWEST < counts.max():
        rarest, commonest = counts.argmin(), counts.argmax()
        label[(label == commonest).nonzero()[0]] = rarest
        counts[rarest], counts[commonest] = counts[rarest] + 1, counts[commonest] - 1
    return label
