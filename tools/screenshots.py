"""Take the docs' pictures of web pages, exported generators and a run's report, in headless Chromium.

    python tools/screenshots.py runs/demo/student --page digits --report
    python tools/screenshots.py runs/mnist/student --page mnist

Writes docs/pictures/page_NAME.png, the run's generator drawing in its exported page, and docs/pictures/report.png, the top of the run's
report.html in light and in dark colours. onnxruntime-web is downloaded from npm's registry, once. Needs Chromium.
"""

import argparse
import functools
import http.server
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from fewstep.interop.export import export

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "interop"), str(ROOT / "tests" / "viz")]

from browser import CHROMIUM, Browser  # noqa: E402
from web_runtime import web_runtime  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SIZE = (1280, 900)
COLOURS = 256  # of a picture: pages have few, and the file shrinks to a third
WAIT = 60  # seconds that a page has to load and to draw
DRAWN = "document.querySelector('#caption').textContent !== '' && document.querySelectorAll('.stale').length === 0"  # all samples are drawn


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that logs nothing."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve `folder` over HTTP inside the context, and yield its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def shot(browser: Browser, address: str, dark: bool = False, drawn: str = "true") -> Image.Image:
    """Return what the browser shows at `address`, as soon as the JavaScript expression `drawn` holds in the page."""
    browser.open(address, SIZE[0], dark)
    until = time.monotonic() + WAIT
    while not browser.tell(drawn):
        if time.monotonic() > until:
            sys.exit(f"{address} has drawn nothing for {WAIT} s")
        time.sleep(0.1)
    with tempfile.TemporaryDirectory() as folder:
        browser.screenshot(Path(folder) / "shot.png")
        with Image.open(Path(folder) / "shot.png") as picture:
            return picture.convert("RGB").crop((0, 0, min(SIZE[0], picture.width), min(SIZE[1], picture.height)))


def kept(picture: Image.Image, name: str) -> None:
    """Write `picture` into docs/pictures as `name`, in few colours."""
    PICTURES.mkdir(exist_ok=True)
    picture.quantize(COLOURS, kmeans=1, dither=Image.Dither.NONE).save(PICTURES / name, optimize=True)
    print(f"wrote {PICTURES / name}")


def main() -> None:
    """Take the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--page", metavar="NAME", help="draw the run's page, for docs/pictures/page_NAME.png")
    parser.add_argument("--report", action="store_true", help="draw the run's report, for docs/pictures/report.png")
    arguments = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("Chromium is not there; install it (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(Path(folder) / "profile")
        if arguments.page:
            export(arguments.run, "page", Path(folder) / "page", runtime=web_runtime())
            with served(Path(folder) / "page") as address:
                kept(shot(browser, f"{address}/index.html", drawn=DRAWN), f"page_{arguments.page}.png")
        if arguments.report:
            with served(arguments.run) as address:
                both = [shot(browser, f"{address}/report.html", dark) for dark in (False, True)]
            width, height = both[0].size
            beside = Image.new("RGB", (2 * width, height))
            for number, picture in enumerate(both):
                beside.paste(picture, (number * width, 0))
            kept(beside.resize((width, height // 2), Image.Resampling.LANCZOS), "report.png")
        browser.close()


if __name__ == "__main__":
    main()
