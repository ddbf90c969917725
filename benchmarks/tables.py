"""Write the tables of README.md from the result files.

    python benchmarks/tables.py

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` and is replaced whole.
"""

import json
import re
import statistics
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def result(name: str) -> dict:
    """What results/NAME.json holds."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def markdown(lines: list[list[str]]) -> str:
    """A table; the first of `lines` holds its headings."""
    rule = ["---"] + ["---:"] * (len(lines[0]) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def source(content: dict, note: str = "") -> str:
    """Where the numbers come from."""
    machine = content.get("machine") or content["runs"][0]["machine"]
    place = machine["cpu"] if machine["accelerator"] == "none" else machine["accelerator"]
    return f"\n\n`{content['command']}` on {place}, {machine['threads']} thread(s), torch {machine['torch']}.{note}"


def quality() -> str:
    """Mean and range over seeds, of each thing measured."""
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
            if not values:
                cells.append("")
                continue
            spread = (
                f" ({form.format(min(values))} to {form.format(max(values))})"
                if form.format(min(values)) != form.format(max(values))
                else ""
            )
            cells.append(form.format(statistics.mean(values)) + (spread if key != "images_per_second" else ""))
        lines.append([name, *cells])
    took = {part: statistics.median(run["seconds"][part] for run in runs) for part in ("teacher", "student")}
    note = (
        f" Mean over training seeds {', '.join(str(run['training_seed']) for run in runs)}, the range in brackets; n = {runs[0]['n']}, "
        f"sampling seed {runs[0]['seed']}; median training time {took['teacher']:.0f} s (teacher) and {took['student']:.0f} s (student)."
    )
    return markdown(lines) + source(content, note)


def step_overhead() -> str:
    """The ratio for each turn, and the times behind it."""
    content = result("step_overhead")
    lines = [["network, turn", "step / passes", "step, ms", "passes, ms", "peak memory, step / passes"]]
    for row in content["rows"]:
        lines.append(
            [
                f"{row['network']}, {row['turn']} (batch {row['batch']}, {row['threads']} thread{'s' * (row['threads'] > 1)})",
                f"{row['ratio']:.3f}",
                f"{row['step_ms']:.1f}",
                f"{row['passes_ms']:.1f}",
                f"{row['step_peak_mib']:.0f} / {row['passes_peak_mib']:.0f} MiB",
            ]
        )
    return markdown(lines) + source(content, " Medians of alternating calls in one process.")


def time_to_quality() -> str:
    """Seconds to the target, and how much sooner the shipped settings are."""
    content = result("time_to_quality")
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


TABLES = {"quality": quality, "step_overhead": step_overhead, "time_to_quality": time_to_quality}


def main() -> None:
    """Replace each table of the README."""
    text = README.read_text()
    for name, make in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        assert re.search(pattern, text, re.S), f"README.md has no table {name}"
        table = make()
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.S)
    README.write_text(text)
    print("wrote README.md")


if __name__ == "__main__":
    main()
