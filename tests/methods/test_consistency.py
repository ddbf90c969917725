import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from exact_flows import EXACT, draws, gaussian_flow, rms
from fewstep.generator import Generator
from fewstep.maths.flow import ode_step
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.methods.base import Batch
from fewstep.methods.consistency import Consistency
from fewstep.methods.consistency.settings import ConsistencySettings

NUM = 8


def settings(**changes):
    return ConsistencySettings(name="consistency", **changes)


UNET = {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8}
EDM_UNET = {"name": "edm_unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []}


def student(num_classes=None, dropout=0.0, label_dropout=0.0, network=UNET):
    torch.manual_seed(0)
    network = {**network, "dropout": dropout}
    sampler = {"name": "few_step", "levels": [[80.0], [80.0, 0.8]], "steps": 1}
    made = Generator((1, 8, 8), num_classes, 0.5, network, sampler, {"label_dropout": label_dropout})
    for p in made.parameters():
        nn.init.normal_(p, std=0.05)
    return made


def batch(num_classes=None):
    rng = torch.Generator().manual_seed(1)
    label = None if num_classes is None else torch.randint(num_classes, (NUM,), generator=rng)
    return Batch(torch.rand(NUM, 1, 8, 8, generator=rng) * 2 - 1, label)


def loss(method, seed=2, data=None):
    return method.loss("student", method.networks, data or batch(), torch.Generator().manual_seed(seed), {})


# --- the function that is looked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("law", "exact"), [("gaussian", 1e-12), ("mixture", 1e-4)])
def test_the_residual_along_the_flow_is_zero_at_the_exact_function_and_not_beside_it(law, exact):
    flow, denoiser, _ = EXACT[law]
    x, sigma, _ = draws()
    v = (x - denoiser(x, sigma)) / expand_like(sigma, x)

    def residual(f):
        return rms(torch.func.jvp(f, (x, sigma), (v, torch.ones_like(sigma)))[1])

    assert residual(lambda y, s: flow(y, s, 0 * s)) < exact
    assert residual(lambda y, s: flow(y, s, 0 * s) * (1 + 0.05 * torch.sin(expand_like(s, y)))) > 1e-2
    assert residual(denoiser) > 1e-2  # a denoiser is no consistency function


@pytest.mark.parametrize("law", EXACT)
def test_the_distilled_target_is_met_at_the_exact_function_as_the_gap_closes(law):
    """f(x_s) less f at the teacher's next point, over the gap: of first order for Euler's step, of second for Heun's."""
    flow, denoiser, _ = EXACT[law]
    x, sigma, _ = draws(low=0.3)
    found = {}
    for second_order in (False, True):
        for gap in (0.16, 0.08):
            r = sigma * (1 - gap)
            there = flow(ode_step(denoiser, x, sigma, r, second_order), r, 0 * r)
            found[second_order, gap] = rms((flow(x, sigma, 0 * sigma) - there) / gap)
    assert found[False, 0.16] < 0.2
    assert 1.7 < found[False, 0.16] / found[False, 0.08] < 2.3
    assert 3.2 < found[True, 0.16] / found[True, 0.08] < 5.5


def test_the_same_noise_meets_it_on_average_as_the_gap_closes():
    """The mean of [f(x0 + s n) - f(x0 + r n)] / gap against a test direction, over 400,000 draws; a standard error is about .002."""
    rng = torch.Generator().manual_seed(1)
    x0 = 0.3**0.5 * torch.randn(400_000, 2, generator=rng, dtype=torch.float64) + torch.tensor([0.7, -0.4])
    n, sigma, found = torch.randn(400_000, 2, generator=rng, dtype=torch.float64), torch.ones(400_000, dtype=torch.float64), []
    for gap in (0.4, 0.1):
        x, y = x0 + n, x0 + (1 - gap) * n
        difference = (gaussian_flow(x, sigma, 0 * sigma) - gaussian_flow(y, (1 - gap) * sigma, 0 * sigma)) / gap
        found.append((difference * (x - torch.tensor([0.7, -0.4]))).mean(0).abs().max().item())
    assert found[1] < found[0] / 2.5
    assert found[1] < 0.03


# --- the loss -------------------------------------------------------------------------------------------------------------


def drawn_by_hand(method, seed=2):
    """What `loss` draws for a batch without classes: sigma and n."""
    s, rng = method.settings, torch.Generator().manual_seed(seed)
    log = s.sigma_mean + s.sigma_std * torch.randn(NUM, generator=rng)
    log = torch.where(log > math.log(s.sigma_max), 2 * math.log(s.sigma_max) - log, log)
    return log.exp().clamp(min=s.sigma_min), torch.randn(NUM, 1, 8, 8, generator=rng)


def test_stage_zero_is_denoising():
    method = Consistency(settings(gap_k=0.0), student(), steps=600)
    sigma, n = drawn_by_hand(method)
    x0 = batch().x
    estimate = method.networks["student"](x0 + expand_like(sigma, x0) * n, sigma)
    expected = (edm_weight(sigma, 0.5) * (estimate - x0).square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(loss(method).loss, expected)
    assert loss(method).terms["gap"] == 1


@pytest.mark.parametrize("distance", ["squared", "pseudo_huber"])
@pytest.mark.parametrize(("network", "dropout"), [(UNET, 0.0), (UNET, 0.3), (EDM_UNET, 0.3)], ids=["no dropout", "unet", "edm_unet"])
def test_a_later_stage_by_hand(distance, network, dropout):
    """The same noise at a gap of 1/4, with the same dropout at both levels, and no gradient through the target."""
    made = student(dropout=dropout, network=network)
    method = Consistency(settings(gap_k=0.0, first_stage=2, distance=distance, huber_c=0.1), made, steps=600)
    network = method.networks["student"].train()
    sigma, n = drawn_by_hand(method)
    x0 = batch().x
    r = 0.75 * sigma
    torch.manual_seed(5)
    with torch.no_grad():
        target = network(x0 + expand_like(r, x0) * n, r)
    torch.manual_seed(5)
    difference = (network(x0 + expand_like(sigma, x0) * n, sigma) - target).square().flatten(1)
    if distance == "squared":
        expected = (edm_weight(sigma, 0.5) * difference.mean(1) * 4).mean()
    else:
        expected = (((difference.sum(1) + 0.01).sqrt() - 0.1) / (sigma - r)).mean()
    torch.manual_seed(5)
    found = loss(method).loss
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value, list(network.parameters()), allow_unused=True) for value in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("solver", ["euler", "heun", "none"])
def test_a_teacher_s_step_leads_to_the_next_level(solver):
    teacher = student(3)
    teacher.sampler = {"name": "heun", "steps": 3, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    for p in teacher.parameters():
        p.data.mul_(1.3)
    method = Consistency(settings(gap_k=0.0, first_stage=1, solver=solver, sigma_mean=0.0, sigma_std=0.5), student(3), 600, teacher)
    asked = {}

    def spy(x, sigma, label):
        asked[len(asked)] = (x, sigma, label)
        return method.networks["student"](x, sigma, label)

    networks = {"student": spy, "teacher": method.networks["teacher"]}
    data = batch(3)
    method.loss("student", networks, data, torch.Generator().manual_seed(2), {})
    (x_r, r, label), (x_s, sigma, same_label) = asked[0], asked[1]
    torch.testing.assert_close(r, sigma / 2)
    assert torch.equal(label, data.label)
    assert torch.equal(same_label, data.label)
    if solver == "none":
        expected = data.x + (x_s - data.x) / 2
    else:
        expected = ode_step(lambda x, level: teacher.denoiser(x, level, data.label), x_s, sigma, r, solver == "heun")
    torch.testing.assert_close(x_r, expected)


def test_the_teacher_never_learns_and_the_student_starts_as_it():
    teacher = student(3)
    given = SimpleNamespace(teacher=teacher, network=SimpleNamespace(role="copy"), steps=10)
    method = Consistency.make(settings(first_stage=2), given)
    for ours, theirs in zip(method.networks["student"].parameters(), teacher.denoiser.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
    loss(method, data=batch(3)).loss.backward()
    assert all(p.grad is None for p in method.networks["teacher"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.networks["student"].parameters())
    assert method.kept_teacher is teacher


# --- the run ----------------------------------------------------------------------------------------------------------------


def test_gaps_halve_with_the_stages_of_the_run_and_go_on_after_a_resume():
    method, gaps = Consistency(settings(gap_k=0.0, stages=4), student(), steps=8), []
    for _ in range(8):
        gaps.append(loss(method).terms["gap"].item())
        method.after_update("student")
    assert gaps == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    other = Consistency(settings(gap_k=0.0, stages=4), student(), steps=8)
    method.updates["student"] = 5
    other.load_state_dict(method.state_dict())
    assert other.settings_now() == {"stage": 2.0}
    assert method.best_from == pytest.approx(2 / 3)  # what a stage has not settled is no guide


def test_what_ships_is_sampled_in_one_step_or_two():
    method = Consistency(settings(levels=[[80.0], [80.0, 0.8]]), student(3), steps=8)
    shipped = method.ship(method.networks["student"], 8)
    assert shipped.info["method"] == "consistency"
    assert shipped.step_counts == [1, 2]
    one, two = shipped.sample(4, seed=0), shipped.sample(4, seed=0, steps=2)
    rng = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(4, 1, 8, 8, generator=rng), torch.randn(4, 1, 8, 8, generator=rng)
    label = torch.arange(4) % 3
    first = shipped.denoiser(80 * latents, torch.tensor(80.0), label)
    torch.testing.assert_close(one, first.clamp(-1, 1))
    torch.testing.assert_close(two, shipped.denoiser(first + 0.8 * noise, torch.tensor(0.8), label).clamp(-1, 1))
    with pytest.raises(ValueError, match="made for 1, 2"):
        shipped.sample(4, steps=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"levels": [[80.0, 90.0]]}, "must fall"),
        ({"levels": [[90.0]]}, "from sigma_max 80.0"),
        ({"levels": [[80.0], [70.0]]}, "one list for each number"),
        ({"sampler_steps": 2, "levels": [[80.0]]}, "one of 2"),
        ({"sigma_min": 90.0}, "must be below sigma_max"),
    ],
)
def test_settings_that_do_not_go_together(changes, words):
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_guidance_needs_a_teacher_that_knows_no_class():
    with pytest.raises(ValueError, match=r"method\.guidance_scale is 2"):
        Consistency(settings(guidance_scale=2.0), student(3))
    with pytest.raises(ValueError, match=r"method\.guidance_scale is 2"):
        Consistency(settings(guidance_scale=2.0), student(3), 8, student(3))
    Consistency(settings(guidance_scale=2.0), student(3), 8, student(3, label_dropout=0.1))


def test_a_step_that_no_teacher_takes_is_neither_guided_nor_heun_s():
    with pytest.raises(ValueError, match=r"method\.guidance_scale is 2.0, but with method.solver=none"):
        Consistency(settings(guidance_scale=2.0, solver="none"), student(3), 8, student(3, label_dropout=0.1))
    with pytest.raises(ValueError, match=r"method\.solver is 'heun', by which a teacher steps, and there is none"):
        Consistency(settings(solver="heun"), student(), 8)
    Consistency(settings(solver="heun", own_teacher=0.5), student(), 8)
    Consistency(settings(solver="heun"), student(), 8, None, student().denoiser)  # the closed form


def test_labels_are_hidden_only_from_a_teacher_that_knows_no_class():
    with pytest.raises(ValueError, match=r"method\.label_dropout is 0.2, but the teacher was trained without"):
        Consistency(settings(label_dropout=0.2), student(3), 8, student(3))
    Consistency(settings(label_dropout=0.2), student(3), 8, student(3, label_dropout=0.1))
    Consistency(settings(label_dropout=0.2, solver="none"), student(3), 8, student(3))  # which learns from the items
    Consistency(settings(label_dropout=0.2), student(), 8, student())  # without classes
