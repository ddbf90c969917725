"""Run the notebooks in examples/ at full size, write them in one form, and give them badges that open them in Colab.

    python tools/notebooks.py run ring_drift              every cell, in a kernel of its own; the outputs are kept in the notebook
    python tools/notebooks.py tidy                        only the form, of all notebooks: after one was changed by hand
    python tools/notebooks.py badges OWNER/REPO           an "open in Colab" badge in each, once the repository has an address on GitHub

A notebook is run in examples/, so that all share `runs/`: what one notebook has trained another finds. `tests/test_notebooks.py` checks
that every notebook is in this form.
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
    """Return the paths of all notebooks, in order of their names."""
    return sorted(EXAMPLES.glob("*.ipynb"))


def tidied(notebook: Any) -> Any:
    """Return `notebook` without what is of no use to a reader: execution times, an editor's settings, a second format of a picture."""
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
                output.data.pop("image/jpeg", None)  # the same picture, which Pillow gives in both formats
    return notebook


def joined(outputs: Sequence[Any]) -> list[Any]:
    """Return `outputs` with consecutive pieces of the same stream joined into one."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == "stream" and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def smaller(png: str) -> str:
    """Return the same pixels in as few bytes as Pillow can make, in base64, without metadata."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        opaque = image.convert("RGB") if image.mode == "RGBA" and image.getextrema()[3] == (255, 255) else image
        buffer = io.BytesIO()
        opaque.save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def badged(notebook: Any, repository: str, branch: str, name: str) -> Any:
    """Return `notebook` with a badge below its title that opens it in Colab from `branch` of `repository`, in place of an earlier badge."""
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
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cells call the fewstep command of this environment
    )
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    nbformat.write(tidied(notebook), path)
    print(f"{path.name}: {time.monotonic() - began:.0f} s, of which {cpu:.0f} s of CPU; {path.stat().st_size / 1e3:.0f} kB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, tidy or badge the notebooks."""
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
