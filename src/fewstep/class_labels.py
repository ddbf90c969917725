"""Read the classes that a user asks for, by number or by name, and print them as ``number = name``.

A whole number is always the number of a class, counted from 0, even where the classes have numbers as names: of classes named 1, 2 and 10,
``2`` means the third, whose name is 10.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fewstep.data.checks import printable
from fewstep.errors import UserError

Labels = int | str | Sequence[int | str] | Tensor | None

SHOWN = 12
NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")


def split_labels(text: str, names: Sequence[str]) -> list[int | str]:
    """Return the classes in a `text` such as ``3,cat``: whole numbers as int, and all other words as str; names may contain commas.

    Raises UserError where nothing stands between two commas.
    """
    parts, found = text.split(","), list[int | str]()
    while parts:
        # take as many parts as make up the longest known name that begins at this part
        several = next((k for k in range(len(parts), 1, -1) if ",".join(parts[:k]).strip() in names), 1)
        word, parts = ",".join(parts[:several]).strip(), parts[several:]
        if not word:
            raise UserError(f"--labels is {text!r}; give numbers or names of classes with commas between, such as 0,1,2")
        found.append(int(word) if NUMBER.fullmatch(word) and len(word) < 1000 else word)
    return found


def label_tensor(labels: Labels, names: Sequence[str], num_classes: int) -> Tensor:
    """Return the numbers int64 [N] of the classes in `labels`, each given as a number or as one of `names`.

    Raises UserError for a label that is not a class.
    """
    if isinstance(labels, str):
        labels = [labels]
    if isinstance(labels, Sequence):
        labels = [_number(one, names, num_classes) if isinstance(one, str) else one for one in labels]
    allowed = f"whole numbers from 0 to {num_classes - 1}"
    try:
        wanted = torch.as_tensor(labels).flatten()
    except (OverflowError, RuntimeError, TypeError, ValueError):  # not convertible to a tensor
        raise UserError(f"labels are {labels!r:.100}; allowed are {allowed}") from None
    if wanted.is_floating_point() or not len(wanted):
        raise UserError(f"labels are {wanted.tolist()}; allowed are {allowed}")
    if wanted.min() < 0 or wanted.max() >= num_classes:
        raise UserError(f"labels are {wanted.tolist()}; allowed are {allowed}{_misread(wanted.tolist(), names)}")
    return wanted.long()


def repeated_labels(num: int, labels: Labels, names: Sequence[str], num_classes: int, first: int) -> Tensor:
    """Return labels int64 [num] for the samples from number `first` on: `labels` repeated to length, or for None all classes in turn.

    Raises UserError as `label_tensor` does.
    """
    places = torch.arange(first, first + num)
    if labels is None:
        return places % num_classes
    wanted = label_tensor(labels, names, num_classes)
    return wanted[places % len(wanted)]


def _number(name: str, names: Sequence[str], num_classes: int) -> int:
    """Return the number of the class called `name`. Raises UserError where no class has this name, or several have it."""
    numbers = [k for k, known in enumerate(names) if known == name]
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        raise UserError(f"labels name {name!r}, which is the name of classes {', '.join(map(str, numbers))}; give the number of one")
    allowed = f"whole numbers from 0 to {num_classes - 1}"
    if not names:
        raise UserError(f"labels name {name!r}, but this generator does not know what its classes are called; give {allowed}")
    close = difflib.get_close_matches(name, names, 1, 0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"labels name {name!r}, which is no class{meant}; allowed are {allowed}, and the names in {told(names, range(num_classes))}"
    )


def _misread(numbers: Iterable[int], names: Sequence[str]) -> str:
    """Return a hint for an error message where a label in `numbers` is out of range but is the name of a class; else ""."""
    wrong = next((str(number) for number in numbers if not 0 <= number < len(names) and str(number) in names), None)
    if wrong is None:
        return ""
    return f"; a whole number is the number of a class, and the class that is called {wrong} has the number {list(names).index(wrong)}"


def told(names: Sequence[str], numbers: Iterable[int]) -> str:
    """Return text such as ``0 = cat, 1 = dog`` for `numbers`, each once and at most `SHOWN` of them; "" where classes have no names."""
    once = [number for number in dict.fromkeys(numbers) if number < len(names)]
    more = f", and {len(once) - SHOWN} more" if len(once) > SHOWN else ""
    return ", ".join(f"{number} = {printable(names[number])}" for number in once[:SHOWN]) + more
