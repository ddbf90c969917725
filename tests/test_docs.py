"""The code of docs/own_method.md and the commands of docs/text.md, run from top to bottom in an empty folder, as a reader would."""

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fewstep import measurement, pictures
from text_models import make

DOCS = Path(__file__).parents[1] / "docs"
WIDEST = 110
FENCE = re.compile(r"^```(\w+)(.*)$")


class Block(NamedTuple):
    """A block of code, and the line of the document that it begins at."""

    language: str
    note: str
    lines: list[str]
    line: int


def blocks(path: Path) -> list[Block]:
    found: list[Block] = []
    inside = False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if inside and line == "```":
            inside = False
        elif inside:
            found[-1].lines.append(line)
        elif opening := FENCE.match(line):
            inside = True
            found.append(Block(opening[1], opening[2].strip(), [], number + 1))
    assert not inside
    return found


class NoDashboard:
    """Draws nothing."""

    def __init__(self, *arguments) -> None:
        pass

    def __getattr__(self, name):
        return lambda *arguments: None


def run_console(block: Block, command) -> None:
    """Each line that begins with ``$`` is a command; those below it are found in what it says, and tell whether it may fail."""
    calls: list[tuple[str, list[str]]] = []
    for line in block.lines:
        if line.startswith("$ "):
            calls.append((line[2:], []))
        else:
            calls[-1][1].append(line)
    for call, expected in calls:
        program, *arguments = shlex.split(call)
        assert program == "fewstep"
        outcome = command(*arguments)
        said = outcome.out + outcome.err
        assert outcome.code in (0, 2), said
        assert (outcome.code == 2) == ("error: " in outcome.err), said
        for line in expected:
            assert line in said, f"line {block.line}: {call} did not say {line!r}, but\n{said}"


def test_own_method(registry_apart, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as in a session of Python that is begun there
    monkeypatch.setattr(pictures, "Dashboard", NoDashboard)
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 1000)
    kinds = set()
    try:
        for block in blocks(DOCS / "own_method.md"):
            name = block.lines[0].removeprefix("# ")
            kinds.add(block.language)
            if re.fullmatch(r"\w+\.(py|yaml)", name):
                Path(name).write_text("\n".join(block.lines) + "\n")
                importlib.invalidate_caches()
            elif block.language == "python":
                exec(compile("\n" * (block.line - 1) + "\n".join(block.lines), "own_method.md", "exec"), {"__name__": "own_method"})  # noqa: S102
            elif not block.note.startswith("not run"):
                if "elsewhere/gated" in "".join(block.lines):  # somebody else's folder
                    shutil.copytree("runs/gated", "elsewhere/gated")
                    config = Path("elsewhere/gated/model/config.json")
                    config.write_text(config.read_text().replace("nets:Gated", "strange_nets:Gated"))
                run_console(block, command)
    finally:
        for module in ("energy", "nets", "sets"):
            sys.modules.pop(module, None)
    assert kinds == {"python", "yaml", "console"}


# of the commands on the page about text to image, what is smaller here
SMALLER = {
    "--samples 2000": "--samples 100 --steps 2",
    "data.path=prompts --out": "data.path=prompts steps=2 batch_size=16 trainer.accelerator=cpu trainer.log_every=1 --out",
    "-n 1000": "-n 50",
}


def test_text_to_image(monkeypatch, tmp_path, command):
    """Line by line, but for the model and for sizes, from `pip` to the exported folder."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "sdxl", "sdxl")
    Path("prompts.txt").write_text("a lighthouse\nseven\nthin lines\n")
    page = DOCS / "text.md"
    commands = [line.strip().removeprefix("$ ") for line in page.read_text().splitlines() if line.strip().startswith("$ ")]
    assert commands[0] == "pip install 'fewstep[text]'"
    done = []
    for line in commands[1:]:
        if line.startswith("SDXL="):
            continue
        for published, ours in {**SMALLER, "stabilityai/stable-diffusion-xl-base-1.0": "sdxl", "$SDXL": "sdxl"}.items():
            line = line.replace(published, ours)
        program, *arguments = shlex.split(line)
        assert program == "fewstep"
        outcome = command(*arguments)
        assert outcome.code == 0, f"{line}: {outcome.err}"
        done.append(arguments[0])
    assert done == ["import", "encode", "train", "train", "sample", "evaluate", "export"]
    assert Path("drawn.png").is_file()
    assert Path("lora", "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("path", [DOCS / "own_method.md", DOCS / "text.md", DOCS.parent / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_lines_are_not_too_wide(path):
    assert [number for number, line in enumerate(path.read_text().splitlines(), start=1) if len(line) > WIDEST] == []
