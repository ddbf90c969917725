"""One HTML file that shows a run: numbers, curves, samples over time, alarms, recipe. It opens anywhere, without a network."""

import base64
import html
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.files import replace_file
from fewstep.metrics.figures import FIGURES
from fewstep.viz.plots import curves

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.25rem .7rem;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%;margin:.3rem 0}figure{display:inline-block;margin:.4rem}"
    "figcaption{font-size:.85rem;color:#444}pre{background:#f4f4f4;padding:1rem;overflow:auto}.alarm{color:#a00000}"
)


def _picture(content: bytes, caption: str) -> str:
    source, text = f"data:image/png;base64,{base64.b64encode(content).decode()}", html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def html_table(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first of `lines` holds its headings."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def write_report(
    path: Path,
    title: str,
    records: Sequence[dict[str, Any]],
    pictures: Sequence[Path],
    results: Sequence[Sequence[str]],
    recipe: str,
    drawn: Mapping[str, Sequence[str]],
    logarithmic: Collection[str] = (),
) -> None:
    """Write the report of a run to `path`.

    `records` are the lines of metrics.jsonl, `pictures` its sample grids in order, `results` the evaluation's table or empty,
    `recipe` the text of recipe.yaml. `drawn` are families of the method's terms by heading, those in `logarithmic` on a log scale.
    """
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    parts = [head + f"<h1>{html.escape(title)}</h1>"]
    raised: dict[str, list[int]] = {}
    for record in records:
        for name in record.get("alarms", []):
            raised.setdefault(name, []).append(record["step"])
    if raised:
        text = "; ".join(f"{name} (steps {steps[0]} to {steps[-1]})" for name, steps in raised.items())
        parts.append(f"<p class=alarm>Alarms: {html.escape(text)}</p>")
    else:
        parts.append("<p>No alarms were raised.</p>")
    if results:
        parts.append("<h2>Measured</h2>" + html_table(results))
    if records:
        names = {name for record in records for name in record}
        last = records[-1]
        parts.append(f"<h2>Training</h2><p>Step {last['step']:,}, {last['seconds']:,.0f} s, {last['images_seen']:,} images seen.</p>")
        families = {
            **drawn,
            "measured": tuple(figure.key for figure in FIGURES if figure.is_curve),
            "gradient norms": ("grad_norm",),
            "health": ("spread", "shift", "saturation"),
        }
        for family, suffixes in families.items():
            chosen = sorted(name for name in names if name.split(".")[-1] in suffixes)
            if chosen:
                parts.append(
                    _picture(
                        curves(
                            records,
                            chosen,
                            family,
                            log=family == "gradient norms" or family in logarithmic,
                        ),
                        family,
                    )
                )
    if pictures:
        parts.append("<h2>Samples</h2>" + "".join(_picture(picture.read_bytes(), picture.stem.replace("_", " ")) for picture in pictures))
    parts.append(f"<h2>Recipe</h2><pre>{html.escape(recipe)}</pre>")
    if records:
        parts.append(f"<h2>Last record</h2><pre>{html.escape(json.dumps(records[-1], indent=1))}</pre>")
    replace_file(path, ("".join(parts) + "</html>").encode())
