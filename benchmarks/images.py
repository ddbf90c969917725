"""Train and measure every method on real images: the recipes of MNIST and the small ones of CIFAR-10, with curves of their quality.

    python benchmarks/images.py mnist --data ../shared/data/mnist --list
    python benchmarks/images.py mnist --data ../shared/data/mnist --only teacher dmd2 --seeds 0
    python benchmarks/images.py cifar10 --data ../shared/data/cifar10
    python benchmarks/images.py cifar10_16 --data ../shared/data/cifar10        squares of four pixels averaged: a quarter of the work

Each arm is a shipped recipe, unchanged; a student distils the teacher of its own seed. Each process uses one thread: two can run side by
side with different arms, and write to one results file. An interrupted arm is resumed from its run folder by the next call, and an arm
that the results hold already is skipped, unless it is of an earlier form of its recipe ("earlier" says of which). Figures are of 10,000
samples (seed 0) against the test split, in both judges; curves are of 1,000 samples at every tenth of the training, for models that sample
in a few evaluations. Seconds are the CPU time of the training process, including the measurements for the curve. Writes
results/images_NAME.json after each arm.
"""

import argparse
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.errors import Interrupted
from fewstep.evaluation import Options, evaluate
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

HERE = Path(__file__).parent
NUM = 10_000  # samples measured at the end
CURVE = 1_000  # samples measured during training
MANY = 10  # sampling steps from which compiling the network pays


@dataclass(frozen=True)
class Arm:
    """A recipe to train and measure.

    Attributes:
        recipe: name of the recipe.
        steps: numbers of sampling steps at which it is measured.
        teacher: title of the arm that is its teacher; None for none.
        seeds: training seeds.
        curve: whether it is measured during training, too.
        changes: overrides of the recipe.

    """

    recipe: str
    steps: tuple[int, ...]
    teacher: str | None = None
    seeds: tuple[int, ...] = (0,)
    curve: bool = True
    changes: tuple[str, ...] = ()


ARMS = {
    "mnist": {
        "teacher": Arm("teacher/mnist", (18, 1), seeds=(0, 1, 2), curve=False),
        "dmd2": Arm("dmd2/mnist", (1,), "teacher", (0, 1, 2)),
        "dmd2, 4 steps": Arm("dmd2/mnist_4step", (4,), "teacher", (0, 1, 2)),
        "dmd2, 4 steps, trained 4 x as long": Arm("dmd2/mnist_4step", (4,), "teacher", changes=("steps=1600",)),
        "dmd2, 4 steps, guidance 1.25, trained 4 x as long": Arm(
            "dmd2/mnist_4step", (4,), "teacher", (1,), changes=("steps=1600", "method.guidance_scale=1.25")
        ),
        "consistency": Arm("consistency/mnist", (1, 2), "teacher"),
        "flow map": Arm("flow_map/mnist", (1, 2, 4), "teacher"),
        "dddm": Arm("dddm/mnist", (1, 2, 4, 10), seeds=(1,)),  # its guidance was chosen on the run of seed 0
        "dddm, without guidance": Arm("dddm/mnist", (1, 2, 4, 10), changes=("method.guidance_scale=1",)),
        "drift": Arm("drift/mnist", (1,)),
    },
    "cifar10": {
        "teacher": Arm("teacher/cifar10_cpu", (18, 1), curve=False),
        "dmd2": Arm("dmd2/cifar10_cpu", (1,), "teacher"),
        "flow map": Arm("flow_map/cifar10_cpu", (1, 2, 4), "teacher"),
    },
}
ARMS["cifar10_16"] = {title: replace(arm, changes=("data.size=16",)) for title, arm in ARMS["cifar10"].items()}


def as_shipped(name: str) -> list[str]:
    """Return the titles of the arms of the set `name` that are recipes as they are shipped, but for what all arms of the set change."""
    common = next(iter(ARMS[name].values())).changes
    return [title for title, arm in ARMS[name].items() if arm.changes == common]


@contextmanager
def shared(path: Path) -> Iterator[dict]:
    """Yield the content of the results file `path`, locked against other processes, and write it back if it was changed."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = path.read_text() if path.exists() else "{}"
        content = json.loads(before)
        yield content
        if content != json.loads(before):
            path.write_text(json.dumps(content, indent=1))


def folder_of(root: Path, title: str, seed: int) -> Path:
    """Return the run folder of the arm `title` with `seed`."""
    return root / f"{title.replace(', ', '_').replace(' ', '_')}_{seed}"


def train(arm: Arm, folder: Path, seed: int, data: Path, teacher: Path | None, precision: str) -> float:
    """Train an arm in `folder`, or resume it, and return the CPU seconds that its training took over all calls."""
    overrides = [f"seed={seed}", f"data.dir={json.dumps(str(data))}", "trainer.threads=1", f"trainer.precision={precision}", *arm.changes]
    if teacher is not None:
        overrides.append(f"method.teacher={json.dumps(str(teacher))}")
    steps = load_recipe(arm.recipe, overrides).steps
    if arm.curve:
        overrides += [f"trainer.evaluate_every={steps // 10}", f"trainer.evaluate_samples={CURVE}"]
    run, spent = RunFolder(folder), folder / "cpu_seconds.json"
    if run.model_step() != steps:
        began = time.process_time()
        try:
            train_recipe(load_recipe(arm.recipe, overrides), folder, resume=run.recipe_file.exists(), title=folder.name, source=arm.recipe)
        finally:
            before = json.loads(spent.read_text()) if spent.exists() else 0.0
            spent.write_text(json.dumps(before + time.process_time() - began))
    return json.loads(spent.read_text())


def curve_of(run: RunFolder) -> list[dict[str, float]]:
    """Return what was measured during training: images seen, seconds of training, and FD over the floor."""
    keys = ("images_seen", "seconds", "eval.frechet_over_floor")
    return [{key: record[key] for key in keys} for record in run.metrics() if keys[-1] in record]


def main() -> None:
    """Train and measure every arm that is asked for, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(ARMS))
    parser.add_argument("--data", type=Path, required=True, help="folder of the parquet files of the data set")
    parser.add_argument("--folder", type=Path, help="folder of the runs; default runs/images/SET")
    parser.add_argument("--only", nargs="+", help="titles of the arms to run; default all")
    parser.add_argument("--seeds", type=int, nargs="+", help="run only these of the seeds that each arm has")
    parser.add_argument("--train-only", action="store_true", help="leave measuring, which takes long for a teacher, to another call")
    parser.add_argument("--precision", default="auto", help="trainer.precision of runs that begin; auto can differ between seeds")
    parser.add_argument("--list", action="store_true", help="print which arms are done and which are left")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arms, root = ARMS[arguments.set], arguments.folder or Path("runs/images") / arguments.set
    results = HERE / "results" / f"images_{arguments.set}.json"
    if unknown := set(arguments.only or ()) - arms.keys():
        parser.error(f"no arm is called {', '.join(sorted(unknown))}; there are {', '.join(arms)}")
    for title, arm in arms.items():
        for seed in arm.seeds:
            if (arguments.only and title not in arguments.only) or (arguments.seeds and seed not in arguments.seeds):
                continue
            key = f"{title}, seed {seed}"
            with shared(results) as content:
                done = "earlier" not in content.get("runs", {}).get(key, {"earlier": "none yet"})
            if done or arguments.list:
                print(f"{key:24} {'done' if done else 'to do'}")
                continue
            folder = folder_of(root, title, seed)
            teacher = folder_of(root, arm.teacher, seed) if arm.teacher else None
            if teacher is not None and not (teacher / "model").is_dir():
                print(f"{key:24} waits for its teacher, {teacher}")
                continue
            try:
                seconds = train(arm, folder, seed, arguments.data, teacher, arguments.precision)
                if arguments.train_only:
                    continue
                options = Options(teacher=False, compile=max(arm.steps) >= MANY)
                found = evaluate(folder, NUM, threads=1, say=print, steps=arm.steps, options=options)
            except Interrupted as error:
                print(f"{key}: {error}")
                return
            run = RunFolder(folder)
            with shared(results) as content:
                content["command"] = f"python benchmarks/images.py {arguments.set} --data DIR"
                content.setdefault("runs", {})[key] = {
                    **found,
                    "warnings": [warning for warning in found["warnings"] if str(root) not in warning],  # of a teacher's other protocol
                    "title": title,
                    "arm": arm.recipe,
                    "changes": list(arm.changes),
                    "taught": arm.teacher,
                    "cpu_seconds": seconds,
                    "seconds": run.metrics()[-1]["seconds"],
                    "precision": run.recipe()["trainer"]["precision"],
                    "images_seen": run.metrics()[-1]["images_seen"],
                    "curve": curve_of(run),
                }
            for name, row in found["rows"].items():
                print(f"{key:24} {name:28} {row['frechet_over_floor']:.2f} x the floor")
    print(f"results are in {results}")


if __name__ == "__main__":
    main()
