"""Generate the page of the command line from the commands themselves."""

import typing
from typing import Any

import typer

INTRO = """\
# Command line

Every command with its arguments and options, as `fewstep COMMAND --help` prints them; this page is generated from the commands when the
site is built. Exit codes: 0 for success; 2 for an error that you can correct, which one message explains; 1 for a bug in fewstep, with a
traceback; 130 for a stop by a signal, after training has saved its state. `fewstep --install-completion` sets up tab completion of recipes,
settings and run folders.
"""


def page() -> str:
    """Return the page `reference/cli.md`."""
    from fewstep.cli import app

    parts = [INTRO.rstrip()]
    for name, command in walk(typer.main.get_command(app), "fewstep"):
        parts += [f"## {name}", one_line(command.help or command.callback.__doc__ or "")]
        usage = " ".join([name, *(word(parameter) for parameter in command.params if parameter.param_type_name == "argument")])
        parts += [f"```text\n{usage} [OPTIONS]\n```", table(command)]
    return "\n\n".join(parts) + "\n"


def walk(command: Any, name: str) -> list[tuple[str, Any]]:
    """Return (whole name, command) of `command` and of each command below it that does something."""
    if not hasattr(command, "commands"):
        return [(name, command)]
    own = [(name, command)] if command.invoke_without_command else []
    return own + [found for key, below in command.commands.items() for found in walk(below, f"{name} {key}")]


def word(parameter: Any) -> str:
    """Return an argument as a line of usage shows it."""
    text = parameter.metavar or parameter.name.upper()
    return text if parameter.required or text.startswith("[") else f"[{text}]"


def table(command: Any) -> str:
    """Return the table of the arguments and options of `command`."""
    lines = ["| argument or option | value | default | help |", "|---|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        if parameter.param_type_name == "argument":
            names = f"`{word(parameter)}`"
        lines.append(f"| {names} | {kind(parameter)} | {default(parameter)} | {one_line(parameter.help or '')} |")
    return "\n".join(lines) if len(lines) > 2 else "This command has no options."


def kind(parameter: Any) -> str:
    """Return, in words, the kind of value that is given with `parameter`."""
    if getattr(parameter, "is_flag", False):
        return "nothing"
    wanted = parameter.type_descriptor.annotation
    name = getattr((typing.get_args(wanted) or (wanted,))[0], "__name__", "str")
    again = ", may be repeated" if parameter.multiple or parameter.nargs == -1 else ""
    return {"int": "whole number", "float": "number", "Path": "path"}.get(name, "text") + again


def default(parameter: Any) -> str:
    """Return the cell of the default of `parameter`: its value, "required", or nothing."""
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value is None or value is False or callable(value) else f"`{value}`"


def one_line(text: str) -> str:
    """Return `text` on one line, as the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
