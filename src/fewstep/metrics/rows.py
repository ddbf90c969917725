"""The rows of results.json: which is of what. Nothing here imports torch."""

from collections.abc import Mapping
from typing import Any


def row_roles(results: Mapping[str, Any]) -> dict[str, str]:
    """What each row of `results` is of, by its title: "floor", "teacher", "own" (the run's generator) or "beside" (another run's).

    Rows say so themselves; those that version 0.1.0 wrote are told by what else it wrote of them.
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
