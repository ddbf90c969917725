"""Follow the documentation as a newcomer would, from nothing to a one-step generator of one's own images, in a fresh environment.

    python tools/stranger.py                       in a temporary folder; some minutes, and 2 GB of disk
    python tools/stranger.py --folder /tmp/walk --steps 2000

What is committed is copied out and installed by the block "CPU" of docs/start.md in an environment of its own. Then the commands of
docs/howto/images.md are run from top to bottom with a folder of images that is written here: real digits of three classes in coloured ink.
Only what a page gives as an example is replaced (the class, the number of steps), and every line of output that the page shows has to
appear. Ends with an error at the first command that fails, or whose output lacks such a line.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from doc_blocks import Block, blocks  # noqa: E402

CLASSES = {0: "zero", 3: "three", 7: "seven"}
# example on the page -> what takes its place here
PUT = {"--labels cat": "--labels seven", "cats.png": "sevens.png"}
IMAGES = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

found, (folder, *classes) = load_digits(), sys.argv[1:]
rng = np.random.default_rng(0)
for pair in classes:
    number, name = pair.split("=")
    place = Path(folder, name)
    place.mkdir(parents=True)
    for i, image in enumerate(found.images[found.target == int(number)]):
        ink = rng.uniform(0.3, 1.0, 3)
        Image.fromarray((image[..., None] / 16 * ink * 255).round().astype(np.uint8)).save(place / f"{i}.png")
"""


def called(command: str, folder: Path) -> str:
    """Run `command` in `folder`, inside its environment once there is one, and return the output. Exits if the command fails."""
    inside = ". .venv/bin/activate && " if (folder / ".venv" / "bin" / "activate").exists() else ""
    print(f"$ {command}", flush=True)
    began = time.monotonic()
    done = subprocess.run(["bash", "-c", inside + command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{command}: failed")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return done.stdout + done.stderr


def calls(block: Block) -> list[tuple[str, list[str]]]:
    """Return each command of a console block, with the lines of output that the block shows for it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.lines:
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line:
            found[-1][1].append(line)
    return found


def said(line: str, text: str) -> bool:
    """Whether `text` contains `line`, however a terminal has wrapped it."""
    return " ".join(line.split()) in " ".join(text.split())


def main() -> None:
    """Copy the revision, install it, and run the commands of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder to work in, empty or new; default a temporary one")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the teacher; its student has half")
    parser.add_argument("--revision", default="HEAD", help="revision of git that is copied out")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="stranger-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty; name another folder")
    began = time.monotonic()
    called(f"git -C {ROOT} archive {arguments.revision} | tar x -C {folder}", folder)
    install = next(
        block for block in blocks(folder / "docs" / "start.md") if "pip install -c constraints.txt -e ." in "\n".join(block.lines)
    )
    for command, _ in calls(install):
        called(command, folder)
    print(called("fewstep --version", folder).strip())
    (folder / "write_images.py").write_text(IMAGES)
    called("python write_images.py path/to/images " + " ".join(f"{number}={name}" for number, name in CLASSES.items()), folder)
    for block in blocks(folder / "docs" / "howto" / "images.md"):
        if block.language != "console" or block.note:
            continue
        for command, shown in calls(block):
            for example, ours in PUT.items():
                command = command.replace(example, ours)
            if re.match(r"fewstep train (?!.*--dry-run)", command):
                command += f" steps={arguments.steps // (1 if 'teacher/' in command else 2)}"
            text = called(command, folder)
            for line in shown:
                for example, ours in PUT.items():
                    line = line.replace(example, ours)
                if not said(line, text):
                    sys.exit(f"{text}\n{command}: did not say {line!r}")
            if " evaluate " in command:
                print(text)
    minutes, student = (time.monotonic() - began) / 60, folder / "runs" / "student"
    print(f"a one-step generator of one's own images, from nothing, in {minutes:.1f} minutes: {student}")


if __name__ == "__main__":
    main()
