"""A small picture of each provoked failure of points: the data, samples as the run failed, and after its advice was followed.

    python benchmarks/alarm_pictures.py                # about five minutes on one core
    python benchmarks/alarm_pictures.py "rate too high"

Writes docs/pictures/alarm_NAME.png. The runs are those of `alarms.py`, whose results say what was changed; they are trained where they are
not there.
"""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

from alarms import FAILURES, RESULTS, SEED, Arm, ran, recipe_of
from fewstep import load
from fewstep.build import in_memory, load_data
from fewstep.text import read_json

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
NUM = 1_500  # points of a panel
INK = "#3f51b5"


def pictured() -> list[Arm]:
    """The failures of points."""
    return [arm for arm in FAILURES if not arm.recipe.endswith("digits")]


def draw(arm: Arm, folder: Path) -> Path:
    """The picture of `arm`."""
    row = read_json(RESULTS)["failures"][arm.title]
    done = [change for step in row["followed"] for change in step["done"]]
    panels = {}
    for title, changes, name in (("as it failed", arm.fault, arm.key), ("after the advice", (*arm.fault, *done), f"{arm.key}_mended")):
        recipe = recipe_of(arm, changes, folder)
        ran(recipe, folder / name, arm.title)
        panels[title] = load(folder / name).sample(NUM, seed=SEED)
        data = in_memory(load_data(recipe.data, recipe.seed))
    panels = {"data": data.heldout[:NUM], **panels}
    edge = 1.25 * data.heldout.abs().max().item()
    figure, axes = plt.subplots(1, 3, figsize=(6.6, 2.4), dpi=110)
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(*points.T, s=1.2, color=INK, linewidths=0)
        axis.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[], aspect="equal")
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    path = PICTURES / f"alarm_{arm.alarm}.png"
    figure.savefig(path)
    plt.close(figure)
    return path


def main() -> None:
    """Draw those that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("titles", nargs="*", help="parts of titles")
    parser.add_argument("--folder", type=Path, default=Path("runs/alarms"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    PICTURES.mkdir(exist_ok=True)
    for arm in pictured():
        if not arguments.titles or any(part in arm.title for part in arguments.titles):
            print("wrote", draw(arm, arguments.folder), flush=True)


if __name__ == "__main__":
    main()
