import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewstep.build import load_data, make_generator, make_method, open_teacher
from fewstep.data import load_digits
from fewstep.errors import UserError
from fewstep.methods import Ramp
from fewstep.networks.dit.settings import DiTSettings
from fewstep.recipe import load_recipe
from fewstep.training.run_folder import RunFolder


@pytest.fixture
def altered(teacher_run, tmp_path):
    """``altered(key=value, ...)``: the teacher's model folder with another config.json."""

    def call(**changes):
        folder = shutil.copytree(teacher_run / "model", tmp_path / "altered", dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    return call


def student_recipe(teacher, *overrides: str):
    return load_recipe("dmd2/digits", [f"method.teacher={teacher}", *overrides])


def refused(recipe, data=None) -> str:
    with pytest.raises(UserError) as error:
        make_method(recipe, data or load_digits())
    return str(error.value)


# --- the teacher -----------------------------------------------------------------------------------------------------


def test_a_teacher_that_fits(teacher_run):
    recipe = student_recipe(teacher_run)
    for place in (teacher_run, teacher_run / "model"):
        teacher = open_teacher(student_recipe(place).method, load_digits(), recipe.network.sigma_data)
        assert teacher.info["method"] == "teacher"


def test_a_teacher_of_another_sigma_data(teacher_run):
    message = refused(student_recipe(teacher_run, "network.sigma_data=0.5"))
    assert f"the teacher {teacher_run} does not fit this recipe: " in message
    assert "its sigma_data is 0.75, network.sigma_data is 0.5" in message
    assert "shape" not in message
    assert "classes" not in message


def test_a_teacher_of_other_classes(teacher_run):
    data = dataclasses.replace(load_digits(), class_names=("odd", "even"))
    message = refused(student_recipe(teacher_run), data)
    assert "it knows 10 classes, the data digits has 2" in message
    assert "sigma_data" not in message
    data = dataclasses.replace(load_digits(), class_names=(), train_label=None, heldout_label=None)
    assert "it knows 10 classes, the data digits has none" in refused(student_recipe(teacher_run), data)


def test_a_teacher_of_another_shape(altered):
    message = refused(student_recipe(altered(shape=[1, 16, 16])))
    assert "it makes items of shape [1, 16, 16], the data digits has [1, 8, 8]" in message
    assert "classes" not in message


def test_settings_that_would_fit_are_named_where_they_mend_all(altered, teacher_run):
    """A sigma_data that fits helps nobody whose data has another size, which no setting of it changes."""
    assert "Settings that fit it: network.sigma_data=0.75. Give" in refused(student_recipe(teacher_run, "network.sigma_data=0.5"))
    message = refused(student_recipe(altered(shape=[1, 16, 16]), "network.sigma_data=0.5"))
    assert "its sigma_data is 0.75, network.sigma_data is 0.5. Give another teacher" in message
    assert "Settings that fit" not in message


def test_a_distilled_generator_is_no_teacher(student_run):
    message = refused(student_recipe(student_run))
    assert f"the teacher {student_run} does not fit this recipe" in message
    assert "it is a few-step generator, which denoises at its own noise levels only" in message
    assert "Give another teacher" in message


def test_what_draws_from_the_posterior_is_no_teacher(dddm_run, teacher_run, mistake, tmp_path):
    message = refused(student_recipe(dddm_run))
    assert message == (
        f"the teacher {dddm_run} does not fit this recipe: it draws samples of the posterior, and a teacher gives the mean of the "
        "posterior. Give another teacher, or change the recipe"
    )
    assert message in mistake("train", "dmd2/digits", f"method.teacher={dddm_run}", "--out", tmp_path / "run")
    both = refused(student_recipe(dddm_run, "network.sigma_data=0.5"))
    assert "its sigma_data is 0.75, network.sigma_data is 0.5; it draws samples of the posterior" in both
    assert not (tmp_path / "run").exists()


def test_what_draws_from_the_posterior_gives_no_features(dddm_run, teacher_run, mistake, tmp_path):
    """Its network is asked with xi, and has no bottleneck of one image."""
    options = ["network.widths=[8]", "batch_size=8", "steps=1"]
    message = refused(load_recipe("drift/digits", [*options, f"method.features={dddm_run}"]))
    assert message == f"method.features is '{dddm_run}', which is no U-Net that denoises items of shape [1, 8, 8]; give one that is"
    assert message in mistake("train", "drift/digits", *options, f"method.features={dddm_run}", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    make_method(load_recipe("drift/digits", [*options, f"method.features={teacher_run}"]), load_digits())  # a teacher does


def test_a_dddm_run_that_is_damaged_is_named_where_it_was_to_be_used(dddm_run, tmp_path):
    folder = shutil.copytree(dddm_run / "model", tmp_path / "damaged")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sampler": {**config["sampler"], "churn": 2}}))
    for recipe, key in (("dmd2/digits", "teacher"), ("drift/digits", "features")):
        message = refused(load_recipe(recipe, [f"method.{key}={folder}"]))
        assert f"method.{key}" in message
        assert f"the generator in {folder} cannot be read" in message
        assert "churn lie from 0 to 1" in message


def test_all_that_does_not_fit_comes_in_one_message(altered):
    folder = altered(shape=[1, 16, 16], sigma_data=0.5, sampler={"name": "few_step", "sigmas": [80.0]})
    data = dataclasses.replace(load_digits(), class_names=("odd", "even"))
    message = refused(student_recipe(folder), data)
    for words in ("shape [1, 16, 16]", "10 classes", "its sigma_data is 0.5, network.sigma_data is 0.75", "few-step generator"):
        assert words in message
    assert message.count("does not fit") == 1


def test_a_teacher_that_does_not_fit_at_the_command_line(mistake, student_run, tmp_path):
    message = mistake("train", "dmd2/digits", f"method.teacher={student_run}", "network.sigma_data=0.5", "--out", tmp_path / "run")
    assert "few-step generator" in message
    assert "network.sigma_data is 0.5" in message
    assert not (tmp_path / "run").exists()


def test_guidance_needs_a_teacher_that_was_trained_for_it(altered, teacher_run):
    info = json.loads((teacher_run / "model" / "config.json").read_text())["info"]
    make_method(student_recipe(teacher_run, "method.guidance_scale=2"), load_digits())
    message = refused(student_recipe(altered(info=info | {"label_dropout": 0.0}), "method.guidance_scale=2"))
    assert "method.guidance_scale is 2" in message
    assert "label dropout" in message


def test_no_teacher_names_the_command_for_ones_own_data(tmp_path):
    data = dataclasses.replace(load_digits(), name="cats")
    message = refused(load_recipe("dmd2/digits"), data)
    assert "method.teacher is missing" in message
    assert "fewstep train your-teacher.yaml --out runs/teacher" in message
    assert "fewstep import" not in message  # published ones are of coloured images
    colours = dataclasses.replace(data, train=data.train.repeat(1, 3, 1, 1))
    assert "fewstep import FILE --out runs/teacher" in refused(load_recipe("dmd2/digits"), colours)


def test_the_teachers_copy_in_the_run_folder_comes_first(teacher_run, student_run):
    recipe = student_recipe("/gone/for/ever")
    method = make_method(recipe, load_digits(), student_run / "teacher")
    original = open_teacher(student_recipe(teacher_run).method, load_digits(), 0.75)
    assert torch.equal(next(method.teacher.parameters()), next(original.parameters()))


@pytest.mark.parametrize(("channels", "groups"), [([8, 16], 4), ([12, 24], 6)])
def test_any_teacher_can_be_given_the_adversarial_head(channels, groups, tmp_path):
    recipe = load_recipe("teacher/digits", [f"network.channels={channels}", f"network.groups={groups}", "network.head_dim=4"])
    generator = make_method(recipe, load_digits()).generator
    RunFolder(tmp_path).save_model(generator, tmp_path / "model")
    method = make_method(student_recipe(tmp_path / "model", "method.gan=true"), load_digits())
    assert "head" in method.networks


# --- networks and seeds ----------------------------------------------------------------------------------------------


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_initial_weights_depend_on_the_seed_alone(teacher_overrides):
    data = load_digits()

    def initial(*overrides: str) -> torch.Tensor:
        return weights(make_method(load_recipe("teacher/digits", [*teacher_overrides, *overrides]), data).generator)

    torch.manual_seed(1)
    one = initial()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(one, initial("steps=99", "batch_size=3"))
    assert not torch.equal(one, initial("seed=1"))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # and the process's random state is left alone


def test_a_generator_of_any_kind_can_be_asked_for(teacher_overrides):
    """What a method of one's own makes itself from: the recipe's network or another, with what it is to take beside."""
    data, recipe = load_digits(), load_recipe("teacher/digits", [*teacher_overrides, "seed=3"])
    sampler = {"name": "few_step", "sigmas": [80.0]}
    generator = make_generator(recipe, data, sampler)
    assert (generator.sampler, generator.denoiser_config) == (sampler, {"name": "preconditioned"})
    assert (generator.network_config["channels"], generator.sigma_data, generator.num_classes) == ([8, 32], 0.75, 10)
    assert generator.info == {"data": "digits", "class_names": [str(k) for k in range(10)]}
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(generator.denoiser(x, torch.tensor(0.75)), x / 2)  # c_skip x: it starts silent
    assert torch.equal(weights(generator), weights(make_generator(recipe, data, sampler)))
    posterior = ({"name": "distributional", "steps": 2, "churn": 1.0}, {"name": "distributional", "output": "edm"})
    other = make_generator(
        recipe, data, *posterior, DiTSettings(name="dit", patch=2, width=8, depth=1, heads=2, sigma_data=0.5), xi_channels=3
    )
    assert (other.network_config["name"], other.sigma_data, other.denoiser.output) == ("dit", 0.5, "edm")
    assert other.denoiser.xi_shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"network\.patch is 3"):
        make_generator(recipe, data, sampler, network=DiTSettings(name="dit", patch=3))


def test_a_head_depends_on_the_seed_alone(teacher_run):
    def head(*overrides: str) -> torch.Tensor:
        return weights(make_method(student_recipe(teacher_run, "method.gan=true", *overrides), load_digits()).networks["head"])

    torch.manual_seed(1)
    one = head()
    torch.manual_seed(2)
    assert torch.equal(one, head())
    assert not torch.equal(one, head("seed=1"))


def test_the_recipe_reaches_the_method(teacher_run):
    """Every setting of a method arrives where it acts."""
    overrides = "loss=dmd gamma=1.5 guidance_scale=2.5 dfake_gen_update_ratio=4 conditioning_sigma=40. min_step_percent=.1"
    overrides += " min_step_start=.4 min_step_warmup=.3 generator_optimizer.decay=cosine table_scale=7."
    overrides += " max_step_percent=.5 num_train_timesteps=100 sigma_min=.01 sigma_max=50. rho=5. generator_optimizer.lr=1e-3"
    overrides += " generator_optimizer.warmup=3 generator_optimizer.decay_from=.5 generator_optimizer.final=.1 guidance_optimizer.lr=2e-3"
    overrides += " beta1=.8 beta2=.95 weight_decay=.03 clip=2. reuse_generator_batch=false"  # of an older form: of both
    overrides += " gan=true gan_weight_generator=.7 gan_weight_guidance=.3 sid_alpha=1.2"
    overrides += (
        " sampler_steps=2 sampler_sigmas=[40.,3.] fake_per_step=false inputs=noised_data fake_min_step_percent=.2 fake_max_step_percent=.9"
    )
    overrides += " gan_features=teacher gan_levels=2 r1_weight=4. r1=exact r1_alpha=.2 f_divergence=kl"
    method = make_method(student_recipe(teacher_run, *(f"method.{o}" for o in overrides.split())), load_digits())
    generator, guidance = method.turns
    assert (generator.every, guidance.every) == (4, 1)
    common = {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.03, "clip": 2.0}
    assert generator.optimizer.model_dump() == {"lr": 1e-3, "warmup": 3, "decay_from": 0.5, "final": 0.1, "decay": "cosine", **common}
    assert guidance.optimizer.model_dump() == {"lr": 2e-3, "warmup": 0, "decay_from": 1.0, "final": 1.0, "decay": "linear", **common}
    assert (generator.scales, guidance.scales) == ({}, {})  # a U-Net has no tables
    assert method.settings.table_scale == 7.0
    settings = method.settings
    assert (settings.loss, settings.sid_alpha, settings.gamma) == ("dmd", 1.2, 1.5)
    assert (settings.guidance_scale, method.sigmas) == (2.5, [40.0, 3.0])
    assert (method.generate.sigmas, method.generate.inputs) == ([40.0, 3.0], "noised_data")
    assert not method.stepwise
    assert (method.fake_first, method.fake_last) == (20, 90)
    critic = method.critic
    assert critic.settings is settings
    assert (settings.gan_features, settings.gan_levels, len(method.networks["head"].heads)) == ("teacher", 2, 2)
    assert (settings.r1_weight, settings.r1, settings.r1_alpha, settings.f_divergence) == (4.0, "exact", 0.2, "kl")
    assert method.first == Ramp(0.1, 0.4, 105)  # 0.3 of the 350 generator updates in 1400 steps
    assert (method.last, len(method.levels)) == (50, 100)
    assert method.levels[0].item() == pytest.approx(0.01)
    assert method.levels[-1].item() == pytest.approx(50)
    assert not settings.reuse_generator_batch
    assert (critic.weight, settings.gan_weight_guidance, critic.auto, critic.warmup) == (0.7, 0.3, False, 3)


def test_the_recipe_reaches_the_teacher(teacher_overrides):
    overrides = "sigma_sampling=karras sigma_mean=-1. sigma_std=1.5 num_train_timesteps=50 sigma_min=.01 sigma_max=40. rho=5."
    overrides += " label_dropout=.25 sampler=euler sampler_steps=7"
    optimizer = {"lr": 1e-2, "warmup": 5, "decay_from": 0.3, "final": 0.2, "decay": "linear"}
    optimizer |= {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.03, "clip": 2.0}
    overrides += "".join(f" optimizer.{key}={value}" for key, value in optimizer.items())
    recipe = load_recipe("teacher/digits", [*teacher_overrides, "network.sigma_data=0.6", *(f"method.{o}" for o in overrides.split())])
    method = make_method(recipe, load_digits())
    (turn,) = method.turns
    assert turn.optimizer.model_dump() == optimizer
    assert (turn.every, turn.scales) == (1, {})
    settings = method.settings
    assert (settings.sigma_sampling, settings.sigma_mean, settings.sigma_std, method.label_dropout) == ("karras", -1.0, 1.5, 0.25)
    assert method.generator.sampler == {"name": "euler", "steps": 7, "sigma_min": 0.01, "sigma_max": 40.0, "rho": 5.0}
    assert method.generator.sigma_data == 0.6
    assert len(method.levels) == 50
    assert sorted(method.levels.tolist())[0] == pytest.approx(0.01)


# --- distributional diffusion ----------------------------------------------------------------------------------------


DIT = "network={name: dit, patch: 2, width: 8, depth: 3, heads: 2}"
ON_DIGITS = ("data={name: digits}", DIT)


def dddm(*overrides: str):
    """The method of a small dddm/ring, on digits with `ON_DIGITS`."""
    recipe = load_recipe("dddm/ring", [*([] if ON_DIGITS[0] in overrides else ["data.size=500", "network.widths=[8]"]), *overrides])
    return make_method(recipe, load_data(recipe.data))


def test_the_recipe_reaches_the_distributional_method():
    overrides = "m=3 beta=.7 lam=.8 lam_warmup=.25 bias=-2. xi_channels=5 output=edm sampler_steps=7 churn=.3 label_dropout=.2"
    optimizer = {"lr": 1e-2, "warmup": 5, "decay_from": 0.3, "final": 0.2, "decay": "cosine"}
    optimizer |= {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.03, "clip": 2.0}
    overrides += "".join(f" optimizer.{key}={value}" for key, value in optimizer.items())
    method = dddm(*ON_DIGITS, "steps=400", "network.xi_block=2", "network.sigma_data=.7", *(f"method.{o}" for o in overrides.split()))
    (turn,) = method.turns
    assert turn.optimizer.model_dump() == optimizer
    assert (turn.every, turn.scales) == (1, {})
    assert (method.m, method.beta, method.settings.bias, method.label_dropout) == (3, 0.7, -2.0, 0.2)
    assert method.lam == Ramp(0.8, 0.0, 100)  # a quarter of 400 steps
    generator = method.generator
    assert generator.sampler == {"name": "distributional", "steps": 7, "churn": 0.3}
    assert generator.denoiser_config == {"name": "distributional", "output": "edm"}
    assert (generator.sigma_data, generator.denoiser.output, generator.denoiser.xi_shape) == (0.7, "edm", (5, 8, 8))
    network = generator.denoiser.network
    assert (network.patch, len(network.blocks), network.blocks[0].heads, network.xi_block) == (2, 3, 2, 2)


def test_what_a_distributional_recipe_leaves_open_comes_from_the_data():
    method = dddm("method.label_dropout=.2")
    assert method.lam == Ramp(1.0)
    assert method.label_dropout == 0  # the ring has no classes
    assert method.generator.denoiser.xi_shape == (2,)  # as many numbers as a point
    assert method.generator.sigma_data == pytest.approx(3 / 2**0.5, rel=0.05)  # a ring of radius 3
    assert dddm(*ON_DIGITS).generator.denoiser.xi_shape == (1, 8, 8)


def test_plain_diffusion_is_a_setting_of_it():
    method = dddm("method.m=1", "method.lam=0.", "method.beta=2")
    assert (method.m, method.lam(0), method.beta) == (1, 0.0, 2)


def test_a_unet_that_draws_starts_silent_too():
    method = dddm("data={name: digits}", "network={name: unet, channels: [8, 16], groups: 4, head_dim: 8}")
    x, xi = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 1, 8, 8)
    assert not method.generator.denoiser(x, torch.tensor(0.5), None, xi).any()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("network.patch=3", "network.patch is 3, which does not divide images of 8x8; allowed: [1, 2, 4, 8]"),
        ("network.heads=3", "network.width is 8; it must be divisible by network.heads 3"),
        ("network.xi_block=3", "network.xi_block is 3; allowed: 0 to 2"),
    ],
)
def test_a_transformer_that_does_not_fit_the_images(override, says):
    with pytest.raises(UserError) as error:
        dddm(*ON_DIGITS, override)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_transformer_s_patch_is_checked_at_the_command_line(mistake, tmp_path):
    for options in (["--dry-run"], ["--out", tmp_path / "run"]):
        message = mistake("train", "dddm/ring", "data={name: digits}", "network={name: dit, patch: 3}", *options)
        assert message == "error: network.patch is 3, which does not divide images of 8x8; allowed: [1, 2, 4, 8]\n"
    assert not (tmp_path / "run").exists()


def test_a_diffusion_teacher_may_be_a_transformer():
    recipe = load_recipe("teacher/digits", [DIT])
    method = make_method(recipe, load_digits())
    x = torch.randn(2, 1, 8, 8)
    denoised = method.generator.denoiser(x, torch.tensor(0.5), torch.tensor([3, 10]))
    torch.testing.assert_close(denoised, x * 0.25 / (0.25 + 0.25))  # c_skip x, for it starts silent


# --- data ------------------------------------------------------------------------------------------------------------


def images_recipe(path, *overrides: str):
    return load_recipe("teacher/digits", ["data.name=images", f"data.path={path}", *overrides])


@pytest.mark.parametrize("kind", ["nothing", "file", "empty"])
def test_data_that_is_not_there(kind, tmp_path):
    path = tmp_path / "data"
    if kind == "file":
        path.touch()
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(UserError, match=str(path)) as error:
        load_data(images_recipe(path).data)
    assert "data.path" in str(error.value)
    assert "empty" in str(error.value) if kind == "empty" else "not a folder" in str(error.value)


def test_data_of_ones_own_reaches_the_loop(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for k in range(6):
            Image.fromarray(np.full((20, 24, 3), 40 * k, np.uint8)).save(tmp_path / label / f"{k}.png")
    data = load_data(images_recipe(tmp_path, "data.size=16", "data.channels=1", "data.holdout=0.5", "data.flip=true").data)
    assert data.shape == (1, 16, 16)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.heldout), data.flip) == (6, 6, True)


def test_photos_that_are_asked_for_too_large():
    with pytest.raises(UserError, match=r"data\.size is 400"):
        load_data(load_recipe("teacher/digits", ["data.name=photos", "data.size=400"]).data)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("final=0.1",), "method.generator_optimizer.final is 0.1, and the learning rate never falls, as"),
        (("decay_from=0.5",), "method.generator_optimizer.decay_from is 0.5, and the learning rate never falls, as"),
        (("final=0.1", "decay_from=0.5"), None),
        (("final=0.1", "decay_from=1.0"), None),
        ((), None),
    ],
)
def test_half_of_a_decay_is_said_to_do_nothing(given, said, teacher_run, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"method: {{name: dmd2, teacher: {teacher_run}}}\ndata: {{name: digits}}\nnetwork: {{name: teacher, sigma_data: 0.75}}\n"
    )
    make_method(load_recipe(str(recipe), [f"method.generator_optimizer.{one}" for one in given]), load_digits())
    told = " ".join(capsys.readouterr().err.split())
    assert (said in told) if said else ("never falls" not in told)
