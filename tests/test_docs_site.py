"""What every page of the site has to hold: lines, commands, settings and alarms that exist, and each page's place in the navigation."""

import importlib
import re
import shlex
import sys
import types
import typing
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import BaseModel

import fewstep
from doc_blocks import DOCS, blocks
from fewstep import registry
from fewstep.cli import app
from fewstep.recipe import load_recipe, shipped_recipes
from fewstep.recipe.recipe import Recipe, Trainer
from fewstep.sections import DataSettings, MethodSettings, NetworkSettings, OwnData

ROOT = DOCS.parent
WIDEST = 110  # columns that a line does not reach, but for a table's and one that cannot be broken
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
SPAN = re.compile(r"`([^`]+)`")
PLACE = re.compile(
    r"[A-Z][A-Z_]*|\.\.\.|.*\.\.\..*|mine\.yaml|your\.yaml|energy\.yaml|.*NAME.*"
)  # what stands for a recipe of the reader's
COMMANDS = typer.main.get_command(app).commands


def named(path) -> str:
    return str(path.relative_to(ROOT))


MODULES = ("alarms", "api", "commands", "gallery", "hooks", "pages", "settings")


@pytest.fixture(scope="module")
def made():
    """``made(module)``: one of the modules that fill the site's pages, whatever else has its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "docs_site"))
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module
        for name in MODULES:
            sys.modules.pop(name, None)


def commands_of(text: str):
    """Every ``fewstep ...`` command of a page: of blocks, with lines that go on put together, and of spans of code."""
    lines = text.splitlines()
    inside = False
    joined = ""
    for line in lines:
        if line.lstrip().startswith("```"):
            inside = not inside
            continue
        if not inside:
            yield from (span for span in SPAN.findall(line) if span.startswith("fewstep "))
            continue
        joined = f"{joined} {line.strip().removeprefix('$ ')}".strip()
        if joined.endswith("\\"):
            joined = joined.removesuffix("\\").strip()
            continue
        if joined.startswith("fewstep ") or " -m fewstep " in joined or joined.startswith("srun fewstep "):
            yield "fewstep " + re.split(r"(?:^|\s)fewstep ", joined, maxsplit=1)[1]
        joined = ""


def check(call: str) -> None:
    """Parse a command: its name, its options, its recipe, and the recipe's settings. Raises what says that it is wrong."""
    words = shlex.split(call.split("  #")[0].split(" # ")[0], comments=False)[1:]
    verb, *rest = words
    if verb.startswith("-"):
        assert verb in ("--version", "--help", "--install-completion"), call
        return
    command = COMMANDS[verb]
    if hasattr(command, "commands") and rest:
        verb, *rest = rest
        command = command.commands[verb]
    rest = [word for word in rest if not word.startswith("$RESUME")]
    if verb == "train":
        if not rest or PLACE.fullmatch(rest[0]):
            return options_exist(command, rest)
        assert rest[0] in shipped_recipes(), f"{call}: there is no recipe {rest[0]}"
        load_recipe(rest[0], [example(word) for word in rest[1:] if "=" in word and not word.startswith("-")])
    options_exist(command, rest)


def options_exist(command, words: list[str]) -> None:
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word):
            assert word.partition("=")[0] in known, f"{command.name} has no option {word}"


def example(word: str) -> str:
    """An override with a value where the page has a place for one; one's own network and data stand for built-in ones."""
    key, _, value = word.partition("=")
    return f"{key}=1" if value == "..." else word


def wrong_commands(path: Path) -> list[str]:
    found = []
    for call in dict.fromkeys(commands_of(path.read_text())):
        if path.name == "own_method.md" and ("nets:" in call or "sets:" in call or "powr" in call):
            continue  # files and mistakes of that page, which test_docs.py runs
        if "gama" in call:
            continue  # a mistake that is shown
        try:
            check(call)
        except Exception as error:
            found.append(f"{named(path)}: {call}: {error}")
    return found


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_command_is_one(path):
    assert wrong_commands(path) == []


@pytest.mark.parametrize("call", ["fewstep train dmd2/digit", "fewstep train drift/ring method.gama=1", "fewstep sample RUN --labls 3"])
def test_a_wrong_command_is_found(call):
    with pytest.raises(Exception, match=r"digit|gama|labls"):
        check(call)


def test_pages_are_filled_and_written_beside_as_markdown(made, tmp_path):
    hooks = made("hooks")
    text = "```console not run: why\n$ fewstep\n```\n<!-- alarm: batch -->\n[c](../CONTRIBUTING.md)\n| x | 1.5 (1.0 to 2.0) |\n"
    file = types.SimpleNamespace(src_uri="howto/page.md")
    shown = hooks.on_page_markdown(text, types.SimpleNamespace(file=file, title="A page"))
    assert "```console\n" in shown
    assert "> Raised by any method" in shown
    assert "[c](contributing.md)" in shown
    assert '1.5<br><span class="range">(1.0 to 2.0)</span> |' in shown
    nav = [{"Start": [{"One": "howto/page.md"}, {"Gone": "gone.md"}]}]
    hooks.on_post_build(types.SimpleNamespace(site_dir=tmp_path, site_name="fewstep", site_description="What it is.", nav=nav))
    plain = (tmp_path / "howto" / "page.md").read_text()
    assert "| 1.5 (1.0 to 2.0) |" in plain
    assert "<br>" not in plain
    listed = (tmp_path / "llms.txt").read_text()
    assert listed.startswith("# fewstep\n\n> What it is.\n")
    assert "## Start\n\n- [One](howto/page.md)\n" in listed
    assert "gone.md" not in listed


def test_the_interface_is_written_out(made):
    api = made("api")
    pages = api.pages()
    plain = api.written_out(pages["reference/api.md"])
    for name in ("train", "evaluate", "compare", "register", "load", "sample", "Generator"):
        assert f"### {name}\n" in plain
        assert getattr(fewstep, name).__module__ in pages["reference/api.md"]
    assert ":::" not in plain
    assert "### karras_sigmas" in api.written_out(pages["reference/maths.md"])


def test_the_commands_of_the_gallery_are_right(made):
    entries = made("gallery").entries()
    calls = list(commands_of(entries))
    assert len(calls) == len(shipped_recipes())
    for call in calls:
        check(call)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_lines_are_not_too_wide(path):
    wide = [
        (number, len(line))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) >= WIDEST and not line.lstrip().startswith("|") and not re.fullmatch(r"\s*\S+", line)
    ]
    assert wide == []


def test_each_page_has_a_place_in_the_navigation_and_each_place_a_page(made):
    told = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def files(nav):
        for item in nav:
            (below,) = item.values()
            yield from files(below) if isinstance(below, list) else [below]

    listed = list(files(told["nav"]))
    generated = {*made("settings").pages(), *made("api").pages(), "reference/cli.md", "contributing.md"}
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | generated
    assert not {"repo_url", "site_url"} & told.keys()
    assert told["theme"]["font"] is False


# --- settings


def without_help(cls, prefix: str) -> list[str]:
    found = []
    for key, field in cls.model_fields.items():
        if key == "name":
            continue  # the choice of the class itself
        if not field.description:
            found.append(prefix + key)
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in (MethodSettings, NetworkSettings, DataSettings):
                found += without_help(part, f"{prefix}{key}.")
    return found


def test_every_setting_has_help():
    missing = [*without_help(Recipe, ""), *without_help(Trainer, "trainer."), *without_help(OwnData, "data.")]
    for kind, rooms in registry.BUILT_IN.items():
        if kind in registry.SETTINGS:
            for name in rooms:
                missing += without_help(registry.settings(kind, name), f"{kind} {name}: ")
    assert missing == []


def test_the_reference_has_every_setting(made):
    pages = made("settings").pages()
    for kind in registry.SETTINGS:
        text = pages[f"reference/{kind}.md"]
        for name in registry.names(kind):
            section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
            prefix = registry.SINGULAR[kind].split()[0]
            keys = [key for key in registry.settings(kind, name).model_fields if key != "name"]
            assert all(f"| `{prefix}.{key}` |" in section for key in keys), name
    assert "| `method.optimizer.lr` | number above 0 | `0.001` |" in pages["reference/methods.md"]
    assert "| `method.lora.rank` | whole number from 1 | `64` |" in pages["reference/methods.md"]
    assert "| `batch_size` | whole number from 1 | `128` |" in pages["reference/recipe.md"]


def test_the_reference_has_every_command_and_option(made):
    text = made("commands").page()
    for verb in ("train", "sample", "evaluate", "compare", "export", "import", "encode", "demo", "recipes", "recipes show"):
        assert f"## fewstep {verb}\n" in text
    assert "| `--dry-run` | nothing |" in text
    assert "| `--steps` | whole number |" in text


# --- alarms


def sections(path: Path) -> list[str]:
    return re.findall(r"^## (.+)$", path.read_text(), re.M)


def test_every_alarm_has_a_section_with_its_facts(made):
    page = DOCS / "troubleshooting.md"
    alarms = made("alarms")
    titled = sections(page)
    assert set(alarms.names()) == set(titled) - {"Errors", "Nothing is wrong, and yet it is not good"}
    placed = re.findall(r"<!-- alarm: (\w+) -->", page.read_text())
    assert placed == [title for title in titled if title in alarms.names()]
    for name in placed:
        assert "no alarm while" in alarms.facts(name)
    assert "raised this alarm at 25% of the run (batch of 4)" in alarms.facts("batch")
    with pytest.raises(ValueError, match="no alarm"):
        alarms.facts("colapse")


def test_the_names_of_errors_on_the_page_are_said_by_the_code():
    """The fixed words of each row of the table of errors, in the source."""
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py")))
    text = (DOCS / "troubleshooting.md").read_text().split("\n## Errors\n")[1].split("\n## ")[0]
    told = [SPAN.findall(row.split("|")[1]) for row in text.splitlines() if row.startswith("| `") or row.startswith("| a loss")]
    assert len(told) >= 10
    for first, *_ in told:
        for part in re.split(r"\s*\.\.\.\s*", first):
            words = part.strip("` ,")
            if len(words) > 6:
                assert words in source, words


def test_tables_are_what_was_measured():
    """Each table of each page, from the files of results."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        tables = importlib.import_module("tables")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    for page in tables.pages():
        text, _ = tables.filled(page.read_text())
        assert text == page.read_text(), f"{page.name}: python benchmarks/tables.py writes it anew"
    with pytest.raises(ValueError, match="no table nothing"):
        tables.filled("<!-- table: nothing -->\n<!-- end -->")
    lines = tables.readme().splitlines()
    assert lines[0].count("|") == 7
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:6]] == list(tables.READ_ME)


def test_blocks_inside_lists_and_tabs_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("- a\n\n    ```python\n    x = 1\n    if x:\n        y = 2\n    ```\n\n```console not run: why\n$ a\n```\n")
    assert [(block.language, block.note, block.lines) for block in blocks(page)] == [
        ("python", "", ["x = 1", "if x:", "    y = 2"]),
        ("console", "not run: why", ["$ a"]),
    ]


def test_a_generator_draws_on_a_page_where_its_run_lies_here(made, student_run, tmp_path):
    pages = made("pages")
    shown = pages.block("mnist", str(tmp_path / "nothing"))
    assert "pictures/page_mnist.png" in shown
    assert (DOCS / "pictures" / "page_mnist.png").is_file()
    assert 'src="live/digits/index.html"' in pages.block("digits", str(student_run))
    pages.write(tmp_path / "site")
    assert sorted(path.name for path in (tmp_path / "site" / "live").iterdir()) == ["digits"]
    assert (tmp_path / "site" / "live" / "digits" / "model.onnx").is_file()
