"""The demonstration: train a teacher on real digits, distil it into one step, measure both and draw a picture of their samples."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, going_on
from fewstep.evaluation import evaluate, run_recipe
from fewstep.evaluation_text import in_words, table
from fewstep.generator import load
from fewstep.metrics.results import read_results
from fewstep.metrics.rows import row_roles
from fewstep.recipe import load_recipe, resolved
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

# for each stage its recipe and overrides: half of the full distillation is enough to see its effect
STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "teacher": ("teacher/digits", ()),
    "student": ("dmd2/digits", ("steps=700",)),
}


def demo(out: Path, overrides: tuple[str, ...] = (), say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the stages that are not finished under `out` (teacher/, student/), draw ``demo.png`` there, and return the student's results.

    A call after a finished one returns the results it finds; a call after an interruption continues where it stopped. `overrides`, such as
    ``("steps=20",)``, apply to both recipes. Raises UserError as `train` does.
    """
    began = time.monotonic()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is {out}, which is a file; give a folder")
    for number, (name, (source, differing)) in enumerate(STAGES.items(), start=1):
        teacher = (f"method.teacher={json.dumps(str(out / 'teacher'))}",) if name == "student" else ()
        recipe = load_recipe(source, (*differing, *overrides, *teacher))
        folder = RunFolder(out / name)
        if folder.recipe_file.exists():
            folder.check(resolved(recipe), resume=True)
        if folder.is_finished(recipe.steps):
            continue
        what = "a diffusion teacher learns real digits" if name == "teacher" else "the teacher is distilled into one step"
        say(f"{number}/3 {what} ({source}, {recipe.steps} steps)")
        with going_on():
            train_recipe(recipe, folder.path, resume=folder.recipe_file.exists(), title=name, source=source)
        folder.results_file.unlink(missing_ok=True)
    student = RunFolder(out / "student")
    if student.results_file.exists():
        results = read_results(student.path)
    else:
        say("3/3 measuring, 2,000 samples each")
        results = evaluate(student.path)
        (out / "demo.png").unlink(missing_ok=True)
        say(f"done in {time.monotonic() - began:.0f} s")
    if not (out / "demo.png").exists():
        draw(out, results)
    return results


def draw(out: Path, results: dict[str, Any], per_class: int = 4) -> None:
    """Draw the contact sheet ``demo.png``: real digits, samples of the teacher at its full number of steps and at one, and of the student.

    Each block shows `per_class` (an even number) images of each digit, with the figures of its row in `results`.
    """
    from fewstep.build import in_memory, load_data
    from fewstep.viz.plots import contact_sheet

    data = in_memory(load_data(run_recipe(out / "student").data))
    teacher, student = load(out / "student" / "teacher"), load(out / "student")
    columns = 20
    labels = [k for k in range(10) for _ in range(columns // 10)] * (per_class * 10 // columns)
    heldout, heldout_label = data.images("heldout"), data.labels("heldout")
    assert heldout_label is not None
    taken = {k: iter((heldout_label == k).nonzero().flatten().tolist()) for k in range(10)}
    real = heldout[[next(taken[k]) for k in labels]]
    pictures, models = {}, {"teacher": teacher, "own": student}
    for name, role in row_roles(results).items():
        if role == "floor":
            pictures[name] = real
        elif role in models:
            pictures[name] = models[role].sample(len(labels), labels, seed=0, steps=results["rows"][name]["steps"])
    blocks = []
    for name, images in pictures.items():
        row = results["rows"][name]
        speed = f", {row['images_per_second']:,.0f} images/s" if "images_per_second" in row else ""
        blocks.append((name.replace("real train split", "real digits (held out; figures: train split)"), in_words(row) + speed, images))
    many = max(results["rows"][name].get("evaluations", 0) for name in pictures)
    contact_sheet(blocks, out / "demo.png", columns, f"Digits in one network evaluation, where the teacher takes {many}")


def summary(results: dict[str, Any]) -> list[list[str]]:
    """Return the table of `results` with a few columns: FD, FD / floor, FD to train, class asked for, samples/s."""
    lines = table(results)
    wanted = ("", "FD", "FD / floor", "FD to train", "class asked for", "samples/s")
    keep = [i for i, heading in enumerate(lines[0]) if heading in wanted]
    return [[line[i] for i in keep] for line in lines]
