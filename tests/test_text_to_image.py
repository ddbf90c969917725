"""A text-to-image model distilled on prompts alone: what is trained, kept and drawn, and what stock diffusers makes of it."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from fewstep.build import load_data, make_method
from fewstep.compiling import compile_to_sample
from fewstep.costs import measure
from fewstep.data.prompt_table import PromptTable
from fewstep.denoisers.adapted import Adapted, grounds, halve
from fewstep.errors import UserError
from fewstep.evaluation import evaluate
from fewstep.generator import Generator, load
from fewstep.interop.teacher_samples import draw_teacher_samples
from fewstep.interop.text_teacher import text_teacher
from fewstep.methods.recomputing import recompute
from fewstep.pipelines.encoders import encode_prompts
from fewstep.pipelines.vae import VAE
from fewstep.recipe import load_recipe, shipped_recipes
from fewstep.run import describe, train
from fewstep.streams import stream_seed
from fewstep.training.checkpoint import checkpoints
from fewstep.training.precision import MIXED
from fewstep.weights import LORA_FILE
from peaks import step_bytes
from text_models import TEXTS, clip, make, place, records, run_card, settings, stirred, trained


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return place(tmp_path_factory.mktemp("sdxl"), "sdxl")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return place(tmp_path_factory.mktemp("sd"), "sd")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return place(tmp_path_factory.mktemp("sd3"), "sd3")


@pytest.fixture(scope="module")
def run(sdxl):
    return trained(sdxl, sdxl.folder / "run")


def test_a_run_keeps_what_it_changes_alone(sdxl, run):
    """The U-Net has 17 thousand parameters, and its changes of rank 3 five."""
    assert sorted(path.name for path in (run / "model").iterdir()) == ["config.json", "pytorch_lora_weights.safetensors"]
    assert [path.name for path in (run / "teacher").iterdir()] == ["config.json"]
    kept = {path.stem: load_file(path) for path in checkpoints(run / "checkpoints")[0].glob("*.safetensors")}
    assert all("lora_" in name for part in ("generator", "fake", "ema") for name in kept[part])
    assert len(kept["fake"]) == 2 * len(kept["generator"])  # one for each of the two steps
    generator = load(run)
    assert isinstance(generator.denoiser, Adapted)
    changes = load_file(run / "model" / "pytorch_lora_weights.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in changes.items() if "lora_B" in name)  # it has learned
    assert generator.sampler["sigmas"] == generator.denoiser.sigmas[[999, 499]].tolist()
    assert (run / "samples" / "step_6.png").is_file()
    assert all(np.isfinite(list(filter(lambda value: isinstance(value, float), record.values()))).all() for record in records(run))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(sdxl, run, tmp_path):
    stopped = shutil.copytree(run, tmp_path / "stopped")
    newest, before = checkpoints(stopped / "checkpoints")
    shutil.rmtree(newest)
    assert before.name == "step_3"
    trained(sdxl, stopped, resume=True)
    assert records(stopped) == records(run)
    for file in ("model/pytorch_lora_weights.safetensors", "checkpoints/step_6/fake.safetensors"):
        ours, theirs = load_file(stopped / file), load_file(run / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("form", ["sd", "sdxl"])
@pytest.mark.parametrize("steps", [1, 4])
def test_stock_diffusers_draws_what_the_generator_draws(form, steps, request, tmp_path):
    """By the file as it lies in the model folder, and LCM's scheduler told one number."""
    here = request.getfixturevalue(form)
    trained(here, tmp_path / "run", f"method.sampler_steps={steps}", "steps=2", "trainer.sample_every=5")
    stirred(tmp_path / "run", tmp_path / "changed")
    ours = load(tmp_path / "changed").sample(2, [0, 3], seed=5)
    assert not torch.allclose(ours, load(tmp_path / "run").sample(2, [0, 3], seed=5), atol=0.1)
    stock = DiffusionPipeline.from_pretrained(here.model)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(str(tmp_path / "changed"), weight_name="pytorch_lora_weights.safetensors")
    stock.scheduler = LCMScheduler.from_config(stock.scheduler.config, original_inference_steps=steps)
    rng = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 8, 8, generator=rng)
    texts = [TEXTS[0], TEXTS[3]]
    theirs = stock(texts, num_inference_steps=steps, guidance_scale=0.0, latents=latents, generator=rng, output_type="latent").images
    assert stock.scheduler.timesteps.tolist() == [1000 * part // steps - 1 for part in range(steps, 0, -1)]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * ours.abs().max().item())  # prompts are kept in half precision


@pytest.mark.parametrize(
    ("overrides", "learn"),
    [
        (("method.lora=null",), (17_412, 2 * 17_412)),
        (("method.lora.fake=full", "method.fake_per_step=false"), (None, 17_412)),
    ],
    ids=["full", "full fake"],
)
def test_other_roles(overrides, learn, sdxl, tmp_path):
    out = trained(sdxl, tmp_path / "run", *overrides, "steps=2", "trainer.sample_every=5")
    kept = {path.stem: load_file(path) for path in checkpoints(out / "checkpoints")[0].glob("*.safetensors")}
    for part, number in zip(("generator", "fake"), learn, strict=True):
        found = sum(tensor.numel() for tensor in kept[part].values())
        assert found == number if number else found < 17_412
    generator = load(out)
    assert (generator.base is None) is (overrides == ("method.lora=null",))
    assert generator.sample(2, [4, 0], seed=0).shape == (2, 4, 8, 8)
    assert generator.sample(2, seed=0, prompts=TEXTS[:2]).isfinite().all()


def test_prompts_in_words_are_the_rows_of_the_table(run):
    generator = load(run)
    by_row = generator.sample(3, [3, 1, 3], seed=2)
    torch.testing.assert_close(generator.sample(3, seed=2, prompts=[TEXTS[3], TEXTS[1], TEXTS[3]]), by_row, rtol=0, atol=1e-5)
    torch.testing.assert_close(generator.sample(3, seed=2, prompts=[TEXTS[3], TEXTS[1]]), by_row, rtol=0, atol=1e-5)  # in turn
    assert torch.equal(generator.sample(3, [3, 1, 3], seed=2), by_row)  # its own table is there again
    assert not torch.allclose(generator.sample(3, seed=2, prompts="another one"), by_row)
    assert by_row.abs().max() > 1  # latents are not cut off
    pixels = generator.pixels(by_row)
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.abs().max() <= 1


def test_latents_are_decoded_by_the_means_and_deviations_of_a_vae_s_channels(sdxl, tmp_path):
    """As in Playground 2.5's VAE: the stock pipeline's own pictures are made of its own latents."""
    model = shutil.copytree(sdxl.model, tmp_path / "model")
    config = json.loads((model / "vae" / "config.json").read_text())
    config |= {"latents_mean": [0.5, -1.0, 0.2, 0.1], "latents_std": [2.0, 0.5, 3.0, 1.0]}
    (model / "vae" / "config.json").write_text(json.dumps(config))
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(output):
        told = {"num_inference_steps": 1, "guidance_scale": 0, "generator": torch.Generator().manual_seed(0), "output_type": output}
        return pipeline("five", **told).images

    latents, vae = drawn("latent"), VAE(str(model), "cpu")
    pixels = vae.decoded(latents)
    torch.testing.assert_close(pixels, drawn("pt") * 2 - 1, rtol=0, atol=1e-5)
    encoded, stds = pipeline.vae.encode(pixels).latent_dist.mode(), torch.tensor(config["latents_std"])[:, None, None]
    expected = (encoded - torch.tensor(config["latents_mean"])[:, None, None]) * config["scaling_factor"] / stds
    torch.testing.assert_close(vae.encoded(pixels), expected.detach())


def test_the_command_line_draws_prompts(run, tmp_path, done, mistake):
    (tmp_path / "more.txt").write_text("two\nthree\n\ntwo\n")  # a prompt is drawn as often as it stands there
    said = done("sample", run, "--prompt", "one", "--prompts", tmp_path / "more.txt", "--seed", "0", "--out", tmp_path / "a.png")
    assert said.out.startswith("4 samples, 2 evaluation(s) each")
    assert "cut" not in said.err
    assert Image.open(tmp_path / "a.png").width > 4 * 160
    said = done("sample", run, "--prompt", "one", "--prompt", "w" * 90, "--seed", "0", "--out", tmp_path / "a.png").err
    told = f"note: 1 of 2 prompts have more than the 77 tokens that the encoder sees, and were cut; the first is ('{'w' * 40}'...)"
    assert told in said
    done("sample", run, "-n", "4", "--seed", "0", "--out", tmp_path / "a.npz")
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["labels"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(arrays["samples"], load(run).sample(4, seed=0).numpy())
    told = mistake("sample", run, "--prompt", "one", "--labels", "1", "--out", tmp_path / "b.png")
    assert "--labels and --prompt are both given" in told
    assert "there is no file" in mistake("sample", run, "--prompts", tmp_path / "none.txt", "--out", tmp_path / "b.png")


def test_a_dry_run_counts_the_network_once(sdxl, run):
    lora, full = (describe(settings(sdxl, "method.loss=dmd", "method.sampler_steps=1", *more)) for more in ((), ("method.lora=null",)))
    assert any("on a network of 17,412" in line for line in lora)

    def parts(lines):
        line = next(line for line in lines if line.startswith("memory"))
        found = re.findall(r"([\d.]+) (kB|MB) ([a-zA-Z' -]+)", line.split(": ", 2)[2])
        return {name.strip(): float(number) * {"kB": 1e3, "MB": 1e6}[unit] for number, unit, name in found}

    changes, network = 4 * sum(tensor.numel() for tensor in load(run).denoiser.tensors.values()), 4 * 17_412

    def about(**expected):
        return pytest.approx({name.replace("_", " ").replace("low rank", "low-rank"): value for name, value in expected.items()}, rel=0.01)

    found = parts(lora)
    found.pop("activations")
    assert found.pop("AdamW's moments") == pytest.approx(4 * changes, rel=0.01)  # of the student and of the fake
    assert found == about(frozen_network=network, low_rank_adapters=2 * changes, moving_average=changes, gradients=changes)
    found = parts(full)
    found.pop("activations")
    assert found.pop("AdamW's moments") == pytest.approx(4 * network, rel=0.01)
    assert found == about(weights=3 * network, moving_average=network, gradients=network)


@pytest.mark.parametrize(
    ("precision", "again", "lora"),
    [("32-true", False, "{rank: 3}"), ("bf16-mixed", False, "null"), ("32-true", True, "null"), ("bf16-mixed", True, "{rank: 3}")],
)
def test_the_memory_that_is_counted_is_taken(precision, again, lora, sdxl):
    recipe = settings(sdxl, f"method.lora={lora}", "batch_size=24")

    def method():
        made = make_method(recipe, load_data(recipe.data))
        if again:
            recompute(made)
        if precision == MIXED:
            halve(made.networks.values())
        return made

    memory = measure(method(), (4, 8, 8), len(TEXTS), 6, 24, precision=precision).memory
    really = step_bytes(method(), (4, 8, 8), len(TEXTS), 24, precision == MIXED)
    assert memory.activations + memory.gradients == pytest.approx(really, rel=0.1)
    assert memory.total == pytest.approx(memory.total - memory.activations - memory.gradients + really, rel=0.1)


def test_one_network_is_in_memory(sdxl):
    recipe = settings(sdxl)
    method = make_method(recipe, load_data(recipe.data))
    found = [ground for network in method.networks.values() for ground in grounds(network)]
    assert len(found) == 3
    assert len({id(ground) for ground in found}) == 1
    assert not any(parameter.requires_grad for parameter in found[0].parameters())
    assert [sum(p.numel() for p in method.networks[name].parameters()) for name in ("teacher",)] == [0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.gan=true"], "has prompts and no images, and method dmd2 as it is set learns from images"),
        (["method.inputs=noised_data"], "learns from images"),
        (["method.sampler_timesteps=[1000, 500]"], r"is \[1000, 500\], and the teacher's timesteps go from 0 to 999"),
        (["method.lora.targets=[nowhere]"], "no layer of this model is called nowhere"),
        (["method.times=karras"], r"knows noise levels up to 14\.61\d*, method.sigma_max is 80 and method.conditioning_sigma is 80"),
        (["trainer.compile=true"], "which a compiled network would not notice; turn one of these settings off"),
        (["method.teacher=null"], "is missing; give the text-to-image pipeline that the prompts were encoded by: method.teacher=/"),
        ([f"data.path={__file__}"], "is a file, and prompts are encoded first: fewstep encode .* --model MODEL --out FOLDER"),
        (["data.path=elsewhere"], "there is no folder elsewhere of encoded prompts in /"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_written(overrides, message, sdxl, tmp_path):
    with pytest.raises(UserError, match=message):
        trained(sdxl, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.sampler_timesteps=[500, 999]"], "sampler_timesteps is"),
        (["method.sampler_timesteps=[999]"], "with sampler_steps 2 give so many that fall"),
        (["method.times=karras", "method.sampler_timesteps=[999, 1]"], "goes with times=teacher"),
        (["method.sampler_sigmas=[9.0, 1.0]"], "leave one out"),
        (["method.lora.rank=0"], "method.lora.rank"),
    ],
)
def test_settings_that_contradict_each_other(overrides, message, sdxl):
    with pytest.raises(UserError, match=message):
        settings(sdxl, *overrides)


def test_prompts_of_another_model_are_refused(sd, sdxl, tmp_path):
    for theirs in (sd, place(tmp_path, "sdxl")):
        if theirs is not sd:  # the same form and sizes, by other encoders
            make(tmp_path / "model", "sdxl", seed=1)
        with pytest.raises(UserError, match="has other text encoders; encode the prompts by that model"):
            trained(sdxl, tmp_path / "run", f"method.teacher={theirs.model}")


def test_a_teacher_and_data_of_two_kinds(sdxl, teacher_run, tmp_path):
    with pytest.raises(UserError, match="takes no prompts; give the text-to-image model"):
        trained(sdxl, tmp_path / "run", f"method.teacher={teacher_run}", "method.lora=null", "method.times=karras")
    with pytest.raises(UserError, match="a text-to-image model, and the data digits has no prompts; encode some by fewstep encode"):
        train("dmd2/digits", tmp_path / "run", **{"method.teacher": sdxl.model})
    with pytest.raises(UserError, match=r"method\.lora is for text-to-image models"):
        train("dmd2/digits", tmp_path / "run", **{"method.teacher": str(teacher_run), "method.lora": {"rank": 2}})


def test_a_model_whose_network_has_gone_or_changed(sdxl, run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    config = json.loads((moved / "model" / "config.json").read_text())
    config["base"]["model"] = str(tmp_path / "nowhere")
    (moved / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"run/model: it is based on the network of .*nowhere, which cannot be loaded \(.*\); if that has mov"
    ):
        load(moved)
    make(tmp_path / "nowhere", "sdxl", seed=1)
    with pytest.raises(UserError, match="as it was in training, which has changed since"):
        load(moved)
    config["base"]["model"] = sdxl.model
    (moved / "model" / "config.json").write_text(json.dumps(config))
    load(moved)
    config["base"]["rank"] = 5
    (moved / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"lora_[AB] has shape .*, and is to have"):
        load(moved)


def test_a_run_goes_on_without_its_table_but_draws_prompts_alone(sdxl, run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    file = moved / "model" / "config.json"
    file.write_text(file.read_text().replace(str(sdxl.folder / "prompts"), str(tmp_path / "gone")))
    generator = load(moved)
    with pytest.raises(UserError, match=rf"needs prompts, and none were given, and {tmp_path / 'gone'} does not hold those that it was"):
        generator.sample(1)
    assert generator.sample(1, prompts="a seven").isfinite().all()


def test_a_table_that_was_encoded_anew_by_another_model_is_not_told(sd, sdxl, run, beside, tmp_path):
    moved, table = shutil.copytree(run, tmp_path / "run"), tmp_path / "prompts"
    file = moved / "model" / "config.json"
    file.write_text(file.read_text().replace(str(sdxl.folder / "prompts"), str(table)))
    shutil.copytree(sd.folder / "prompts", table)
    with pytest.raises(UserError, match="needs prompts, and none were given"):
        load(moved).sample(1)
    (moved / "recipe.yaml").write_text((moved / "recipe.yaml").read_text().replace(str(sdxl.folder / "prompts"), str(beside)))
    with pytest.raises(UserError, match="the teacher has other text encoders; encode the prompts by that model"):
        evaluate(moved, 60)


def test_weights_to_start_from_may_have_learned_other_prompts(sdxl, run, tmp_path):
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    encode_prompts(tmp_path / "few.txt", sdxl.model, tmp_path / "few")
    more = (f"data.path={tmp_path / 'few'}", f"trainer.init={run}", "steps=1")
    assert load(trained(sdxl, tmp_path / "run", *more)).num_classes == 2


def test_samples_that_stand_alone_have_no_spread(sd, tmp_path):
    """Of more prompts than there are samples of; and what is not known is not there."""
    from fewstep.metrics.features import PooledPixels
    from fewstep.metrics.suite import Suite

    images = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8)
    suite = Suite(images[:30], images[30:], torch.arange(30), torch.arange(30), PooledPixels(), 127.5)
    row = suite.measure(torch.rand(30, 3, 16, 16) * 2 - 1, torch.arange(30))
    assert not {"within_class_std", "least_class_std"} & (row.keys() | suite.floor_row().keys())
    assert all(value == value for value in row.values())


def test_prompts_for_a_generator_that_is_told_none(teacher_run):
    with pytest.raises(UserError, match="this generator takes none; leave them out"):
        load(teacher_run).sample(1, prompts="a seven")


@pytest.mark.parametrize(("lora", "loss"), [("{rank: 3}", "sid"), ("null", "dmd")])
def test_activations_that_are_computed_again_change_nothing_but_memory(lora, loss, sdxl, tmp_path):
    more = (f"method.lora={lora}", f"method.loss={loss}", "method.sampler_steps=1", "steps=2", "trainer.sample_every=5")
    kept, again = (trained(sdxl, tmp_path / str(on), *more, f"trainer.checkpointing={on}") for on in ("false", "true"))
    for one, other in zip(records(kept), records(again), strict=True):
        assert one.pop("alarms") == other.pop("alarms")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    if loss == "sid":
        return  # it takes long to count
    lines = [describe(settings(sdxl, *more, f"trainer.checkpointing={on}")) for on in ("false", "true")]
    memory = [re.findall(r"([\d.]+) (kB|MB) activations", "".join(found))[0] for found in lines]
    first, second = (float(number) * {"kB": 1, "MB": 1e3}[unit] for number, unit in memory)
    assert second < first / 2


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if load_recipe(name).data.name == "prompts"])
def test_shipped_recipes_of_text_to_image(name, request, tmp_path):
    here = request.getfixturevalue({"sd15": "sd"}.get(model := name.split("/")[1].split("_")[0], model))
    small = [
        "steps=1",
        "batch_size=16",
        "method.lora.rank=2",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "trainer.log_every=1",
    ]
    paths = [f"method.teacher={here.model}", f"data.path={here.folder / 'prompts'}"]
    out = train(load_recipe(name, [*paths, *small]), tmp_path / "run")
    assert len(records(out)) == 1
    assert load(out).default_steps() == (4 if name.endswith("4step") else 1)


@pytest.mark.parametrize("lora", ["{rank: 3}", "{rank: 3, fake: full}", "null"])
def test_all_networks_compute_activations_again_when_asked(lora, sdxl):
    for on in (False, True):
        recipe = settings(sdxl, f"method.lora={lora}", f"trainer.checkpointing={str(on).lower()}")
        method = make_method(recipe, load_data(recipe.data))
        owners = [owner for network in method.networks.values() for owner in (network, *grounds(network))]
        found = [part for owner in owners for part in owner.modules() if isinstance(part, UNet2DConditionModel)]
        assert len({id(part) for part in found}) == {"{rank: 3}": 1, "{rank: 3, fake: full}": 3, "null": 4}[lora]
        assert all(part.is_gradient_checkpointing is on for part in found)


def test_health_is_beside_samples_of_all_prompts(beside):
    """Of five prompts, whose rows alone would name five of the hundred samples."""
    data, rng = load_data(settings_of(beside)), torch.Generator().manual_seed(0)
    seen = [data.batch(torch.arange(5), rng, torch.device("cpu"))[0] for _ in range(20)]
    assert len({tuple(x.flatten().tolist()) for batch in seen for x in batch}) > 40


def test_networks_that_cannot_compute_activations_again(tmp_path):
    with pytest.raises(UserError, match="none of these networks can compute its activations again"):
        train("teacher/ring", tmp_path / "run", **{"trainer.checkpointing": True, "steps": 2})


def test_the_network_of_digits_can_compute_activations_again(tmp_path):
    small = {"network.channels": [8, 16], "network.groups": 4, "network.head_dim": 8, "steps": 3, "batch_size": 8, "trainer.log_every": 1}
    runs = [train("teacher/digits", tmp_path / str(on), **small, **{"trainer.checkpointing": on}) for on in (False, True)]
    losses = [[next(value for name, value in record.items() if name.endswith(".denoising")) for record in records(run)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.fixture(scope="module")
def changed(sdxl, run):
    """The model of `run`, as if it had learned much."""
    return stirred(run, sdxl.folder / "changed")


def test_export_of_changes_is_what_stock_diffusers_loads(changed, sdxl, tmp_path, done):
    said = done("export", changed, "--format", "diffusers", "--out", tmp_path / "lora").out
    assert float(said.split("differ from the generator's by ")[1].split()[0]) < 1e-5
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == ["README.md", "pytorch_lora_weights.safetensors", "scheduler"]
    assert str(sdxl.folder) not in (tmp_path / "lora" / "README.md").read_text().split("## Recipe")[0]  # no path of this machine
    with pytest.raises(UserError, match=r"holds a LoRA for stock diffusers .*; give the run or the model folder"):
        load(tmp_path / "lora")
    stock, image = run_card(tmp_path / "lora", sdxl.model)
    assert stock.scheduler.timesteps.tolist() == [999, 499]
    assert image.size == (16, 16)
    # beside another LoRA, of a style: both act, and their weights add up
    style = {name: torch.randn(tensor.shape) / 10 for name, tensor in load_file(tmp_path / "lora" / LORA_FILE).items()}
    save_file(style, tmp_path / "style.safetensors", {"format": "pt"})
    stock.load_lora_weights(str(tmp_path), weight_name="style.safetensors", adapter_name="style")
    ours = next(name for name in stock.get_list_adapters()["unet"] if name != "style")
    layer = stock.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    x = torch.randn(1, 3, layer.in_features)

    def acting(*names):
        stock.set_adapters(list(names))
        with torch.no_grad():
            return layer(x)

    plain = layer.base_layer(x)
    torch.testing.assert_close(acting(ours, "style") - plain, (acting(ours) - plain) + (acting("style") - plain))
    assert min((acting(name) - plain).abs().max() for name in (ours, "style")) > 1e-3


def test_export_of_the_whole_pipeline(changed, tmp_path, done):
    done("export", changed, "--format", "diffusers", "--fuse", "--out", tmp_path / "whole")
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"} <= {p.name for p in (tmp_path / "whole").iterdir()}
    stock, _ = run_card(tmp_path / "whole")
    assert not any("lora" in name for name, _ in stock.unet.named_parameters())
    # what was exported is a pipeline that can be stood on again
    assert text_teacher(str(tmp_path / "whole")).sample(1, seed=0, steps=1, prompts="a seven").isfinite().all()


def test_export_of_stable_diffusion_in_one_step(sd, tmp_path, done):
    """From timestep 399, as DMD2's one-step SDXL; and a pipeline with a safety checker is loaded without it."""
    one = ("method.sampler_steps=1", "method.sampler_timesteps=[399]", "steps=2", "trainer.sample_every=5")
    done("export", trained(sd, tmp_path / "run", *one), "--format", "diffusers", "--out", tmp_path / "lora")
    scheduler = LCMScheduler.from_pretrained(tmp_path / "lora", subfolder="scheduler")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [399]
    assert "safety_checker=None" in (tmp_path / "lora" / "README.md").read_text()


# a pipeline that draws something else, without the time that a real one takes to be imported
OTHERWISE = """
import json, sys, torch
from safetensors.torch import save_file
told = json.loads(sys.argv[1])
save_file(dict(("drawn " + str(k), torch.zeros(n, *told["shape"])) for k, (n, _) in enumerate(told["probes"])), told["out"])
raise SystemExit(0)
"""


def test_what_cannot_be_exported(sdxl, changed, tmp_path, mistake):
    def told(model, *more):
        found = mistake("export", model, "--out", tmp_path / "out", *more)
        assert not (tmp_path / "out").exists()
        return found

    assert "written for diffusers alone" in told(changed, "--format", "onnx")
    assert "written for diffusers alone" in told(changed, "--format", "page")
    odd = trained(sdxl, tmp_path / "odd", "method.sampler_timesteps=[999, 100]", "steps=1")
    assert "takes equal parts alone" in told(odd, "--format", "diffusers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewstep.interop.export_text.LORA", "raise SystemExit('it does not run')")
        assert "cannot be run by stock diffusers (it does not run) and was removed" in told(changed, "--format", "diffusers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewstep.interop.export_text.LORA", OTHERWISE)
        assert "of the largest latent, where 1e-04 is allowed" in told(changed, "--format", "diffusers")


def test_import_says_what_it_found_and_copies_nothing(sdxl, tmp_path, done, mistake):
    said = done("import", sdxl.model, "--out", tmp_path / "teacher").out
    assert "found: StableDiffusionXLPipeline of unet, text_encoder, text_encoder_2, vae; the U-Net has 17,412 parameters" in said
    assert "predicts epsilon" in said
    assert "noise levels: 0.02917 to 14.61 at 1000 timesteps" in said
    assert "latents: 4x8x8; the U-Net takes hidden states of width 64, a pooled vector of 32 and sizes [16, 16, 0, 0, 16, 16]" in said
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == {"config.json", "README.md"}
    out = trained(sdxl, tmp_path / "run", f"method.teacher={tmp_path / 'teacher'}", "steps=1")  # it may stand for the pipeline
    assert load(out).sample(1, prompts="a seven").isfinite().all()
    done("sample", tmp_path / "teacher", "--prompt", "one", "--steps", "2", "--out", tmp_path / "a.png")
    said = mistake("encode", sdxl.folder / "prompts.txt", "--model", tmp_path / "teacher", "--out", tmp_path / "b")
    assert f"teacher is of fewstep, and was made from the pipeline {sdxl.model}; give that pipeline" in said
    said = mistake("sample", sdxl.model, "--prompt", "one", "--out", tmp_path / "a.png")
    assert f"is a pipeline of diffusers; make a model folder that refers to it: fewstep import {sdxl.model} --out FOLDER" in said
    assert "--null-class is for models with classes" in mistake("import", sdxl.model, "--null-class", "--out", tmp_path / "b")
    assert "--sigma-data is 0.0" in mistake("import", sdxl.model, "--sigma-data", "0", "--out", tmp_path / "b")
    (tmp_path / "one.safetensors").touch()
    said = mistake("import", tmp_path / "one.safetensors", "--out", tmp_path / "b")
    assert f"from_single_file('{tmp_path / 'one.safetensors'}').save_pretrained(FOLDER)), and give that folder" in said
    assert not (tmp_path / "b").exists()


def test_the_network_is_kept_in_half_precision_where_layers_work_in_it(sdxl, tmp_path):
    more = ("steps=3", "trainer.sample_every=3")
    full, half = (trained(sdxl, tmp_path / name, *more, f"trainer.precision={name}") for name in ("32-true", "bf16-mixed"))
    for one, other in zip(records(full), records(half), strict=True):
        assert one["guidance.fake"] == pytest.approx(other["guidance.fake"], rel=0.05)
    changes = load_file(half / "model" / LORA_FILE)
    assert {tensor.dtype for tensor in changes.values()} == {torch.float32}
    samples = [load(run).sample(2, [0, 1], seed=0) for run in (full, half)]
    torch.testing.assert_close(*samples, rtol=0, atol=0.05 * samples[0].abs().max().item())


@pytest.fixture(scope="module")
def beside(sd):
    """Prompts with samples of their model beside them."""
    folder = shutil.copytree(sd.folder / "prompts", sd.folder / "beside")
    draw_teacher_samples(folder, 100, sd.model, steps=3, guidance_scale=2.0)
    return folder


def test_samples_of_the_teacher_are_drawn_once_and_go_on(sd, beside, tmp_path):
    again = shutil.copytree(sd.folder / "prompts", tmp_path / "again")
    with pytest.MonkeyPatch.context() as patch:
        drawn = []
        sample = Generator.sample

        def stopped(generator, num, *told, **more):
            if drawn:
                raise KeyboardInterrupt
            drawn.append(num)
            return sample(generator, num, *told, **more)

        patch.setattr(Generator, "sample", stopped)
        with pytest.raises(KeyboardInterrupt):
            draw_teacher_samples(again, 100, sd.model, steps=3, guidance_scale=2.0)
        assert drawn == [64]
    assert not (again / "teacher.json").exists()
    assert load_data(settings_of(again)).samples is None  # half of them are none
    before = (again / "teacher-00000.safetensors").stat().st_mtime_ns
    draw_teacher_samples(again, 100, sd.model, steps=3, guidance_scale=2.0)
    assert (again / "teacher-00000.safetensors").stat().st_mtime_ns == before
    for name in ("teacher.json", "teacher-00000.safetensors", "teacher-00001.safetensors"):
        assert (again / name).read_bytes() == (beside / name).read_bytes()
    said = []
    draw_teacher_samples(again, 100, sd.model, steps=3, guidance_scale=2.0, say=said.append)
    assert "holds these samples already" in said[0]
    with pytest.raises(UserError, match="holds 100 samples in 3 steps with guidance scale 2, of this model or another; remove"):
        draw_teacher_samples(again, 100, sd.model, steps=4, guidance_scale=2.0)
    # what is kept is what the teacher draws
    samples = load_data(settings_of(beside)).samples
    teacher = text_teacher(sd.model, prompts=PromptTable(beside))
    seeds = [stream_seed(0, "teacher", number) for number in (3, 70)]
    ours = teacher.sample(2, [3 // 4 % 5, 70 // 4 % 5], seeds, 3, guidance_scale=2.0)
    torch.testing.assert_close(samples.latents(torch.tensor([3, 70])), ours, rtol=2e-3, atol=1e-3)
    # of another U-Net with the same text encoders
    other = shutil.copytree(sd.model, tmp_path / "tuned")
    unet = UNet2DConditionModel.from_pretrained(other / "unet")
    with torch.no_grad():
        unet.conv_in.weight += 0.1
    unet.save_pretrained(other / "unet")
    with pytest.raises(UserError, match=r"the samples in .* were drawn from another network than method\.teacher="):
        trained(sd, tmp_path / "run", f"data.path={beside}", f"method.teacher={other}")
    # a file that was cut
    (again / "teacher-00001.safetensors").write_bytes((again / "teacher-00001.safetensors").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"teacher-00001.safetensors cannot be read .*fewstep encode --samples"):
        load_data(settings_of(again))


def settings_of(folder):
    """The data section for the prompts in `folder`."""
    return load_recipe("dmd2/sd15_lora", [f"data.path={folder}"]).data


def test_a_run_beside_samples_is_watched_and_measured(sd, beside, tmp_path, done):
    out = trained(
        sd, tmp_path / "run", f"data.path={beside}", "steps=12", "batch_size=16", "trainer.evaluate_every=12", "trainer.evaluate_samples=60"
    )
    seen = {key for record in records(out) for key in record}
    assert {"health.spread", "health.shift", "eval.frechet", "eval.within_class_std"} <= seen
    assert "health.saturation" not in seen  # latents have no bounds
    assert not any("class_accuracy" in key for key in seen)
    with pytest.raises(UserError, match="--compile was asked for, and this generator puts low-rank adapters"):
        compile_to_sample(load(out).denoiser, "--compile")
    clip(tmp_path / "clip")
    said = done("evaluate", out, "-n", "50", "--clip", tmp_path / "clip").out
    results = json.loads((out / "results.json").read_text())
    assert list(results["rows"]) == [
        "teacher's other half",
        "teacher, 6 evaluations",
        "teacher, 2 evaluations",
        "student, 2 evaluations",
    ]
    assert results["protocol"]["labels"] == "prompts in turn"
    assert "to 50 samples of the teacher in the features pixels-8x8; floor: FD of the teacher's other half" in said
    assert "CLIP: mean cosine similarity to the prompt by clip; over another: how far it is above" in said
    assert all(-1 < row["prompt_agreement"] < 1 and "prompt_margin" in row for row in results["rows"].values())
    # the teacher again is as good as its samples were
    floor, again = (results["rows"][name]["prompt_agreement"] for name in ("teacher's other half", "teacher, 6 evaluations"))
    assert again == pytest.approx(floor, abs=0.05)
    assert results["rows"]["teacher, 6 evaluations"]["frechet_over_floor"] < 1.5
    assert 0.8 < results["rows"]["teacher, 6 evaluations"]["within_class_std"] < 1.2


def test_samples_of_another_guidance_than_the_student_learns_are_told(sd, beside, capsys):
    for scale in (2.0, 1.5):
        recipe = settings(sd, f"data.path={beside}", f"method.guidance_scale={scale}")
        make_method(recipe, load_data(recipe.data))
        told = f"note: the samples in {beside} were drawn with guidance scale 2, and method.guidance_scale is 1.5, "
        assert (told in capsys.readouterr().err) == (scale == 1.5)


def test_a_whole_student_whose_pipeline_has_moved_says_where_to_write_its_new_place(sdxl, tmp_path):
    run = trained(sdxl, tmp_path / "run", "method.lora=null", "steps=1", "trainer.sample_every=5")
    config = run / "model" / "config.json"
    config.write_text(config.read_text().replace(f'"model": "{sdxl.model}"', f'"model": "{tmp_path / "nowhere"}"'))
    with pytest.raises(UserError, match=r"encoded by the pipeline .*nowhere, which is no folder.* write its new place into config\.json"):
        load(run).sample(1, prompts="a seven")


def test_too_few_samples_of_the_teacher_are_said_as_that(sd, tmp_path, mistake):
    few = shutil.copytree(sd.folder / "prompts", tmp_path / "few")
    draw_teacher_samples(few, 8, sd.model, steps=1)
    run = trained(sd, tmp_path / "run", f"data.path={few}", "steps=1", "trainer.sample_every=5")
    assert "few has 4 samples of the model held out; measuring needs 5: draw more into a new folder (--samples)" in mistake("evaluate", run)


def test_nothing_is_measured_against_prompts_alone(run, mistake):
    assert "holds prompts and no samples of their model, which a run is measured against; draw some" in mistake("evaluate", run)


def test_the_command_line_draws_samples_of_the_teacher(sd, tmp_path, done, mistake):
    arguments = ("encode", sd.folder / "prompts.txt", "--model", sd.model, "--out", tmp_path / "prompts", "--steps", "1")
    assert "drawn: 4 samples of the model, in 1 steps with guidance scale 7.5" in done(*arguments, "--samples", "4").out
    assert "--samples is 1; give at least 4" in mistake(*arguments, "--samples", "1")
    assert "--steps is for the samples that --samples and --pairs draw" in mistake(*arguments)
    assert "--guidance-scale is for the samples" in mistake(*arguments[:-2], "--guidance-scale", "2")
    assert "--guidance-scale is for prompts" in mistake(*arguments[:-2], "--images", "--guidance-scale", "2")
    assert "--revision is 'v2', and --model is " in mistake(*arguments, "--samples", "4", "--revision", "v2")
