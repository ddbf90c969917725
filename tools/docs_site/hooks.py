"""Hooks of mkdocs: they add pages that are made from the code, and write each page's Markdown beside it, and `llms.txt`.

    make docs        # or: mkdocs build --strict

Blocks of a page that are filled here: ``<!-- recipes -->`` (the gallery), ``<!-- page: NAME RUN -->`` (a generator that draws in the
browser if its run folder RUN exists, else its picture) and ``<!-- alarm: NAME -->`` (the facts of an alarm). Tables of measurements are
filled in the files themselves by `benchmarks/tables.py`.
"""

import re
from pathlib import Path
from typing import Any

import api
import commands
import gallery
import pages
import settings
from mkdocs.structure.files import File

import alarms

ROOT = Path(__file__).parents[2]
NOTE = re.compile(r"^(\s*```\w+) not run: .*$", re.M)
ALARM = re.compile(r"<!-- alarm: ([\w -]+) -->")
CONTRIBUTING = "contributing.md"
RANGE = re.compile(r" (\([^()|]* to [^()|]*\))(?= \|| at)")  # the range behind a mean, in a cell of a table

_plain: dict[str, tuple[str, str]] = {}  # path of a page: its title, its Markdown


def generated() -> dict[str, str]:
    """Return the path of each page that is made when the site is built, and its Markdown."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
    return {**settings.pages(), **api.pages(), "reference/cli.md": commands.page(), CONTRIBUTING: contributing}


def filled(text: str) -> str:
    """Return the Markdown of a page with its blocks filled, and without what is meant for readers on GitHub only."""
    text = ALARM.sub(lambda match: alarms.facts(match[1]), text)
    if "<!-- recipes -->" in text:
        text = text.replace("<!-- recipes -->", gallery.entries())
    text = pages.BLOCK.sub(lambda match: pages.block(match[1], match[2]), text)
    text = NOTE.sub(r"\1", text)
    return text.replace("](../CONTRIBUTING.md)", f"]({CONTRIBUTING})")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the blocks of a page, and store its Markdown; in tables the range of a figure goes on a line of its own."""
    text = filled(markdown)
    _plain[page.file.src_uri] = (page.title or "", api.written_out(text))
    lines = (RANGE.sub(r'<br><span class="range">\1</span>', line) if line.startswith("|") else line for line in text.split("\n"))
    return "\n".join(lines)


def on_post_build(config: Any) -> None:
    """Write the Markdown of each page beside it, and `llms.txt`, which lists them in the order of the navigation."""
    site = Path(config.site_dir)
    pages.write(site)
    for path, (_, text) in _plain.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", "", "Every page of the documentation as Markdown:", ""]
    lines += listed(config.nav, 2)
    (site / "llms.txt").write_text("\n".join(lines) + "\n")


def listed(nav: Any, level: int) -> list[str]:
    """Return the lines of `llms.txt` for a part of the navigation: its pages, with headings for its sections."""
    lines: list[str] = []
    for item in nav:
        ((title, below),) = item.items() if isinstance(item, dict) else ((None, item),)
        if isinstance(below, list):
            lines += ["", f"{'#' * level} {title}", "", *listed(below, level + 1)]
        elif below in _plain:
            lines.append(f"- [{title or _plain[below][0]}]({below})")
    return lines
