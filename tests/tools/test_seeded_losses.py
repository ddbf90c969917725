"""The comparison of two revisions finds what differs, and nothing else; the chain is run on a package of twenty lines."""

import hashlib
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep.recipe import load_recipe, shipped_recipes

TOOL = Path(__file__).parents[2] / "tools" / "seeded_losses.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("seeded_losses", TOOL)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "seeded_losses", module)
        spec.loader.exec_module(module)
        yield module


def result(*losses: float, weights: str = "abc", **more: float) -> dict:
    return {"terms": [{"step": step, "g.dm": loss, **more} for step, loss in enumerate(losses, 1)], "weights": weights}


# --- the comparison --------------------------------------------------------------------------------------------------


def test_equal_bits_are_equal_and_nan_is_nan(tool):
    one, other = (result(0.1, float("nan"), 0.3, images_seen=64) for _ in range(2))
    assert tool.first_difference(one, other) is None


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (result(0.1, 0.25, 0.4), "differs at step 2: g.dm 0.2 -> 0.25"),  # not step 3, where it differs, too
        (result(0.1, math.nextafter(0.2, 1), 0.3), f"differs at step 2: g.dm 0.2 -> {math.nextafter(0.2, 1)!r}"),  # the last bit
        (result(0.1, float("nan"), 0.3), "differs at step 2: g.dm 0.2 -> nan"),
        (result(0.1, 0.2), "differs in length: 3 -> 2 records"),
        (result(0.1, 0.2, 0.3, lam=1.0), "differs at step 1: lam nothing -> 1.0"),
        (result(0.1, 0.2, 0.3, weights="xyz"), "differs in the weights that ship: sha256 abc -> xyz, with all terms equal"),
        ({"error": "Traceback\nValueError: no"}, "failed here: ValueError: no"),
    ],
)
def test_the_first_difference_is_named(tool, new, said):
    assert tool.first_difference(result(0.1, 0.2, 0.3), new) == said


def test_zeros_of_two_signs_differ(tool):
    assert tool.first_difference(result(0.0), result(-0.0)) == "differs at step 1: g.dm 0.0 -> -0.0"


def test_terms_may_be_added_where_that_is_allowed_but_not_lost(tool):
    less, more = result(0.1, 0.2), result(0.1, 0.2, lam=1.0)
    assert tool.first_difference(less, more, allow_new_terms=True) is None
    assert tool.first_difference(more, less, allow_new_terms=True) == "differs at step 1: lam 1.0 -> nothing"
    assert tool.first_difference(less, result(0.1, 0.3, lam=1.0), allow_new_terms=True) == "differs at step 2: g.dm 0.2 -> 0.3"


def test_what_one_side_alone_has_does_not_count(tool, capsys):
    there, here = {"a": result(1.0), "b": result(1.0)}, {"b": result(1.0), "c": result(1.0)}
    found = {"there": {"revision": "old", "cases": there}, "here": {"revision": "new", "cases": here}}
    assert tool.report(found) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["a", "only there"], ["b", "equal"], ["c", "only here"]]
    here["b"] = result(2.0)
    assert tool.report(found) == 1


# --- what is kept of a run -------------------------------------------------------------------------------------------


def test_all_numbers_are_kept_but_for_the_times(tool, tmp_path):
    record = {"step": 1, "seconds": 0.5, "images_per_second": 9.0, "images_seen": 8, "g.dm": 0.1, "ok": True, "alarms": ["slow"]}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({**record, "step": 2, "g.dm": math.nan}) + "\n")
    first, second = tool.terms(tmp_path / "metrics.jsonl")
    assert first == {"step": 1, "images_seen": 8, "g.dm": 0.1}
    assert math.isnan(second["g.dm"])


def test_the_checksum_is_of_the_tensors_bytes_by_name(tool, tmp_path):
    b, a = torch.tensor([1.0, -2.0]), torch.arange(6, dtype=torch.int64)  # the format puts larger types first, whatever the name
    expected = hashlib.sha256(a.numpy().tobytes() + b.numpy().tobytes()).hexdigest()
    save_file({"b": b, "a": a}, tmp_path / "one", {"format": "pt"})
    save_file({"a": b, "b": a}, tmp_path / "exchanged")
    save_file({"b": b, "a": a + 1}, tmp_path / "other")
    assert tool.weights(tmp_path / "one") == expected
    assert len({tool.weights(tmp_path / name) for name in ("one", "exchanged", "other")}) == 3


# --- the cases -------------------------------------------------------------------------------------------------------


def test_the_cases_are_all_recipes_without_a_network_and_recipes_that_exist(tool):
    found = tool.cases(tool.ROOT)
    recipes = {name: load_recipe(name) for name in shipped_recipes()}
    assert {n for n in found if ":" not in n} == {n for n, recipe in recipes.items() if recipe.data.name in tool.LOCAL}
    assert {case.recipe for case in tool.OPTIONS} <= found.keys()
    seen: set[str] = set()
    for name, case in found.items():
        assert case.after is None or case.after in seen, "what it needs comes before it"
        seen.add(name)
        run = "runs/teacher" if case.after else "{run}"
        recipe = load_recipe(case.recipe, [o.replace("{run}", run) for o in case.overrides])
        assert "{run}" not in recipe.model_dump_json()
        taught = case.after is not None or getattr(recipe.method, "teacher", None) is not None
        assert taught or not hasattr(recipe.method, "teacher") or recipe.method.own_teacher > 0, "it has what it learns from"
    assert list(tool.selected(found, "dmd2/ring*run")) == ["teacher/ring", "dmd2/ring: a teacher's run"]


# --- the whole chain -------------------------------------------------------------------------------------------------

PACKAGE = """
import json, os, pathlib, sys

def main():
    recipe, settings = sys.argv[2], dict(word.partition("=")[::2] for word in sys.argv[3:-2])
    run = pathlib.Path(sys.argv[-1])
    if recipe == "drift/fails":
        print("error: no such field", file=sys.stderr)
        sys.exit(2)
    if recipe == "drift/raises":
        raise KeyError("loss")
    if recipe == "drift/kills":
        os._exit(3)
    if recipe.startswith("dmd2"):
        assert (pathlib.Path(settings["method.teacher"]) / "metrics.jsonl").exists()
    (run / "model").mkdir(parents=True)
    lines = [{"step": step, "loss": 1 / step + (step > 2) * CHANGE} for step in range(1, int(settings["steps"]) + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    (run / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    print("trained")
"""


@pytest.fixture
def repository(tool, tmp_path, monkeypatch):
    """``repository(change, *recipes)`` commits a package whose losses change so much from step 3 on; the tool works on it."""
    root = tmp_path / "tree"
    monkeypatch.setattr(tool, "ROOT", root)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tool.tempfile, "tempdir", None)

    def git(*arguments: str) -> str:
        options = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.hooksPath=")
        return subprocess.run(["git", "-C", root, *options, *arguments], check=True, capture_output=True, text=True).stdout

    def commit(change: float, *recipes: str) -> None:
        package = root / "src" / "fewstep"
        for name in recipes:
            file = package / "recipes" / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("method: {teacher: null}\n" if name.startswith("dmd2") else "method: {}\n")
            file.write_text(file.read_text() + "data: {name: digits}\n")
        (package / "__init__.py").touch()
        (package / "cli.py").write_text(PACKAGE.replace("CHANGE", str(change)))
        if not (root / ".git").exists():
            git("init", "-q")
        git("add", "-A")
        git("commit", "-q", "--allow-empty", "-m", "x")

    yield commit
    assert len(git("worktree", "list").splitlines()) == 1, "the tree that was checked out is still known"
    assert [path.name for path in tmp_path.glob("seeded_losses*")] == []


def verdicts(text: str) -> dict[str, str]:
    return {line[:48].strip(): line[48:].strip() for line in text.splitlines()[:-1]}


def test_two_revisions_with_equal_numbers(tool, repository, capsys, tmp_path):
    repository(0.0, "teacher/digits", "dmd2/digits")
    repository(0.0, "drift/ring")
    assert tool.main(["--against", "HEAD~1", "--steps", "3", "--out", str(tmp_path / "out.json")]) == 0
    found = verdicts(capsys.readouterr().out)
    assert found["dmd2/digits"] == found["teacher/digits"] == "equal"
    assert found["drift/ring"] == "only here"
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["here"]["cases"]["drift/ring"]["terms"][1] == {"step": 2, "loss": 0.5}
    assert kept["here"]["cases"].keys() - kept["there"]["cases"].keys() >= {"drift/ring"}


def test_a_difference_is_found_and_a_failure_ends_no_other_case(tool, repository, capsys):
    repository(0.0, "teacher/digits", "drift/fails", "drift/raises")
    repository(0.5)
    assert tool.main(["--against", "HEAD~1", "--only", "/digits", "--steps", "2"]) == 0  # it comes later
    capsys.readouterr()
    assert tool.main(["--against", "HEAD~1", "--steps", "4"]) == 1
    found = verdicts(capsys.readouterr().out)
    assert found["drift/fails"] == "failed there: error: no such field; here: error: no such field"
    assert found["drift/raises"] == "failed there: KeyError: 'loss'; here: KeyError: 'loss'"
    assert found["teacher/digits"] == f"differs at step 3: loss {1 / 3!r} -> {1 / 3 + 0.5!r}"


def test_a_process_that_dies_is_told_of(tool, repository, capsys):
    repository(0.0, "drift/a", "drift/kills", "drift/z")
    assert tool.main(["--steps", "1"]) == 1
    found = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in found] == ["drift/a", "drift/kills", "drift/z"]
    assert found[0][1].startswith("sha256 ")
    assert all(line == "failed: the process ended with code 3 before this case was through" for _, line in found[1:])


def test_an_interrupt_leaves_nothing_behind(tool, repository, monkeypatch):
    repository(0.0, "drift/a")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "run_tree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool.main(["--against", "HEAD"])  # the fixture looks afterwards


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--against", "nowhere"], "nowhere"), (["--only", "none of it"], "like none of: drift/a"), (["--steps", "0"], "^2$")],
)
def test_mistakes_are_told(tool, repository, arguments, said):
    repository(0.0, "drift/a")
    with pytest.raises(SystemExit, match=said) as end:
        tool.main(arguments)
    assert end.value.code not in (0, None)


def test_help_is_there_without_torch():
    watch = f"import runpy, sys\nsys.argv = ['tool', '--help']\ntry:\n    runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    watch += "except SystemExit:\n    assert not {'torch', 'fewstep'} & sys.modules.keys()\n"
    assert "--against REVISION" in subprocess.run([sys.executable, "-c", watch], check=True, capture_output=True, text=True).stdout
