"""Is it working? Figures that tell, and alarms that name the cause.

A distillation loss says little: it is the disagreement of two networks, and may rise while the samples improve. What tells
is the samples beside real data of the same batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.methods.base import Alarm, Method


@dataclass(frozen=True)
class Raised:
    """Something is wrong: `name` in one word, what was `seen`, and `advice`: why that may be, and what to change."""

    name: str
    seen: str
    advice: str

    @property
    def message(self) -> str:
        """All of it, but for the name."""
        return f"{self.seen}. {self.advice}"


# what any run can suffer from; a method says in its own words what to do about it, and has alarms of its own beside these
COMMON = (
    Alarm(
        "collapse",
        "health.spread",
        "samples of a class differ {value:.0%} as much as real ones: diversity is being lost",
        "Raise batch_size, lower {rate}, or train longer",
        low=0.8,
        sound=1.0,
    ),
    Alarm(
        "noise",
        "health.spread",
        "samples of a class differ {value:.0%} as much as real ones: they still hold noise, or training is unstable",
        "Lower {rate}",
        high=1.3,
        sound=1.0,
    ),
    Alarm(
        "shift",
        "health.shift",
        "the samples' mean is {value:.2f} standard deviations from the data's",
        "Check network.sigma_data and the pixel range, or train longer",
        high=0.25,
        sound=0.0,
        lost="Training is unstable: lower {rate}",
    ),
    Alarm(
        "saturation",
        "health.saturation",
        "{value:.0%} of the pixels lie beyond the data's range",
        "Lower {rate}, or the guidance",
        high=0.15,
        sound=0.0,
    ),
    Alarm(
        "scale",
        "health.scale",
        "the data's standard deviation is {value:.2g} times network.sigma_data",
        "Set network.sigma_data to the standard deviation of the data",
        low=0.4,
        high=2.5,
    ),
    Alarm(
        "labels",
        "health.classes",
        "real items of a class differ as much as items of different classes: the labels tell nothing of the data",
        "Check that each label belongs to its item (data.label_column), or train without classes",
        low=0.01,
    ),
    Alarm(
        "lag",
        "health.lag",
        "the averaged weights, which are what ships, are {value:.0%} of the run behind",
        "Lower method.ema_decay (ten times as far from 1), or train longer",
        high=0.2,
    ),
    Alarm(
        "teacher",
        "health.teacher",
        "the teacher denoises these items {value:.1f} times as badly as can be done without a network: it was made for other data, or for "
        "other pixel values",
        "Take a teacher that was trained on this data, with the same network.sigma_data and pixel range",
        high=1.1,  # digits after 200 steps have .6 in their teacher, in half their range 1.2, inverted 2.4; points of a ring .5
    ),
    Alarm(
        "still",
        "health.reach",
        "the learning rates of all updates add up to {value:.1g} of a weight's size, where what learns has 1 or more",
        "Raise {rate} by as much",
        low=0.02,
    ),
    Alarm(
        "batch",
        "health.batch",
        "each sample learns from {value:.0f} others: where they are is mostly chance",
        "Raise batch_size (64 or more) for samples to feel the data",
        low=16,
    ),
    Alarm(
        "unaveraged",
        "health.averaged",
        "the weights that ship are an average over {value:.2g} updates, and the learning rate is held to the end: they carry the chance of "
        "the last batches",
        "Set method.ema_decay to 0.99 or more, or let the rate fall (decay_from and final beside {rate})",
        low=2.0,
    ),
)


RENAMED = {"drift": "shift"}  # common alarms of older runs, by their names now

SETTLED = 0.2  # share of a run before which all figures still move
UNMOVED = 0.5  # share of its way from a sound value that a figure has at least left to go, while it has hardly moved
WORSE = 1.25  # times as far from a sound value as once before: it was better


def older_names(method: type[Method] | Method) -> dict[str, str]:
    """What runs of older versions call figures and alarms of `method` and common alarms, each with its name now."""
    own = {rule.name for rule in method.alarms}
    return {old: new for old, new in RENAMED.items() if old not in own} | dict(method.renamed)


def usual_advice(rule: Alarm, advice: Mapping[str, str]) -> str:
    """What a method's `advice` has for `rule`, by its name or the one that it had in older versions, or else the rule's own."""
    by_name = {RENAMED.get(name, name): text for name, text in advice.items()}
    return by_name.get(rule.name, rule.advice)


class Course:
    """How each figure has gone: its first value, and the one nearest to that of a sound run.

    Where samples were worth something before the first update, the first record has those values as ``FIGURE_first``: a rate that is far
    too high has blown them up by the time of the record itself.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.nearest: dict[str, float] = {}

    def follow(self, figures: Mapping[str, float], own: Sequence[Alarm] = ()) -> None:
        """Take note of `figures`, of those that `own` alarms and common ones compare, in as many digits as a record has."""
        for rule in (*COMMON, *own):
            if rule.sound is not None and rule.figure in figures:
                value = float(f"{figures[rule.figure]:.9g}")
                first = float(f"{figures.get(f'{rule.figure}_first', value):.9g}")
                before = self.nearest.get(rule.figure, first)
                self.first.setdefault(rule.figure, first)
                self.nearest[rule.figure] = min(before, value, key=lambda x, sound=rule.sound: abs(x - sound))  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return {"first": self.first, "nearest": self.nearest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.first, self.nearest = dict(state.get("first", {})), dict(state.get("nearest", {}))


def alarms(
    figures: Mapping[str, float],
    progress: float,
    own: Sequence[Alarm] = (),
    advice: Mapping[str, str] | None = None,
    course: Course | None = None,
    rate: str = "the learning rate",
) -> list[Raised]:
    """The alarms that `figures` raise at `progress` (0 to 1) of the run; none in its first fifth, when all is unsettled.

    `own` are the method's, and `advice` replaces that of a common one, by its name. With the `course` of the figures, one that has hardly
    moved since the start is told apart from one that was better before; `rate` is the setting that would move it.
    """
    if progress < SETTLED:
        return []
    raised = []
    for rule in sorted((*COMMON, *own), key=lambda rule: rule.sound is not None):  # a cause before what it does to samples and loss
        if rule.figure not in figures:
            continue
        value, margin = figures[rule.figure], margin_of(rule, figures)
        if rule.low <= value + margin and value - margin <= rule.high:
            continue
        usual = usual_advice(rule, advice or {})
        raised.append(Raised(rule.name, rule.message.format(value=value), what_to_do(rule, usual, value, margin, course or Course(), rate)))
    return raised


def margin_of(rule: Alarm, figures: Mapping[str, Any]) -> float:
    """By how much the figure of `rule` may be off among `figures`: two of its standard errors, 0 for one that has none."""
    return 2 * float(figures.get(f"{rule.figure}_error", 0.0))


def what_to_do(rule: Alarm, advice: str, value: float, margin: float, course: Course, rate: str) -> str:
    """`advice`, unless the figure of `rule`, now `value` give or take `margin`, is still where its `course` began.

    `rate` stands for ``{rate}``.
    """
    return _what_to_do(rule, advice, value, margin, course, rate).replace("{rate}", rate)


def _what_to_do(rule: Alarm, advice: str, value: float, margin: float, course: Course, rate: str) -> str:
    first, nearest = course.first.get(rule.figure), course.nearest.get(rule.figure)
    if rule.sound is None or first is None or nearest is None:
        return advice
    now, at_first, at_best = (abs(x - rule.sound) for x in (value, first, nearest))
    if now > WORSE * at_best + margin:
        return f"It was better before ({nearest:.2g}). {rule.lost or advice}"
    if now >= UNMOVED * at_first:
        return f"It has hardly moved since the start ({first:.2g}). {rule.unmoved or f'Train longer (steps), or raise {rate}'}"
    return f"It has come from {first:.2g}: train longer (steps). If it stays: {advice}"
