"""The notebooks in examples/: each in one form, with what it showed when it was run whole, and run again here at a small size.

Their cells run in this process, one notebook after the other in one folder: a kernel each would import torch and diffusers anew, which
takes longer than all cells together. `pytest -m slow` runs them in kernels of their own. What is smaller is told as papermill tells it, by
assignments after the cell tagged ``parameters``.
"""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from fewstep.interop import export_text

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from notebooks import EXAMPLES, badged, main, notebooks, tidied

SMALL = {
    "digits_dmd2": {"teacher_steps": 3, "student_steps": 4, "samples": 60},
    "ring_drift": {"steps": 20, "samples": 100},
    "dddm": {"steps": 3, "samples": 60},
    "flow_map_and_consistency": {"teacher_steps": 3, "student_steps": 4, "samples": 60},
    "own_images": {"teacher_steps": 3, "student_steps": 4, "pieces": 250, "samples": 60},
    "text_to_image": {"steps": 2, "samples": 20},
    "export": {"teacher_steps": 3, "student_steps": 4},
}
MOST_BYTES = 300_000
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
PLACES = re.compile(r"(?<![\w.])/(tmp|work|root|home|Users)/|[A-Z]:\\\\")


def small(path):
    """The notebook at `path` with small sizes."""
    notebook = nbformat.read(path, as_version=4)
    place = next(number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    told = SMALL[path.stem]
    given = re.findall(r"^(\w+) =", notebook.cells[place].source, re.MULTILINE)
    assert set(told) <= set(given), "what is made small is no parameter"
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(f"{key} = {value}" for key, value in told.items())))
    return notebook


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where notebooks run: a folder beside tools/, as examples/ is."""
    root = tmp_path_factory.mktemp("repository")
    (root / "tools").symlink_to(EXAMPLES.parent / "tools")
    (root / "examples").mkdir()
    return root / "examples"


def test_all_are_run():
    assert {path.stem for path in notebooks()} == set(SMALL)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_form(path):
    """As `tools/notebooks.py` leaves it: nothing but tags beside a cell's text, no place of the machine, no red line, no failure."""
    text = path.read_text()
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert text == nbformat.writes(tidied(notebook)) + "\n"
    assert len(text) < MOST_BYTES
    first, *others = notebook.cells
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert all(part in first.source for part in ("**What you will see.**", "**How long it takes.**"))
    codes = [cell for cell in others if cell.cell_type == "code"]
    assert codes[0].source.startswith("try:\n    import fewstep")
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in codes) == 1
    counts = [cell.execution_count for cell in codes]
    assert any(counts), f"it has not been run at full size yet: python tools/notebooks.py run {path.stem}"
    assert counts == list(range(1, len(codes) + 1))
    outputs = [output for cell in codes for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    shown = [output.get("text") or "".join(value for key, value in output.data.items() if key != "image/png") for output in outputs]
    assert not [line for line in shown if PLACES.search(line)]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_links(path):
    """Whatever a notebook points at in the repository is there."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    links = [link for source in cells for link in LINK.findall(source) if "://" not in link]
    assert any(link.startswith("../docs/") for link in links)
    assert [link for link in links if not (EXAMPLES / link).is_file()] == []


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_runs(path, folder, monkeypatch, command):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        export_text, "verify_text", lambda *parts: 0.0
    )  # a process that imports everything; the notebook compares by itself
    monkeypatch.setattr(sys, "path", [*sys.path])
    namespace = {"__name__": "__main__"}

    def system(line):
        program, *arguments = shlex.split(line.format_map(namespace))
        assert program == "fewstep"
        outcome = command(*arguments)
        assert outcome.code == 0, f"{line}: {outcome.err}"

    namespace["get_ipython"] = lambda: SimpleNamespace(system=system)
    for number, cell in enumerate(small(path).cells):
        if cell.cell_type == "code":
            source = TransformerManager().transform_cell(cell.source)
            exec(compile(source, f"{path.name}, cell {number}", "exec"), namespace)  # noqa: S102 - as a reader would


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_runs_in_a_kernel(path, folder, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    notebook = small(path)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    red = [output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stderr"]
    assert red == []


def test_badges():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n\nText.")])
    once = badged(notebook, "owner/repo", "main", "a.ipynb").cells[0].source
    address = "https://colab.research.google.com/github/owner/repo/blob/main/examples/a.ipynb"
    assert once.split("\n\n") == [
        "# Title",
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})",
        "Text.",
    ]
    assert badged(notebook, "other/place", "v1", "a.ipynb").cells[0].source == once.replace("owner/repo/blob/main", "other/place/blob/v1")


def test_badges_want_an_address(capsys):
    with pytest.raises(SystemExit):
        main(["badges", "somewhere"])
    assert "two names with a slash" in capsys.readouterr().err
