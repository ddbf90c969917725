import json
import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

import fewstep
from fewstep.build import make_method, open_teacher
from fewstep.data import load_digits
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.interop.diffusers import diffusers_folder, import_diffusers, read_teacher
from fewstep.recipe import load_recipe
from fewstep.samplers import euler

CASES = [  # prediction, schedule, classes
    ("epsilon", {"beta_schedule": "linear"}, None),
    ("v_prediction", {"beta_schedule": "squaredcos_cap_v2"}, 3),
    ("sample", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, None),
    ("v_prediction", {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}, 3),
    ("epsilon", {"trained_betas": [0.001 + 0.0002 * k for k in range(100)], "num_train_timesteps": 100}, 3),
]


def unet(num_classes=None, size=8, channels=3, seed=0, **changes):
    """A small random model, whose output is about as large as what it stands for."""
    torch.manual_seed(seed)
    config = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "num_class_embeds": num_classes,
    }
    return UNet2DModel(**{**config, **changes}).eval()


def scheduler_of(prediction, schedule, kind=DDIMScheduler):
    return kind(prediction_type=prediction, clip_sample=False, **schedule)


def pipeline(path, model, scheduler=None):
    DDPMPipeline(model, scheduler or DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].get('beta_schedule', 'trained')}")
def case(request, tmp_path):
    """A pipeline's folder as diffusers writes it, its model and its scheduler."""
    prediction, schedule, num_classes = request.param
    model, scheduler = unet(num_classes), scheduler_of(prediction, schedule)
    DDIMPipeline(model, scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline", model, scheduler


def edited(path, **changes):
    """The JSON file at `path` with other values; None takes a key away."""
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def refused(path, **options):
    with pytest.raises(UserError) as error:
        read_teacher(path, **options)
    return str(error.value)


# --- the same estimates and the same samples both ways


@torch.no_grad()
def test_at_integer_timesteps_it_is_the_scheduler_s_own_estimate(case):
    path, model, scheduler = case
    denoiser = read_teacher(path).denoiser
    last = len(scheduler.betas) - 1 - (scheduler.alphas_cumprod[-1] == 0).item()
    scheduler.set_timesteps(10)
    rng = torch.Generator().manual_seed(1)
    label = None if model.config.num_class_embeds is None else torch.tensor([0, 2, 1, 2])
    for t in (0, 1, last // 2, last - 1, last):
        x_t = torch.randn(4, 3, 8, 8, generator=rng)
        prediction = model(x_t, t, class_labels=label).sample
        expected = scheduler.step(prediction, t, x_t).pred_original_sample
        alpha = scheduler.alphas_cumprod[t].sqrt()
        sigma = (1 - alpha**2).sqrt() / alpha
        assert denoiser.timestep(sigma).item() == pytest.approx(t, abs=0.02)  # theirs are rounded: 1 - (1 - 1e-4) in float32
        found = denoiser(x_t / alpha, sigma, label)
        assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@torch.no_grad()
def test_ddim_is_our_euler(case):
    """From the same noise, at the same noise levels: in variance-exploding form DDIM without new noise is Euler's method."""
    path, model, scheduler = case
    generator = read_teacher(path)
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps
    noise = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    label = None if model.config.num_class_embeds is None else torch.arange(5) % 3
    x = noise
    for t in steps:
        x = scheduler.step(model(x, t, class_labels=label).sample, t, x, eta=0.0).prev_sample
    sigmas = generator.denoiser.sigmas[steps]
    # x_t is all noise at first: x_t / alpha = sigma (x_t / sigma_t)
    found = euler(generator.denoiser, noise * (1 + sigmas[0] ** -2).sqrt().float(), sigmas, label)
    assert x.std() > 0.1
    assert (found - x).abs().max() <= 1e-4 * max(1.0, x.abs().max().item())


@torch.no_grad()
def test_between_integers_it_goes_smoothly_from_one_to_the_next(case):
    path, _, _ = case
    denoiser = read_teacher(path).denoiser
    label = None if denoiser.num_classes is None else torch.tensor([1])
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    k = len(denoiser.sigmas) // 2
    low, high = denoiser.sigmas[k : k + 2].log()
    shares = torch.linspace(0, 1, 9, dtype=torch.float64)
    sigmas = (low + shares * (high - low)).exp()
    torch.testing.assert_close(denoiser.timestep(sigmas), (k + shares).float(), rtol=0, atol=1e-4)
    values = torch.cat([denoiser(x, sigma, label) for sigma in sigmas])
    whole, parts = (values[-1] - values[0]).norm(), (values[1:] - values[:-1]).flatten(1).norm(dim=1)
    assert whole > 0
    assert (parts < whole / 4).all()  # no jump: about an eighth each


def test_ours_samples_as_it_was_read(case, tmp_path, done):
    path, _, _ = case
    out = tmp_path / "ours"
    read = read_teacher(path, sigma_data=0.4)
    assert import_diffusers(path, out, 0.4).generator.config == read.config
    ours = fewstep.load(out)
    assert ours.sigma_data == 0.4
    assert not ours.training
    assert ours.config == read.config == json.loads((out / "config.json").read_text())
    assert torch.equal(ours.sample(3, seed=0, steps=4), read.sample(3, seed=0, steps=4))
    assert list((tmp_path).glob(".*")) == []
    low, high = (ours.denoiser.sigmas[k].item() for k in (0, -1))
    assert ours.sampler == {"name": "heun", "steps": 18, "sigma_min": low, "sigma_max": min(80.0, high), "rho": 7.0}
    done("sample", out, "-n", 4, "--steps", 3, "--out", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["samples"].shape == (4, 3, 8, 8)


# --- the folders there are


def test_where_things_lie(tmp_path):
    """A pipeline's folder, the oldest ones with all in one place, a model's own with its scheduler beside it or in the pipeline above."""
    path = pipeline(tmp_path / "a", unet(), scheduler_of("v_prediction", {"beta_schedule": "sigmoid"}, DDPMScheduler))
    expected = read_teacher(path)
    assert expected.denoiser_config["prediction"] == "v_prediction"
    assert expected.denoiser_config["betas"] == {"schedule": "sigmoid", "start": 1e-4, "end": 0.02, "num": 1000}
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (*path.glob("unet/*"), *path.glob("scheduler/*"), path / "model_index.json"):
        shutil.copy(file, flat)
    bare = shutil.copytree(flat, tmp_path / "bare")
    (bare / "model_index.json").unlink()
    for place in (flat, bare, path / "unet"):
        found = read_teacher(place)
        assert found.denoiser_config == expected.denoiser_config
        assert "assumed" not in found.info
        assert torch.equal(found.sample(2, seed=0, steps=2), expected.sample(2, seed=0, steps=2))


def test_a_model_without_a_scheduler_is_taken_for_ddpm_s_and_says_so(tmp_path):
    unet().save_pretrained(tmp_path / "bare")
    found = read_teacher(tmp_path / "bare")
    told = read_teacher(pipeline(tmp_path / "pipeline", unet(), DDPMScheduler()))
    assert found.denoiser_config == told.denoiser_config
    assert f"there is no scheduler_config.json in {tmp_path / 'bare'}; taken to be DDPM's: epsilon" in found.info["assumed"]


def test_weights_in_the_names_of_the_first_releases(tmp_path):
    """google/ddpm-* and others have attention as ``query``, ``key``, ``value``, ``proj_attn``."""
    path = pipeline(tmp_path / "a", unet())
    expected = read_teacher(path).sample(2, seed=0, steps=2)
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    assert any("proj_attn" in key for key in weights)
    save_file(weights, file)
    assert torch.equal(read_teacher(path).sample(2, seed=0, steps=2), expected)


def test_a_model_that_also_predicts_a_variance(tmp_path):
    torch.manual_seed(0)
    model = unet(out_channels=6)
    path = pipeline(tmp_path / "a", model, DDPMScheduler(variance_type="learned_range", clip_sample=False))
    denoiser = read_teacher(path).denoiser
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        sigma = denoiser.sigmas[300].float()
        eps = model(x / (1 + sigma**2).sqrt(), 300).sample[:, :3]
        torch.testing.assert_close(denoiser(x, sigma), x - sigma * eps, rtol=1e-4, atol=1e-4)


def test_the_last_class_may_mean_none(tmp_path):
    path = pipeline(tmp_path / "a", unet(num_classes=4))
    plain, guided = read_teacher(path), read_teacher(path, null_class=True)
    assert (plain.num_classes, guided.num_classes) == (4, 3)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = plain.denoiser(x, 1.0, torch.tensor([3, 3]))
        assert torch.equal(guided.denoiser(x, 1.0, None), expected)
    with pytest.raises(ValueError, match="label is None, but this network has 4 classes and no null class"):
        plain.denoiser(x, 1.0, None)
    with pytest.raises(UserError, match="trained without label dropout"):
        plain.sample(2, guidance_scale=2.0)
    assert guided.sample(2, seed=0, steps=2, guidance_scale=2.0).isfinite().all()
    assert "--null-class was given, but" in refused(pipeline(tmp_path / "b", unet()), null_class=True)


@pytest.mark.parametrize(
    ("text", "licence"), [("---\nlicense: cc-by-nc-4.0\n---\n# A", "cc-by-nc-4.0"), ("# A", None), ("---\n{[\n---\n", None)]
)
def test_the_licence_of_its_card_stays_with_it(text, licence, tmp_path):
    path = pipeline(tmp_path / "a", unet())
    (path / "README.md").write_text(text)
    import_diffusers(path, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["info"].get("licence") == licence
    card = (tmp_path / "ours" / "README.md").read_text()
    assert ("license: cc-by-nc-4.0" in card) == (licence is not None)
    assert "mit" not in card.split("---")[1]  # that is ours, and not of these weights


def test_a_hub_id_is_read_from_the_cache(tmp_path, monkeypatch):
    """Offline, from a cache in the Hub's own layout."""
    snapshot = tmp_path / "hub" / "models--someone--ddpm-small" / "snapshots" / "0123"
    pipeline(snapshot, unet(), scheduler_of("v_prediction", {}, DDPMScheduler))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    found = read_teacher("someone/ddpm-small")
    assert found.info["imported_from"] == "someone/ddpm-small"
    assert torch.equal(found.sample(2, seed=0, steps=2), read_teacher(snapshot).sample(2, seed=0, steps=2))
    assert "someone/else: there is no such folder, the local cache of the Hub has no such model, and HF_HUB_OFFLINE" in refused(
        "someone/else"
    )


def test_only_small_files_are_fetched_before_it_is_known_to_fit(tmp_path, monkeypatch):
    asked = []

    def download(repository, allow_patterns, revision, local_files_only):
        asked.append(allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    pipeline(tmp_path / "snapshot", unet())
    edited(tmp_path / "snapshot" / "unet" / "config.json", _class_name="UNet2DConditionModel")
    assert "holds a UNet2DConditionModel" in refused("someone/large")
    assert len(asked) == 1
    assert not any("safetensors" in pattern for pattern in asked[0])
    edited(tmp_path / "snapshot" / "unet" / "config.json", _class_name="UNet2DModel")
    read_teacher("someone/large")
    assert asked[2] == ["unet/diffusion_pytorch_model*.safetensors*"]


# --- what is refused


def test_pickles_are_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = pipeline(tmp_path / "a", unet())
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Bomb(), path / "unet" / "diffusion_pytorch_model.bin")
    message = refused(path)
    assert f"there is no diffusion_pytorch_model.safetensors in {path / 'unet'}; diffusion_pytorch_model.bin is a pickle" in message
    (path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")  # there is no way round it
    assert "cannot be read" in refused(path)
    assert not (tmp_path / "ran").exists()
    for kind in ("bin", "safetensors"):
        (path / "unet" / f"diffusion_pytorch_model.{kind}").unlink()
    assert "is a pickle" not in refused(path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel; only a UNet2DModel of pixels"),
        ("unet/config.json", {"sample_size": None}, "sample_size is None; write the sides of its images into config.json"),
        ("unet/config.json", {"sample_size": 7}, "images of 7x7 cannot be halved 1 times; sample_size must be divisible by 2"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'; only 'positional'"),
        ("unet/config.json", {"class_embed_type": "identity"}, "class_embed_type is 'identity'"),
        ("unet/config.json", {"num_class_embeds": 5}, r"do not fit its config.json \(class_embedding.weight, 1 in all"),
        ("unet/config.json", {"block_out_channels": [8, 16, 16]}, "cannot be a teacher here: Must provide the same number"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction is 'flow'; allowed: epsilon, v_prediction, sample"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}, "cannot be a teacher here: "),
        ("scheduler/scheduler_config.json", {"beta_schedule": "new"}, "beta schedule is 'new'; allowed: linear, "),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.0]}, "betas are .* give at least 2 between 0 and 1"),
        ("scheduler/scheduler_config.json", {"timestep_type": "continuous"}, "timestep_type 'continuous'; only 'discrete'"),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "is a DDPMPipeline of .*vqvae; only a pipeline of a unet of pixels"),
    ],
)
def test_what_cannot_be_a_teacher_says_why(file, changes, message, tmp_path):
    path = pipeline(tmp_path / "a", unet())
    edited(path / file, **changes)
    with pytest.raises(UserError, match=message):
        read_teacher(path)


def test_a_scheduler_without_betas(tmp_path):
    path = pipeline(tmp_path / "a", unet())
    FlowMatchEulerDiscreteScheduler().save_pretrained(path / "scheduler")
    assert "its scheduler is a FlowMatchEulerDiscreteScheduler, which has no betas; allowed are DDPMScheduler" in refused(path)


def test_what_is_not_whole(tmp_path):
    path = pipeline(tmp_path / "a", unet())
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != first}, file)
    assert f"the weights in {path / 'unet'} do not fit its config.json ({first}, 1 in all)" in refused(path)
    save_file({**weights, first: weights[first][:1].clone()}, file)
    assert f"the model in {path / 'unet'} cannot be read" in refused(path)
    file.write_bytes(b"no")
    assert f"the model in {path / 'unet'} cannot be read" in refused(path)
    (path / "unet" / "config.json").write_text("{")
    assert f"{path / 'unet' / 'config.json'} cannot be read" in refused(path)
    (path / "unet" / "config.json").unlink()
    assert f"there is no {path / 'unet' / 'config.json'}" in refused(path)


def test_what_is_no_diffusers_model(tmp_path):
    (tmp_path / "empty").mkdir()
    import_diffusers(pipeline(tmp_path / "a", unet()), tmp_path / "ours")
    damaged = shutil.copytree(tmp_path / "ours", tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    for path in (tmp_path / "empty", tmp_path / "ours", damaged):
        assert diffusers_folder(path) is None
        assert f"{path} holds no diffusers model; give a folder" in refused(path)
    for path in (tmp_path / "nothing", "not an id", "a/b/c", "./a"):
        assert diffusers_folder(path) is None
        assert f"{path} is no folder, and no Hub id (owner/name); give a folder" in refused(path)


def test_the_command_says_what_it_found(case, tmp_path, done, mistake):
    path, model, scheduler = case
    out, read = tmp_path / "ours", read_teacher(path)
    said = done("import", path, "--out", out, "--sigma-data", 0.7).out
    assert fewstep.load(out).config == {**read.config, "sigma_data": 0.7}
    parameters = sum(p.numel() for p in model.parameters())
    classes = model.config.num_class_embeds or "no"
    assert f"found: UNet2DModel ({scheduler.config.prediction_type}), {parameters:,} parameters, 8x8 images, {classes} classes" in said
    low, high = (read.denoiser.sigmas[k].item() for k in (0, -1))
    assert f"noise levels: {low:.4g} to {high:.4g} at {len(read.denoiser.sigmas)} timesteps" in said
    assert "--out is" in mistake("import", path, "--out", out)
    assert "--sigma-data is 0.0; give a number above 0" in mistake("import", path, "--out", tmp_path / "b", "--sigma-data", 0)
    (tmp_path / "net.pkl").touch()
    assert "are for diffusers models" in mistake("import", tmp_path / "net.pkl", "--out", tmp_path / "b", "--null-class")
    assert "someone/nothing: there is no such folder" in mistake("import", "someone/nothing", "--out", tmp_path / "b")


def test_the_command_knows_a_null_class_and_says_what_it_assumed(tmp_path, done):
    unet(num_classes=4).save_pretrained(tmp_path / "bare")
    outcome = done("import", tmp_path / "bare", "--out", tmp_path / "ours", "--null-class")
    assert "3 classes" in outcome.out
    assert "warning: there is no scheduler_config.json in" in outcome.err
    ours = fewstep.load(tmp_path / "ours")
    assert ours.num_classes == 3
    done("sample", tmp_path / "ours", "-n", 2, "--steps", 2, "--guidance-scale", 2, "--out", tmp_path / "a.png")


def test_an_import_does_not_write_over_anything(tmp_path):
    path = pipeline(tmp_path / "a", unet())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="holds something already"):
        import_diffusers(path, tmp_path / "full")
    with pytest.raises(UserError, match="no diffusers model"):
        import_diffusers(tmp_path / "full", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- features


@pytest.mark.parametrize(
    ("down", "up", "options"),
    [
        (["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], {"layers_per_block": 2}),
        (["ResnetDownsampleBlock2D"] * 3, ["ResnetUpsampleBlock2D"] * 3, {"num_class_embeds": 3}),
        (["AttnDownBlock2D"] * 3, ["AttnUpBlock2D"] * 3, {"downsample_type": "resnet", "downsample_padding": 0, "mid_block_type": None}),
        (["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"], ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"], {}),
        (["DownBlock2D"] * 3, ["UpBlock2D"] * 3, {"center_input_sample": True, "flip_sin_to_cos": False, "freq_shift": 1}),
    ],
)
@torch.no_grad()
def test_features_of_every_kind_of_block(down, up, options, tmp_path):
    """What leaves the bottleneck, and what each finer level hands to its way down; of whole passes through the stock model."""
    widths = (32, 64, 64)  # what NCSN++'s blocks can have
    model = unet(down_block_types=down, up_block_types=up, block_out_channels=widths, **options)
    generator = read_teacher(pipeline(tmp_path / "a", model))
    network, ours = generator.denoiser.network, generator.denoiser.network.unet
    seen = []
    if ours.mid_block is None:
        ours.down_blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output[0]))
    else:
        ours.mid_block.register_forward_hook(lambda module, args, output: seen.append(output))
    for block in reversed(ours.down_blocks[:-1]):
        way = block.resnet_down if hasattr(block, "resnet_down") else block.downsamplers[0]
        way.register_forward_pre_hook(lambda module, args: seen.insert(0, args[0]))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.5, 700.0])
    label = None if generator.num_classes is None else torch.tensor([0, 2])
    out = network(x, t, label)
    torch.testing.assert_close(out, model(x, t, class_labels=label).sample)
    expected = [seen[-1], *seen[:-1]]
    found = network.features(x, t, label, 3)
    assert len(found) == len(expected) == 3
    assert all(map(torch.equal, found, expected))
    assert [(f.shape[1], tuple(f.shape[2:])) for f in found] == network.feature_shapes


def test_a_generator_says_what_it_cannot_be_made_of(tmp_path):
    config = read_teacher(pipeline(tmp_path / "a", unet(num_classes=3))).arguments
    assert config["denoiser"]["name"] == "ddpm"
    with pytest.raises(ValueError, match="num_class_embeds is 3; with 5 classes it must be as many, or one more"):
        Generator(**{**config, "num_classes": 5})
    with pytest.raises(ValueError, match=r"in_channels and out_channels are \(3, 3\), which does not fit images of 1 channels"):
        Generator(**{**config, "shape": [1, 8, 8]})
    for change, says in (
        ({"name": "edm"}, r"denoiser is .*'edm'.*; give a name of preconditioned, .*ddpm"),
        ({"sigma": 3}, r"denoiser is .*'ddpm'.*, whose settings do not fit it: .*'sigma'"),
        ({"betas": []}, "betas are .* give at least 2 between 0 and 1"),
        ({"prediction": "flow"}, "prediction is 'flow'; allowed: epsilon, v_prediction, sample"),
    ):
        with pytest.raises(ValueError, match=says):
            Generator(**{**config, "denoiser": {**config["denoiser"], **change}})
    with pytest.raises(
        ValueError, match="sampler is 'push_forward', which does not draw from the denoiser 'ddpm'; give one of heun, euler, few_step"
    ):
        Generator(**{**config, "sampler": {"name": "push_forward"}})


# --- as a teacher


def digits_teacher(path, schedule=None, **options):
    model = unet(num_classes=10, channels=1, **options)
    return pipeline(path, model, scheduler_of("epsilon", schedule or {}, DDPMScheduler))


def recipe_of(teacher, *overrides):
    return load_recipe("dmd2/digits", [f"method.teacher={teacher}", *overrides])


def test_a_teacher_s_noise_levels_bound_the_recipe_s(tmp_path):
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    path = digits_teacher(tmp_path / "a", schedule)
    with pytest.raises(UserError, match=r"knows noise levels up to 14\.61") as error:
        make_method(recipe_of(path), load_digits())
    assert "method.sigma_max is 80 and method.conditioning_sigma is 80" in str(error.value)
    limit = str(error.value).split("up to ")[1].split(",")[0]
    table = 1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert 0 <= math.sqrt(1 / table.prod().item() - 1) - float(limit) < 1e-4
    levels = [f"method.{key}={limit}" for key in ("sigma_max", "conditioning_sigma")]
    teacher = open_teacher(recipe_of(path, *levels).method, load_digits(), 0.75)
    assert teacher.sigma_data == 0.75  # the recipe's, for the folder has none
    with pytest.raises(UserError, match=r"method\.conditioning_sigma is 15"):
        make_method(recipe_of(path, *levels, "method.conditioning_sigma=15"), load_digits())


def test_what_was_assumed_is_said_when_it_is_used(tmp_path, capsys):
    unet(num_classes=10, channels=1).save_pretrained(tmp_path / "bare")
    open_teacher(recipe_of(tmp_path / "bare").method, load_digits(), 0.75)
    assert "warning: method.teacher: there is no scheduler_config.json in" in capsys.readouterr().err
    open_teacher(recipe_of(digits_teacher(tmp_path / "a")).method, load_digits(), 0.75)
    assert capsys.readouterr().err == ""


def test_a_wrong_folder_is_told_by_its_key(tmp_path, mistake):
    path = digits_teacher(tmp_path / "a")
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    message = mistake("train", "dmd2/digits", f"method.teacher={path}", "--out", tmp_path / "run")
    assert "error: method.teacher: there is no diffusion_pytorch_model.safetensors in" in message
    assert not (tmp_path / "run").exists()


def test_one_step_from_noise_alone(case):
    """What a student of any such teacher is before it has learned: the formula, at the conditioning level."""
    path, _, _ = case
    teacher = read_teacher(path)
    prediction, sigma = teacher.denoiser_config["prediction"], min(80.0, teacher.denoiser.sigma_max)
    student = teacher.derive({"name": "few_step", "sigmas": [sigma]}, teacher.info)
    n = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    label = None if student.num_classes is None else torch.arange(3)
    alpha = 1 / math.sqrt(1 + sigma**2)
    with torch.no_grad():
        out = student.denoiser.network(sigma * alpha * n, student.denoiser.timestep(torch.full((3,), sigma)), label)
    expected = {
        "epsilon": sigma * n - sigma * out,
        "v_prediction": alpha**2 * sigma * n - sigma * alpha * out,
        "sample": out,
    }[prediction]
    found = student.sample(3, seed=5)
    assert 0.05 < found.abs().mean() < 1
    torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=0, atol=1e-3)


def test_distilled_from_its_folder(tmp_path, done):
    """Two steps of DMD2 with the adversarial head on a folder of images; then samples, and the table with the teacher's row."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 20), ("test", 20)):
        for k, name in enumerate(("dark", "light")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                Image.fromarray(rng.integers(120 * k, 120 * k + 90, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    path = pipeline(tmp_path / "teacher", unet(num_classes=2), scheduler_of("v_prediction", {}, DDPMScheduler))
    recipe = {
        "method": {"name": "dmd2", "teacher": str(path), "gan": True, "dfake_gen_update_ratio": 1, "generator_optimizer": {"lr": 1e-3}},
        "data": {"name": "images", "path": str(tmp_path / "images"), "size": 8},
        "network": {"name": "teacher", "sigma_data": 0.6},
        "trainer": {"accelerator": "cpu", "checkpoint_every": 1},
        "steps": 2,
        "batch_size": 8,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = tmp_path / "run"
    done("train", tmp_path / "recipe.yaml", "--out", run)
    student, teacher = fewstep.load(run), fewstep.load(run / "teacher")
    assert teacher.denoiser_config == student.denoiser_config == read_teacher(path).denoiser_config
    assert teacher.sigma_data == student.sigma_data == 0.6
    assert student.sampler == {"name": "few_step", "sigmas": [80.0]}
    moved = [not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True)]
    assert all(moved)
    torch.testing.assert_close(teacher.state_dict(), read_teacher(path).state_dict(), rtol=0, atol=0)
    done("sample", run, "-n", 4, "--out", tmp_path / "a.png")
    done("evaluate", run, "-n", 40)
    rows = list(json.loads((run / "results.json").read_text())["rows"])
    assert rows[1:] == ["teacher, 35 evaluations", "teacher, 1 evaluation", "student, 1 evaluation"]
    shutil.rmtree(path)  # the run needs it no more
    done("train", tmp_path / "recipe.yaml", "--out", run, "--resume")


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_config_that_asks_for_far_more_than_there_is_takes_no_memory(with_weights, tmp_path):
    pipeline(tmp_path / "p", unet())
    edited(tmp_path / "p" / "unet" / "config.json", block_out_channels=[2**17, 2**18])
    if not with_weights:
        (tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        read_teacher(tmp_path / "p")
    told = str(caught.value)
    assert len(told.splitlines()) == 1
    assert ("and its files hold" if with_weights else "of memory are available") in told
