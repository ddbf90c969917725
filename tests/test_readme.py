"""README.md: short, its links lead somewhere, and each of its commands is run, small, in an empty folder, as a reader would."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from doc_blocks import blocks, run_python, smaller
from fewstep import measurement
from picture_folders import two_classes
from text_models import make

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LONGEST, WIDEST = 120, 110
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def commands() -> list[str]:
    """All of them, in order, without remarks."""
    lines = [line.split(" # ")[0].strip() for block in blocks(README) if block.language == "bash" for line in block.lines]
    return [line for line in lines if line and not line.startswith("#")]


def test_it_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= LONGEST
    assert [line for line in lines if len(line) > WIDEST and not line.startswith("|")] == []


def test_its_links_lead_somewhere():
    inside = [place for place in LINK.findall(README.read_text()) if "://" not in place]
    assert len(inside) > 10
    assert [place for place in inside if not (ROOT / place).exists()] == []


@pytest.mark.parametrize(
    ("target", "called"), [("demo", "fewstep demo --out runs/demo"), ("test", "pytest -m"), ("docs", "mkdocs build --strict")]
)
def test_what_make_does(target, called):
    assert f"make {target}" in README.read_text()
    assert called in subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_its_commands(student_run, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    two_classes(Path("path/to/images"), num=40)
    make(Path("path/to/sdxl"), "sdxl")
    Path("prompts.txt").write_text("a lighthouse\nseven\nthin lines\n")
    shutil.copytree(student_run, "runs/student")
    done = []
    for line in commands():
        program, *arguments = shlex.split(line)
        if program == "make":
            continue
        assert program == "fewstep", line
        done.append(" ".join(arguments[:2]))
        outcome = command(*smaller(arguments))
        assert outcome.code == 0, f"{line}: {outcome.err}"
    wanted = ["train teacher/images", "encode prompts.txt", "train dmd2/sdxl_lora_4step"]
    assert done == [*wanted, *(f"{verb} runs/student" for verb in ("evaluate", "sample", "export"))]
    assert Path("samples.png").is_file()
    assert Path("exported", "model_index.json").is_file()


def test_its_python(student_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 500)
    shutil.copytree(student_run, "runs/demo/student")
    names: dict = {"__name__": "readme"}
    found = [block for block in blocks(README) if block.language == "python"]
    assert len(found) == 1
    run_python(found[0]._replace(lines=[line.replace("steps=1000", "steps=2") for line in found[0].lines]), "README.md", names)
    assert len(names["images"]) == 64
    assert len(names["sevens"]) == 10
    assert (Path(names["run"]) / "model").is_dir()
