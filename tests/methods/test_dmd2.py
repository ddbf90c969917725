import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import softplus

from fewstep.denoisers import MixtureDenoiser
from fewstep.generator import Generator
from fewstep.maths.matching import f_divergence_weight, uni_loss
from fewstep.maths.schedules import student_sigmas
from fewstep.methods import Batch
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.dmd2.critic import Critic
from fewstep.methods.dmd2.settings import DMD2Optimizer, DMD2Settings
from fewstep.methods.dmd2.steps import simulated

GOLDEN = Path(__file__).parents[1] / "golden"
NUM = 6


def batch():
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.rand(NUM, 1, 8, 8, generator=rng) * 2 - 1, torch.randint(0, 3, (NUM,), generator=rng))


def seeded(seed=2):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def make_method(make_generator):
    """``make(perturbed, **settings) -> DMD2``; `perturbed` moves generator and fake network away from the teacher."""

    def make(perturbed=True, warmup=0, label_dropout=0.0, steps=0, real=None, student=None, **arguments):
        settings = DMD2Settings(name="dmd2", generator_optimizer=DMD2Optimizer(warmup=warmup), **arguments)
        method = DMD2(settings, make_generator(label_dropout=label_dropout), steps, real, student)
        if perturbed:
            with torch.no_grad():
                for seed, name in enumerate(("generator", "fake")):
                    rng = seeded(100 + seed)
                    for p in method.networks[name].parameters():
                        p.add_(0.1 * torch.randn(p.shape, generator=rng))
        return method

    return make


def as_the_loop_does(method, turn):
    """The networks, of which only the turn's own can take gradients."""
    trains = {t.name: t.trains for t in method.turns}[turn]
    for name, network in method.networks.items():
        network.requires_grad_(name in trains)
    return method.networks


def loss(method, turn, seed=2, scratch=None):
    return method.loss(turn, as_the_loop_does(method, turn), batch(), seeded(seed), {} if scratch is None else scratch)


def karras(index, num=1000):
    """Level `index` of the ascending grid."""
    ramp = (num - 1 - index.double()) / (num - 1)
    return (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def noised(x, first, last, rng):
    s = karras(torch.randint(first, last + 1, (len(x),), generator=rng)).float()
    return x + s[:, None, None, None] * torch.randn(x.shape, generator=rng), s


def generated(networks, rng):
    n = torch.randn(NUM, 1, 8, 8, generator=rng)
    return networks["generator"](80 * n, torch.full((NUM,), 80.0), batch().label)


def dm_term(networks, x, rng, name):
    """The DM term in the papers' forms, item by item."""
    x_s, s = noised(x, 20, 980, rng)
    real, fake = (networks[name](x_s, s, batch().label) for name in ("teacher", "fake"))
    total = 0.0
    for i in range(NUM):
        scale = (x[i] - real[i]).abs().mean().detach() * x.numel()
        if name == "dmd":
            p_real, p_fake = x[i] - real[i], x[i] - fake[i]
            total = total + (x[i] * (p_real - p_fake).detach()).sum() / scale  # whose gradient is the published one
        else:
            d = real[i] - fake[i]
            total = total + ((1 - 1.2) * d.square() + d * (fake[i] - x[i])).sum() / scale  # SiD's Eq. 23
    return total


def gan_logits(networks, x, rng):
    x_s, s = noised(x, 0, 999, rng)
    return networks["head"].heads[0](networks["fake"].features(x_s, s, batch().label, 1)[0])


def assert_same_gradients(method, mine, theirs, *names):
    parameters = [p for name in names for p in method.networks[name].parameters()]
    mine, theirs = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (mine, theirs))
    assert max(g.abs().max() for g in mine if g is not None) > 1e-3
    for a, b in zip(mine, theirs, strict=True):
        if a is None or b is None:
            assert a is None and b is None  # noqa: PT018
        else:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# --- the generator's turn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gan", [False, True])
@pytest.mark.parametrize("name", ["dmd", "sid"])
def test_generator_loss_is_the_paper_s_with_the_same_chance(make_method, name, gan):
    method = make_method(loss=name, sid_alpha=1.2, gan=gan, gan_weight_generator=0.7)
    networks = as_the_loop_does(method, "generator")
    output = method.loss("generator", networks, batch(), seeded(), {})
    rng = seeded()
    x = generated(networks, rng)
    expected = dm_term(networks, x, rng, name)
    if name == "sid":
        torch.testing.assert_close(output.terms["dm"], expected.detach())
    if gan:
        gan_term = softplus(-gan_logits(networks, x, rng)).mean()
        expected = expected + 0.7 * gan_term
        torch.testing.assert_close(output.terms["gan"], gan_term.detach())
        torch.testing.assert_close(output.loss.detach(), output.terms["dm"] + 0.7 * output.terms["gan"])
    assert_same_gradients(method, output.loss, expected, "generator")
    torch.testing.assert_close(output.samples, x.detach())
    assert torch.equal(output.label, batch().label)


def test_dmd_loss_and_the_disagreement_by_value(make_method):
    method = make_method()
    networks = as_the_loop_does(method, "generator")
    output = method.loss("generator", networks, batch(), seeded(), {})
    rng = seeded()
    x = generated(networks, rng)
    x_s, s = noised(x, 20, 980, rng)
    real, fake = (networks[name](x_s, s, batch().label) for name in ("teacher", "fake"))
    grad = torch.stack([(f - r) / (i - r).abs().mean() for i, r, f in zip(x, real, fake, strict=True)])
    torch.testing.assert_close(output.loss, (grad**2).mean() / 2)
    torch.testing.assert_close(output.terms["disagreement"].value, (real - fake).abs().mean() / (x - real).abs().mean())


def reference_networks(x):
    """The golden values' stand-ins: a generator that gives `x`, and two analytic denoisers."""

    def denoiser(scale, shift):
        return lambda x_s, s, label: x_s / (1 + s[:, None, None, None] ** 2) * scale + shift

    return {"generator": lambda noise, sigma, label: x, "teacher": denoiser(0.9, 0.05), "fake": denoiser(0.8, -0.02)}


def test_both_losses_are_the_reference_s(make_method, monkeypatch):
    golden = load_file(GOLDEN / "dmd2_edm.safetensors")
    method, x = make_method(), golden["in.latents"].requires_grad_()
    ranges = []

    def noised_as_there(x, first, last, rng):
        ranges.append((first, last))
        index = golden["in.timesteps_dm" if len(ranges) == 1 else "in.timesteps_fake"].flatten()
        s = golden["np64.karras_sigmas"][index].float().double()  # the reference's grid is float32
        return x + s[:, None, None, None] * golden["in.noise"], s

    monkeypatch.setattr(method, "_noised", noised_as_there)
    output = method.loss("generator", reference_networks(x), Batch(x.detach()), seeded(), {})
    torch.testing.assert_close(output.loss, golden["f64.loss_dm"], rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(output.loss, x)[0], golden["f64.dm_autograd"], rtol=1e-5, atol=1e-9)
    fake = method.loss("guidance", reference_networks(x), Batch(x.detach()), seeded(), {"x": x.detach()}).terms["fake"]
    torch.testing.assert_close(fake, golden["f64.loss_fake"], rtol=1e-6, atol=0)
    assert ranges == [tuple(golden["min_max_step"].tolist()), (0, 999)]


@pytest.mark.parametrize("gamma", [1.0, 1.4])
def test_dmd_gradient_between_two_gaussians_is_the_closed_form(make_method, gamma):
    method = make_method(gamma=gamma, max_step_percent=0.6)  # above sigma 6, gamma 1.4 meets the bound on the gradient
    x = torch.randn(NUM, 1, 8, 8, generator=seeded(7)).requires_grad_()
    ones = torch.ones(1, 1, 8, 8)
    networks = {
        "generator": lambda noise, sigma, label: x,
        "teacher": MixtureDenoiser(0.4 * ones, 0.3),
        "fake": MixtureDenoiser(-0.1 * ones, 0.6),
    }
    output = method.loss("generator", networks, batch(), seeded(), {})
    (found,) = torch.autograd.grad(output.loss, x)
    rng = seeded()
    torch.randn(NUM, 1, 8, 8, generator=rng)  # the generator's noise
    x_s, s = noised(x.detach(), 20, 600, rng)
    x_s, s = x_s.double(), s.double()[:, None, None, None]
    # a denoiser moves x_s towards the mean by s^2 / (std^2 + s^2) of the way: V is linear in x_s
    pull_real = s**2 / (0.09 + s**2) * (0.4 - x_s)
    pull_fake = s**2 / (0.36 + s**2) * (-0.1 - x_s)
    divisor = (x.detach() - (x_s + pull_real)).abs().mean((1, 2, 3), keepdim=True)
    expected = (pull_fake - gamma * pull_real) / divisor / x.numel()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_sid_gradient_passes_through_both_denoisers(make_method, alpha):
    method = make_method(loss="sid", sid_alpha=alpha)
    x = torch.randn(NUM, 1, 8, 8, generator=seeded(7)).requires_grad_()
    a, b = 0.6, 0.9
    networks = {
        "generator": lambda noise, sigma, label: x,
        "teacher": lambda x_s, s, label: a * x_s,
        "fake": lambda x_s, s, label: b * x_s,
    }
    (found,) = torch.autograd.grad(method.loss("generator", networks, batch(), seeded(), {}).loss, x)
    rng = seeded()
    torch.randn(NUM, 1, 8, 8, generator=rng)
    x = x.detach()
    x_s, _ = noised(x, 20, 980, rng)
    divisor, d = (x - a * x_s).abs().mean((1, 2, 3), keepdim=True), a - b
    expected = (d * (a * x_s - x - alpha * d * x_s) + d * x_s * (a - 1 - alpha * d)) / divisor / x.numel()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "network",
    [
        {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8, "dropout": 0.3},
        {"name": "edm_unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "dropout": 0.3},
    ],
    ids=lambda network: network["name"],
)
def test_a_teacher_s_dropout_stays_with_the_teacher(network):
    """The samples that the generator learns from are those that it ships with, and with equal weights nothing is to be learned."""
    torch.manual_seed(0)
    sampler = {"name": "heun", "steps": 3, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    teacher = Generator((1, 8, 8), 3, 0.5, network, sampler)
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.05)
    method = DMD2(DMD2Settings(name="dmd2"), teacher)
    found = loss(method, "generator")
    n = torch.randn(NUM, 1, 8, 8, generator=seeded())
    shipped = method.ship(method.networks["generator"], 0)
    torch.testing.assert_close(found.samples, shipped.denoiser(80 * n, torch.tensor(80.0), batch().label).detach())
    assert found.loss.item() == pytest.approx(0, abs=1e-8)
    assert shipped.network_config["dropout"] == 0.3


@pytest.mark.parametrize("name", ["dmd", "sid"])
def test_nothing_moves_while_the_fake_network_is_the_teacher(make_method, name):
    method = make_method(perturbed=False, loss=name)
    output = loss(method, "generator")
    output.loss.backward()
    assert output.loss.item() == 0
    gradients = [p.grad for p in method.networks["generator"].parameters()]
    assert max(g.abs().max().item() for g in gradients if g is not None) < 1e-6


def test_levels_lie_between_the_two_percentages_of_the_ascending_grid(make_method):
    method = make_method(num_train_timesteps=50, min_step_percent=0.1, max_step_percent=0.2, sigma_min=0.01, sigma_max=10.0, rho=3.0)
    seen = []

    def teacher(x, s, label):
        seen.append(s)
        return x

    networks = {"generator": lambda noise, sigma, label: noise, "teacher": teacher, "fake": lambda x, s, label: x}
    method.loss("generator", networks, Batch(torch.zeros(400, 1, 8, 8)), seeded(), {})
    k = torch.arange(5, 11, dtype=torch.float64)  # both ends included; (5/6)^400: none is missed by chance
    expected = (0.01 ** (1 / 3) + k / 49 * (10 ** (1 / 3) - 0.01 ** (1 / 3))) ** 3
    torch.testing.assert_close(seen[0].unique(), expected.float())


def test_the_lowest_level_comes_down_over_the_generators_updates(make_method):
    # over half of 8 updates, which 40 steps have; binary fractions: no rounding to think of
    ramp = {"min_step_percent": 0.25, "min_step_start": 0.5, "min_step_warmup": 0.5, "dfake_gen_update_ratio": 5}
    method = make_method(num_train_timesteps=64, max_step_percent=0.625, steps=40, **ramp)
    networks = {"generator": lambda noise, sigma, label: noise, "teacher": lambda x, s, label: x}
    for update, lowest in enumerate([32, 28, 24, 20, 16, 16]):
        seen = []
        networks["fake"] = lambda x, s, label, seen=seen: (seen.append(s), x)[1]
        method.loss("generator", networks, Batch(torch.zeros(500, 1, 8, 8)), seeded(), {})
        found = seen[0].unique()
        torch.testing.assert_close(found, method.levels[lowest:41].float())  # 25 (24/25)^500 = 3e-8: none is missed by chance
        method.after_update("guidance")  # which does not count
        method.after_update("generator")
        assert method.generator_updates == update + 1


def test_the_whole_grid_can_be_asked_for(make_method):
    method = make_method(num_train_timesteps=5, min_step_percent=0.0, max_step_percent=1.0)
    lowest = [int(method.first(update) * len(method.levels)) for update in (0, 10)]  # as the loss reads it
    assert (lowest, method.last) == ([0, 0], 4)


@pytest.mark.parametrize("turn", ["generator", "guidance"])
def test_generator_starts_from_noise_at_the_conditioning_level(make_method, turn):
    method = make_method(conditioning_sigma=7.0)
    seen = []

    def generator(x, sigma, label):
        seen.append((x, sigma, label))
        return x

    method.loss(turn, {**method.networks, "generator": generator}, batch(), seeded(), {})
    x, sigma, label = seen[0]
    torch.testing.assert_close(x, 7 * torch.randn(NUM, 1, 8, 8, generator=seeded()))
    assert sigma == 7
    assert torch.equal(label, batch().label)


def test_guidance_strengthens_the_teacher_alone(make_method):
    method = make_method(guidance_scale=3.0, label_dropout=0.1)
    networks = {
        "generator": lambda noise, sigma, label: torch.zeros_like(noise).requires_grad_(),
        "teacher": lambda x, s, label: torch.full_like(x, 1.0 if label is None else 2.0),  # guided: 1 + 3 (2 - 1) = 4
        "fake": lambda x, s, label: torch.full_like(x, 9.0 if label is None else 3.0),
    }
    output = method.loss("generator", networks, batch(), seeded(), {})
    assert output.loss.item() == pytest.approx(((3 - 4) / 4) ** 2 / 2)
    assert output.terms["disagreement"].value.item() == pytest.approx(1 / 4)


def test_guidance_needs_a_teacher_with_label_dropout(make_method):
    with pytest.raises(ValueError, match=r"method.guidance_scale is 2.0.*label_dropout"):
        make_method(guidance_scale=2.0)


# --- the guidance's turn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gan", [False, True])
def test_guidance_loss_is_the_paper_s_with_the_same_chance(make_method, gan):
    method = make_method(gan=gan, gan_weight_guidance=0.6)
    networks = as_the_loop_does(method, "guidance")
    output = method.loss("guidance", networks, batch(), seeded(), {})
    rng = seeded()
    x = generated(networks, rng)
    x_s, s = noised(x, 0, 999, rng)
    denoised = networks["fake"](x_s, s, batch().label)
    expected = sum((s[i] ** -2 + 0.5**-2) * (denoised[i] - x[i]).square().mean() / NUM for i in range(NUM))
    torch.testing.assert_close(output.terms["fake"], expected.detach())
    if gan:
        real = softplus(-gan_logits(networks, batch().x, rng)).mean()
        gan_term = real + softplus(gan_logits(networks, x, rng)).mean()
        torch.testing.assert_close(output.terms["gan"], gan_term.detach())
        expected = expected + 0.6 * gan_term
    torch.testing.assert_close(output.loss, expected)
    assert_same_gradients(method, output.loss, expected, *method.turns[1].trains)


def test_fake_network_learns_from_the_samples_just_made(make_method):
    method, scratch = make_method(), {}
    made = loss(method, "generator", scratch=scratch).samples
    networks = {**as_the_loop_does(method, "guidance"), "generator": lambda *_: pytest.fail("samples were drawn again")}
    output = method.loss("guidance", networks, batch(), seeded(9), scratch)
    x_s, s = noised(made, 0, 999, seeded(9))
    weight = (s**-2 + 4)[:, None, None, None]
    torch.testing.assert_close(output.loss, (weight * (networks["fake"](x_s, s, batch().label) - made) ** 2).mean())


def test_fake_network_draws_its_own_samples_if_told_to_or_if_there_are_none(make_method):
    for reuse, scratch in ((False, {"x": torch.zeros(NUM, 1, 8, 8)}), (True, {})):
        method = make_method(reuse_generator_batch=reuse)
        networks = as_the_loop_does(method, "guidance")
        networks["generator"].requires_grad_(True)  # it would learn here if it were asked with gradients
        output = method.loss("guidance", networks, batch(), seeded(), scratch)
        output.loss.backward()
        assert all(p.grad is None for p in networks["generator"].parameters())
        rng = seeded()
        x = generated(networks, rng)
        x_s, s = noised(x, 0, 999, rng)
        expected = ((s**-2 + 4)[:, None, None, None] * (networks["fake"](x_s, s, batch().label) - x) ** 2).mean()
        torch.testing.assert_close(output.loss, expected)


# --- who learns, and when ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gan", [False, True])
@pytest.mark.parametrize("name", ["dmd", "sid"])
@pytest.mark.parametrize(("turn", "learning"), [("generator", {"generator"}), ("guidance", {"fake", "head"})])
def test_gradients_reach_the_turn_s_own_networks_alone(make_method, name, gan, turn, learning):
    method = make_method(loss=name, gan=gan)
    loss(method, turn).loss.backward()
    for network, module in method.networks.items():
        gradients = [p.grad for p in module.parameters()]
        if network in learning:
            assert all(g is not None for g in gradients)
            assert sum(g.abs().sum() for g in gradients) > 0
        else:
            assert all(g is None for g in gradients)


def test_turns_are_declared_as_published(make_method):
    method = make_method(dfake_gen_update_ratio=7, gan=True, warmup=3, table_scale=4.0)
    generator, guidance = method.turns
    assert (generator.name, generator.every, generator.trains) == ("generator", 7, ("generator",))  # first: its samples are reused
    assert (guidance.name, guidance.every, guidance.trains) == ("guidance", 1, ("fake", "head"))
    assert (generator.optimizer.warmup, guidance.optimizer.warmup) == (3, 0)
    assert guidance.optimizer is method.settings.guidance_optimizer
    assert (generator.scales, guidance.scales) == ({}, {})  # for a U-Net has no tables


@pytest.mark.parametrize("name", ["dmd", "sid"])
def test_teacher_is_frozen_and_apart(make_method, name):
    method = make_method(perturbed=False, loss=name, gan=True)
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    optimizers = {
        turn.name: torch.optim.SGD([p for name in turn.trains for p in method.networks[name].parameters()], 0.1) for turn in method.turns
    }
    for seed in range(3):
        for turn, optimizer in optimizers.items():
            loss(method, turn, seed).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not method.networks["teacher"].training
    assert not any(p.requires_grad for p in method.networks["teacher"].parameters())
    for state in (method.networks["teacher"].state_dict(), method.teacher.denoiser.state_dict()):
        assert all(torch.equal(value, before[f"denoiser.{key}"]) for key, value in state.items())
    for network in ("generator", "fake"):
        assert any(not torch.equal(value, before[f"denoiser.{key}"]) for key, value in method.networks[network].state_dict().items())


def test_loss_draws_on_its_generator_alone(make_method):
    method = make_method(gan=True)
    before = torch.get_rng_state()
    for turn in ("generator", "guidance"):
        losses = [loss(method, turn, seed).loss.item() for seed in (1, 1, 2)]
        assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)


# --- the adversarial weight that measures itself -------------------------------------------------------------------------


def ratio_of_gradients(method, seed):
    """|d dm/dx| / |d gan/dx| of the generator's turn."""
    networks, rng = as_the_loop_does(method, "generator"), seeded(seed)
    x = generated(networks, rng)
    dm = dm_term(networks, x, rng, "dmd")
    gan = softplus(-gan_logits(networks, x, rng)).mean()
    grad_dm, grad_gan = (torch.autograd.grad(term, x, retain_graph=True)[0].double() for term in (dm, gan))
    return (grad_dm.square().sum().sqrt() / grad_gan.square().sum().sqrt()).item()


def updated(method, seed):
    """The generator's loss, and the count of its update, as the loop does it."""
    output = loss(method, "generator", seed)
    method.after_update("generator")
    return output


def test_automatic_gan_weight_is_the_mean_ratio_after_warmup_and_is_then_held(make_method, monkeypatch):
    monkeypatch.setattr(Critic, "AUTO_UPDATES", 3)
    method = make_method(gan=True, gan_weight_generator="auto", warmup=2)
    ratios = [ratio_of_gradients(method, seed) for seed in range(7)]
    outputs = [updated(method, seed) for seed in range(7)]
    expected = [0, 0, ratios[2], sum(ratios[2:4]) / 2, *[sum(ratios[2:5]) / 3] * 3]
    assert [output.terms["gan_weight"].item() for output in outputs] == pytest.approx(expected, rel=1e-3)
    for output in outputs:
        total = output.terms["dm"] + output.terms["gan_weight"] * output.terms["gan"]
        torch.testing.assert_close(output.loss.detach(), total)


def test_state_goes_round_and_the_measurement_goes_on(make_method, monkeypatch):
    monkeypatch.setattr(Critic, "AUTO_UPDATES", 4)
    first, second = (make_method(gan=True, gan_weight_generator="auto", warmup=1) for _ in range(2))
    second.networks["head"].load_state_dict(first.networks["head"].state_dict())
    for seed in range(3):
        updated(first, seed)
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    assert second.state_dict() == state
    for seed in range(3, 6):
        mine, theirs = updated(first, seed), updated(second, seed)
        assert mine.terms["gan_weight"] == theirs.terms["gan_weight"] > 0
        assert mine.loss == theirs.loss


def test_what_ships_is_a_one_step_generator_of_the_weights_given(make_method):
    method = make_method(conditioning_sigma=40.0, label_dropout=0.1)
    network = method.networks["generator"]
    shipped = method.ship(network, 12)
    assert shipped.evaluations() == 1
    assert shipped.info["label_dropout"] == 0  # it cannot be guided
    assert (shipped.info["method"], shipped.info["step"]) == ("dmd2", 12)
    n = torch.randn(4, 1, 8, 8, generator=seeded(3))
    with torch.no_grad():
        expected = network(40 * n, torch.tensor(40.0), torch.tensor([0, 1, 2, 0])).clamp(-1, 1)
    torch.testing.assert_close(shipped.sample(4, seed=3), expected)


# --- a student of its own, a closed form for a teacher --------------------------------------------------------------------


def push_forward_student(num_classes=3, **changes):
    torch.manual_seed(3)
    network = {"name": "latent_mlp", "widths": [16], "latent": 5, "embedding": 4, **changes}
    return Generator((1, 8, 8), num_classes, 0.5, network, {"name": "push_forward"}, {"mine": 1}, {"name": "push_forward"})


def test_tables_of_a_student_learn_at_their_own_rate(make_method):
    generator, guidance = make_method(student=push_forward_student(name="coded_mlp", bits=2), table_scale=4.0).turns
    assert (generator.scales, guidance.scales) == ({"centres": 4.0, "embeddings": 4.0}, {})


def test_student_is_trained_in_place_from_noise_of_its_own_shape(make_method):
    student = push_forward_student()
    method = make_method(student=student)
    assert method.networks["generator"] is student.denoiser
    networks = as_the_loop_does(method, "generator")
    output = method.loss("generator", networks, batch(), seeded(), {})
    rng = seeded()
    x = student.denoiser(torch.randn(NUM, 5, generator=rng), torch.inf, batch().label)
    torch.testing.assert_close(output.samples, x.detach())
    assert_same_gradients(method, output.loss, dm_term(networks, x, rng, "dmd"), "generator")
    output = loss(method, "guidance")  # the fake network learns from the student's items
    rng = seeded()
    with torch.no_grad():
        x = student.denoiser(torch.randn(NUM, 5, generator=rng), torch.inf, batch().label)
    x_s, s = noised(x, 0, 999, rng)
    weight = (s**-2 + 4)[:, None, None, None]
    torch.testing.assert_close(output.loss, (weight * (method.networks["fake"](x_s, s, batch().label) - x) ** 2).mean())


def test_student_ships_as_what_it_is(make_method):
    student = push_forward_student()
    method = make_method(perturbed=False, student=student)
    network = push_forward_student().denoiser
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    shipped = method.ship(network, 17)
    assert (shipped.sampler, shipped.network_config) == ({"name": "push_forward"}, student.network_config)
    assert (shipped.info["method"], shipped.info["step"]) == ("dmd2", 17)
    z, label = torch.randn(4, 5, generator=seeded()), torch.arange(4) % 3
    torch.testing.assert_close(shipped.denoiser(z, torch.inf, label), network(z, torch.inf, label))


def test_real_denoiser_takes_the_teacher_s_place_and_not_the_fake_s(make_method):
    real = MixtureDenoiser(torch.full((1, 1, 8, 8), 0.4), 0.3)
    method = make_method(perturbed=False, real=real)
    x, s = batch().x, torch.full((NUM,), 0.5)
    torch.testing.assert_close(method.networks["teacher"](x, s, None), real(x, s, None))
    torch.testing.assert_close(method.networks["fake"](x, s, None), method.teacher.denoiser(x, s, None))
    assert method.networks["teacher"] is not real
    assert loss(method, "generator").loss > 0  # for the fake network is not that one
    assert method.kept_teacher is None  # a closed form comes with the data
    trained = make_method()
    assert trained.kept_teacher is trained.teacher


def test_a_part_of_a_batch_holds_an_item_for_every_step(make_method):
    assert [make_method(sampler_steps=steps).least_items for steps in (1, 4)] == [1, 4]


# --- several steps -------------------------------------------------------------------------------------------------------

LEVELS = [80.0, 12.0, 1.5]


def called(method, turn, seed, **networks):
    """(input, levels, whether with a gradient, labels) of each call of the generator, and the turn's output; G(x, s) = x / (1 + s)."""
    calls = []

    def generator(x, sigma, label):
        calls.append((x.detach(), sigma.expand(len(x)), torch.is_grad_enabled(), label))
        return x / (1 + sigma.expand(len(x))[:, None, None, None])

    output = method.loss(turn, {**method.networks, "generator": generator, **networks}, batch(), seeded(seed), {})
    return calls, output


@pytest.mark.parametrize("turn", ["generator", "guidance"])
def test_a_later_step_starts_where_the_generator_s_own_steps_lead(make_method, turn):
    method = make_method(sampler_steps=3, sampler_sigmas=LEVELS)
    firsts = set()
    for seed in range(12):
        calls, output = called(method, turn, seed)
        step = [LEVELS.index(pytest.approx(s)) for s in calls[-1][1].tolist()]
        assert [(s - step[0]) % 3 for s in step] == [0, 0, 1, 1, 2, 2]  # an equal share of the batch for each
        firsts.add(step[0])
        rng = seeded(seed)
        x = 80 * torch.randn(NUM, 1, 8, 8, generator=rng)
        for done in range(2):
            on = [i for i in range(NUM) if step[i] > done]
            seen, sigma, with_gradient, label = calls[done]
            torch.testing.assert_close(seen, x[on])
            assert set(sigma.tolist()) == {LEVELS[done]}
            assert not with_gradient
            assert torch.equal(label, batch().label[on])
            x[on] = x[on] / (1 + LEVELS[done]) + LEVELS[done + 1] * torch.randn(NUM, 1, 8, 8, generator=rng)[on]
        seen, sigma, with_gradient, label = calls[2]
        torch.testing.assert_close(seen, x)
        assert with_gradient == (turn == "generator")
        assert torch.equal(label, batch().label)
        if turn == "generator":
            torch.testing.assert_close(output.samples, x / (1 + sigma)[:, None, None, None])
        assert len(calls) == 3
    assert firsts == {0, 1, 2}


def test_steps_are_dealt_alike_on_every_device_and_go_on_after_a_resume(make_method):
    methods = [make_method(sampler_steps=4) for _ in range(2)]
    orders = [[method.generate.dealt(3, seeded()).tolist() for _ in range(2000)] for method in methods]
    assert orders[0] == orders[1]
    firsts = torch.tensor(orders[0])[:, 0]
    assert (firsts.bincount(minlength=4) - 500).abs().max() < 4 * (2000 * 3 / 16) ** 0.5  # four standard deviations of a binomial
    assert (firsts[1:] == firsts[:-1]).sum() < 500 + 4 * 20  # nor on the one before
    assert (firsts[2:] == firsts[:-2]).sum() < 500 + 4 * 20  # nor the one before that: turns alternate
    resumed = make_method(sampler_steps=4)
    resumed.load_state_dict(json.loads(json.dumps(methods[1].state_dict())))
    assert [resumed.generate.dealt(3, seeded()).tolist() for _ in range(5)] == [
        methods[0].generate.dealt(3, seeded()).tolist() for _ in range(5)
    ]


def test_noised_data_is_the_shortcut_and_has_to_be_named(make_method):
    method = make_method(sampler_steps=3, sampler_sigmas=LEVELS, inputs="noised_data")
    for seed in range(4):
        ((seen, sigma, with_gradient, _),), _ = called(method, "generator", seed)
        n = torch.randn(NUM, 1, 8, 8, generator=seeded(seed))
        sigma = sigma[:, None, None, None]
        torch.testing.assert_close(seen, sigma * n + torch.where(sigma == 80, 0.0, 1.0) * batch().x)
        assert with_gradient
        assert sorted(set(sigma.flatten().tolist()), reverse=True) == LEVELS
    assert make_method(sampler_steps=3).generate.inputs == "backward_simulation"


def told_apart(method):
    """Give the fake networks different opinions."""
    with torch.no_grad():
        for number, copy_ in enumerate(method.networks["fake"].copies):
            for p in copy_.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=seeded(5 + number)))


def test_each_step_has_a_fake_network_of_its_own(make_method):
    """One for all would learn the score of the mixture, and the steps would make up for each other's errors."""
    method = make_method(sampler_steps=3, sampler_sigmas=LEVELS)
    told_apart(method)
    fake, scratch = method.networks["fake"], {}
    networks = as_the_loop_does(method, "generator")
    generator = lambda x, sigma, label: x / (1 + sigma.expand(len(x))[:, None, None, None])  # noqa: E731
    output = method.loss("generator", {**networks, "generator": generator}, batch(), seeded(4), scratch)
    step = scratch["step"]
    assert sorted(step.tolist()) == [0, 0, 1, 1, 2, 2]
    levels = {0: 80.0, 1: 12.0, 2: 1.5}
    rng = seeded(4)
    x = simulated(generator, 80 * torch.randn(NUM, 1, 8, 8, generator=rng), torch.tensor(LEVELS), step, None, rng)
    x = x / (1 + torch.tensor([levels[s] for s in step.tolist()]))[:, None, None, None]
    torch.testing.assert_close(output.samples, x)
    x_s, s = noised(x, 20, 980, rng)
    real, label = method.networks["teacher"](x_s, s, batch().label), batch().label
    grad = torch.stack([(f - r) / (i - r).abs().mean() for i, r, f in zip(x, real, fake(x_s, s, label, step=step), strict=True)])
    torch.testing.assert_close(output.loss, (grad**2).mean() / 2, rtol=1e-4, atol=1e-7)
    fake_loss = method.loss("guidance", as_the_loop_does(method, "guidance"), batch(), seeded(9), scratch)
    x_s, s = noised(x, 0, 999, seeded(9))
    expected = ((s**-2 + 4)[:, None, None, None] * (fake(x_s, s, label, step=step) - x) ** 2).mean()
    torch.testing.assert_close(fake_loss.loss, expected)
    fake_loss.loss.backward()
    assert all(p.grad is not None for p in fake.parameters())
    before = torch.stack([c(x, torch.tensor(1.0), label) for c in fake.copies])
    torch.testing.assert_close(fake(x, torch.tensor(1.0), label, step=step), before[step, torch.arange(NUM)])


def test_one_fake_network_for_all_steps_is_the_published_form(make_method):
    method, scratch = make_method(sampler_steps=3, sampler_sigmas=LEVELS, fake_per_step=False), {}
    made = loss(method, "generator", scratch=scratch).samples
    output = method.loss("guidance", as_the_loop_does(method, "guidance"), batch(), seeded(9), scratch)
    x_s, s = noised(made, 0, 999, seeded(9))
    expected = ((s**-2 + 4)[:, None, None, None] * (method.networks["fake"](x_s, s, batch().label) - made) ** 2).mean()
    torch.testing.assert_close(output.loss, expected)
    each = make_method(sampler_steps=3).networks["fake"].copies
    assert [sum(p.numel() for p in network.parameters()) for network in (method.networks["fake"], *each)] == 4 * [
        sum(p.numel() for p in method.networks["generator"].parameters())
    ]


@pytest.mark.parametrize("features", ["fake", "teacher"])
def test_heads_see_real_data_through_the_same_fake_networks(make_method, features):
    """Features of a network that only fakes go through would give them away."""
    method = make_method(sampler_steps=2, gan=True, gan_features=features, f_divergence="js", r1_weight=1.0)
    told_apart(method)
    networks = as_the_loop_does(method, "guidance")
    step = torch.tensor([1, 0, 1, 0, 1, 0])
    output = method.loss("guidance", networks, batch(), seeded(), {"x": torch.zeros(NUM, 1, 8, 8), "step": step})
    rng = seeded()
    noised(torch.zeros(NUM, 1, 8, 8), 0, 999, rng)
    told = {"step": step} if features == "fake" else {}
    x_s, s = noised(batch().x, 0, 999, rng)

    def logits(x_s, s):
        return networks["head"](networks[features].features(x_s, s, batch().label, 1, **told))

    real = logits(x_s, s)
    perturbed = logits(x_s + 0.1 * torch.randn(x_s.shape, generator=rng), s)
    fake = logits(*noised(torch.zeros(NUM, 1, 8, 8), 0, 999, rng))
    torch.testing.assert_close(output.terms["r1"], (real - perturbed).square().mean().detach())
    torch.testing.assert_close(output.terms["gan"], (softplus(-real).mean() + softplus(fake).mean()).detach())
    loss(method, "generator").loss.backward()  # and the generator's turn, weighed by the ratio, runs too


def test_a_student_of_several_steps_ships_with_its_levels_and_is_sampled_as_it_was_trained(make_method):
    method = make_method(sampler_steps=4, conditioning_sigma=40.0)
    shipped = method.ship(method.networks["generator"], 3)
    torch.testing.assert_close(shipped.sigmas(), student_sigmas(4, 40.0))
    assert shipped.evaluations() == 4
    label, rng = torch.arange(NUM) % 3, seeded(11)
    x = 40 * torch.randn(NUM, 1, 8, 8, generator=rng)
    before = simulated(method.networks["generator"], x, shipped.sigmas().float(), torch.full((NUM,), 3), label, rng)
    with torch.no_grad():
        made = method.networks["generator"](before, shipped.sigmas()[3].float(), label)
    torch.testing.assert_close(shipped.sample(NUM, label, seed=11), made.clamp(-1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler_steps": 2, "sampler_sigmas": [80.0]}, r"sampler_sigmas is \[80.0\]; .* give 2 levels that fall from 80.0"),
        ({"sampler_steps": 2, "sampler_sigmas": [70.0, 2.0]}, "give 2 levels that fall from 80.0"),
        ({"sampler_steps": 2, "sampler_sigmas": [80.0, 80.0]}, "give 2 levels that fall from 80.0"),
        ({"f_divergence": "js"}, r"f_divergence is 'js'.* set method\.gan=true and method\.loss to dmd or uni"),
        ({"f_divergence": "js", "loss": "uni"}, r"f_divergence is 'js'.* set method\.gan=true"),
        ({"gamma": 1.5, "loss": "uni"}, r"method\.gamma is 1.5, which method\.loss=uni does not know.*use 1, or"),
        ({"f_divergence": "kl", "gan": True, "loss": "sid"}, r"f_divergence is 'kl'"),
        ({"gan": True, "gan_levels": 3}, r"gan_levels is 3, but the network has 2"),
        ({"fake_min_step_percent": 0.6, "fake_max_step_percent": 0.5}, r"fake_min_step_percent 0.6 must not exceed"),
    ],
)
def test_settings_that_do_not_fit_together(make_method, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_method(**arguments)


def test_a_map_from_noise_has_one_step(make_method):
    with pytest.raises(ValueError, match=r"method.sampler_steps is 2, but a map from noise to data has one step"):
        make_method(student=push_forward_student(), sampler_steps=2)


# --- what else the discriminator can be, and do --------------------------------------------------------------------------


def test_fake_network_has_a_noise_range_of_its_own(make_method):
    method = make_method(num_train_timesteps=50, fake_min_step_percent=0.2, fake_max_step_percent=0.4)
    seen = []
    networks = {
        "generator": lambda noise, sigma, label: noise,
        "teacher": lambda x, s, label: x,
        "fake": lambda x, s, label: (seen.append(s), x)[1],
    }
    for turn in ("guidance", "generator"):
        method.loss(turn, networks, Batch(torch.zeros(600, 1, 8, 8)), seeded(), {})
    torch.testing.assert_close(seen[0].unique(), method.levels[10:21].float())  # 11 (10/11)^600: none is missed by chance
    torch.testing.assert_close(seen[1].unique(), method.levels[1:50].float())  # the DM term keeps 2% to 98%


@pytest.mark.parametrize("features", ["fake", "teacher"])
def test_heads_see_every_level_of_the_network_that_was_named(make_method, features):
    method = make_method(gan=True, gan_features=features, gan_levels=2)
    networks = as_the_loop_does(method, "guidance")
    assert len(networks["head"].heads) == 2
    output = method.loss("guidance", networks, batch(), seeded(), {"x": torch.zeros(NUM, 1, 8, 8)})
    rng = seeded()
    noised(torch.zeros(NUM, 1, 8, 8), 0, 999, rng)
    logits = []
    for x in (batch().x, torch.zeros(NUM, 1, 8, 8)):
        x_s, s = noised(x, 0, 999, rng)
        maps = networks[features].features(x_s, s, batch().label, 2)
        assert [tuple(m.shape[1:]) for m in maps] == [(16, 4, 4), (8, 8, 8)]
        logits.append([head(m) for head, m in zip(networks["head"].heads, maps, strict=True)])
    expected = sum(softplus(-a).mean() + softplus(b).mean() for a, b in zip(*logits, strict=True)) / 2
    torch.testing.assert_close(output.terms["gan"], expected.detach())
    (gradient,) = torch.autograd.grad(output.loss, next(networks["head"].heads[1].parameters()))
    assert gradient.abs().max() > 0


def test_generator_is_led_by_the_teacher_s_features_too(make_method):
    method = make_method(gan=True, gan_features="teacher", gan_levels=2, gan_weight_generator=1.0)
    networks = as_the_loop_does(method, "generator")
    output = method.loss("generator", networks, batch(), seeded(), {})
    rng = seeded()
    x = generated(networks, rng)
    noised(x, 20, 980, rng)  # the DM term's
    x_s, s = noised(x, 0, 999, rng)
    gan = softplus(-networks["head"](networks["teacher"].features(x_s, s, batch().label, 2))).mean()
    torch.testing.assert_close(output.terms["gan"], gan.detach())
    without = make_method(gan=True, gan_features="teacher", gan_levels=2, gan_weight_generator=0.0)
    without.networks["head"].load_state_dict(networks["head"].state_dict())
    parameters = list(networks["generator"].parameters())
    whole = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    plain = torch.autograd.grad(loss(without, "generator").loss, list(without.networks["generator"].parameters()), allow_unused=True)
    added = torch.autograd.grad(gan, parameters, allow_unused=True)
    for a, b, c in zip(whole, plain, added, strict=True):
        if c is not None:
            torch.testing.assert_close(a, b + c, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["approximate", "exact"])
def test_r1_holds_the_slope_at_real_data(make_method, kind):
    weights = {"r1_weight": 0.7, "r1": kind, "r1_alpha": 0.01, "gan_weight_guidance": 0.5}
    method = make_method(gan=True, gan_levels=2, **weights)
    networks = as_the_loop_does(method, "guidance")
    output = method.loss("guidance", networks, batch(), seeded(), {"x": torch.zeros(NUM, 1, 8, 8)})
    rng = seeded()
    noised(torch.zeros(NUM, 1, 8, 8), 0, 999, rng)
    x_s, s = noised(batch().x, 0, 999, rng)
    networks = {name: copy.deepcopy(networks[name]).double() for name in ("fake", "head")}

    def logits(x):
        return networks["head"](networks["fake"].network.features(*preconditioned(x, s), batch().label, 2))

    def preconditioned(x, s):
        return x.double() / (s.double() ** 2 + 0.25).sqrt()[:, None, None, None], s.double().log() / 4

    if kind == "approximate":
        perturbed = x_s + 0.01 * torch.randn(x_s.shape, generator=rng)
        expected = (logits(x_s) - logits(perturbed)).square().mean()
    else:  # by differences along each of the 64 pixels
        step = 1e-5 * torch.eye(64, dtype=torch.float64).view(64, 1, 1, 8, 8)
        slopes = [(logits(x_s.double() + e) - logits(x_s.double() - e)) / 2e-5 for e in step]
        expected = torch.stack(slopes).square().sum(0).mean()  # over items and heads
    torch.testing.assert_close(output.terms["r1"].double(), expected.detach(), rtol=1e-2, atol=1e-9)
    total = output.terms["fake"] + 0.5 * (output.terms["gan"] + 0.7 * output.terms["r1"])
    torch.testing.assert_close(output.loss.detach(), total)
    output.loss.backward()  # it can be learned from, through attention too
    assert all(p.grad is not None for p in method.networks["head"].parameters())


@pytest.mark.parametrize(("divergence", "h"), [("js", lambda r: r / (1 + r)), ("kl", lambda r: r), ("hellinger", lambda r: r**0.5)])
def test_other_divergences_weigh_each_sample_s_gradient(make_method, divergence, h):
    method = make_method(gan=True, gan_weight_generator=0.0, f_divergence=divergence)
    plain = make_method(gan=True, gan_weight_generator=0.0)
    x = torch.randn(NUM, 1, 8, 8, generator=seeded(7))
    verdict = torch.tensor([-3.0, -0.5, 0.0, 0.4, 1.0, 9.0])
    found = []
    for which in (method, plain):
        sample = x.clone().requires_grad_()
        networks = {**as_the_loop_does(which, "generator"), "generator": lambda *_, sample=sample: sample}
        networks["head"] = lambda features: verdict[:, None]
        output = which.loss("generator", networks, batch(), seeded(), {})
        found.append((torch.autograd.grad(output.loss, sample)[0], output))
    rng = seeded()
    torch.randn(NUM, 1, 8, 8, generator=rng)  # the generator's noise
    _, s = noised(x, 20, 980, rng)
    ratio = verdict.exp().clamp(0.1, 20).double()
    index = torch.tensor([(karras(torch.arange(1000)).float() - level).abs().argmin() for level in s])
    group = index * 10 // 1000
    mean = torch.tensor([0.9 + 0.1 * ratio[group == g].mean() for g in group])
    weight = h(ratio / mean)
    expected = found[1][0].double() * (weight / weight.mean())[:, None, None, None]
    torch.testing.assert_close(found[0][0].double(), expected, rtol=1e-4, atol=1e-9)
    assert found[0][1].terms["ratio"].item() == pytest.approx(ratio.mean().item(), rel=1e-5)
    state = json.loads(json.dumps(method.state_dict()))
    assert state["ratio_means"][group[0]] == pytest.approx(mean[0].item())
    assert min(state["ratio_means"][g] == 1.0 for g in range(10) if g not in group)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_field_of_several_steps_is_that_of_the_last(make_method, steps):
    """A frame of the dashboard asks for it; the fake network must be told a step."""
    method = make_method(sampler_steps=steps, sampler_sigmas=LEVELS[:steps])
    points = torch.randn(5, 1, 8, 8, generator=seeded())
    where, field = method.field(points, points, points)
    assert torch.equal(where, points)
    fake = method.networks["fake"].copies[-1] if steps > 1 else method.networks["fake"]
    sigma = method.levels[len(method.levels) // 2].float()
    expected = method.networks["teacher"](points, sigma, None) - fake(points, sigma, None)
    torch.testing.assert_close(field, expected.detach())


# --- Uni-Instruct


def generator_s_gradient(method, verdict=None):
    """(output, its gradient at the samples, which stand by themselves); the heads say `verdict`."""
    sample = torch.randn(NUM, 1, 8, 8, generator=seeded(7)).requires_grad_()
    networks = {**as_the_loop_does(method, "generator"), "generator": lambda *_: sample}
    if verdict is not None:
        networks["head"] = lambda features: verdict[:, None]
    output = method.loss("generator", networks, batch(), seeded(), {})
    return output, torch.autograd.grad(output.loss, sample)[0]


@pytest.mark.parametrize("gan", [False, True])
def test_uni_with_reverse_kl_is_sid_with_an_alpha_of_one_half_and_needs_no_head(make_method, gan):
    (uni, found), (sid, expected) = (
        generator_s_gradient(make_method(gan=gan, gan_weight_generator=0.0, **options))
        for options in ({"loss": "uni"}, {"loss": "sid", "sid_alpha": 0.5})
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(uni.terms["dm"], sid.terms["dm"], rtol=1e-4, atol=1e-7)
    assert "ratio" not in uni.terms


@pytest.mark.parametrize("divergence", ["kl", "js", "hellinger"])
def test_uni_is_the_weighted_sum_at_the_ratio_of_the_heads(make_method, divergence):
    """The exact sum, which `tests/maths/test_uni.py` holds to the divergence, with the heads' r over its running mean at the level."""
    verdict = torch.tensor([-3.0, -0.5, 0.0, 0.4, 1.0, 9.0])
    method = make_method(gan=True, gan_weight_generator=0.0, f_divergence=divergence, loss="uni")
    seen = {}

    def teacher(x_s, s, label, inner=method.networks["teacher"]):
        seen["x_s"], seen["s"], seen["real"] = x_s, s, inner(x_s, s, label)
        return seen["real"]

    sample = torch.randn(NUM, 1, 8, 8, generator=seeded(7)).requires_grad_()
    networks = {**method.networks, "generator": lambda *_: sample, "teacher": teacher, "head": lambda features: verdict[:, None]}
    output = method.loss("generator", networks, batch(), seeded(), {})
    (found,) = torch.autograd.grad(output.loss, sample, retain_graph=True)
    s = seen["s"]
    level = torch.tensor([(karras(torch.arange(1000)).float() - at).abs().argmin() for at in s]) * 10 // 1000
    ratio = verdict.exp().clamp(0.1, 20).double()
    ratio = ratio / torch.tensor([0.9 + 0.1 * ratio[level == g].mean() for g in level])
    fake = method.networks["fake"](seen["x_s"], s, batch().label)
    expected = uni_loss(sample, seen["x_s"], s, seen["real"], fake, ratio.float(), divergence)
    expected = expected / f_divergence_weight(ratio, divergence).mean().float()
    torch.testing.assert_close(output.terms["dm"], expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, torch.autograd.grad(expected, sample)[0], rtol=1e-3, atol=1e-7)
    assert output.terms["ratio"].item() == pytest.approx(verdict.exp().clamp(0.1, 20).mean().item(), rel=1e-5)
    assert "method.f_divergence" in method.needs_whole_batch


def test_a_weight_that_is_never_measured_is_said(make_method, capsys):
    make_method(gan=True, gan_weight_generator="auto", dfake_gen_update_ratio=5, warmup=3, steps=20)  # the fourth update measures it
    assert "gan_weight_generator" not in capsys.readouterr().err
    method = make_method(gan=True, gan_weight_generator="auto", dfake_gen_update_ratio=5, warmup=4, steps=20)
    assert "measured after 4 updates of the generator, of which this run makes 4: the generator never feels" in capsys.readouterr().err
    for _ in range(4):
        x = torch.ones(2, 3, requires_grad=True)
        method.critic.measure_weight(x.sum(), 2 * x.sum(), x, method.generator_updates)
        method.after_update("generator")
    assert method.critic.weight == 0.0


@pytest.mark.parametrize(("share", "split"), [(0.9, "4 to the regression and 0"), (0.1, "0 to the regression and 4")])
def test_a_share_of_regression_that_leaves_one_loss_no_update_is_refused(make_method, share, split):
    with pytest.raises(ValueError, match=rf"regression is {share}, which of the generator's 4 updates gives {split} to the matching"):
        make_method(regression=share, dfake_gen_update_ratio=5, steps=20)
    method = make_method(regression=0.25, dfake_gen_update_ratio=5, steps=20)
    assert method.regression == 1
    assert method.divides_run  # in a longer run the generator would come back to the pairs
    assert not make_method(min_step_start=0.5, steps=20).divides_run
