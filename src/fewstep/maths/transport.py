"""Entropic optimal transport between sets of samples, and the Wasserstein gradient-flow field that follows from it.

Symbols: ``x`` [..., N, D] with weights ``a`` [..., N], ``y`` [..., M, D] with weights ``b`` [..., M], each set's weights summing to 1;
temperature ``T``. The plan P minimises ``sum P_ij |x_i - y_j|^2 + T KL(P | a b)`` among the plans with row sums a and column sums b. The
leading dimensions number independent pairs of sets, such as one per class. Functions take the weights' logarithms; a weight of 0 (a
logarithm of -inf) removes a sample, so that sets may be padded.
"""

import torch
from torch import Tensor


def _check(x: Tensor, y: Tensor, temperature: float, iterations: int) -> None:
    if x.ndim < 2 or x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}; give [..., N, D] and [..., M, D]")
    if not x.shape[-2] or not y.shape[-2]:
        raise ValueError(f"x and y have {x.shape[-2]} and {y.shape[-2]} rows; each needs 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; give at least 1")


def transport(
    x: Tensor, y: Tensor, temperature: float, iterations: int = 20, log_a: Tensor | None = None, log_b: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (mean destination of each x under the entropic plan, like `x` [..., N, D]; error of the plan [...]), without gradient.

    The destination is the barycentric projection ``sum_j P_ij y_j / a_i``. The plan comes from Sinkhorn's iterations on log-potentials,
    ``f_i = -log sum_j b_j k_ij e^(g_j)`` and ``g_j = -log sum_i a_i k_ij e^(f_i)`` with ``k = exp(-|x - y|^2 / T)`` (Cuturi, arXiv
    1306.0895). Its row sums are exact. The error is the share of the mass that is in wrong columns, half the sum of ``|sum_i P_ij - b_j|``;
    more iterations or a higher temperature lower it. Without `log_a` or `log_b` that set is uniform. Memory grows with N times M. Raises
    ValueError for shapes that do not fit, an empty set, a temperature that is not positive, or no iterations.
    """
    _check(x, y, temperature, iterations)
    dtype = x.dtype
    x = x.detach().float() if dtype in (torch.float16, torch.bfloat16) else x.detach()
    y = y.detach().to(x)
    with torch.autocast(x.device.type, enabled=False):
        uniform = (x.new_full(s.shape[:-1], s.shape[-2]).log().neg() for s in (x, y))
        log_a, log_b = (u if given is None else given.to(x) for u, given in zip(uniform, (log_a, log_b), strict=True))
        log_a, log_b = log_a[..., :, None], log_b[..., None, :]
        logits = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().div_(-temperature)
        g = torch.zeros_like(log_b)
        for _ in range(iterations):
            f = -(logits + (g + log_b)).logsumexp(-1, keepdim=True)
            g = -(logits + (f + log_a)).logsumexp(-2, keepdim=True)
        plan = (logits + (g + log_b)).softmax(-1)
        error = ((plan * log_a.exp()).sum(-2) - log_b.squeeze(-2).exp()).abs().sum(-1) / 2
        error = (error - 10 * torch.finfo(x.dtype).eps).clamp_min(0)  # below this, the error is that of rounding alone
        return (plan @ y).to(dtype), error


def wasserstein_field(
    x: Tensor,
    y_real: Tensor,
    y_fake: Tensor,
    temperature: float,
    iterations: int = 20,
    log_x: Tensor | None = None,
    log_real: Tensor | None = None,
    log_fake: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (``V(x) = T_qp(x) - T_qq'(x)``, like `x` [..., N, D]; the larger error of the two plans [...]) (W-Flow, arXiv 2605.11755).

    T are the projections of `transport`: to real samples `y_real` [..., M, D], and to a second set of generated samples `y_fake` [..., K,
    D]. V is half the direction of steepest descent of the Sinkhorn divergence. It is 0 where generated and real samples have the same
    distribution, at any temperature, because the entropy changes both plans alike. With `x` itself for `y_fake` this would not hold: each
    sample would be held by its own weight, the more so at lower temperatures. Log-weights and ValueErrors are as in `transport`.
    """
    to_real, error = transport(x, y_real, temperature, iterations, log_x, log_real)
    to_fake, other = transport(x, y_fake, temperature, iterations, log_x, log_fake)
    return to_real - to_fake, torch.maximum(error, other)
