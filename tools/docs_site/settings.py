"""Generate the pages of the settings, every key of every room with its type, range, default and help, from the pydantic classes.

A room is a method, a network or a data set (`fewstep.registry`). A section inside another, such as an optimizer, is written out with its
keys behind a dot, as a recipe and the command line take them.
"""

import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fewstep import registry
from fewstep.recipe.recipe import Recipe, Trainer
from fewstep.sections import Section, section_in


class Row(NamedTuple):
    """One setting: its key, the values that it allows, its default and its help."""

    key: str
    kind: str
    default: str
    help: str


TITLES = {
    "methods": (
        "Settings of methods",
        "The keys of a recipe's section `method`: `method.name` chooses the method, and each method has its own further keys.",
    ),
    "networks": (
        "Settings of networks",
        "The keys of a recipe's section `network`: `network.name` chooses the network, and each network has its own further keys.",
    ),
    "data": (
        "Settings of data sets",
        "The keys of a recipe's section `data`: `data.name` chooses the data set, and each data set has its own further keys.",
    ),
}
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "mapping", "null": "null"}


def rows(cls: type[BaseModel], prefix: str = "") -> Iterator[Row]:
    """Yield the settings of `cls` in their order, with those of sections inside it; `name`, which chooses the class, is left out."""
    schema = cls.model_json_schema()
    for key, field in cls.model_fields.items():
        if key == "name":
            continue
        inner = section_in(field.annotation)
        kind = "section" if inner else allowed(schema["properties"][key], schema.get("$defs", {}))
        if inner and type(None) in typing.get_args(field.annotation):
            kind += ", or null"
        yield Row(f"{prefix}{key}", kind, default_of(field, inner), field.description or "")
        if inner:
            yield from rows(inner, f"{prefix}{key}.")


def default_of(field: FieldInfo, inner: type[Section] | None) -> str:
    """Return the default as YAML writes it; nothing for a section, whose keys have their own."""
    if field.is_required():
        return "required"
    if inner:
        return "null" if field.default is None and field.default_factory is None else ""
    return code(shown(field.get_default(call_default_factory=True)))


def shown(value: Any) -> str:
    """Return `value` as YAML writes it on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def allowed(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Return, in words, what a JSON schema allows."""
    if "$ref" in schema:
        return allowed(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(allowed(part, defs) for part in schema["anyOf"]))
    if "const" in schema:
        return code(shown(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(shown(value)) for value in schema["enum"])
    if schema.get("type") == "array":
        least = f", {schema['minItems']} at least" if schema.get("minItems") else ""
        return f"list of {allowed(schema['items'], defs)}{least}" if schema.get("items") else f"list{least}"
    return WORDS.get(schema.get("type", ""), "any") + between(schema)


def between(schema: Mapping[str, Any]) -> str:
    """Return, in words, the range that a JSON schema allows a number."""
    whole = schema.get("type") == "integer"
    if whole and "exclusiveMinimum" in schema:
        schema = {"minimum": schema["exclusiveMinimum"] + 1, **{key: schema[key] for key in schema if key != "exclusiveMinimum"}}
    bounds = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    found = [f"{word} {schema[key]:{',' if whole else 'g'}}" for key, word in bounds.items() if key in schema]
    return " " + " ".join(found) if found else ""


def code(text: str) -> str:
    """Return `text` in backticks."""
    return f"`{text}`"


def table(cls: type[BaseModel], prefix: str = "") -> str:
    """Return the settings of `cls` as a table."""
    lines = ["| setting | allowed | default | help |", "|---|---|---|---|"]
    for row in rows(cls, prefix):
        cells = [code(row.key), row.kind, row.default, row.help]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "It has no settings."


def rooms_page(kind: str) -> str:
    """Return the page of every room of `kind` that a recipe can name."""
    title, about = TITLES[kind]
    prefix = f"{registry.SINGULAR[kind].split()[0]}."
    parts = [f"# {title}", about, MADE]
    for name in (name for name, place in registry.BUILT_IN[kind].items() if place.offered):
        cls = registry.settings(kind, name)
        parts += [f"## {name}", (cls.__doc__ or "").split("\n\n")[0], table(cls, prefix)]
    return "\n\n".join(parts) + "\n"


MADE = (
    "This page is generated from the classes of the settings when the site is built. A setting is given on the command line as "
    "`key=value`, or in a recipe's YAML file; [Change a recipe](../howto/settings.md) says how. `null` is YAML's word for no value."
)


def recipe_page() -> str:
    """Return the page of the recipe's own keys and the trainer's."""
    own = {key for key in Recipe.model_fields if section_in(Recipe.model_fields[key].annotation) is None}
    lines = ["| setting | allowed | default | help |", "|---|---|---|---|"]
    schema = Recipe.model_json_schema()
    for key in Recipe.model_fields:
        if key in own:
            field = Recipe.model_fields[key]
            kind = (
                "list of settings that can be chosen automatically"
                if key == "finds"
                else allowed(schema["properties"][key], schema["$defs"])
            )
            lines.append(f"| `{key}` | {kind} | {default_of(field, None)} | {field.description} |")
        else:
            lines.append(f"| `{key}` | section | | {Recipe.model_fields[key].description} |")
    parts = ["# Settings of a recipe and the trainer", MADE, "## Recipe", "\n".join(lines), "## Trainer", (Trainer.__doc__ or "").strip()]
    return "\n\n".join([*parts, table(Trainer, "trainer.")]) + "\n"


def pages() -> dict[str, str]:
    """Return the path of each page of settings, and its Markdown."""
    return {
        "reference/recipe.md": recipe_page(),
        **{f"reference/{kind}.md": rooms_page(kind) for kind in TITLES},
    }
