"""Generate the pages of the Python interface: directives of mkdocstrings in the site, signatures and docstrings in the plain Markdown."""

import importlib
import inspect
import re
from typing import Any

DIRECTIVE = re.compile(r"^::: ([\w.]+)\n((?:    .*\n?)*)", re.M)
NAMES = {
    "From recipes to runs": ["fewstep.run.train", "fewstep.evaluation.evaluate", "fewstep.comparison.compare", "fewstep.registry.register"],
    "Generators": ["fewstep.generator.load", "fewstep.generator.sample", "fewstep.generator.Generator"],
    "Denoisers": ["fewstep.denoisers.protocol"],
    "Writing a method": [
        "fewstep.methods.base.Method",
        "fewstep.methods.base.Turn",
        "fewstep.methods.base.LossOutput",
        "fewstep.methods.base.Alarm",
        "fewstep.sections.MethodSettings",
        "fewstep.sections.NetworkSettings",
        "fewstep.sections.DataSettings",
    ],
    "Measurement": [
        "fewstep.metrics.frechet.frechet_distance",
        "fewstep.metrics.kernel_mmd.kernel_distance",
        "fewstep.metrics.manifold.precision_recall",
    ],
}
MATHS = ("schedules", "parametrization", "kernels", "matching", "energy", "adversarial", "flow", "transport", "mixtures")

INTERFACE = """\
# Python interface

`import fewstep` gives the functions `train`, `evaluate`, `compare`, `load`, `sample` and `register` and the class `Generator`; this
page lists them under the modules that define them. Packages that are slow to import, such as PyTorch, are imported when one of these names
is first used.
"""
FORMULAS = """\
# Formulas

Pure functions of tensors, each with the shapes of its arguments and its source. [Papers](../papers.md) says which equation each function
implements, and which test checks it.
"""


def pages() -> dict[str, str]:
    """Return the path of each page, and its Markdown with directives."""
    interface = [INTERFACE]
    for title, names in NAMES.items():
        interface += [f"## {title}\n", *(f"::: {name}\n    options:\n      heading_level: 3\n" for name in names)]
    whole = "    options:\n      heading_level: 3\n      show_root_heading: false\n      show_root_toc_entry: false\n"
    formulas = [FORMULAS, *(f"## {name}\n\n::: fewstep.maths.{name}\n{whole}" for name in MATHS)]
    return {"reference/api.md": "\n".join(interface), "reference/maths.md": "\n".join(formulas)}


def written_out(text: str) -> str:
    """Return `text` with each directive replaced by signatures and docstrings."""
    return DIRECTIVE.sub(lambda match: described(match[1]), text)


def described(path: str) -> str:
    """Return signature and docstring of what `path` names; of a module, those of its public functions and classes."""
    found = named(path)
    if not inspect.ismodule(found):
        return entry(path, found)
    own = [(name, value) for name, value in vars(found).items() if getattr(value, "__module__", None) == path and not name.startswith("_")]
    return "\n".join([inspect.getdoc(found) or "", "", *(entry(name, value) for name, value in own if callable(value))])


def named(path: str) -> Any:
    """Return the object at a dotted path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def entry(name: str, found: Any) -> str:
    """Return signature and docstring of `found`, and of a class also those of its public methods."""
    try:
        signature = str(inspect.signature(found))
    except (TypeError, ValueError):
        signature = ""
    lines = [f"### {name.rpartition('.')[2]}", "", f"```python\n{name}{signature}\n```", "", inspect.getdoc(found) or "", ""]
    if inspect.isclass(found):
        for key, value in vars(found).items():
            if not key.startswith("_") and inspect.isfunction(value):
                lines.append(entry(f"{name}.{key}", value).replace("### ", "#### ", 1))
    return "\n".join(lines)
