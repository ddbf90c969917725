"""Every shipped recipe, small, from training to measuring. A recipe that is added is run without a word here."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep import measurement
from fewstep.build import load_data
from fewstep.data import Mixture, PointData
from fewstep.recipe import Recipe, load_recipe, shipped_recipes
from fewstep.run import describe
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.resume import LOOKS
from fewstep.training.run_folder import RunFolder

STEPS = 4
SIDE = 16  # of images whose recipe has more pixels, which cost the measuring, and not the recipe, their time
DRAWN = ("teacher/digits", "drift/ring", "dddm/bimodal")  # whose dashboard and report are drawn: other processes, some 20 s each


def small(recipe: Recipe) -> list[str]:
    """Overrides that make any recipe a matter of a second."""
    overrides = [f"steps={STEPS}", "batch_size=8", "trainer.log_every=2", "trainer.sample_every=4", "trainer.checkpoint_every=2"]
    overrides += ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.accumulate=1", "trainer.precision=32-true"]
    sizes = {"channels": "[8,16]", "attention": "null", "groups": "4", "head_dim": "8", "layers_per_block": "1"}
    sizes |= {"widths": "[8]", "bits": "3", "width": "16", "depth": "1", "heads": "2"}
    if recipe.network.name == "edm_unet":
        sizes |= {"channels": "8", "multipliers": "[1,1,2]", "blocks": "1", "attention": "[]"}
    overrides += [f"network.{key}={value}" for key, value in sizes.items() if key in type(recipe.network).model_fields]
    if recipe.trainer.evaluate_every is not None:
        overrides += ["trainer.evaluate_samples=50"]
    if "m" in type(recipe.method).model_fields:
        overrides += ["method.m=2"]
    if "sampler_steps" in type(recipe.method).model_fields and not {"sampler_sigmas", "levels"} & type(recipe.method).model_fields.keys():
        overrides += ["method.sampler_steps=3"]  # but for students, whose steps have levels of their own
    if "stride" in type(recipe.data).model_fields:
        overrides += ["data.stride=32", f"data.size={SIDE}"]
    if "density" in type(recipe.data).model_fields:
        overrides += ["data.size=500"]
    if "dfake_gen_update_ratio" in type(recipe.method).model_fields:
        overrides += ["method.dfake_gen_update_ratio=2"]  # so that the generator learns between checkpoints
    if getattr(recipe.method, "own_teacher", 0):
        overrides += ["method.own_teacher=0.75"]  # so that both learn between checkpoints
    if "fake_widths" in type(recipe.method).model_fields:
        overrides += ["method.fake_widths=[8]"]
    return overrides


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """``local(recipe, size)``: overrides that give it images of a folder in place of the Hub's, which tests do not reach."""
    folder, rng = tmp_path_factory.mktemp("images") / "shades", np.random.default_rng(0)
    for split, num in (("train", 40), ("test", 30)):
        for k, name in enumerate(("dark", "grey", "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(num):
                colours = rng.integers(80 * k, 80 * k + 90, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(colours.repeat(8, 0).repeat(8, 1)).save(folder / split / name / f"{i}.png")

    def call(recipe: Recipe, size: int | None = None) -> list[str]:
        if recipe.data.name == "cifar10":
            return [f"data={{name: images, path: {folder}, size: {size or recipe.data.size}, flip: true}}"]
        if recipe.data.name == "mnist":
            return [f"data={{name: images, path: {folder}, size: 28, channels: 1}}"]
        if recipe.data.name == "images":
            return [f"data.path={folder}", *([f"data.size={size}"] if size else [])]
        return []

    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield call


def needs_a_teacher(recipe: Recipe) -> bool:
    """Whether it distils a run of another recipe, and not a closed form."""
    return recipe.method.taught or recipe.network.role == "copy"


@pytest.fixture(scope="module")
def teacher_for(done, local, tmp_path_factory):
    """``teacher_for(name)``: a tiny teacher of that recipe's data and sigma_data, made once."""
    made = {}

    def call(student: str):
        recipe, data = load_recipe(student), student.split("/")[1]
        # of the same name, or of that before the last underscore
        name = next((name for name in (f"teacher/{data}", f"teacher/{data.rpartition('_')[0]}") if name in shipped_recipes()), None)
        assert name is not None, f"a teacher must be shipped for {student}"
        key = name, recipe.network.sigma_data
        if key not in made:
            made[key] = tmp_path_factory.mktemp("teacher") / "run"
            overrides = [*small(load_recipe(name)), *local(recipe, SIDE), f"network.sigma_data={recipe.network.sigma_data}"]
            done("train", name, *overrides, "--out", made[key])
        return made[key]

    return call


# those of text-to-image models and of latents take a pipeline, and have tests of their own (test_text_to_image.py, data/test_latents.py)
ALONE = [name for name in shipped_recipes() if load_recipe(name).data.name not in ("prompts", "latents")]


@pytest.mark.parametrize("name", ALONE)
def test_recipe_from_training_to_measuring(name, request, done, local, teacher_for, tmp_path, monkeypatch):
    if name in DRAWN:
        request.getfixturevalue("drawn")
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 1000)  # a tenth, for a hundredth of the time
    recipe = load_recipe(name)
    overrides = [*small(recipe), *local(recipe, SIDE)]
    distils = needs_a_teacher(recipe)
    if distils:
        overrides.append(f"method.teacher={teacher_for(name)}")
    run = tmp_path / "run"
    train = ["train", name, *overrides, "--out", run]

    # train
    assert f"trained: {run}" in done(*train).out
    records = RunFolder(run).metrics()
    assert [record["step"] for record in records] == [2, 4]
    figures = {key: value for record in records for key, value in record.items() if isinstance(value, float)}
    assert all(math.isfinite(value) for value in figures.values())
    assert any(key.endswith(".grad_norm") and value > 0 for key, value in figures.items())
    watched = [any(key.startswith("eval.") for key in record) for record in records]
    assert watched == [False, recipe.trainer.evaluate_every is not None]  # at the last step at least
    data = load_data(load_recipe(name, overrides).data)
    images = not isinstance(data, PointData)
    if data.shape == (2,):  # the plane has a dashboard instead of pictures of samples
        files = ("dashboard.png", "dashboard.gif", f"frames/step_{STEPS:08}.png") if name in DRAWN else ()
        pictures = [run / "dashboard" / file for file in files]
        assert list((run / "samples").iterdir()) == []
    else:
        pictures = [run / "samples" / f"step_{STEPS}.png"]
        assert not (run / "dashboard").exists()
    for picture in pictures:
        Image.open(picture).verify()
    assert (run / "report.html").read_text().count("<img") >= bool(pictures)

    # every network that learns has moved, and the average with it
    first, last = (load_checkpoint(run / "checkpoints" / f"step_{step}").networks for step in (2, STEPS))
    for network, tensors in last.items():
        if network == LOOKS:  # sums of what health is told by, and no network
            continue
        assert any(not torch.equal(tensor, first[network][key]) for key, tensor in tensors.items()), network

    # a resume of what is finished is nothing
    before = {path: path.read_bytes() for path in (run / "model").iterdir()}
    done(*train, "--resume")
    assert {path: path.read_bytes() for path in (run / "model").iterdir()} == before
    assert RunFolder(run).metrics() == records

    # load and sample
    generator = fewstep.load(run)
    assert generator.shape == data.shape
    assert generator.num_classes == data.num_classes
    assert generator.info["step"] == STEPS
    samples = generator.sample(5, seed=0)
    assert samples.shape == (5, *data.shape)
    assert samples.dtype == torch.float32
    assert samples.isfinite().all()
    if images:
        assert samples.abs().max() <= 1
    assert torch.equal(samples, generator.sample(5, seed=0))
    assert not torch.equal(samples, generator.sample(5, seed=1))
    done("sample", run, "-n", "5", "--seed", "0", "--out", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["samples"], samples.numpy())
    done("sample", run, "-n", "12", "--out", tmp_path / "a.png")
    Image.open(tmp_path / "a.png").verify()

    # measure
    num = 100 if images else 1000
    done("evaluate", run, "-n", num)
    results = json.loads((run / "results.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert results["recipe"] == f"{recipe.method.name}/{data.name}"
    assert results["n"] == num
    titles = list(results["rows"])
    assert titles[0] == ("real train split" if images else "exact samples")
    assert titles[-1].startswith("student" if distils else recipe.method.name)
    assert any(title.startswith("teacher") for title in titles) == (distils or recipe.method.name == "teacher")
    for row in results["rows"].values():
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        assert len(numbers) >= (8 if images else 6)
        assert all(math.isfinite(value) for value in numbers.values())
    floor, last = (results["rows"][title] for title in (titles[0], titles[-1]))
    if images:  # four steps teach nothing, and the measures say so
        assert results["floor"] > 0
        assert last["frechet_over_floor"] > 1
    else:
        assert results["floor"] == floor["energy"]
        assert abs(floor["energy"]) < 5 * floor["energy_error"]  # 0 in expectation, hence of either sign
        assert last["energy"] > max(5 * last["energy_error"], 0.05)  # the floor of 1,000 is below 0.02
        assert ("modes" in last) == isinstance(data.density, Mixture)


@pytest.mark.parametrize("name", [name for name in ALONE if not needs_a_teacher(load_recipe(name))])
def test_recipe_at_its_full_size_fits_together(name, local):
    lines = describe(load_recipe(name, local(load_recipe(name))))
    size = "[\\d,]{7,}" if " images to be seen" in f" {lines[-2]}" else "[\\d,]{6,}"  # from 100,000; a map of points is smaller
    assert any(re.search(rf"^network \w+: {size} parameters, learns every step( from .* of the run)?$", line) for line in lines)
