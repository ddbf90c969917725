"""tools/matrix.py takes bounds, Pythons and packages from pyproject.toml, and says what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import matrix

WORKFLOW = matrix.ROOT / ".github" / "workflows" / "ci.yml"


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What uv and the environments' Pythons are asked for, in order; nothing is made, and every process ends well."""
    made: list[list[str]] = []

    def run(command, **options):
        made.append([str(word) for word in command])
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(matrix.subprocess, "run", run)
    monkeypatch.setattr(matrix.shutil, "which", lambda name, path=None: f"/bin/{name}")
    monkeypatch.setattr(matrix, "interpreter", lambda version: f"/bin/python{version}")
    return made


def test_the_lowest_and_the_newest_are_each_tried_on_their_python(called, tmp_path):
    assert matrix.main(["--folder", str(tmp_path)]) == 0
    first, last = matrix.pythons()[0], matrix.pythons()[-1]
    assert matrix.project()["requires-python"] == f">={first}"
    installed = {command[command.index("--python") + 1]: command for command in called if command[1:3] == ["pip", "install"]}
    lowest, newest = (str(tmp_path / name / "bin" / "python") for name in (f"lowest-{first}", f"newest-{last}"))
    assert "lowest-direct" in installed[lowest]
    assert "-e.[text,tensorboard,wandb]" in installed[lowest]
    assert "highest" in installed[newest]
    tests = {command[0]: command for command in called if command[1:3] == ["-m", "pytest"]}
    assert {"-Wignore::DeprecationWarning", "tests/maths"} <= set(tests[lowest])
    assert not [word for word in tests[newest] if word.startswith("-W")]


def test_every_python_of_the_classifiers_is_asked_for_constraints(called):
    assert matrix.main(["constraints"]) == 0
    assert [command[command.index("--python-version") + 1] for command in called] == matrix.pythons()
    assert all("constraints.txt" in command for command in called)


def test_what_is_run_is_there():
    assert [path for path in (*matrix.QUICK, *matrix.ONNX) if not (matrix.ROOT / path).exists()] == []


def test_other_tests_may_be_given(called, tmp_path):
    assert matrix.main(["lowest", "--python", "3.12", "--folder", str(tmp_path), "--", "tests/maths", "-x"]) == 0
    assert called[-1][-2:] == ["tests/maths", "-x"]
    assert called[-1][0] == str(tmp_path / "lowest-3.12" / "bin" / "python")


def test_a_python_that_is_missing_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(matrix.shutil, "which", lambda name, path=None: None)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setattr(matrix, "uv", lambda *arguments: None)
    assert matrix.main(["lowest", "--python", "3.10", "--folder", str(tmp_path)]) == 1
    assert "lowest was not run: there is no Python 3.10 on the path or among pyenv's" in capsys.readouterr().err


@pytest.mark.skipif(not WORKFLOW.exists(), reason="the archive of the sources has no .github")
def test_the_workflow_tries_the_same_pythons():
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    tried = {case["name"]: case["python"] for case in jobs["versions"]["strategy"]["matrix"]["include"]}
    assert tried == {"lowest": matrix.pythons()[0], "lowest-onnx": matrix.pythons()[0], "newest": matrix.pythons()[-1]}
