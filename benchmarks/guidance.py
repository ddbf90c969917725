"""Measure a model of images at several scales of classifier-free guidance: FD / floor in both judges, and the class asked for.

    python benchmarks/guidance.py mnist RUN --data ../shared/data/mnist
    python benchmarks/guidance.py mnist RUN --data ../shared/data/mnist --scales 1 3 --num 2000
    python benchmarks/guidance.py dddm_mnist RUN --data ../shared/data/mnist --scales 1 1.5 1.75 2 3 --steps 1 4 10
    python benchmarks/guidance.py dddm_digits RUN --scales 1 1.25 1.5 --steps 1 2 4 10 --num 2000

RUN is the run folder of a teacher, or a model of DDDM, that was trained with label dropout (runs/images/mnist/teacher_0 of `images.py`),
and NAME the name of the results. Every scale starts from the same noise (seed 0) and takes `--steps` steps; a scale that the results hold
with as many samples and steps is skipped. Writes results/guidance_NAME.json after each row.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

from fewstep.build import in_memory, load_data
from fewstep.engine import use_threads
from fewstep.evaluation import run_recipe
from fewstep.generator import load
from fewstep.machine import machine
from fewstep.measurement import measure, suite_for

RESULTS = Path(__file__).parent / "results"
SCALES = (1.0, 1.25, 1.5, 2.0)


def main() -> None:
    """Sample and measure the teacher at each scale, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="folder of the parquet files of the data set, where it has one")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[10])
    arguments = parser.parse_args()
    use_threads(1)
    recipe, generator = run_recipe(arguments.run), load(arguments.run)
    there = {} if arguments.data is None else {"dir": arguments.data}
    data = in_memory(load_data(recipe.data.model_copy(update=there), recipe.seed))
    suite = suite_for(data, num=arguments.num, judges=2)
    results = RESULTS / f"guidance_{arguments.name}.json"
    content = json.loads(results.read_text()) if results.exists() else {"rows": []}
    command = f"python benchmarks/guidance.py {arguments.name} RUN" + " --data DIR" * (arguments.data is not None)
    content |= {"command": command, "machine": machine(), "method": recipe.method.name}
    content |= {"features": suite.protocol()["features"], "training_seed": recipe.seed, "training_steps": generator.info.get("step")}
    for steps, scale in itertools.product(arguments.steps, arguments.scales):
        key = {"scale": scale, "n": arguments.num, "steps": steps}
        if any(key.items() <= row.items() for row in content["rows"]):
            continue
        generator.sampler["guidance_scale"] = scale
        began = time.process_time()
        row = {**key, **measure(suite, generator, arguments.num, 0, steps, speed=False), "seconds": time.process_time() - began}
        content["rows"].append(row)
        results.write_text(json.dumps(content, indent=1) + "\n")
        found = f"{row['frechet_over_floor']:.2f} x the floor, class {row['class_accuracy']:.1%}"
        print(f"guidance {scale:g}, {steps} steps: {found}", flush=True)


if __name__ == "__main__":
    main()
