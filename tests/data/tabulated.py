"""Densities tabulated on cells in the plane, and how far samples are from that table.

A chi-square statistic of d degrees of freedom has mean d and variance 2 d; CHI of its standard deviations are allowed, about one
false alarm in 10,000 of these fixed seeds. Means of samples are allowed SIGMAS standard errors.
"""

import functools
import math

import numpy as np
import torch

from fewstep.data import Mixture, make_density

CHI, SIGMAS = 4.0, 4.5

OVERLAP = Mixture("overlap", [[-0.3, 0.0], [0.4, 0.2], [0.0, 0.9]], torch.tensor([0.2, 0.5, 0.7]), torch.tensor([1.0, 4.0, 2.0]))
CROWD = Mixture("crowd", torch.randn(25, 2, generator=torch.Generator().manual_seed(5)), 0.3 + torch.arange(25) / 50)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def density(name):
    return {"overlap": OVERLAP, "crowd": CROWD}.get(name) or make_density(name)


def cells(low, high, num):
    """num x num square cells, each with 4 x 4 Gauss-Legendre nodes: points [num^2, 16, 2] and weights [16]."""
    z, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(4))
    width = (high - low) / num
    corner = low + width * torch.arange(num, dtype=torch.float64)
    inside = torch.cartesian_prod(width / 2 * (z + 1), width / 2 * (z + 1))
    return torch.cartesian_prod(corner, corner)[:, None] + inside, torch.outer(w, w).flatten() * width**2 / 4


@functools.cache
def tabulated(name, num=44):
    """log p at the nodes of cells over the limits of p^0.5: points, weights, log p [num^2, 16]."""
    p = density(name)
    x, w = cells(*p.power(0.5).limits, num)
    return x, w, p.log_prob(x.flatten(0, 1)).view(x.shape[:2])


def masses(name, gamma):
    """Normalised mass of p^gamma at every node, [num^2, 16], over those limits."""
    _, w, log_p = tabulated(name)
    mass = w * (gamma * (log_p - log_p.max())).exp()
    return mass / mass.sum()


def chi_square(x, name, gamma, num=44):
    """The statistic in standard deviations; cells that expect fewer than 5 of the points are one bin, and all the rest another."""
    low, high = density(name).power(0.5).limits
    expected = len(x) * masses(name, gamma).sum(1)
    index = ((x.double() - low) / (high - low) * num).floor().long()
    inside = ((index >= 0) & (index < num)).all(1)
    counts = torch.bincount((index[inside] @ torch.tensor([num, 1])), minlength=num**2).double()
    full = expected >= 5
    expected = torch.cat([expected[full], expected[~full].sum()[None].clamp(min=1e-3)])
    counts = torch.cat([counts[full], (counts[~full].sum() + (~inside).sum())[None]])
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum().item() - degrees) / math.sqrt(2 * degrees)
