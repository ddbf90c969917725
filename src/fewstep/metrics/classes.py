"""Figures that are measured class by class: the variance of items about the mean of their class, and shares of items."""

import math

import torch
from torch import Tensor

from fewstep.metrics.statistics import BATCH


def class_variances(x: Tensor, label: Tensor | None) -> dict[int, Tensor]:
    """Return for each class with two items or more the mean variance of an element about the class mean; x [N, ...], label [N] or None."""
    x = x.flatten(1)
    groups = {0: torch.arange(len(x))} if label is None else {int(k): (label == k).nonzero().flatten() for k in label.unique()}
    found = {}
    for k, group in groups.items():
        if len(group) > 1:
            mean = torch.stack([x[part].double().sum(0) for part in group.split(BATCH)]).sum(0) / len(group)
            squares = [(x[part].double() - mean).square().sum(0) for part in group.split(BATCH)]
            found[k] = torch.stack(squares).sum(0).mean() / (len(group) - 1)
    return found


def within_class_std(x: Tensor, label: Tensor | None) -> float:
    """Return the root of the mean of `class_variances` over classes, which all weigh alike; x [N, ...], label [N] or None.

    NaN where no class has two items.
    """
    return root_of_mean(class_variances(x, label))


def root_of_mean(variances: dict[int, Tensor]) -> float:
    """Return the root of the mean of `variances`, as `class_variances` returns them, over classes; NaN for no class."""
    return torch.stack(list(variances.values())).mean().sqrt().item() if variances else math.nan


def of_both(a: dict[int, Tensor], b: dict[int, Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return `a` and `b` without the classes that the other lacks: where few samples are drawn, rare classes may have none."""
    return {k: a[k] for k in a if k in b}, {k: b[k] for k in b if k in a}


def shares(hits: Tensor, label: Tensor) -> dict[int, float]:
    """Return for each class in `label` int64 [N] the share of its items whose entry of `hits` bool [N] is true."""
    return {int(k): hits[label == k].double().mean().item() for k in label.unique()}
