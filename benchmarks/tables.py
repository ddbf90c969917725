"""Write the tables of README.md and of the pages of docs from the result files.

    python benchmarks/tables.py

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; all text between these marks is replaced.
"""

import functools
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import ranged
from fewstep.metrics.figures import BY_KEY
from fewstep.metrics.least import LEAST
from gpu_tables import NOTHING, devices, outlook_lines, outlook_note, results, runs_lines, steps_lines
from image_tables import (
    calibration_lines,
    churn_lines,
    curve_lines,
    figures_lines,
    figures_note,
    groups,
    growth_lines,
    guidance_lines,
    own_rows,
    precision_lines,
    sweep_lines,
)
from images import ARMS
from method_tables import method_lines
from scaling_tables import memory_lines, network_lines, published_lines, speed_lines
from text_tables import text_lines

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
DOCS = HERE.parent / "docs"
WIDTH = 109  # columns of a line of text


def result(name: str) -> dict:
    """Return the content of results/NAME.json."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def markdown(lines: list[list[str]]) -> str:
    """Return `lines` as a Markdown table; the first line holds its headings. Columns of numbers are aligned to the right."""
    rule = ["---:" if number and numbers([line[number] for line in lines[1:]]) else "---" for number in range(len(lines[0]))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def numbers(cells: list[str]) -> bool:
    """Whether at least half of the cells that are not empty begin with a number."""
    told = [cell for cell in cells if cell]
    return sum(bool(re.match(r"[-+]?\d", cell)) for cell in told) * 2 >= len(told)


def source(content: dict, note: str = "") -> str:
    """Return the paragraph that says where the numbers of `content` come from: command, machine, versions, and `note`."""
    runs = content.get("runs", [])
    machine = content.get("machine") or next(iter(runs.values() if isinstance(runs, dict) else runs))["machine"]
    place = machine["cpu"] if machine["accelerator"] == "none" else machine["accelerator"]
    text = f"`{content['command']}` on {place}, {machine['threads']} thread(s), torch {machine['torch']}.{note}"
    return f"\n\n{wrapped(text)}"


def wrapped(text: str) -> str:
    """Return `text` in lines of the pages' width; text in backticks is not broken."""
    lines = [""]
    for word in re.findall(r"(?:`[^`]*`|[^\s`])+", text):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def quality() -> str:
    """Return the table of teacher and student of digits: mean and range over seeds of every figure."""
    content = result("quality")
    runs = content["runs"]
    columns = {
        "FD / floor": ("frechet_over_floor", "{:.2f}"),
        "FD to train / floor": ("frechet_train", "{:.2f}"),
        "class asked for": ("class_accuracy", "{:.1%}"),
        "precision": ("precision", "{:.2f}"),
        "recall": ("recall", "{:.2f}"),
        "class std": ("within_class_std", "{:.0%}"),
        "spacing": ("spacing", "{:.0%}"),
        "distance to train": ("train_distance", "{:.1%}"),
        "images/s": ("images_per_second", "{:,.0f}"),
    }
    lines = [["", *columns]]
    for name in runs[0]["rows"]:
        cells = []
        for key, form in columns.values():
            scale = runs[0]["floor"] if key == "frechet_train" else 1
            values = [run["rows"][name][key] / scale for run in runs if key in run["rows"][name]]
            if values and key == "images_per_second":  # its range would be the machine's
                values = [statistics.mean(values)]
            cells.append(ranged(values, form))
        lines.append([name, *cells])
    took = {part: statistics.median(run["seconds"][part] for run in runs) for part in ("teacher", "student")}
    note = (
        f" Mean over training seeds {', '.join(str(run['training_seed']) for run in runs)}, the range in brackets; n = {runs[0]['n']}, "
        f"sampling seed {runs[0]['seed']}; median training time {took['teacher']:.0f} s (teacher) and {took['student']:.0f} s (student)."
    )
    return markdown(lines) + source(content, note)


READ_ME = {  # title of a row of the README's only table -> title of the row of `quality`, and role and arm of the rows of `images.py`
    "real images: the floor": ("real train split", "floor", "dmd2"),
    "the diffusion teacher": ("teacher, 35 evaluations", "most", "teacher"),
    "the same in one step": ("teacher, 1 evaluation", "least", "teacher"),
    "its student by DMD2": ("student, 1 evaluation", "least", "dmd2"),
}


def readme() -> str:
    """Return the README's table of four rows: the demonstration's recipes and those of MNIST, each the mean over its seeds."""
    runs, arms = result("quality")["runs"], groups(result("images_mnist"))
    forms = {"frechet_over_floor": "{:.2f}", "class_accuracy": "{:.1%}"}
    lines = [["", "evaluations", "digits 8x8: FD / floor", "class asked for", "MNIST: FD / floor", "class asked for"]]
    for title, (name, role, arm) in READ_ME.items():
        small, large = [run["rows"][name] for run in runs], []
        for run in arms[arm]:
            own = sorted(own_rows(run), key=lambda row: row["evaluations"])
            large.append({"floor": run["rows"][run["floor_of"]], "most": own[-1], "least": own[0]}[role])
        cells = [form.format(statistics.mean(row[key] for row in rows)) for rows in (small, large) for key, form in forms.items()]
        counts = dict.fromkeys(str(rows[0]["evaluations"]) for rows in (small, large) if role != "floor")
        lines.append([title, " / ".join(counts), *cells])
    seeds, teachers = (", ".join(str(run["training_seed"]) for run in listed) for listed in (runs, arms["teacher"]))
    note = (
        f" Means over training seeds {seeds}; n = {runs[0]['n']:,}. MNIST: `python benchmarks/images.py mnist --data DIR`, "
        f"n = {arms['dmd2'][0]['n']:,}; the teacher's seeds {teachers}."
    )
    return markdown(lines) + source(result("quality"), note)


def precision() -> str:
    """Return the table of what is trained in fp32 and in bf16."""
    content = result("precision")
    return markdown(precision_lines(content)) + source(content, " Mean over training seeds, the range in brackets.")


def evaluation_speed() -> str:
    """Return the table of the seconds that an evaluation takes beyond drawing, and of its longest parts."""
    content = result("evaluation_speed")
    parts = {"features of real images": "real_features", "features of samples": "describe", "precision and recall": "precision_recall"}
    parts |= {"nearest neighbours": "nearest_two"}
    lines = [["", "seconds", *parts, "the rest"]]
    for name, row in content["rows"].items():
        named = [row["parts"].get(key, 0.0) for key in parts.values()]
        lines.append([name, *(f"{seconds:.0f}" for seconds in (row["seconds"], *named, row["seconds"] - sum(named)))])
    return markdown(lines) + source(content, f" {content['num']:,} samples, {content['train']:,} training images, both judges.")


def step_overhead() -> str:
    """Return the table of step overhead: the ratio for each turn, and the times behind it."""
    content = result("step_overhead")
    lines = [["network, turn", "step / passes", "step, ms", "passes, ms", "peak memory, step / passes"]]
    for row in content["rows"]:
        how = f"batch {row['batch']}, {row['threads']} thread{'s' * (row['threads'] > 1)}{', CPU time' * (row.get('clock') == 'cpu')}"
        lines.append(
            [
                f"{row['network']}, {row['turn']} ({how})",
                f"{row['ratio']:.3f}",
                f"{row['step_ms']:.1f}",
                f"{row['passes_ms']:.1f}",
                f"{row['step_peak_mib']:.0f} / {row['passes_peak_mib']:.0f} MiB",
            ]
        )
    return markdown(lines) + source(content, " Medians of alternating calls in one process.")


def time_to_quality(name: str = "time_to_quality") -> str:
    """Return the table of the seconds until each arm reaches the target, and how much sooner the shipped settings do."""
    content = result(name)
    shipped = next(row["arrived"] for row in content["rows"] if row["arm"] == "shipped")
    lines = [["settings", f"seconds to {content['target']} x the floor", "over shipped"]]
    for row in content["rows"]:
        if row["arrived"]:
            lines.append([row["arm"], f"{row['arrived']:.0f}", f"{row['arrived'] / shipped:.1f} x"])
        else:
            lines.append(
                [row["arm"], f"not in {row['trained']:.0f} (stood at {row['stood_at']:.2f})", f"over {row['trained'] / shipped:.1f} x"]
            )
    return markdown(lines) + source(content, f" n = {content['n']}, seed {content['seed']}.")


LABORATORY = {
    "energy": ("energy distance", "{:.4f}"),
    "modes": ("modes", "{:.0f}"),
    "weight_tv": ("weights, TV", "{:.3f}"),
    "inside": ("inside", "{:.3f}"),
    "variance": ("variance", "{:.2f}"),
    "median_radius": ("radius", "{:.2f}"),
}


def laboratory(*studies: str) -> str:
    """Return the table of `studies` of the laboratory, a row a setting: mean over seeds, with the range."""
    contents = [result(f"laboratory_{study}") for study in studies]
    runs = [run for content in contents for run in content["runs"]]
    lines = [["", *(heading for heading, _ in LABORATORY.values()), "seconds"]]
    for title in dict.fromkeys(run["title"] for run in runs):
        group = [run for run in runs if run["title"] == title]
        cells = []
        for key, (_, form) in LABORATORY.items():
            values = [run["row"][key] for run in group if key in run["row"]]
            cells.append(ranged(values, form))
        lines.append([title, *cells, f"{statistics.median(run['seconds'] for run in group):.0f}"])
    floor = runs[0]["floor"]
    seeds = ", ".join(sorted({str(run["training_seed"]) for run in runs}))
    note = (
        f" Mean over training seeds {seeds}, the range in brackets; n = {runs[0]['n']} against as many exact samples, sampling seed 0; "
        f"seconds: median, of training. Two exact sets ({runs[0]['title'].split(',')[0]}): energy distance "
        f"{floor['energy']:.4f} (standard error {floor['energy_error']:.4f}), TV {floor['weight_tv']:.3f}, inside {floor['inside']:.3f}."
    )
    command = {"command": f"python benchmarks/laboratory.py --studies {' '.join(studies)}", "machine": runs[0]["machine"]}
    return markdown(lines) + source(command, note)


def digits(name: str) -> str:
    """Return the table of the results `name` on digits, a row a setting: mean over seeds, with the range."""
    content = result(name)
    columns = {
        "frechet_over_floor": ("FD / floor", "{:.2f}"),
        "class_accuracy": ("class asked for", "{:.1%}"),
        "precision": ("precision", "{:.2f}"),
        "recall": ("recall", "{:.2f}"),
        "within_class_std": ("class std", "{:.0%}"),
        "spacing": ("spacing", "{:.0%}"),
        "train_distance": ("distance to train", "{:.0%}"),
    }
    lines = [["", *(heading for heading, _ in columns.values()), "seconds"]]
    for title in dict.fromkeys(run["title"] for run in content["runs"]):
        group = [run for run in content["runs"] if run["title"] == title]
        cells = [ranged([run["row"][key] for run in group], form) for key, (_, form) in columns.items()]
        fewer = (
            f" ({len(group)} seed{'s' * (len(group) > 1)})" if len(group) < len({run["training_seed"] for run in content["runs"]}) else ""
        )
        lines.append([title + fewer, *cells, f"{statistics.median(run['seconds'] for run in group):.0f}"])
    seeds = sorted({str(run["training_seed"]) for run in content["runs"]})
    samplings = len(content["runs"][0].get("seeds", [0]))
    sets = f", mean of {samplings} sets of samples" if samplings > 1 else ", seed 0"
    return markdown(lines) + source(content, f" Mean over training seeds {', '.join(seeds)}, the range in brackets; n = 2000{sets}.")


def equal_time(name: str) -> str:
    """Return the table of `name` at equal training time, the longest there is: a row a setting as in `digits`, with training steps."""
    content = result(name)
    longest = max(run["asked_seconds"] for run in content["runs"])
    runs = [run for run in content["runs"] if run["asked_seconds"] == longest]
    columns = {
        "frechet_over_floor": ("FD / floor", "{:.2f}"),
        "class_accuracy": ("class asked for", "{:.1%}"),
        "recall": ("recall", "{:.2f}"),
        "within_class_std": ("class std", "{:.0%}"),
        "spacing": ("spacing", "{:.0%}"),
        "train_distance": ("distance to train", "{:.0%}"),
    }
    lines = [["", *(heading for heading, _ in columns.values()), "steps"]]
    for title in dict.fromkeys(run["title"] for run in runs):
        group = [run for run in runs if run["title"] == title]
        cells = [ranged([run["row"][key] for run in group], form) for key, (_, form) in columns.items()]
        mark = "*" * (group[0].get("trained_in_features") == "evaluator")
        lines.append([title + mark, *cells, f"{statistics.median(run['training_steps'] for run in group):,.0f}"])
    seeds = ", ".join(sorted({str(run["training_seed"]) for run in runs}))
    note = f" {longest:g} CPU seconds of training each; training seeds {seeds}; n = 2000, mean of {len(runs[0]['seeds'])} sets of samples."
    if any(line[0].endswith("*") for line in lines):
        note += " * The training acted on the features in which FD is measured: FD flatters it."
    return markdown(lines) + source({**content, "machine": runs[0]["machine"]}, note)


def digits_4step() -> str:
    """Return the table of what was tried for several steps: a row a run, with the figures after each step."""
    content = result("digits_4step_sweep")
    lines = [
        ["levels of the steps", "training steps", "seed", "FD / floor", "after each step", "kept by each", "class asked for", "class std"]
    ]
    for run in content["runs"]:
        row = run["row"]
        after = ", ".join(f"{step['frechet_over_floor']:.2f}" for step in run["steps"])
        kept = ", ".join(f"{value:.2f}" for value in run.get("kept", []))
        cells = [f"{row['frechet_over_floor']:.2f}", after, kept, f"{row['class_accuracy']:.1%}", f"{row['within_class_std']:.0%}"]
        lines.append([run["title"], str(run["training_steps"]), str(run["training_seed"]), *cells])
    samplings = len(content["runs"][0]["seeds"])
    return markdown(lines) + source(
        content, f" n = 2000, mean of {samplings} sets of samples; after each step one set. Kept: the correlation with the step before."
    )


def drift_step() -> str:
    """Return the table of a drift step and of the field alone: times and memory beside the plain form."""
    content = result("drift_step")
    step = content["step"]
    lines = [["", "ours, ms", "plain form, ms", "plain / ours", "plain from cdist / ours", "memory, ours / plain"]]
    lines.append(
        [
            "training step, N = 512, D = 2",
            f"{step['ours_ms']:.2f}",
            f"{step['plain_ms']:.2f}",
            f"{step['plain_over_ours']:.2f}",
            f"{step['plain_cdist_over_ours']:.2f}",
            "",
        ]
    )
    for row in content["rows"]:
        plain = row.get("plain_ms", row.get("plain_cdist_ms"))
        lines.append(
            [
                f"field, N = {row['num']:,}, D = {row['dims']}",
                f"{row['ours_ms']:.1f}",
                f"{plain:.1f}" if plain else "",
                f"{row['plain_over_ours']:.1f}" if "plain_over_ours" in row else "",
                f"{row['plain_cdist_over_ours']:.1f}" if "plain_cdist_over_ours" in row else "",
                f"{row['ours_mib']:.0f}" + (f" / {row['plain_mib']:,.0f} MiB" if "plain_mib" in row else " MiB"),
            ]
        )
    note = f" Medians of alternating calls in one process; the network and optimiser alone take {step['network_ms']:.2f} ms of the step."
    drawing = content["dashboard"]
    note += (
        ""
        if drawing is None
        else (
            f" The dashboard at its default cadence: training takes {drawing['ratio']:.3f} times as long as without "
            f"({drawing['lowest']:.3f} to {drawing['highest']:.3f} in {drawing['repeats']} pairs)."
        )
    )
    return markdown(lines) + source(content, note)


STEPS = ("1", "2", "3", "4", "5", "10", "20", "50")


def by_steps(study: str, key: str, form: str, pick: str = "") -> str:
    """Return the table of a study of DDDM, a row a setting, a column a number of steps: mean over seeds, with the range.

    With `pick`, one more row has the best at each number of steps of the rows whose title begins with `pick`.
    """
    content = result(f"dddm_{study}")
    titles = list(dict.fromkeys(run["title"] for run in content["runs"]))
    lines = [["steps", *STEPS, "CPU s"]]
    means: dict[str, list[float]] = {}
    for title in titles:
        group = [run for run in content["runs"] if run["title"] == title]
        values = [[run["rows"][steps][key] for run in group] for steps in STEPS]
        means[title] = [statistics.mean(column) for column in values]
        seconds = statistics.median(run["cpu_seconds"] for run in group)
        lines.append([title, *(ranged(column, form) for column in values), f"{seconds:.0f}"])
    if pick:
        chosen = [row for title, row in means.items() if title.startswith(pick)]
        lines.append([f"{pick}, the best at each number of steps", *(form.format(min(column)) for column in zip(*chosen, strict=True)), ""])
    runs = content["runs"]
    seeds = ", ".join(str(seed) for seed in sorted({run["training_seed"] for run in runs}))
    against = f"; two exact sets: {runs[0]['floor']['energy']:.4f}" if key == "energy" else ""
    note = (
        f" Mean over training seeds {seeds}, the range in brackets; n = {runs[0]['n']}, sampling seed 0{against}; "
        "CPU s: median, of training, both schedules run to their end."
    )
    return markdown(lines) + source(content, note)


def posterior(study: str) -> str:
    """Return the table of how far draws are from the exact posterior's, a row a setting, a column a time."""
    content = result(f"dddm_{study}")
    times = list(content["runs"][0]["posterior"])
    lines = [["t", *times]]
    for title in dict.fromkeys(run["title"] for run in content["runs"]):
        group = [run for run in content["runs"] if run["title"] == title]
        lines.append([title, *(f"{statistics.mean(run['posterior'][t] for run in group):.4f}" for t in times)])
    return markdown(lines) + source(
        content, " Energy distance of 200 draws of x0 given x_t to exact ones, averaged over 400 x_t and the seeds."
    )


def dddm_step() -> str:
    """Return the table of the time that m particles cost, and that the training loop adds."""
    content = result("dddm_step")
    lines = [["", "step / passes", "m = 8 over m = 1", "step, ms", "passes, ms", "step with m = 1, ms"]]
    for row in content["rows"]:
        lines.append(
            [
                f"dddm/{row['name']} ({row['threads']} thread{'s' * (row['threads'] > 1)})",
                f"{row['step_over_passes']:.3f}",
                f"{row['many_over_one']:.2f}",
                f"{row['step_ms']:.1f}",
                f"{row['passes_ms']:.1f}",
                f"{row['one_ms']:.1f}",
            ]
        )
    return markdown(lines) + source(content, " Medians of alternating calls in one process; cifar10 is the recipe's network with 8 images.")


def dmd2_steps() -> str:
    """Return the table of class std and FD / floor after each step of four-step students."""
    content = result("dmd2_digits")
    runs = [run for run in content["runs"] if run.get("steps")]
    titles = list(dict.fromkeys(run["title"] for run in runs))
    lines = [["", *(f"after step {number + 1}, sigma {row['sigma']:.3g}" for number, row in enumerate(runs[0]["steps"]))]]
    for title in titles:
        group = [run["steps"] for run in runs if run["title"] == title]
        for key, heading, form in (("within_class_std", "class std", "{:.0%}"), ("frechet_over_floor", "FD / floor", "{:.2f}")):
            lines.append([f"{title}: {heading}", *(ranged([rows[i][key] for rows in group], form) for i in range(len(group[0])))])
    seeds = {title: sum(run["title"] == title for run in runs) for title in titles}
    note = " Seeds: " + ", ".join(f"{title} {number}" for title, number in seeds.items()) + "; the range in brackets; n = 2000."
    return markdown(lines) + source(content, note)


def flows(points: bool) -> str:
    """Return the table of consistency models and flow maps by evaluations: on the ring if `points`, else on digits."""
    content = result("flows")
    runs = [run for run in content["runs"] if ("energy" in run["rows"]["1"]) == points]
    headings = ["", "training, CPU s"]
    shown = [("frechet_over_floor", "FD / floor", "{:.2f}"), ("train_distance", "to train", "{:.0%}")]
    if points:
        shown = [("modes", "modes", "{:.0f}"), ("inside", "inside", "{:.3f}"), ("energy", "energy distance", "{:z.4f}")]
    counts = list(dict.fromkeys(count for run in runs for count in run["rows"]))
    headings += [f"{heading}, {count} evaluation{'s' * (count != '1')}" for count in counts for _, heading, _ in shown]
    lines = [headings]
    for title in dict.fromkeys(run["title"] for run in runs):
        group = [run for run in runs if run["title"] == title]
        some = (
            ""
            if len(group) == len({run["training_seed"] for run in runs})
            else f" (seeds {', '.join(str(r['training_seed']) for r in group)})"
        )
        cells = [title + some, ranged([run["cpu_seconds"] for run in group], "{:.0f}")]
        for count in counts:
            rows = [run["rows"][count] for run in group if count in run["rows"]]
            cells += [ranged([row[key] for row in rows], form) for key, _, form in shown]
        lines.append(cells)
    seeds = sorted({run["training_seed"] for run in runs})
    sets = "one set of samples" if points else f"mean of {len(runs[0]['seeds'])} sets of samples"
    note = f" Mean over training seeds {', '.join(map(str, seeds))}, the range in brackets; n = {runs[0]['n']}, {sets}."
    if points:
        note += f" Two exact sets have an energy distance of {runs[0]['floor']:.4f}."
    else:
        note += f" The floor, an FD of {runs[0]['floor']:.3f}, is that of the train split. A teacher's own training time is apart."
    return markdown(lines) + source(content, note)


def export_speed() -> str:
    """Return the table of onnxruntime's throughput beside torch's."""
    content = result("export_speed")
    lines = [["network, threads, batch", "torch, images/s", "onnxruntime, images/s", "ratio"]]
    for row in content["rows"]:
        lines.append(
            [
                f"{row['network']}, {row['threads']}, {row['batch']}",
                f"{row['torch_images_per_second']:,.0f}",
                f"{row['onnxruntime_images_per_second']:,.0f}",
                f"{row['onnxruntime_over_torch']:.2f}",
            ]
        )
    machine = {**content["machine"], "threads": " or ".join(map(str, content["machine"]["threads"]))}
    note = " Medians of calls in turns in one process; the ratio is the median of the pairs'."
    return markdown(lines) + source({**content, "machine": machine}, note)


def told_figures(figures: dict) -> str:
    """Return the figures of a run in words."""
    forms = {"energy": "energy {:.4f}", "frechet_over_floor": "FD / floor {:.2f}", "class_accuracy": "class {:.0%}"}
    return ", ".join(form.format(figures[key]) for key, form in forms.items() if key in figures)


def alarms_failures() -> str:
    """Return the table of provoked failures, a row a fault: its alarms, how advice was followed, figures before and after."""
    content = result("alarms")

    def told(changes: list[str]) -> str:
        short = (re.sub(r"^data={.*path: ([^,]+).*", r"data.path=\1", change) for change in changes)
        return ", ".join(f"`{change}`" for change in short)

    lines = [
        ["fault", "alarms, and the share of the run at which they were first raised", "advice, and how it was followed", "before", "after"]
    ]
    for title, row in content["failures"].items():
        raised = {alarm["alarm"]: alarm for alarm in row["before"]["alarms"]}
        names = [
            f"{'**' * (name == row['expected'])}{name}{'**' * (name == row['expected'])} {alarm['first']:.0%}"
            for name, alarm in raised.items()
        ]
        fault = told(row["fault"]) or "`teacher/grid25`"
        lines.append(
            [
                f"{title} ({row['recipe']}, {fault})",
                ", ".join(names),
                f"{raised[row['expected']]['advice']}: {told([change for step in row['followed'] for change in step['done']])}",
                told_figures(row["before"]["figures"]),
                told_figures(row["followed"][-1]["figures"]),
            ]
        )
    n = sorted({row["before"]["n"] for row in content["failures"].values()})
    note = f" Training seed {content['seed']}; n = {' or '.join(map(str, n))} samples, seed 0. In bold the alarm whose advice was followed."
    return markdown(lines) + source(content, note)


def alarms_sound() -> str:
    """Return the table of sound runs, a row a recipe: its steps, its alarms and its figures."""
    content = result("alarms")
    lines = [["recipe", "steps", "alarms", "figures"]]
    for title, row in content["sound"].items():
        raised = ", ".join(f"{alarm['alarm']} {alarm['first']:.0%}" for alarm in row["alarms"])
        lines.append([title, f"{row['steps']:,}", raised or "none", told_figures(row["figures"])])
    return markdown(lines) + source(content, f" Training seed {content['seed']}.")


def figure_errors() -> str:
    """Return the table of the figures' errors: a figure's least numbers of items, its error there and at the next smaller number."""
    content = result("figure_errors")
    lines = [["figure", "real items", "error there", "error below", "generated items", "error there", "error below"]]
    measured = {key for row in content["rows"] for key in row["figures"]}
    for key, least in LEAST.items():
        if key in measured:
            real = "train" if key in ("frechet_train", "within_class_std", "spacing") else "heldout"
            made = f"{least.at_mode:g} at a mode" if least.at_mode else str(least.generated)
            cells = [str(least.reference), *errors_at(content, key, real, least.reference)] if least.reference else ["any", "", ""]
            # a number at each mode: of the density with most modes
            at = round(least.at_mode * 25) or least.generated
            lines.append([BY_KEY[key].heading, *cells, made, *errors_at(content, key, "generated", at, "ring" if least.at_mode else "")])
    note = (
        " Errors as shares of what lies between truth and fault, the larger of two feature networks or densities, in brackets the number; "
    )
    note += f"{content['draws']} draws, seed {content['seed']}; the other side has 400 images or 1,000 points."
    return markdown(lines) + source(content, note)


def errors_at(content: dict, key: str, side: str, num: int, without: str = "") -> list[str]:
    """Return the errors of a figure where `side` has `num` items or the next number tried, and at the number below, if there is one."""
    skipped = {without, "pixels-8x8"} if key == "kernel" else {without}
    shares: dict[int, list[float]] = {}
    for row in content["rows"]:
        if row["side"] == side and key in row["figures"] and row["study"] not in skipped:
            shares.setdefault(row["size"], []).append(row["figures"][key]["share"])
    at = min((size for size in shares if size >= num), default=None)
    below = max((size for size in shares if size < num), default=None)
    return ["" if size is None else f"{max(shares[size]):.2f} ({size})" for size in (at, below)]


def gpu_steps() -> str:
    """Return the table of time, rate and memory of a training step on the GPUs that were measured."""
    found = results()
    lines = steps_lines(found)
    note = f"`python benchmarks/gpu.py` on {devices(found)}. Forward, backward and AdamW, medians; of each the batch with most images/s."
    return f"{markdown(lines)}\n\n{wrapped(note)}" if lines else wrapped(NOTHING)


def gpu_runs() -> str:
    """Return the table of the training runs on a GPU: Frechet distance by images and seconds."""
    found = results()
    lines = runs_lines(found)
    note = f"`python benchmarks/gpu.py` on {devices(found)}. CIFAR-10 (JPEG), n = 2,000 on the way, seed 0; seconds with measuring."
    return f"{markdown(lines)}\n\n{wrapped(note)}" if lines else wrapped(NOTHING)


def gpu_outlook() -> str:
    """Return the table of what published figures would take."""
    return f"{markdown(outlook_lines(results(), result('gpu_outlook')))}\n\n{wrapped(outlook_note())}"


def images(name: str, short: bool = False) -> str:
    """Return the table of each method on real images: every figure; with `short`, the first figures of teacher and student."""
    content = result(f"images_{name}")
    order = [title for title in ARMS[name] if not short or title in ("teacher", "dmd2", "dmd2, 4 steps")]
    return markdown(figures_lines(content, order, short)) + source(content, figures_note(content, order))


def image_curves(name: str) -> str:
    """Return the table of FD / floor during the training of each method."""
    content = result(f"images_{name}")
    note = " Of the first seed, by 1,000 samples; the last column is the mean over the last fifth."
    return markdown(curve_lines(content, list(ARMS[name]))) + source(content, note)


def image_outlook(name: str) -> str:
    """Return the table of whether a curve's beginning predicts its end, and of the images that the student needs."""
    content = result(f"images_{name}")
    return markdown(growth_lines(content, list(ARMS[name]))) + source(content, " Of the first seed, by 1,000 samples.")


METHOD_NOTES = {
    "ring": "`python benchmarks/flows.py`, `dddm.py --studies ring`, `laboratory.py`; n = 10,000. Exact samples have .988.",
    "digits": "`python benchmarks/quality.py`, `dmd2.py`, `flows.py`, `dddm.py --studies digits`, `laboratory.py --studies digits`; "
    "n = 2,000. DMD2 of four steps was trained on a machine that was busy, which its time shows.",
    "mnist": "`python benchmarks/images.py mnist --data DIR`; n = 10,000. Guidance takes the teacher and DDDM two evaluations a step.",
}


def methods(name: str) -> str:
    """Return the table of every method on one data set."""
    note = " The mean over training seeds, and the range in brackets; each recipe as it is shipped, on one thread of an AMD EPYC."
    return f"{markdown(method_lines(name))}\n\n{wrapped(METHOD_NOTES[name] + note)}"


def choose() -> str:
    """Return the table by which to choose a method, measured on digits: quality by evaluations, and training time."""
    heading, *lines = method_lines("digits")
    at = {name: column for column, name in enumerate(heading)}
    counts = {"1": "FD / floor, 1 evaluation", "2": "FD / floor, 2 evaluations", "4": "FD / floor, 4 evaluations"}
    short = [
        ["method", "teacher", *(f"FD / floor at {count}" for count in counts), "at most evaluations", "training (+ its teacher's), min"]
    ]
    for line in lines:
        values = [re.sub(r" \(.*?\)", "", line[at[name]]) for name in (*counts.values(), "with most evaluations")]
        short.append([line[0], line[at["teacher"]], *values, line[at["training (+ its teacher's), min"]]])
    note = (
        "Real 8x8 digits, n = 2,000; the mean over training seeds, each recipe as it is shipped, on one thread of an AMD EPYC. The ranges,"
    )
    return f"{markdown(short)}\n\n{wrapped(note + ' and the commands, are in methods.md.')}"


def calibration(name: str) -> str:
    """Return the table of what the feature networks make of sets whose quality is known."""
    content = result("feature_calibration")
    table = content["tables"][name]
    note = " ".join([f" n = {table['n']:,}, in {' and '.join(table['judges'])}.", *(f"Wrong: {text}." for text in table["mistakes"])])
    return markdown(calibration_lines(table)) + source(content, note)


def guidance(name: str) -> str:
    """Return the table of a model's figures at each guidance scale."""
    content = result(f"guidance_{name}")
    what = "teacher" if content.get("method", "teacher") == "teacher" else "model"
    of = f"the {what} of seed {content['training_seed']} after {content['training_steps']:,} steps"
    note = f" Of {of}; sampling seed 0; features {content['features']['name']}."
    return markdown(guidance_lines(content)) + source(content, note)


def sweep(name: str) -> str:
    """Return the table of the short runs by which settings were chosen."""
    content = result(f"sweep_{name}")
    seeds = {run["training_seed"] for run in content["runs"]}
    told = " One seed (0)" if seeds == {0} else " Training seeds as the last column says; the mean, and the range in brackets"
    note = f"{told}, n = {content['runs'][0]['n']:,}; each for the time asked for, without measuring.{content.get('note', '')}"
    return markdown(sweep_lines(content)) + source(content, note)


def churn() -> str:
    """Return the table of flow maps sampled with more and less new noise between the steps."""
    content = result("churn")
    note = f" n = {content['rows'][0]['n']:,}, sampling seed 0."
    return markdown(churn_lines(content)) + source(content, note)


def scaling(lines: Callable[[dict[str, Any]], list[list[str]]]) -> str:
    """Return a table of what networks of full size cost on many GPUs."""
    content = result("scaling")
    note = f"`{content['command']}`, counted without weights."
    return f"{markdown(lines(content))}\n\n{wrapped(note)}"


def text(name: str) -> str:
    """Return the table of a tiny text-to-image model of digits and its students."""
    content = result(name)
    note = f" n = {content['n']:,} samples, one sampling seed; minutes on one of two cores, with other work beside it."
    return markdown(text_lines(content)) + source(content, note)


TABLES = {
    "text_digits": lambda: text("text_digits"),
    "scaling_networks": lambda: scaling(network_lines),
    "scaling_memory": lambda: scaling(memory_lines),
    "scaling_speed": lambda: scaling(speed_lines),
    "scaling_published": lambda: scaling(published_lines),
    **{f"methods_{name}": functools.partial(methods, name) for name in METHOD_NOTES},
    "images_mnist": lambda: images("mnist"),
    "images_mnist_short": lambda: images("mnist", short=True),
    "image_curves_mnist": lambda: image_curves("mnist"),
    "image_outlook_mnist": lambda: image_outlook("mnist"),
    "image_outlook_cifar10": lambda: image_outlook("cifar10"),
    "images_cifar10": lambda: images("cifar10"),
    "image_curves_cifar10": lambda: image_curves("cifar10"),
    "images_cifar10_16": lambda: images("cifar10_16"),
    "image_curves_cifar10_16": lambda: image_curves("cifar10_16"),
    "image_outlook_cifar10_16": lambda: image_outlook("cifar10_16"),
    "guidance_mnist": lambda: guidance("mnist"),
    "guidance_cifar10_16": lambda: guidance("cifar10_16"),
    "guidance_dddm_mnist": lambda: guidance("dddm_mnist"),
    "guidance_dddm_digits": lambda: guidance("dddm_digits"),
    "calibration_mnist": lambda: calibration("mnist"),
    "calibration_cifar10": lambda: calibration("cifar10"),
    "sweep_flow_map_mnist": lambda: sweep("flow_map_mnist"),
    "sweep_consistency_mnist": lambda: sweep("consistency_mnist"),
    "sweep_dmd2_mnist_4step": lambda: sweep("dmd2_mnist_4step"),
    "sweep_dddm_mnist": lambda: sweep("dddm_mnist"),
    "churn": churn,
    "sweep_teacher_mnist": lambda: sweep("teacher_mnist"),
    "sweep_dmd2_mnist": lambda: sweep("dmd2_mnist"),
    "sweep_teacher_cifar10_cpu": lambda: sweep("teacher_cifar10_cpu"),
    "sweep_dmd2_cifar10_cpu": lambda: sweep("dmd2_cifar10_cpu"),
    "gpu_steps": gpu_steps,
    "gpu_runs": gpu_runs,
    "gpu_outlook": gpu_outlook,
    "alarms_failures": alarms_failures,
    "alarms_sound": alarms_sound,
    "figure_errors": figure_errors,
    "export_speed": export_speed,
    "evaluation_speed": evaluation_speed,
    "dddm_ring": lambda: by_steps("ring", "energy", "{:.4f}"),
    "dddm_bimodal": lambda: by_steps("bimodal", "energy", "{:.4f}"),
    "dddm_particles": lambda: by_steps("particles", "energy", "{:.4f}"),
    "dddm_digits_particles": lambda: by_steps("digits_particles", "frechet_over_floor", "{:.2f}"),
    "dddm_digits_output": lambda: by_steps("digits_output", "frechet_over_floor", "{:.2f}"),
    "dddm_output": lambda: by_steps("output", "energy", "{:.4f}"),
    "dddm_posterior": lambda: posterior("output"),
    "dddm_ring_posterior": lambda: posterior("ring"),
    "dddm_digits": lambda: by_steps("digits", "frechet_over_floor", "{:.2f}", "plain diffusion"),
    "dddm_step": dddm_step,
    "quality": quality,
    "precision": precision,
    "readme": readme,
    "choose": choose,
    "step_overhead": step_overhead,
    "time_to_quality": time_to_quality,
    "time_to_quality_mnist": lambda: time_to_quality("time_to_quality_mnist"),
    "laboratory": lambda: laboratory("ring", "grid25", "unequal", "mixture8d", "continuous", "dmd2"),
    "gaussian": lambda: laboratory("gaussian"),
    "fields": lambda: laboratory("fields"),
    "presets": lambda: laboratory("presets"),
    "drift_digits": lambda: digits("laboratory_digits"),
    "floor": lambda: digits("laboratory_floor"),
    "dmd2_steps": dmd2_steps,
    "dmd2_digits": lambda: digits("dmd2_digits"),
    "losses_digits": lambda: equal_time("losses_digits"),
    "digits_4step": digits_4step,
    "drift_features": lambda: equal_time("drift_features"),
    "drift_step": drift_step,
    "flows": lambda: flows(points=False),
    "flows_ring": lambda: flows(points=True),
}


def pages() -> list[Path]:
    """Return README.md and every page of docs."""
    return [README, *sorted(DOCS.rglob("*.md"))]


def filled(text: str) -> tuple[str, set[str]]:
    """Return `text` with each of its tables replaced, and their names. Raises ValueError for a name that is not in `TABLES`."""
    placed = set(re.findall(r"<!-- table: (\w+) -->", text))
    if unknown := placed - TABLES.keys():
        raise ValueError(f"there is no table {', '.join(sorted(unknown))}; known are {', '.join(TABLES)}")
    for name in placed:
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        table = TABLES[name]()
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.S)
    return text, placed


def main() -> None:
    """Replace each table of each page, and print the tables that are on no page."""
    placed = set()
    for page in pages():
        before = page.read_text()
        after, names = filled(before)
        placed |= names
        if after != before:
            page.write_text(after)
            print(f"wrote {page.relative_to(HERE.parent)}")
    print("tables on no page:", ", ".join(sorted(set(TABLES) - placed)) or "none")


if __name__ == "__main__":
    main()
