import itertools
import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from fewstep.methods import LossOutput, Method, Optimizer, Ramp, Turn
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

WIDTH = 3


class Data:
    """Rows that no loss here looks at."""

    train = torch.zeros(40, WIDTH)

    def batch(self, index, rng, device):
        return self.train[index].to(device), None


def test_learning_rate_rises_holds_and_falls():
    settings = Optimizer(lr=2.0, warmup=4, decay_from=0.5, final=0.1)
    rates = [settings.lr_at(update, 20) for update in (0, 1, 3, 10, 15, 20, 25)]
    # a quarter of the way up each update; held to update 10; half way to 0.2 at 15; 0.2 at 20 and after
    assert rates == pytest.approx([0.5, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2])


def test_learning_rate_is_constant_by_default():
    settings = Optimizer(lr=3.0)
    assert [settings.lr_at(update, 10) for update in (0, 5, 9)] == [3.0] * 3


@pytest.mark.parametrize("decay_from", [0.5, 1.0])
def test_learning_rate_stays_at_its_last_value_after_the_last_update(decay_from):
    settings = Optimizer(lr=1.0, decay_from=decay_from, final=0.1)
    assert settings.lr_at(200, 100) == pytest.approx(0.1)


# --- cosine


@pytest.mark.parametrize("decay_from", [0.0, 0.5])
def test_cosine_falls_along_half_a_wave(decay_from):
    settings = Optimizer(lr=2.0, decay_from=decay_from, final=0.1, decay="cosine")
    start = int(decay_from * 40)
    for update in range(50):
        progress = min(1.0, max(0.0, (update - start) / (40 - start)))
        expected = 2 * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
        assert settings.lr_at(update, 40) == pytest.approx(expected)
    quarters = [settings.lr_at(start + round(q * (40 - start)), 40) for q in (0, 0.5, 1)]
    assert quarters == pytest.approx([2.0, 1.1, 0.2])


def test_cosine_falls_under_a_warmup_too():
    settings = Optimizer(lr=1.0, warmup=10, decay_from=0.0, final=0.0, decay="cosine")
    assert settings.lr_at(4, 20) == pytest.approx(0.5 * (1 + math.cos(math.pi * 4 / 20)) / 2)
    assert settings.lr_at(20, 20) == pytest.approx(0)


# --- scales


class Tables(Method):
    """Two parameters alike in all but their names, and their gradients."""

    ships = "model"

    def __init__(self, optimizer, scales):
        model = nn.Module()
        model.centres, model.weight = (nn.Parameter(torch.zeros(WIDTH)) for _ in range(2))
        model.forward = lambda: model.centres.sum() + model.weight.sum()
        self.networks, self.turns = {"model": model}, (Turn("only", ("model",), optimizer, scales=scales),)

    @classmethod
    def make(cls, settings, given):
        raise NotImplementedError

    def loss(self, turn, networks, batch, rng, scratch):
        total = networks["model"]()
        return LossOutput(total, {"total": total.detach()})

    def ship(self, network, step):
        return network


@pytest.mark.parametrize("scales", [{}, {"centres": 10.0, "embeddings": 3.0}])
def test_tables_learn_faster_through_the_loop_at_every_update(scales, tmp_path):
    optimizer = Optimizer(lr=1e-2, weight_decay=0.0, warmup=2, decay_from=0.5, final=0.1)
    method = Tables(optimizer, scales)
    loop = Loop(method, Data(), Fabric(accelerator="cpu", devices=1), RunFolder(tmp_path), LoopSettings(steps=8, batch_size=8))
    model, before = method.networks["model"], (0.0, 0.0)
    for update in range(8):
        loop.advance()
        lr, after = optimizer.lr_at(update, 8), (model.centres.detach()[0].item(), model.weight.detach()[0].item())
        # Adam's step under a constant gradient is the learning rate
        moved = tuple(b - a for a, b in zip(after, before, strict=True))
        assert moved == pytest.approx((lr * scales.get("centres", 1), lr), rel=1e-4)
        before = after


def test_a_scale_is_for_names_that_end_in_its_key(tmp_path):
    method = Tables(Optimizer(lr=1e-2), {"entres": 4.0, "cent": 9.0, "ght": 2.0})
    loop = Loop(method, Data(), Fabric(accelerator="cpu", devices=1), RunFolder(tmp_path), LoopSettings(steps=8, batch_size=8))
    scales = {id(p): group["scale"] for group in loop.state.optimizers["only"].param_groups for p in group["params"]}
    model = method.networks["model"]
    assert scales == {id(model.centres): 4.0, id(model.weight): 2.0}


# --- Ramp


@pytest.mark.parametrize(("start", "end", "warmup"), [(0.2, 1.5, 10), (1.0, 0.1, 7), (0.5, 0.5, 3), (2.0, 1.0, 1)])
def test_ramp_is_the_formula_at_every_step(start, end, warmup):
    """The ramp: start + (end - start) min(1, step / warmup)."""
    ramp, log = Ramp(end, start, warmup), Ramp(end, start, warmup, log=True)
    for step in range(2 * warmup + 2):
        progress = min(1, step / warmup)
        assert ramp(step) == pytest.approx(start + (end - start) * progress, rel=1e-12)
        assert log(step) == pytest.approx(math.exp((1 - progress) * math.log(start) + progress * math.log(end)), rel=1e-12)
    assert ramp(0) == log(0) == start
    assert ramp(warmup) == log(warmup) == ramp(10**6) == end  # exactly


def test_logarithmic_ramp_goes_by_equal_factors():
    values = [Ramp(0.01, 100.0, 8, log=True)(step) for step in range(9)]
    assert [b / a for a, b in itertools.pairwise(values)] == pytest.approx([10**-0.5] * 8)


@pytest.mark.parametrize("log", [False, True])
def test_ramp_without_a_start_or_without_steps_is_its_end(log):
    for ramp in (Ramp(1.3, log=log), Ramp(1.3, None, 10, log), Ramp(1.3, 0.2, 0, log)):
        assert [ramp(step) for step in (0, 1, 5, 50)] == [1.3] * 4
