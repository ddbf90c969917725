"""Parametrisations of a denoiser by a raw network: EDM's preconditioning and loss weight, and the discrete-time parametrisations.

Symbols: ``sigma`` noise level, ``sigma_data`` (sd) the data's standard deviation, ``F`` the raw network, ``D`` the denoiser,
``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)``. In discrete time ``x_t = alpha x0 + sigma_t eps`` with ``alpha^2 + sigma_t^2
= 1``; its variance-exploding form is ``x = x_t / alpha`` with ``sigma = sigma_t / alpha``.
"""

import math

import torch
from torch import Tensor


def expand_like(sigma: Tensor, x: Tensor) -> Tensor:
    """Return a per-item value `sigma` [B] viewed as [B, 1, ..., 1], so that it broadcasts over `x` [B, ...]; a scalar [] is unchanged."""
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) if sigma.ndim else sigma


def edm_coefficients(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return EDM's preconditioning (c_skip, c_out, c_in, c_noise), each shaped like `sigma` (arXiv 2206.00364, Table 1).

    The coefficients give the network's input and target unit variance, and make the denoiser the identity as sigma -> 0.
    """
    sigma = torch.as_tensor(sigma)
    total = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / total
    c_out = sigma * sigma_data / total.sqrt()
    c_in = 1 / total.sqrt()
    c_noise = sigma.log() / 4
    return c_skip, c_out, c_in, c_noise


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return the loss weight w(sigma) = (sigma^2 + sd^2) / (sigma sd)^2 = sigma^-2 + sd^-2, shaped like `sigma`.

    With this weight on the denoiser's squared error, the effective loss of the raw network is unweighted (arXiv 2206.00364, Table 1). DMD2
    writes it as SNR + 1/sd^2.
    """
    return sigma**-2 + sigma_data**-2


def path_coefficients(t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return EDM's (c_skip, c_out, c_in) for ``x_t = (1 - t) x0 + t eps``, each shaped like `t`; finite at t = 1.

    They are `edm_coefficients` at ``sigma = t / (1 - t)`` and ``x = x_t / (1 - t)``, with the factor 1 / (1 - t) multiplied into c_skip and
    c_in.
    """
    root = ((1 - t) ** 2 * sigma_data**2 + t**2).sqrt()  # the standard deviation of x_t
    return (1 - t) * sigma_data**2 / root**2, t * sigma_data / root, 1 / root


def beta_schedule(schedule: str, num: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return the betas, float64 [num], of a discrete diffusion ``alpha_t^2 = prod_{k <= t} (1 - beta_k)``, by diffusers' schedule name.

    `start` and `end` are the first and last beta of "linear" (Ho et al. 2020, arXiv 2006.11239, Sec. 4) and "scaled_linear" (linear in the
    square root; Rombach et al. 2022, arXiv 2112.10752), and bounds of "sigmoid" (Xu et al. 2022, arXiv 2203.02923). "squaredcos_cap_v2"
    (Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. 17), "laplace" and "exp" define alpha^2 as a function of time, with betas of at most
    0.999. Raises ValueError for another name, or fewer than 2 betas.
    """
    if num < 2:
        raise ValueError(f"the schedule has {num} betas; give at least 2")
    if schedule == "linear":
        return torch.linspace(start, end, num, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64) ** 2
    if schedule == "sigmoid":
        return torch.linspace(-6, 6, num, dtype=torch.float64).sigmoid() * (end - start) + start
    t = torch.linspace(0, 1, num + 1, dtype=torch.float64)
    if schedule == "squaredcos_cap_v2":
        alpha_squared = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    elif schedule == "laplace":
        snr = (0.5 * (t - 0.5).sign() * (1 - 2 * (0.5 - t).abs() + 1e-6).log()).exp()
        alpha_squared = (snr / (1 + snr)).sqrt()
    elif schedule == "exp":
        alpha_squared = (-12 * t).exp()
    else:
        raise ValueError(f"the beta schedule is {schedule!r}; allowed: linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace, exp")
    return (1 - alpha_squared[1:] / alpha_squared[:-1]).clamp(max=0.999)


def timestep_sigmas(betas: Tensor, zero_snr: bool = False) -> Tensor:
    """Return the noise level ``sigma_t / alpha_t`` of each integer timestep, float64 [T], ascending, for `betas` [T].

    With `zero_snr` the schedule is first rescaled so that its last alpha is 0 (Lin et al. 2023, arXiv 2305.08891, Algorithm 1). The last
    timestep, at which sigma is infinite, is then left out, as is that of a last beta of 1: the result is [T - 1]. Raises ValueError for
    betas outside (0, 1).
    """
    betas = betas.double()
    if betas.ndim != 1 or len(betas) < 2 or not bool(((betas[:-1] > 0) & (betas[:-1] < 1)).all() and 0 < betas[-1] <= 1):
        raise ValueError(f"betas are {betas.flatten()[:3].tolist()} and so on; give at least 2 between 0 and 1")
    alpha = (1 - betas).cumprod(0).sqrt()
    if zero_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha = alpha[alpha > 0]
    return (1 - alpha**2).sqrt() / alpha


def fractional_timestep(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """Return the fractional timestep, float32 [...], of the noise level `sigma` [...], interpolated linearly in ln sigma.

    `sigmas` [T], ascending, are the noise levels of the integer timesteps. Outside their range the timestep is 0 or T - 1.
    """
    log_sigma, table = sigma.to(sigmas.dtype).log(), sigmas.log()
    above = torch.searchsorted(table, log_sigma).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    return (above - 1 + (log_sigma - low) / (high - low)).clamp(0, len(table) - 1).float()


def ddpm_coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma_t) for which ``x_t = alpha x0 + sigma_t eps`` has the noise level `sigma`, each shaped like `sigma`."""
    alpha = (1 + sigma**2).rsqrt()
    return alpha, sigma * alpha


def x0_from_epsilon(x_t: Tensor, epsilon: Tensor, alpha: Tensor, sigma_t: Tensor) -> Tensor:
    """Return the clean data for a predicted noise, ``(x_t - sigma_t eps) / alpha`` (arXiv 2006.11239, Eq. 9, solved for x0)."""
    return (x_t - sigma_t * epsilon) / alpha


def x0_from_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma_t: Tensor) -> Tensor:
    """Return the clean data for a predicted ``v = alpha eps - sigma_t x0``: ``alpha x_t - sigma_t v`` (arXiv 2202.00512, App. D)."""
    return alpha * x_t - sigma_t * v
