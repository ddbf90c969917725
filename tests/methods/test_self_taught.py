"""What consistency models and flow maps share: a teacher of the student's own, learned in the first part of the run."""

import copy

import pytest
import torch
from torch import nn

from fewstep.generator import Generator
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.methods.base import Batch
from fewstep.methods.consistency import Consistency
from fewstep.methods.consistency.settings import ConsistencySettings
from fewstep.methods.flow_map import FlowMap
from fewstep.methods.flow_map.settings import FlowMapSettings

NET = {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8}


def consistency(steps=8, own_teacher=0.5, **changes):
    sampler = {"name": "few_step", "levels": [[80.0]], "steps": 1}
    generator = Generator((1, 8, 8), None, 0.5, NET, sampler)
    settings = ConsistencySettings(name="consistency", levels=[[80.0]], own_teacher=own_teacher, **changes)
    return Consistency(settings, noisy(generator), steps)


def flow_map(steps=8, own_teacher=0.5, **changes):
    sampler = {"name": "two_time", "steps": 1, "sigma_max": 20.0, "middle": 0.5}
    generator = Generator((1, 8, 8), None, 0.5, {**NET, "condition": 8}, sampler, None, {"name": "two_time"})
    return FlowMap(FlowMapSettings(name="flow_map", own_teacher=own_teacher, **changes), noisy(generator), steps)


def noisy(generator):
    torch.manual_seed(0)
    for p in generator.parameters():
        nn.init.normal_(p, std=0.05)
    return generator


def batch():
    return Batch(torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


BOTH = pytest.mark.parametrize("make", [consistency, flow_map])


@BOTH
def test_first_the_teacher_learns_and_then_the_student(make):
    method = make()
    due = [[turn.name for turn in method.turns if turn.is_due(step, 8)] for step in range(8)]
    assert due == [["teacher"]] * 4 + [["student"]] * 4
    assert [turn.updates(8) for turn in method.turns] == [4, 4]
    assert {turn.name: turn.trains for turn in method.turns} == {"teacher": ("teacher",), "student": ("student",)}


@BOTH
def test_the_teacher_s_loss_is_denoising_with_a_gradient_for_every_weight(make):
    method = make(own_sigma_mean=0.3, own_sigma_std=0.7)
    rng, x0 = torch.Generator().manual_seed(2), batch().x
    sigma = (0.3 + 0.7 * torch.randn(6, generator=rng)).exp()
    x = x0 + expand_like(sigma, x0) * torch.randn(x0.shape, generator=rng)
    estimate = method.denoise(method.networks["teacher"], x, sigma, None)
    expected = (expand_like(edm_weight(sigma, 0.5), x0) * (estimate - x0).square()).mean()
    found = method.loss("teacher", method.networks, batch(), torch.Generator().manual_seed(2), {})
    torch.testing.assert_close(found.loss, expected)
    found.loss.backward()
    assert all(p.grad is not None for p in method.networks["teacher"].parameters())  # several processes wait for each


@BOTH
def test_the_student_starts_from_what_the_teacher_has_learned(make):
    method = make()
    before, average = weights(method.networks["student"]), copy.deepcopy(method.networks["student"])
    with torch.no_grad():
        for p in method.networks["teacher"].parameters():
            p.mul_(1.5)
    for number in range(4):
        shipped = method.ship(average, number)
        assert torch.equal(weights(shipped.denoiser), weights(method.networks["teacher"]))  # a denoiser is all there is so far
        assert torch.equal(weights(method.networks["student"]), before)
        method.after_update("teacher")
    assert method.has_taught_itself
    assert torch.equal(weights(method.networks["student"]), weights(method.networks["teacher"]))
    method.networks["teacher"].requires_grad_(False)
    loss = method.loss("student", method.networks, batch(), torch.Generator().manual_seed(3), {}).loss
    loss.backward()
    assert not method.networks["teacher"].training
    assert all(p.grad is None for p in method.networks["teacher"].parameters())
    assert torch.equal(weights(method.ship(average, 4).denoiser), weights(method.networks["student"]))  # the average follows it from here
    method.after_update("student")
    assert torch.equal(weights(method.ship(average, 5).denoiser), before)


@BOTH
def test_stages_are_counted_in_the_student_s_part(make):
    method = make(steps=16, stages=4, first_stage=1)
    for _ in range(8):
        method.after_update("teacher")
    seen = []
    for _ in range(8):
        seen.append(method.stage)
        method.after_update("student")
    assert seen == [1, 1, 2, 2, 3, 3, 4, 4]
    assert method.best_from == pytest.approx(5 / 6)
    other = make(steps=16, stages=4, first_stage=1)
    other.load_state_dict(method.state_dict())
    assert other.has_taught_itself
    assert other.stage == method.stage


@pytest.mark.parametrize("settings", [ConsistencySettings, FlowMapSettings])
def test_two_teachers_are_one_too_many(settings):
    with pytest.raises(ValueError, match=r"own_teacher is 0\.5, but teacher is 'runs/t'"):
        settings(name="consistency" if settings is ConsistencySettings else "flow_map", own_teacher=0.5, teacher="runs/t")


@pytest.mark.parametrize("make", [consistency, flow_map])
def test_an_average_that_would_keep_the_untrained_weights_is_refused(make):
    """With warm-up w the weights before the first update have the share Gamma(1 + w) / n^w after n updates: 1 / n with w = 1."""
    with pytest.raises(ValueError, match=r"method.ema_warmup is 0\.0, and with method.own_teacher the average .* set it to 1 or more"):
        make(ema_warmup=0.0)
    make(ema_warmup=1.0)


@BOTH
@pytest.mark.parametrize(("share", "steps", "split"), [(0.99, 20, "20 and the student 0"), (0.01, 20, "0 and the student 20")])
def test_a_share_that_leaves_one_of_the_two_no_step_is_refused(make, share, steps, split):
    with pytest.raises(ValueError, match=rf"own_teacher is {share}, which of {steps} steps gives the teacher {split}; each needs one"):
        make(steps, share)
    assert [turn.updates(steps) for turn in make(steps, 1 / steps).turns] == [1, steps - 1]
    assert [turn.updates(steps) for turn in make(steps, 1 - 1 / steps).turns] == [steps - 1, 1]
