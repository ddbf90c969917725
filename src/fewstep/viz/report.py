"""The report of a run as one self-contained HTML file: verdict, samples, measured figures, curves, alarms, data and recipe."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep.files import replace_file
from fewstep.metrics.figures import FIGURES, Figure
from fewstep.metrics.rows import how_sampled
from fewstep.viz import page
from fewstep.viz.page import escaped, paragraph, section
from fewstep.viz.plots import curves

SHOWN = 12  # largest number of earlier pictures of samples in a report
BETTER = {"least": "Lower is better.", "greatest": "Higher is better.", None: "Tells how certain the figure before it is."}
# explanations of the curves that the training loop logs for every method
READINGS = {
    "gradient norms": "The length of each network's gradient before it is clipped. Neither direction is better, but it should settle: a "
    "steady rise, or jumps by powers of ten, mean that training is unstable.",
    "health": "Samples compared with real items: spread is how much samples of a class differ, as a ratio to real ones (1 is best), shift "
    "how far their mean is from the data's, in standard deviations (0 is best), saturation the share of pixels beyond the data's range, "
    "without those that any small error puts there (0 is best).",
}


def better(figure: Figure) -> str:
    """Return in words which value of `figure` is best, as a table writes it."""
    return f"Best at 1{' (100%)' * ('%' in figure.form)}." if figure.best == "nearest 1" else BETTER[figure.best]


@dataclass(frozen=True)
class Span:
    """The steps of the first and the last of consecutive records in which an alarm was raised."""

    first: int
    last: int


@dataclass(frozen=True)
class RaisedAlarm:
    """An alarm of a run.

    Attributes:
        name: the alarm's name.
        spans: the spans of steps at which it was raised, in order.
        message: what it said when it was first raised.
        latest: what it said when it was last raised.
        advice: what to do about it.
        lasts: whether it is still raised at the end of the run, or was when its figure was last known.

    """

    name: str
    spans: Sequence[Span]
    message: str
    latest: str
    advice: str
    lasts: bool

    def lasts_unknown(self, step: int) -> bool:
        """Return whether it lasts in a run whose last record is of `step`, only because no later record has had its figure."""
        return self.lasts and self.spans[-1].last < step


@dataclass(frozen=True)
class Story:
    """The contents of a report.

    Attributes:
        title: the run's name.
        about: one sentence that says what was trained on which data.
        state: the state of the run: "good", "bad", or "wait" where it is too early to tell.
        verdict: the state in one or two words, and a sentence on it.
        steps: number of steps of the whole run, done or not.
        settled: share of the run before which no alarm is raised.
        records: the readable lines of metrics.jsonl.
        facts: short facts on the run, each a name and a value.
        last: file of the last picture of samples; None where there is none.
        earlier: files of the pictures before the last one, in order.
        caption: what the last picture shows.
        is_wide: whether the last picture has text that must stay readable.
        results: the contents of results.json; None where nothing has been measured.
        rows: the table of results.json, headings first.
        own: numbers, from 0, of the table's rows of the run's own generator, without the headings.
        drawn: the method's logged terms to draw as curves, by heading.
        logarithmic: the headings of curves that are drawn on a logarithmic scale.
        readings: for each heading, how to read its curves.
        watched: one sentence on how figures were measured while training.
        alarms: the alarms that were raised, in the order of their first step.
        data: sentences on the data: found, used, left out, classes, split. Empty where the run did not record them.
        changes: key, value in the shipped recipe and value in this run, for each setting that differs; None where the recipe's origin is
            not known.
        changed_from: one sentence on where the recipe came from.
        recipe: the text of recipe.yaml.
        notes: further sentences that a reader must know, such as on lines that cannot be read.

    """

    title: str
    about: str
    state: Literal["good", "bad", "wait"]
    verdict: tuple[str, str]
    steps: int
    settled: float
    records: Sequence[Mapping[str, Any]]
    facts: Sequence[tuple[str, str]]
    last: Path | None
    earlier: Sequence[Path]
    caption: str
    is_wide: bool
    results: Mapping[str, Any] | None
    rows: Sequence[Sequence[str]]
    own: Sequence[int]
    drawn: Mapping[str, Sequence[str]]
    logarithmic: Collection[str]
    readings: Mapping[str, str]
    watched: str
    alarms: Sequence[RaisedAlarm]
    data: Sequence[str]
    changes: Sequence[tuple[str, str, str]] | None
    changed_from: str
    recipe: str
    notes: Sequence[str] = ()


def write_report(path: Path, story: Story) -> None:
    """Write the report of `story` to `path`, as an HTML file."""
    parts = [
        _head(story),
        _samples(story),
        _measured(story),
        _curves(story),
        _earlier(story),
        _alarms(story),
        _data(story),
        _recipe(story),
    ]
    replace_file(path, page.page(f"{story.title} - fewstep", parts).encode())


def _head(story: Story) -> str:
    name, sentence = story.verdict
    link = ' <a href="#alarms">When, and what to do</a>' if story.alarms else ""
    verdict = f'<div class="verdict {story.state}"><p><strong>{escaped(name)}</strong> {escaped(sentence)}{link}</p></div>'
    head = f"<header><h1>{escaped(story.title)}</h1>{paragraph(story.about, 'soft')}{verdict}{page.facts(story.facts)}"
    return head + "".join(paragraph(note, "soft") for note in story.notes) + "</header>"


def _samples(story: Story) -> str:
    if story.last is None:
        return section("Samples", paragraph("No picture of samples has been drawn yet."), "samples")
    kind = "large" if story.is_wide else "large pixels"
    return section("Samples", page.picture(story.last.read_bytes(), story.caption, story.caption, kind, story.is_wide), "samples")


def _measured(story: Story) -> str:
    if story.results is None:
        text = f"Nothing has been measured yet: fewstep evaluate {story.title} adds a table here, with the floor and the teacher."
        return section("Measured", paragraph(text), "measured")
    results = story.results
    seeds = results.get("protocol", {}).get("seeds") or [results.get("seed")]
    seed = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    floor = results.get("floor_of", "real train split")
    below = (
        "Samples may be below it if the features were trained on that split" if "split" in floor else "No model is expected to be better"
    )
    told = (
        f"n = {results['n']:,} samples a row, {seed}, against {results.get('reference')}; features: {results.get('features')}. "
        f"The first row is the floor: {floor}, measured in the same way as samples. {below}."
    )
    columns = [figure for figure in FIGURES if figure.heading in story.rows[0]]
    explained = [(figure.heading, f"{figure.what} {better(figure)}") for figure in columns]
    said = [*how_sampled(results["rows"]), *results.get("warnings", ())]
    if results.get("trained_in_features") == "evaluator":
        said.append("training used the features in which FD is measured, so FD flatters the model")
    if any(key.endswith("_error") for row in results["rows"].values() for key in row):
        said.append("standard errors are in results.json")
    warnings = "".join(paragraph(f"Note: {sentence}.") for sentence in said)
    body = paragraph(told, "soft") + page.table(story.rows, "What was measured", story.own) + warnings
    return section("Measured", body + "<h3>What the columns are</h3>" + page.notes(explained), "measured")


def _curves(story: Story) -> str:
    watched = [figure for figure in FIGURES if figure.is_curve]
    names = {name for record in story.records for name in record}
    families: dict[str, tuple[Sequence[str], str]] = {
        heading: (terms, story.readings.get(heading, "Terms that the method logs under these names."))
        for heading, terms in story.drawn.items()
    }
    for figure in watched:
        text = f"{story.watched} {figure.what} {better(figure)}"
        families[figure.words] = ((figure.key,), text)
    families |= {
        "gradient norms": (("grad_norm",), READINGS["gradient norms"]),
        "health": (("spread", "shift", "saturation"), READINGS["health"]),
    }
    drawn = []
    for heading, (terms, text) in families.items():
        chosen = sorted(name for name in names if "." in name and name.split(".")[-1] in terms)
        if chosen:
            svg = curves(story.records, chosen, log=heading == "gradient norms" or heading in story.logarithmic)
            last = "; ".join(f"{name} ends at {value:.4g}" for name in chosen if (value := _last(story.records, name)) is not None)
            image = f'<div role="img" aria-label="{escaped(f"Curves of {heading} over steps: {last}")}">{svg}</div>'
            title = heading[:1].upper() + heading[1:]
            drawn.append(f"<figure><h3>{escaped(title)}</h3>{image}<figcaption>{escaped(text)}</figcaption></figure>")
    if not drawn:
        return section("Curves", paragraph("Nothing has been logged yet."), "curves")
    told = f"Each point is the mean over the steps since the previous point; metrics.jsonl has {len(story.records):,} records."
    return section("Curves", paragraph(told, "soft") + f'<div class="curves">{"".join(drawn)}</div>', "curves")


def _last(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if isinstance(record.get(name), int | float)), None)


def _earlier(story: Story) -> str:
    earlier = story.earlier
    if not earlier:
        return ""
    shown = [earlier[i * (len(earlier) - 1) // max(1, min(SHOWN, len(earlier)) - 1)] for i in range(min(SHOWN, len(earlier)))]
    some = f" {len(shown)} of {len(earlier)} pictures; all are in samples/." if len(shown) < len(earlier) else ""
    pictures = []
    for still in shown:
        step = f"Step {int(still.stem.removeprefix('step_')):,}"
        pictures.append(page.picture(still.read_bytes(), f"Samples at {step.lower()}", step, "pixels"))
    told = paragraph(f"Samples of the averaged weights, from the same noise and of the same classes at each step.{some}", "soft")
    return section("Samples during training", told + f'<div class="small">{"".join(pictures)}</div>', "earlier")


def _alarms(story: Story) -> str:
    first = story.settled * story.steps
    if not story.alarms:
        told = f"No alarm was raised. Alarms are raised only from step {first:,.0f} on, when figures have settled."
        return section("Alarms", paragraph(told), "alarms")
    lines, what = [], []
    for alarm in story.alarms:
        when = ", ".join(
            f"step {span.first:,}" if span.first == span.last else f"steps {span.first:,} to {span.last:,}" for span in alarm.spans
        )
        marks = "".join(
            f'<i style="left:{_share(span.first, story):.2f}%;right:{100 - _share(span.last, story):.2f}%"></i>' for span in alarm.spans
        )
        early = f'<i class="early" style="left:0;width:{100 * story.settled:.0f}%"></i>'
        label = f"{alarm.name}: raised at {when} of {story.steps:,}"
        track = f'<div class="track" role="img" aria-label="{escaped(label)}">{early}{marks}</div>'
        lines.append(f'<div class="line"><span>{escaped(alarm.name)}</span>{track}</div>')
        said = f"At step {alarm.spans[0].first:,}: {alarm.message}."
        if alarm.latest != alarm.message:
            said += f" At step {alarm.spans[-1].last:,}: {alarm.latest}."
        ending = "still raised at the end" if alarm.lasts else "passed"
        if alarm.lasts_unknown(story.records[-1]["step"]):
            ending = "no record after it had its figure"
        what.append(
            f"<h3>{escaped(alarm.name)}</h3>{paragraph(f'Raised at {when}; {ending}.', 'soft')}"
            f"{paragraph(said)}<p><strong>What to do:</strong> {escaped(alarm.advice)}.</p>"
        )
    ends = f'<div class="ends"><span>step 0</span><span>{story.steps:,}</span></div>'
    ends = f'<div class="line soft" aria-hidden="true"><span></span>{ends}</div>'
    key = paragraph(f"When each alarm was raised during the run. Hatched: before step {first:,.0f} it is too early to tell.", "soft")
    return section("Alarms", key + "".join(lines) + ends + "".join(what), "alarms")


def _share(step: int, story: Story) -> float:
    """Return the position of `step` on the run's time line, in percent."""
    return 100 * min(1.0, step / max(1, story.steps))


def _data(story: Story) -> str:
    return section("Data", "".join(map(paragraph, story.data)), "data") if story.data else ""


def _recipe(story: Story) -> str:
    body = paragraph(story.changed_from)
    if story.changes:
        body += page.table([["setting", "shipped", "here"], *story.changes], "Changed settings", kind="words")
    body += page.folded("The whole recipe (recipe.yaml)", story.recipe)
    if story.records:
        body += page.folded("The last record of metrics.jsonl", json.dumps(story.records[-1], indent=1))
    return section("Recipe", body, "recipe")
