"""The pieces of `gpu.py`: what each does in a process of its own, what it leaves in its folder, and what is read from there.

A piece leaves rows in its folder as it goes, so that whoever ends it, and how, loses nothing but what it was at.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.files import replace_file
from fewstep.training.run_folder import RunFolder
from gpu_data import overrides as data_overrides
from gpu_data import why_not

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
PIECE = 480.0  # seconds that no piece takes more of at once
SAMPLES, SAMPLES_ON_THE_WAY = 10_000, 2_000
SEED = 0


@dataclass(frozen=True)
class Place:
    """Where and on what a call works.

    Attributes:
        out: folder of the pieces' folders.
        data: folder of CIFAR-10; None where it has not been found.
        tiny: whether all is small, and on the CPU.
        device: "cuda" or "cpu".
        gpu: the name of the device.
        minutes: of training that each run is planned for when it begins.

    """

    out: Path
    data: Path | None
    tiny: bool
    device: str = "cpu"
    gpu: str = "cpu"
    minutes: float = 6.0


class Piece:
    """What is done in one sitting or several.

    Attributes:
        name, what: what it is called and does.
        budget: seconds of one sitting at most.
        least: seconds below which none is begun.
        saving: of those it has, kept for saving when it is asked to stop.
        everywhere: whether it is done once for all devices.

    """

    name: str
    what: str
    budget: float = PIECE
    least: float = 60.0
    saving: float = 0.0
    everywhere: bool = False

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = place.out / self.name
        if place.tiny:
            self.least, self.saving = 1.0, min(self.saving, 1.0)

    def done(self, results: Mapping[str, Any]) -> bool:
        """Whether it has come to its end, on this device where that makes a difference."""
        states = results["pieces"].get(self.name, {}).get("states", {})
        return any(state["state"] == "done" for gpu, state in states.items() if self.everywhere or gpu == self.place.gpu)

    def waits(self, results: Mapping[str, Any]) -> str | None:
        """What it waits for, in words; None where it can begin."""
        return None

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Go on for so many seconds at most, with the `rows` known so far; whether it came to its end."""
        raise NotImplementedError

    def rows(self, known: list[Row]) -> list[Row]:
        """What is known now: what its folder holds, and of what was `known` before that which it does not hold."""
        raise NotImplementedError

    def news(self, rows: list[Row]) -> str:
        """Where it stands, in a few words."""
        raise NotImplementedError

    def ended(self, code: int, rows: list[Row]) -> tuple[str, str]:
        """("done", "part" or "failed", why) of a process that ended with `code` and said nothing."""
        return ("part", "stopped") if code == -15 else ("failed", f"its process ended with {_code(code)}; see {self.folder / 'log.txt'}")


def _code(code: int) -> str:
    import signal

    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def united(known: list[Row], found: list[Row], keys: tuple[str, ...]) -> list[Row]:
    """Both, each by what it has under `keys` once: what was found last stands for it, in the order in which they first came."""
    rows: dict[tuple[Any, ...], Row] = {}
    for row in (*known, *found):
        rows[tuple(row.get(key) for key in keys)] = row
    return list(rows.values())


def read_rows(path: Path) -> list[Row]:
    """The rows in a file of one JSON object a line; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(errors="replace").split("\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut short, and gone on with by the next sitting
            continue
    return found


class Tests(Piece):
    """The tests that need a GPU, by pytest, one row each; those that have passed on this device are not run again."""

    name, what = "tests", "the tests marked gpu"
    keys = ("device", "test")
    TINY = "tests/test_gpu.py::test_distances_of_particles_are_those_of_the_cpu"

    def command(self, rows: list[Row]) -> list[str]:
        """Of pytest."""
        files = [self.TINY] if self.place.tiny else [str(p.relative_to(ROOT)) for p in marked_files()]
        passed = [row["test"] for row in rows if row["outcome"] in ("passed", "skipped") and row["device"] == self.place.gpu]
        chosen = ["-m", "not gpu"] if self.place.tiny else ["-m", "gpu"]
        options = ["-v", "-p", "no:cacheprovider", "--tb=short", "-rf", "--color=no"]
        return [sys.executable, "-m", "pytest", *options, *chosen, *files, *(f"--deselect={test}" for test in passed)]

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Become pytest: it has a process to itself, and what it writes is the log."""
        log = self.folder / "tests.log"
        with log.open("a") as file:
            file.write(f"\ndevice: {self.place.gpu}\n")
            file.flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["COLUMNS"] = "400"  # reasons are cut at the width of the terminal
        os.chdir(ROOT)
        command = self.command(rows)
        os.execv(command[0], command)

    def rows(self, known: list[Row]) -> list[Row]:
        """One row a test: outcome, and for what failed the reason."""
        log, found, device = self.folder / "tests.log", [], self.place.gpu
        for line in log.read_text(errors="replace").splitlines() if log.is_file() else ():
            if line.startswith("device: "):
                device = line.removeprefix("device: ")
            elif match := re.match(r"(\S+\.py::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
                found.append({"device": device, "test": match[1], "outcome": match[2].lower()})
            elif match := re.match(r"FAILED (\S+\.py::.*?) - (.*)", line):
                found.append({"device": device, "test": match[1], "outcome": "failed", "reason": match[2][:300]})
        return united(known, found, self.keys)

    def news(self, rows: list[Row]) -> str:
        """How many passed."""
        mine = [row["outcome"] for row in rows if row["device"] == self.place.gpu]
        return ", ".join(f"{mine.count(kind)} {kind}" for kind in ("passed", "failed", "error", "skipped") if kind in mine) or "none yet"

    def ended(self, code: int, rows: list[Row]) -> tuple[str, str]:
        """By pytest's exit code: 0 all passed, 1 some failed, 5 none was left."""
        if code in (0, 5):
            return "done", ""
        failed = [row for row in rows if row["device"] == self.place.gpu and row["outcome"] in ("failed", "error")]
        if code == 1 and failed:
            first = failed[0]
            return "failed", f"{len(failed)} of {len(rows)} tests fail, first {first['test']}: {first.get('reason', first['outcome'])}"
        return super().ended(code, rows)


def marked_files() -> list[Path]:
    """The files that have tests marked gpu: pytest need not import the others."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]


class Steps(Piece):
    """Time, rate and memory of a step of one network, by precision and batch."""

    keys = ("device", "precision", "compiled", "batch")

    def __init__(self, place: Place, network: str, title: str) -> None:
        self.network, self.name, self.what = network, f"steps_{network}", f"a training step of {title}, by precision and batch"
        super().__init__(place)

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Measure what is not known yet; a row that a whole sitting was not enough for is given up."""
        from gpu_steps import measure

        def send(row: Row) -> None:
            with (self.folder / "rows.jsonl").open("a") as file:
                file.write(json.dumps({**row, "had": seconds} if row.get("begun") else row) + "\n")

        known = {}
        for row in rows:
            if row["device"] != self.place.gpu:
                continue
            if row.get("begun"):
                if row["had"] < self.budget / 2:
                    continue
                row = {key: value for key, value in row.items() if key not in ("begun", "had")} | {"failed": f"not in {row['had']:.0f} s"}
                send(row)
            known[row["precision"], row["compiled"], row["batch"]] = row
        return measure(self.network, self.place, known, send)

    def rows(self, known: list[Row]) -> list[Row]:
        """One row for each precision and batch."""
        return united(known, read_rows(self.folder / "rows.jsonl"), self.keys)

    def news(self, rows: list[Row]) -> str:
        """The last row."""
        measured = [row for row in rows if not row.get("begun")]
        return f"{len(measured)} rows, last {told(measured[-1])}" if measured else "none yet"


def told(row: Mapping[str, Any]) -> str:
    """A row of `Steps` in a few words."""
    how = f"{row['precision']}{' compiled' * row['compiled']}, batch {row['batch']}"
    if "images_per_second" not in row:
        return f"{how}: {row.get('failed', 'out of memory')}"
    part = "" if row["share"] is None else f", {row['share']:.0%} of the peak"
    return f"{how}: {row['images_per_second']:,.0f} images/s, {row['tflops']:.3g} TFLOP/s{part}"


@dataclass(frozen=True)
class Plan:
    """A run: the recipe it is of, what is changed in it, the run that teaches it, and the same for a tiny one."""

    recipe: str
    changed: tuple[str, ...]
    teacher: str | None = None
    tiny: tuple[str, ...] = ()


# rates of dmd2/digits and teacher/digits, which are large for their short runs, made a little smaller for larger networks; not tuned
PLANS = {
    "teacher": Plan(
        "teacher/cifar10_small",
        ("method.optimizer.lr=5.0e-4", "method.optimizer.decay_from=0.5", "method.optimizer.final=0.02"),
        tiny=("network.channels=[8,16]", "network.groups=4", "network.head_dim=8"),
    ),
    "student": Plan(
        "dmd2/cifar10_small",
        (
            "method.loss=sid",
            "method.dfake_gen_update_ratio=2",
            "method.min_step_percent=0.0",
            "method.generator_optimizer.lr=1.0e-4",
            "method.generator_optimizer.warmup=100",
            "method.generator_optimizer.decay_from=0.6",
            "method.generator_optimizer.final=0.02",
            "method.guidance_optimizer.lr=2.0e-4",
            "method.guidance_optimizer.warmup=100",
        ),
        "teacher",
    ),
    "flow_map": Plan("flow_map/cifar10", ("method.optimizer.warmup=200", "batch_size=256"), "teacher"),
}


class Training(Piece):
    """A run of the package's own training, stopped by a signal when its time is over and gone on with by --resume."""

    saving, least, everywhere = 20.0, 90.0, True

    def __init__(self, place: Place, name: str, title: str) -> None:
        self.name, self.what, self.plan = name, title, PLANS[name]
        super().__init__(place)
        self.run_folder = RunFolder(self.folder / "run")
        self.file = self.folder / "plan.json"  # how long the run is to be, once that is known

    def waits(self, results: Mapping[str, Any]) -> str | None:
        """Data, and a teacher that is trained."""
        if not self.place.tiny and (missing := why_not(self.place.data)):
            return missing
        if self.plan.teacher is not None and not (self.place.out / self.plan.teacher / "run" / "model" / "config.json").is_file():
            return f"it waits for {self.plan.teacher}, whose run is not in {self.place.out / self.plan.teacher}"
        if self.plan.teacher is not None and not trained(self.place.out / self.plan.teacher):
            return f"it waits for {self.plan.teacher} to be trained"
        return None

    def overrides(self) -> list[str]:
        """What is changed in the recipe, but for the run's length and cadences."""
        changed = [*self.plan.changed, f"seed={SEED}", f"trainer.accelerator={self.place.device}"]
        changed += data_overrides(self.place.data, self.place.out, self.place.tiny)
        if self.plan.teacher is not None:
            changed.append(f"method.teacher={self.place.out / self.plan.teacher / 'run'}")
        if self.place.tiny:  # compiling takes minutes, however small the network
            return [*changed, *self.plan.tiny, "batch_size=16", *known_options({"trainer.precision": ("auto",)})]
        return [*changed, *known_options({"trainer.precision": ("auto",), "trainer.compile": ("auto", True)})]

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Train for so long, from the last checkpoint if there is one."""
        from fewstep.errors import Interrupted
        from fewstep.recipe import load_recipe
        from fewstep.run import train_recipe

        if not self.run_folder.recipe_file.exists():
            self.file.unlink(missing_ok=True)
        changed = self.overrides()  # which makes what they name
        planned = json.loads(self.file.read_text()) if self.file.exists() else self.planned(changed)
        recipe = load_recipe(self.plan.recipe, planned["overrides"])
        try:
            train_recipe(recipe, self.run_folder.path, resume=True, title=self.name, source=self.plan.recipe)
        except Interrupted:
            return False
        return True

    def planned(self, changed: list[str]) -> dict[str, Any]:
        """How long the run is to be with what is `changed`, from a few steps that are tried; kept, for a run goes on as it began."""
        from fewstep.build import make_method, training_data
        from fewstep.recipe import load_recipe
        from fewstep.run import choose_threads, make_fabric
        from fewstep.trial import tried

        recipe = load_recipe(self.plan.recipe, changed)
        data = training_data(recipe)
        method = make_method(recipe, data)
        threads = choose_threads(recipe.trainer.threads, method.networks[method.ships], data.shape)
        trial = tried(recipe, data, method, 0, make_fabric(recipe.trainer), threads)
        steps = max(8, round(60 * self.place.minutes / trial.step))
        cadences = {"log_every": steps // 100, "evaluate_every": steps // 8, "checkpoint_every": steps // 10, "sample_every": steps // 4}
        lines = [f"trainer.{key}={max(1, value)}" for key, value in cadences.items()]
        samples = 40 if self.place.tiny else SAMPLES_ON_THE_WAY
        overrides = [*changed, f"steps={steps}", *lines, f"trainer.evaluate_samples={samples}"]
        planned = {"steps": steps, "batch_size": recipe.batch_size, "seconds_a_step": trial.step, "overrides": overrides}
        replace_file(self.file, json.dumps(planned, indent=1).encode())
        return planned

    def rows(self, known: list[Row]) -> list[Row]:
        """The run's course: images, seconds, and what was measured on the way.

        Seconds are the run's own, measuring and drawing included. Rows of a run whose folder is gone stay, marked as lost.
        """
        found = self.run_folder.metrics()
        if not found:
            return [{**row, "lost": True} for row in known]
        kept = ("step", "seconds", "images_seen", "images_per_second")
        wanted = [r for r in found if "eval.frechet" in r or r is found[-1]]
        rows = [{k: v for k, v in record.items() if k in kept or k.startswith("eval.")} for record in wanted]
        return [row for row in known if row.get("lost")] + rows

    def news(self, rows: list[Row]) -> str:
        """The step, and the last distance."""
        mine = [row for row in rows if not row.get("lost")]
        if not mine:
            return "not begun"
        steps = json.loads(self.file.read_text())["steps"] if self.file.exists() else 0
        last = next((f", FD {row['eval.frechet']:.4g}" for row in reversed(mine) if "eval.frechet" in row), "")
        return f"step {mine[-1]['step']:,} of {steps:,}, {mine[-1]['images_seen']:,} images in {mine[-1]['seconds']:.0f} s{last}"


def trained(folder: Path) -> bool:
    """Whether the run planned in `folder` has come to its end."""
    plan = folder / "plan.json"
    return plan.exists() and RunFolder(folder / "run").is_finished(json.loads(plan.read_text())["steps"])


def known_options(wanted: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """Those of the options that this version of the package has, each with the first value that it takes; the others are left out."""
    from pydantic import ValidationError

    from fewstep.recipe import Trainer

    for key, values in wanted.items():
        name = key.removeprefix("trainer.")
        for value in values if name in Trainer.model_fields else ():
            with contextlib.suppress(ValidationError):
                Trainer.model_validate({name: value})
                yield f"{key}={json.dumps(value)}"
                break


class Figures(Piece):
    """All figures of a finished run beside its floor and its teacher, by the package's evaluation."""

    least, everywhere = 60.0, True

    def __init__(self, place: Place, run: str) -> None:
        self.of, self.name, self.what = run, f"{run}_figures", f"{run} measured with {SAMPLES:,} samples, beside its teacher"
        super().__init__(place)
        self.path = place.out / run / "run"

    def waits(self, results: Mapping[str, Any]) -> str | None:
        """A run that is trained."""
        return None if trained(self.path.parent) else f"it waits for {self.of} to be trained"

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Measure; the results lie in the run."""
        from fewstep.evaluation import evaluate

        evaluate(self.path, 40 if self.place.tiny else SAMPLES, SEED, say=lambda text: print(text, flush=True))
        return True

    def rows(self, known: list[Row]) -> list[Row]:
        """One row a generator and number of evaluations."""
        file = self.path / "results.json"
        if not file.is_file():
            return known
        found = json.loads(file.read_text())
        about = {key: found[key] for key in ("n", "seed", "features", "floor", "machine")}
        return [{"title": title, **about, **row} for title, row in found["rows"].items()]

    def news(self, rows: list[Row]) -> str:
        """The distances."""
        return ", ".join(f"{row['title']}: {row['frechet']:.4g}" for row in rows if "frechet" in row) or "none yet"


def all_pieces(place: Place) -> list[Piece]:
    """By value: what only a GPU can say about the code, what a step costs, then a teacher, its students, and the largest network."""
    return [
        Tests(place),
        Steps(place, "small", "the small U-Net (teacher/cifar10_small)"),
        Steps(place, "edm", "the EDM network of CIFAR-10"),
        Training(place, "teacher", "a diffusion teacher of CIFAR-10 (teacher/cifar10_small)"),
        Training(place, "student", "the teacher distilled into one step (dmd2/cifar10_small)"),
        Figures(place, "student"),
        Training(place, "flow_map", "the teacher distilled into a flow map (flow_map/cifar10)"),
        Figures(place, "flow_map"),
        Steps(place, "sdxl", "an SDXL-shaped network (random weights)"),
    ]


def work(piece: Piece, seconds: float, rows: list[Row], say: Callable[[tuple[str, str]], None]) -> None:
    """Run `piece` in this process, which is its own, and say how it ended; what it prints goes into its folder."""
    began = time.perf_counter()
    with (piece.folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        whole = piece.run(seconds, rows)
        say(("done", "") if whole else ("part", f"stopped after {time.perf_counter() - began:.0f} s"))
    except UserError as error:
        say(("failed", " ".join(str(error).split())))
    except Exception as error:
        import traceback

        traceback.print_exc()
        say(("failed", f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}; see {piece.folder / 'log.txt'}"))
