"""A flow-matching network as a denoiser: its steps are those of diffusers' own scheduler, and of a Gaussian the truth is known."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from fewstep.denoisers import FlowDenoiser
from fewstep.maths.schedules import NOISE_ALONE, falling_times, path_sigmas
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
    """From time 1, where nothing is left of the data and the noise level is infinite."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(5)
    assert scheduler.sigmas[0] == 1
    network, denoiser = Exact(), FlowDenoiser(Exact(), 0.5, shift=shift)
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    z = noise
    with torch.no_grad():
        for step in scheduler.timesteps:
            z = scheduler.step(network(z, step.expand(3), None), step, z).prev_sample
        levels = path_sigmas(falling_times(5, shift, shift / (999 + shift)))
        torch.testing.assert_close((levels / (1 + levels)).float(), scheduler.sigmas[:-1], rtol=3e-7, atol=0)
        torch.testing.assert_close(euler(denoiser, noise, levels), z, rtol=1e-5, atol=1e-5)


def test_at_time_1_the_network_sees_the_noise_itself():
    """To the bit, and so is what it is told of the time."""
    network = Exact()
    denoiser = FlowDenoiser(network, 0.5, shift=3.0)
    z, sigma = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor(denoiser.sigma_max)
    found = denoiser(denoiser.first_noise(denoiser.sigma_max) * z, sigma)
    assert network.seen[0][0].tolist() == [1000] * 3
    with torch.no_grad():
        assert torch.equal(found, z - network(z, torch.full((3,), 1000.0), None))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_of_the_times_that_the_scheduler_trains_at(shift):
    denoiser, scheduler = FlowDenoiser(Exact(), 0.5, shift=shift), FlowMatchEulerDiscreteScheduler(shift=shift)
    times = denoiser.sigmas / (1 + denoiser.sigmas)
    torch.testing.assert_close(times.flip(0).float(), scheduler.sigmas, rtol=1e-6, atol=0)
    assert denoiser.sigma_min == denoiser.sigmas[0].item()
    assert len(denoiser.sigmas) == 1000
    for steps in (1, 2, 4):
        assert denoiser.step_sigmas(steps) == pytest.approx(
            denoiser.sigmas[[1000 * part // steps - 1 for part in range(steps, 0, -1)]].tolist()
        )
    assert denoiser.step_sigmas(3)[0] == NOISE_ALONE  # of a thousand timesteps there are no three equal parts


def test_without_a_null_class_a_label_is_asked_for():
    network = Exact()
    network.null_class = False
    with pytest.raises(ValueError, match="label is None, but this network has 3 classes and no null class"):
        FlowDenoiser(network, 0.5, 3)(torch.zeros(1, 1, 2, 2), torch.tensor(1.0))
    assert FlowDenoiser(Exact(), 0.5, 3)(torch.zeros(1, 1, 2, 2), torch.tensor(1.0)).shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    "settings", [{"timesteps": 1}, {"timesteps": 2.5}, {"shift": 0.0}, {"shift": float("inf")}, {"shift": float("nan")}]
)
def test_times_that_make_no_table(settings):
    with pytest.raises(ValueError, match="give a whole number from 2, and a number above 0"):
        FlowDenoiser(Exact(), 0.5, **settings)
