"""Curves of a run over its steps, as SVG that stands in a page: written by hand, for a plotting library takes half a second for each."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# in the units of the drawing, of which a page of one column shows about one a pixel
WIDTH, PLOT, LEFT, RIGHT, BELOW = 374.0, 150.0, 44.0, 8.0, 30.0
SIZE, LETTER, ROW = 9.0, 5.2, 13.0  # of text: its size, what a letter takes at most, and from line to line
COLOURS = 8  # that the page knows
TICKS = 5  # about so many on an axis
MOST = 1e100  # no figure that is told from infinity

Points = list[list[tuple[float, float]]]


def curves(records: Sequence[Mapping[str, Any]], names: Sequence[str], log: bool = False) -> str:
    """An SVG element of the named figures of `records` (lines of metrics.jsonl) over steps, to stand in a page.

    Text has the page's font and colour; the lines and the grid have the page's variables ``--line-0`` to ``--line-7`` and ``--grid``.
    What is not finite, and for `log` what is not above 0, leaves a gap.
    """
    lines = [_pieces(records, name, log) for name in names]
    points = [point for pieces in lines for piece in pieces for point in piece]
    places, rows = _legend(names)
    top = rows * ROW + 4
    low, high = _range([y for _, y in points], log)
    first, last = _range([x for x, _ in points], False)
    across = _scale(first, last, LEFT + 4, WIDTH - RIGHT, False)
    up = _scale(low, high, top + PLOT, top, log)
    floor = top + PLOT + 4
    drawn = [f'<svg viewBox="0 0 {WIDTH:g} {top + PLOT + BELOW:g}" font-size="{SIZE:g}" fill="currentColor">']
    levels, steps = _ticks(low, high, log), _ticks(first, last, False, whole=True)
    grid = [f"M{LEFT:g} {up(y):.1f}H{WIDTH - RIGHT:g}" for y in levels] + [f"M{across(x):.1f} {top:g}V{floor:g}" for x in steps]
    drawn.append(f'<path d="{"".join(grid)}" style="fill:none;stroke:var(--grid);stroke-width:.7"/>')
    drawn.append(f'<path d="M{LEFT:g} {top:g}V{floor:g}H{WIDTH - RIGHT:g}" style="fill:none;stroke:currentColor;stroke-width:.8"/>')
    drawn += [_text(LEFT - 5, up(y) + 0.35 * SIZE, _number(y), "end") for y in levels]
    drawn += [_text(across(x), floor + 1.2 * SIZE, f"{x:,.0f}", "middle") for x in steps]
    drawn.append(_text((LEFT + WIDTH - RIGHT) / 2, floor + 2.5 * SIZE, "step", "middle"))
    for number, (name, pieces, (x, row)) in enumerate(zip(names, lines, places, strict=True)):
        dashed = ";stroke-dasharray:5 2.5" * (number // COLOURS % 2)
        style = f"fill:none;stroke:var(--line-{number % COLOURS});stroke-linecap:round{dashed}"
        placed = [[f"{across(step):.1f} {up(y):.1f}" for step, y in piece] for piece in pieces]
        way = "".join("M" + "L".join(piece) for piece in placed if len(piece) > 1)
        dots = "".join(f"M{piece[0]}l0 0" for piece in placed if len(piece) == 1)  # of which round ends make a dot
        height = (row + 0.7) * ROW
        drawn += [f'<path d="{d}" style="{style};stroke-width:{w}"/>' for d, w in ((way, 1.6), (dots, 4)) if d]
        drawn.append(f'<path d="M{x:g} {height - 3:.1f}h14" style="{style};stroke-width:1.6"/>')
        drawn.append(_text(x + 18, height, name))
    return "".join(drawn) + "</svg>"


def _pieces(records: Sequence[Mapping[str, Any]], name: str, log: bool) -> Points:
    """The figure over steps, in pieces between the gaps; records that do not have it are no gap."""
    pieces: Points = [[]]
    for record in records:
        value = record.get(name)
        if not isinstance(value, int | float):
            continue
        if abs(value) < MOST and (value > 1 / MOST or not log):
            pieces[-1].append((float(record["step"]), float(value)))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    """A little more than `values` take; more than nothing, also where they are all the same, or none."""
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    if log:
        margin = (high / low) ** 0.05 if high > low * (1 + 1e-9) else 2.0
        return low / margin, high * margin
    margin = 0.05 * (high - low) if high - low > 1e-9 * max(abs(low), abs(high)) else 0.5 * abs(high) or 0.5
    return low - margin, high + margin


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Callable[[float], float]:
    """Where a value stands between `start`, the place of `low`, and `end`."""
    if log:
        below, above = math.log(low), math.log(high)
        return lambda value: start + (end - start) * (math.log(value) - below) / (above - below)
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _ticks(low: float, high: float, log: bool, whole: bool = False) -> list[float]:
    """Round values between `low` and `high`, in even steps or in decades; of whole numbers only, if they are `whole`."""
    if log:
        decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        if len(decades) > 2:
            return [10.0**k for k in decades[:: -(-len(decades) // (TICKS + 1))]]
        parts = [m * 10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
        inside = [value for value in parts if low <= value <= high]
        if len(inside) > 1:
            return inside
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next((m * size for m in (1, 2, 2.5, 5) if m * size >= rough), 10 * size)
    step = max(1.0, float(math.ceil(step))) if whole else step
    found = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [value for value in found if value >= 0] if whole else found


def _legend(names: Sequence[str]) -> tuple[list[tuple[float, int]], int]:
    """Where each name's line begins, (x, row), in rows from left to right; and how many rows there are."""
    places, x, row = [], LEFT, 0
    for name in names:
        width = 18 + LETTER * len(name) + 10
        if x > LEFT and x + width > WIDTH:
            x, row = LEFT, row + 1
        places.append((x, row))
        x += width
    return places, row + 1


def _number(value: float) -> str:
    return f"{value:.4g}" if value else "0"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
