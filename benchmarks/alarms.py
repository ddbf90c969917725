"""Whether the alarms are right: provoked failures, each cured by what its alarm advises, and sound runs of every method.

    python benchmarks/alarms.py                        everything, two runs side by side; about a quarter of an hour on two idle cores
    python benchmarks/alarms.py --only "rate too high"  some of it

Every run is short, of a shipped recipe on points (8 Gaussians on a ring, and others) or 8x8 digits, on one thread. A failure is trained
as it is provoked; the alarms that it raises are noted with the share of the run at which each came first and with what it advised; then
what the advice of the alarm `answered` says is changed, and the run is made again. Quality before and after is the energy distance of
10,000 points to exact ones, or the Frechet distance of 2,000 digits over the floor, from sampling seed 0. A sound run may raise nothing.
Writes results/alarms.json after each run; with --only, the other entries stay.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from fewstep.build import load_data
from fewstep.errors import UserError
from fewstep.evaluation import machine
from fewstep.generator import load
from fewstep.measurement import labels_for, measure, suite_for, usual_samples
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "alarms.json"
SHORT = "steps=1000"


class ShuffledDigits(Dataset):
    """The digits of the train split with each other's labels, or with `right` their own."""

    def __init__(self, right: bool = False) -> None:
        data = load_data(load_recipe("teacher/digits").data, 0)
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
        self.x, label = data.train.float() / data.half - 1 if data.half else data.train, data.labels("train")
        self.label = label if right else label[order]
        self.num_classes = 10

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.x[index], int(self.label[index])


@dataclass(frozen=True)
class Case:
    """One thing to try: `recipe` with `ill` overrides; for a failure, the alarm that is to be `answered` and the `cure` that it names.

    ``{NAME}`` in an override is the folder of the teacher `NAME`. `words` are those of the advice that are followed.
    """

    title: str
    recipe: str
    ill: tuple[str, ...] = ()
    answered: str = ""
    words: str = ""
    cure: tuple[str, ...] = ()


TEACHERS = {
    "ring": ("teacher/ring", (SHORT,)),
    "other": ("teacher/ring", (SHORT, "data.density=unequal")),
    "digits": ("teacher/digits", ("steps=400",)),
}
RATE, FAKE = "method.generator_optimizer.lr", "method.guidance_optimizer.lr"
FAILURES = (
    Case("rate too high, DMD2", "dmd2/ring", (SHORT, f"{RATE}=0.1"), "", RATE, (f"{RATE}=0.001",)),
    Case("rate too high, drift", "drift/ring", (SHORT, "method.optimizer.lr=1.0"), "", "method.optimizer.lr", ("method.optimizer.lr=0.001",)),
    Case("rate too low, teacher", "teacher/ring", (SHORT, "method.optimizer.lr=1e-7"), "untrained", "Raise method.optimizer.lr",
         ("method.optimizer.lr=0.002",)),
    Case("rate too low, drift", "drift/ring", (SHORT, "method.optimizer.lr=1e-7"), "", "raise method.optimizer.lr",
         ("method.optimizer.lr=0.001",)),
    Case("rate too low, DDDM", "dddm/ring", ("steps=600", "method.optimizer.lr=1e-8"), "overconfident", "method.optimizer.lr",
         ("method.optimizer.lr=0.002",)),
    Case("batch of 4", "drift/ring", (SHORT, "batch_size=4"), "", "batch_size", ("batch_size=512",)),
    Case("wrong sigma_data", "teacher/ring", (SHORT, "network.sigma_data=20"), "scale", "network.sigma_data", ("network.sigma_data=1",)),
    Case("teacher of other data", "dmd2/ring", (SHORT, "method.teacher={other}"), "", "teacher", ("method.teacher={ring}",)),
    Case("labels shuffled", "dddm/digits", ("steps=300", "data={name: 'alarms:ShuffledDigits', right: false}"), "labels", "label",
         ("data={name: 'alarms:ShuffledDigits', right: true}",)),
    Case("GAN too strong", "dmd2/digits", ("steps=300", "method.teacher={digits}", "method.gan=true", "method.gan_weight_generator=1000"), "",
         "method.gan_weight_generator", ("method.gan_weight_generator=0.001",)),
    Case("guidance too strong", "dmd2/digits", ("steps=300", "method.teacher={digits}", "method.guidance_scale=12"), "",
         "method.guidance_scale", ("method.guidance_scale=1",)),
    Case("average far too slow", "teacher/ring", (SHORT, "method.ema_decay=0.9999", "method.ema_warmup=0"), "lag", "method.ema_decay",
         ("method.ema_decay=0.99",)),
    Case("fake network frozen", "dmd2/ring", (SHORT, f"{FAKE}=1e-9"), "", FAKE, (f"{FAKE}=0.001",)),
    Case("noise range wrong", "teacher/ring", (SHORT, "method.sigma_mean=-6", "method.sigma_std=0.3"), "untrained", "method.sigma_mean",
         ("method.sigma_mean=-0.5", "method.sigma_std=1.5")),
)  # fmt: skip
SOUND = (
    Case("teacher/ring", "teacher/ring", (SHORT,)),
    Case("drift/ring", "drift/ring", (SHORT,)),
    Case("drift/unequal", "drift/unequal", (SHORT,)),
    Case("drift/grid25", "drift/grid25", (SHORT,)),
    Case("drift/mixture8d", "drift/mixture8d", (SHORT,)),
    Case("dmd2/ring, SiD", "dmd2/ring", (SHORT,)),
    Case("dmd2/ring, DMD", "dmd2/ring", (SHORT, "method.loss=dmd")),
    Case("dmd2/digits", "dmd2/digits", ("steps=500", "method.teacher={digits}")),
    Case("dmd2/digits, 16 items a step", "dmd2/digits", ("steps=500", "batch_size=16", "method.teacher={digits}")),
    Case("dddm/ring", "dddm/ring", (SHORT,)),
    Case("consistency/ring", "consistency/ring", (SHORT,)),
    Case("flow_map/ring", "flow_map/ring", (SHORT,)),
    Case("drift/digits", "drift/digits", ("steps=500",)),
)


def trained(case: Case, overrides: tuple[str, ...], folder: Path, teachers: Path) -> dict:
    """Train, measure; alarms by name with the share of the run at which each came and its words, and the figure of quality."""
    torch.set_num_threads(1)
    chosen = [text.format(**{name: teachers / name for name in TEACHERS}) if "{name" not in text else text for text in overrides]
    recipe = load_recipe(case.recipe, (*chosen, "trainer.threads=1", "trainer.accelerator=cpu", "trainer.checkpoint_every=100000"))
    said, began, failed = io.StringIO(), time.process_time(), None
    with contextlib.redirect_stderr(said):
        try:
            train_recipe(recipe, folder)
        except UserError as error:
            failed = str(error)
    run = RunFolder(folder)
    raised: dict[str, dict] = {}
    for record in run.metrics():
        for name in record["alarms"]:
            words = re.search(rf"step {record['step']}: {name}: (.*)", said.getvalue())
            raised.setdefault(name, {"share": record["step"] / recipe.steps, "message": words[1] if words else ""})
    found = {"alarms": raised, "cpu_seconds": time.process_time() - began, "stopped": failed, "steps": recipe.steps, "seed": recipe.seed}
    if failed:
        return {**found, "figure": "energy" if "ring" in case.recipe else "frechet_over_floor", "quality": None}
    generator = load(folder)
    points = len(generator.shape) == 1
    data = recipe.data if "ShuffledDigits" not in str(recipe.data) else load_recipe("teacher/digits").data
    suite, num = suite_for(load_data(data, 0)), usual_samples(points)
    steps = 4 if case.recipe.startswith("dddm") else None
    key = "energy" if points else "class_accuracy" if "shuffled" in case.title else "frechet_over_floor"
    if key == "class_accuracy":
        label = labels_for(generator, num, 0)
        row = suite.measure(generator.sample(num, label, 0, steps), label)
    else:
        row = measure(suite, generator, num, 0, steps, speed=False)
    return {**found, "figure": key, "quality": row[key], "error": row.get(f"{key}_error"), "n": num}


def tried(case: Case, folder: Path) -> dict:
    """One entry of the results."""
    teachers, name = folder / "teachers", re.sub(r"\W+", "_", case.title)
    entry = {**asdict(case), "kind": "sound" if case in SOUND else "failure", "before": trained(case, case.ill, folder / name, teachers)}
    if case.cure:
        entry["after"] = trained(case, (*case.ill, *case.cure), folder / f"{name}_cured", teachers)
    return {**entry, "machine": {**machine(), "load": os.getloadavg()[0]}}


def side_by_side(commands: list[list[str]]) -> None:
    """Two at a time, each on one thread."""
    running: list[subprocess.Popen] = []
    for command in commands:
        while len(running) >= 2:
            time.sleep(0.5)
            running = [process for process in running if process.poll() is None]
        place = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        running.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": place}))
    for process in running:
        process.wait()


def main() -> None:
    """Train the teachers, then every case in a process of its own; gather and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.title for case in (*FAILURES, *SOUND)], default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs/alarms"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    parts = arguments.folder / "parts"
    if arguments.one:
        kind, title = arguments.one.split(":", 1)
        if kind == "teacher":
            train_recipe(load_recipe(TEACHERS[title][0], (*TEACHERS[title][1], "trainer.threads=1")), arguments.folder / "teachers" / title)
            return
        case = next(case for case in (*FAILURES, *SOUND) if case.title == title)
        entry = tried(case, arguments.folder)
        part = parts / f"{re.sub(r'[^a-zA-Z0-9]+', '_', title)}.json"
        part.write_text(json.dumps(entry, indent=1))
        return
    parts.mkdir(parents=True, exist_ok=True)
    me = [sys.executable, __file__, "--folder", str(arguments.folder), "--one"]
    side_by_side([[*me, f"teacher:{name}"] for name in TEACHERS if not (arguments.folder / "teachers" / name / "model.safetensors").exists()])
    chosen = [case for case in (*FAILURES, *SOUND) if arguments.only is None or case.title in arguments.only]
    side_by_side([[*me, f"case:{case.title}"] for case in chosen])
    found = {entry["title"]: entry for entry in (json.loads(path.read_text()) for path in parts.glob("*.json"))}
    entries = [found[case.title] for case in (*FAILURES, *SOUND) if case.title in found]
    RESULTS.write_text(json.dumps({"command": "python benchmarks/alarms.py", "machine": entries[0]["machine"], "runs": entries}, indent=1))
    for entry in entries:
        names = ", ".join(f"{name} at {what['share']:.0%}" for name, what in entry["before"]["alarms"].items()) or "none"
        after = f" -> {entry['after']['quality']}" if "after" in entry else ""
        print(f"{entry['kind']:8} {entry['title']:32} {names:40} {entry['before']['figure']} {entry['before']['quality']}{after}")


if __name__ == "__main__":
    main()
