"""Write the facts of an alarm for its section of the troubleshooting page, from the code that raises it and the benchmark's results."""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"


@cache
def found() -> dict[str, Any]:
    """Return the results of `benchmarks/alarms.py`."""
    return json.loads((ROOT / "benchmarks" / "results" / "alarms.json").read_text())


def rules() -> Iterator[tuple[str, str, Any]]:
    """Yield (name, who raises it, rule) of every alarm: first of the alarms of any method, then of each method's own."""
    from fewstep import registry
    from fewstep.training.health import COMMON

    for rule in COMMON:
        yield rule.name, "any method", rule
    for method in registry.BUILT_IN["methods"]:
        for rule in registry.room("methods", method).alarms:
            yield rule.name, f"`{method}`", rule


def names() -> list[str]:
    """Return the names of all alarms."""
    return list(dict.fromkeys(name for name, _, _ in rules()))


def sound(rule: Any) -> str:
    """Return, in words, the range in which the figure of `rule` raises nothing."""
    low, high = rule.low, rule.high
    if math.isinf(low):
        return f"at most {high:g}"
    return f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"


def facts(name: str) -> str:
    """Return, as Markdown, an alarm's figure, its sound range, who raises it, what the benchmark saw, and its picture if there is one.

    Raises ValueError for a name that no alarm has.
    """
    mine = [(whose, rule) for known, whose, rule in rules() if known == name]
    if not mine:
        raise ValueError(f"{name} is no alarm; known are {', '.join(names())}")
    figures = ", ".join(dict.fromkeys(f"`{rule.figure}`" for _, rule in mine))
    whose = " and ".join(dict.fromkeys(whose for whose, _ in mine))
    lines = [f"Raised by {whose}. Figure in `metrics.jsonl`: {figures}; no alarm while it is {sound(mine[0][1])}."]
    lines += [measured(title, row) for title, row in found()["failures"].items() if row["expected"] == name]
    if len(lines) == 1:
        beside = [title for title, row in found()["failures"].items() if name in raised(row)]
        lines.append(
            f"In the benchmark this alarm was raised by failures made to raise another alarm: {', '.join(beside)}."
            if beside
            else "No failure in the benchmark raises this alarm."
        )
    if (PICTURES / f"alarm_{name}.png").is_file():
        lines.append(f"![{name}: the data, and samples of the benchmark's run]({PICTURES.name}/alarm_{name}.png)")
        lines.append("Left: the data; right: samples of that run. The picture is drawn by `python benchmarks/alarm_pictures.py`.")
    return "\n>\n".join(f"> {line}" for line in lines)


def raised(row: dict[str, Any]) -> list[str]:
    """Return the names of the alarms that a failed run raised."""
    return [alarm["alarm"] for alarm in row["before"]["alarms"]]


def measured(title: str, row: dict[str, Any]) -> str:
    """Return a paragraph about one provoked failure: its fault, what was changed, and the figures before and after."""
    first = next(a["first"] for a in row["before"]["alarms"] if a["alarm"] == row["expected"])
    fault = ", ".join(f"`{change}`" for change in row["fault"] if "path" not in change) or f"a teacher of `{row['teacher']}`"
    done = [change for step in row["followed"] for change in step["done"]]
    cure = ", then ".join(f"`{change}`" for change in done if "path" not in change) or "the right labels"
    before, after = figures(row["before"]["figures"]), figures(row["followed"][-1]["figures"])
    fault = fault if "path" not in "".join(row["fault"]) else "labels in another order"
    told = f"In the benchmark `{row['recipe']}` with {fault} raised this alarm at {first:.0%} of the run ({title})."
    return f"{told} The cure: {cure}. Figures before: {before}; after: {after}."


def figures(values: dict[str, float]) -> str:
    """Return the figures of a run in words."""
    forms = {"energy": "energy distance {:.4f}", "frechet_over_floor": "FD / floor {:.2f}", "class_accuracy": "class asked for {:.0%}"}
    return ", ".join(form.format(values[key]) for key, form in forms.items() if key in values)
