"""The house: nothing outside a method's room names it, recipes need no torch, settings agree with classes, no circle, no long file."""

import ast
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import fewstep
from fewstep import registry
from fewstep.networks.unet.network import UNet
from fewstep.recipe import shipped_recipes
from fewstep.sections import GIVEN

SOURCE = Path(fewstep.__file__).parent
LONGEST = 400
METHODS = list(registry.BUILT_IN["methods"])
CLASSES = {name: place.room.partition(":")[2] for name, place in registry.BUILT_IN["methods"].items()}
# a teacher is also a role that a generator plays for others; as a method's name it stands where a room is asked for
ROLE = "teacher"
# drift is also a field of the maths, and was the name of an alarm of every method
FIELD, FIELD_PLACES = "drift", ("maths", "training/health.py", "viz/dashboard/squares.py")

AROUND = {"LatentUNet": UNet}  # what hands its arguments on, and to what

NO_TORCH = """
import sys
from fewstep.recipe import load_recipe, shipped_recipes
for name in shipped_recipes():
    load_recipe(name)
import fewstep.cli
print([name for name in sys.modules if name.split(".")[0] in ("torch", "numpy", "lightning_fabric", "diffusers", "matplotlib")])
"""


def words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of every identifier and every string that is no docstring; comments are not in the tree."""
    docstrings = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # after a class's or a module's assignment, too
            docstrings |= {id(statement.value) for statement in body if isinstance(statement, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)):
                yield line, text
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text) | ast.keyword(arg=str(text)):
                yield line, text
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text):
                yield line, text
            case ast.ImportFrom(module=str(text)):
                yield line, text
                yield from ((line, alias.name) for alias in node.names)
            case ast.Import():
                yield from ((line, alias.name) for alias in node.names)


def names_method(text: str, name: str) -> bool:
    """Whether an identifier or a string speaks of the method `name`, or of its classes."""
    own = (CLASSES[name], f"{CLASSES[name]}Settings")
    if name == ROLE:
        return text in own or re.search(rf"methods\.{name}\b|\b{name}/\w", text) is not None
    parts = re.split(r"[^A-Za-z0-9_]+", text)
    return any(part in (name, *own) for part in parts)


def test_no_file_outside_its_room_names_a_method():
    """demo.py names the recipes that it shows, and the registry has one line a method."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        texts = list(words(ast.parse(path.read_text())))
        for name in METHODS:
            if place.parts[:2] == ("methods", name):
                continue
            said = [(line, text) for line, text in texts if names_method(text, name)]
            if place == Path("registry.py"):
                lines = {line for line, _ in said}
                assert len(lines) == 1, (name, lines)
                continue
            if name == FIELD and str(place).startswith(FIELD_PLACES):
                continue
            if name == FIELD and place.parts[0] == "methods":
                said = [(line, text) for line, text in said if text != FIELD]
            if place == Path("demo.py"):
                said = [(line, text) for line, text in said if text not in shipped_recipes()]
            found += [f"{place}:{line}: {text!r} names {name}" for line, text in said]
    assert found == []


def test_the_search_finds_a_method_that_is_named():
    code = """
from fewstep.methods.dmd2 import DMD2
x = "dmd2/digits"
def drift(a):
    '''drift'''  # drift
    return f"{a} drift"
"""
    found = [(line, name) for line, text in words(ast.parse(code)) for name in ("dmd2", "drift") if names_method(text, name)]
    assert sorted(set(found)) == [(2, "dmd2"), (3, "dmd2"), (4, "drift"), (6, "drift")]
    assert not any(names_method(text, "drift") for text in ("drift_field", "drifting_loss", "adrift"))
    assert names_method("Train one with fewstep train teacher/digits", "teacher")
    assert not names_method("method.teacher is missing", "teacher")


def test_recipes_and_help_import_nothing_heavy():
    ended = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["networks", "data"])
def test_each_setting_is_an_argument_of_its_room(kind):
    for name, place in registry.BUILT_IN[kind].items():
        if not place.room:  # the copy of the teacher's network, which no class makes
            continue
        settings, room = registry.settings(kind, name), registry.room(kind, name)
        fields = {key for key in settings.model_fields if key not in ("name", "sigma_data")}
        parameters = inspect.signature(AROUND.get(room.__name__, room)).parameters
        assert fields <= parameters.keys(), (name, fields - parameters.keys())
        own = {key for key, parameter in parameters.items() if key not in GIVEN and parameter.kind is parameter.POSITIONAL_OR_KEYWORD}
        assert own <= fields, (name, own - fields)  # nor is there an argument that no recipe can give


@pytest.mark.parametrize("kind", ["methods", "networks", "data"])
def test_each_room_is_called_what_its_settings_say(kind):
    for name in registry.BUILT_IN[kind]:
        settings = registry.settings(kind, name)
        assert typing.get_args(settings.model_fields["name"].annotation) == (name,)
        assert issubclass(settings, registry.SETTINGS[kind])
        assert settings.__doc__


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_settings_that_the_registry_names(name):
    method = registry.room("methods", name)
    assert method.Settings is registry.settings("methods", name)
    assert method.shown
    turns = {alarm.figure.partition(".")[0] for alarm in method.alarms}
    assert turns or not method.alarms


def circle(imports: dict[str, set[str]]) -> set[str]:
    """The modules that lie on a circle of imports, or between two."""
    left = {module: set(imported) for module, imported in imports.items()}
    while True:
        used = set().union(*left.values()) if left else set()
        ends = [module for module, imported in left.items() if not imported & left.keys() or module not in used]
        if not ends:
            return set(left)
        for module in ends:
            del left[module]


def test_no_circle_of_imports_type_only_ones_included():
    graph = grimp.build_graph("fewstep", exclude_type_checking_imports=False, cache_dir=None)
    assert len(graph.modules) > 100
    assert circle({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}) == set()


def test_the_search_finds_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {"b", "c"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == set()


def test_no_file_is_long():
    lines = {path.relative_to(SOURCE): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {str(path): number for path, number in lines.items() if number > LONGEST and path.name != "inert_pickle.py"} == {}
