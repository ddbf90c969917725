import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from exact_flows import EXACT, draws, rms
from fewstep.denoisers.two_time import CONDITION, gap_features
from fewstep.generator import Generator, load
from fewstep.maths.flow import towards
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.methods.base import Batch
from fewstep.methods.flow_map import FlowMap
from fewstep.methods.flow_map.equations import (
    derivative_residual,
    discrete_weight,
    drawn_rho,
    forward_differentiable,
    share_of_estimate,
    time_derivative,
)
from fewstep.methods.flow_map.settings import FlowMapSettings
from fewstep.samplers import few_step, two_time
from fewstep.streams import Noise

NUM = 8
HEUN = {"name": "heun", "steps": 3, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


def settings(**changes):
    return FlowMapSettings(name="flow_map", **changes)


def network(**more):
    return {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8, "time_scale": 50.0, **more}


def noisy(generator, seed=0):
    torch.manual_seed(seed)
    for p in generator.parameters():
        nn.init.normal_(p, std=0.05)
    return generator


def teacher(num_classes=3, **info):
    return noisy(Generator((1, 8, 8), num_classes, 0.5, network(), HEUN, info), seed=7)


def student(num_classes=None, **more):
    sampler = {"name": "two_time", "steps": 1, "sigma_max": 20.0, "middle": 0.5, **more}
    return noisy(Generator((1, 8, 8), num_classes, 0.5, network(condition=CONDITION), sampler, None, {"name": "two_time"}))


def batch(num_classes=None):
    rng = torch.Generator().manual_seed(1)
    label = None if num_classes is None else torch.randint(num_classes, (NUM,), generator=rng)
    return Batch(torch.rand(NUM, 1, 8, 8, generator=rng) * 2 - 1, label)


# --- the map that is looked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("law", "exact"), [("gaussian", 1e-11), ("mixture", 5e-5)])
def test_the_derivative_form_is_zero_at_the_exact_flow_map_and_not_beside_it(law, exact):
    _, denoiser, aimed = EXACT[law]
    x, sigma, rho = draws(seed=2, low=0.2)
    x0_hat = denoiser(x, sigma)

    def residual(net, how, step=0.1):
        slope = time_derivative(net, x, sigma, rho, x0_hat, how, step)
        return derivative_residual(net(x, sigma, rho), slope, x0_hat, sigma, rho)

    def wrong(y, s, r):
        return aimed(y, s, r) * (1 + 0.05 * torch.sin(expand_like(s, y)))

    assert rms(residual(aimed, "jvp")) < exact
    assert rms(residual(aimed, "difference")) < 2e-3
    by_jvp, by_difference = residual(wrong, "jvp"), residual(wrong, "difference", 0.02)
    assert rms(by_jvp) > 1e-2
    assert rms(by_jvp - by_difference) < 0.01 * rms(by_jvp)


@pytest.mark.parametrize("law", EXACT)
def test_the_discrete_target_is_met_at_the_exact_flow_map_as_the_gap_closes(law):
    """(X - target) (1 - rho/sigma) / (1 - s/sigma), with the exact denoiser's step, is of first order in the gap."""
    _, denoiser, aimed = EXACT[law]
    x, sigma, rho = draws(seed=3, low=0.3)
    x0_hat, found = denoiser(x, sigma), []
    for gap in (0.04, 0.02):
        s = torch.maximum(sigma * (1 - gap), rho)
        lam = expand_like(share_of_estimate(sigma, s, rho), x)
        target = lam * x0_hat + (1 - lam) * aimed(towards(x, x0_hat, sigma, s), s, rho)
        scale = expand_like((1 - rho / sigma) / (1 - s / sigma), x)
        found.append(rms((scale * (aimed(x, sigma, rho) - target))[s > rho]))
    assert 1.7 < found[0] / found[1] < 2.3
    assert found[1] < 5e-2


def test_aiming_at_the_discrete_target_is_first_stepping_to_s_and_then_aiming_at_x():
    _, _, aimed = EXACT["gaussian"]
    x, sigma, rho = draws(seed=4)
    s, x0_hat = torch.maximum(0.8 * sigma, rho), torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lam, x_s = expand_like(share_of_estimate(sigma, s, rho), x), towards(x, x0_hat, sigma, s)
    target = lam * x0_hat + (1 - lam) * aimed(x_s, s, rho)
    torch.testing.assert_close(towards(x, target, sigma, rho), towards(x_s, aimed(x_s, s, rho), s, rho))


def test_the_ends_of_the_discrete_form_are_denoising_and_a_consistency_model():
    _, sigma, rho = draws(seed=5)
    assert torch.equal(share_of_estimate(sigma, rho, rho), torch.ones_like(rho))
    assert torch.equal(share_of_estimate(sigma, 0.5 * sigma, 0 * rho), torch.zeros_like(rho))
    torch.testing.assert_close(discrete_weight(sigma, rho, rho, 0.5), edm_weight(sigma, 0.5))
    torch.testing.assert_close(discrete_weight(sigma, 0.75 * sigma, 0 * rho, 0.5), 4 * edm_weight(sigma, 0.5))


@pytest.mark.parametrize("levels", [[80.0], [80.0, 1.0], [80.0, 2.0, 0.7, 0.3]])
@pytest.mark.parametrize("law", ["gaussian"])
def test_the_sampler_follows_the_exact_map_to_the_same_end_in_any_number_of_steps(law, levels):
    flow, _, aimed = EXACT[law]
    n = torch.randn(500, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def denoiser(x, sigma, label, rho):
        return aimed(x, sigma.expand(len(x)), rho.expand(len(x)))

    sigma = torch.full((500,), 80.0, dtype=torch.float64)
    torch.testing.assert_close(two_time(denoiser, n, torch.tensor(levels)), flow(80 * n, sigma, 0 * sigma), atol=1e-9, rtol=0)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_the_sampler_keeps_the_exact_marginals_whatever_new_noise_it_adds(churn):
    """Of Gaussian data: what is told to the network is the level that is reached before the noise is added."""
    _, _, aimed = EXACT["gaussian"]
    n = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    told = []

    def denoiser(x, sigma, label, rho):
        told.extend([sigma.item(), rho.item()])
        return aimed(x, sigma.expand(len(x)), rho.expand(len(x)))

    levels = [80.0, 2.0, 0.7]
    plain = two_time(denoiser, n, torch.tensor(levels))
    told.clear()
    samples = two_time(denoiser, n, torch.tensor(levels), noise=Noise(torch.Generator().manual_seed(7)), churn=churn)
    kept = math.sqrt(1 - churn**2)
    assert told == pytest.approx([80, kept * 2, 2, kept * 0.7, 0.7, 0])
    torch.testing.assert_close(samples.mean(0), plain.mean(0), atol=4 * plain.std().item() * math.sqrt(2 / len(n)), rtol=0)
    torch.testing.assert_close(samples.std(0), plain.std(0), atol=0, rtol=4 / math.sqrt(len(n)))
    together = torch.corrcoef(torch.stack([samples[:, 0], plain[:, 0]]))[0, 1].item()
    assert (together > 0.999999) == (churn == 0)


def test_with_all_noise_new_a_flow_map_samples_as_a_consistency_model_does():
    denoiser = student(3).denoiser
    latents, label = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 3
    levels, draws = torch.tensor([20.0, 1.0, 0.3]), [Noise(torch.Generator().manual_seed(2)) for _ in range(2)]
    with torch.no_grad():
        found = two_time(denoiser, latents, levels, label, draws[0], churn=1.0)
        expected = few_step(lambda x, sigma, told: denoiser(x, sigma, told, 0 * sigma), latents, levels, label, draws[1])
    torch.testing.assert_close(found, expected)


def test_churn_is_the_generator_s_own_and_can_be_changed_in_sampling():
    ours = student(3, churn=1.0)
    still = student(3)
    assert still.sampler.get("churn", 0.0) == 0.0
    assert torch.equal(ours.sample(2, seed=1, steps=4, churn=0.0), still.sample(2, seed=1, steps=4))
    assert torch.equal(ours.sample(2, seed=1, steps=4), still.sample(2, seed=1, steps=4, churn=1.0))
    assert not torch.equal(ours.sample(2, seed=1, steps=4), still.sample(2, seed=1, steps=4))
    assert torch.equal(ours.sample(2, seed=1, steps=1), still.sample(2, seed=1, steps=1))  # one step has no level to add noise at


# --- the second time --------------------------------------------------------------------------------------------------------


def test_a_gap_of_nothing_is_described_by_zeros_and_any_other_is_not():
    sigma = torch.logspace(-2, 1.9, 30)
    assert not gap_features(sigma, sigma, 0.5).any()
    described = gap_features(sigma, 0.9 * sigma, 0.5)
    assert described.shape == (30, CONDITION)
    assert described[:, 0].allclose(torch.tensor(0.1))
    assert (described.norm(dim=1) > 0.1).all()


def test_a_student_starts_as_its_teacher_s_denoiser_whatever_the_gap():
    generator = teacher()
    given = SimpleNamespace(teacher=generator, network=SimpleNamespace(role="copy"), steps=10, data=None)
    method = FlowMap.make(settings(teacher="runs/teacher"), given)
    data = batch(3)
    sigma = torch.logspace(-1, 1.5, NUM)
    with torch.no_grad():
        expected = generator.denoiser(data.x, sigma, data.label)
        for rho in (sigma, 0.3 * sigma, 0 * sigma):
            torch.testing.assert_close(method.networks["student"].eval()(data.x, sigma, data.label, rho), expected)
    assert method.student.sampler["middle"] == generator.sigma_data
    assert "churn" not in method.student.sampler
    assert FlowMap.make(settings(teacher="runs/teacher", churn=0.5), given).student.sampler["churn"] == 0.5
    assert method.velocity == "teacher"


@pytest.mark.parametrize("gain", [1.0, 10.0])
def test_what_ships_is_told_of_the_gap_as_loudly_as_it_learned_it(gain, tmp_path):
    given = SimpleNamespace(teacher=teacher(), network=SimpleNamespace(role="copy"), steps=10, data=None)
    method = FlowMap.make(settings(teacher="runs/teacher", gap_gain=gain), given)
    noisy(method.student)
    method.ship(method.networks["student"], 8).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.denoiser.gain == gain
    assert torch.equal(loaded.sample(2, seed=0, steps=2), method.student.sample(2, seed=0, steps=2))


def test_a_teacher_of_another_parametrisation_cannot_be_copied():
    betas = {"schedule": "linear", "start": 1e-4, "end": 0.02, "num": 1000}
    foreign = Generator((1, 8, 8), None, 0.5, network(), HEUN, None, {"name": "ddpm", "prediction": "epsilon", "betas": betas})
    given = SimpleNamespace(teacher=foreign, network=SimpleNamespace(role="copy"), steps=10, data=None)
    with pytest.raises(ValueError, match="EDM's preconditioning"):
        FlowMap.make(settings(teacher="runs/teacher"), given)


# --- the loss ----------------------------------------------------------------------------------------------------------------


def drawn_by_hand(s, x0, seed=2):
    rng = torch.Generator().manual_seed(seed)
    log = s.sigma_mean + s.sigma_std * torch.randn(NUM, generator=rng)
    log = torch.where(log > math.log(s.sigma_max), 2 * math.log(s.sigma_max) - log, log)
    sigma = log.exp().clamp(min=s.sigma_min)
    x = x0 + expand_like(sigma, x0) * torch.randn(x0.shape, generator=rng)
    return sigma, x, drawn_rho(sigma, 0.5, s.zero, s.anchor, rng)


def loss(method, data, seed=2):
    return method.loss("student", method.networks, data, torch.Generator().manual_seed(seed), {})


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_discrete_loss_by_hand(taught, guidance):
    path = "runs/teacher" if taught else None
    s = settings(teacher=path, gap_k=0.0, first_stage=2, anchor=0.3, label_dropout=0.0 if taught else 1e-9, guidance_scale=guidance)
    guide = teacher(label_dropout=0.1) if taught else None
    method = FlowMap(s, student(3), 600, guide)
    net, data = method.networks["student"].eval(), batch(3)
    rng_free = settings(gap_k=0.0, anchor=0.3)
    rng = torch.Generator().manual_seed(2)
    if not taught:
        torch.rand(NUM, generator=rng)  # which labels are hidden: none
    sigma = (rng_free.sigma_mean + rng_free.sigma_std * torch.randn(NUM, generator=rng)).exp()
    assert sigma.max() < s.sigma_max  # nothing to fold
    x = data.x + expand_like(sigma, data.x) * torch.randn(data.x.shape, generator=rng)
    rho = drawn_rho(sigma, 0.5, s.zero, s.anchor, rng)
    with torch.no_grad():
        if taught:
            x0_hat = guide.denoiser(x, sigma, data.label)
            if guidance != 1:
                x0_hat = guide.denoiser(x, sigma, None) + guidance * (x0_hat - guide.denoiser(x, sigma, None))
        else:
            x0_hat = data.x
            if guidance != 1:
                own = net(x, sigma, None, sigma)
                x0_hat = own + guidance * (data.x - own)
        low = torch.maximum(0.75 * sigma, rho)
        lam = expand_like(share_of_estimate(sigma, low, rho), x)
        there = net(x0_hat + expand_like(low / sigma, x) * (x - x0_hat), low.clamp(min=1e-6), data.label, rho)
        target = torch.where(expand_like(low > rho, x), lam * x0_hat + (1 - lam) * there, x0_hat)
    weight = discrete_weight(sigma, low, rho, 0.5)
    expected = (weight * (net(x, sigma, data.label, rho) - target).square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(loss(method, data).loss, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_s_heun_step_aims_where_its_two_slopes_point_together():
    s = settings(teacher="runs/teacher", solver="heun", gap_k=0.0, first_stage=2, anchor=0.3)
    guide = teacher()
    method = FlowMap(s, student(3), 600, guide)
    net, data = method.networks["student"].eval(), batch(3)
    sigma, x, rho = drawn_by_hand(s, data.x)
    low = torch.maximum(0.75 * sigma, rho)
    share = expand_like(low / sigma, x)
    with torch.no_grad():
        first = guide.denoiser(x, sigma, data.label)
        euler = share * x + (1 - share) * first
        second = guide.denoiser(euler, low, data.label)
        slope = ((x - first) / expand_like(sigma, x) + (euler - second) / expand_like(low, x)) / 2
        x_s = x + expand_like(low - sigma, x) * slope
        lam = expand_like(share_of_estimate(sigma, low, rho), x)
        aim = x - expand_like(sigma, x) * slope
        target = torch.where(expand_like(low > rho, x), lam * aim + (1 - lam) * net(x_s, low, data.label, rho), aim)
    weight = discrete_weight(sigma, low, rho, 0.5)
    expected = (weight * (net(x, sigma, data.label, rho) - target).square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(loss(method, data).loss, expected, rtol=1e-4, atol=1e-5)


def test_its_own_estimate_is_learned_from_the_items_and_followed_elsewhere():
    """velocity "own": at rho = sigma the target is the item itself, below it is what the student makes of it there."""
    s = settings(gap_k=0.0, first_stage=0, velocity="own", anchor=0.5)
    method = FlowMap(s, student(), 600)
    net, data = method.networks["student"].eval(), batch()
    sigma, x, rho = drawn_by_hand(s, data.x)
    with torch.no_grad():
        own = net(x, sigma, None, sigma)
        out = net(x, sigma, None, rho)
    target = torch.where(expand_like(rho == sigma, x), data.x, own)  # a gap of 1: s = rho
    expected = (edm_weight(sigma, 0.5) * (out - target).square().flatten(1).mean(1)).mean()
    assert 0 < (rho == sigma).sum() < NUM
    torch.testing.assert_close(loss(method, data).loss, expected)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("velocity", ["data", "own"])
def test_learned_guidance_is_applied_once_and_never_to_items_without_a_class(velocity, guidance):
    """The aim of a student that is exact: D_w = D_none + w (D_class - D_none) on average for a class, and D_none without one."""
    s = settings(gap_k=0.0, first_stage=2, velocity=velocity, anchor=0.5, label_dropout=0.5, guidance_scale=guidance)
    method = FlowMap(s, student(3), 600)
    label = torch.arange(NUM) % 4  # 3 is no class
    sigma = torch.linspace(0.5, 2.0, NUM)
    rho = torch.where(torch.arange(NUM) < 4, sigma, 0.3 * sigma)  # each label at both
    x, zero = torch.randn(NUM, 1, 8, 8, generator=torch.Generator().manual_seed(4)), torch.zeros(NUM, 1, 8, 8)
    of_class = torch.tensor([1.0, 2.0, 5.0, 0.0])  # what the denoisers of the classes give; that without a class gives 0

    def exact(y, level, known, low):
        known = torch.full((len(y),), 3) if known is None else known
        return zero[: len(y)] + expand_like(guidance * of_class[known], y)

    x0 = zero + expand_like(of_class[label], x)  # the items: on average what the denoiser gives
    found = method._estimate({"student": exact}, x0, x, sigma, rho, rho, label)
    torch.testing.assert_close(found, zero + expand_like(guidance * of_class[label], x))

    def untaught(y, level, known, low):
        return exact(y, level, known, low) + 7.0

    found = method._estimate({"student": untaught}, x0, x, sigma, rho, rho, label)
    learns = (label == 3) & ((rho == sigma) | torch.tensor(velocity == "data"))
    torch.testing.assert_close(found[learns], x0[learns])  # whatever the student makes of them


@pytest.mark.parametrize("velocity", ["data", "own", "teacher"])
@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_the_derivative_loss_by_hand(velocity, derivative):
    guide = teacher(None) if velocity == "teacher" else None
    path = "runs/teacher" if guide else None
    s = settings(form="derivative", velocity=velocity, derivative=derivative, teacher=path)
    method = FlowMap(s, student(), 600, guide)
    net, data = method.networks["student"].eval(), batch()
    sigma, x, rho = drawn_by_hand(s, data.x)
    with torch.no_grad(), forward_differentiable(net):
        x0_hat = guide.denoiser(x, sigma) if guide else data.x
        slope_from = net(x, sigma, None, sigma) if velocity == "own" else x0_hat
        slope = time_derivative(lambda y, a, b: net(y, a, None, b), x, sigma, rho, slope_from, derivative, 0.1)
        value = net(x, sigma, None, rho)
        target = value - derivative_residual(value, slope, x0_hat, sigma, rho)
    expected = (edm_weight(sigma, 0.5) * (net(x, sigma, None, rho) - target).square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(loss(method, data).loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "velocity", "guidance", "derivative"),
    [
        ("discrete", "own", 1.0, "auto"),
        ("discrete", "own", 2.0, "auto"),
        ("discrete", "data", 2.0, "auto"),
        ("derivative", "own", 2.0, "jvp"),
        ("derivative", "data", 1.0, "difference"),
    ],
)
def test_all_passes_of_a_step_drop_the_same_activations(form, velocity, guidance, derivative):
    edm_unet = {
        "name": "edm_unet",
        "channels": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [],
        "dropout": 0.3,
        "condition": CONDITION,
    }
    sampler = {"name": "two_time", "steps": 1, "sigma_max": 20.0, "middle": 0.5}
    made = noisy(Generator((1, 8, 8), 3, 0.5, edm_unet, sampler, None, {"name": "two_time"}))
    chosen = {"form": form, "velocity": velocity, "guidance_scale": guidance, "derivative": derivative, "anchor": 0.3}
    s = settings(gap_k=0.0, first_stage=2, label_dropout=1e-9, **chosen)
    method, data = FlowMap(s, made, 600), batch(3)
    network = method.networks["student"]
    assert network.training

    def net(*told):
        torch.manual_seed(5)
        return network(*told)

    rng = torch.Generator().manual_seed(2)
    torch.rand(NUM, generator=rng)  # which labels are hidden: none
    sigma = (s.sigma_mean + s.sigma_std * torch.randn(NUM, generator=rng)).exp()
    x = data.x + expand_like(sigma, data.x) * torch.randn(data.x.shape, generator=rng)
    rho = drawn_rho(sigma, 0.5, s.zero, s.anchor, rng)
    low = torch.maximum(0.75 * sigma, rho)
    with torch.no_grad(), forward_differentiable(network):
        x0_hat = data.x
        if guidance != 1:
            free = net(x, sigma, None, sigma)
            x0_hat = free + guidance * (data.x - free)
        if velocity == "own" and form == "discrete":
            x0_hat = torch.where(expand_like(rho < sigma, x), net(x, sigma, data.label, sigma), x0_hat)
        if form == "discrete":
            lam = expand_like(share_of_estimate(sigma, low, rho), x)
            target = lam * x0_hat + (1 - lam) * net(towards(x, x0_hat, sigma, low), low, data.label, rho)
            weight = discrete_weight(sigma, low, rho, 0.5)
        else:
            value = net(x, sigma, data.label, rho)
            slope_from = net(x, sigma, data.label, sigma) if velocity == "own" else x0_hat
            slope = time_derivative(lambda y, a, b: net(y, a, data.label, b), x, sigma, rho, slope_from, derivative, 0.1)
            target, weight = value - derivative_residual(value, slope, x0_hat, sigma, rho), edm_weight(sigma, 0.5)
    expected = (weight * (net(x, sigma, data.label, rho) - target).square().flatten(1).mean(1)).mean()
    torch.manual_seed(5)
    torch.testing.assert_close(loss(method, data).loss, expected, rtol=1e-4, atol=1e-5)


def test_the_derivative_through_the_network_is_that_of_small_differences():
    """In a network whose time embedding is smooth; `jvp` needs a way round what has no forward derivative."""
    net = student().denoiser.double().eval()
    net.network.float()
    for module in net.modules():
        module.double()
    x, sigma, rho = (part[:4] for part in draws(seed=6))
    x = x[:, :1, None, None].expand(4, 1, 8, 8).clone()

    def aimed(y, a, b):
        c_in = (a**2 + 0.25).rsqrt()
        condition = gap_features(a, b, 0.5)
        return net.network(expand_like(c_in, y) * y, a.log() / 4, None, condition=condition)

    with torch.no_grad(), forward_differentiable(net):
        exact = time_derivative(aimed, x, sigma, rho, 0 * x, "jvp", 0.1)
        close = time_derivative(aimed, x, sigma, rho, 0 * x, "difference", 1e-3)
    assert rms(exact - close) < 1e-3 * rms(exact)


def test_auto_says_so_where_the_network_has_no_forward_derivative(capsys, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no forward-mode derivative for this\nand more")

    assert FlowMap(settings(form="derivative"), student()).how == "jvp"
    monkeypatch.setattr(torch.func, "jvp", fails)
    assert FlowMap(settings(form="derivative"), student()).how == "difference"
    said = capsys.readouterr().err
    assert said == (
        "note: method.derivative is a central difference, for the network allows no torch.func.jvp (no forward-mode derivative for this)\n"
    )
    assert FlowMap(settings(form="derivative", derivative="jvp"), student()).how == "jvp"  # what is asked for is done


def test_levels_to_aim_at_have_their_shares():
    sigma = torch.logspace(-2, 1, 20_000)
    rho = drawn_rho(sigma, 0.5, 0.4, 0.25, torch.Generator().manual_seed(3))
    assert (rho == 0).float().mean().item() == pytest.approx(0.4, abs=0.015)  # four standard errors
    assert (rho == sigma).float().mean().item() == pytest.approx(0.25, abs=0.013)
    between = (rho > 0) & (rho < sigma)
    angle = torch.atan(rho[between] / 0.5) / torch.atan(sigma[between] / 0.5)
    assert angle.mean().item() == pytest.approx(0.5, abs=4 * 0.29 / between.sum().item() ** 0.5)


# --- the run ------------------------------------------------------------------------------------------------------------------


def test_what_ships_is_sampled_in_any_number_of_steps():
    method = FlowMap(settings(), student(3), steps=8)
    shipped = method.ship(method.networks["student"], 8)
    sigmas = shipped.sigmas(4)
    angles = torch.atan(sigmas / 0.5)
    torch.testing.assert_close(sigmas[0], torch.tensor(20.0, dtype=torch.float64))
    torch.testing.assert_close(angles[:-1] - angles[1:], angles[-1].expand(3))  # equal steps, the last to 0
    for steps in (1, 2, 7):
        assert shipped.sample(3, seed=0, steps=steps).shape == (3, 1, 8, 8)
        assert shipped.evaluations(steps) == steps
    assert not torch.equal(shipped.sample(3, seed=0, steps=1), shipped.sample(3, seed=0, steps=2))


def test_stages_are_a_matter_of_the_discrete_form():
    assert FlowMap(settings(), student()).best_from == pytest.approx(2 / 3)
    method = FlowMap(settings(form="derivative"), student())
    assert method.best_from == 0
    assert method.settings_now() == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero": 0.8, "anchor": 0.3}, "must not exceed 1 together"),
        ({"first_level": 40.0}, "must be sigma_max 30.0 at most"),
        ({"velocity": "teacher"}, "there is none"),
        ({"velocity": "own"}, "anchor is 0"),
        ({"solver": "heun"}, "solver is 'heun', by which a teacher steps"),
        ({"solver": "heun", "teacher": "runs/teacher", "form": "derivative"}, "solver is 'heun', by which a teacher steps"),
        ({"solver": "heun", "teacher": "runs/teacher", "velocity": "data"}, "solver is 'heun', by which a teacher steps"),
        ({"guidance_scale": 2.0, "velocity": "data"}, "no label is ever hidden"),
        ({"sigma_min": 50.0}, "must be below"),
    ],
)
def test_settings_that_do_not_go_together(changes, words):
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_labels_are_hidden_only_from_a_teacher_that_knows_no_class():
    taught = settings(label_dropout=0.2, teacher="runs/teacher")
    with pytest.raises(ValueError, match=r"method\.label_dropout is 0.2, but the teacher was trained without"):
        FlowMap(taught, student(3), 8, teacher())
    FlowMap(taught, student(3), 8, teacher(label_dropout=0.1))
    FlowMap(settings(label_dropout=0.2, teacher="runs/teacher", velocity="data"), student(3), 8, teacher())


def test_guidance_needs_classes_and_a_teacher_that_knows_no_class():
    with pytest.raises(ValueError, match=r"method\.guidance_scale is 2"):
        FlowMap(settings(guidance_scale=2.0, label_dropout=0.1), student())
    with pytest.raises(ValueError, match=r"method\.guidance_scale is 2"):
        FlowMap(settings(guidance_scale=2.0), student(3))
    with pytest.raises(ValueError, match=r"method\.guidance_scale is 2"):
        FlowMap(settings(guidance_scale=2.0, teacher="runs/teacher"), student(3), 8, teacher())
