"""Run the quick part of the tests with the lowest versions that pyproject.toml declares, and with the newest that there are.

    python tools/matrix.py                            # lowest on the first Python of the classifiers, newest on the last
    python tools/matrix.py constraints                # only whether constraints.txt can be resolved, on each Python
    python tools/matrix.py lowest --python 3.11       # one environment, on another Python
    python tools/matrix.py newest -- tests/maths -x   # other tests, and options of pytest

Each environment is made anew by uv, with the test packages of the extra `dev`. uv derives the lowest versions from the bounds in
pyproject.toml: there is no second list of them. Indirect dependencies are the newest that fit. A plain torch of the package index brings
gigabytes of CUDA libraries; ``UV_TORCH_BACKEND=cpu`` takes PyTorch's own index instead, where it can be reached. Pythons are searched on
the path and among those of pyenv. Exit code: 0 if all tests of all environments pass, else 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest installs

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".matrix"
# tests that exercise other packages most: their networks, schedulers, files, engine, settings and command line
QUICK = (
    "tests/maths",
    "tests/recipe",
    "tests/denoisers",
    "tests/networks",
    "tests/interop",
    "tests/pipelines",
    "tests/data/test_image_sets.py",
    "tests/data/test_own.py",
    "tests/data/test_prompt_files.py",
    "tests/methods/test_teacher.py",
    "tests/methods/test_dmd2.py",
    "tests/training/test_checkpoint.py",
    "tests/training/test_loop.py",
    "tests/training/test_precision.py",
    "tests/training/test_resume.py",
    "tests/training/test_tracking.py",
    "tests/test_cli.py",
    "tests/test_completion.py",
    "tests/test_demo.py",
    "tests/test_generator.py",
    "tests/test_hub.py",
    "tests/test_registry.py",
    "tests/test_run.py",
)
NEED_ONNX = ("tests/interop/test_export_onnx.py", "tests/interop/test_export_page.py")
ONNX = (*NEED_ONNX, "tests/interop/test_export.py")
TESTED = ("--extra", "dev", "--constraints", "constraints.txt", "pyproject.toml")
# old versions warn of their own deprecated code: only with the newest versions are warnings errors, as in pyproject.toml
SILENT = tuple(f"-Wignore::{kind}" for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"))


class Environment(NamedTuple):
    """How uv resolves an environment, its extras, the arguments of pytest in it, and whether it takes the newest Python."""

    resolution: str
    extras: tuple[str, ...]
    tests: tuple[str, ...]
    newest_python: bool


EXTRAS = ("text", "tensorboard", "wandb")
# the extra onnx needs a newer torch than the package: with it, the lowest torch of the package would never be tried
ENVIRONMENTS = {
    "lowest": Environment("lowest-direct", EXTRAS, (*SILENT, *QUICK, *(f"--ignore={path}" for path in NEED_ONNX)), newest_python=False),
    "lowest-onnx": Environment("lowest-direct", ("onnx",), (*SILENT, *ONNX), newest_python=False),
    "newest": Environment("highest", (*EXTRAS, "onnx"), QUICK, newest_python=True),
}
CONSTRAINTS = "constraints"
NAMES = (CONSTRAINTS, *ENVIRONMENTS)


class Missing(Exception):
    """Something that this machine does not have; the message says what."""


def project() -> dict:
    """The section `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pythons() -> list[str]:
    """Return the versions of Python that the classifiers name, the lowest first."""
    prefix = "Programming Language :: Python :: 3."
    return [f"3.{line.removeprefix(prefix)}" for line in project()["classifiers"] if line.startswith(prefix)]


def test_packages() -> list[str]:
    """Return the requirements of the extra `dev` that running the tests needs."""
    return [line for line in project()["optional-dependencies"]["dev"] if line.startswith(("pytest", "pyte"))]


def interpreter(version: str) -> str:
    """Return the path of Python `version`, such as 3.10. Raises Missing if there is none."""
    named = shutil.which(f"python{version}")
    of_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (*([named] if named else []), *map(str, sorted(of_pyenv.glob(f"{version}.*/bin/python")))):
        asked = subprocess.run([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True)
        if asked.stdout.strip() == version:
            return path
    raise Missing(f"there is no Python {version} on the path or among pyenv's; install it, or give another one by --python")


def uv(*arguments: str) -> None:
    """Run uv. Raises Missing where there is none, CalledProcessError where it fails."""
    program = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        raise Missing("there is no uv; `pip install uv`, or the extra dev, brings it")
    subprocess.run([program, *arguments], check=True, cwd=ROOT)


def make(name: str, version: str, folder: Path) -> Path:
    """Make the environment `name` on Python `version` in `folder`, and return its Python. Raises Missing, CalledProcessError."""
    environment = ENVIRONMENTS[name]
    where = folder / f"{name}-{version}"
    uv("venv", "--quiet", "--clear", "--python", interpreter(version), str(where))
    python = where / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    package = f"-e.[{','.join(environment.extras)}]"
    resolution = ("--resolution", environment.resolution)
    uv("pip", "install", "--quiet", "--python", str(python), *resolution, package, *test_packages())
    return python


def told(python: Path) -> str:
    """Return the versions of the most important packages that `python` has."""
    names = ("torch", "numpy", "diffusers", "lightning-fabric", "datasets", "pydantic", "typer", "transformers", "peft", "onnx")
    script = (
        "import importlib.metadata as m\n"
        "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        f"print(', '.join(f'{{n}} {{found[n]}}' for n in {names!r} if n in found))"
    )
    return subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def resolve() -> bool:
    """Whether the versions in constraints.txt are compatible on each Python of the classifiers. Raises Missing."""
    passed = True
    for version in pythons():
        try:
            uv("pip", "compile", "--quiet", "--no-annotate", "--python-version", version, *TESTED, "--output-file", os.devnull)
            print(f"constraints.txt goes together on Python {version}", flush=True)
        except subprocess.CalledProcessError:
            passed = False
    return passed


def run(name: str, version: str, folder: Path, tests: Sequence[str]) -> bool:
    """Make one environment, run `tests` (or its own) in it, and print a line about each; return whether all tests passed."""
    began = time.monotonic()
    python = make(name, version, folder)
    made = time.monotonic()
    print(f"{name} on Python {version}, made in {made - began:.0f} s: {told(python)}", flush=True)
    command = [str(python), "-m", "pytest", "-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider"]
    ended = subprocess.run([*command, *(tests or ENVIRONMENTS[name].tests)], cwd=ROOT)
    print(f"{name} on Python {version}: pytest ended with {ended.returncode} after {time.monotonic() - made:.0f} s", flush=True)
    return ended.returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line names; return 0 if all passed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default all of them")
    parser.add_argument("--python", help="version of Python, such as 3.11; default the first or the last in the classifiers")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder in which the environments are made, gigabytes each")
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, _, tests = (given[: given.index("--")], "--", given[given.index("--") + 1 :]) if "--" in given else (given, "", [])
    asked = parser.parse_args(own)
    if unknown := [name for name in asked.names if name not in NAMES]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(NAMES)}")
    passed = True
    for name in asked.names or NAMES:
        try:
            if name == CONSTRAINTS:
                passed = resolve() and passed
            else:
                version = asked.python or pythons()[-1 if ENVIRONMENTS[name].newest_python else 0]
                passed = run(name, version, asked.folder.resolve(), tests) and passed
        except (Missing, subprocess.CalledProcessError) as error:
            print(f"{name} was not run: {error}", file=sys.stderr)
            passed = False
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
