import pytest
import torch
from torch import nn

from fewstep.denoisers import Guided

X, SIGMA, LABEL = torch.arange(6.0).reshape(2, 3), torch.tensor([0.5, 2.0]), torch.tensor([1, 4])


class Counting:
    """D(x, sigma, label) = x + sigma * (label, or 10 without one), and how often it was asked with and without a label."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, sigma, label=None):
        self.calls.append(label is not None)
        return x + (sigma * (10 if label is None else label))[:, None]


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_goes_past_the_conditional_estimate(scale):
    uncond, cond = X + 10 * SIGMA[:, None], X + (SIGMA * LABEL)[:, None]
    torch.testing.assert_close(Guided.of(Counting(), scale)(X, SIGMA, LABEL), uncond + scale * (cond - uncond))
    torch.testing.assert_close(Guided(Counting(), scale)(X, SIGMA, LABEL), uncond + scale * (cond - uncond))


def test_scale_one_costs_one_evaluation():
    denoiser = Counting()
    assert torch.equal(Guided.of(denoiser, 1.0)(X, SIGMA, LABEL), X + (SIGMA * LABEL)[:, None])
    assert denoiser.calls == [True]
    Guided.of(denoiser, 2.0)(X, SIGMA, LABEL)
    assert sorted(denoiser.calls[1:]) == [False, True]


def test_without_labels_there_is_nothing_to_guide():
    torch.testing.assert_close(Guided.of(Counting(), 5.0)(X, SIGMA, None), X + 10 * SIGMA[:, None])
    torch.testing.assert_close(Guided.of(Counting(), 5.0)(X, SIGMA), X + 10 * SIGMA[:, None])


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_what_a_denoiser_is_told_beside_the_label_it_is_told_both_times(scale):
    """A noise xi, a step, a second level: the two estimates are of one thing."""
    calls = []

    def denoiser(x, sigma, label, first, second):
        calls.append((x, sigma, label, first, second))
        return second * x if label is None else x + first * label[:, None]

    told = torch.tensor([[2.0], [3.0]]), torch.tensor([[7.0], [9.0]])
    found = Guided.of(denoiser, scale)(X, SIGMA, LABEL, *told)
    conditional, without = X + told[0] * LABEL[:, None], told[1] * X
    torch.testing.assert_close(found, without + scale * (conditional - without))
    assert [call[2] is LABEL for call in calls] == ([True] if scale == 1 else [True, False])
    assert [call[2] is None for call in calls] == ([False] if scale == 1 else [False, True])
    assert all(x is X and sigma is SIGMA for x, sigma, *_ in calls)
    assert all(first is told[0] and second is told[1] for *_, first, second in calls)


def test_what_else_a_denoiser_is_can_be_asked_of_the_guided_one():
    module = nn.Linear(3, 3)
    module.xi_shape = (7,)
    guided = Guided(module, 2.0)
    assert guided.xi_shape == (7,)
    assert guided.weight is module.weight
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        guided.nothing  # noqa: B018
