"""The table of a tiny text-to-image model and its students, which `text_digits.py` has measured."""

from collections.abc import Mapping
from typing import Any

from cells import ranged

COLUMNS = {
    "FD / floor": ("frechet_over_floor", "{:.2f}"),
    "digit asked for": ("class_accuracy", "{:.1%}"),
    "worst digit": ("least_class_accuracy", "{:.0%}"),
    "class std": ("within_class_std", "{:.0%}"),
    "recall": ("recall", "{:.2f}"),
    "bold less thin": ("bold_less_thin", "{:.2f}"),
}


def text_lines(content: Mapping[str, Any]) -> list[list[str]]:
    """Return a line for each title: mean over training seeds and range, memory, minutes of training, and the number of seeds.

    Memory is that of weights, averages, gradients and moments, which does not depend on the batch, and that of activations.
    """
    lines = [["", *COLUMNS, "memory, MB", "minutes", "seeds"]]
    for title in dict.fromkeys(row["title"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["title"] == title]
        cells = [ranged([row[key] for row in rows], form) for key, form in COLUMNS.values()]
        trained = [row["seconds"] / 60 for row in rows if "seconds" in row]
        memory = next((row["memory"] for row in rows if "memory" in row), None)
        held = f"{memory['weights'] / 1e6:.0f} + {memory['activations'] / 1e6:.0f}" if memory else ""
        lines.append([title, *cells, held, ranged(trained, "{:.0f}"), str(len(rows))])
    return lines
