"""Tiny text-to-image pipelines, as `tools/make_tiny_text_model.py` makes them, and runs of students of them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fewstep.generator import load
from fewstep.pipelines.encoders import encode_prompts
from fewstep.recipe import load_recipe
from fewstep.run import train

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from make_tiny_text_model import make, tokenizer, unet

__all__ = ["RECIPE", "TEXTS", "clip", "make", "place", "records", "run_card", "settings", "stirred", "trained", "unet"]

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


def place(folder, form, dtype=None, **more):
    """A pipeline, of which `make` may be told `more`, with weights of `dtype`, its prompts encoded, and a recipe, in `folder`."""
    pipeline = make(folder / "model", form, **more)
    if dtype is not None:
        pipeline.to(dtype).save_pretrained(folder / "model")
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


def stirred(run, out):
    """The model of `run` in the folder `out`, as if it had learned much."""
    generator, rng = load(run), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    generator.save_pretrained(out)
    return out


def run_card(folder, model=None):
    """Run the code of the card in `folder` there, where the pipeline `model` that it names lies beside it."""
    if model is not None:
        (folder / "model").symlink_to(model)
    text = (folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    namespace = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, namespace)  # noqa: S102 - as a reader would
    return namespace["pipeline"], Image.open(folder / "image.png")


def clip(folder):
    """A tiny CLIP model with random weights, in `folder` as transformers keeps it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = tokenizer(folder)
    each = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8}
    special = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    told = {"vocab_size": len(words), "max_position_embeddings": 77, **special}
    config = CLIPConfig(text_config=each | told, vision_config=each | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # at the size at which they begin all pictures look the same
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return model
