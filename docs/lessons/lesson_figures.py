"""What the lessons have in common: the size and colours of figures, how they become a part of a page, and a small training.

A block of code on a page says ``from lesson_figures import card, figure``, draws with matplotlib on what `figure` gives, and prints what
`card` makes of it. mkdocs finds this module because it is one of its hooks (``hooks: [docs/lessons/lesson_figures.py]``), and
`tests/test_lessons.py` puts this folder on the path. The colours are the dashboard's, which people who are colour-blind can tell apart.
"""

import html
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib import rcParams
from matplotlib.figure import Figure
from torch import Tensor, nn

from fewstep.viz.dashboard.scene import BLUE, GRID, INK, MODES, ORANGE, SOFT

__all__ = ["BLUE", "GREEN", "GREY", "GRID", "INK", "MODES", "ORANGE", "PINK", "SOFT", "card", "figure", "minimise"]
GREEN, PINK, GREY = MODES[2], MODES[3], "#c4c4c4"
WIDTH = 7.6  # inches, about what a page of text is wide; text of 9 points then is as large as the page's small print
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",  # the same on every machine, and not found by a page's search
}
CARD = "background:#fff;border-radius:.3rem;box-shadow:0 0 0 1px #8883;padding:.5rem;overflow-x:auto"
CAPTION = "font-style:normal;text-align:left;max-width:none;margin:.5rem 0 0"


def on_config(config: Any) -> None:
    """As a hook of mkdocs: the blocks of a page find this module, and small networks are not slowed down by a second thread."""
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)


def minimise(loss: Callable[[], Tensor], network: nn.Module, steps: int, rate: float) -> None:
    """Train a small `network` on a `loss` that draws its own batch, with Adam and a `rate` that falls to 0 as half a cosine."""
    optimizer = torch.optim.Adam(network.parameters(), rate, fused=True)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        falling.step()
    network.requires_grad_(False)


def figure(claim: str, columns: int = 1, rows: int = 1, height: float = 2.9, **settings: Any) -> tuple[Figure, Any]:
    """A figure on white with `claim` as its title, and its axes: one, or an array of them; `settings` are those of `Figure.subplots`."""
    rcParams.update(STYLE)
    fig = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    fig.suptitle(claim, x=0.01, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    return fig, fig.subplots(rows, columns, **settings)


def card(fig: Figure, caption: str) -> str:
    """HTML of `fig`, an SVG on a white card, with `caption` (HTML) below it: what to see, with the numbers that the block worked out."""
    claim = " ".join(fig.get_suptitle().split())
    prefix = re.sub(r"\W+", "-", claim.lower())[:40]
    buffer = io.StringIO()
    rcParams["svg.hashsalt"] = prefix
    fig.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # several figures stand in one page: names inside each are its own
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    label = html.escape(claim, quote=True)
    size = 'style="width:100%;min-width:32rem;height:auto;display:block"'
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', rf'<svg role="img" aria-label="{label}" {size} \1\2', svg, count=1)
    body = f'<div style="{CARD}">{svg}</div>'
    return f'<figure style="width:100%;margin:.5rem 0">{body}<figcaption style="{CAPTION}">{caption}</figcaption></figure>'
