"""Reading of recipes: YAML and ``key=value`` overrides become a `Recipe`, or one error that lists all mistakes."""

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, create_model
from pydantic_core import PydanticSerializationError

from fewstep import registry
from fewstep.errors import UserError
from fewstep.limits import YAML_BYTES, YAML_NODES
from fewstep.recipe.mistakes import explain, nearest
from fewstep.recipe.older import KINDS, bring_forward, forward_key, leaves, put
from fewstep.recipe.recipe import Recipe, resolved
from fewstep.screen import SCREEN
from fewstep.sections import Section
from fewstep.text import read_text

NO_SETTINGS = ("about", "made_by", "format", "start_here")  # keys of a recipe file that are not settings
# pydantic's error types for values of Python that YAML has no form of
NO_YAML = ("tuple_type", "set_type", "frozen_set_type", "is_instance_of")


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads numbers as YAML 1.2 does, and rejects duplicate keys.

    PyYAML reads ``1e-4`` as a string, ``010`` as 8 and ``1:30`` as 90. Here a whole number with a leading zero or a colon is text, which
    no setting that is a number takes.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of `node`. Raises YAMLError for a key that is given twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = [key for key, num in Counter(key for key in keys if isinstance(key, Hashable)).items() if num > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:int"]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """Return the contents of the YAML document `text`, with floats as in YAML 1.2 and plain containers only.

    Raises yaml.YAMLError for text that is not YAML, a key given twice, or a document too large or too deeply nested.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (nodes := _written_out(node, {})) > YAML_NODES:
            raise yaml.YAMLError(f"with its aliases written out it has {nodes:,} entries, where {YAML_NODES:,} are allowed; take some out")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep to be read") from None
    except ValueError as error:  # a number of thousands of digits, or an invalid date
        raise yaml.YAMLError(str(error)) from None


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of nodes with all aliases expanded; more than `YAML_NODES` for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = YAML_NODES + 1  # the count that an alias to this node from inside it finds
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner if isinstance(part, yaml.Node))
    return known[id(node)]


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the recipes in the package, by name, such as ``teacher/digits``."""
    root = Path(str(files("fewstep"))) / "recipes"
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.glob("*/*.yaml"))}


def load_recipe(source: str, overrides: Iterable[str | tuple[str, Any]] = ()) -> Recipe:
    """Return the recipe `source` (a shipped name, or the path of a YAML file) with `overrides`: ``steps=500``, or ``("steps", 500)``.

    A recipe is trusted as the user's own choice: import paths in it are imported, also from the file's folder. Raises UserError with every
    mistake in the file and the overrides, one per line.
    """
    shipped = shipped_recipes()
    path = shipped.get(source, Path(source))
    if not path.is_file():
        raise UserError(
            f"there is no recipe {source!r}{nearest(source, shipped)}; shipped are {', '.join(shipped)}, or give the path of a YAML file"
        )
    try:
        tree = parse_yaml(read_text(path, YAML_BYTES))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{source} holds {type(tree).__name__}; a recipe has the keys {', '.join(Recipe.model_fields)}")
    return _with_overrides(tree, source, list(overrides), path.parent)


def _with_overrides(tree: dict[str, Any], source: str, overrides: list[str | tuple[str, Any]], folder: Path) -> Recipe:
    pairs, mistakes = [], []
    for override in overrides:
        pair = _parsed(override) if isinstance(override, str) else (override[0], _plain(override[1]))
        if isinstance(pair, str):
            mistakes.append(pair)
        else:
            pairs.append(pair)
    final = copy.deepcopy(tree)
    for key, value in pairs:  # what an older key means depends on the names of method, network and data after all overrides
        put(final, key.split("."), value)
    for section in KINDS:
        named = final[section].get("name") if isinstance(final.get(section), dict) else None
        if isinstance(named, str) and registry.is_import_path(named):
            registry.trust(named, folder)
    said = bring_forward(tree)
    for key, value in pairs:
        paths, moved = forward_key(key, final)
        said += moved
        for path in paths:
            if (part := put(tree, path.split("."), copy.deepcopy(value))) is not None:
                mistakes.append(f"{key} cannot be set: {part} is not a section")
    if mistakes:
        raise UserError("\n".join(mistakes))
    if isinstance(finds := tree.get("finds"), list):  # a setting that is given is not searched for
        given = leaves({path: value for key, value in pairs for path in forward_key(key, final)[0]})
        tree["finds"] = [key for key in finds if key not in given]
    said += bring_forward(tree)  # again, for a section that an override has given as a whole
    if said:
        SCREEN.say(f"note: keys of an older version, translated to today's: {', '.join(dict.fromkeys(said))}")
    return validated(tree, source)


def validated(tree: Mapping[str, Any], source: str) -> Recipe:
    """Return the recipe file contents `tree` as a Recipe; keys of older formats are moved without a note.

    Raises UserError that lists every mistake, with `source` as the recipe's name.
    """
    plain = copy.deepcopy({key: value for key, value in tree.items() if key not in NO_SETTINGS})
    bring_forward(plain)
    kinds: dict[str, Any] = {}
    lines = []
    for section, kind in KINDS.items():
        found = _settings(section, kind, plain.get(section))
        kinds[section] = (Any if isinstance(found, str) else found, ...)
        lines += [found] * isinstance(found, str)
    model = create_model("Recipe", __base__=Recipe, **kinds)
    try:
        recipe = _of_types(model, plain)
    except ValidationError as error:
        lines += explain(error.errors(), model)
    if lines:
        raise UserError(f"{source} has {len(lines)} mistake{'s' * (len(lines) > 1)}:\n" + "\n".join(f"  {line}" for line in lines))
    if any(registry.is_own(kind, plain[section]["name"]) for section, kind in KINDS.items()):
        _check_kept(recipe, model, source)
    return Recipe.model_construct(**{name: getattr(recipe, name) for name in Recipe.model_fields})


def _of_types(model: type[Recipe], plain: Mapping[str, Any]) -> Recipe:
    """Return `plain` as a `model`; a list stands for a tuple or a set, and text for a path or a member of an enumeration.

    Raises ValidationError.
    """
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        if not any(found["type"] in NO_YAML for found in error.errors()):
            raise
        try:
            text = json.dumps(plain)
        except (TypeError, ValueError):
            raise error from None
    return model.model_validate_json(text)


def _check_kept(recipe: Recipe, model: type[Recipe], source: str) -> None:
    """Raise UserError where `recipe`, with settings of a user's own part, could not be read again from the file that a run keeps."""
    try:
        _of_types(model, resolved(recipe))
        return
    except ValidationError as error:
        wrong = "; ".join(explain(error.errors(), model))
    except PydanticSerializationError as error:
        wrong = str(error)
    raise UserError(f"{source}: a run of it could not be read again ({wrong}); give that setting a type and a default that YAML can hold")


def _settings(section: str, kind: str, inner: Any) -> type[Section] | str:
    """Return the settings class that the ``name`` in the section's contents `inner` chooses, or a sentence on what is wrong with it."""
    if not isinstance(inner, dict):  # missing, or not a section: pydantic reports it like any other mistake
        return registry.SETTINGS[kind]
    known = registry.names(kind)
    name = inner.get("name")
    if name is None:
        return f"{section}.name is missing; allowed: {' or '.join(map(repr, known))}, or package.module:Name"
    if name not in known and not (isinstance(name, str) and registry.is_import_path(name)):
        close = nearest(str(name), known)
        return f"{section}.name is {name!r}{close}; allowed: {', '.join(map(repr, known))}, or package.module:Name"
    try:
        return registry.settings(kind, name)
    except UserError as error:
        return f"{section}.name: {error}"


def _parsed(override: str) -> tuple[str, Any] | str:
    """Return (key, value) of an override ``a.b=value``, or a sentence on what is wrong with it."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        return f"{override!r} is not of the form key=value, such as steps=500 or trainer.log_every=10"
    try:
        return key, parse_yaml(text) if text else None
    except yaml.YAMLError as error:
        return f"the value of {override!r} is not YAML ({' '.join(str(error).split())}); put quotes round it"


def _plain(value: Any) -> Any:
    """Return a setting given in Python as YAML would have it: a path as text, a tuple as a list, a number of numpy or torch as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.item() if getattr(value, "shape", None) == () else value


def schema() -> dict[str, Any]:
    """Return the JSON schema of recipes with all built-in methods, networks and data sets, for editors that complete YAML."""
    from typing import Annotated, Union

    from pydantic import Field

    kinds: dict[str, Any] = {}
    for section, kind in KINDS.items():
        classes = tuple(registry.settings(kind, name) for name in registry.names(kind) if name in registry.BUILT_IN[kind])
        kinds[section] = (Annotated[Union[classes], Field(discriminator="name")], ...)  # noqa: UP007 - a tuple of classes
    return create_model("Recipe", __base__=Recipe, **kinds).model_json_schema()
