import io
import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import hub_mixin
from PIL import Image

import fewstep
from fewstep.denoisers import DistributionalDenoiser, ForeignDenoiser, Guided, PreconditionedDenoiser, PushForward
from fewstep.errors import UserError
from fewstep.generator import Generator, frozen
from fewstep.pipelines.reference import LORA_FILE
from fewstep.samplers import distributional, euler, few_step, heun
from fewstep.streams import Noise

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
TEACHER = {"name": "heun", "steps": 3, **GRID}
STUDENT = {"name": "few_step", "sigmas": [80.0, 2.0]}
LEVELS = {"name": "few_step", "levels": [[80.0], [80.0, 2.0], [80.0, 8.0, 1.0]], "steps": 2}
DRAWING = {"name": "distributional", "steps": 4, "churn": 1.0}
MAP = {"name": "push_forward"}
UNET = {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8}
DDPM = {"name": "ddpm", "prediction": "epsilon", "betas": {"schedule": "linear", "num": 1000, "start": 1e-4, "end": 0.02}}


def make(sampler=TEACHER, num_classes=3, label_dropout=0.1, seed=0, denoiser=None):
    torch.manual_seed(seed)
    network, info = dict(UNET), {"label_dropout": label_dropout, "method": "none"}
    if sampler["name"] == "distributional":
        network["xi_channels"] = 2
        denoiser = denoiser or {"name": "distributional"}
    if sampler["name"] == "push_forward":
        network["name"] = "latent_unet"
        denoiser = denoiser or {"name": "push_forward"}
    return Generator((1, 8, 8), num_classes, 0.6, network, sampler, info, denoiser).eval()


@pytest.fixture
def folder(tmp_path):
    """A saved model folder, and what its generator samples."""
    generator = make()
    generator.save_pretrained(tmp_path / "model")
    return tmp_path / "model", generator.sample(5, seed=3)


# --- sampling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [TEACHER, STUDENT, DRAWING])
def test_a_seed_gives_the_same_samples_and_touches_no_other_chance(sampler):
    generator = make(sampler)
    before = torch.get_rng_state()
    first, again, other = (generator.sample(5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(generator.sample(5), generator.sample(5))  # no seed: a new one each time
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("arguments", "sampler"), [({}, heun), ({"sampler": "euler"}, euler), ({"steps": 7}, heun)])
def test_samples_are_the_sampler_s_clamped(arguments, sampler):
    generator, num, steps = make(), 5, arguments.get("steps", 3)
    latents = torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    sigmas = torch.tensor([(80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)]).double()
    with torch.no_grad():
        expected = sampler(generator.denoiser, latents, sigmas, torch.tensor([0, 1, 2, 0, 1]))
    found = generator.sample(num, seed=4, **arguments)
    torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=1e-3, atol=1e-4)


def test_images_are_clamped_to_the_range_of_pixels():
    generator = make(STUDENT)
    with torch.no_grad():
        generator.denoiser.network.unet.conv_out.weight.mul_(20)
        raw = few_step(generator.denoiser, torch.randn(8, 1, 8, 8), torch.tensor([80.0]), torch.zeros(8, dtype=torch.long))
    assert raw.abs().max() > 1.5  # there is something to clamp
    samples = generator.sample(8, seed=0)
    assert (samples.min(), samples.max()) == (-1, 1)


def test_few_step_samples_go_through_the_levels_distilled_for():
    generator = make(STUDENT)
    rng = torch.Generator().manual_seed(4)
    latents = torch.randn(5, 1, 8, 8, generator=rng)
    with torch.no_grad():
        expected = few_step(generator.denoiser, latents, torch.tensor([80.0, 2.0]), torch.tensor([0, 1, 2, 0, 1]), Noise(rng))
    torch.testing.assert_close(generator.sample(5, seed=4), expected.clamp(-1, 1))
    assert torch.equal(generator.sample(5, seed=4, steps=2), generator.sample(5, seed=4))
    assert generator.evaluations() == 2
    assert make().evaluations() == 5
    assert make().evaluations(18) == 35
    assert make().evaluations(18, "euler") == 18


def test_batches_are_as_if_made_one_by_one():
    generator = make()
    whole = generator.sample(5, seed=4, labels=[2, 0])
    torch.testing.assert_close(generator.sample(5, seed=4, labels=[2, 0], batch_size=2), whole, rtol=0, atol=1e-3)


def test_guidance_is_passed_on():
    generator = make()
    latents = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = heun(Guided(generator.denoiser, 3.0), latents, generator.sigmas(), torch.tensor([0, 1, 2, 0, 1]))
    found = generator.sample(5, seed=4, guidance_scale=3.0)
    torch.testing.assert_close(found, expected.clamp(-1, 1))
    assert not torch.allclose(found, generator.sample(5, seed=4))


def test_guidance_of_its_own_is_kept_counted_and_can_be_set_otherwise(tmp_path):
    plain, guided = make(), make({**TEACHER, "guidance_scale": 3.0})
    guided.load_state_dict(plain.state_dict())
    assert (plain.guidance_scale, guided.guidance_scale) == (1.0, 3.0)
    assert (plain.evaluations(18), guided.evaluations(18), guided.evaluations(18, "euler")) == (35, 70, 36)
    assert (plain.evaluations(18, guidance_scale=3.0), guided.evaluations(18, guidance_scale=1.0)) == (70, 35)
    assert torch.equal(guided.sample(5, seed=4), plain.sample(5, seed=4, guidance_scale=3.0))
    assert torch.equal(guided.sample(5, seed=4, guidance_scale=1.0), plain.sample(5, seed=4))
    guided.save_pretrained(tmp_path / "guided")
    assert torch.equal(fewstep.load(tmp_path / "guided").sample(5, seed=4), guided.sample(5, seed=4))


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        (None, {}),  # of weights that nobody has given a licence
        ("MIT", {"license": "mit"}),
        ("CC BY-NC-SA 4.0 (of the official EDM checkpoints)", {"license": "cc-by-nc-sa-4.0"}),
        ("House Licence", {"license": "other", "license_name": "house-licence"}),
    ],
)
def test_the_card_for_the_hub_states_the_licence_that_is_known_by_the_hub_s_name(licence, fields, tmp_path):
    generator = make()
    generator.info |= {} if licence is None else {"licence": licence}
    generator.save_pretrained(tmp_path / "model")
    data = huggingface_hub.ModelCard.load(tmp_path / "model" / "README.md").data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == fields


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "much", True, 1e9])
def test_guidance_that_is_no_number_is_refused(scale):
    with pytest.raises(ValueError, match="guidance_scale is for heun, euler, distributional, flow_euler, and must be a finite number"):
        make({**TEACHER, "guidance_scale": scale})


def test_a_student_has_no_guidance_of_its_own():
    with pytest.raises(ValueError, match="guidance_scale is for heun, euler, distributional, flow_euler"):
        make({**STUDENT, "guidance_scale": 2.0})


def test_sampling_needs_no_dropout_and_leaves_the_mode_alone():
    generator = make().train()
    seen = []
    generator.denoiser.network.unet.mid_block.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    generator.sample(2)
    assert not any(seen)
    assert generator.training
    assert generator.denoiser.training
    assert generator.sample(2).requires_grad is False


# --- a denoiser that draws -----------------------------------------------------------------------------------------------


def drawn(generator, num=5, seed=4, steps=4, guidance_scale=1.0, **options):
    """What `distributional` makes of the generator's denoiser with the same chance."""
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn(num, 1, 8, 8, generator=rng)
    times = torch.tensor([k / steps for k in range(steps, 0, -1)], dtype=torch.float64)
    with torch.no_grad():
        denoiser = Guided.of(generator.denoiser, guidance_scale)
        return distributional(denoiser, latents, times, torch.arange(num) % 3, Noise(rng), **options).clamp(-1, 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_posterior_draws_go_down_the_times_in_any_number_of_steps(steps):
    generator, levels = make(DRAWING), []
    generator.denoiser.register_forward_pre_hook(lambda module, args: levels.append(args[1].item()))
    found = generator.sample(5, seed=4, steps=steps)
    assert levels == pytest.approx([(steps - k) / steps for k in range(steps)])
    assert generator.evaluations(steps) == steps
    torch.testing.assert_close(found, drawn(generator, steps=steps))


def test_without_a_number_of_steps_it_takes_its_sampler_s():
    generator = make(DRAWING)
    assert torch.equal(generator.sample(5, seed=4), generator.sample(5, seed=4, steps=4))
    assert generator.default_steps() == generator.evaluations() == 4
    torch.testing.assert_close(generator.sigmas(), torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))
    assert make({**DRAWING, "steps": 7}).evaluations() == 7


def test_churn_is_the_sampler_s_unless_another_is_asked_for():
    made = {}
    for own in (1.0, 0.25):
        generator = make({**DRAWING, "churn": own})
        made[own] = generator.sample(5, seed=4)
        torch.testing.assert_close(made[own], drawn(generator, churn=own))
        assert torch.equal(generator.sample(5, seed=4, churn=own), made[own])
    assert not torch.allclose(made[1.0], made[0.25])
    generator = make(DRAWING)
    still = generator.sample(5, seed=4, churn=0.0)  # 0 is a churn, and not none given
    torch.testing.assert_close(still, drawn(generator, churn=0.0))
    assert not torch.allclose(still, made[1.0])


def test_draws_can_be_guided():
    generator = make(DRAWING)
    found = generator.sample(5, seed=4, guidance_scale=3.0)
    torch.testing.assert_close(found, drawn(generator, guidance_scale=3.0))
    assert not torch.allclose(found, generator.sample(5, seed=4))


def test_which_generators_denoise_and_which_take_any_number_of_steps():
    assert [make(sampler).is_denoiser for sampler in (TEACHER, STUDENT, DRAWING)] == [True, False, False]
    assert [make(sampler).any_steps for sampler in (TEACHER, STUDENT, DRAWING)] == [True, False, True]


@pytest.mark.parametrize("output", ["x0", "edm"])
def test_a_generator_that_draws_has_the_output_its_config_names(output):
    denoiser = make(DRAWING, denoiser={"name": "distributional", "output": output}).denoiser
    assert isinstance(denoiser, DistributionalDenoiser)
    assert (denoiser.output, denoiser.sigma_data, denoiser.num_classes, denoiser.xi_shape) == (output, 0.6, 3, (2, 8, 8))


# --- several steps in one generator --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "levels"), [(1, [80.0]), (2, [80.0, 2.0]), (3, [80.0, 8.0, 1.0]), (None, [80.0, 2.0])])
def test_each_number_of_steps_has_levels_of_its_own(steps, levels):
    generator, seen = make(LEVELS), []
    assert (generator.default_steps(), generator.step_counts, generator.any_steps, generator.is_denoiser) == (2, [1, 2, 3], True, False)
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        latents = torch.randn(5, 1, 8, 8, generator=rng)
        expected = few_step(generator.denoiser, latents, torch.tensor(levels), torch.tensor([0, 1, 2, 0, 1]), Noise(rng))
    generator.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[1].item()))
    torch.testing.assert_close(generator.sample(5, seed=4, steps=steps), expected.clamp(-1, 1))
    assert seen == levels == generator.sigmas(steps).tolist()
    assert generator.evaluations(steps) == len(levels)


@pytest.mark.parametrize("steps", [0, 4, -1])
def test_a_number_of_steps_without_levels_is_refused(steps):
    with pytest.raises(UserError, match=f"steps is {steps}; this generator was made for 1, 2, 3: give one of these"):
        make(LEVELS).sample(2, steps=steps)


# --- a seed a sample -----------------------------------------------------------------------------------------------------

SEEDS, OF_CLASS = [3, 1, 4, 1, 2**64 - 1], [0, 2, 1, 2, 2]
WAYS = {
    "heun": (TEACHER, {}),
    "euler": (TEACHER, {"sampler": "euler"}),
    "a student of two steps": (STUDENT, {}),
    "a student of several": (LEVELS, {"steps": 3}),
    "a map": (MAP, {}),
    "posterior draws": (DRAWING, {}),
    "posterior draws without new noise": (DRAWING, {"churn": 0.0}),
    "guidance": (DRAWING, {"guidance_scale": 2.0, "steps": 2}),
}


@pytest.mark.parametrize("way", WAYS)
def test_with_a_seed_each_a_sample_depends_on_its_own_alone(way):
    """However samples are dealt into calls and batches; the tolerance is of convolutions in other batch sizes, far below what seeds do."""
    sampler, options = WAYS[way]
    generator = make(sampler)
    whole = generator.sample(5, OF_CLASS, SEEDS, **options)
    assert torch.equal(whole, generator.sample(5, OF_CLASS, SEEDS, **options))

    def same(found, expected):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)

    for batch_size in (1, 2, 3, 5):
        same(generator.sample(5, OF_CLASS, SEEDS, batch_size=batch_size, **options), whole)
    for i in range(5):
        same(generator.sample(1, OF_CLASS[i], [SEEDS[i]], **options), whole[i : i + 1])
    for part in (slice(0, 2), slice(2, 5)):
        same(generator.sample(len(SEEDS[part]), OF_CLASS[part], SEEDS[part], **options), whole[part])
    order = [4, 2, 0, 3, 1]
    same(generator.sample(5, [OF_CLASS[i] for i in order], tuple(SEEDS[i] for i in order), **options), whole[order])
    same(whole[1], whole[3])  # of one seed and one class
    for i, j in ((0, 1), (0, 2), (1, 2), (3, 4)):
        assert (whole[i] - whole[j]).abs().max() > 0.05, (i, j)


def test_the_noise_of_later_steps_is_a_sample_s_own_too():
    """Its latent, then what each step asks for, from one generator a sample; what another sample draws moves nothing."""
    generator, told = make(STUDENT), []
    generator.denoiser.register_forward_hook(lambda module, args, output: told.append((args[0], output)))
    generator.sample(3, 0, [7, 8, 9])
    (first, x), (second, _) = told
    for i, seed in enumerate((7, 8, 9)):
        rng = torch.Generator().manual_seed(seed)
        latent, noise = torch.randn(1, 8, 8, generator=rng), torch.randn(1, 8, 8, generator=rng)
        torch.testing.assert_close(first[i], 80.0 * latent)
        torch.testing.assert_close(second[i], x[i] + 2.0 * noise)


def test_seeds_touch_no_other_chance():
    generator = make(DRAWING)
    before = torch.get_rng_state()
    generator.sample(2, seed=[1, 2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        ([1], "there are 1 seeds for 2 samples; give one seed, or one for each sample"),
        ([1, 2, 3], "there are 3 seeds for 2 samples; give one seed, or one for each sample"),
        ([], "there are 0 seeds for 2 samples"),
        (2**64, "seed is 18446744073709551616; allowed are whole numbers of at most 64 bits"),
        (-(2**63) - 1, "seed is -9223372036854775809; allowed are whole numbers of at most 64 bits"),
        ([1, 2**64], "seed is 18446744073709551616; allowed"),
        ([1, 0.5], "seed is 0.5; allowed"),
        ([None, 1], "seed is None; allowed"),
    ],
)
def test_seeds_that_will_not_do_are_refused(seed, says):
    with pytest.raises(UserError, match=says):
        make().sample(2, seed=seed)


# --- labels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, [0, 1, 2, 0, 1]), (2, [2] * 5), ([1, 0], [1, 0, 1, 0, 1]), (torch.tensor([2, 2, 0, 1, 0, 1]), [2, 2, 0, 1, 0])],
)
def test_labels_are_repeated_to_length(given, expected):
    assert make().labels(5, given).tolist() == expected


@pytest.mark.parametrize("given", [3, -1, [0, 3], [], torch.tensor([], dtype=torch.long), [0.5], torch.tensor([1.0])])
def test_labels_that_do_not_exist_are_refused(given):
    with pytest.raises(UserError, match=r"labels are .* from 0 to 2"):
        make().sample(2, labels=given)


def test_labels_for_which_there_is_no_sample_are_refused_and_not_dropped():
    with pytest.raises(UserError, match="there are 3 labels for 2 samples; give one for each sample, or fewer, which are repeated"):
        make().sample(2, labels=[0, 1, 2])
    with pytest.raises(UserError, match="there are 4 labels for 2 samples"):
        next(make().batches(2, labels=torch.zeros(4, dtype=torch.long)))
    assert make().sample(3, labels=[0, 1, 2], batch_size=2).shape[0] == 3


def test_labels_need_classes():
    generator = make(num_classes=None)
    assert generator.labels(3) is None
    assert generator.sample(2, seed=0).isfinite().all()
    with pytest.raises(UserError, match="has no classes"):
        generator.sample(2, labels=[0])


# --- what it cannot serve ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "arguments", "says"),
    [
        (STUDENT, {"steps": 1}, "steps is 1; .* made for 2: leave steps out"),
        (STUDENT, {"steps": 3}, "steps is 3; .* made for 2: leave steps out"),
        (STUDENT, {"steps": 0}, "steps is 0; .* made for 2: leave steps out"),
        (TEACHER, {"steps": 0}, "steps is 0"),
        (TEACHER, {"steps": -2}, "steps is -2"),
        (STUDENT, {"sampler": "heun"}, "'heun'; allowed for this generator: few_step"),
        (TEACHER, {"sampler": "few_step"}, "'few_step'; allowed for this generator: heun or euler"),
        (TEACHER, {"sampler": "hen"}, "'hen'; allowed"),
        (DRAWING, {"steps": 0}, "steps is 0; give at least 1"),
        (DRAWING, {"steps": -1}, "steps is -1; give at least 1"),
        (DRAWING, {"sampler": "heun"}, "'heun'; allowed for this generator: distributional"),
        (TEACHER, {"sampler": "distributional"}, "'distributional'; allowed for this generator: heun or euler"),
        (DRAWING, {"churn": -0.1}, "churn is -0.1; allowed are values from 0 to 1"),
        (DRAWING, {"churn": 1.1}, "churn is 1.1; allowed are values from 0 to 1"),
        (DRAWING, {"churn": float("nan")}, "churn is nan; allowed are values from 0 to 1"),
        (TEACHER, {"churn": 0.5}, "churn is 0.5, but the sampler heun of this generator has no churn; leave it out"),
        (TEACHER, {"churn": 0.5, "sampler": "euler"}, "churn is 0.5, but the sampler euler of this generator has no churn; leave it out"),
        (STUDENT, {"churn": 0.0}, "churn is 0.0, but the sampler few_step of this generator has no churn; leave it out"),
        (TEACHER, {"num": 0}, "num is 0"),
        (TEACHER, {"batch_size": 0}, "batch_size is 0"),
        (TEACHER, {"batch_size": -3}, "batch_size is -3"),
    ],
)
def test_what_it_cannot_serve_is_refused(sampler, arguments, says):
    with pytest.raises(UserError, match=says):
        make(sampler).sample(**{"num": 2, **arguments})


@pytest.mark.parametrize("sampler", [TEACHER, DRAWING])
def test_guidance_needs_label_dropout(sampler):
    with pytest.raises(UserError, match=r"guidance_scale is 2.0.*label dropout"):
        make(sampler, label_dropout=0.0).sample(2, guidance_scale=2.0)
    assert make(sampler, label_dropout=0.0).sample(2, guidance_scale=1.0).isfinite().all()


# --- what it says of itself ----------------------------------------------------------------------------------------------


def test_it_says_in_one_short_line_what_it_makes_and_how():
    parameters = sum(p.numel() for p in make().parameters())
    assert repr(make()) == (
        f"Generator of 1x8x8 images of 3 classes, made by none: network unet with {parameters:,} parameters, "
        "sampler heun in 3 steps (5 evaluations a sample), on cpu"
    )
    torch.manual_seed(0)
    points = Generator((2,), None, 1.0, {"name": "mlp", "widths": [4]}, {"name": "few_step", "sigmas": [80.0]})
    parameters = sum(p.numel() for p in points.parameters())
    assert repr(points) == (
        f"Generator of 2 points: network mlp with {parameters:,} parameters, sampler few_step in 1 step (1 evaluation a sample), on cpu"
    )
    for sampler in (STUDENT, LEVELS, DRAWING, MAP):
        assert "\n" not in repr(make(sampler))
        assert len(repr(make(sampler))) < 200
        assert str(make(sampler)) == repr(make(sampler))


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_as_pictures(channels):
    """-1 is black and 1 white, and what lies beyond is cut off."""
    samples = torch.linspace(-1.2, 1.2, 2 * channels * 20).reshape(2, channels, 4, 5)
    pictures = make().to_pil(samples)
    assert [(picture.mode, picture.size) for picture in pictures] == [("L" if channels == 1 else "RGB", (5, 4))] * 2
    for picture, image in zip(pictures, samples, strict=True):
        found = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(2, 0)
        expected = (image.clamp(-1, 1) + 1) * 127.5
        assert (found - expected.expand(3, 4, 5)).abs().max() <= 0.5 + 1e-4
    for wrong in (torch.zeros(3, 2), torch.zeros(3, 2, 4, 4)):
        with pytest.raises(UserError, match=r"samples have shape .*; pictures are \[N, C, H, W\] of 1 or 3 channels"):
            make().to_pil(wrong)


def test_a_notebook_shows_ten_samples_in_a_row():
    generator = make(STUDENT)
    with Image.open(io.BytesIO(generator._repr_png_())) as picture:
        assert (picture.format, picture.size) == ("PNG", (10 * 64, 64))
        for k, expected in enumerate(generator.to_pil(generator.sample(10, seed=0))):
            found = picture.crop((64 * k, 0, 64 * k + 64, 64)).resize((8, 8), Image.Resampling.NEAREST)
            assert found.tobytes() == expected.tobytes()
    assert Generator((2,), None, 1.0, {"name": "mlp", "widths": [4]}, STUDENT)._repr_png_() is None


# --- saving and loading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "denoiser"),
    [
        (TEACHER, None),
        (STUDENT, None),
        (LEVELS, None),
        (MAP, None),
        (DRAWING, None),
        ({**DRAWING, "churn": 0.3}, {"name": "distributional", "output": "edm"}),
        (TEACHER, DDPM),
        (STUDENT, DDPM),
    ],
)
def test_saved_and_loaded_it_samples_the_same(tmp_path, sampler, denoiser):
    generator = make(sampler, denoiser=denoiser)
    expected = generator.sample(5, seed=3)
    generator.save_pretrained(tmp_path / "run" / "model")
    for loaded in (
        fewstep.load(tmp_path / "run"),
        fewstep.load(str(tmp_path / "run" / "model")),
        Generator.from_pretrained(tmp_path / "run" / "model"),
    ):
        assert torch.equal(loaded.sample(5, seed=3), expected)
        assert loaded.config == generator.config
        assert type(loaded.denoiser) is type(generator.denoiser)
        assert not loaded.training


def test_a_folder_can_be_sampled_at_once(folder):
    path, samples = folder
    assert torch.equal(fewstep.sample(path, 5, seed=3), samples)
    assert torch.equal(fewstep.sample(str(path), 4, labels=[2], seed=3, steps=2), make().sample(4, 2, 3, 2))


def test_a_generator_in_channels_last_is_saved_as_it_is(tmp_path):
    generator = make().to(memory_format=torch.channels_last)
    generator.save_pretrained(tmp_path)
    loaded = fewstep.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), generator.parameters(), strict=True))


def test_the_folder_holds_no_pickle(folder):
    files = {path.name: path.read_bytes() for path in folder[0].rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors"} <= set(files) <= {"config.json", "model.safetensors", "README.md"}
    assert not any(content.startswith((b"\x80", b"PK")) for content in files.values())  # pickles, and torch's zip files of them
    assert json.loads(files["config.json"])["sampler"] == TEACHER


def test_loading_and_deriving_touch_no_chance(folder):
    path, samples = folder
    before = torch.get_rng_state()
    generator = fewstep.load(path)
    generator.derive(STUDENT, {})
    frozen(generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.sample(5, seed=3), samples)


def test_loading_from_the_hub_is_the_same_as_from_a_folder(folder, monkeypatch):
    path, samples = folder
    asked = []

    def download(repo_id, *, revision, allow_patterns, local_files_only):
        asked.append((repo_id, revision, sorted(allow_patterns)))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    before = torch.get_rng_state()
    generator = fewstep.load("someone/digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.sample(5, seed=3), samples)
    assert not generator.training
    fewstep.load("someone/digits", revision="v2")
    # and nothing else of what may lie there
    assert asked == [("someone/digits", revision, ["config.json", "model.safetensors", LORA_FILE]) for revision in (None, "v2")]


def test_what_the_hub_gives_is_read_like_any_other_folder(folder, monkeypatch):
    path, _ = folder
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(path))
    (path / "config.json").unlink()
    with pytest.raises(UserError, match=r"^someone/digits holds no generator \(config.json not found\)"):
        fewstep.load("someone/digits")


def test_pushing_to_the_hub_uploads_the_folder(monkeypatch, tmp_path):
    pushed = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **_):
            pushed["to"] = repo_id
            shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    generator = make()
    generator.push_to_hub("someone/digits")
    assert pushed["to"] == "someone/digits"
    assert torch.equal(fewstep.load(tmp_path / "hub").sample(2, seed=1), generator.sample(2, seed=1))
    assert "fewstep" in (tmp_path / "hub" / "README.md").read_text()


def rewrite(path, **change):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))


# --- older and newer formats ---------------------------------------------------------------------------------------------


def old_config(path) -> dict:
    """The folder's config.json without what version 0.1.0 did not write; what it wrote beside is added by hand."""
    config = json.loads((path / "config.json").read_text())
    assert config.pop("format") == 2
    del config["denoiser"]
    return config


OLD = {
    "a teacher": (TEACHER, None, {}, PreconditionedDenoiser),
    "a student": (STUDENT, None, {}, PreconditionedDenoiser),
    "a map": (MAP, None, {}, PushForward),
    "posterior draws": (
        DRAWING,
        {"name": "distributional", "output": "x0"},
        {"sampler": {**DRAWING, "output": "x0"}},
        DistributionalDenoiser,
    ),
    "posterior draws by EDM's output": (
        DRAWING,
        {"name": "distributional", "output": "edm"},
        {"sampler": {**DRAWING, "output": "edm"}},
        DistributionalDenoiser,
    ),
    "a foreign teacher": (TEACHER, DDPM, {"parametrization": DDPM}, ForeignDenoiser),
    "its student": (STUDENT, {**DDPM, "zero_snr": True}, {"parametrization": {**DDPM, "zero_snr": True}}, ForeignDenoiser),
}


@pytest.mark.parametrize("kind", OLD)
def test_a_folder_of_version_0_1_0_is_brought_forward(kind, tmp_path):
    sampler, denoiser, written, cls = OLD[kind]
    generator = make(sampler, denoiser=denoiser)
    generator.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(old_config(tmp_path) | written))
    loaded = fewstep.load(tmp_path)
    assert type(loaded.denoiser) is cls
    assert loaded.config == generator.config
    assert torch.equal(loaded.sample(3, seed=1), generator.sample(3, seed=1))
    loaded.save_pretrained(tmp_path / "again")  # and what is written is of today's form
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == generator.config


def test_what_a_drift_of_version_0_1_0_was_trained_in_keeps_its_sense(tmp_path):
    generator = make(MAP)
    generator.save_pretrained(tmp_path)
    config = old_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"info": {**config["info"], "drift_features": "evaluator"}}))
    assert fewstep.load(tmp_path).info == {**generator.info, "trained_in_features": "evaluator"}


def test_an_old_sampler_that_draws_without_saying_what_is_damaged(tmp_path):
    make(DRAWING).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(old_config(tmp_path)))
    with pytest.raises(UserError, match=r"cannot be read \(sampler is .*; give output, too\)"):
        fewstep.load(tmp_path)


def test_a_newer_format_is_refused_in_one_sentence(folder):
    path, _ = folder
    rewrite(path, format=3)
    with pytest.raises(
        UserError, match=r"config\.json is of format 3, and this version of fewstep reads up to 2; install a newer one"
    ) as caught:
        fewstep.load(path)
    assert str(caught.value).startswith(f"the generator in {path} cannot be read (")
    assert "\n" not in str(caught.value)


# --- damage --------------------------------------------------------------------------------------------------------------

DAMAGE = {
    "config is not JSON": lambda path: (path / "config.json").write_text("{"),
    "config is not text": lambda path: (path / "config.json").write_bytes(b"\xff\xfe\x00"),
    "config is a list": lambda path: (path / "config.json").write_text("[]"),
    "config is empty": lambda path: (path / "config.json").write_text("{}"),
    "config has another key": lambda path: rewrite(path, colour="red"),
    "config has another network": lambda path: rewrite(path, network={"name": "resnet"}),
    "config has another width": lambda path: rewrite(path, network={"name": "unet", "channels": [8, 32], "groups": 4, "head_dim": 8}),
    "weights are cut short": lambda path: (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100]),
    "weights are empty": lambda path: (path / "model.safetensors").write_bytes(b""),
    "weights are a folder": lambda path: ((path / "model.safetensors").unlink(), (path / "model.safetensors").mkdir()),
    "weights are missing": lambda path: (path / "model.safetensors").unlink(),
    "config is missing": lambda path: (path / "config.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_sentence_with_the_folder(folder, damage):
    path, _ = folder
    DAMAGE[damage](path)
    with pytest.raises(UserError) as caught:
        fewstep.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sampler", "key"),
    [
        ({"name": "hein", "steps": 3, **GRID}, "sampler"),
        ({"name": "heun", **GRID}, "steps"),
        ({"name": "heun", "steps": 3}, "sigma_min"),
        ({"name": "few_step"}, "sigmas"),
        ({"name": "few_step", "levels": [[80.0]]}, "give .* sigmas, or levels and steps"),
        ({"name": "few_step", "levels": [[80.0]], "steps": 2}, "levels for 1 steps, and steps must be one of these"),
        ({"name": "few_step", "levels": [[80.0], [80.0, 2.0, 1.0]], "steps": 2}, "levels for 1, 3 steps"),
        ({"name": "distributional", "churn": 1.0}, "steps, churn"),
        ({"name": "distributional", "steps": 4}, "steps, churn"),
    ],
)
def test_a_damaged_sampler_is_told_on_loading(folder, sampler, key):
    path, _ = folder
    rewrite(path, sampler=sampler)
    with pytest.raises(UserError, match=key):
        fewstep.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"churn": 2}, "churn lie from 0 to 1"),
        ({"churn": -0.1}, "churn lie from 0 to 1"),
        ({"churn": float("nan")}, "churn lie from 0 to 1"),
        ({"churn": "1"}, "churn lie from 0 to 1"),
        ({"churn": None}, "churn lie from 0 to 1"),
        ({"steps": 2.5}, "steps must be a whole number from 1"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"steps": -4}, "steps must be a whole number from 1"),
        ({"steps": "4"}, "steps must be a whole number from 1"),
        ({"steps": None}, "steps must be a whole number from 1"),
    ],
    ids=str,
)
def test_a_distributional_sampler_s_damage_is_told_on_loading(tmp_path, change, says):
    make(DRAWING).save_pretrained(tmp_path)
    assert fewstep.load(tmp_path).sampler == DRAWING
    rewrite(tmp_path, sampler={**DRAWING, **change})
    with pytest.raises(UserError) as caught:
        fewstep.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"the generator in {tmp_path} cannot be read (")
    assert says in message
    assert repr(*change.values()) in message  # what was got
    assert message.endswith("; write it again, or take another copy")


@pytest.mark.parametrize(
    ("denoiser", "says"),
    [
        ({"name": "distributional", "output": "nonsense"}, "output is 'nonsense'; allowed: 'x0', 'edm'"),
        ({"name": "distributional", "output": None}, "output is None; allowed: 'x0', 'edm'"),
        ({"name": "distributional", "outputs": "x0"}, "whose settings do not fit it: .*'outputs'"),
        ({"name": "ddpm"}, "give prediction and betas, too"),
        ({"name": "ddpm", "betas": DDPM["betas"]}, "give prediction, too"),
        ({"name": "distribution"}, "give a name of preconditioned, push_forward, distributional, ddpm"),
        ({"output": "x0"}, "give a name of preconditioned, push_forward, distributional, ddpm"),
        (
            {"name": "preconditioned"},
            "sampler is 'distributional', which does not draw from the denoiser 'preconditioned'; .*heun, euler, few_step",
        ),
        ({"name": "push_forward"}, "which does not draw from the denoiser 'push_forward'; give one of push_forward"),
    ],
    ids=str,
)
def test_a_denoiser_s_damage_is_told_on_loading(tmp_path, denoiser, says):
    make(DRAWING).save_pretrained(tmp_path)
    assert fewstep.load(tmp_path).denoiser_config == {"name": "distributional"}
    rewrite(tmp_path, denoiser=denoiser)
    with pytest.raises(UserError, match=says) as caught:
        fewstep.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"the generator in {tmp_path} cannot be read (")
    assert message.endswith("; write it again, or take another copy")


@pytest.mark.parametrize("steps", [2.5, 0, "3", None])
def test_an_ode_sampler_s_steps_are_checked_too(folder, steps):
    path, _ = folder
    rewrite(path, sampler={**TEACHER, "steps": steps})
    with pytest.raises(UserError, match="steps must be a whole number from 1"):
        fewstep.load(path)


def test_a_network_without_xi_cannot_be_said_to_draw(folder):
    path, _ = folder
    rewrite(path, sampler=DRAWING, denoiser={"name": "distributional"})
    with pytest.raises(UserError, match="takes no second noise xi; give one with xi_channels"):
        fewstep.load(path)


@pytest.mark.parametrize("place", ["nowhere", "./no/where", "/no/where", "a/b/c"])
def test_a_place_that_is_none_is_refused(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{place} is not a folder"):
        fewstep.load(place)


def test_a_name_that_the_hub_does_not_know_is_refused(monkeypatch):
    def download(*_, **__):
        raise OSError("no such model\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match="someone/nothing: there is no such folder, the local cache") as caught:
        fewstep.load("someone/nothing")
    assert "\n" not in str(caught.value)


def test_derived_generator_is_a_copy_with_another_sampler():
    generator, other = make(), make(seed=1)
    copy = generator.derive(STUDENT, {"method": "dmd2"})
    assert copy.sampler == STUDENT
    assert not copy.training
    assert copy.info == {"method": "dmd2"}
    assert (copy.sigma_data, copy.num_classes, copy.shape) == (0.6, 3, (1, 8, 8))
    assert torch.equal(copy.denoiser(torch.ones(1, 1, 8, 8), 1.0), generator.denoiser(torch.ones(1, 1, 8, 8), 1.0))
    taken = generator.derive(STUDENT, {}, other.denoiser)
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), other.parameters(), strict=True))
    expected = generator.sample(2, seed=0)
    with torch.no_grad():
        for p in copy.parameters():
            p.zero_()
    assert torch.equal(generator.sample(2, seed=0), expected)


def test_frozen_is_a_copy_that_cannot_learn():
    generator = make().train()
    still = frozen(generator)
    assert not any(p.requires_grad for p in still.parameters())
    assert not still.training
    assert all(p.requires_grad for p in generator.parameters())
    assert generator.training
    assert torch.equal(still.sample(2, seed=0), generator.sample(2, seed=0))
