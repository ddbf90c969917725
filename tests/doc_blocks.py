"""Blocks of code in pages of Markdown, and what runs them as a reader would, small."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^( *)```(\w+)(.*)$")
NOT_RUN = re.compile(r"not run: \S.*")

# so small that a step takes a moment; what a page gives itself comes last and holds
SMALL = ("batch_size=16", "trainer.accelerator=cpu", "trainer.log_every=1")
TINY = ("network.channels=[8,32]", "network.groups=4", "network.head_dim=8", "method.sampler_steps=3")
STEPS = 2


class Block(NamedTuple):
    """A block of code, and the line of the document that it begins at."""

    language: str
    note: str
    lines: list[str]
    line: int


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, those inside lists and tabs as well, without their indentation."""
    found: list[Block] = []
    end = ""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if end and line == end:
            end = ""
            found[-1] = found[-1]._replace(lines=dedent("\n".join(found[-1].lines)).split("\n"))
        elif end:
            found[-1].lines.append(line)
        elif opening := FENCE.match(line):
            end = f"{opening[1]}```"
            found.append(Block(opening[2], opening[3].strip(), [], number + 1))
    assert not end, f"{path.name}: a block is not closed"
    return found


def run_console(block: Block, command, smaller: Callable[[list[str]], list[str]] = list) -> None:
    """Each line that begins with ``$`` is a command; those below it are found in what it says, and tell whether it may fail."""
    calls: list[tuple[str, list[str]]] = []
    for line in block.lines:
        if line.startswith("$ "):
            calls.append((line[2:], []))
        else:
            calls[-1][1].append(line)
    for call, expected in calls:
        program, *arguments = shlex.split(call)
        if program in ("cp", "mkdir"):
            subprocess.run([program, *arguments], check=True)
            continue
        assert program == "fewstep", call
        outcome = command(*smaller(arguments))
        said = outcome.out + outcome.err
        assert outcome.code in (0, 2), said
        assert (outcome.code == 2) == ("error: " in outcome.err), said
        for line in expected:
            assert line in said, f"line {block.line}: {call} did not say {line!r}, but\n{said}"
        if not expected:
            assert outcome.code == 0, said


def run_python(block: Block, name: str, names: dict) -> None:
    """Run a block, which knows what the blocks before it have named."""
    exec(compile("\n" * (block.line - 1) + "\n".join(block.lines), name, "exec"), names)  # noqa: S102


def smaller(arguments: list[str]) -> list[str]:
    """The words of a command, with what makes it quick; what the page says itself is kept."""
    verb, *rest = arguments
    if verb == "train":
        own = [word for word in rest if "=" in word and not word.startswith("-")]
        images = rest[0].startswith(("teacher/digits", "teacher/images"))
        given = [*SMALL, *(TINY if images else ())]
        if not any(word.startswith("steps=") for word in own):
            given.append(f"steps={STEPS}")
        keys = {word.partition("=")[0] for word in own}
        return [verb, rest[0], *(word for word in given if word.partition("=")[0] not in keys), *rest[1:]]
    if verb == "evaluate" and "-n" not in rest:
        return [verb, *rest, "-n", "60"]
    return list(arguments)
