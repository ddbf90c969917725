"""What is measured class by class: how far items spread about the mean of their class, and shares."""

import math

import torch
from torch import Tensor

from fewstep.metrics.statistics import BATCH


def class_variances(x: Tensor, label: Tensor | None) -> dict[int, Tensor]:
    """Of each class with two items or more the mean variance of an element about the class mean; x [N, ...], label [N] or None."""
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
    """Root of the mean variance of an element about its class mean, classes weighing alike; x [N, ...], label [N] or None.

    NaN where no class has two items.
    """
    return root_of_mean(class_variances(x, label))


def root_of_mean(variances: dict[int, Tensor]) -> float:
    """The standard deviation that `class_variances` come to, classes weighing alike; NaN where there are none."""
    return torch.stack(list(variances.values())).mean().sqrt().item() if variances else math.nan


def shares(hits: Tensor, label: Tensor) -> dict[int, float]:
    """Of each class in `label` int64 [N] the share of its `hits` bool [N]."""
    return {int(k): hits[label == k].double().mean().item() for k in label.unique()}
