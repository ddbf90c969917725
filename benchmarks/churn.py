"""Measure a flow map of images with more and less new noise between its sampling steps: FD / floor at each churn and number of steps.

    python benchmarks/churn.py mnist RUN --data ../shared/data/mnist
    python benchmarks/churn.py digits RUN --churns 0 1 --counts 2 4

RUN is the run folder of a flow map of that data set (runs/images/mnist/flow_map_0 of `images.py`). Every churn starts from the same noise
(seed 0). A figure that the results hold is not measured again. Writes results/churn.json after each figure.
"""

import argparse
from pathlib import Path

from fewstep.build import in_memory, load_data
from fewstep.engine import use_threads
from fewstep.evaluation import run_recipe
from fewstep.generator import load
from fewstep.machine import machine
from fewstep.measurement import measure, suite_for
from images import shared

RESULTS = Path(__file__).parent / "results" / "churn.json"


def main() -> None:
    """Sample and measure the flow map at each churn and number of steps, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["digits", "mnist"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="folder of the parquet files of the data set")
    parser.add_argument("--churns", type=float, nargs="+", default=(0.0, 0.5, 1.0))
    parser.add_argument("--counts", type=int, nargs="+", default=(1, 2, 4), help="numbers of sampling steps")
    parser.add_argument("--num", type=int, default=2000)
    arguments = parser.parse_args()
    use_threads(1)
    recipe, generator = run_recipe(arguments.run), load(arguments.run)
    settings = recipe.data if arguments.data is None else recipe.data.model_copy(update={"dir": arguments.data})
    suite = suite_for(in_memory(load_data(settings, recipe.seed)), num=arguments.num)
    for churn in arguments.churns:
        for count in arguments.counts:
            key = {"set": arguments.name, "churn": churn, "steps": count, "n": arguments.num, "training_seed": recipe.seed}
            with shared(RESULTS) as content:
                if any(key.items() <= row.items() for row in content.get("rows", [])):
                    continue
            generator.sampler["churn"] = churn
            row = {**key, "training_steps": generator.info["step"], **measure(suite, generator, arguments.num, 0, count, speed=False)}
            with shared(RESULTS) as content:
                content |= {"command": "python benchmarks/churn.py NAME RUN --data DIR", "machine": machine()}
                content.setdefault("rows", []).append(row)
            print(f"{arguments.name}, churn {churn:g}, {count} steps: {row['frechet_over_floor']:.2f} x the floor", flush=True)


if __name__ == "__main__":
    main()
