"""EDM's wrapping of a raw network into a denoiser, and the loss weight that belongs to it.

Symbols: ``sigma`` noise level, ``sigma_data`` (sd) the data's standard deviation, ``F`` the raw network, ``D`` the denoiser,
``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)``.
"""

import torch
from torch import Tensor


def expand_like(sigma: Tensor, x: Tensor) -> Tensor:
    """View a per-item value [B] (or a scalar []) as [B, 1, ..., 1], so that it broadcasts over data `x` [B, ...]."""
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) if sigma.ndim else sigma


def edm_coefficients(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in, c_noise), each shaped like `sigma` (arXiv 2206.00364, Table 1).

    They give the network unit-variance input and target, and make the denoiser the identity as sigma -> 0.
    """
    sigma = torch.as_tensor(sigma)
    total = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / total
    c_out = sigma * sigma_data / total.sqrt()
    c_in = 1 / total.sqrt()
    c_noise = sigma.log() / 4
    return c_skip, c_out, c_in, c_noise


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """The loss weight w(sigma) = (sigma^2 + sd^2) / (sigma sd)^2 = sigma^-2 + sd^-2, shaped like `sigma`.

    It makes the effective loss on the raw network unweighted (arXiv 2206.00364, Table 1). DMD2 writes it as SNR + 1/sd^2.
    """
    return sigma**-2 + sigma_data**-2


def path_coefficients(t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in) of EDM for ``x_t = (1 - t) x0 + t eps``, each shaped like `t`; finite at t = 1.

    They are `edm_coefficients` at ``sigma = t / (1 - t)`` and ``x = x_t / (1 - t)``, the factor taken into c_skip and c_in.
    """
    root = ((1 - t) ** 2 * sigma_data**2 + t**2).sqrt()  # the standard deviation of x_t
    return (1 - t) * sigma_data**2 / root**2, t * sigma_data / root, 1 / root
