"""Validation errors as one sentence each: the setting's key, the value given, what is allowed, and the nearest key or name."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from fewstep.sections import Section, section_in

BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")  # pydantic's error types for numbers out of bounds
BOUND_WORDS = {"gt": "greater than", "ge": "greater than or equal to", "lt": "less than", "le": "less than or equal to"}


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the word in `allowed` that is most similar to `word`; "" where none is similar."""
    close = difflib.get_close_matches(word, list(allowed), 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def explain(errors: Iterable[Any], model: type[Section]) -> list[str]:
    """Return a sentence for each of pydantic's `errors` in validating `model`; errors of one union-typed value are merged."""
    found: dict[str, list[str]] = {}
    for error in errors:
        path, sentence, allowed = _explain_one(error, model)
        found.setdefault(path + sentence, []).extend([allowed] * bool(allowed))
    return [sentence + (f"; allowed: {' or '.join(allowed)}" if allowed else "") for sentence, allowed in found.items()]


def _explain_one(error: Any, model: type[Section]) -> tuple[str, str, str]:
    """Return (dotted key, what is wrong, what is allowed) for one of pydantic's errors; the last is "" where nothing is to be added."""
    where, kind = _place([str(part) for part in error["loc"]], model)
    path = ".".join(where).replace(".[", "[") or "recipe"
    what, got, context = error["type"], error.get("input"), error.get("ctx", {})
    if what == "extra_forbidden":
        return path, f" is not a key{_nearest_key(where[-1], kind)} (allowed: {', '.join(kind.model_fields)})", ""
    if what == "missing":
        return path, " is missing; it must be given", ""
    if what == "value_error":
        return path, f": {context['error']}", ""
    if what in ("model_type", "model_attributes_type"):
        return path, f" is {got!r}", "a section with keys of its own"
    message = error["msg"].removeprefix("Input should be ").replace("a valid ", "a ").replace("a integer", "an integer")
    if what in BOUNDS and where[-1] in kind.model_fields:
        limits = kind.model_fields[where[-1]].metadata
        given = [(name, getattr(limit, name)) for limit in limits for name in BOUND_WORDS if hasattr(limit, name)]
        message = " and ".join(f"{BOUND_WORDS[name]} {value}" for name, value in given) or message
    if what == "too_short":
        message = f"at least {context['min_length']} entry"
    return path, f" is {got!r}", message


def _place(loc: list[str], model: type[Section]) -> tuple[list[str], type[Section]]:
    """Return the path of an error, in keys and list indices such as ``[2]``, and the section class that its last key belongs to."""
    where, kind = [], model
    for number, part in enumerate(loc):
        where.append(part)
        if part not in kind.model_fields:
            break
        inner = section_in(kind.model_fields[part].annotation)
        if inner is None:  # the remaining parts are list indices, and pydantic's names for the members of a union
            where += [f"[{rest}]" for rest in loc[number + 1 :] if rest.isdigit()]
            break
        if number + 1 < len(loc):
            kind = inner
    return where, kind


def _nearest_key(word: str, kind: type[Section]) -> str:
    """Return ``; did you mean 'x'?`` for the key of `kind`, or of a section inside it, most similar to `word`; "" where none is similar."""
    inside = {path.rpartition(".")[2]: path for path in _paths(kind)}
    close = difflib.get_close_matches(word, list(inside), 1, 0.5)
    return f"; did you mean {inside[close[0]]!r}?" if close else ""


def _paths(kind: type[Section], before: str = "") -> Iterator[str]:
    """Yield the dotted keys of `kind`, those of nested sections first, so that among equal last parts an outer key wins."""
    for key, field in kind.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None and before.count(".") < 1:
            yield from _paths(inner, f"{before}{key}.")
        yield f"{before}{key}"
