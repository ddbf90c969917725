"""Every shipped recipe, small, from training to measuring. A recipe that is added is run without a word here."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep.build import describe, load_data
from fewstep.config import Recipe, load_recipe, shipped_recipes
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.run_folder import RunFolder

STEPS = 4


def small(recipe: Recipe) -> list[str]:
    """Overrides that make any recipe a matter of a second."""
    overrides = [f"steps={STEPS}", "batch_size=8", "trainer.log_every=2", "trainer.sample_every=4", "trainer.checkpoint_every=2"]
    overrides += ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.accumulate=1", "trainer.precision=32-true"]
    sizes = {"channels": "[8,16]", "attention": "null", "groups": "4", "head_dim": "8", "layers_per_block": "1"}
    overrides += [f"network.{key}={value}" for key, value in sizes.items() if key in type(recipe.network).model_fields]
    if "sampler_steps" in type(recipe.method).model_fields:
        overrides += ["method.sampler_steps=3"]
    if "stride" in type(recipe.data).model_fields:
        overrides += ["data.stride=32"]
    return overrides


@pytest.fixture(scope="module")
def teacher_for(done, tmp_path_factory):
    """``teacher_for(recipe)``: a tiny teacher of its data and sigma_data, made once."""
    made = {}

    def call(recipe: Recipe):
        key = recipe.data.name, recipe.network.sigma_data
        if key not in made:
            name = f"teacher/{recipe.data.name}"
            assert name in shipped_recipes(), f"{name} must be shipped for recipes that distil it"
            made[key] = tmp_path_factory.mktemp("teacher") / "run"
            done("train", name, *small(load_recipe(name)), f"network.sigma_data={recipe.network.sigma_data}", "--out", made[key])
        return made[key]

    return call


@pytest.mark.parametrize("name", shipped_recipes())
def test_recipe_from_training_to_measuring(name, done, teacher_for, tmp_path):
    recipe = load_recipe(name)
    overrides = small(recipe)
    distils = "teacher" in type(recipe.method).model_fields
    if distils:
        overrides.append(f"method.teacher={teacher_for(recipe)}")
    run = tmp_path / "run"
    train = ["train", name, *overrides, "--out", run]

    # train
    assert f"trained: {run}" in done(*train).out
    records = RunFolder(run).metrics()
    assert [record["step"] for record in records] == [2, 4]
    figures = {key: value for record in records for key, value in record.items() if isinstance(value, float)}
    assert all(math.isfinite(value) for value in figures.values())
    assert any(key.endswith(".grad_norm") and value > 0 for key, value in figures.items())
    assert (run / "samples" / f"step_{STEPS}.png").exists()
    assert (run / "report.html").exists()

    # every network that learns has moved, and the average with it
    first, last = (load_checkpoint(run / "checkpoints" / f"step_{step}").networks for step in (2, STEPS))
    for network, tensors in last.items():
        assert any(not torch.equal(tensor, first[network][key]) for key, tensor in tensors.items()), network

    # a resume of what is finished is nothing
    before = {path: path.read_bytes() for path in (run / "model").iterdir()}
    done(*train, "--resume")
    assert {path: path.read_bytes() for path in (run / "model").iterdir()} == before
    assert RunFolder(run).metrics() == records

    # load and sample
    data = load_data(load_recipe(name, overrides).data)
    generator = fewstep.load(run)
    assert generator.shape == data.shape
    assert generator.num_classes == data.num_classes
    assert generator.info["step"] == STEPS
    samples = generator.sample(5, seed=0)
    assert samples.shape == (5, *data.shape)
    assert samples.dtype == torch.float32
    assert samples.isfinite().all()
    assert samples.abs().max() <= 1
    assert torch.equal(samples, generator.sample(5, seed=0))
    assert not torch.equal(samples, generator.sample(5, seed=1))
    done("sample", run, "-n", "5", "--seed", "0", "--out", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["samples"], samples.numpy())
    done("sample", run, "-n", "12", "--out", tmp_path / "a.png")
    Image.open(tmp_path / "a.png").verify()

    # measure
    done("evaluate", run, "-n", "50")
    results = json.loads((run / "results.json").read_text())
    assert results["recipe"] == name
    assert results["n"] == 50
    assert results["floor"] > 0
    titles = list(results["rows"])
    assert titles[0] == "real train split"
    assert titles[-1].startswith("student" if distils else recipe.method.name)
    assert any(title.startswith("teacher") for title in titles) or not distils
    for row in results["rows"].values():
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        assert len(numbers) >= 8
        assert all(math.isfinite(value) for value in numbers.values())
    assert results["rows"][titles[-1]]["frechet_over_floor"] > 1  # four steps teach nothing


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if "teacher" not in type(load_recipe(name).method).model_fields])
def test_recipe_at_its_full_size_fits_together(name):
    lines = describe(load_recipe(name))
    assert any(re.search(r"^network \w+: [\d,]{7,} parameters, learns every step$", line) for line in lines)
