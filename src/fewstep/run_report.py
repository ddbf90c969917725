"""Write report.html of a run: gather what its folder holds, and put it into words."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fewstep import registry
from fewstep.errors import UserError
from fewstep.evaluation import run_recipe
from fewstep.evaluation_text import table
from fewstep.files import step_pictures
from fewstep.limits import YAML_BYTES
from fewstep.measurement import usual_samples
from fewstep.methods.base import Alarm, Method
from fewstep.metrics.results import read_results
from fewstep.metrics.rows import row_roles
from fewstep.recipe import Recipe, load_recipe, resolved, shipped_recipes
from fewstep.run_data import kept
from fewstep.text import read_json, read_text
from fewstep.training.health import COMMON, SETTLED, Course, margin_of, older_names, usual_advice, what_to_do
from fewstep.training.run_folder import RunFolder, differences
from fewstep.version import __version__
from fewstep.viz.report import RaisedAlarm, Span, Story, write_report

Verdict = tuple[Literal["good", "bad", "wait"], tuple[str, str]]


def report(path: Path) -> None:
    """Write report.html into the run folder `path`, from the files in that folder. Raises UserError where it is not a run folder."""
    run, recipe = RunFolder(path), run_recipe(path)
    method: type[Method] = registry.room("methods", recipe.method.name)
    records, info = run.metrics(older_names(method)), _info(run)
    pictures = step_pictures(run.sample_folder)
    still = run.dashboard_folder / "dashboard.png"
    is_wide = still.exists()
    last = still if is_wide else pictures.pop() if pictures else None
    results, unusable = _results(run, info.get("step"))
    raised = raised_alarms(records, method)
    state, verdict = told(records, raised, recipe.steps)
    changes, changed_from = changed(recipe, info)
    unread = run.damage()
    roles = list(row_roles(results).values()) if results else []
    story = Story(
        title=str(path),
        about=f"{recipe.method.name} on {recipe.data.name}, network {recipe.network.name}",
        state=state,
        verdict=verdict,
        steps=recipe.steps,
        settled=SETTLED,
        records=records,
        facts=_facts(recipe, records, info),
        last=last,
        earlier=pictures,
        caption=_caption(last, is_wide),
        is_wide=is_wide,
        results=results,
        rows=table(results) if results else [],
        own=[number for number, role in enumerate(roles) if role == "own"],
        drawn=method.drawn,
        logarithmic=method.logarithmic,
        readings=method.readings,
        watched=_watched(recipe, records),
        alarms=raised,
        data=_data(run, info),
        changes=changes,
        changed_from=changed_from,
        recipe=read_text(run.recipe_file, YAML_BYTES),
        notes=[*([_unread(len(unread))] if unread else []), *unusable],
    )
    write_report(run.report_file, story)


def _results(run: RunFolder, step: object) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the content of results.json, or None, and a list with a sentence about it if the file is there but cannot be shown.

    The sentence also tells where the model that was measured is of another step than `step`, that of the model now.
    """
    if not os.path.lexists(run.results_file):
        return None, []
    try:
        results = read_results(run.path)
        table(results)
        row_roles(results)
    except (UserError, LookupError, TypeError, ValueError, AttributeError):
        return None, [f"results.json cannot be read, and is not shown here; run fewstep evaluate {run.path} again."]
    if (measured := results.get("step")) is not None and step is not None and measured != step:
        return results, [
            f"The run was measured at step {measured}, and then trained on to step {step}: the table below is of the earlier model; run "
            f"fewstep evaluate {run.path} again."
        ]
    return results, []


def _data(run: RunFolder, info: Mapping[str, Any]) -> list[str]:
    """Return sentences on the data, recorded when the run began, or when a run of an older version of fewstep was first resumed."""
    found = info.get("data_audit") or kept(run).get("lines")
    return [str(sentence) for sentence in found] if isinstance(found, list) else []


def _unread(count: int) -> str:
    lines = "1 line of metrics.jsonl cannot be read, and is" if count == 1 else f"{count} lines of metrics.jsonl cannot be read, and are"
    return f"{lines} not shown here."


def _info(run: RunFolder) -> dict[str, Any]:
    """Return what recipe.yaml has under ``made_by`` (versions, recipe, engine), and the ``info`` of the model's config.json."""
    made_by = run.recipe().get("made_by")
    info: dict[str, Any] = dict(made_by) if isinstance(made_by, dict) else {}
    try:
        own = read_json(run.model_folder / "config.json")["info"]
    except (OSError, ValueError, KeyError, TypeError):  # no model yet
        own = {}
    return info | own if isinstance(own, dict) else info


def raised_alarms(records: Sequence[Mapping[str, Any]], method: type[Method]) -> list[RaisedAlarm]:
    """Return the alarms named in `records`, each with its first and its last message, and its last advice.

    A span of steps goes on over records that do not have the alarm's figure, and ends at the last record that raised the alarm.
    metrics.jsonl records only the alarms' names; messages and advice are made again from the figures of the record and of those before it.
    For a name that this version of fewstep does not know, the message says so.
    """
    rules: dict[str, Alarm] = {rule.name: rule for rule in (*COMMON, *method.alarms)}
    spans: dict[str, list[Span]] = {}
    said: dict[str, list[str]] = {}
    advised: dict[str, str] = {}
    before: list[str] = []
    course = Course()
    for record in records:
        course.follow({key: value for key, value in record.items() if isinstance(value, int | float)}, method.alarms)
        names = [str(name) for name in record.get("alarms") or ()]
        for name in names:
            known = spans.setdefault(name, [])
            said.setdefault(name, []).append(_message(rules.get(name), record))
            advised[name] = _advice(rules.get(name), record, method, course)
            first = known.pop().first if name in before else record["step"]
            known.append(Span(first, record["step"]))
        before = course.after(names, record, method.alarms)
    found = []
    for name, when in spans.items():
        found.append(RaisedAlarm(name, when, said[name][0], said[name][-1], advised[name], name in before))
    return found


def _advice(rule: Alarm | None, record: Mapping[str, Any], method: type[Method], course: Course) -> str:
    """Return what the alarm `rule` advised at `record`; `course` is how the figures went up to then."""
    if rule is None:
        return "Look at the curves"
    usual, value = usual_advice(rule, method.advice), record.get(rule.figure)
    if not isinstance(value, int | float):
        return usual.replace("{rate}", method.rate)
    return what_to_do(rule, usual, value, margin_of(rule, record), course, method.rate)


def _message(rule: Alarm | None, record: Mapping[str, Any]) -> str:
    """Return the message of the alarm `rule` at `record`; `rule` is None for an alarm that this version does not know."""
    if rule is None:
        return "this version of fewstep knows no alarm of this name"
    value = record.get(rule.figure)
    return rule.message.format(value=value) if isinstance(value, int | float) else f"{rule.figure} has left its range"


def told(records: Sequence[Mapping[str, Any]], raised: Sequence[RaisedAlarm], steps: int) -> Verdict:
    """Return the verdict on a run of `steps` steps: "good", "bad" or "wait", and in words a short name for that and a sentence on it."""
    if not records:
        return "wait", ("Too early to say.", "Nothing has been logged yet.")
    step = records[-1]["step"]
    where = f"after all {steps:,} steps" if step >= steps else f"at step {step:,} of {steps:,}, the last that is logged"
    lasting = [alarm.name for alarm in raised if alarm.lasts]
    if lasting:
        known = f"Raised {where}." if any(alarm.lasts and alarm.spans[-1].last == step for alarm in raised) else f"The run is {where}."
        unknown = [f"the figure of {alarm.name} since step {alarm.spans[-1].last:,}" for alarm in raised if alarm.lasts_unknown(step)]
        return "bad", (f"Check: {', '.join(lasting)}.", known + (f" No record has had {', '.join(unknown)}." if unknown else ""))
    if step < SETTLED * steps:
        return "wait", ("Too early to say.", f"The run is {where}; its figures have not settled.")
    if raised:
        return "good", (
            "Healthy at the end.",
            f"No alarm is raised {where}; {', '.join(alarm.name for alarm in raised)} was raised earlier, and passed.",
        )
    return "good", ("Healthy.", f"No alarm has been raised, {where}.")


def _facts(recipe: Recipe, records: Sequence[Mapping[str, Any]], info: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [
        ("step", f"{records[-1]['step'] if records else 0:,} of {recipe.steps:,}"),
        ("batch", f"{recipe.batch_size:,}"),
        ("seed", str(recipe.seed)),
    ]
    if records and {"seconds", "images_seen", "images_per_second"} <= records[-1].keys():
        seconds = records[-1]["seconds"]
        minutes, hours = seconds / 60, seconds / 3600
        time = f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"
        found += [
            ("trained for", time),
            ("items seen", f"{records[-1]['images_seen']:,}"),
            ("items a second", f"{records[-1]['images_per_second']:,.0f}"),
        ]
    best = info.get("best")
    if isinstance(best, Mapping) and {"metric", "value", "step"} <= best.keys():
        found.append(("best", f"{best['metric']} {best['value']:.4g} at step {best['step']:,}"))
    made = [f"fewstep {info['fewstep']}" if info.get("fewstep") else "", f"commit {info['commit']}" if info.get("commit") else ""]
    return [*found, *([("made by", ", ".join(filter(None, made)))] if any(made) else [])]


def _watched(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on how figures were measured during the training of `recipe`."""
    trainer, points = recipe.trainer, any("eval.energy" in record for record in records)
    num = trainer.evaluate_samples or usual_samples(points)
    features = "" if points else f", in the features {trainer.evaluate_features or 'that belong to the data'}"
    return f"Measured every {trainer.evaluate_every} steps on n = {num:,} samples of the averaged weights, seed 0 each time{features}."


def _caption(last: Path | None, is_wide: bool) -> str:
    if last is None:
        return ""
    if is_wide:
        return (
            "The last samples on the target density, beside how they move; below, the loss, the share of samples at each mode, and the "
            "number of modes covered. The share of every mode should be at its dashed line."
        )
    step = int(last.stem.removeprefix("step_"))
    chosen = "chosen by a fixed seed, not by hand; classes in turn where there are any"
    return f"The last samples, at step {step:,}, of the averaged weights: {chosen}."


def changed(recipe: Recipe, info: Mapping[str, Any]) -> tuple[list[tuple[str, str, str]] | None, str]:
    """Return (key, shipped value, own value) for each setting in which `recipe` differs from its shipped recipe, and a sentence on that.

    The list is None where `info` does not name the recipe that the run came from, or that recipe is not shipped or cannot be read.
    """
    source = info.get("recipe")
    if not isinstance(source, str):
        return None, "Which recipe this run came from is not recorded; the whole recipe is below."
    if source not in shipped_recipes():
        return None, f"This run came from {source}, which is no shipped recipe; the whole recipe is below."
    try:
        shipped = {key: value for key, value in resolved(load_recipe(source)).items() if key != "finds"}  # values were found
    except UserError:
        return None, f"This run came from {source}, which this version of fewstep cannot read; the whole recipe is below."
    chosen = ("trainer.precision", "auto")  # the precision was chosen by the run, and not changed by a user
    found = [(key, _value(old), _value(new)) for key, old, new in differences(shipped, resolved(recipe)) if (key, old) != chosen]
    if not found:
        return found, f"This is {source}, unchanged, as fewstep {__version__} ships it."
    many = f"{len(found)} setting{'s' * (len(found) > 1)}"
    return found, f"This is {source}, as fewstep {__version__} ships it, with {many} changed."


def _value(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
