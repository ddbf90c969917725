"""Embed exported generators, which draw in the reader's browser, in the documentation: `fewstep export --format page` in a frame."""

import re
from pathlib import Path

from fewstep.interop.export import export

BLOCK = re.compile(r"<!-- page: (\w+) (\S+) -->")
ROOT = Path(__file__).parents[2]
FOLDER = "live"  # of the site, for exported pages
HEIGHT = 1080  # of a frame, in pixels
_found: dict[str, Path] = {}  # name of an exported page: the run folder it is made of


def block(name: str, place: str) -> str:
    """Return the Markdown for the generator `name` of the run `place`: a frame with its page, or its picture if that run is missing."""
    command, run = f"fewstep export {place} --format page --out {name}", ROOT / place
    if not (run / "model" / "config.json").is_file():
        return (
            f"![The page of the generator {name}: samples, buttons for classes, two noises and a slider](pictures/page_{name}.png)"
            "\n\n*This is a picture of the page, because the run that it is exported from was not at hand when this site was built. "
            f"`{command}` makes the page.*"
        )
    _found[name] = run
    return (
        f'<iframe src="{FOLDER}/{name}/index.html" title="The generator {name}, drawing in your browser" loading="lazy" '
        f'style="width:100%;height:{HEIGHT}px;border:0;border-radius:.3rem"></iframe>\n\n'
        "*The generator runs in your browser, which must get it from a web server: `python -m http.server -d site`. "
        f"`{command}` makes the page.*"
    )


def write(site: Path) -> None:
    """Export each generator that a page has a frame for into the folder of the built `site`."""
    for name, run in _found.items():
        (site / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        export(run, "page", site / FOLDER / name)
