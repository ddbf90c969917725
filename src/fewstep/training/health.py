"""Alarms: rules that compare a run's health figures with the values of a sound run, and say what may be wrong and what to change.

A distillation loss says little: it measures how far two networks disagree, and may rise while the samples improve. The health figures
therefore compare samples with real data of the same batch (`fewstep.training.looks`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.methods.base import Alarm, Method


@dataclass(frozen=True)
class Raised:
    """An alarm that was raised: its `name` in one word, what was `seen`, and `advice` on the likely cause and what to change."""

    name: str
    seen: str
    advice: str

    @property
    def message(self) -> str:
        """The alarm's message without its name: what was seen, and the advice."""
        return f"{self.seen}. {self.advice}"


# the alarms of all methods; a method may replace their advice with its own, and has alarms of its own beside these
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
        "{value:.0%} of the pixels lie beyond the data's range, without those that any small error puts there",
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
        "real items of a class differ as much as items of different classes: the labels tell nothing about the items",
        "Check that each label belongs to its item (data.label_column), or train without classes",
        # classes that look alike explain little of the pixels' variance, such as 0.3% for cats and dogs of CIFAR-10, and more than chance
        low=0.01,
        chance=0.0,
    ),
    Alarm(
        "lag",
        "health.lag",
        "the averaged weights, which the generator ships with, lag {value:.0%} of the run behind",
        "Lower method.ema_decay (ten times as far from 1), or train longer",
        high=0.2,
    ),
    Alarm(
        "teacher",
        "health.teacher",
        "the teacher denoises these items {value:.1f} times as badly as can be done without a network: it was made for other data, or for "
        "other pixel values",
        "Take a teacher that was trained on this data, with the same network.sigma_data and pixel range",
        # a teacher of the digits after 200 steps has 0.6 on the digits, 1.2 on digits in half their range and 2.4 on inverted digits; a
        # teacher of points on a ring has 0.5
        high=1.1,
    ),
    Alarm(
        "still",
        "health.reach",
        "the learning rates of all updates add up to {value:.1g} of a weight's size, and a network that learns needs 1 or more",
        "Raise {rate} by as much",
        low=0.02,
    ),
    Alarm(
        "batch",
        "health.batch",
        "each sample learns from {value:.0f} others, whose places are mostly chance",
        "Raise batch_size (64 items or more, of each class) for samples to feel the data",
        low=16,
    ),
    Alarm(
        "unaveraged",
        "health.averaged",
        "the weights that ship are an average over {value:.2g} updates, and the learning rate is held to the end: they carry the noise of "
        "the last batches",
        "Set method.ema_decay to 0.99 or more, or let the rate fall (decay_from and final beside {rate})",
        low=2.0,
    ),
)


RENAMED = {"drift": "shift"}  # names of common alarms in runs of older versions, each with its current name

SETTLED = 0.2  # share of a run before which no alarm is raised, because all figures still change
UNMOVED = 0.5  # a figure has hardly moved while at least this share of its first distance from the sound value remains
WORSE = 1.25  # a figure was better before if its distance from the sound value is more than this many times the smallest one so far


def older_names(method: type[Method] | Method) -> dict[str, str]:
    """Return the names of figures and alarms in runs of older versions, each with its current name: those of `method` and common ones."""
    own = {rule.name for rule in method.alarms}
    return {old: new for old, new in RENAMED.items() if old not in own} | dict(method.renamed)


def usual_advice(rule: Alarm, advice: Mapping[str, str]) -> str:
    """Return the advice for `rule`: a method's own from `advice`, by the rule's current or older name, or else the rule's default."""
    by_name = {RENAMED.get(name, name): text for name, text in advice.items()}
    return by_name.get(rule.name, rule.advice)


class Course:
    """The history of each health figure in a run: its first value, its value nearest to that of a sound run, and the alarms that last.

    Where a figure could be measured before the first update, the first record holds that value as ``FIGURE_first``: with a learning rate
    that is far too high, the figure of the record itself is already blown up.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.nearest: dict[str, float] = {}
        self.lasting: list[str] = []

    def follow(self, figures: Mapping[str, float], own: Sequence[Alarm] = ()) -> None:
        """Update the history with those of `figures` that `own` and common alarms compare with a sound value, rounded as in a record."""
        for rule in (*COMMON, *own):
            if rule.sound is not None and rule.figure in figures:
                value = float(f"{figures[rule.figure]:.9g}")
                first = float(f"{figures.get(f'{rule.figure}_first', value):.9g}")
                before = self.nearest.get(rule.figure, first)
                self.first.setdefault(rule.figure, first)
                self.nearest[rule.figure] = min(before, value, key=lambda x, sound=rule.sound: abs(x - sound))  # type: ignore[misc]

    def after(self, raised: Sequence[str], figures: Mapping[str, Any], own: Sequence[Alarm] = ()) -> list[str]:
        """Return the names of the alarms that last after a record with these `figures`, which `raised` some, of `own` and common alarms.

        Small batches do not give every figure in every record. An alarm lasts until its figure is known again, and raises it no more.
        """
        watched = {rule.name: rule.figure for rule in (*COMMON, *own)}
        unknown = [name for name in self.lasting if name not in raised and watched.get(name) not in figures]
        self.lasting = [name for name in raised if watched.get(name) in figures] + unknown
        return [*raised, *unknown]

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain numbers and names."""
        return {"first": self.first, "nearest": self.nearest, "lasting": self.lasting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the history that `state_dict` returned."""
        self.first, self.nearest = dict(state.get("first", {})), dict(state.get("nearest", {}))
        self.lasting = list(state.get("lasting", []))


def alarms(
    figures: Mapping[str, float],
    progress: float,
    own: Sequence[Alarm] = (),
    advice: Mapping[str, str] | None = None,
    course: Course | None = None,
    rate: str = "the learning rate",
) -> list[Raised]:
    """Return the alarms that `figures` raise at `progress` (0 to 1) of the run; none in its first fifth, when figures are unsettled.

    Args:
        figures: health figures by name, with standard errors as ``NAME_error`` where they are known.
        progress: the share of the run that is done.
        own: the method's own alarms, checked beside the common ones.
        advice: the method's advice for common alarms, by the alarm's name, which replaces the default.
        course: the history of the figures, which tells one that has hardly moved since the start from one that was better before.
        rate: the name of the learning-rate setting, put in place of ``{rate}`` in the advice.

    """
    if progress < SETTLED:
        return []
    raised = []
    for rule in sorted((*COMMON, *own), key=lambda rule: rule.sound is not None):  # causes before their effects on samples and loss
        if rule.figure not in figures:
            continue
        value, margin = figures[rule.figure], margin_of(rule, figures)
        if rule.low <= value + margin and value - margin <= rule.high:
            continue
        if rule.chance is not None and 0 < margin < abs(value - rule.chance):
            continue
        usual = usual_advice(rule, advice or {})
        raised.append(Raised(rule.name, rule.message.format(value=value), what_to_do(rule, usual, value, margin, course or Course(), rate)))
    return raised


def margin_of(rule: Alarm, figures: Mapping[str, Any]) -> float:
    """Return the uncertainty of the figure of `rule`: two of its standard errors in `figures`, or 0 where no error is known."""
    return 2 * float(figures.get(f"{rule.figure}_error", 0.0))


def what_to_do(rule: Alarm, advice: str, value: float, margin: float, course: Course, rate: str) -> str:
    """Return the advice for a figure of `rule` at `value`, uncertain by `margin`, in view of its history `course`.

    It is `advice` where the history is not known; otherwise it says whether the figure was better before, has hardly moved or is improving,
    and what to do then. ``{rate}`` is replaced by `rate`, the name of the learning-rate setting.
    """
    return _what_to_do(rule, advice, value, margin, course, rate).replace("{rate}", rate)


def _what_to_do(rule: Alarm, advice: str, value: float, margin: float, course: Course, rate: str) -> str:
    first, nearest = course.first.get(rule.figure), course.nearest.get(rule.figure)
    if rule.sound is None or first is None or nearest is None:
        return advice
    now, at_first, at_best = (abs(x - rule.sound) for x in (value, first, nearest))
    if now > WORSE * at_best + margin:
        return f"It was better before ({_as_in_message(rule, nearest)}). {rule.lost or advice}"
    if now >= UNMOVED * at_first:
        since = _as_in_message(rule, first)
        return f"It has hardly moved since the start ({since}). {rule.unmoved or f'Train longer (steps), or raise {rate}'}"
    return f"It has improved from {_as_in_message(rule, first)}: train longer (steps). If the alarm stays: {advice}"


def _as_in_message(rule: Alarm, value: float) -> str:
    """Return an earlier `value` of the figure of `rule` in its message's unit: in per cent, or as a plain number."""
    return f"{value:.0%}" if "%}" in rule.message else f"{value:.2g}"
