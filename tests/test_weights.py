"""Weights and configs that are not what they should be are refused, naming the tensor, before memory is taken for them."""

import copy
import json
import math
import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from copies import in_a_copy
from fewstep import load
from fewstep.errors import UserError
from fewstep.generator import Generator

NETWORK = {"name": "unet", "channels": [8, 16], "layers_per_block": 1, "groups": 4, "head_dim": 8}
SAMPLER = {"name": "heun", "steps": 3, "sigma_min": 0.01, "sigma_max": 10.0, "rho": 7.0}


@pytest.fixture
def model(tmp_path):
    """A sound model folder."""
    torch.manual_seed(0)
    Generator((1, 8, 8), 3, 0.5, NETWORK, SAMPLER).save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").sample(2, seed=0).isfinite().all()
    return tmp_path / "model"


def changed(model, change):
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors")


def refusal(model):
    with pytest.raises(UserError) as caught:
        load(model)
    text = str(caught.value)
    assert text.startswith(f"the generator in {model} cannot be read (")
    assert "\n" not in text
    return text


NAME = "denoiser.network.unet.conv_in.weight"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [NAME, "denoiser.network.unet.conv_out.bias", "denoiser.network.unet.class_embedding.weight"])
def test_a_weight_that_is_not_finite_is_named(name, value, model):
    changed(model, lambda weights: weights[name].view(-1)[:1].fill_(value))
    assert f"{name} holds 1 of " in refusal(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.update({NAME: w[NAME].long()}), f"{NAME} is of type I64; weights are floating point"),
        (lambda w: w.update({NAME: w[NAME] > 0}), f"{NAME} is of type BOOL"),
        (
            lambda w: w.update({NAME: w[NAME][:4].contiguous()}),
            f"{NAME} has shape [4, 1, 3, 3], and the network in config.json",
        ),
        (lambda w: w.update({NAME: w[NAME].flatten()}), f"{NAME} has shape [72]"),
        (lambda w: w.pop(NAME), f"model.safetensors has no {NAME}"),
        (lambda w: w.update({"more": torch.zeros(1)}), "model.safetensors has more, which"),
    ],
)
def test_tensors_that_are_not_the_networks_are_named(change, said, model):
    changed(model, change)
    assert said in refusal(model)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_floating_type_are_read(kind, model):
    before = load(model).state_dict()
    changed(model, lambda weights: weights.update({name: x.to(kind) for name, x in weights.items()}))
    for name, x in load(model).state_dict().items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, before[name], rtol=1e-2, atol=1e-2)


def with_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = config
        for part in path:
            inner = inner[part]
        inner[last] = value
    (model / "config.json").write_text(json.dumps(config))


HUGE = [
    {"network__layers_per_block": 10**9},
    {"network__layers_per_block": 30_000},
    {"network__channels": [8] * 20_000},
    {"network__channels": [10**9, 10**9], "network__groups": 1},
    {"network__channels": [2**20, 2**20], "network__groups": 1},
    {"num_classes": 10**12},
]


@pytest.mark.parametrize("changes", HUGE, ids=[str(next(iter(changes.values())))[:12] for changes in HUGE])
def test_a_network_larger_than_its_weights_takes_no_memory(changes, model, tmp_path):
    """In a process that may not have more than 3 GiB beyond what importing takes, and in seconds."""
    with_config(model, **changes)

    def limited() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30,) * 2)
        try:
            load(model)
        except UserError as error:
            sys.stdout.write(str(error))

    ended = in_a_copy(limited, tmp_path / "said", seconds=60)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"the generator in {model} cannot be read (")
    assert "MemoryError" not in ended.out
    assert "not enough memory" not in ended.out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma_data": 0.0}, "sigma_data is 0.0; it must be a finite number above 0"),
        ({"sigma_data": -1}, "sigma_data is -1"),
        ({"sigma_data": math.nan}, "sigma_data is nan"),
        ({"sigma_data": "0.5"}, "sigma_data is '0.5'"),
        ({"sampler__steps": 0}, "steps must be a whole number"),
        ({"sampler__steps": 10**9}, "steps must be a whole number up to 100000"),
        ({"sampler__steps": True}, "steps must be a whole number"),
        ({"sampler__sigma_min": 20.0}, "sigma_min must be below sigma_max"),
        ({"sampler__sigma_min": 0}, "sigma_min must be a finite number above 0"),
        ({"sampler__sigma_max": math.inf}, "sigma_max must be a finite number above 0"),
        ({"sampler__rho": -7}, "rho must be a finite number above 0"),
        ({"sampler": {"name": "few_step", "sigmas": []}}, "noise levels must be finite numbers above 0 that fall"),
        ({"sampler": {"name": "few_step", "sigmas": [1.0, 2.0]}}, "noise levels must be"),
        ({"sampler": {"name": "few_step", "sigmas": [1.0, -2.0]}}, "noise levels must be"),
        ({"sampler": {"name": "few_step", "sigmas": [math.nan]}}, "noise levels must be"),
        ({"sampler": {"name": "few_step", "levels": [[80.0], [80.0, 90.0]], "steps": 1}}, "noise levels must be"),
    ],
)
def test_settings_of_a_model_folder_are_held_to_what_a_recipe_may_say(changes, said, model):
    with_config(model, **changes)
    assert said in refusal(model)


def broken(model):
    """A generator whose weights are finite and whose samples are not."""
    changed(model, lambda weights: weights["denoiser.network.unet.conv_out.weight"].fill_(3e38))
    return model


def test_samples_that_are_not_finite_are_an_error_everywhere(model, mistake, teacher_run, tmp_path):
    path = broken(model)
    with pytest.raises(UserError, match=r"4 of 4 samples are not finite \(NaN or infinity\)"):
        load(path).sample(4, seed=0)
    told = mistake("sample", path, "-n", 4, "--out", tmp_path / "a.npz")
    assert "4 of 4 samples are not finite" in told
    assert not (tmp_path / "a.npz").exists()


def test_export_and_evaluation_of_such_a_run_say_it_too(mistake, student_run, tmp_path):
    import shutil

    run = shutil.copytree(student_run, tmp_path / "run")
    weights = load_file(run / "model" / "model.safetensors")
    last = next(name for name in weights if name.endswith("conv_out.weight"))
    weights[last].fill_(3e38)
    save_file(weights, run / "model" / "model.safetensors")
    assert "samples are not finite" in mistake("evaluate", run, "-n", 50)
    assert "samples are not finite" in mistake("export", run, "--format", "onnx", "--out", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
    assert not (run / "results.json").exists()


def test_what_is_sound_is_not_touched(model):
    config = json.loads((model / "config.json").read_text())
    before = copy.deepcopy(config)
    generator = load(model)
    assert generator.config == before
