"""What is shipped: the wheel, the archive of the sources, and a demonstration by the wheel alone, from where the source tree is not."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from fewstep import __version__
from fewstep.recipe import shipped_recipes

ROOT = Path(__file__).parents[1]
# what builds it is installed with the tests: nothing is downloaded
BUILD = (sys.executable, "-m", "build", "--no-isolation")
# of digits, in seconds: both have these keys
SMALL = ("steps=2", "batch_size=8", "method.sampler_steps=1", "trainer.accelerator=cpu")
# each file that a process of the installation opens in the source tree is noted; the dependencies may lie in the tree's own environment
WATCH = """
import os, sys

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith({tree!r}) and not path.startswith({dependencies!r}):
            with open({opened!r}, "a") as file:
                print(path, file=file)

sys.addaudithook(watch)
"""


def build(out, *options) -> Path:
    ended = subprocess.run([*BUILD, *options, "--outdir", str(out), str(ROOT)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the archive of the sources, and the wheel that was built from that archive."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built):
    return built / f"fewstep-{__version__}-py3-none-any.whl"


def contents(wheel) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sources() -> dict[str, bytes]:
    """Every file of the package, whatever its kind: modules, recipes, networks of features, pages."""
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(ROOT / "src").as_posix(): path.read_bytes() for path in files}


def description(wheel) -> email.message.Message:
    return email.message_from_bytes(contents(wheel)[f"fewstep-{__version__}.dist-info/METADATA"])


def test_one_version_is_told_everywhere():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([^\]]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[1] == __version__
    assert f'\ndate-released: "{newest[2]}"\n' in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    found = {name: content for name, content in contents(wheel).items() if not name.startswith(f"fewstep-{__version__}.dist-info/")}
    assert found == sources()
    assert {"fewstep/py.typed", "fewstep/metrics/digit_features.safetensors", "fewstep/recipes/dmd2/digits.yaml"} <= found.keys()


def test_the_tree_and_the_archive_make_the_same_wheel(wheel, tmp_path):
    straight = build(tmp_path, "--wheel") / wheel.name
    assert contents(straight) == contents(wheel)


def test_the_archive_holds_what_builds_and_tests_the_package_and_no_more(built):
    with tarfile.open(built / f"fewstep-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "Makefile"} <= names
    assert {f"src/{name}" for name in sources()} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")} <= names
    assert not [name for name in names if re.match(r"\.ci|\.github|runs|dist|\.venv", name) or name.endswith((".png", ".pyc"))]


def test_the_long_description_shows_no_path_that_an_index_does_not_have(wheel):
    shown = description(wheel).get_payload()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((?!https://)[^)]*\)", shown) == []
    words = re.findall(r"!\[([^\]]*)\]\((?!https://)", readme)
    assert words
    assert re.findall(r"\*Picture: ([^*]*)\.\*", shown) == words
    code = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
    assert code.findall(shown) == code.findall(readme)


def test_an_index_takes_what_is_shipped(built):
    twine = (sys.executable, "-m", "twine", "check", "--strict")
    ended = subprocess.run([*twine, *map(str, built.iterdir())], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


class Installed:
    """An empty environment into which the wheel alone was installed; its dependencies are those of the tests, and lie elsewhere."""

    def __init__(self, folder, wheel) -> None:
        self.folder, self.opened = folder, folder / "opened.txt"
        venv.create(folder / "env", symlinks=True)
        self.bin = folder / "env" / "bin"
        pip = (sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet", "--no-deps", "--no-index")
        subprocess.run([*pip, str(wheel)], check=True)
        site = next((folder / "env" / "lib").glob("python*/site-packages"))
        paths = sysconfig.get_paths()
        # what is on the path by a .pth file has none of its own .pth files read, of which one names the source tree
        (site / "dependencies.pth").write_text("\n".join(dict.fromkeys((paths["purelib"], paths["platlib"]))) + "\n")
        watch = WATCH.format(tree=f"{ROOT}{os.sep}", dependencies=f"{ROOT / '.venv'}{os.sep}", opened=str(self.opened))
        (site / "sitecustomize.py").write_text(watch)

    def __call__(self, program, *arguments) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(self.bin / program), *map(str, arguments)]
        ended = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("elsewhere"), wheel)


def test_what_the_watch_is_for_is_noticed(installed):
    installed("python", "-c", f"open({str(ROOT / 'README.md')!r}).close()")
    assert installed.opened.read_text().splitlines() == [str(ROOT / "README.md")]
    installed.opened.unlink()


def test_the_wheel_alone_knows_its_version_and_its_recipes(installed):
    assert installed("fewstep", "--version") == f"fewstep {__version__}\n"
    listed = installed("fewstep", "recipes")
    assert [name for name in shipped_recipes() if name not in listed] == []
    where = installed("python", "-c", "import fewstep; print(fewstep.__file__)").strip()
    assert Path(where).is_relative_to(installed.folder / "env")
    assert not installed.opened.exists()


def test_the_wheel_alone_demonstrates(installed):
    out = installed("fewstep", "demo", "--out", "demo", *SMALL)
    assert "student, 1 evaluation" in out
    for name in ("demo.png", "student/report.html", "student/results.json", "student/model/model.safetensors"):
        assert (installed.folder / "demo" / name).stat().st_size > 0
    assert f"fewstep: {__version__}" in (installed.folder / "demo" / "student" / "recipe.yaml").read_text()
    drawn = installed("fewstep", "sample", "demo/student", "-n", 4, "--out", "samples.png")
    assert "4 samples, 1 evaluation(s) each" in drawn
    assert not installed.opened.exists()
