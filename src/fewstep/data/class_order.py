"""Which class has which number: numbers in names as numbers, and the order that a run or a teacher was trained with before any other.

A folder says its classes by names, and their numbers are given here. A network knows only the numbers, so those that it was trained with
stay: labels are renumbered to them, or the data is refused.
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
    """The `names`, each once, in order: by value where all are numbers, else word by word with the digits in them as numbers.

    So 2 comes before 10, and class2 before class10; those that are equal so, such as 1 and 01, are in the order of words.
    """
    once = sorted(set(names))
    if all(NUMBER.fullmatch(name) for name in once):
        return tuple(sorted(once, key=Decimal))
    return tuple(sorted(once, key=_key))


def _key(name: str) -> list[Any]:
    # text and digits in turn; digits by how many there are first, which takes any number of them
    return [(len(part.lstrip("0")), part.lstrip("0")) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))]


def renumbered(labels: Tensor, names: Sequence[str], order: Sequence[str]) -> Tensor:
    """`labels` int64 [N], which number `names`, as they number `order`, a permutation of them."""
    number = {name: k for k, name in enumerate(order)}
    return torch.tensor([number[name] for name in names])[labels]


def in_order_of(data: Any, names: Sequence[str], owner: str) -> Any:
    """`data` with its classes numbered as `names`, which `owner`, such as "the teacher", was trained with.

    It is returned as it is where either has no names, the order is the same, or the names are others. Raises DataError where the names are
    the same in another order, and the data cannot be renumbered.
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
    """What is to be said where the classes of `data` are called otherwise than `names`; None where they are not, or where nobody knows."""
    own = tuple(data.class_names)
    if not own or len(own) != len(names) or sorted(own) == sorted(names) or _are_numbers(own) or _are_numbers(names):
        return None
    return f"{_some(names)} there, {_some(own)} in the data {data.name}"


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether classes have no names but their numbers."""
    return list(names) == [str(k) for k in range(len(names))]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:4])) + (", ..." if len(names) > 4 else "")
