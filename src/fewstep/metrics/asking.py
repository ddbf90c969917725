"""Which classes are asked for when the samples of a generator are measured against real items.

The real items have each class as often as the data has it, so a perfect generator that is asked for all classes equally often lies at
twice the floor of MNIST, whose commonest class is a quarter more frequent than its rarest. Where the frequencies differ, classes are
asked for as often as they are in the training split, drawn like the floor's images are.
"""

import torch
from torch import Tensor

from fewstep.streams import stream

BALANCED, UNIFORM, AS_IN_DATA = "balanced", "uniform", "as in the data"
EVEN = 0.9  # from this share of the commonest class's items on, the rarest counts as equally frequent
FEWEST = 2  # samples of each class: a spread needs two


def how_asked(label: Tensor | None) -> str:
    """How classes are chosen beside real items with labels `label` int64 [N], or None for data without classes."""
    if label is None or len(label) == 0:
        return BALANCED
    counts = _counts(label)
    return BALANCED if counts.min() >= EVEN * counts.max() else AS_IN_DATA


def _counts(label: Tensor) -> Tensor:
    """How many items each class has, int64, of those classes that have any."""
    counts = label.bincount()
    return counts[counts > 0]


def rarest_share(label: Tensor) -> float:
    """The share of samples that the class which is asked for least often gets, beside real items with labels `label` int64 [N]."""
    counts = _counts(label)
    return 1 / len(counts) if how_asked(label) == BALANCED else counts.min().item() / len(label)


def asked_labels(num: int, num_classes: int, seed: int, how: str, real: Tensor | None = None) -> Tensor:
    """Labels int64 [num] to ask for: the classes in turn ("balanced"), each alike at random ("uniform"), or as often as in `real`.

    For the last, `real` int64 [N] is gone through in a random order of `seed`, again and again, and a class that got fewer than two takes
    the places that it lacks from the commonest one, if there are so many.
    """
    if how == BALANCED:
        return torch.arange(num) % num_classes
    rng = stream(seed, "measured labels")
    if how == UNIFORM:
        return torch.randint(num_classes, (num,), generator=rng)
    if how != AS_IN_DATA or real is None:
        raise ValueError(f"labels cannot be chosen {how!r} of {'no real labels' if real is None else 'real labels'}")
    passes = [torch.randperm(len(real), generator=rng) for _ in range(-(-num // len(real)))]
    label = real.cpu()[torch.cat(passes)[:num]]
    counts = label.bincount(minlength=num_classes)
    while counts.min() < FEWEST < counts.max():
        rarest, commonest = counts.argmin(), counts.argmax()
        label[(label == commonest).nonzero()[0]] = rarest
        counts[rarest], counts[commonest] = counts[rarest] + 1, counts[commonest] - 1
    return label
