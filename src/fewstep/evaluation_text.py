"""Put the results of an evaluation into words: its table, the footnote of the table, and a caption for one row."""

import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fewstep.data.checks import printable
from fewstep.measurement import Row
from fewstep.metrics.figures import FIGURES, Figure
from fewstep.metrics.rows import how_sampled

HALF = "held-out half"  # the name of the floor's row for points whose density is not known


class Results(dict[str, Any]):
    """The results of an evaluation, the content of results.json; a notebook shows them as a table with a footnote."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("\n".join([*aligned(table(self)), footnote(self)]))

    def _repr_html_(self) -> str:
        headings, *rows = table(self)
        lines = [headings, *rows]
        cells = [
            "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in line)
            for kind, line in zip(["th", *["td"] * len(rows)], lines, strict=True)
        ]
        note = escape(footnote(self)).replace("\n", "<br>")
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table><p>{note}</p>"


def aligned(lines: Sequence[Sequence[str]], columns: int = sys.maxsize) -> list[str]:
    """Return the rows of a table as lines of text, with the first column aligned to the left and the others to the right.

    A table that is wider than `columns` characters is broken into parts below each other, each with the first column.
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    parts: list[list[int]] = [[]]
    room = columns - widths[0]
    for i, width in enumerate(widths[1:], start=1):
        if parts[-1] and room < 2 + width:
            parts.append([])
            room = columns - widths[0]
        parts[-1].append(i)
        room -= 2 + width
    text: list[str] = []
    for part in parts:
        text += [""] if text else []
        text += ["  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in part)]).rstrip() for line in lines]
    return text


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of `results` as rows of text, headings first; figures that no row has get no column."""
    rows = results["rows"]
    columns = [figure for figure in FIGURES if figure.is_column and any(figure.key in row for row in rows.values())]
    lines = [["", *(figure.heading for figure in columns)]]
    for name, row in rows.items():
        lines.append([name, *(_cell(row, figure) for figure in columns)])
    return lines


def _cell(row: Row, figure: Figure) -> str:
    """Return the cell for `figure` in `row`, with the name of the class in brackets where the figure is the least over classes."""
    if figure.key not in row:
        return ""
    whose = row.get(f"{figure.key}_of")
    return figure.form.format(row[figure.key]) + (f" ({printable(str(whose))})" if whose is not None else "")


def self_test_line(found: Mapping[str, float]) -> str:
    """Return the result of ``fewstep evaluate --self-test`` as a sentence."""
    return (
        f"self-test: FD of two halves of the real train split, {found['num']:,} images each: {found['frechet']:.3g}, of which "
        f"{found['bias']:.3g} is the bias of so few images (FD of quarters minus FD of halves); the rest, {found['rest']:.2g} +- "
        f"{found['spread']:.2g}, and KID, {found['kernel']:.2g}, are 0 up to chance"
    )


def footnote(results: Mapping[str, Any]) -> str:
    """Return the text below the table of `results`: what its figures are, with n, seeds, features and floor, and all warnings."""
    warnings = [f"warning: {text}" for text in results.get("warnings", ())]
    if "energy" in next(iter(results["rows"].values())):
        floor = "the other half of the held-out points" if results.get("floor_of") == HALF else "another set of exact samples"
        text = (
            f"n = {results['n']:,} samples (seed {results['seed']}) against {results['reference']}; the first row is the floor, "
            f"{floor}. Standard errors are in the JSON file"
        )
        return "\n".join([". ".join([text, *how_sampled(results["rows"])]), *warnings])
    protocol = results.get("protocol", {})
    floor_n, second = protocol.get("floor_n"), protocol.get("second")
    lines = ["The training used these features, so that FD is too low"] * (results.get("trained_in_features") == "evaluator")
    seeds = f"seed {results['seed']}"
    if protocol.get("preset"):
        seeds = f"the least of {len(protocol['seeds'])} blocks, from seeds {', '.join(map(str, protocol['seeds']))}"
    lines.append(
        f"FD: Frechet distance of n = {results['n']:,} samples ({seeds}) to {results['reference']} in the features "
        f"{results['features']}; floor: FD of the {results.get('floor_of', 'real train split')}"
        + (f" ({floor_n:,} random images of it)" if floor_n else "")
        + ("" if results["floor"] is None else f", {results['floor']:.3f}")
    )
    lines += how_sampled(results["rows"])
    if second:
        lines.append(f"2nd judge: FD / floor in the features {second['name']}, of a separately trained network")
    if clip := protocol.get("clip"):
        lines.append(
            f"CLIP: mean cosine similarity to the prompt by {clip['name']}; over another: how far it is above that to the next prompt"
        )
    return "\n".join([". ".join(lines), *warnings])


def in_words(row: Row) -> str:
    """Return the main figures of `row` in words, as a caption of its samples."""
    said = [f"energy distance {row['energy']:.4f}"] if "energy" in row else []
    if "modes" in row:
        said.append(f"{row['modes']:.0f} modes, TV {row['weight_tv']:.3f}, {row['inside']:.1%} inside")
    if "frechet_over_floor" in row:
        said.append(f"Frechet distance {row['frechet_over_floor']:.2f} x the floor")
    if "class_accuracy" in row:
        said.append(f"{row['class_accuracy']:.1%} show the class asked for")
    return ("\n" if "energy" in row else ", ").join(said)
