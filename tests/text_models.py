"""Tiny text-to-image pipelines, as `tools/make_tiny_text_model.py` makes them, and runs of students of them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from fewstep.pipelines.encoders import encode_prompts
from fewstep.recipe import load_recipe
from fewstep.run import train

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from make_tiny_text_model import make, unet

__all__ = ["RECIPE", "TEXTS", "make", "place", "records", "settings", "trained", "unet"]

TEXTS = ["a photo of a seven", "two, thin", "five", "a bold nine", "six"]
RECIPE = """
about: for a test
method:
  name: dmd2
  lora: {rank: 3}
  times: teacher
  sampler_steps: 2
  guidance_scale: 2.0
  loss: sid
  dfake_gen_update_ratio: 2
  ema_decay: 0.5
  generator_optimizer: {lr: 0.003}
  guidance_optimizer: {lr: 0.003}
data: {name: prompts, path: prompts}
network: {name: teacher, sigma_data: 1.0}
trainer: {accelerator: cpu, log_every: 1, checkpoint_every: 3, sample_every: 6, precision: 32-true, threads: 1}
seed: 0
steps: 6
batch_size: 4
"""


def place(folder, form):
    """A pipeline, its prompts encoded, and a recipe, in `folder`."""
    pipeline = make(folder / "model", form)
    pipeline.set_progress_bar_config(disable=True)
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
    encode_prompts(folder / "prompts.txt", str(folder / "model"), folder / "prompts")
    (folder / "recipe.yaml").write_text(RECIPE)
    return SimpleNamespace(folder=folder, pipeline=pipeline, model=str(folder / "model"))


def settings(place, *overrides):
    """The recipe of `place`."""
    paths = [f"method.teacher={place.model}", f"data.path={place.folder / 'prompts'}"]
    return load_recipe(str(place.folder / "recipe.yaml"), [*paths, *overrides])


def trained(place, out, *overrides, resume=False):
    """The run folder of the recipe of `place` with `overrides`."""
    return train(settings(place, *overrides), out, resume)


def records(run):
    """What was logged, but for times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "images_per_second")} for line in lines]
