"""Show that training in bf16 is as good as in fp32, where it is faster: the same recipes and seeds in both, on digits and on MNIST.

    python benchmarks/precision.py digits                                       teacher/digits and dmd2/digits as shipped
    python benchmarks/precision.py mnist --data ../shared/data/mnist            teacher/mnist, 1,500 steps
    python benchmarks/precision.py digits --seeds 0 --precisions bf16-mixed     a part; two such may run side by side

One thread. What is in the results is not done again, and a run that was stopped goes on in the next call. Digits are measured by 2,000
samples, MNIST's teacher by 1,000 samples at 10 noise levels (38 evaluations with guidance) and by its denoising error on the test split.
How much faster bf16 is, `threads.py` measures. Writes results/precision.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from fewstep.build import in_memory, load_data
from fewstep.data import ImageData
from fewstep.engine import use_threads
from fewstep.generator import load
from fewstep.machine import machine
from fewstep.measurement import measure, suite_for
from fewstep.recipe import Recipe, load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder
from image_sweep import HEUN, denoising_error
from images import shared

RESULTS = Path(__file__).parent / "results" / "precision.json"
PRECISIONS = ("32-true", "bf16-mixed")
STEPS = 1_500  # of the teacher of MNIST
KEYS = ("frechet_over_floor", "frechet_second_over_floor", "class_accuracy", "within_class_std", "recall")


def trained(name: str, folder: Path, overrides: list[str]) -> Recipe:
    """Train the recipe `name` with `overrides` in `folder`, or finish its run there, and return the recipe."""
    recipe = load_recipe(name, overrides)
    train_recipe(recipe, folder, resume=RunFolder(folder).recipe_file.exists(), title=folder.name, source=name)
    return recipe


def measured(recipe: Recipe, folder: Path, num: int, steps: int | None = None) -> dict[str, float]:
    """Return the figures of `num` samples of the run in `folder`, and of a teacher its denoising error on held-out images."""
    data, generator = in_memory(load_data(recipe.data)), load(folder)
    assert isinstance(data, ImageData)
    row: dict[str, Any] = measure(suite_for(data, num=num), generator, num, 0, steps, speed=False)
    error = {"denoising_error": denoising_error(generator, data)["all"]} if generator.is_denoiser else {}
    return {key: row[key] for key in KEYS if key in row} | error


def main() -> None:
    """Train and measure what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("digits", "mnist"))
    parser.add_argument("--data", help="folder of the parquet files of MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--folder", type=Path, default=Path("runs/precision"))
    arguments = parser.parse_args()
    if arguments.set == "mnist" and arguments.data is None:
        parser.error("mnist needs --data, the folder of its parquet files")
    use_threads(1)
    for seed in arguments.seeds:
        for precision in arguments.precisions:
            told = {"set": arguments.set, "seed": seed, "precision": precision}
            with shared(RESULTS) as content:
                done = any({key: run[key] for key in told} == told for run in content.get("runs", []))
            if done:
                print(f"{arguments.set}, seed {seed}, {precision}: done")
                continue
            common = [f"seed={seed}", f"trainer.precision={precision}", "trainer.threads=1"]
            folder = arguments.folder / f"{arguments.set}_{precision}_{seed}"
            if arguments.set == "digits":
                teacher, student = folder / "teacher", folder / "student"
                rows = {"teacher": measured(trained("teacher/digits", teacher, common), teacher, 2_000)}
                distilled = [*common, f"method.teacher={json.dumps(str(teacher))}"]
                rows["student"] = measured(trained("dmd2/digits", student, distilled), student, 2_000)
            else:
                overrides = [*common, f"data.dir={json.dumps(arguments.data)}", f"steps={STEPS}"]
                rows = {"teacher": measured(trained("teacher/mnist", folder, overrides), folder, 1_000, HEUN)}
            with shared(RESULTS) as content:
                content["command"] = "python benchmarks/precision.py"
                content.setdefault("runs", []).append({**told, "rows": rows, "machine": machine()})
            print(told, rows, flush=True)


if __name__ == "__main__":
    main()
