"""The rows of results.json: what each was measured on. Nothing here imports torch."""

from collections.abc import Mapping
from typing import Any


def row_roles(results: Mapping[str, Any]) -> dict[str, str]:
    """Return by title what each row of `results` was measured on: "floor", "teacher", "own" (the run's generator) or "beside" (another's).

    A row has it under the key ``role``; rows of version 0.1.0, which have no such key, are told apart by other keys and titles.
    """

    def role(title: str, row: Mapping[str, Any]) -> str:
        if "role" in row:
            return str(row["role"])
        if "run" in row:
            return "beside"
        if title == results.get("floor_of", "real train split"):
            return "floor"
        return "teacher" if title.startswith("teacher, ") and any(other.startswith("student, ") for other in results["rows"]) else "own"

    return {title: role(title, row) for title, row in results["rows"].items()}


def how_sampled(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a phrase for each guidance, for each churn and for each seed that is named, with the titles of the `rows` drawn with it."""
    found: dict[str, list[str]] = {}
    for title, row in rows.items():
        if "guidance_scale" in row:
            how = f"with guidance scale {row['guidance_scale']:g}, which doubles the evaluations of every step"
            found.setdefault(how, []).append(title)
        if "churn" in row:
            found.setdefault(f"with churn {row['churn']:g}, new noise in each step, in place of the generator's own", []).append(title)
        if "seed" in row:
            found.setdefault(f"drawn with seed {row['seed']}", []).append(title)
    return [f"{'; '.join(titles)}: {how}" for how, titles in found.items()]


def is_sampled_as(row: Mapping[str, Any], steps: int, guidance_scale: float, churn: float) -> bool:
    """Return whether the samples of `row` were drawn as a generator with these defaults draws them. Rows of older versions name no steps.

    A row names no guidance where there was none, and no churn where it was the generator's own.
    """
    return bool(row.get("steps", steps) == steps and row.get("guidance_scale", 1.0) == guidance_scale and row.get("churn", churn) == churn)
