import math
from itertools import pairwise

import pytest
import torch

from fewstep.denoisers import Guided, MixtureDenoiser
from fewstep.maths.schedules import karras_sigmas, uniform_times
from fewstep.samplers import SAMPLERS, distributional, euler, few_step, heun, push_forward
from fewstep.streams import Noise

MEAN, STD = 0.3, 0.5
GAUSSIAN = MixtureDenoiser(torch.full((1, 4), MEAN, dtype=torch.float64), STD)
LATENTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def counting(denoiser):
    """`denoiser`, and a list of the (sigma, label) that it was called with."""
    calls = []

    def call(x, sigma, label=None, *told):  # a flow map is also told a second level
        calls.append((float(sigma), label))
        return denoiser(x, sigma, label)

    return call, calls


class ExactPosterior:
    """Draws of ``x0 | x_t`` for data N(1, .5^2) on the linear path, with a list of the (t, label, xi) it was called with."""

    def __init__(self, shape=(4,)):
        self.xi_shape, self.calls = shape, []

    def __call__(self, x, t, label, xi):
        self.calls.append((float(t), label, xi))
        variance = (1 - t) ** 2 * 0.25 + t**2  # of x_t
        return 1 + (1 - t) * 0.25 / variance * (x - (1 - t)) + 0.5 * t / variance.sqrt() * xi


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
    SAMPLERS[name].draw(denoiser, LATENTS, karras_sigmas(steps), label)
    assert len(calls) == SAMPLERS[name].evaluations(steps) == expected
    assert min(sigma for sigma, _ in calls) > 0
    assert all(seen is label for _, seen in calls)


@pytest.mark.parametrize("name", [name for name, kind in SAMPLERS.items() if kind.of not in ("map", "posterior")])
def test_guidance_asks_twice_each_time(name):
    denoiser, calls = counting(GAUSSIAN)
    SAMPLERS[name].draw(Guided.of(denoiser, 2.0), LATENTS, karras_sigmas(3), torch.zeros(16, dtype=torch.long))
    assert len(calls) == 2 * SAMPLERS[name].evaluations(3)
    assert sum(label is None for _, label in calls) == SAMPLERS[name].evaluations(3)


@pytest.mark.parametrize("steps", [1, 3])
def test_push_forward_is_one_call_on_the_noise_as_it_is(steps):
    seen = []

    def denoiser(x, sigma, label=None):
        seen.append((x, label))
        return 2 * x

    label = torch.zeros(16, dtype=torch.long)
    found = push_forward(denoiser, LATENTS, karras_sigmas(steps), label)
    assert torch.equal(found, 2 * LATENTS)
    assert len(seen) == SAMPLERS["push_forward"].evaluations(steps) == 1
    assert seen[0][0] is LATENTS
    assert seen[0][1] is label


def test_few_step_with_one_level_is_one_denoising_from_pure_noise():
    found = few_step(GAUSSIAN, LATENTS, torch.tensor([80.0], dtype=torch.float64))
    assert torch.equal(found, GAUSSIAN(80 * LATENTS, 80.0))


def test_few_step_noises_and_denoises_level_by_level():
    sigmas = torch.tensor([80.0, 2.0, 0.4], dtype=torch.float64)
    found = few_step(GAUSSIAN, LATENTS, sigmas, noise=Noise(torch.Generator().manual_seed(5)))
    rng = torch.Generator().manual_seed(5)
    x = GAUSSIAN(80 * LATENTS, 80.0)
    for sigma in (2.0, 0.4):
        x = GAUSSIAN(x + sigma * torch.randn(16, 4, generator=rng).double(), sigma)
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_latents_dtype_and_draw_on_no_global_chance(name):
    before = torch.get_rng_state()
    rng = torch.Generator().manual_seed(0)
    denoiser, grid = (ExactPosterior(), uniform_times(4)) if name == "distributional" else (counting(GAUSSIAN)[0], karras_sigmas(4))
    for noise in (Noise(rng), None):  # without one, a sampler that needs noise takes new numbers, and still not the process's
        samples = SAMPLERS[name].draw(denoiser, LATENTS.float(), grid, noise=noise)
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


IRREGULAR = (1.0, 0.93, 0.35, 0.34, 0.01)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("times", [*(uniform_times(n).tolist() for n in (1, 2, 5, 20)), IRREGULAR], ids=len)
def test_distributional_is_exact_on_a_gaussian_for_any_grid(times, churn):
    num, rng = 100_000, torch.Generator().manual_seed(0)
    latents = torch.randn(num, 1, generator=rng, dtype=torch.float64)
    x = distributional(ExactPosterior((1,)), latents, torch.tensor(times, dtype=torch.float64), noise=Noise(rng), churn=churn)
    # standard errors: std / sqrt(N) of the mean, std / sqrt(2 N) of the standard deviation; four of each
    assert abs(x.mean().item() - 1) < 4 * 0.5 / math.sqrt(num)
    assert abs(x.std().item() - 0.5) < 4 * 0.5 / math.sqrt(2 * num)


@pytest.mark.parametrize("times", [*(uniform_times(n).tolist() for n in (1, 20)), IRREGULAR], ids=len)
def test_distributional_asks_once_at_each_time(times):
    denoiser, label = ExactPosterior(), torch.zeros(16, dtype=torch.long)
    distributional(denoiser, LATENTS, torch.tensor(times, dtype=torch.float64), label, Noise(torch.Generator().manual_seed(0)))
    assert [t for t, _, _ in denoiser.calls] == list(times)
    assert len(denoiser.calls) == SAMPLERS["distributional"].evaluations(len(times))
    assert all(seen is label for _, seen, _ in denoiser.calls)
    assert all(not torch.equal(xi, other) for (_, _, xi), (_, _, other) in pairwise(denoiser.calls))  # fresh each time


def test_distributional_starts_at_the_latents_and_ends_at_a_draw():
    seen = []

    class Denoiser:
        xi_shape = (2, 3)

        def __call__(self, x, t, label, xi):
            seen.append(x)
            return xi.sum((1, 2))[:, None] + 0 * x

    rng = torch.Generator().manual_seed(7)
    found = distributional(Denoiser(), LATENTS, torch.ones(1), noise=Noise(torch.Generator().manual_seed(7)))
    assert torch.equal(seen[0], LATENTS)
    expected = torch.randn(16, 2, 3, generator=rng).double().sum((1, 2))[:, None].expand(16, 4)
    assert torch.equal(found, expected)  # with no noise of the bridge added at the end


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_distributional_s_churn_by_hand(churn):
    """From 1 to 1/2 with an estimate of 0: ``k = 1 - churn^2``, so that ``x_s = k / 2 x_t + 1/2 sqrt(1 - k^2) n``."""

    def state(latents):
        seen = []

        class Nothing:
            xi_shape = (1,)

            def __call__(self, x, t, label, xi):
                seen.append(x)
                return torch.zeros_like(x)

        distributional(Nothing(), latents, uniform_times(2), noise=Noise(torch.Generator().manual_seed(0)), churn=churn)
        return seen[1]

    num, k = 40_000, 1 - churn**2
    noise = state(torch.zeros(num, 1, dtype=torch.float64))
    torch.testing.assert_close(state(torch.ones(num, 1, dtype=torch.float64)) - noise, torch.full_like(noise, k / 2))
    std = 0.5 * math.sqrt(1 - k**2)
    assert abs(noise.mean().item()) <= 4 * std / math.sqrt(num)
    assert abs(noise.std().item() - std) <= 4 * std / math.sqrt(2 * num)


def test_distributional_is_ddpm_s_posterior_unless_asked():
    samples = [
        distributional(ExactPosterior(), LATENTS, uniform_times(3), noise=Noise(torch.Generator().manual_seed(1)), **churn)
        for churn in ({}, {"churn": 1.0}, {"churn": 0.9})
    ]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_without_churn_nothing_is_drawn_but_xi():
    rng, denoiser = torch.Generator().manual_seed(2), ExactPosterior()
    distributional(denoiser, LATENTS, uniform_times(3), noise=Noise(rng), churn=0.0)
    replayed = torch.Generator().manual_seed(2)
    for _, _, xi in denoiser.calls:
        assert torch.equal(xi, torch.randn(16, 4, generator=replayed).double())
    assert torch.equal(rng.get_state(), replayed.get_state())


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_distributional_guidance_combines_draws_of_the_same_xi(scale):
    calls = []

    class Denoiser:
        xi_shape = (4,)

        def __call__(self, x, t, label, xi):
            calls.append((float(t), label, xi))
            return xi if label is None else 1 + 2 * xi

    label = torch.zeros(16, dtype=torch.long)
    found = distributional(Guided.of(Denoiser(), scale), LATENTS, uniform_times(3), label, Noise(torch.Generator().manual_seed(4)))
    xi = calls[-1][2]
    torch.testing.assert_close(found, xi + scale * (1 + 2 * xi - xi))
    if scale == 1:
        assert len(calls) == 3
        assert all(seen is label for _, seen, _ in calls)
        return
    assert len(calls) == 6
    for (t, seen, xi), (t_null, null, xi_null) in zip(calls[::2], calls[1::2], strict=True):
        assert t == t_null
        assert seen is label
        assert null is None
        assert torch.equal(xi, xi_null)
    assert not torch.equal(calls[0][2], calls[2][2])


def test_distributional_samples_follow_from_the_seed():
    first, again, other = (
        distributional(ExactPosterior(), LATENTS, uniform_times(4), noise=Noise(torch.Generator().manual_seed(seed)), churn=0.5)
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_distributional_keeps_the_latents_dtype(dtype):
    """With a denoiser that, like the trained one, answers in float32."""

    class Denoiser(ExactPosterior):
        def __call__(self, x, t, label, xi):
            return super().__call__(x.float(), t.float(), label, xi.float())

    for steps in (1, 3):
        samples = distributional(Denoiser(), LATENTS.to(dtype), uniform_times(steps), noise=Noise(torch.Generator().manual_seed(0)))
        assert samples.dtype == dtype
        assert samples.isfinite().all()


@pytest.mark.parametrize("times", [[], [80.0], [0.5, 0.5], [0.4, 0.8], [1.0, 0.0]])
def test_a_grid_that_is_none_of_times_is_refused(times):
    with pytest.raises(ValueError, match="give times that fall from at most 1, without the final 0"):
        distributional(ExactPosterior(), LATENTS, torch.tensor(times, dtype=torch.float64))
