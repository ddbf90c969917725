"""The numbers of classes: numeric names sort by value, and the order with which a run or a teacher was trained takes precedence.

A folder names its classes, and their numbers are assigned here. A network knows classes by number only, so the numbers with which it was
trained are kept: labels are renumbered to match them, or the data is refused.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from fewstep.data.checks import printable
from fewstep.data.errors import DataError
from fewstep.data.images import ImageData

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the different `names` in order: by value if all are numbers, else alphabetically, with the digits in them as numbers.

    So 2 comes before 10, and class2 before class10; names that compare as equal, such as 1 and 01, are in alphabetical order.
    """
    once = sorted(set(names))
    if all(NUMBER.fullmatch(name) for name in once):
        return tuple(sorted(once, key=Decimal))
    return tuple(sorted(once, key=_key))


def _key(name: str) -> list[Any]:
    # text and digits alternate; digits compare by their count first, then as text, so that numbers may be of any length
    return [(len(part.lstrip("0")), part.lstrip("0")) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))]


def renumbered(labels: Tensor, names: Sequence[str], order: Sequence[str]) -> Tensor:
    """Return `labels` int64 [N], which are indices into `names`, as indices into `order`, a permutation of `names`."""
    number = {name: k for k, name in enumerate(order)}
    return torch.tensor([number[name] for name in names])[labels]


def in_order_of(data: Any, names: Sequence[str], owner: str) -> Any:
    """Return `data` with its classes numbered as `names`, in the order with which `owner`, such as "the teacher", was trained.

    `data` is returned unchanged if the order is the same already, if either side has no class names, or if the names differ. Raises
    DataError if the names are the same in another order and the data cannot be renumbered.
    """
    own = tuple(data.class_names)
    if own == tuple(names) or sorted(own) != sorted(names):
        return data
    if len(set(own)) < len(own) or not isinstance(data, ImageData):
        raise DataError(
            f"{owner} has the classes in the order {_some(names)}, and the data {data.name} in the order {_some(own)}: labels would change "
            "their meaning; give the data's classes in that order"
        )
    parts = [None if one is None else renumbered(one, own, names) for one in (data.train_label, data.heldout_label)]
    return replace(data, train_label=parts[0], heldout_label=parts[1], class_names=tuple(names))


def other_names(data: Any, names: Sequence[str]) -> str | None:
    """Return a phrase that shows `names` and the class names of `data`, if they differ; else None.

    None is also returned if they cannot be compared: if one side has only numbers for names, or if the numbers of classes differ.
    """
    own = tuple(data.class_names)
    if not own or len(own) != len(names) or sorted(own) == sorted(names) or _are_numbers(own) or _are_numbers(names):
        return None
    return f"{_some(names)} there, {_some(own)} in the data {data.name}"


def _are_numbers(names: Sequence[str]) -> bool:
    """Return whether classes are named by their numbers alone."""
    return list(names) == [str(k) for k in range(len(names))]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:4])) + (", ..." if len(names) > 4 else "")
