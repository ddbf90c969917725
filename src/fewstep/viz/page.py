"""Building blocks of a self-contained HTML page: one file without scripts or external resources, in light or dark by system setting."""

import base64
import html
from collections.abc import Sequence

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1e21;--soft:#5a6068;--rule:#dfe2e6;--panel:#f5f6f8;--grid:#e6e8eb;--edge:#00000026;
--good:#1a6b3c;--bad:#a8281c;
--wait:#6b5300;--line-0:#1f6fb2;--line-1:#c2571a;--line-2:#2f7d4f;--line-3:#8a4fa8;--line-4:#a87b00;--line-5:#b0315f;--line-6:#4a6572;
--line-7:#0f7f86}
@media (prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#e4e6e9;--soft:#a2a9b2;--rule:#33373d;--panel:#1e2125;--grid:#2c3035;
--edge:#ffffff30;--good:#6fcf97;
--bad:#ff8a7a;--wait:#e2bf5a;--line-0:#6db3ee;--line-1:#f09a5f;--line-2:#74c895;--line-3:#c79be0;--line-4:#e0bb4a;--line-5:#f084a8;
--line-6:#a5bcc7;
--line-7:#58c7ce}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:2.5rem 1.25rem 4rem;max-width:66rem;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,
sans-serif}
h1{margin:0;font-size:1.6rem;line-height:1.25;font-weight:650;overflow-wrap:anywhere}
h2{margin:3rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--rule);font-size:1.15rem;font-weight:650}
h3{margin:1.5rem 0 .25rem;font-size:1rem;font-weight:600}
p{margin:.5rem 0;max-width:46rem;overflow-wrap:break-word}
a{color:inherit}
.soft,figcaption,caption,.notes{color:var(--soft);font-size:.9rem;line-height:1.5}
.verdict{margin:1.25rem 0 0;padding-left:.9rem;border-left:.25rem solid var(--soft);max-width:48rem}
.verdict strong{font-weight:650}.good{border-color:var(--good)}.good strong{color:var(--good)}
.bad{border-color:var(--bad)}.bad strong{color:var(--bad)}.wait{border-color:var(--wait)}.wait strong{color:var(--wait)}
.facts{display:flex;flex-wrap:wrap;gap:.75rem 2.25rem;margin:1.5rem 0 0}
.facts div{min-width:0}.facts dt{color:var(--soft);font-size:.8rem}.facts dd{margin:0;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
figure{margin:0;min-width:0}figure img{display:block;max-width:100%}figcaption{margin-top:.5rem;max-width:46rem}
.large{margin-top:1rem}.large img{width:100%;height:auto;border-radius:4px}.pixels img{image-rendering:pixelated}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:2rem 2.5rem;margin-top:1rem}
.curves h3{margin-top:0}svg{display:block;width:100%;height:auto;stroke-linejoin:round;overflow:visible}svg text{font-family:system-ui,
sans-serif}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1.25rem;margin-top:1rem}
.small img{width:100%;height:auto}
.scroll{overflow-x:auto;max-width:100%;background:linear-gradient(90deg,var(--paper) 30%,transparent) 0 0/3rem 100% no-repeat local,
linear-gradient(-90deg,var(--paper) 30%,transparent) 100% 0/3rem 100% no-repeat local,linear-gradient(90deg,var(--edge),
transparent) 0 0/.8rem 100% no-repeat,linear-gradient(-90deg,var(--edge),transparent) 100% 0/.8rem 100% no-repeat}
.scroll:focus-visible{outline:2px solid var(--line-0);outline-offset:2px}
.wide img{min-width:44rem}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;caption-side:top;padding-bottom:.5rem}
td,th{padding:.4rem .55rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap;font-weight:400}
thead th{color:var(--soft);font-size:.85rem;vertical-align:bottom}
td:first-child,th:first-child{text-align:left;padding-left:0}tr.own th,tr.own td{font-weight:650}
.words td,.words th{text-align:left}
.notes{columns:24rem 2;column-gap:2.5rem;margin:.5rem 0 0}.notes div{break-inside:avoid;padding-bottom:.7rem}
.notes dt{color:var(--ink);font-weight:600}.notes dd{margin:0}
.line{display:grid;grid-template-columns:8rem 1fr;gap:.25rem 1rem;align-items:center;margin:.35rem 0}
.track{position:relative;height:1rem;background:var(--panel);border-radius:2px}
.track i{position:absolute;top:0;bottom:0;min-width:4px;background:var(--bad);border-radius:2px}
.track i.early{background:repeating-linear-gradient(135deg,var(--rule) 0 2px,transparent 2px 7px)}
.ends{display:flex;justify-content:space-between}
details{margin:1rem 0}summary{cursor:pointer}
pre{margin:.75rem 0;padding:1rem;background:var(--panel);border-radius:4px;overflow:auto;font:.85rem/1.5 ui-monospace,monospace}
@media (max-width:40rem){body{padding-top:1.5rem}.line{grid-template-columns:1fr}.facts{gap:.75rem 1.5rem}}
@media print{body{max-width:none}.scroll{overflow:visible}}
""".replace("\n", "")


def escaped(text: str) -> str:
    """Return `text` with HTML's special characters escaped, quotation marks included."""
    return html.escape(text)


def page(title: str, parts: Sequence[str]) -> str:
    """Return the text of the HTML file with the title `title` and the HTML of its `parts` in order."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{escaped(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
    )
    return f"{head}<body><main>{''.join(parts)}</main></body></html>\n"


def section(heading: str, body: str, name: str) -> str:
    """Return a section of the page with a heading and the HTML `body`; links reach it by its `name` (``#name``)."""
    return f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{escaped(heading)}</h2>{body}</section>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text, of the CSS class `kind` if one is given."""
    return f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>"


def picture(content: bytes, alt: str, caption: str, kind: str = "", wide: bool = False) -> str:
    """Return a figure with the PNG file `content` embedded; a `wide` one keeps a readable width, and scrolls sideways in a box."""
    image = f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{escaped(alt)}">'
    if wide:
        image = scrolling(image, alt, "wide")
    return f'<figure class="{kind}">{image}<figcaption>{escaped(caption)}</figcaption></figure>'


def scrolling(inner: str, name: str, kind: str = "") -> str:
    """Return a box around the HTML `inner` that scrolls sideways, also by keyboard, where the page is narrower than its contents.

    `name` is its label for screen readers, and `kind` a further CSS class.
    """
    return f'<div class="scroll {kind}" role="region" tabindex="0" aria-label="{escaped(name)}">{inner}</div>'


def table(lines: Sequence[Sequence[str]], name: str, own: Sequence[int] = (), kind: str = "") -> str:
    """Return a table in a scrolling box; the first of `lines` is the headings, and rows whose numbers (from 0) are in `own` are bold."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' if cell else "<td></td>" for cell in lines[0])
    rows = []
    for number, (first, *rest) in enumerate(lines[1:]):
        cells = f'<th scope="row">{escaped(first)}</th>' + "".join(f"<td>{escaped(cell)}</td>" for cell in rest)
        rows.append(f"<tr{' class=own' if number in own else ''}>{cells}</tr>")
    inner = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return scrolling(inner, name)


def notes(items: Sequence[tuple[str, str]]) -> str:
    """Return a list of explanations: a name and a text for each of `items`."""
    inner = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(text)}</dd></div>" for name, text in items)
    return f'<dl class="notes">{inner}</dl>'


def facts(items: Sequence[tuple[str, str]]) -> str:
    """Return a row of short facts: a name and a value for each of `items`."""
    inner = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in items)
    return f'<dl class="facts">{inner}</dl>'


def folded(summary: str, text: str) -> str:
    """Return preformatted `text` that is hidden until the reader unfolds its `summary`."""
    inner = scrolling(f"<pre>{escaped(text)}</pre>", summary)
    return f"<details><summary>{escaped(summary)}</summary>{inner}</details>"
