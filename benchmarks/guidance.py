"""Measure a teacher of images at several scales of classifier-free guidance: FD / floor in both judges, and the class asked for.

    python benchmarks/guidance.py mnist RUN --data ../shared/data/mnist
    python benchmarks/guidance.py mnist RUN --data ../shared/data/mnist --scales 1 3 --num 2000

RUN is the run folder of a teacher that was trained with label dropout (runs/images/mnist/teacher_0 of `images.py`). Every scale starts
from the same noise (seed 0) and takes `--steps` steps of Heun's method; a scale that the results hold with as many samples and steps is
skipped. Writes results/guidance_NAME.json after each scale.
"""

import argparse
import json
import time
from pathlib import Path

from fewstep.build import in_memory, load_data
from fewstep.engine import use_threads
from fewstep.evaluation import run_recipe
from fewstep.generator import load
from fewstep.machine import machine
from fewstep.measurement import measure, suite_for
from images import ARMS

RESULTS = Path(__file__).parent / "results"
SCALES = (1.0, 1.25, 1.5, 2.0)


def main() -> None:
    """Sample and measure the teacher at each scale, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(ARMS))
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="folder of the parquet files of the data set")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    use_threads(1)
    recipe, generator = run_recipe(arguments.run), load(arguments.run)
    data = in_memory(load_data(recipe.data.model_copy(update={"dir": arguments.data}), recipe.seed))
    suite = suite_for(data, num=arguments.num, judges=2)
    results = RESULTS / f"guidance_{arguments.name}.json"
    content = json.loads(results.read_text()) if results.exists() else {"rows": []}
    content |= {"command": f"python benchmarks/guidance.py {arguments.name} RUN --data DIR", "machine": machine()}
    content |= {"features": suite.protocol()["features"], "training_seed": recipe.seed, "training_steps": generator.info.get("step")}
    for scale in arguments.scales:
        key = {"scale": scale, "n": arguments.num, "steps": arguments.steps}
        if any(key.items() <= row.items() for row in content["rows"]):
            continue
        generator.sampler["guidance_scale"] = scale
        began = time.process_time()
        row = {**key, **measure(suite, generator, arguments.num, 0, arguments.steps, speed=False), "seconds": time.process_time() - began}
        content["rows"].append(row)
        results.write_text(json.dumps(content, indent=1) + "\n")
        print(f"guidance {scale:g}: {row['frechet_over_floor']:.2f} x the floor, class {row['class_accuracy']:.1%}", flush=True)


if __name__ == "__main__":
    main()
