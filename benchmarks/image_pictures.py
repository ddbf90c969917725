"""Draw the runs of `images.py`: samples of each class by every method, and the course of quality over images and over seconds.

    python benchmarks/image_pictures.py mnist --data ../shared/data/mnist --folder runs/images/mnist

Writes docs/images_NAME.png and docs/curves_NAME.png. Samples are drawn with seed 0, from the same noise for every model, and not selected.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from fewstep.build import in_memory, load_data
from fewstep.data import ImageData
from fewstep.engine import use_threads
from fewstep.generator import Generator, load
from fewstep.recipe import load_recipe
from fewstep.training.run_folder import RunFolder
from fewstep.viz.colours import COLOURS
from fewstep.viz.plots import contact_sheet
from image_tables import EARLIER, is_earlier
from images import ARMS, HERE, as_shipped, folder_of

DOCS = HERE.parent / "docs"
PER_CLASS, CLASSES = 2, 10


def samples(generator: Generator, steps: int | None = None) -> torch.Tensor:
    """Return `PER_CLASS` samples of each class, in `steps` sampling steps."""
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    return generator.sample(len(labels), seed=0, labels=labels, steps=steps)


def real(data: ImageData) -> torch.Tensor:
    """Return the first held-out images of each class."""
    label = data.labels("heldout")
    assert label is not None
    return torch.cat([data.images("heldout")[label == k][:PER_CLASS] for k in range(CLASSES)])


def draw_samples(name: str, data: Path, root: Path) -> Path:
    """Draw the contact sheet of the arms whose run of their first seed is finished, and return its path."""
    teacher = next(iter(ARMS[name].values()))
    images = in_memory(load_data(load_recipe(teacher.recipe, [f"data.dir={json.dumps(str(data))}", *teacher.changes]).data))
    assert isinstance(images, ImageData)
    blocks = [("real, held out", "", real(images))]
    for title in as_shipped(name):
        arm = ARMS[name][title]
        folder = folder_of(root, title, arm.seeds[0])
        run = RunFolder(folder)
        if not run.recipe_file.is_file() or not run.is_finished(run.recipe()["steps"]):
            continue
        generator = load(folder)
        for steps in arm.steps:
            evaluations = generator.evaluations(steps)
            blocks.append((title, f"{evaluations} evaluation{'s' * (evaluations > 1)}", samples(generator, steps)))
    path = DOCS / f"images_{name}.png"
    contact_sheet(blocks, path, columns=PER_CLASS * CLASSES)
    return path


def draw_curves(name: str) -> Path:
    """Draw FD / floor during the training of each arm that was measured meanwhile, and return the picture's path."""
    content = json.loads((HERE / "results" / f"images_{name}.json").read_text())
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles, shown, ends = list(ARMS[name]), set[str](), dict[str, list[float]]()
    for run in sorted(content["runs"].values(), key=lambda run: (titles.index(run["title"]), run["training_seed"])):
        if not run["curve"]:
            continue
        title = run["title"] + EARLIER * is_earlier([run])
        number, first = titles.index(run["title"]), title not in shown
        color, line = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
        shown.add(title)
        ends.setdefault(title, []).append(run["curve"][-1]["eval.frechet_over_floor"])
        # the CPU time is known for the whole run only: the curve's wall time is scaled by the run's share of a core
        alone = run["cpu_seconds"] / run["curve"][-1]["seconds"]
        for ax, key, scale in ((axes[0], "images_seen", 1e-3), (axes[1], "seconds", alone / 60)):
            x = [record[key] * scale for record in run["curve"]]
            y = [record["eval.frechet_over_floor"] for record in run["curve"]]
            ax.plot(x, y, f".{line}", color=color, alpha=1 if first else 0.4, label=title if first else None)
    axes[0].set_xscale("log")  # some methods see fifty times as many images as others
    for ax, label in zip(axes, ("images seen, thousands", "CPU minutes of training"), strict=True):
        ax.set_yscale("log")
        ax.set_xlabel(label)
        ax.grid(alpha=0.3, which="both")
        for scale, digits in ((ax.yaxis, "235"), (ax.xaxis, "")):
            scale.set_major_formatter("{x:,g}")
            scale.set_minor_formatter(FuncFormatter(lambda x, place, digits=digits: f"{x:g}" if f"{x:e}"[0] in digits else ""))
    axes[0].set_ylabel("FD / floor, 1,000 samples")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    mean = {title: statistics.mean(values) for title, values in ends.items()}
    best = min(mean, key=lambda title: mean[title])
    pale = "; pale: further training seeds" if any(len(values) > 1 for values in ends.values()) else ""
    figure.suptitle(f"{best} ends lowest, at {mean[best]:.2f} times the floor{pale}", fontsize=10)
    path = DOCS / f"curves_{name}.png"
    figure.savefig(path, dpi=110)
    return path


def main() -> None:
    """Draw the contact sheet and the curves of a set of runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(ARMS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    use_threads(1)
    root = arguments.folder or Path("runs/images") / arguments.set
    for path in (draw_samples(arguments.set, arguments.data, root), draw_curves(arguments.set)):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
