import pytest
import torch

from fewstep.denoisers import guided

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
    torch.testing.assert_close(guided(Counting(), X, SIGMA, LABEL, scale), uncond + scale * (cond - uncond))


def test_scale_one_costs_one_evaluation():
    denoiser = Counting()
    assert torch.equal(guided(denoiser, X, SIGMA, LABEL, 1.0), X + (SIGMA * LABEL)[:, None])
    assert denoiser.calls == [True]
    guided(denoiser, X, SIGMA, LABEL, 2.0)
    assert sorted(denoiser.calls[1:]) == [False, True]


def test_without_labels_there_is_nothing_to_guide():
    torch.testing.assert_close(guided(Counting(), X, SIGMA, None, 5.0), X + 10 * SIGMA[:, None])
