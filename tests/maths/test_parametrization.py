import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler

from fewstep.maths.parametrization import (
    beta_schedule,
    ddpm_coefficients,
    edm_coefficients,
    edm_weight,
    expand_like,
    fractional_timestep,
    path_coefficients,
    timestep_sigmas,
    x0_from_epsilon,
    x0_from_v,
)

SIGMA = torch.logspace(-3, 2, 30, dtype=torch.float64)


def test_coefficients_by_hand():
    # sigma 1.2, sigma_data 0.5: sigma^2 + sigma_data^2 = 1.69 = 1.3^2
    found = edm_coefficients(torch.tensor(1.2, dtype=torch.float64), 0.5)
    expected = (0.25 / 1.69, 0.6 / 1.3, 1 / 1.3, math.log(1.2) / 4)
    assert [c.item() for c in found] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.7])
def test_unit_variance_in_and_out(sigma_data):
    c_skip, c_out, c_in, _ = edm_coefficients(SIGMA, sigma_data)
    one = torch.ones_like(SIGMA)
    torch.testing.assert_close(c_in**2 * (SIGMA**2 + sigma_data**2), one)
    # the network's target (x0 - c_skip (x0 + sigma n)) / c_out for data of standard deviation sigma_data
    torch.testing.assert_close(((1 - c_skip) ** 2 * sigma_data**2 + (c_skip * SIGMA) ** 2) / c_out**2, one)


def test_identity_without_noise():
    c_skip, c_out, _, _ = edm_coefficients(torch.tensor(1e-6, dtype=torch.float64), 0.5)
    assert c_skip.item() == pytest.approx(1, abs=1e-11)
    assert c_out.item() == pytest.approx(1e-6, rel=1e-9)


def test_the_weight_undoes_c_out():
    for sigma_data in (0.5, 0.75):
        _, c_out, _, _ = edm_coefficients(SIGMA, sigma_data)
        torch.testing.assert_close(edm_weight(SIGMA, sigma_data) * c_out**2, torch.ones_like(SIGMA))
    # by hand: (1.44 + 0.25) / (1.2 * 0.5)^2
    assert edm_weight(torch.tensor(1.2, dtype=torch.float64), 0.5).item() == pytest.approx(1.69 / 0.36, rel=1e-14)


def test_expand_like_multiplies_item_by_item():
    x = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 2.0, -3.0, 0.5])
    expected = torch.stack([item * value for item, value in zip(x, sigma.tolist(), strict=True)])
    assert torch.equal(expand_like(sigma, x) * x, expected)
    assert torch.equal(expand_like(torch.tensor(2.0), x) * x, 2 * x)


TIMES = torch.tensor([0.0, 1e-4, 0.1, 0.37, 0.5, 0.8, 0.999, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.7])
def test_path_coefficients_are_edm_s_at_the_same_noise(sigma_data):
    t = TIMES[1:-1]  # at 0 and 1 the noise level or its logarithm is infinite
    found = path_coefficients(t, sigma_data)
    c_skip, c_out, c_in, _ = edm_coefficients(t / (1 - t), sigma_data)
    for ours, edm in zip(found, (c_skip / (1 - t), c_out, c_in / (1 - t)), strict=True):  # EDM's x is x_t / (1 - t)
        torch.testing.assert_close(ours, edm, rtol=1e-12, atol=0)


def test_path_coefficients_at_both_ends():
    c_skip, c_out, c_in = path_coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.5)
    assert c_skip.tolist() == [1, 0]
    assert c_out.tolist() == [0, 0.5]
    assert c_in.tolist() == [2, 1]


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.7])
def test_unit_variance_in_and_out_on_the_path(sigma_data):
    c_skip, c_out, c_in = path_coefficients(TIMES, sigma_data)
    alpha, one = 1 - TIMES, torch.ones_like(TIMES)
    torch.testing.assert_close(c_in**2 * ((alpha * sigma_data) ** 2 + TIMES**2), one)
    # the network's target (x0 - c_skip x_t) / c_out, which at t = 0 is 0 / 0
    target = (((1 - c_skip * alpha) * sigma_data) ** 2 + (c_skip * TIMES) ** 2) / c_out**2
    torch.testing.assert_close(target[1:], one[1:])
    # and it is uncorrelated with the input: the least c_out there is
    torch.testing.assert_close((1 - c_skip * alpha) * alpha * sigma_data**2 - c_skip * TIMES**2, 0 * one, rtol=0, atol=1e-12)


# --- discrete time

SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]


@pytest.mark.parametrize(("num", "start", "end"), [(1000, 1e-4, 0.02), (50, 0.001, 0.3)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_betas_and_noise_levels_are_those_of_diffusers(schedule, num, start, end):
    try:
        stock = DDPMScheduler(num, start, end, schedule)
    except NotImplementedError:
        assert schedule == "laplace"
        pytest.skip("the lowest versions of diffusers do not know it")
    betas = beta_schedule(schedule, num, start, end)
    assert betas.dtype == torch.float64
    torch.testing.assert_close(betas.float(), stock.betas, rtol=1e-4, atol=2e-6)  # they are float32 there
    stock_sigmas = ((1 - stock.alphas_cumprod) / stock.alphas_cumprod).sqrt().double()
    sigmas = timestep_sigmas(betas)
    torch.testing.assert_close(sigmas, stock_sigmas, rtol=2e-3, atol=0)
    assert (sigmas.diff() > 0).all()


def test_the_exponential_schedule_is_that_of_diffusers():
    stock = HeunDiscreteScheduler(1000, beta_schedule="exp")
    torch.testing.assert_close(beta_schedule("exp", 1000).float(), stock.betas, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas_stretched_to_no_signal_are_those_of_diffusers(schedule):
    stock = DDIMScheduler(1000, beta_schedule=schedule, rescale_betas_zero_snr=True)
    assert stock.alphas_cumprod[-1] == 0
    alpha_squared = stock.alphas_cumprod[:-1].double()
    sigmas = timestep_sigmas(beta_schedule(schedule, 1000), zero_snr=True)
    assert len(sigmas) == 999  # the last has no finite level
    torch.testing.assert_close(1 / (1 + sigmas**2), alpha_squared, rtol=1e-3, atol=1e-9)


def test_noise_levels_by_hand():
    # alpha^2 = 4/5, then 4/5 * 1/4 = 1/5: sigma^2 = (1/5) / (4/5), (4/5) / (1/5)
    betas = torch.tensor([0.2, 0.75], dtype=torch.float64)
    assert timestep_sigmas(betas).tolist() == pytest.approx([0.5, 2.0])
    assert timestep_sigmas(torch.cat([betas, torch.ones(1)])).tolist() == pytest.approx([0.5, 2.0])  # alpha is 0 there
    # alpha = sqrt(4/5), sqrt(2/5), 0 of the first three; stretched by sqrt(4/5) / (sqrt(4/5) - sqrt(1/5)) = 2
    betas = torch.tensor([0.2, 0.5, 0.5], dtype=torch.float64)
    alpha = 2 * (math.sqrt(2 / 5) - math.sqrt(1 / 5))
    assert timestep_sigmas(betas, zero_snr=True).tolist() == pytest.approx([0.5, math.sqrt(1 - alpha**2) / alpha])


@pytest.mark.parametrize("betas", [[0.1], [0.1, 0.0, 0.2], [0.1, 1.0, 0.2], [-0.1, 0.2], [0.1, 1.1], [0.1, math.nan], [[0.1, 0.2]]])
def test_betas_that_make_no_table_are_refused(betas):
    with pytest.raises(ValueError, match="give at least 2 between 0 and 1"):
        timestep_sigmas(torch.tensor(betas, dtype=torch.float64))


def test_an_unknown_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="the beta schedule is 'cosine'; allowed: linear, scaled_linear, squaredcos_cap_v2"):
        beta_schedule("cosine", 10)
    with pytest.raises(ValueError, match="has 1 betas; give at least 2"):
        beta_schedule("linear", 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timesteps_are_exact_at_the_table_and_rise_between(schedule):
    sigmas = timestep_sigmas(beta_schedule(schedule, 1000))
    found = fractional_timestep(sigmas, sigmas)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.arange(1000.0), rtol=0, atol=1e-4)
    middle = fractional_timestep((sigmas[:-1] * sigmas[1:]).sqrt(), sigmas)
    torch.testing.assert_close(middle, torch.arange(999.0) + 0.5, rtol=0, atol=1e-4)
    fine = fractional_timestep(torch.logspace(-4, 6, 5001, dtype=torch.float64), sigmas)
    assert (fine.diff() >= 0).all()
    inside = (fine > 0) & (fine < 999)
    assert (fine[inside].diff() > 0).all()
    assert (fine[0], fine[-1]) == (0, 999)


def test_timesteps_by_hand():
    sigmas = torch.tensor([0.1, 1.0, 100.0], dtype=torch.float64)
    asked = torch.tensor([[0.01, 0.1, 10**-0.75], [10.0, 100.0, 1e9]])
    torch.testing.assert_close(fractional_timestep(asked, sigmas), torch.tensor([[0, 0, 0.25], [1.5, 2, 2]]), rtol=0, atol=1e-6)


def test_every_prediction_gives_back_the_clean_data():
    x0, eps = torch.randn(2, len(SIGMA), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma_t = (c[:, None] for c in ddpm_coefficients(SIGMA))
    torch.testing.assert_close(alpha**2 + sigma_t**2, torch.ones_like(alpha))
    torch.testing.assert_close(sigma_t / alpha, SIGMA[:, None])
    x_t = alpha * x0 + sigma_t * eps
    torch.testing.assert_close(x0_from_epsilon(x_t, eps, alpha, sigma_t), x0)
    torch.testing.assert_close(x0_from_v(x_t, alpha * eps - sigma_t * x0, alpha, sigma_t), x0)
