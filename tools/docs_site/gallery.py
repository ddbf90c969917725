"""Write the gallery's entry of each shipped recipe: its `about`, its command, what is measured of it, and a picture where docs has one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.recipe.reading import parse_yaml, shipped_recipes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
METHODS = {
    "teacher": ("Diffusion teachers", "What each method makes of a teacher is in [Every method side by side](methods.md)."),
    "dmd2": ("DMD2: a teacher in one step, or a few", "The settings and what each of them changes: [DMD2](dmd2.md)."),
    "consistency": ("Consistency models", "Training time and quality: [Consistency models and flow maps](flows.md)."),
    "flow_map": ("Flow maps", "Training time and quality: [Consistency models and flow maps](flows.md)."),
    "dddm": ("DDDM: few steps without a teacher", "Quality by the number of steps: [DDDM](dddm.md)."),
    "drift": ("Drift: one step without a teacher", "The kinds of drift, and what limits them: [Drift](drift.md)."),
}
PICTURES = {
    "dmd2/digits": ("demo.png", "Real digits, the teacher at 35 evaluations and at one, the student at one"),
    "drift/ring": ("drift.png", "Reference density, target with samples, drift field, loss, mode weights and coverage"),
    "dmd2/mnist": ("images_mnist.png", "Real digits, the teacher at 70 and at 2 evaluations, the student at one"),
    "dmd2/cifar10_cpu": ("images_cifar10_16.png", "Real images at 16x16, the teacher, the student at one evaluation"),
}
# recipes with figures in a table of a page: here text, results, row and page, below the page alone
MEASURED = {
    "teacher/digits": ("FD / floor {:.2f} at 35 evaluations", "quality", "teacher, 35 evaluations", "results/digits.md"),
    "dmd2/digits": ("FD / floor {:.2f} at one evaluation", "quality", "student, 1 evaluation", "results/digits.md"),
}
TABLES = {
    "dmd2/digits_4step": "dmd2.md",
    "consistency/digits": "flows.md",
    "consistency/digits_scratch": "flows.md",
    "flow_map/digits": "flows.md",
    "flow_map/digits_scratch": "flows.md",
    "consistency/ring": "flows.md",
    "flow_map/ring": "flows.md",
    "dddm/digits": "dddm.md",
    "dddm/ring": "dddm.md",
    "dddm/bimodal": "dddm.md",
    "drift/digits": "drift.md",
    "drift/ring": "results/laboratory.md",
    "drift/ring_continuous": "results/laboratory.md",
    "drift/grid25": "results/laboratory.md",
    "drift/unequal": "results/laboratory.md",
    "drift/mixture8d": "results/laboratory.md",
    "dmd2/ring": "results/laboratory.md",
    "teacher/ring": "alarms.md",
    "teacher/mnist": "mnist.md",
    "dmd2/mnist": "mnist.md",
    "consistency/mnist": "mnist.md",
    "flow_map/mnist": "mnist.md",
    "drift/mnist": "mnist.md",
    "teacher/cifar10_cpu": "cifar10.md",
    "dmd2/cifar10_cpu": "cifar10.md",
}
# data set -> what its recipes need on the command line beside `fewstep train RECIPE --out runs/NAME`
GIVEN = {
    "images": "data.path=path/to/images",
    "latents": "data.path=latents",
    "prompts": "data.path=prompts",
}


def command(name: str, tree: Mapping[str, Any]) -> str:
    """Return the command that trains the recipe."""
    words = ["fewstep train", name, f"--out runs/{name.rpartition('/')[2]}"]
    method, data = tree["method"], tree["data"]
    if "about" in tree and "method.teacher" in tree["about"] and "teacher" not in method:
        words.append("method.teacher=runs/teacher")
    if data["name"] in GIVEN and not (name == "dmd2/images" or data.get("path")):
        words.append(GIVEN[data["name"]])
    return " ".join(words)


def measured(name: str) -> str:
    """Return a sentence on what is measured of the recipe, with a link to the page."""
    if name in MEASURED:
        form, file, row, page = MEASURED[name]
        runs = json.loads((RESULTS / f"{file}.json").read_text())["runs"]
        values = [run["rows"][row]["frechet_over_floor"] for run in runs]
        return f"Measured: {form.format(sum(values) / len(values))}, the mean over {len(runs)} training seeds ([table]({page}))."
    if name in TABLES:
        return f"Measured: its figures, seeds and times are in [a table]({TABLES[name]})."
    return "Measured: no run of its full length."


def recipe(name: str, tree: Mapping[str, Any]) -> str:
    """Return the entry of one recipe."""
    parts = [f"### {name}", f"{tree['about']}", f"```console\n$ {command(name, tree)}\n```", measured(name)]
    if name in PICTURES:
        file, text = PICTURES[name]
        parts.append(f"![{text}]({file})")
    return "\n\n".join(parts)


def entries() -> str:
    """Return the entries of all shipped recipes, by method."""
    trees = {name: parse_yaml(path.read_text()) for name, path in shipped_recipes().items()}
    parts = []
    for method, (title, more) in METHODS.items():
        parts.append(f"## {title}\n\n{more}")
        parts += [recipe(name, tree) for name, tree in trees.items() if name.startswith(f"{method}/")]
    return "\n\n".join(parts)
