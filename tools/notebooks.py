"""The notebooks in examples/: run at full size, written in one form, and given badges that open them in Colab.

    python tools/notebooks.py run ring_drift              every cell, in a kernel of its own; the outputs are kept in the notebook
    python tools/notebooks.py tidy                        only the form, of all: after a notebook was changed by hand
    python tools/notebooks.py badges OWNER/REPO           an "open in Colab" badge in each, once the repository has an address on GitHub

A notebook is run in examples/, so that `runs/` is shared: what one has trained another finds. The form is what `tests/test_notebooks.py`
holds all notebooks to.
"""

import argparse
import base64
import io
import os
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
PLACE = "https://colab.research.google.com/github/{repository}/blob/{branch}/examples/{name}"


def notebooks() -> list[Path]:
    """All of them, in order of their names."""
    return sorted(EXAMPLES.glob("*.ipynb"))


def tidied(notebook: Any) -> Any:
    """`notebook` without what says nothing to a reader: times of execution, settings of an editor, a second form of a picture."""
    notebook.metadata, notebook.nbformat, notebook.nbformat_minor = nbformat.from_dict(KERNEL), 4, 5
    number = 0
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
        if cell.cell_type != "code":
            continue
        number += 1
        ran = cell.execution_count is not None
        cell.execution_count = number if ran else None
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = cell.execution_count
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = smaller(png)
                output.data.pop("image/jpeg", None)  # of the same picture, which Pillow gives as well
    return notebook


def joined(outputs: Sequence[Any]) -> list[Any]:
    """`outputs` with what one stream said in pieces, as they came, in one piece."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == "stream" and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def smaller(png: str) -> str:
    """The same pixels in as few bytes as Pillow can, in base64, without texts beside them."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        opaque = image.convert("RGB") if image.mode == "RGBA" and image.getextrema()[3] == (255, 255) else image
        buffer = io.BytesIO()
        opaque.save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def badged(notebook: Any, repository: str, branch: str, name: str) -> Any:
    """`notebook` with a badge below its title that opens it in Colab from `branch` of `repository`, in place of any that was there."""
    first = notebook.cells[0]
    lines = [line for line in first.source.split("\n") if not line.startswith(BADGE)]
    rest = "\n".join(lines[1:]).lstrip("\n")
    first.source = f"{lines[0]}\n\n{BADGE}({PLACE.format(repository=repository, branch=branch, name=name)})\n\n{rest}"
    return notebook


def run(path: Path) -> None:
    """Execute the notebook at `path` where it lies, and keep its outputs. Raises nbclient's error for a cell that fails."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the command that cells call is of this environment
    )
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    nbformat.write(tidied(notebook), path)
    print(f"{path.name}: {time.monotonic() - began:.0f} s, of which {cpu:.0f} s of CPU; {path.stat().st_size / 1e3:.0f} kB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("run").add_argument("names", nargs="+", metavar="NAME", choices=[path.stem for path in notebooks()])
    tasks.add_parser("tidy")
    badges = tasks.add_parser("badges")
    badges.add_argument("repository", metavar="OWNER/REPO")
    badges.add_argument("--branch", default="main")
    told = parser.parse_args(arguments)
    if told.task == "badges" and not re.fullmatch(r"[\w.-]+/[\w.-]+", told.repository):
        parser.error(f"OWNER/REPO is {told.repository!r}; give the repository's address on GitHub as two names with a slash between")
    if told.task == "run":
        for name in told.names:
            run(EXAMPLES / f"{name}.ipynb")
        return
    for path in notebooks():
        notebook = nbformat.read(path, as_version=4)
        if told.task == "badges":
            notebook = badged(notebook, told.repository, told.branch, path.name)
        nbformat.write(tidied(notebook), path)


if __name__ == "__main__":
    main()
