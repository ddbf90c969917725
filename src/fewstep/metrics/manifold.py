"""Measures by nearest neighbours: precision and recall, and how close generated samples lie to single training images.

Distances come from matrix products, ``|x - y|^2 = |x|^2 + |y|^2 - 2 x.y`` about a common centre, in float64 and block by block, which is
far faster than pair by pair. Where their exact value counts, the distances to the nearest few are computed again pair by pair.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS, COLUMNS = 512, 8192  # of a block of distances
SPARE = 4  # candidates beyond the k-th neighbour, for rounding may exchange two that are equally near
LARGE = 10**9  # number of multiplications above which single precision saves time
ROUNDING = 1e-13  # rounding error of a squared distance, relative to the squared norms that it is computed from


def _squared_distances(a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
    a, b = a - centre, b - centre
    return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2)


def _blocks(x: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (number of the first row, rows as float64) of each block, so that no more than a block is converted at a time."""
    return ((start, x[start : start + size].double()) for start in range(0, len(x), size))


def nearest_distance(a: Tensor, b: Tensor, k: int = 1, same: bool = False) -> Tensor:
    """Return the Euclidean distance from each row of a [N, D] to its k-th nearest row of b [M, D], of any type: float64 [N].

    With `same`, a and b are one set and a row does not count as its own neighbour.
    """
    return nearest_distances(a, b, k, same)[:, k - 1]


def nearest_distances(a: Tensor, b: Tensor, k: int = 1, same: bool = False) -> Tensor:
    """Return the Euclidean distances from each row of a [N, D] to its k nearest rows of b [M, D], ascending: float64 [N, k].

    `same` is as in `nearest_distance`. In large sets the candidates for neighbours are found in single precision; for rows where rounding
    could have hidden a nearer candidate, the search is repeated in double precision, so that the result is the same.
    """
    large = len(a) * len(b) * a.shape[1] > LARGE
    centre = b[:1024].double().mean(0)
    found = []
    together = 4 * ROWS if large else ROWS  # rows of a for which the blocks of b are converted once
    for start in range(0, len(a), together):
        rows = a[start : start + together]
        exact, sure = _nearest(rows, b, centre, k, same, torch.float32 if large else torch.float64)
        if not sure.all():
            exact[~sure] = _nearest(rows[~sure], b, centre, k, same, torch.float64)[0]
        found.append(exact)
    return torch.cat(found)


def _nearest(rows: Tensor, b: Tensor, centre: Tensor, k: int, same: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `nearest_distances` [n, k] of a few rows, with candidates found in `dtype`, and for which rows they are certain, bool [n]."""
    rank = k + same
    few = rows.to(dtype)
    nearest, index = torch.empty(len(rows), 0, dtype=dtype), torch.empty(len(rows), 0, dtype=torch.int64)
    longest = torch.zeros((), dtype=dtype)
    for start in range(0, len(b), COLUMNS):
        columns = b[start : start + COLUMNS].to(dtype)
        squared = _squared_distances(few, columns, centre.to(dtype))
        values, place = squared.topk(min(rank + SPARE, len(columns)), dim=1, largest=False)
        nearest, index = torch.cat([nearest, values], 1), torch.cat([index, place + start], 1)
        nearest, order = nearest.topk(min(rank + SPARE, nearest.shape[1]), dim=1, largest=False)
        index = index.gather(1, order)
        if dtype == torch.float32:
            longest = torch.maximum(longest, (columns - centre.to(dtype)).square().sum(1).max())
    exact = torch.stack([(rows.double() - b[index[:, i]].double()).square().sum(1) for i in range(index.shape[1])], 1).sort(1).values
    sure = torch.ones(len(rows), dtype=torch.bool)
    if dtype == torch.float32 and nearest.shape[1] < len(b):
        # no other row is nearer than the last candidate, but for the rounding of the squared norms that a distance is computed from
        error = 8 * rows.shape[1] ** 0.5 * torch.finfo(dtype).eps * ((few - centre.to(dtype)).square().sum(1) + longest)
        sure = exact[:, rank - 1] <= (nearest[:, -1] - error).double()
    return exact[:, int(same) : rank].sqrt(), sure


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (arXiv 1904.06991, Sec. 2) of features real [N, D] and fake [M, D].

    Precision is the share of fake rows inside the union of balls round the real rows, each reaching to its row's k-th nearest real row;
    recall is the same with the roles exchanged. A set collapsed onto few real rows has high precision and low recall.
    Raises ValueError unless both sets have more than `k` rows.
    """
    real, fake = torch.as_tensor(real), torch.as_tensor(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) <= k:
        raise ValueError(f"features have shapes {tuple(real.shape)} and {tuple(fake.shape)}; give [N, D], [M, D] with N, M > k = {k}")
    of_real, of_fake = (nearest_distance(x, x, k, same=True).square() for x in (real, fake))  # radii, squared
    centre = real[:1024].double().mean(0)
    inside_real, inside_fake = torch.zeros(len(fake), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for i, rows in _blocks(fake, ROWS):
        for j, columns in _blocks(real, COLUMNS):
            squared = _squared_distances(rows, columns, centre)
            # a row on the edge of a ball is inside it, also when rounding puts it a little outside
            squared -= ROUNDING * ((rows - centre).square().sum(1)[:, None] + (columns - centre).square().sum(1))
            inside_real[i : i + len(rows)] |= (squared <= of_real[j : j + len(columns)]).any(1)
            inside_fake[j : j + len(columns)] |= (squared <= of_fake[i : i + len(rows), None]).any(0)
    return inside_real.double().mean().item(), inside_fake.double().mean().item()
