"""Holding out a part of a data set that has a single split, and a fraction to suggest where the requested one cannot split it."""

from collections.abc import Callable, Iterator

from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.images import stratified_split

USUAL = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.05, 0.02, 0.01, 0.6, 0.7, 0.75, 0.8, 0.9)


def fitting(asked: float, num: int, fits: Callable[[float], bool]) -> float | None:
    """Return a fraction of `num` items, near `asked`, for which `fits` is true; None if there is none.

    Usual fractions, such as 0.1 or 0.25, are tried before others, which have the fewest digits possible.
    """
    usual = sorted(USUAL, key=lambda value: abs(value - asked))
    return next((value for value in (*usual, *_fractions(asked, num)) if 0 < value < 1 and fits(value)), None)


def _fractions(asked: float, num: int) -> Iterator[float]:
    """Yield every fraction k / num, the nearest to `asked` first, each with the fewest digits that still give k items."""
    for k in sorted(range(1, num), key=lambda k: abs(k / num - asked)):
        # if value * num lies between k - 1/2 and k, it becomes k both by rounding and by rounding up
        yield next(value for digits in range(1, 17) if k - 0.5 < (value := round((k - 0.25) / num, digits)) * num < k)


def advice(value: float | None, key: str = "data.holdout") -> str:
    """Return advice for a fraction that cannot split the data: set `key` to `value`, which can, or add items if `value` is None."""
    return "add items" if value is None else f"{key}={value:.15g} would do"


def hold_out(source: str, num: int, labels: Tensor | None, names: tuple[str, ...], holdout: float) -> tuple[Tensor, Tensor, str]:
    """Return the indices of training and held-out images, and how they were chosen, of `num` images with `labels` int64 [num].

    With labels, which number the classes `names`, the split is stratified, and each class keeps at least one training image. Raises
    DataError if a class has fewer than two images, or if `holdout` leaves too few images to one part, naming a fraction that works.
    """
    counts = None if labels is None else labels.bincount(minlength=len(names))
    if counts is not None and int(counts.min()) < 2:
        few = [names[k] for k in (counts < 2).nonzero()[:, 0].tolist()]
        some = ", ".join(few[:3]) + (f" and {len(few) - 3} more" if len(few) > 3 else "")
        raise DataError(
            f"{source}, with {num} images and {int(counts.min())} in its smallest class; at least 2 are needed, one to train on and one to "
            f"hold out, and class{'es' * (len(few) > 1)} {some} {'have' if len(few) > 1 else 'has'} fewer: add images, take "
            f"{'these classes' if len(few) > 1 else 'this class'} out, or set data.label_column: none"
        )
    if num < 2:
        raise DataError(f"{source}, with {num} image; at least 2 are needed, one to train on and one to hold out: add images")

    def split(fraction: float) -> tuple[Tensor, Tensor] | str:
        """Return the indices of both parts, or why `fraction` cannot make them."""
        try:
            keep, out = stratified_split(None if labels is None else labels.numpy(), num, fraction)
        except ValueError:
            least = "an image" if labels is None else "as many images as there are classes"
            return f"leaves too few on one side, where each part needs {least}"
        if labels is not None:
            gone = (labels[keep].bincount(minlength=len(names)) == 0).nonzero()[:, 0].tolist()
            if gone:
                return f"leaves the class {names[gone[0]]} no image to train on"
        return keep, out

    made = split(holdout)
    if isinstance(made, str):
        classes = f" of {len(names)} classes" if labels is not None else ""
        value = fitting(holdout, num, lambda fraction: not isinstance(split(fraction), str))
        raise DataError(
            f"data.holdout is {holdout}, which cannot split the {num} images{classes} of {source.removeprefix('data.path is ')}: it "
            f"{made}; {advice(value)}"
        )
    stratified = ", in equal shares of each class" if labels is not None else ""
    return *made, f"the fraction {holdout:.15g} of the images (data.holdout), at random by seed 0{stratified}"


def count_fitting(asked: float, num: int, least: int) -> float | None:
    """Return a fraction near `asked` that, rounded to items, puts at least `least` of `num` items into each part; None if there is none."""
    return fitting(asked, num, lambda fraction: least <= round(fraction * num) <= num - least)
