"""Health figures: comparisons of samples with real data, pooled over several batches until they are precise enough.

One batch may hold few items, or few of a class, so that a figure of one batch is mostly chance. Sums are therefore kept over all batches
that were looked at, each figure gets a standard error, and it is reported only when that error is at most `WORTH`, or when the figure
exceeds 1 by more than `FAR` errors; until then it is absent from the records.

    spread^2 = V(x) / V(real)               V: mean variance of an element about the mean of its class, from items of equal class
    shift^2  = |mean(x) - mean(real)|^2 / (D var(real))    over the D elements, without the bias of chance
    saturation = share of elements beyond 1.1 in magnitude, less half the share of real elements beyond 0.9; not below 0

    scale = sqrt(mean square of real elements about their mean) / sigma_data
    classes = 1 - V(real) / var(real)                      share of the data's variance that the classes explain

Where real elements lie at an end of the range, as the paper and the ink of digits do, an error of any size puts half of the samples' there
beyond it, and that is no saturation.

The bias of ``|mean(x) - mean(real)|^2`` is avoided by dealing the items into blocks, and averaging products of *different* blocks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.methods.base import Batch
from fewstep.methods.devices import whole_items

ELEMENTS = 4096  # elements of an item that are used at most; of a larger item a fixed random choice
FEW_ELEMENTS = 256  # elements of an item for which sums are kept per class
LEAST = 16  # smallest number of degrees of freedom within classes, in samples and in real items, from which a variance is computed
KEPT = 1024  # items that are kept until others of their class come; 32,000 classes need this many
BLOCKS = 8  # blocks that the items are dealt into
ROUNDING = 1e-12  # share of an item's mean square below which its squared deviation counts as 0: float32 rounding, with a margin
WORTH = 0.1  # largest standard error of a figure that is reported, absolute for figures below 1 and relative above
FAR = 4  # standard errors beyond 1 from which a figure is reported anyway: the error stays large when samples diverge
ENOUGH = 20_000  # real items after which figures of the data alone are not refined further
RANGE = 1.1  # magnitude beyond which an element of an image counts as saturated
EDGE = 0.9  # magnitude beyond which a real element lies at an end of the range
SIDES = ("made", "real")


class Looks:
    """Sums from which the health figures are computed: since each figure was last reported, and of the data over the whole run.

    Items whose class has too few others yet are kept until more come. Every process sees the whole batch, and so has the same sums.
    """

    def __init__(self) -> None:
        self.data = DataLooks()
        self.compares = True  # whether batches hold real items that samples can be compared with
        self.by_class = True  # whether a label is the class of its item
        self.bounded = True  # whether items are pixels, in [-1, 1]
        self.within: Tensor | None = None  # float64 [sides, 3]: squares about class means, degrees of freedom, variance of the squares
        self.waiting: tuple[list[Tensor], list[Tensor]] = ([], [])  # items [n, D] that are not counted in `within` yet
        self.classes: tuple[list[Tensor], list[Tensor]] = ([], [])  # classes [n] of the items in `waiting`
        self.sums: Tensor | None = None  # float64 [sides, blocks, D]
        self.counts: Tensor | None = None  # float64 [sides, blocks]
        self.squares: Tensor | None = None  # float64 []: sum of squares of all elements of real items
        self.saturated: Tensor | None = None  # float64 [3]: number of items, sum and sum of squares of each item's share, less the real one
        self.seen = 0  # samples looked at so far, which gives the block of the next one

    def at(self, data: object) -> None:
        """Read from `data`'s attributes ``compares``, ``labels_are_classes`` and ``are_pixels`` which figures its batches allow."""
        told = ("compares", "labels_are_classes", "are_pixels")
        self.compares, self.by_class, self.bounded = (getattr(data, name, True) for name in told)

    def look(self, seen: Sequence[tuple[Tensor | None, Tensor | None, Batch]], at_data: bool) -> None:
        """Add this process's parts (samples, label, batch) of a turn's batch to the sums; with `at_data` also to the data's own sums."""
        if not self.compares:
            return
        made = [(x, label) for x, label, _ in seen if x is not None]
        if not made and not (seen and at_data and self.data.num < ENOUGH):
            return
        if not self.by_class:
            made = [(x, None) for x, _ in made]
        real = whole_items((batch.x, batch.label if self.by_class else None) for _, _, batch in seen)
        if made:
            self.add(*whole_items(made), *real)
        if at_data and self.data.num < ENOUGH:
            self.data.add(*real)

    @torch.no_grad()
    def add(self, x: Tensor, label: Tensor | None, real: Tensor, real_label: Tensor | None) -> None:
        """Add samples `x` [B, ...] and real items `real` [B', ...], with classes int64 [B] and [B'] or None, to the sums."""
        if x.ndim == 4 and self.bounded:
            share = _share_beyond(x, RANGE) - _share_beyond(real, EDGE).mean() / 2
            found = torch.stack([share.new_tensor(len(share)), share.sum(), share.square().sum()])
            self.saturated = found if self.saturated is None else self.saturated + found
        sides = (chosen_elements(x), chosen_elements(real))
        self._add_within(sides, (label, real_label))
        folded = [_dealt(side, self.seen % BLOCKS) for side in sides]
        sums, counts = torch.stack([total for total, _ in folded]), torch.stack([count for _, count in folded])
        squares = sides[1].to(wide_type(x)).square().sum()
        if self.sums is None or self.counts is None or self.squares is None:
            self.sums, self.counts, self.squares = sums, counts, squares
        else:
            self.sums, self.counts, self.squares = self.sums + sums, self.counts + counts, self.squares + squares
        self.seen += len(x)

    def _add_within(self, sides: tuple[Tensor, Tensor], labels: tuple[Tensor | None, Tensor | None]) -> None:
        for side, label, waiting, classes in zip(sides, labels, self.waiting, self.classes, strict=True):
            waiting.append(side)
            classes.append(torch.zeros(len(side), dtype=torch.int64) if label is None else label.cpu())
        if all(len(label := torch.cat(classes)) - len(label.unique()) >= LEAST for classes in self.classes):
            pairs = zip(self.waiting, self.classes, strict=True)
            found = torch.stack([_variance_sums(torch.cat(items), torch.cat(classes)) for items, classes in pairs])
            self.within = found if self.within is None else self.within + found
            self.waiting, self.classes = ([], []), ([], [])
            return
        for waiting, classes in zip(self.waiting, self.classes, strict=True):
            waiting[:], classes[:] = [torch.cat(waiting)[-KEPT:]], [torch.cat(classes)[-KEPT:]]

    def peek(self) -> dict[str, float]:
        """Return the figures that are precise enough (see `WORTH` and `FAR`), each with its standard error as ``NAME_error``."""
        figures: dict[str, float] = {}
        for name, found in (("spread", self._spread()), ("shift", self._shift()), ("saturation", self._saturation())):
            if found is not None and found[1] <= max(WORTH * max(1.0, found[0]), (found[0] - 1) / FAR):
                figures |= {f"health.{name}": found[0], f"health.{name}_error": found[1]}
        return figures

    def take(self) -> dict[str, float]:
        """Return what `peek` returns, and reset the sums of these figures."""
        figures = self.peek()
        if "health.spread" in figures:
            self.within = None
        if "health.shift" in figures:
            self.sums = self.counts = self.squares = None
        if "health.saturation" in figures:
            self.saturated = None
        return figures

    def _spread(self) -> tuple[float, float] | None:
        if self.within is None:
            return None
        squares, freedom, variance = self.within.cpu().T
        v = squares / freedom
        if not v[1] > 0:  # all real items of a class are equal
            return None
        spread = (v[0] / v[1]).sqrt().item()
        relative = (variance / freedom.square() / v.square().clamp_min(1e-300)).sum()
        return spread, spread * relative.sqrt().item() / 2

    def _shift(self) -> tuple[float, float] | None:
        if self.sums is None or self.counts is None or self.squares is None:
            return None
        sums, counts = self.sums, self.counts.cpu()
        num = counts[1].sum().item()
        if counts.min() < 2:
            return None
        mean = sums[1].sum(0) / num
        variance = (self.squares - num * mean.square().sum()).item() / (num - 1)  # summed over the elements
        if not variance > 0:
            return None
        apart = sums[0] / self.counts[0, :, None] - sums[1] / self.counts[1, :, None]
        weight = counts.min(0).values
        products = (apart @ apart.T).cpu() * weight[:, None] * weight / variance
        pairs = weight[:, None] * weight
        # the mean over pairs of different blocks, then with each block left out in turn, for the jackknife
        products, pairs = (x.fill_diagonal_(0.0) for x in (products, pairs))
        whole = products.sum() / pairs.sum()
        without = (products.sum() - 2 * products.sum(1)) / (pairs.sum() - 2 * pairs.sum(1))
        error = ((BLOCKS - 1) * without.var(correction=0)).sqrt()
        # no smaller than the error expected without any shift: the jackknife over 8 blocks is itself imprecise
        error = torch.maximum(error, (2 * (products - whole * pairs).square().sum()).sqrt() / pairs.sum())
        low, value, high = ((whole + side * error).clamp_min(0).sqrt().item() for side in (-2, 0, 2))
        return value, max(high - value, value - low) / 2

    def _saturation(self) -> tuple[float, float] | None:
        if self.saturated is None or self.saturated[0] < LEAST:
            return None
        num, total, squares = self.saturated.tolist()
        return max(0.0, total / num), (max(0.0, squares / num - (total / num) ** 2) / (num - 1)) ** 0.5

    def tensors(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs to report the same figures, as named tensors."""
        found = {name: getattr(self, name) for name in ("within", "sums", "counts", "squares", "saturated")}
        for side, waiting, classes in zip(SIDES, self.waiting, self.classes, strict=True):
            if waiting:
                found |= {f"waiting {side}": torch.cat(waiting), f"classes {side}": torch.cat(classes)}
        found |= {"seen": torch.tensor(self.seen), "data": self.data.sums, "data classes": self.data.classes}
        return {name: x for name, x in found.items() if x is not None}

    def load_tensors(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore the state that `tensors` returned, on `device`; an empty mapping, from a run saved by an older version, resets it."""
        for name in ("within", "sums", "counts", "squares", "saturated"):
            setattr(self, name, tensors[name].to(device) if name in tensors else None)
        for side, waiting, classes in zip(SIDES, self.waiting, self.classes, strict=True):
            waiting[:] = [tensors[f"waiting {side}"].to(device)] if f"waiting {side}" in tensors else []
            classes[:] = [tensors[f"classes {side}"]] if f"classes {side}" in tensors else []
        self.seen = int(tensors["seen"]) if "seen" in tensors else 0
        self.data.sums, self.data.classes = (tensors[name].to(device) if name in tensors else None for name in ("data", "data classes"))
        self.data.num = 0 if self.data.classes is None else int(self.data.classes[:, 0].sum())


class DataLooks:
    """Sums over the real items that a run has seen so far, in all and per class."""

    def __init__(self) -> None:
        self.num = 0
        self.sums: Tensor | None = None  # float64 [2]: sum of the elements, and sum of their squares
        self.classes: Tensor | None = None  # float64 [classes, 1 + D]: number of items of each class, and their sum

    @torch.no_grad()
    def add(self, real: Tensor, label: Tensor | None) -> None:
        """Add items `real` [B, ...] with classes int64 [B] or None to the sums."""
        x = chosen_elements(real, FEW_ELEMENTS).to(wide_type(real))
        sums = torch.stack([x.sum(), x.square().sum()])
        items = torch.nn.functional.pad(x, (1, 0), value=1.0)
        if label is None:
            classes = items.sum(0, keepdim=True)
        else:
            num = max(int(label.max()) + 1, 0 if self.classes is None else len(self.classes))
            classes = torch.nn.functional.one_hot(label, num).to(x).T @ items
        if self.sums is not None and self.classes is not None:
            sums, classes = self.sums + sums, classes + torch.nn.functional.pad(self.classes, (0, 0, 0, len(classes) - len(self.classes)))
        self.sums, self.classes, self.num = sums, classes, self.num + len(x)

    def figures(self, sigma_data: float | None, items: int | None = None) -> dict[str, float]:
        """Return ``health.scale`` if `sigma_data` is given, and ``health.classes`` with an upper bound of its error if there are classes.

        `items` is the number N of items in the data, if it is known. As items then repeat, the mean of n draws has the variance
        ``(1 + (n - 1) / N) / n``, in units of an item's, about the mean of the distribution, and n counts as correspondingly fewer draws.
        """
        if self.sums is None or self.classes is None or self.num < LEAST:
            return {}
        count, sums = self.classes[:, 0], self.classes[:, 1:]
        figures, num, elements, (total, squares) = {}, self.num, sums.shape[1], self.sums.tolist()
        if sigma_data:
            mean = total / num / elements
            figures["health.scale"] = max(0.0, squares / num / elements - mean**2) ** 0.5 / sigma_data
        there = int((count > 0).sum())
        own = num / (1 + (num - 1) / items) if items else num  # effective number of independent items: repeats add nothing
        variance = (squares - sums.sum(0).square().sum().item() / num) / num * own / (own - 1) if own > 1 else 0.0
        error = (2 * (there - 1)) ** 0.5 / own  # where classes explain nothing, and all elements vary as one
        if there > 1 and own > there and variance > 0 and error <= WORTH:
            within = (squares - (sums.square().sum(1) / count.clamp_min(1)).sum().item()) / num * own / (own - there)
            figures |= {"health.classes": 1 - within / variance, "health.classes_error": error}
        return figures


def _share_beyond(x: Tensor, magnitude: float) -> Tensor:
    """Return the share of the elements of each item of `x` [B, ...] that are larger than `magnitude`, or less than minus it: [B]."""
    return (x.abs() > magnitude).flatten(1).to(wide_type(x)).mean(1)


def wide_type(x: Tensor) -> torch.dtype:
    """Return the type in which elements of `x` are summed: float64, or float32 on a device without it (mps)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def chosen_elements(x: Tensor, most: int = ELEMENTS) -> Tensor:
    """Return at most `most` elements of each item of `x` [B, ...], float32 [B, D]; the choice is the same for all items of one shape."""
    flat = x.detach().flatten(1)
    if flat.shape[1] > most:
        order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))[:most]
        flat = flat[:, order.to(x.device)]
    return flat.float()


def _variance_sums(x: Tensor, label: Tensor) -> Tensor:
    """Return float64 [3]: mean square of an element of `x` [N, D] about its class mean, summed over items; freedom; variance of that sum.

    In a class of n items, one item's part ``u`` of the sum is (n - 1) / n V in expectation. The squares of its deviations are weighted by
    n / (n - 1), which makes the variance right for Gaussian items in classes of any size.
    """
    kinds, index, count = label.unique(return_inverse=True, return_counts=True)
    freedom = len(label) - len(kinds)
    if len(kinds) == 1:
        means: Tensor = x.mean(0)
    else:
        member = torch.nn.functional.one_hot(index.to(x.device), len(kinds)).to(x)  # a product: index_add is not deterministic on a GPU
        means = ((member.T @ x) / count.to(x)[:, None])[index.to(x.device)]
    u, size = (y.square().mean(1).to(wide_type(x)) for y in (x - means, x))
    u = u * (u > ROUNDING * size)
    n = count[index].to(u)
    total = u.sum()
    off = (u - total / freedom * (n - 1) / n).square() * n / (n - 1).clamp_min(1)
    return torch.stack([total, torch.full_like(total, freedom), off[n > 1].sum()])


def _dealt(x: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Deal items `x` [N, D] into the blocks in turn, from block `start` on; return their float64 sums [blocks, D] and counts [blocks]."""
    rounds = -(-(start + len(x)) // BLOCKS)
    items = x.new_zeros(rounds * BLOCKS, x.shape[1], dtype=wide_type(x))
    items[start : start + len(x)] = x
    places = torch.arange(rounds * BLOCKS, device=x.device)
    there = ((places >= start) & (places < start + len(x))).to(items)
    return items.view(rounds, BLOCKS, -1).sum(0), there.view(rounds, BLOCKS).sum(0)
