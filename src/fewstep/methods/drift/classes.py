"""Ways to let each class drift by itself: coordinates that separate the classes in one kernel, or a set of samples for each class."""

import torch
from torch import Tensor


def apart(x: Tensor, label: Tensor, y: Tensor, y_label: Tensor, temperature: float, kernel: str) -> tuple[Tensor, Tensor]:
    """Return x [B, D] and real y [M, D], both with coordinates added by which the kernel weight of another class is at most e^-100.

    The bound is relative to the weight of any sample of the same class. Real samples of classes that x does not have are dropped.
    """
    wanted = torch.isin(y_label, label)
    y, y_label = y[wanted], y_label[wanted]
    classes = int(label.max()) + 1
    widest = x.norm(dim=1).max() + y.norm(dim=1).max()
    reach = widest.square() + 100 * temperature if kernel == "gaussian" else (widest + 100 * temperature).square()
    codes = torch.eye(classes, device=x.device, dtype=x.dtype) * (reach / 2).sqrt()
    return torch.cat([x, codes[label]], 1), torch.cat([y, codes[y_label]], 1)


def mean_square_distance(y: Tensor, label: Tensor | None = None) -> float:
    """Return the mean squared distance of two different rows of `y` [M, D] with the same `label` [M]; 0 where no two rows share a label."""
    if label is None:
        label = y.new_zeros(len(y), dtype=torch.long)
    count = label.bincount()
    centre = y.new_zeros(len(count), y.shape[1]).index_add(0, label, y) / count.clamp_min(1)[:, None]
    spread = y.new_zeros(len(count)).index_add(0, label, (y - centre[label]).square().sum(1))
    # the squared distances of all ordered pairs of n rows add up to 2 n times the spread about their centre
    return ((2 * count * spread).sum() / (count * (count - 1)).sum().clamp_min(1)).item()


class Sets:
    """Items [B, D] as sets [K, n, D], one for each of `classes` [K] (ascending), padded with zeros of weight 0.

    `log_weights` [K, n] are uniform within a set. Items of other classes are left out.
    """

    def __init__(self, items: Tensor, label: Tensor, classes: Tensor) -> None:
        wanted = torch.isin(label, classes).nonzero().flatten()
        row = torch.searchsorted(classes, label[wanted])
        order = row.argsort(stable=True)
        self.item, self.row = wanted[order], row[order]
        count = self.row.bincount(minlength=len(classes))
        self.place = torch.arange(len(self.row), device=row.device) - (count.cumsum(0) - count)[self.row]
        size = int(count.max())
        self.items = items.new_zeros(len(classes), size, items.shape[1]).index_put((self.row, self.place), items[self.item])
        there = torch.arange(size, device=row.device) < count[:, None]
        self.log_weights = torch.where(there, -count[:, None].to(items).log(), -torch.inf)

    def back(self, values: Tensor, like: Tensor) -> Tensor:
        """Return `values` [K, n, D] in the order of the items, like `like` [B, D]; 0 for items that were left out."""
        return torch.zeros_like(like).index_put((self.item,), values[self.row, self.place])
