"""A flow-matching network as a denoiser: its steps are those of diffusers' own scheduler, and of a Gaussian the truth is known."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from fewstep.denoisers import FlowDenoiser
from fewstep.samplers import euler


class Exact(nn.Module):
    """The velocity of data N(1, std^2), in closed form."""

    def __init__(self, std=0.5):
        super().__init__()
        self.mean = nn.Parameter(torch.ones(()))
        self.std, self.seen = std, []

    def forward(self, z, time, label):
        self.seen.append((time, label))
        s = (time / 1000).view(-1, 1, 1, 1)
        variance = (1 - s) ** 2 * self.std**2 + s**2
        x0 = self.mean + (1 - s) * self.std**2 / variance * (z - (1 - s) * self.mean)
        return (z - x0) / s


def test_the_estimate_is_the_posterior_mean():
    denoiser = FlowDenoiser(Exact(), 0.5, 3)
    x, sigma = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.01, 0.5, 3.0, 900.0])
    found = denoiser(x * (1 + sigma.view(-1, 1, 1, 1)), sigma, torch.tensor([0, 1, 2, 0])).detach()
    at = sigma.view(-1, 1, 1, 1)
    expected = 1 + 0.25 / (0.25 + at**2) * (x * (1 + at) - 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (time, label) = denoiser.network.seen[0]
    torch.testing.assert_close(time, 1000 * sigma / (1 + sigma))
    assert label.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_step_of_diffusers_own_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[0.99, 0.7, 0.4, 0.1])
    times = scheduler.sigmas.double()  # shifted
    network = Exact()
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    levels = times[:-1] / (1 - times[:-1])
    z = (noise.double() * levels[0] * (1 - times[0])).float()
    with torch.no_grad():
        for step in scheduler.timesteps:
            z = scheduler.step(network(z, step.expand(3), None), step, z).prev_sample
        ours = euler(FlowDenoiser(network, 0.5), noise, levels.float())
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4)


def test_without_a_null_class_a_label_is_asked_for():
    network = Exact()
    network.null_class = False
    with pytest.raises(ValueError, match="label is None, but this network has 3 classes and no null class"):
        FlowDenoiser(network, 0.5, 3)(torch.zeros(1, 1, 2, 2), torch.tensor(1.0))
    assert FlowDenoiser(Exact(), 0.5, 3)(torch.zeros(1, 1, 2, 2), torch.tensor(1.0)).shape == (1, 1, 2, 2)
    assert FlowDenoiser.sigma_max == pytest.approx(999)
