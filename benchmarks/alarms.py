"""Measure what the alarms say of runs that fail and of runs that do not, and whether following an alarm's advice helps.

    python benchmarks/alarms.py                 every arm, about 40 minutes on one core; a run that is finished is not trained again
    python benchmarks/alarms.py "batch of 4"    the arms whose title contains this text

Each failure is provoked in a small run of a shipped recipe. The advice of the expected alarm is then followed as a person would follow it:
the first setting that the advice names is lowered, raised or set (`follow`), the recipe is trained again, and both runs are measured.
Advice on a learning rate or a batch size does not say by how much to change it, so the advice is followed up to three times. The sound
arms are shipped recipes, unchanged and trained to their end. Writes results/alarms.json after each arm.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fewstep import registry
from fewstep.build import in_memory, load_data
from fewstep.data import load_digits
from fewstep.generator import load
from fewstep.machine import machine
from fewstep.measurement import measure, suite_for
from fewstep.metrics.suite import Suite
from fewstep.recipe import Recipe, load_recipe, resolved
from fewstep.run import train_recipe
from fewstep.run_report import raised_alarms
from fewstep.training.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "alarms.json"
SEED = 0
POINTS, IMAGES = 4_000, 1_000  # samples measured
TRIES = 3  # times that an alarm's advice is followed at most
TIMES = {"lr": 10.0, "gan_weight_generator": 10.0, "batch_size": 16.0, "steps": 3.0}  # factors of one change; 4 for other settings


@dataclass(frozen=True)
class Teacher:
    """How a teacher is trained: a shipped recipe and its overrides."""

    recipe: str
    overrides: tuple[str, ...] = ()


TEACHERS = {
    "ring": Teacher("teacher/ring", ("steps=800",)),
    "grid25": Teacher("teacher/ring", ("steps=2000", "data.density=grid25")),
    "digits": Teacher("teacher/digits"),
    "small digits": Teacher("teacher/digits", ("network.channels=[16,32]", "steps=300", "batch_size=64")),
}


@dataclass(frozen=True)
class Arm:
    """A run of the benchmark: a shipped `recipe` with `overrides`, further overrides `fault` that make it fail, and the alarm expected.

    `teacher` is a key of `TEACHERS`. `mend` holds the overrides that a person would give where the advice names no setting to change.
    """

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()
    fault: tuple[str, ...] = ()
    alarm: str | None = None
    teacher: str | None = None
    mend: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of the run's folder, made from the title."""
        return re.sub(r"\W+", "_", self.title)


LABELS = "data={{name: images, path: runs/alarms/data/{}, size: 8, channels: 1, holdout: 0.2}}"
SHORT = ("steps=400", "batch_size=256")
SMALL = ("network.channels=[16,32]", "steps=200", "batch_size=64")
LONGER = ("network.channels=[16,32]", "steps=300", "batch_size=128")  # fewer items would not tell the classes from chance
GAN = ("steps=150", "batch_size=64", "method.gan=true", "method.generator_optimizer.lr=5e-4")
FAILURES: tuple[Arm, ...] = (
    Arm("rate too high", "dmd2/ring", SHORT, ("method.generator_optimizer.lr=0.3",), "noise"),
    Arm("rate too low", "teacher/ring", SHORT, ("method.optimizer.lr=1e-6",), "untrained"),
    Arm("batch of 4", "drift/ring", ("steps=400",), ("batch_size=4",), "batch"),
    Arm("wrong sigma_data", "teacher/digits", SMALL, ("network.sigma_data=0.05",), "scale"),
    Arm("teacher of other data", "dmd2/ring", SHORT, (), "teacher", teacher="grid25", mend=("teacher=ring",)),
    Arm("labels shuffled", "teacher/digits", LONGER, (LABELS.format("shuffled"),), "labels", mend=(LABELS.format("right"),)),
    Arm("GAN too strong", "dmd2/digits", GAN, ("method.gan_weight_generator=300",), "gan", teacher="small digits"),
    Arm("EMA off", "teacher/ring", (*SHORT, "method.optimizer.final=1"), ("method.ema_decay=0",), "unaveraged"),
    Arm("EMA too slow", "drift/ring", SHORT, ("method.ema_decay=0.9995", "method.ema_warmup=0"), "lag"),
    Arm("frozen fake network", "dmd2/ring", SHORT, ("method.guidance_optimizer.lr=1e-9",), "frozen"),
    Arm("noise range wrong", "teacher/ring", SHORT, ("method.sigma_mean=-6",), "levels"),
    Arm("spread not asked for", "dddm/bimodal", ("steps=300",), ("method.lam=0.2",), "overconfident"),
)
METHODS = ("teacher/ring", "dmd2/ring", "dddm/bimodal", "consistency/ring", "flow_map/ring", "drift/ring", "drift/grid25", "drift/unequal")
SOUND: tuple[Arm, ...] = (
    *(Arm(name, name) for name in METHODS),
    *(Arm(name, name) for name in ("drift/mixture8d", "drift/ring_continuous", "drift/digits", "teacher/digits", "dddm/ring")),
    *(Arm(name, name, teacher="digits") for name in ("dmd2/digits", "consistency/digits", "flow_map/digits")),
)


def recipe_of(arm: Arm, changes: Sequence[str], folder: Path) -> Recipe:
    """Return the recipe of `arm` with the overrides `changes`, among which ``teacher=NAME`` names another key of `TEACHERS`."""
    teacher = next((change.removeprefix("teacher=") for change in changes if change.startswith("teacher=")), arm.teacher)
    given = [f"method.teacher={taught(teacher, folder)}"] if teacher else []
    changes = [change for change in changes if not change.startswith("teacher=")]
    return load_recipe(arm.recipe, [f"seed={SEED}", "trainer.threads=1", *given, *arm.overrides, *changes])


def taught(name: str, folder: Path) -> Path:
    """Return the run folder of the teacher `name` of `TEACHERS`, trained first if it is not finished."""
    teacher = TEACHERS[name]
    recipe = load_recipe(teacher.recipe, [f"seed={SEED}", "trainer.threads=1", *teacher.overrides])
    return trained(recipe, folder / f"teacher_{name.replace(' ', '_')}", f"teacher {name}")


def trained(recipe: Recipe, path: Path, title: str) -> Path:
    """Return `path`, the folder of a run of `recipe`, which is trained to its end if it is missing or unfinished."""
    run = RunFolder(path)
    if not run.is_finished(recipe.steps):
        train_recipe(recipe, path, resume=run.recipe_file.exists(), title=title)
    return path


def asked(about: str | None, arms: Sequence[Arm]) -> tuple[list[Arm], Path]:
    """Return those of `arms` whose titles the command line asks for, or all of them, and the folder of the runs; `about` is its help."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("titles", nargs="*", help="take only arms whose title contains one of these")
    parser.add_argument("--folder", type=Path, default=Path("runs/alarms"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return [arm for arm in arms if not arguments.titles or any(part in arm.title for part in arguments.titles)], arguments.folder


def ran(recipe: Recipe, path: Path, title: str) -> dict[str, Any]:
    """Return the alarms and the figures of the run of `recipe` in the folder `path`, trained first if it is not finished."""
    run = RunFolder(path)
    if run.recipe_file.exists() and not run.is_finished(recipe.steps):
        shutil.rmtree(path)
    if not run.recipe_file.exists():
        train_recipe(recipe, path, title=title)
    records, method = run.metrics(), registry.room("methods", recipe.method.name)
    alarms = [
        {
            "alarm": alarm.name,
            "first": alarm.spans[0].first / recipe.steps,
            "lasts": alarm.lasts,
            "message": alarm.latest,
            "advice": alarm.advice,
        }
        for alarm in raised_alarms(records, method)
    ]
    return {"steps": recipe.steps, "seconds": records[-1]["seconds"], "alarms": alarms, **measured(recipe, path)}


def measured(recipe: Recipe, path: Path) -> dict[str, Any]:
    """Return the figures of samples of the generator in `path`: energy distance of points, FD / floor and class accuracy of images."""
    generator = load(path)
    points = len(generator.shape) == 1
    data = load_digits() if not points else in_memory(load_data(recipe.data, recipe.seed))
    suite = suite_for(data, recipe.power(points), SEED)
    num = POINTS if points else IMAGES
    row = measure(suite, generator, num, SEED, speed=False)
    keys = ("frechet_over_floor", "class_accuracy") if isinstance(suite, Suite) else ("energy", "energy_error")
    return {"n": num, "figures": {key: row[key] for key in keys if key in row}}


def write_labels(folder: Path) -> None:
    """Write the digits as images in one folder a class: below `right` by their own labels, below `shuffled` by permuted labels."""
    data = load_digits()
    pixels, label = torch.cat([data.train, data.heldout]), torch.cat([data.labels("train"), data.labels("heldout")])
    dealt = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(SEED))]
    for name, labels in (("right", label), ("shuffled", dealt)):
        for number, (image, k) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            path = folder / name / str(k) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image[0].float() * 255 / 16).round().byte().numpy()).save(path)


def value_of(recipe: Recipe, key: str) -> Any:
    """Return the value in `recipe` of the setting `key`, written with dots."""
    found: Any = resolved(recipe)
    for part in key.split("."):
        found = found[part]
    return found


def follow(advice: str, recipe: Recipe, found: dict[str, Any]) -> list[str]:
    """Return overrides that follow `advice` on `recipe`: the first setting that it names is lowered, raised or set.

    `found` is the alarm, whose message may hold the value to set. The list is empty where the advice names no setting or no value.
    """
    setting = r"((?:method|network|data|trainer)\.[\w.]+\w|batch_size|steps)"
    step = re.search(rf"\b(raise|lower|set) {setting}\b|\b(train longer)", advice, re.IGNORECASE)
    if step is None:
        return []
    if step[3]:
        return [f"steps={round(recipe.steps * TIMES['steps'])}"]
    verb, key = step[1].lower(), step[2]
    now = value_of(recipe, key)
    if verb == "set":
        to = re.search(rf"{re.escape(key)} to ([\d.e-]+|true|false|auto|null)", advice)
        if to is None and key == "network.sigma_data":  # the advice is "to the standard deviation of the data", which the message gives
            times = re.search(r"deviation is ([\d.e+-]+) times", found["message"])
            return [f"{key}={now * float(times[1])}"] if times else []
        if to is None and (off := re.search(rf"{re.escape(key)} is ([\d.e+-]+) from", found["message"])):
            return [f"{key}={now - float(off[1]):g}"]
        return [f"{key}={to[1]}"] if to else []
    if isinstance(now, list):
        factor = 4.0 if verb == "raise" else 0.25
        return [f"{key}={[x * factor for x in now]}"]
    times = TIMES.get(key.split(".")[-1], 4.0)
    if known := re.search(r"add up to ([\d.e+-]+) of", found["message"] if "by as much" in advice else ""):
        times = 1 / float(known[1])
    if not isinstance(now, int | float):
        return []
    if key == "method.ema_decay" and verb == "lower":
        return [f"{key}={1 - 10 * (1 - now):g}"]
    after = now * times if verb == "raise" else now / times
    return [f"{key}={round(after) if isinstance(now, int) else after:g}"]


def failure(arm: Arm, folder: Path) -> dict[str, Any]:
    """Train the failing `arm`, then follow its alarm's advice until the alarm is gone, and return the figures of each run."""
    changes = [*arm.fault]
    recipe = recipe_of(arm, changes, folder)
    before = ran(recipe, folder / arm.key, arm.title)
    found = next((alarm for alarm in before["alarms"] if alarm["alarm"] == arm.alarm), None)
    row: dict[str, Any] = {"fault": list(arm.fault), "teacher": arm.teacher, "expected": arm.alarm, "before": before, "followed": []}
    for number in range(1, TRIES + 1):
        if found is None:
            break
        done = list(arm.mend) or follow(found["advice"], recipe, found)
        if not done:
            break
        changes = [*changes, *done]
        recipe = recipe_of(arm, changes, folder)
        after = ran(recipe, folder / f"{arm.key}_{number}", f"{arm.title}, advice {number}")
        row["followed"].append({"done": done, **after})
        found = next((alarm for alarm in after["alarms"] if alarm["alarm"] == arm.alarm and alarm["lasts"]), None)
        if arm.mend:
            break
    return row


def sound(arm: Arm, folder: Path) -> dict[str, Any]:
    """Return the alarms and the figures of `arm`, whose recipe is unchanged."""
    return ran(recipe_of(arm, (), folder), folder / f"sound_{arm.key}", arm.title)


def main() -> None:
    """Run the arms whose titles are asked for, or all of them; print each arm and write it to the results."""
    arms, folder = asked(__doc__, [*FAILURES, *SOUND])
    if not (folder / "data").exists():
        write_labels(folder / "data")
    for arm in arms:
        kind = "failures" if arm in FAILURES else "sound"
        content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"sound": {}, "failures": {}}
        row = failure(arm, folder) if kind == "failures" else sound(arm, folder)
        content = json.loads(RESULTS.read_text()) if RESULTS.exists() else content
        content[kind][arm.title] = {"recipe": arm.recipe, "overrides": list(arm.overrides), **row}
        content |= {"command": "python benchmarks/alarms.py", "seed": SEED, "machine": machine()}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        print(arm.title, json.dumps(content[kind][arm.title], indent=1), flush=True)


if __name__ == "__main__":
    main()
