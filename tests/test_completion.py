"""What the tab key offers, asked as a shell asks, and help that is whole at any width."""

import os
import re
import subprocess
import sys

import pytest

from fewstep.cli import app
from fewstep.completion import keys
from fewstep.data.settings import DENSITY_NAMES
from fewstep.data.toys import DENSITIES
from fewstep.recipe import load_recipe, resolved, shipped_recipes


def asked(line: str, shell: str) -> dict[str, str]:
    """The variables by which a shell asks what may come in the place of the last word of a command line."""
    words = f"fewstep {line}"
    told = {"_FEWSTEP_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return told | {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}


@pytest.fixture
def offers(tmp_path, monkeypatch, capsys):
    """``offers("train dmd")``: what is offered for the last word of a command line, in bash's way."""

    def call(line: str, shell: str = "bash") -> list[str]:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in asked(line, shell).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                app(prog_name="fewstep")  # the shell's name for it, of which that of the first variable is made
        assert end.value.code == 0
        found = capsys.readouterr()
        assert found.err == ""
        return [line for line in found.out.split("\n") if line]

    return call


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_process_of_its_own_offers_the_same(shell, offers, tmp_path):
    code = "import sys; sys.argv[0] = 'fewstep'; import fewstep.cli; fewstep.cli.main()"
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked("train dmd", shell), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert found.stderr == ""
    assert [line for line in found.stdout.split("\n") if line] == offers("train dmd", shell) != []


def test_recipes_and_files_are_offered(offers, tmp_path):
    (tmp_path / "dmd_of_mine.yaml").touch()
    (tmp_path / "dmd_notes.txt").touch()
    (tmp_path / "dmd_recipes").mkdir()
    shipped = [name for name in shipped_recipes() if name.startswith("dmd")]
    assert offers("train dmd") == [*shipped, "dmd_of_mine.yaml", "dmd_recipes/"]
    assert offers("recipes show dmd") == shipped
    assert offers("train dmd2/ri") == ["dmd2/ring"]  # where there is no folder dmd2
    assert offers("train zzz") == []


def test_a_recipe_is_told_of_where_a_shell_can_show_it(offers):
    (line,) = (line for line in offers("train dmd2/ri", "zsh") if "dmd2/ring" in line)
    assert re.search(r'"dmd2/ring":".{20,}"', line)


def test_keys_of_the_recipe_are_offered_once(offers):
    found = offers("train dmd2/digits trainer.log_every=5 trainer.lo")
    assert found == []
    assert offers("train dmd2/digits trainer.lo") == ["trainer.log_every="]
    assert "method.gan_weight_generator=" in offers("train dmd2/digits method.gan")
    assert offers("train no/recipe method.gan") == []


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_setting_of_every_recipe_is_offered(name):
    class Context:
        params = {"recipe": name}  # noqa: RUF012 - as click's

    def leaves(tree, before=""):
        for key, value in tree.items():
            yield from leaves(value, f"{before}{key}.") if isinstance(value, dict) and value else [f"{before}{key}="]

    assert [key for key, _ in keys(Context(), "")] == list(leaves(resolved(load_recipe(name))))


def test_runs_and_the_way_to_them_are_offered(offers, tmp_path):
    for folder in ("runs/one", "runs/two", "runs/none", "runs/.hidden", "runs/one/model"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("runs/one/recipe.yaml", "runs/two/recipe.yaml", "runs/one/model/config.json", "runs/notes.txt"):
        (tmp_path / file).touch()
    for command in ("sample", "evaluate", "export", "evaluate runs/one --beside"):
        assert offers(f"{command} ru") == ["runs/"]
        assert offers(f"{command} runs/") == ["runs/none/", "runs/one", "runs/two"]
    assert offers("sample runs/one/") == ["runs/one/model"]
    assert offers("sample nowhere/at/all/") == []


def test_what_can_be_compared_is_offered(offers):
    assert offers("compare toys/r") == ["toys/ring"]
    assert offers("compare di") == ["digits"]
    assert tuple(DENSITIES) == tuple(DENSITY_NAMES)


def test_completing_needs_no_torch():
    code = "import sys, fewstep.completion as c; c.recipes(''); c.runs(''); c.comparable(''); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_list_of_commands_is_not_cut(columns, monkeypatch, done):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = done("--help").out
    listed = text[text.index("Commands:") :]
    assert "..." not in listed
    assert max(map(len, text.splitlines())) <= columns
    words = " ".join(listed.split())
    for end in ("into the run folder.", "one table and one plot.", "both draw the same samples.", "any code from its file."):
        assert end in words
