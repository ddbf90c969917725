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
    """Return a phrase for each of `rows`, by title, whose samples were drawn with guidance, or with a churn that was asked for."""
    found = []
    for title, row in rows.items():
        if "guidance_scale" in row:
            found.append(f"{title}: with guidance scale {row['guidance_scale']:g}, which doubles the evaluations of every step")
        if "churn" in row:
            found.append(f"{title}: with churn {row['churn']:g}, new noise in each step, in place of the generator's own")
    return found
