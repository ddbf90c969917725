"""Draw each failure that `alarms.py` provokes on 2D points: the data beside samples of the run that failed.

    python benchmarks/alarm_pictures.py                # about two minutes on one core
    python benchmarks/alarm_pictures.py "rate too high"

Writes docs/pictures/alarm_NAME.png, where NAME is the name of the alarm. A run of `alarms.py` that is missing or unfinished is trained.
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from alarms import FAILURES, SEED, Arm, asked, recipe_of, trained
from fewstep import load
from fewstep.build import in_memory, load_data

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
NUM = 1_500  # points in each panel
INK = "#3f51b5"


def pictured() -> list[Arm]:
    """Return the failures of `alarms.py` whose data are 2D points."""
    return [arm for arm in FAILURES if not arm.recipe.endswith("digits")]


def draw(arm: Arm, folder: Path) -> Path:
    """Draw the data beside samples of the failed run of `arm`, train the run if it is not finished, and return the picture's path."""
    recipe = recipe_of(arm, arm.fault, folder)
    run = trained(recipe, folder / arm.key, arm.title)
    data = in_memory(load_data(recipe.data, recipe.seed))
    panels = {"data": data.heldout[:NUM], "samples": load(run).sample(NUM, seed=SEED)}
    edge = 1.25 * data.heldout.abs().max().item()
    figure, axes = plt.subplots(1, 2, figsize=(4.6, 2.5), dpi=110)
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
    """Draw the failures whose titles are asked for, or all of them."""
    arms, folder = asked(__doc__, pictured())
    PICTURES.mkdir(exist_ok=True)
    for arm in arms:
        print("wrote", draw(arm, folder), flush=True)


if __name__ == "__main__":
    main()
