"""The pieces of `gpu.py` that train and measure: a teacher of CIFAR-10 and its students, by the package's own training and evaluation."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.files import replace_file
from fewstep.training.run_folder import RunFolder
from gpu_data import overrides as data_overrides
from gpu_data import why_not
from gpu_piece import Piece, Place, Row, read_rows

SAMPLES, SAMPLES_ON_THE_WAY = 10_000, 2_000
SEED = 0
COMPILING_PAYS = 1.2  # least speed-up at which a minute or two of compiling is worth it in a run of several minutes


@dataclass(frozen=True)
class Plan:
    """A run: its recipe, the overrides `changed`, the run of its `teacher`, and the further overrides of a `tiny` run."""

    recipe: str
    changed: tuple[str, ...]
    teacher: str | None = None
    tiny: tuple[str, ...] = ()


# learning rates of dmd2/digits and teacher/digits, high because those runs are short, lowered a little for larger networks; not tuned
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
    """A training run by the package itself, stopped by a signal when its time is over and resumed by the next sitting."""

    saving, least, everywhere = 20.0, 90.0, True

    def __init__(self, place: Place, name: str, title: str) -> None:
        self.name, self.what, self.plan = name, title, PLANS[name]
        super().__init__(place)
        self.run_folder = RunFolder(self.folder / "run")
        self.file = self.folder / "plan.json"  # the run's length and overrides, once they are planned

    def waits(self, results: Mapping[str, Any]) -> str | None:
        """Return what is missing, the data or a trained teacher, in words; None if the run can begin."""
        if not self.place.tiny and (missing := why_not(self.place.data)):
            return missing
        if self.plan.teacher is not None and not (self.place.out / self.plan.teacher / "run" / "model" / "config.json").is_file():
            return f"it waits for {self.plan.teacher}, whose run is not in {self.place.out / self.plan.teacher}"
        if self.plan.teacher is not None and not trained(self.place.out / self.plan.teacher):
            return f"it waits for {self.plan.teacher} to be trained"
        return None

    def overrides(self) -> list[str]:
        """Return the overrides of the recipe, without those of the run's length and cadences."""
        changed = [*self.plan.changed, f"seed={SEED}", f"trainer.accelerator={self.place.device}"]
        changed += data_overrides(self.place.data, self.place.out, self.place.tiny)
        if self.plan.teacher is not None:
            changed.append(f"method.teacher={self.place.out / self.plan.teacher / 'run'}")
        if self.place.tiny:  # compiling takes minutes, however small the network is
            return [*changed, *self.plan.tiny, "batch_size=16", *known_options({"trainer.precision": ("auto",)})]
        compiled = {"trainer.compile": (True,)} if compiling_pays(self.place) else {}
        return [*changed, *known_options({"trainer.precision": ("auto",), **compiled})]

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Train from the last checkpoint, if there is one, and return whether the run is finished; a signal stops it."""
        from fewstep.errors import Interrupted
        from fewstep.recipe import load_recipe
        from fewstep.run import train_recipe

        changed = self.overrides()  # which also writes the images that they name
        planned = json.loads(self.file.read_text()) if self.file.exists() else self.planned(changed)
        self._free()
        recipe = load_recipe(self.plan.recipe, planned["overrides"])
        try:
            train_recipe(recipe, self.run_folder.path, resume=True, title=self.name, source=self.plan.recipe)
        except Interrupted:
            return False
        return True

    def planned(self, changed: list[str]) -> dict[str, Any]:
        """Return the run's plan: its length, from the time of a few trial steps, and all its overrides, with `changed` among them.

        The plan is written to plan.json, because a run that is resumed keeps its length.
        """
        from fewstep.build import make_method, training_data
        from fewstep.engine import choose_threads, make_fabric
        from fewstep.recipe import load_recipe
        from fewstep.trial import tried

        # in the recipe's own precision: an automatic one is chosen when the run begins
        recipe = load_recipe(self.plan.recipe, [one for one in changed if not one.startswith("trainer.precision")])
        data = training_data(recipe)
        method = make_method(recipe, data)
        threads = choose_threads(recipe.trainer.threads, method.networks[method.ships], data.shape)
        trial = tried(recipe, data, method, 0, make_fabric(recipe.trainer), threads)
        steps = max(8, round(60 * self.place.minutes / trial.step))
        cadences = {"log_every": steps // 100, "evaluate_every": steps // 8, "checkpoint_every": steps // 10, "sample_every": steps // 4}
        lines = [f"trainer.{key}={max(1, value)}" for key, value in cadences.items()]
        samples = 60 if self.place.tiny else SAMPLES_ON_THE_WAY
        overrides = [*changed, f"steps={steps}", *lines, f"trainer.evaluate_samples={samples}"]
        planned = {"steps": steps, "batch_size": recipe.batch_size, "seconds_a_step": trial.step, "overrides": overrides}
        replace_file(self.file, json.dumps(planned, indent=1).encode())
        return planned

    def _free(self) -> None:
        """Free the device memory that the trial steps have taken."""
        import gc

        import torch

        gc.collect()
        if self.place.device == "cuda":
            torch.cuda.empty_cache()

    def rows(self, known: list[Row]) -> list[Row]:
        """Return the measurements that the run has made so far: images seen, seconds and figures.

        Seconds include measuring and drawing. Rows of a run whose folder is gone are kept, marked as lost.
        """
        found = self.run_folder.metrics()
        if not found:
            return [{**row, "lost": True} for row in known]
        kept = ("step", "seconds", "images_seen", "images_per_second")
        wanted = [r for r in found if "eval.frechet" in r or r is found[-1]]
        rows = [{k: v for k, v in record.items() if k in kept or k.startswith("eval.")} for record in wanted]
        return [row for row in known if row.get("lost")] + rows

    def news(self, rows: list[Row]) -> str:
        """Return the step that the run has reached, and its last Frechet distance."""
        mine = [row for row in rows if not row.get("lost")]
        if not mine:
            return "not begun"
        steps = json.loads(self.file.read_text())["steps"] if self.file.exists() else 0
        last = next((f", FD {row['eval.frechet']:.4g}" for row in reversed(mine) if "eval.frechet" in row), "")
        return f"step {mine[-1]['step']:,} of {steps:,}, {mine[-1]['images_seen']:,} images in {mine[-1]['seconds']:.0f} s{last}"


def trained(folder: Path) -> bool:
    """Whether the run planned in `folder` is finished."""
    plan = folder / "plan.json"
    return plan.exists() and RunFolder(folder / "run").is_finished(json.loads(plan.read_text())["steps"])


def compiling_pays(place: Place) -> bool:
    """Whether compiling made a measured bf16 step of the small network on this device at least `COMPILING_PAYS` times as fast."""
    rows = [row for row in read_rows(place.out / "steps_small" / "rows.jsonl") if row["device"] == place.gpu and row["precision"] == "bf16"]
    rate = {(row["compiled"], row["batch"]): row["images_per_second"] for row in rows if "images_per_second" in row}
    return any(compiled and fast >= COMPILING_PAYS * rate.get((False, batch), fast) for (compiled, batch), fast in rate.items())


def known_options(wanted: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """Yield those options of `wanted` that this version of the package has, each with the first of its values that is valid."""
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
    """The figures of a finished run, beside its floor and its teacher, by the package's evaluation."""

    least, everywhere = 60.0, True

    def __init__(self, place: Place, run: str) -> None:
        self.of, self.name, self.what = run, f"{run}_figures", f"{run} measured with {SAMPLES:,} samples, beside its teacher"
        super().__init__(place)
        self.path = place.out / run / "run"

    def waits(self, results: Mapping[str, Any]) -> str | None:
        """Return that the run has to be trained first; None if it is."""
        return None if trained(self.path.parent) else f"it waits for {self.of} to be trained"

    def run(self, seconds: float, rows: list[Row]) -> bool:
        """Evaluate the run, whose folder keeps the results."""
        from fewstep.evaluation import evaluate

        evaluate(self.path, 60 if self.place.tiny else SAMPLES, SEED, say=lambda text: print(text, flush=True))
        return True

    def rows(self, known: list[Row]) -> list[Row]:
        """Return one row for each generator and number of evaluations."""
        file = self.path / "results.json"
        if not file.is_file():
            return known
        found = json.loads(file.read_text())
        about = {key: found[key] for key in ("n", "seed", "features", "floor", "machine")}
        return [{"title": title, **about, **row} for title, row in found["rows"].items()]

    def news(self, rows: list[Row]) -> str:
        """Return the Frechet distance of each row."""
        return ", ".join(f"{row['title']}: {row['frechet']:.4g}" for row in rows if "frechet" in row) or "none yet"
