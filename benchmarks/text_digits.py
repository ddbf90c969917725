"""Measure text-to-image distillation at a small size: a teacher of digits, and its students of one and four steps, as LoRA and whole.

    python benchmarks/text_digits.py --folder runs/text                        seed 0: see `ARMS`; an hour or so on one idle core
    python benchmarks/text_digits.py --folder runs/text --seeds 0 1 2 --only teacher "LoRA, 1 step"
    python benchmarks/text_digits.py --folder runs/flow --form sd3             a teacher by flow matching: LoRA alone, and shorter
    python benchmarks/text_digits.py --folder runs/text --try "method.generator_optimizer.lr=1e-3"      one arm changed, not recorded

The teacher is made once, by `tools/train_tiny_text_model.py`. It is then used as a user's model would be: prompts are encoded, students
are trained on the prompts alone by a shipped recipe with the overrides below, sampled by prompts, and their latents decoded. Samples of
"a photo of a ..." are compared with scikit-learn's held-out digits: FD / floor and the digit asked for, in the classifier by which all
digits are measured. Writes results/text_digits.json, or with --form sd3 results/text_digits_sd3.json, after each row; a row that the file
holds already is skipped. Runs on one thread.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import avg_pool2d

import fewstep
from fewstep.build import load_data, make_method, training_data
from fewstep.costs import measure
from fewstep.data.prompt_table import PromptTable
from fewstep.generator import Generator, load
from fewstep.interop.text_teacher import text_teacher
from fewstep.machine import machine
from fewstep.measurement import suite_for
from fewstep.metrics.suite import Suite
from fewstep.networks.base import num_parameters
from fewstep.pipelines.encoders import encode_prompts
from fewstep.recipe import Recipe, load_recipe
from fewstep.streams import stream_seed
from images import shared

RESULTS = {form: Path(__file__).parent / "results" / f"{name}.json" for form, name in (("sd", "text_digits"), ("sd3", "text_digits_sd3"))}
RECIPES = {"sd": "dmd2/sd15_lora", "sd3": "dmd2/sd3_lora_4step"}
GUIDANCE, FORMS, NUM, TEACHER_STEPS = 2.0, 3, 2_000, 50
COMMON = (
    f"method.guidance_scale={GUIDANCE}",
    "method.loss=sid",
    "method.dfake_gen_update_ratio=5",
    "method.ema_decay=0.99",
    "trainer.accumulate=1",
    "trainer.checkpointing=false",
    "trainer.threads=1",
    "trainer.log_every=100",
    "steps=5000",
    "batch_size=64",
)


def rates(generator: float, fake: float) -> tuple[str, ...]:
    """Return overrides for these learning rates of generator and fake network, with decay at the end."""
    return (
        f"method.generator_optimizer.lr={generator}",
        f"method.guidance_optimizer.lr={fake}",
        "method.generator_optimizer.decay_from=0.6",
        "method.generator_optimizer.final=0.02",
    )


LORA, WHOLE = ("method.lora.rank=16", *rates(1e-3, 3e-3)), ("method.lora=null", *rates(1e-4, 3e-4))
FOUR = ("method.sampler_steps=4", "method.min_step_percent=0", "steps=3000")
UNGUIDED = ("method.guidance_scale=1",)
ARMS: dict[str, tuple[str, ...]] = {
    "LoRA, 1 step": LORA,
    "whole, 1 step": WHOLE,
    "LoRA, 4 steps": (*LORA, *FOUR),
    "whole, 4 steps": (*WHOLE, *FOUR),
    "LoRA, 1 step, guidance 1": (*LORA, *UNGUIDED),
    "whole, 1 step, guidance 1": (*WHOLE, *UNGUIDED),
    "LoRA, 4 steps, guidance 1": (*LORA, *FOUR, *UNGUIDED),
    "whole, 4 steps, guidance 1": (*WHOLE, *FOUR, *UNGUIDED),
}
# of each form, overrides that replace those in `COMMON`, and its arms: SD 3's prompts have 333 tokens, and a step takes six times as long
OTHERWISE: dict[str, tuple[str, ...]] = {"sd": (), "sd3": ("method.sampler_steps=1", "steps=2000", "batch_size=32")}
SHOWN = {"sd": list(ARMS), "sd3": ["LoRA, 1 step", "LoRA, 4 steps"]}


def as_digits(generator: Generator, latents: torch.Tensor) -> torch.Tensor:
    """Return latents [N, 4, 8, 8] decoded to grey images [N, 1, 8, 8] in [-1, 1]."""
    return avg_pool2d(generator.pixels(latents).mean(1, keepdim=True), 2)


def measured(suite: Suite, generator: Generator, seed: int, steps: int | None = None, guidance: float | None = None) -> dict[str, Any]:
    """Return the figures of `NUM` samples of plain prompts, the digits in turn, and how much more ink "bold" samples have than "thin"."""
    digit = torch.arange(NUM) % 10
    latents = generator.sample(NUM, FORMS * digit, stream_seed(seed, "measured"), steps, guidance_scale=guidance)
    row = suite.measure(as_digits(generator, latents), digit)
    keys = ("frechet_over_floor", "class_accuracy", "least_class_accuracy", "within_class_std", "recall")
    thin, bold = (
        as_digits(generator, generator.sample(300, FORMS * digit[:300] + form, seed, steps, guidance_scale=guidance)).mean()
        for form in (1, 2)
    )
    return {key: row[key] for key in keys} | {"bold_less_thin": (bold - thin).item()}


def ground(folder: Path, form: str) -> tuple[Path, Path]:
    """Return the folders of (the teacher's pipeline, its encoded prompts), made if they are missing."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    from train_tiny_text_model import train

    model, prompts = folder / "model", folder / "prompts"
    if not (model / "prompts.txt").is_file():
        train(model, form=form)
    encode_prompts(model / "prompts.txt", str(model), prompts)
    return model, prompts


def recipe_of(form: str, arm: tuple[str, ...], model: Path, prompts: Path, seed: int) -> Recipe:
    """Return the recipe of a student: the shipped one with the overrides of its arm."""
    overrides = [*COMMON, *OTHERWISE[form], *arm, f"method.teacher={model}", f"data.path={prompts}", f"seed={seed}"]
    return load_recipe(RECIPES[form], overrides)


def memory_of(recipe: Recipe) -> dict[str, int]:
    """Return what training the recipe takes in bytes: the part that does not depend on the batch, and the activations."""
    data = training_data(recipe)
    method = make_method(recipe, data)
    memory = measure(method, data.shape, data.num_classes, recipe.steps, recipe.batch_size).memory
    return {"weights": memory.weights, "activations": memory.activations}


def student(form: str, arm: tuple[str, ...], out: Path, model: Path, prompts: Path, seed: int) -> tuple[Generator, float]:
    """Return the student in `out`, trained or resumed if it is not finished, and the seconds of its training in all."""
    fewstep.train(recipe_of(form, arm, model, prompts, seed), out, resume=out.is_dir())
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return load(out), records[-1]["seconds"]


def main() -> None:
    """Measure the teacher and the arms that are asked for, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/text"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--form", choices=tuple(RECIPES), default="sd", help="form of the teacher: sd as Stable Diffusion, sd3 as SD 3")
    parser.add_argument("--only", nargs="+", choices=["teacher", *ARMS], help="rows to measure; default all, with sd3 the teacher and LoRA")
    parser.add_argument("--try", dest="tried", nargs="+", help="run the first arm with these overrides, and record nothing")
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    form, results = arguments.form, arguments.results or RESULTS[arguments.form]
    command = "python benchmarks/text_digits.py" + f" --form {form}" * (form != "sd")
    only = arguments.only or ["teacher", *SHOWN[form]]
    torch.set_num_threads(1)
    model, prompts = ground(arguments.folder, form)
    suite = suite_for(load_data(load_recipe("teacher/digits").data))
    assert isinstance(suite, Suite)
    if arguments.tried:
        arm = next(name for name in only if name != "teacher")
        name = re.sub("[^0-9a-z.=]+", "_", f"try {arm} {' '.join(arguments.tried)}".lower())
        generator, seconds = student(form, (*ARMS[arm], *arguments.tried), arguments.folder / name, model, prompts, 100)
        print(name, seconds, measured(suite, generator, 0))
        return

    def there() -> list[dict[str, Any]]:
        return json.loads(results.read_text())["rows"] if results.exists() else []

    def is_done(title: str, seed: int) -> bool:
        return any((row["title"], row["training_seed"]) == (title, seed) for row in there())

    def keep(title: str, seed: int, **figures: Any) -> None:
        with shared(results) as content:  # another process may have written meanwhile
            rows = [*content.get("rows", []), {"title": title, "training_seed": seed, **figures}]
            content |= {"command": command, "n": NUM, "guidance": GUIDANCE, "machine": machine(), "rows": rows}
        print(title, seed, {key: value for key, value in figures.items() if isinstance(value, float)}, flush=True)

    if "teacher" in only:
        teacher = text_teacher(str(model), prompts=PromptTable(prompts))
        for steps in (TEACHER_STEPS, 4, 1):
            for guidance in (GUIDANCE, 1.0):
                title = f"teacher, {steps} step{'s' * (steps > 1)}, guidance {guidance:g}"
                if not is_done(title, 0):
                    began = time.perf_counter()
                    found = measured(suite, teacher, 0, steps, guidance)
                    keep(title, 0, **found, sampling_seconds=time.perf_counter() - began, parameters=num_parameters(teacher))
    for seed in arguments.seeds:
        for arm in only:
            if arm != "teacher" and not is_done(arm, seed):
                out = arguments.folder / f"{re.sub('[^0-9a-z]+', '_', arm.lower())}_{seed}"
                generator, seconds = student(form, ARMS[arm], out, model, prompts, seed)
                memory = memory_of(recipe_of(form, ARMS[arm], model, prompts, seed))
                size = num_parameters(generator)
                keep(arm, seed, **measured(suite, generator, 0), seconds=seconds, parameters=size, memory=memory)
    with shared(results) as content:  # of rows that were made before memory was recorded
        for row in content.get("rows", []):
            if row["title"] in ARMS and "memory" not in row:
                row["memory"] = memory_of(recipe_of(form, ARMS[row["title"]], model, prompts, row["training_seed"]))


if __name__ == "__main__":
    main()
