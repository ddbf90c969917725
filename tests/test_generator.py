import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import hub_mixin

import fewstep
from fewstep.denoisers import DistributionalDenoiser
from fewstep.errors import UserError
from fewstep.generator import Generator, frozen
from fewstep.samplers import distributional, euler, few_step, heun

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
TEACHER = {"name": "heun", "steps": 3, **GRID}
STUDENT = {"name": "few_step", "sigmas": [80.0, 2.0]}
DRAWING = {"name": "distributional", "steps": 4, "churn": 1.0, "output": "x0"}


def make(sampler=TEACHER, num_classes=3, label_dropout=0.1, seed=0):
    torch.manual_seed(seed)
    network = {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8}
    if sampler["name"] == "distributional":
        network["xi_channels"] = 2
    return Generator((1, 8, 8), num_classes, 0.6, network, sampler, {"label_dropout": label_dropout, "method": "none"}).eval()


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
        expected = few_step(generator.denoiser, latents, torch.tensor([80.0, 2.0]), torch.tensor([0, 1, 2, 0, 1]), rng)
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
        expected = heun(generator.denoiser, latents, generator.sigmas(), torch.tensor([0, 1, 2, 0, 1]), guidance_scale=3.0)
    found = generator.sample(5, seed=4, guidance_scale=3.0)
    torch.testing.assert_close(found, expected.clamp(-1, 1))
    assert not torch.allclose(found, generator.sample(5, seed=4))


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


def drawn(generator, num=5, seed=4, steps=4, **options):
    """What `distributional` makes of the generator's denoiser with the same chance."""
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn(num, 1, 8, 8, generator=rng)
    times = torch.tensor([k / steps for k in range(steps, 0, -1)], dtype=torch.float64)
    with torch.no_grad():
        return distributional(generator.denoiser, latents, times, torch.arange(num) % 3, rng, **options).clamp(-1, 1)


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
def test_a_generator_that_draws_has_the_output_its_sampler_names(output):
    denoiser = make({**DRAWING, "output": output}).denoiser
    assert isinstance(denoiser, DistributionalDenoiser)
    assert (denoiser.output, denoiser.sigma_data, denoiser.num_classes, denoiser.xi_shape) == (output, 0.6, 3, (2, 8, 8))


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
        (TEACHER, {"churn": 0.5}, "churn is 0.5, but .* sampler heun has none; leave it out"),
        (TEACHER, {"churn": 0.5, "sampler": "euler"}, "churn is 0.5, but .* euler has none; leave it out"),
        (STUDENT, {"churn": 0.0}, "churn is 0.0, but .* sampler few_step has none; leave it out"),
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


# --- saving and loading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [TEACHER, STUDENT, DRAWING, {**DRAWING, "output": "edm", "churn": 0.3}])
def test_saved_and_loaded_it_samples_the_same(tmp_path, sampler):
    generator = make(sampler)
    expected = generator.sample(5, seed=3)
    generator.save_pretrained(tmp_path / "run" / "model")
    for loaded in (
        fewstep.load(tmp_path / "run"),
        fewstep.load(str(tmp_path / "run" / "model")),
        Generator.from_pretrained(tmp_path / "run" / "model"),
    ):
        assert torch.equal(loaded.sample(5, seed=3), expected)
        assert loaded.config == generator.config
        assert not loaded.training


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

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        return str(path / filename)

    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    before = torch.get_rng_state()
    generator = fewstep.load("someone/digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.sample(5, seed=3), samples)
    assert not generator.training
    assert set(asked) == {("someone/digits", "config.json"), ("someone/digits", "model.safetensors")}


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
        ({"name": "distributional", "churn": 1.0, "output": "x0"}, "steps, churn, output"),
        ({"name": "distributional", "steps": 4, "output": "x0"}, "steps, churn, output"),
        ({"name": "distributional", "steps": 4, "churn": 1.0}, "steps, churn, output"),
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
        ({"output": "nonsense"}, "output is 'nonsense'; allowed: 'x0', 'edm'"),
        ({"output": None}, "output is None; allowed: 'x0', 'edm'"),
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


@pytest.mark.parametrize("steps", [2.5, 0, "3", None])
def test_an_ode_sampler_s_steps_are_checked_too(folder, steps):
    path, _ = folder
    rewrite(path, sampler={**TEACHER, "steps": steps})
    with pytest.raises(UserError, match="steps must be a whole number from 1"):
        fewstep.load(path)


def test_a_network_without_xi_cannot_be_said_to_draw(folder):
    path, _ = folder
    rewrite(path, sampler=DRAWING)
    with pytest.raises(UserError, match="takes no second noise xi; give one with xi_channels"):
        fewstep.load(path)


@pytest.mark.parametrize("place", ["nowhere", "./no/where", "/no/where", "a/b/c"])
def test_a_place_that_is_none_is_refused(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{place} is not a folder"):
        fewstep.load(place)


def test_a_name_that_the_hub_does_not_know_is_refused(monkeypatch):
    def download(**_):
        raise OSError("no such model\nand a long story")

    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    with pytest.raises(UserError, match="someone/nothing is neither a folder here nor a model that the Hub gives") as caught:
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
