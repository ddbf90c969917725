"""A self-test of the measure: how far real images are from other real images, between which there is no true difference."""

import statistics

import torch
from torch import Tensor

from fewstep.metrics.frechet import frechet_distance
from fewstep.metrics.kernel_mmd import kernel_distance


def self_test(rows: Tensor, splits: int = 4) -> dict[str, float]:
    """Measure one random half of the features `rows` [N, D] of real images against the other half.

    Returns means over `splits` splits: ``frechet`` of halves of ``num`` images; ``bias``, the part of it by their finite number, which
    is the distance of quarters less that of halves (as in `fewstep.metrics.frechet.expected_bias`); ``rest``, ``frechet`` less ``bias``, 0
    but for chance; ``kernel`` (KID, which has no bias); and ``spread``, the rest's standard deviation. Raises ValueError for fewer than 8
    images.
    """
    num = len(rows) // 4 * 2
    if num < 4:
        raise ValueError(f"there are {len(rows)} training images; a self-test needs 8")
    rng = torch.Generator().manual_seed(0)
    halves, quarters, kernels = [], [], []
    for _ in range(splits):
        order = torch.randperm(len(rows), generator=rng)
        a, b = rows[order[:num]], rows[order[num : 2 * num]]
        halves.append(frechet_distance(a, b))
        quarters.append(sum(frechet_distance(x, y) for x, y in zip(a.chunk(2), b.chunk(2), strict=True)) / 2)
        kernels.append(kernel_distance(a, b))
    rest = [2 * half - quarter for half, quarter in zip(halves, quarters, strict=True)]
    whole = statistics.mean(halves)
    return {
        "num": num,
        "frechet": whole,
        "bias": statistics.mean(quarters) - whole,
        "rest": statistics.mean(rest),
        "spread": statistics.stdev(rest),
        "kernel": statistics.mean(kernels),
    }
