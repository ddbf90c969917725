"""Prepare the data of a run: number its classes as the resumed run, teacher or initial weights do; report and record what it contains."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fewstep import hub
from fewstep.build import Data, note
from fewstep.data import DataError
from fewstep.data.audit import Audit, changes
from fewstep.data.checks import printable
from fewstep.data.class_order import in_order_of, other_names
from fewstep.errors import Refused, UserError
from fewstep.files import at_home, replace_file
from fewstep.recipe import Recipe
from fewstep.screen import SCREEN
from fewstep.text import read_json
from fewstep.training.checkpoint import checkpoints
from fewstep.training.run_folder import RunFolder


def recorded_names(path: str | Path | None) -> tuple[str, ...]:
    """Return the class names of the generator at `path`, in the order of their numbers; empty where it has none, or cannot be read.

    `path` is a run folder, a model folder or a Hub id. Errors in reading it are reported later, when the generator is opened.
    """
    if path is None:
        return ()
    folder = at_home(path)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    try:
        if not folder.exists() and hub.is_model(str(path)):
            folder = hub.fetched(str(path), str(path), ["config.json"])
        names = read_json(folder / "config.json")["info"]["class_names"]
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def kept(run: RunFolder) -> dict[str, Any]:
    """Return the content of the run folder's data.json; empty where it is missing, as in runs of version 0.1.0, or damaged."""
    try:
        found = read_json(run.data_file)
    except (OSError, ValueError):
        return {}
    lists = [found.get(key) for key in ("classes", "parts")] if isinstance(found, dict) else [None]
    whole = all(isinstance(one, list) and all(isinstance(entry, dict) and "name" in entry for entry in one) for one in lists)
    return found if whole else {}


def numbered_as(data: Any, names: Sequence[str], owner: str) -> Any:
    """Return `data` with its classes numbered in the order of `names`, by `in_order_of`. Raises UserError where that is not possible."""
    try:
        return in_order_of(data, names, owner)
    except DataError as error:
        raise UserError(str(error)) from error


def as_recorded(recipe: Recipe, data: Data, run: RunFolder | None = None) -> Data:
    """Return `data` with its classes numbered as in the resumed run, else as in the teacher, else as in the initial weights.

    Networks know classes only by number, so the numbers must not change. Classes whose names differ from the data's are matched by number,
    with a note, for a teacher and for initial weights. Raises UserError where the class names of a resumed run differ from the data's, and
    where the classes cannot be numbered as needed.
    """
    own: tuple[str, ...] = ()
    if run is not None:
        classes = kept(run).get("classes")
        own = tuple(str(entry["name"]) for entry in classes or ())
        own = own or recorded_names(run.model_folder if run.model_folder.is_dir() else None)
        if classes == [] and data.class_names:
            raise UserError(
                f"the run in {run.path} was trained without classes, and the data {data.name} now has {_some(data.class_names)}; "
                "give it back as it was, or train into another folder"
            )
    teacher = run.teacher_folder if run is not None and run.has_teacher() else recipe.method.teacher_path
    sources = [
        (f"the run in {run.path}" if run else "", own),
        ("the teacher (method.teacher)", recorded_names(teacher)),
        ("the initial model (trainer.init)", () if own else recorded_names(recipe.trainer.init)),
    ]
    settled: str | None = None
    for owner, names in sources:
        if not names:
            continue
        if names is own and sorted(own) != sorted(data.class_names):
            raise UserError(
                f"{owner} was trained with the classes {_some(own)}, and the data {data.name} now has {_some(data.class_names) or 'none'}: "
                "a label would mean something else; give the data back the classes that it had, or train into another folder"
            )
        ordered = numbered_as(data, names, owner)
        if ordered is not data and settled is not None:
            raise UserError(f"{settled} and {owner} number the same classes differently; leave one of them out, or train it anew")
        if ordered is not data and names is not own:
            note(f"the classes of {data.name} are numbered as {owner} numbers them: {_some(names)}")
        if (other := other_names(ordered, names)) is not None:
            note(f"{owner} has classes of other names, and they are matched by number: {other}")
        data, settled = ordered, settled or (owner if sorted(names) == sorted(data.class_names) else None)
    return data


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(map(printable, names[:4])) + (f", ... ({len(names)})" if len(names) > 4 else "")


@contextlib.contextmanager
def once_allowed(run: RunFolder) -> Iterator[None]:
    """Say of settings that are Refused inside what is left to do with `run`, if it was trained with them by a version that allowed them."""
    try:
        yield
    except Refused as error:
        if not checkpoints(run.checkpoint_folder):
            raise
        raise UserError(
            f"{error}; {run.path} was trained with this by a version that allowed it: it can be sampled, measured and exported as it is, "
            "but not trained on; to train with settings that are allowed, give another folder"
        ) from error


MEASURED_BY = ("evaluate_samples", "evaluate_features")  # settings of trainer without which figures of one run do not compare


def tell(found: Audit, run: RunFolder, recipe: Recipe, said: str = "") -> None:
    """Print what was `found` in the data, without lines that are in `said`, and a note for each change since the run began.

    Changes are those of the data, and those of `recipe` in how the run is measured while it trains.
    """
    for line in found.lines():
        if line.rstrip(".") not in said:
            SCREEN.say(f"data: {line}")
    for change in changes(kept(run), found):
        note(f"the data has changed since the run began: {change}")
    before = run.recipe().get("trainer") or {}
    for key in MEASURED_BY if any(name.startswith("eval.") for record in run.metrics() for name in record) else ():
        if (now := getattr(recipe.trainer, key)) != (was := before.get(key)):
            note(f"trainer.{key} was {was} when the run began, and is {now}: figures of before and after do not compare in its curves")


def keep(found: Audit, run: RunFolder) -> None:
    """Write what was `found` in the data into the run folder's data.json, if that does not exist."""
    if not run.data_file.exists():
        replace_file(run.data_file, json.dumps({**found.config, "lines": found.lines()}, indent=2).encode())
