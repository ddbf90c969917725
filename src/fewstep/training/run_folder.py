"""The run folder, which holds everything that is needed to resume, measure or repeat a run.

recipe.yaml  metrics.jsonl  checkpoints/step_N/  samples/step_N.png  model/  best/  teacher/  data.json  results.json  report.html
dashboard/  traceback.txt (of an error in a user's own method, network or data set)
metrics.damaged.jsonl (the former metrics.jsonl, if some of its lines could not be read)
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fewstep import files
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.limits import YAML_BYTES
from fewstep.recipe import FORMAT, Recipe, parse_yaml, resolved, validated
from fewstep.text import parse_json, read_json, read_lines, read_text
from fewstep.training.checkpoint import Checkpoint, Damaged, checkpoints, load_checkpoint, save_checkpoint, tensor_bytes
from fewstep.weights import is_whole, weight_file

STANDARDIZES = 3  # the first format of recipe.yaml in which a user's own points are standardized by default
# the keys of a recipe that may differ when a run is resumed: how it is computed, such as where and how exactly, not what is to be learned
RESUMABLE = ("trainer", "made_by", "format")


class RunFolder:
    """The files of one run, in the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoint_folder = path / "checkpoints"
        self.sample_folder = path / "samples"
        self.model_folder = path / "model"
        self.best_folder = path / "best"
        self.teacher_folder = path / "teacher"
        self.results_file = path / "results.json"
        self.report_file = path / "report.html"
        self.dashboard_folder = path / "dashboard"
        self.data_file = path / "data.json"  # what the loader found in the data, and what it used
        self.fault_file = path / "traceback.txt"  # of an error in a user's own method, network or data set

    def recipe(self) -> dict[str, Any]:
        """Return the contents of recipe.yaml as nested mappings. Raises UserError where the file is missing or damaged."""
        if not self.recipe_file.is_file():
            raise UserError(f"{self.path} is not a run folder (it has no recipe.yaml); give one that `fewstep train --out` made")
        try:
            tree = parse_yaml(read_text(self.recipe_file, YAML_BYTES))
        except (yaml.YAMLError, UnicodeDecodeError):
            tree = None
        if not isinstance(tree, dict):
            raise UserError(f"{self.recipe_file} is damaged; copy it from a backup, or train again into another folder")
        data, number = tree.get("data"), tree.get("format", 1)
        if isinstance(data, dict) and data.get("name") == "points" and isinstance(number, int) and number < STANDARDIZES:
            data.setdefault("standardize", False)
        return tree

    def units(self) -> dict[str, Any] | None:
        """Return the units (``location``, ``scale``) of points in the saved model's config.json; {} for none, None without a model."""
        try:
            config = read_json(self.model_folder / "config.json")
        except (OSError, ValueError):
            return None
        units = config.get("units") if isinstance(config, dict) else None
        return units if isinstance(units, dict) else {}

    def going_on(self, recipe: Recipe) -> Recipe:
        """Return `recipe` as this run resumes with it: a user's own points keep the units in which they were learned so far."""
        units = self.units()
        if units is None and checkpoints(self.checkpoint_folder) and "standardize" not in self.recipe().get("data", {}):
            units = {}  # the run is older than the key "standardize", and its model folder is missing
        return recipe if units is None else recipe.model_copy(update={"data": recipe.data.with_units(units)})

    def check(self, recipe: Mapping[str, Any], resume: bool, longer: bool = False) -> None:
        """Raise UserError where this folder cannot take a run of `recipe`: it holds other files, or a run that `recipe` does not resume.

        With `longer`, a run that is resumed may be given more steps than it had. The recipe in the folder may be of an older format and
        lack newer settings: it is compared with all defaults filled in.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out is {self.path}, which is a file; give a folder")
        if not self.recipe_file.exists():
            # the partial file that a killed process leaves behind does not count
            if self.path.is_dir() and any(not entry.name.endswith(files.PARTIAL) for entry in self.path.iterdir()):
                raise UserError(f"--out is {self.path}, which holds other files and no run; give a new or an empty folder")
            return
        if not resume:
            raise UserError(f"{self.path} already holds a run; go on with it by --resume, or give another folder")
        for path in (self.checkpoint_folder, self.sample_folder, self.model_folder, self.best_folder, self.teacher_folder):
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} is a file, where a run has a folder; move it away, and go on with --resume")
        if self.metrics_file.exists() and not self.metrics_file.is_file():
            raise UserError(f"{self.metrics_file} is a folder, where a run has a file; move it away, and go on with --resume")
        before = _filled_in(self.recipe())
        apart = RESUMABLE + ("steps",) * (longer and self.more_steps(recipe) is not None)
        differing = differences({k: v for k, v in before.items() if k not in apart}, {k: v for k, v in recipe.items() if k not in apart})
        if differing:
            raise UserError(
                f"{self.path} holds a run of another recipe:\n"
                + "\n".join(f"  {key} was {old!r}, now {new!r}" for key, old, new in differing)
                + "\ngive the same values to go on with it, or another folder"
            )

    def more_steps(self, recipe: Mapping[str, Any]) -> int | None:
        """Return the number of steps in this folder's recipe if `recipe` asks for more; None otherwise, or where there is no run yet."""
        if not self.recipe_file.is_file():
            return None
        before = self.recipe().get("steps")
        longer = isinstance(before, int) and isinstance(recipe.get("steps"), int) and before < recipe["steps"]
        return before if longer else None

    def open(self, recipe: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        """Make the folder, and write recipe.yaml if it is missing; for a run that is made longer, write the new number of steps to it."""
        self.path.mkdir(parents=True, exist_ok=True)
        tree: dict[str, Any] | None = None
        if not self.recipe_file.exists():
            tree = {"format": FORMAT, **recipe, "made_by": dict(made_by)}
        elif self.more_steps(recipe) is not None:
            tree = {**self.recipe(), "steps": recipe["steps"]}
        if tree is not None:
            files.replace_file(self.recipe_file, yaml.safe_dump(tree, sort_keys=False).encode())
        self.sample_folder.mkdir(exist_ok=True)

    def save_checkpoint(
        self, step: int, checkpoint: Checkpoint, keep: int, shards: Callable[[Path], Mapping[str, str]] = lambda folder: {}
    ) -> None:
        """Write the checkpoint ``step_N``, including the files that `shards` writes into it, and remove all but the newest `keep`."""
        save_checkpoint(self.checkpoint_folder / f"step_{step}", checkpoint, shards)
        for old in checkpoints(self.checkpoint_folder)[keep:]:
            shutil.rmtree(old)

    def latest_checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that is whole, or None, and what is wrong with each newer one.

        Raises UserError where there are checkpoints and all are damaged.
        """
        wrong: list[str] = []
        found = checkpoints(self.checkpoint_folder)
        for folder in found:
            try:
                return load_checkpoint(folder), wrong
            except Damaged as error:
                wrong.append(str(error))
        if found:
            raise UserError(f"no checkpoint in {self.checkpoint_folder} can be used ({'; '.join(wrong)}); train again into another folder")
        return None, wrong

    def save_model(self, generator: Generator, folder: Path | None = None) -> None:
        """Write `generator` to the model folder, or to `folder`. Each file is replaced atomically, config.json last."""
        folder = folder or self.model_folder
        folder.mkdir(exist_ok=True)
        if (file := weight_file(generator.config)) is not None:
            files.replace_file(folder / file, tensor_bytes(generator.saved_tensors()))
        files.replace_file(folder / "config.json", json.dumps(generator.config, indent=2).encode())

    def model_step(self) -> int | None:
        """Return the step at which the model folder was written; None where the folder is incomplete."""
        try:
            config = read_json(self.model_folder / "config.json")
            return config["info"]["step"] if is_whole(self.model_folder) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_finished(self, steps: int) -> bool:
        """Return whether the run in this folder has been trained, saved and logged up to step `steps`."""
        kept, lines = checkpoints(self.checkpoint_folder), self.metrics()
        saved = bool(kept) and kept[0].name == f"step_{steps}" and self.model_step() == steps
        return saved and bool(lines) and lines[-1]["step"] == steps

    def save_best(self, generator: Generator) -> None:
        """Replace the folder ``best`` with `generator`, completely or not at all; ``generator.info["best"]`` records why it was chosen."""
        with files.replace_folder(self.best_folder) as partial:
            self.save_model(generator, partial)

    def best(self) -> dict[str, Any] | None:
        """Return ``step``, ``metric`` and ``value`` of the model in the folder ``best``; None where it is missing or incomplete."""
        files.recover_folder(self.best_folder)
        try:
            best = read_json(self.best_folder / "config.json")["info"]["best"]
            known = is_whole(self.best_folder) and {"step", "metric", "value"} <= best.keys()
            return dict(best) if known else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def has_teacher(self) -> bool:
        """Return whether the folder ``teacher`` holds a complete copy of the teacher."""
        return is_whole(self.teacher_folder)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append `record` to metrics.jsonl, as a line of JSON."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self, renamed: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Return all readable records of metrics.jsonl (see `damage`), with figures and alarms renamed as `renamed` (old: new) says."""
        records = [record for record in self._lines().values() if record is not None]
        return [_with_names(record, renamed) for record in records] if renamed else records

    def damage(self) -> list[int]:
        """Return the numbers, from 1, of the unreadable lines of metrics.jsonl, but for the last line, which a kill may cut short."""
        lines = self._lines()
        return [number for number, record in lines.items() if record is None and number < len(lines)]

    def _lines(self) -> dict[int, dict[str, Any] | None]:
        if not self.metrics_file.is_file():
            return {}
        lines = read_lines(self.metrics_file)
        return {number: _record(line) for number, line in enumerate(lines[: len(lines) - (not lines[-1])], start=1)}

    def forget_after(self, step: int) -> str | None:
        """Remove the records of metrics.jsonl and the checkpoints that are later than `step`: a resumed run makes them again.

        Where lines cannot be read, they are left out, the former file is kept as metrics.damaged.jsonl, and a message for the user is
        returned.
        """
        for folder in checkpoints(self.checkpoint_folder):
            if int(folder.name.removeprefix("step_")) > step:
                shutil.rmtree(folder)
        kept, damage, said = [record for record in self.metrics() if record["step"] <= step], self.damage(), None
        if damage:
            aside = self.metrics_file.with_name("metrics.damaged.jsonl")
            files.replace_file(aside, self.metrics_file.read_bytes())
            some = ", ".join(map(str, damage[:5])) + (", ..." if len(damage) > 5 else "")
            many = f"{len(damage)} line{'s' * (len(damage) > 1)} of {self.metrics_file}"
            said = f"{many} (line {some}) cannot be read, and is left out; the file as it was is {aside.name}"
        files.replace_file(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept).encode())
        return said


def run_around(path: Path) -> RunFolder:
    """Return the run in `path`, or the run around it where `path` is its folder ``best``."""
    around = RunFolder(path.resolve().parent)
    inside = path.resolve() == around.best_folder and around.recipe_file.is_file()
    return around if inside else RunFolder(path)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of metrics.jsonl; None where the line is not a JSON object with a step."""
    try:
        record = parse_json(line)
    except ValueError:  # not JSON, or not UTF-8
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _with_names(record: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return `record` with its figures and alarms renamed as `renamed` (old: new) says."""
    record = {renamed.get(key, key): value for key, value in record.items()}
    return record | {"alarms": [renamed.get(name, name) for name in record.get("alarms") or ()]}


def _filled_in(tree: dict[str, Any]) -> dict[str, Any]:
    """Return `tree`, a recipe of any format, in the current one with every default filled in; unchanged where it is not valid."""
    try:
        return resolved(validated(tree, "recipe.yaml"))
    except UserError:
        return tree


def differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, old value, new value) for each place where two nested mappings differ; a missing value is None."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))]
    return [] if before == now else [(path, before, now)]
