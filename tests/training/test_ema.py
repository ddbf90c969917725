import math

import pytest
import torch
from torch import nn

from fewstep.training.ema import EMA


def weights(updates, **settings):
    """What share of the average each of the values 0..updates has: value u is the unit vector e_u, so the average tells."""
    module = nn.Linear(1, updates + 1, bias=False).double()
    units = torch.eye(updates + 1, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(units[:, :1])
        ema = EMA(module, **settings)
        for u in range(1, updates + 1):
            module.weight.copy_(units[:, u : u + 1])
            ema.update(module)
    return ema.module.weight[:, 0]


@pytest.mark.parametrize("warmup", [1.0, 3.0, 6.5])
def test_warm_up_weights_are_a_power_function(warmup):
    """prod_{j > u} j / (j + w) times w / (u + w), in Gamma functions: about w u^(w-1) / U^w."""
    updates = 40
    found = weights(updates, decay=1.0, warmup=warmup)
    tail = math.lgamma(updates + 1) - math.lgamma(updates + warmup + 1)
    expected = [math.exp(math.lgamma(warmup + 1) + tail)]
    expected += [warmup * math.exp(math.lgamma(u + warmup) - math.lgamma(u + 1) + tail) for u in range(1, updates + 1)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.sum().item() == pytest.approx(1)
    # the span of the average is the same share of the updates whenever it is looked at
    age = sum((updates - u) * weight for u, weight in enumerate(found.tolist()))
    assert age / updates == pytest.approx(1 / (warmup + 1), rel=1e-9)


def test_without_warm_up_the_decay_is_constant():
    expected = [0.9**5, *[0.1 * 0.9 ** (5 - u) for u in range(1, 6)]]
    assert weights(5, decay=0.9, warmup=0.0).tolist() == pytest.approx(expected)


def test_decay_is_an_upper_limit():
    # keeps 1/5, 2/6 and then 0.4, not 3/7
    expected = [0.2 / 3 * 0.4, 0.8 / 3 * 0.4, 2 / 3 * 0.4, 0.6]
    assert weights(3, decay=0.4, warmup=4.0).tolist() == pytest.approx(expected)


def test_buffers_are_copied_and_the_average_is_a_frozen_copy():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(module, decay=0.5, warmup=1.0)
    start = module[0].weight.detach().clone()
    module(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        module[0].weight.add_(1)
    assert torch.equal(ema.module[0].weight, start)
    ema.update(module)
    assert torch.equal(ema.module[1].running_mean, module[1].running_mean)
    assert ema.module[1].num_batches_tracked == 1
    torch.testing.assert_close(ema.module[0].weight, start + 0.5)
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert not ema.module.training
    assert module.training
