import math
from itertools import pairwise

import pytest
import torch

from fewstep.denoisers import MixtureDenoiser
from fewstep.maths.schedules import karras_sigmas
from fewstep.samplers import SAMPLERS, euler, evaluations, few_step, heun, push_forward

MEAN, STD = 0.3, 0.5
GAUSSIAN = MixtureDenoiser(torch.full((1, 4), MEAN, dtype=torch.float64), STD)
LATENTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def counting(denoiser):
    """`denoiser`, and a list of the (sigma, label) that it was called with."""
    calls = []

    def call(x, sigma, label=None):
        calls.append((float(sigma), label))
        return denoiser(x, sigma, label)

    return call, calls


def convergence_order(sampler, steps=(64, 128, 256)):
    """Slope of ln(error) over -ln(steps) to the exact solution of the probability-flow ODE on a Gaussian."""
    sigma_min, sigma_max = 1e-5, 80.0  # the last step, to 0, is Euler's in both: its error of sigma_min^2 must not show
    exact = MEAN + (LATENTS * sigma_max - MEAN) * STD / math.sqrt(STD**2 + sigma_max**2)
    errors = [(sampler(GAUSSIAN, LATENTS, karras_sigmas(n, sigma_min, sigma_max)) - exact).abs().max().item() for n in steps]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def test_heun_is_of_second_order():
    assert convergence_order(heun) == pytest.approx([2, 2], abs=0.1)


def test_euler_is_of_first_order():
    assert convergence_order(euler) == pytest.approx([1, 1], abs=0.1)


def test_two_heun_steps_by_hand():
    def denoiser(x, sigma, label=None):
        return torch.full_like(x, sigma**2)

    sigmas = torch.tensor([4.0, 2.0])
    # D = sigma^2, so d = x / sigma - sigma
    # Heun: x 8, d 8/4 - 4 = -2, predicted 12; d' 12/2 - 2 = 4; x 8 - 2 (-2 + 4)/2 = 6; then to 0: 6 - 2 (6/2 - 2) = 4
    assert heun(denoiser, torch.full((1, 1), 2.0), sigmas).item() == 4
    # Euler: x 12 after the first step; then 12 - 2 (12/2 - 2) = 4
    assert euler(denoiser, torch.full((1, 1), 2.0), sigmas).item() == 4
    # and at the grid's own end the last step is the denoiser itself
    assert heun(denoiser, torch.full((1, 1), 2.0), torch.tensor([3.0])).item() == 9


@pytest.mark.parametrize(("name", "steps", "expected"), [("heun", 18, 35), ("euler", 18, 18), ("few_step", 4, 4), ("heun", 1, 1)])
def test_evaluations_are_as_many_as_announced(name, steps, expected):
    denoiser, calls = counting(GAUSSIAN)
    label = torch.zeros(16, dtype=torch.long)
    SAMPLERS[name](denoiser, LATENTS, karras_sigmas(steps), label)
    assert len(calls) == evaluations(name, steps) == expected
    assert min(sigma for sigma, _ in calls) > 0
    assert all(seen is label for _, seen in calls)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "push_forward"])
def test_guidance_asks_twice_each_time(name):
    denoiser, calls = counting(GAUSSIAN)
    SAMPLERS[name](denoiser, LATENTS, karras_sigmas(3), torch.zeros(16, dtype=torch.long), guidance_scale=2.0)
    assert len(calls) == 2 * evaluations(name, 3)
    assert sum(label is None for _, label in calls) == evaluations(name, 3)


@pytest.mark.parametrize("steps", [1, 3])
def test_push_forward_is_one_call_on_the_noise_as_it_is(steps):
    seen = []

    def denoiser(x, sigma, label=None):
        seen.append((x, label))
        return 2 * x

    label = torch.zeros(16, dtype=torch.long)
    found = push_forward(denoiser, LATENTS, karras_sigmas(steps), label)
    assert torch.equal(found, 2 * LATENTS)
    assert len(seen) == evaluations("push_forward", steps) == 1
    assert seen[0][0] is LATENTS
    assert seen[0][1] is label


def test_few_step_with_one_level_is_one_denoising_from_pure_noise():
    found = few_step(GAUSSIAN, LATENTS, torch.tensor([80.0], dtype=torch.float64))
    assert torch.equal(found, GAUSSIAN(80 * LATENTS, 80.0))


def test_few_step_noises_and_denoises_level_by_level():
    sigmas = torch.tensor([80.0, 2.0, 0.4], dtype=torch.float64)
    found = few_step(GAUSSIAN, LATENTS, sigmas, generator=torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    x = GAUSSIAN(80 * LATENTS, 80.0)
    for sigma in (2.0, 0.4):
        x = GAUSSIAN(x + sigma * torch.randn(16, 4, generator=rng).double(), sigma)
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_latents_dtype_and_draw_on_no_global_chance(name):
    before = torch.get_rng_state()
    rng = torch.Generator().manual_seed(0)
    samples = SAMPLERS[name](GAUSSIAN, LATENTS.float(), karras_sigmas(4), generator=rng)
    assert samples.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampler", [heun, euler])
def test_state_is_held_in_float64(sampler):
    """With D = 0 the solution is the straight line x = sigma n; a float32 state would round it at each of 600 steps."""
    seen = []

    def denoiser(x, sigma, label=None):
        seen.append(x)
        return torch.zeros_like(x)

    latents, sigmas = LATENTS.float(), karras_sigmas(600)
    sampler(denoiser, latents, sigmas)
    torch.testing.assert_close(seen[-1].double() / sigmas[-1], latents.double(), rtol=1e-7, atol=0)  # rounded once: 2^-24
