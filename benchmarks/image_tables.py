"""Tables of real images: the figures of every method, their course during training, and the sweeps by which settings were chosen."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cells import ranged
from fewstep.metrics.rows import row_roles
from precision import PRECISIONS

# heading -> key, form; the columns of the short table come first
COLUMNS = {
    "FD / floor": ("frechet_over_floor", "{:.2f}"),
    "second judge": ("frechet_second_over_floor", "{:.2f}"),
    "class asked for": ("class_accuracy", "{:.1%}"),
    "worst class": ("least_class_accuracy", "{:.1%}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "class std": ("within_class_std", "{:.0%}"),
    "distance to train": ("train_distance", "{:.0%}"),
    "copies": ("copies", "{:.1%}"),
}
SPREAD = {heading: COLUMNS[heading] for heading in ("recall", "class std")}  # columns of a student in a sweep
SHOWN = {heading: COLUMNS[heading] for heading in ("FD / floor", "class asked for")}  # columns of every run of a sweep
TAKEN = (("steps", 1, ""), ("images_seen", 1e3, " k"))  # what training took: key, unit and its mark
MOST_SLOPE = 0.2  # share of the curve, at its end, over which its slope is measured
SETTLED, KNOWN = 0.2, 2 / 3  # shares of a training, between which a power law is fitted; it predicts the rest
EARLIER = " (earlier)"  # marks a row of an earlier form of its recipe
SHAPE = 1.3  # FD that a student is to reach, in multiples of its teacher's


def groups(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs by the title of their arm, in the order of their seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(content["runs"].values(), key=lambda run: run["training_seed"]):
        found.setdefault(run["title"], []).append(run)
    return found


def own_rows(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of `run` that measure its own model, rather than the floor or a teacher."""
    roles = row_roles(run)
    return [run["rows"][title] for title in run["rows"] if roles[title] == "own"]


def cells_of(rows: Sequence[dict[str, Any]], columns: dict[str, tuple[str, str]]) -> list[str]:
    """Return a cell for each of `columns`: the mean over `rows`, with its range."""
    return [ranged([row[key] for row in rows if key in row], form) for key, form in columns.values()]


def figures_lines(content: dict[str, Any], order: Sequence[str], short: bool = False) -> list[list[str]]:
    """Return a line for each arm in `order` and number of evaluations: every figure, and what the training took.

    With `short`, only the first four figures.
    """
    columns = dict(list(COLUMNS.items())[: 4 if short else None])
    lines = [["", "evaluations", *columns, "images seen", "training, CPU min"]]
    arms = groups(content)
    floor = next(run["rows"][run["floor_of"]] for runs in arms.values() for run in runs)
    lines.append(["real train split", "", *cells_of([floor], columns), "", ""])
    for title in (title for title in order if title in arms):
        runs = arms[title]
        counts = sorted({row["evaluations"] for run in runs for row in own_rows(run)}, reverse=title == "teacher")
        for count in counts:
            rows = [row for run in runs for row in own_rows(run) if row["evaluations"] == count]
            cells = cells_of(rows, columns)
            took = [f"{statistics.median(run['images_seen'] for run in runs) / 1e3:,.0f} k", f"{median_minutes(runs):.0f}"]
            lines.append([title + EARLIER * is_earlier(runs), str(count), *cells, *took])
    return lines


def is_earlier(runs: Sequence[dict[str, Any]]) -> bool:
    """Whether some of `runs` are of an earlier form of their recipe, which their entry "earlier" tells; `images.py` trains them again."""
    return any("earlier" in run for run in runs)


def median_minutes(runs: Sequence[dict[str, Any]]) -> float:
    """Return the median CPU time of the training of `runs`, in minutes."""
    return statistics.median(run["cpu_seconds"] for run in runs) / 60


def figures_note(content: dict[str, Any], order: Sequence[str]) -> str:
    """Return the note of a table of figures: numbers of samples and seeds, and what the times include."""
    run, arms = next(iter(content["runs"].values())), groups(content)
    seeds = ", ".join(f"{title} {len(arms[title])}" for title in order if title in arms)
    forms = dict.fromkeys(run["earlier"] for title in order for run in arms.get(title, []) if "earlier" in run)
    earlier = "".join(f"Rows with {EARLIER.strip()} are {form}. " for form in forms)
    return (
        f" {earlier}n = {run['n']:,}, sampling seed {run['seed']}; features {run['features']}. Training seeds: {seeds}; the mean, and the "
        "range in brackets. CPU time of a student is its own, without its teacher's; measuring on the way is in it."
    )


def curve_lines(content: dict[str, Any], order: Sequence[str]) -> list[list[str]]:
    """Return a line for each arm's first seed: FD / floor during training, and by how much it still falls with each tenth at the end."""
    lines = [["", "at", *(f"{k}%" for k in range(20, 101, 20)), "falls by, each 10% of the end"]]
    arms = groups(content)
    for title in (title for title in order if title in arms and arms[title][0]["curve"]):
        curve = arms[title][0]["curve"]
        most = curve[-1]["images_seen"]
        cells = []
        for share in (0.2, 0.4, 0.6, 0.8, 1.0):
            point = min(curve, key=lambda record: abs(record["images_seen"] - share * most))
            cells.append(f"{point['eval.frechet_over_floor']:.2f}")
        late = [record for record in curve if record["images_seen"] >= (1 - MOST_SLOPE) * most - 1]
        first, last = late[0]["eval.frechet_over_floor"], late[-1]["eval.frechet_over_floor"]
        falls = 1 - (last / first) ** (1 / max(1, len(late) - 1))
        lines.append([title + EARLIER * is_earlier(arms[title]), f"{most / 1e3:,.0f} k images", *cells, f"{falls:.0%}"])
    return lines


class PowerLaw(NamedTuple):
    """A power law of FD over training images: FD = ``exp(offset) images^slope``."""

    slope: float
    offset: float

    def at(self, images: float) -> float:
        """Return FD after so many images."""
        return float(np.exp(self.offset) * images**self.slope)

    def images(self, target: float) -> float | None:
        """Return the number of images at which FD reaches `target`; None if FD does not fall."""
        return float(np.exp((np.log(target) - self.offset) / self.slope)) if self.slope < 0 else None


def power_law(curve: Sequence[dict[str, float]], first: float, last: float) -> PowerLaw | None:
    """Fit a power law to a curve between the shares `first` and `last` of its training; None for fewer than three points."""
    most = curve[-1]["images_seen"]
    points = [record for record in curve if first * most <= record["images_seen"] <= last * most + 1]
    if len(points) < 3:
        return None
    x, y = (np.log([record[key] for record in points]) for key in ("images_seen", "eval.frechet_over_floor"))
    return PowerLaw(*map(float, np.polyfit(x, y, 1)))


def growth_lines(content: dict[str, Any], order: Sequence[str]) -> list[list[str]]:
    """Return a line for each arm: how well a power law through two thirds of its curve predicts the end.

    The last columns tell how FD falls by a power law through the whole curve, and when the student reaches `SHAPE` times its teacher's FD.
    """
    arms = groups(content)
    predicted = f"predicted from {SETTLED:.0%} to {KNOWN:.0%}"
    lines = [["", "FD / floor at the end", predicted, "predicted / found", "falls, each doubling", f"images to {SHAPE} x its teacher"]]
    for title in (title for title in order if title in arms and arms[title][0]["curve"]):
        run = arms[title][0]
        curve = run["curve"]
        before, whole = power_law(curve, SETTLED, KNOWN), power_law(curve, SETTLED, 1.0)
        if before is None or whole is None:
            continue
        most, found = curve[-1]["images_seen"], curve[-1]["eval.frechet_over_floor"]
        said = before.at(most)
        lines.append(
            [
                title,
                f"{found:.2f}",
                f"{said:.2f}",
                f"{said / found:.2f}",
                f"{1 - 2**whole.slope:.0%}",
                _needed(run, arms, whole, most, found),
            ]
        )
    return lines


def _needed(run: dict[str, Any], arms: dict[str, list[dict[str, Any]]], law: PowerLaw, most: float, found: float) -> str:
    """Return, in words, after how many images the student reaches `SHAPE` times its teacher's FD.

    Student and teacher were both measured at the end, on equally many samples, which gives the factor by which FD has yet to fall. The
    curve is measured on fewer samples, in units of another floor, and only gives how fast FD falls.
    """
    if run["taught"] not in arms:
        return ""
    teacher = max(own_rows(arms[run["taught"]][0]), key=lambda row: row["evaluations"])
    factor = SHAPE * teacher["frechet"] / own_rows(run)[0]["frechet"]
    if factor >= 1:
        return "reached"
    images = law.images(factor * found)
    return "it does not fall" if images is None else f"{images / 1e3:,.0f} k, {images / most:.1f} x as many"


def sweep_lines(content: dict[str, Any]) -> list[list[str]]:
    """Return a line for each arm of a sweep: its settings, its training and its figures, the mean over training seeds with the range."""
    teaches = any(run["denoising_error"] for run in content["runs"])
    several = {run["training_seed"] for run in content["runs"]} != {0}
    counts = sorted({count for run in content["runs"] for count in run.get("more", {})}, key=int)
    told = ["denoising error"] if teaches else ["recall", "class std"]
    further = [f"in {count} step{'s' * (count != '1')}" for count in counts]
    heads = ["settings", "CPU s", "steps", "images", *told, "FD / floor", *further, "class asked for", *["seeds"] * several]
    arms: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for run in content["runs"]:
        arms.setdefault((run["asked_seconds"], run["title"]), []).append(run)

    def mean_over(arm: tuple[float, str]) -> tuple[float, float]:
        return arm[0], statistics.mean(run["row"]["frechet_over_floor"] for run in arms[arm])

    lines = [heads]
    for asked, title in sorted(arms, key=mean_over):
        runs = sorted(arms[asked, title], key=lambda run: run["training_seed"])
        rows = [run["row"] for run in runs]
        errors = [ranged([run["denoising_error"]["all"] for run in runs], "{:.4f}")] if teaches else cells_of(rows, SPREAD)
        took = [f"{asked:.0f}", *(f"{statistics.median(run[key] for run in runs) / unit:,.0f}{mark}" for key, unit, mark in TAKEN)]
        changed = ", ".join(f"`{override}`" for override in runs[0]["overrides"])
        what = f"{title}: {changed}" if changed else title
        more = [
            ranged([run["more"][count]["frechet_over_floor"] for run in runs if count in run.get("more", {})], "{:.2f}") for count in counts
        ]
        seeds = [", ".join(str(run["training_seed"]) for run in runs)] * several
        over, asked_for = cells_of(rows, SHOWN)
        lines.append([what, *took, *errors, over, *more, asked_for, *seeds])
    return lines


def calibration_lines(table: dict[str, Any]) -> list[list[str]]:
    """Return a line for each set of known quality, in the order of the first judge."""
    keys = ("FD / floor", "second judge", "class asked for", "precision", "recall", "class std")
    columns = {heading: COLUMNS[heading] for heading in keys if any(COLUMNS[heading][0] in row for row in table["rows"].values())}
    lines = [["", *columns]]
    for title, row in sorted(table["rows"].items(), key=lambda item: (item[1].get("role") != "floor", item[1]["frechet_over_floor"])):
        name = "floor: random train images" if row.get("role") == "floor" else title
        lines.append([name, *cells_of([row], columns)])
    return lines


def guidance_lines(content: dict[str, Any]) -> list[list[str]]:
    """Return a line for each scale of guidance, and number of steps where there are several."""
    steps = len({row["steps"] for row in content["rows"]}) > 1
    columns = {heading: form for heading, form in COLUMNS.items() if any(form[0] in row for row in content["rows"])}
    lines = [["guidance", *["steps"] * steps, "n", "evaluations", *columns]]
    for row in sorted(content["rows"], key=lambda row: (row["n"], row["steps"], row["scale"])):
        taken = [*[str(row["steps"])] * steps, f"{row['n']:,}", str(row["evaluations"])]
        lines.append([f"{row['scale']:g}", *taken, *cells_of([row], columns)])
    return lines


def churn_lines(content: dict[str, Any]) -> list[list[str]]:
    """Return a line for each set and churn of flow maps: FD / floor by the number of sampling steps."""
    counts = sorted({row["steps"] for row in content["rows"]})
    lines = [["", "new noise (churn)", *(f"FD / floor, {count} step{'s' * (count > 1)}" for count in counts), "training seed"]]
    for name, churn, seed in sorted({(row["set"], row["churn"], row["training_seed"]) for row in content["rows"]}):
        of = {row["steps"]: row for row in content["rows"] if (row["set"], row["churn"], row["training_seed"]) == (name, churn, seed)}
        lines.append(
            [name, f"{churn:g}", *(f"{of[count]['frechet_over_floor']:.2f}" if count in of else "" for count in counts), str(seed)]
        )
    return lines


def precision_lines(content: dict[str, Any]) -> list[list[str]]:
    """Return a line for each figure of each model, in fp32 and in bf16: the mean over training seeds, and the range."""
    named = {
        "FD / floor": ("frechet_over_floor", "{:.2f}"),
        "class asked for": ("class_accuracy", "{:.1%}"),
        "denoising error": ("denoising_error", "{:.4f}"),
    }
    lines = [["", "figure", "fp32", "bf16", "seeds"]]
    sets = dict.fromkeys((run["set"], role) for run in content["runs"] for role in run["rows"])
    for name, role in sets:
        runs = {
            precision: [run for run in content["runs"] if (run["set"], run["precision"]) == (name, precision)] for precision in PRECISIONS
        }
        for heading, (key, form) in named.items():
            values = [[run["rows"][role][key] for run in some if key in run["rows"][role]] for some in runs.values()]
            if all(values):
                lines.append(
                    [f"{name}, {role}", heading, *(ranged(some, form) for some in values), "/".join(str(len(some)) for some in values)]
                )
    return lines
