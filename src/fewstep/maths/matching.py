"""Losses that move a generated sample from the fake distribution towards the real one.

Symbols: ``x`` [B, ...] generated samples (the only tensor that may carry a gradient, unless a function says otherwise), ``x_s = x + s n``
the noised samples, ``x0_real`` and ``x0_fake`` the estimates of clean data that the real (teacher) and the fake denoiser make from ``x_s``.
Drift fields act on ``x`` [N, D] itself, and depend on real samples ``y`` and on generated ones.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.maths.kernels import barycenter, sinkhorn_log_weights


def _item_mean(x: Tensor) -> Tensor:
    """Return the mean of `x` [B, ...] over all dimensions but the first, shaped [B, 1, ..., 1] for broadcasting."""
    return x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))


def _direction(x0_real: Tensor, x0_fake: Tensor, gamma: float, x_s: Tensor | None) -> Tensor:
    """Return ``(x0_real - x0_fake) + (gamma - 1)(x0_real - x_s)``, the direction in which samples move; 0 where q_s is p_s^gamma."""
    if gamma == 1.0:
        return x0_real - x0_fake
    if x_s is None:
        raise ValueError(f"gamma is {gamma}; other than 1 it needs x_s, the noised sample")
    return x0_real - x0_fake + (gamma - 1) * (x0_real - x_s)


def _divisor(x: Tensor, x0_real: Tensor, direction: Tensor, max_ratio: float) -> Tensor:
    """Return ``mean|x - x0_real|`` of each item, [B, 1, ..., 1], but at least ``mean|direction| / max_ratio``."""
    return torch.maximum(_item_mean((x - x0_real).abs()), _item_mean(direction.abs()) / max_ratio)


def dmd_gradient(
    x: Tensor, x0_real: Tensor, x0_fake: Tensor, gamma: float = 1.0, x_s: Tensor | None = None, max_ratio: float = 10.0
) -> Tensor:
    """Return the normalised distribution-matching gradient at `x`, like `x` (DMD, arXiv 2311.18828, Eqs. 7-8; DMD2, 2405.14867).

    It is ``[(x - x0_real) - (x - x0_fake)] / mean|x - x0_real|``, with the mean over each sample. With `gamma` other than 1 the target is
    ``p_real^gamma``: ``(gamma - 1)(x0_real - x_s)`` is added to ``x0_real - x0_fake``, and `x_s` must be given.

    The published form divides by zero where ``x`` equals ``x0_real``. Here the divisor never falls below
    ``mean|numerator| / max_ratio``, so that a sample's mean absolute gradient is at most `max_ratio`; smaller gradients are as published.
    Non-finite entries become 0, as in the reference implementation. Raises ValueError for `gamma` != 1 without `x_s`.
    """
    direction = _direction(x0_real, x0_fake, gamma, x_s)
    divisor = _divisor(x, x0_real, direction, max_ratio)
    return torch.nan_to_num(-direction / divisor, nan=0.0, posinf=0.0, neginf=0.0).detach()


def dmd_loss(x: Tensor, grad: Tensor) -> Tensor:
    """Return ``0.5 mean((x - stop_gradient(x - grad))^2)``, a scalar whose gradient in `x` is ``grad / x.numel()``.

    This is the loss of DMD2 (arXiv 2405.14867), as in its released code. Its value is half the mean square of a normalised direction: it
    measures how far the two denoisers disagree, relative to the teacher's error, and need not fall while the samples improve.
    """
    return 0.5 * (x - (x - grad).detach()).square().mean()


def sid_loss(x: Tensor, x0_real: Tensor, x0_fake: Tensor, alpha: float = 1.0, gamma: float = 1.0, x_s: Tensor | None = None) -> Tensor:
    """Return the loss of score identity distillation (SiD, arXiv 2404.04057, Eq. 23), a scalar.

    It is ``mean( (x0_real - x0_fake) [ (x0_real - x) - alpha (x0_real - x0_fake) ] / mean|x - x0_real| )``. `x0_real` and `x0_fake` must
    carry the gradient of the two frozen networks in ``x_s``, and through ``x_s`` in `x`. A `gamma` other than 1 replaces ``x0_real`` by
    ``x0_real + (gamma - 1)(x0_real - x_s)`` everywhere but in the divisor, whose lower bound is that of `dmd_gradient`. Raises ValueError
    for `gamma` != 1 without `x_s`.
    """
    direction = _direction(x0_real, x0_fake, gamma, x_s)
    with torch.no_grad():
        divisor = _divisor(x, x0_real, direction, max_ratio=10.0).clamp_min(torch.finfo(x.dtype).tiny)
    sharpened = direction + x0_fake
    return (direction * ((sharpened - x) - alpha * direction) / divisor).mean()


# h(r), the weight of a sample's gradient, for r = p_real / p_fake at the noised sample (f-distill, arXiv 2502.15681, Table 1)
F_DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "softened_reverse_kl": lambda r: 1 / (1 + r),
    "js": lambda r: r / (1 + r),
    "hellinger": torch.sqrt,
    "kl": lambda r: r,
    "jeffreys": lambda r: 1 + r,
    "neyman": lambda r: 1 / r,
}


def f_divergence_weight(ratio: Tensor, divergence: str) -> Tensor:
    """Return ``h(r)`` [B] for density ratios r = p_real / p_fake `ratio` [B], the factor by which `divergence` weighs a sample's gradient.

    `divergence` is a name in `F_DIVERGENCES` (arXiv 2502.15681, Table 1). For reverse KL the factor is 1; it grows with r for mode-covering
    divergences (kl, js, squared hellinger, jeffreys), and falls for those that seek modes more strongly than reverse KL. Raises ValueError
    for another name.
    """
    if divergence not in F_DIVERGENCES:
        raise ValueError(f"divergence is {divergence!r}; allowed: {', '.join(F_DIVERGENCES)}")
    return F_DIVERGENCES[divergence](ratio)


# the first two derivatives of h with respect to log r
_SLOPES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "reverse_kl": lambda r: (torch.zeros_like(r), torch.zeros_like(r)),
    "softened_reverse_kl": lambda r: (-r / (1 + r) ** 2, r * (r - 1) / (1 + r) ** 3),
    "js": lambda r: (r / (1 + r) ** 2, r * (1 - r) / (1 + r) ** 3),
    "hellinger": lambda r: (r.sqrt() / 2, r.sqrt() / 4),
    "kl": lambda r: (r, r),
    "jeffreys": lambda r: (r, r),
    "neyman": lambda r: (-1 / r, 1 / r),
}


def uni_terms(
    x: Tensor, x_s: Tensor, s: Tensor, x0_real: Tensor, x0_fake: Tensor, ratio: Tensor, divergence: str, max_weight: float = math.inf
) -> Tensor:
    """Return each item's term [B] of a loss whose gradient descends an f-divergence along the diffusion (Uni-Instruct, arXiv 2505.20755).

    ``D_f(real | fake) = 1/2 int E_fake[ h(r) |score_real - score_fake|^2 ] d(s^2)``, where ``h = r^2 f''`` is the `f_divergence_weight`,
    and r = p_real / p_fake at ``x_s = x + s n`` (Thm. 3.1). With ``d = x0_real - x0_fake``, derivatives h' and h'' with respect to log r,
    and products summed over an item, the expectation of the sum of a SiD term and a DMD term,

        h d . [ (x0_real - x) - a d ]  +  w d . x_s,    a = (1 + h'/h) / 2,    w = [ (h' - h'') |d|^2 / 2 + h' d . (x0_fake - x) ] / s^2,

    has the gradient of ``s^4 / 2 E[ h |score_real - score_fake|^2 ]``. What is returned is this sum divided by the item's dimension. The
    SiD term is differentiated through both networks: its alpha is 1/2 for reverse KL, and 1 for KL. In the DMD term w and d are constants.
    Reverse KL has h = 1 and w = 0. (Thm. 3.2 states that such a sum exists; its terms are derived here, and tested against the divergence
    by finite differences.)

    Args:
        x: the samples [B, ...], with a gradient.
        x_s: the noised samples, computed from `x`.
        s: the noise levels [B] of `x_s`.
        x0_real: the frozen teacher's estimate of clean data from `x_s`, with a gradient.
        x0_fake: the fake network's estimate of clean data from `x_s`, with a gradient.
        ratio: the density ratios r [B].
        divergence: a name in `F_DIVERGENCES`.
        max_weight: bound of ``|w| / h``, for ratios that are not consistent with the denoisers.

    """
    d, h = x0_real - x0_fake, f_divergence_weight(ratio, divergence)
    first, second = _SLOPES[divergence](ratio)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    sid = h * dot(d, x0_real - x) - (h + first) / 2 * dot(d, d)
    with torch.no_grad():
        weight = ((first - second) / 2 * dot(d, d) + first * dot(d, x0_fake - x)) / s.square()
        weight = torch.minimum(weight.abs(), max_weight * h).copysign(weight)
    return (sid + weight * dot(d.detach(), x_s)) / x[0].numel()


def uni_loss(
    x: Tensor, x_s: Tensor, s: Tensor, x0_real: Tensor, x0_fake: Tensor, ratio: Tensor, divergence: str, max_weight: float = 10.0
) -> Tensor:
    """Return the loss of Uni-Instruct (arXiv 2505.20755), a scalar: the mean of `uni_terms`, each divided by the divisor of `dmd_gradient`.

    For reverse KL it is `sid_loss` with an alpha of 1/2, and does not depend on `ratio`. Raises ValueError for an unknown divergence.
    """
    with torch.no_grad():
        divisor = _divisor(x, x0_real, x0_real - x0_fake, max_ratio=10.0).clamp_min(torch.finfo(x.dtype).tiny).flatten()
    return (uni_terms(x, x_s, s, x0_real, x0_fake, ratio, divergence, max_weight) / divisor).mean()


def density_ratio(logits: Tensor, lower: float = 0.1, upper: float = 20.0) -> Tensor:
    """Return ``p_real / p_fake`` [B] estimated from a discriminator's `logits` [B] or [B, heads] (arXiv 2502.15681, Sec. 4.2).

    It is exp of the mean over heads, clipped to `lower` and `upper`.
    """
    return logits.reshape(len(logits), -1).float().mean(1).exp().clamp(lower, upper)


def ratio_means(means: Tensor, ratio: Tensor, group: Tensor, decay: float) -> Tensor:
    """Return the running means `means` [K] of density ratios, moved towards the means of `ratio` [B] in the groups that occur in `group`.

    `group` [B] holds each item's group number, from 0 to K - 1, such as that of its noise level. Because ``E_fake[p_real / p_fake] = 1`` at
    each noise level, a ratio divided by its group's mean is right on average (arXiv 2502.15681, Sec. 4.2).
    """
    number = torch.zeros_like(means).index_add(0, group, torch.ones_like(ratio).to(means))
    total = torch.zeros_like(means).index_add(0, group, ratio.to(means))
    return torch.where(number > 0, decay * means + (1 - decay) * total / number.clamp_min(1), means)


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether `a` and `b` have the same shape and values."""
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def drift_field(
    x: Tensor,
    y_real: Tensor,
    y_fake: Tensor,
    temperature: float,
    gamma: float = 1.0,
    kernel: str = "gaussian",
    temperature_fake: float | None = None,
    plan: str = "softmax",
    iterations: int = 20,
) -> Tensor:
    """Return the score-based drift ``V(x) = gamma (b_real(x) - x) - (b_fake(x) - x)``, like `x` [N, D] (arXiv 2603.07514).

    ``b`` are kernel barycentres (`fewstep.maths.kernels.barycenter`) of real samples `y_real` [M, D] and of generated ones `y_fake`. Where
    `y_fake` is `x` itself, each sample is left out of its own barycentre. The drift is 0 where the *smoothed* densities are in balance,
    ``q_h ~ p_h^gamma`` with ``h^2 = temperature / 2``: a Gaussian mode of variance s^2 ends at ``(s^2 + h^2) / gamma - h^2``.

    With `temperature_fake` set to ``temperature / gamma`` and gamma 1 this is the two-temperature field, whose Gaussian modes end at the
    variance ``s^2 / gamma`` (their weights are not those of ``p^gamma``). With `plan` "sinkhorn", transport plans computed in
    `iterations` iterations replace both softmaxes, so that all samples pull with equal weight (arXiv 2603.12366). The plan from `x` to
    itself, too, moves no sample to itself: each sample would be held by its own weight, and samples that are distributed like the data
    would be pulled together. The result carries no gradient.

    Raises ValueError for an unknown `plan`, fewer than 2 rows of `x` where each leaves itself out, and as `barycenter` does.
    """
    if plan not in ("softmax", "sinkhorn"):
        raise ValueError(f"plan is {plan!r}; allowed: softmax, sinkhorn")
    with torch.no_grad():
        itself = _same(x, y_fake)
        cold = temperature_fake if temperature_fake is not None else temperature
        if plan == "softmax":
            b_real = barycenter(x, y_real, temperature, kernel)
            b_fake = barycenter(x, y_fake, cold, kernel, exclude_self=itself)
        else:
            weights_real = sinkhorn_log_weights(x, y_real, temperature, kernel, iterations)
            weights_fake = sinkhorn_log_weights(x, y_fake, cold, kernel, iterations, exclude_self=itself)
            b_real = barycenter(x, y_real, temperature, kernel, log_weights=weights_real)
            b_fake = barycenter(x, y_fake, cold, kernel, exclude_self=itself, log_weights=weights_fake)
        return gamma * (b_real - x) - (b_fake - x)


def _affinity_drift(affinity_neg: Tensor, affinity_pos: Tensor, x: Tensor, neg: Tensor, pos: Tensor) -> Tensor:
    """Return ``sum_p A_ip (sum_n A_in) y_p - sum_n A_in (sum_p A_ip) y_n`` [..., N, D], relative to x_i (arXiv 2602.04770, Alg. 2).

    p runs over the positives `pos`, and n over the negatives `neg`.
    """
    to_pos = affinity_pos * affinity_neg.sum(-1, keepdim=True)
    to_neg = affinity_neg * affinity_pos.sum(-1, keepdim=True)
    balance = to_pos.sum(-1, keepdim=True) - to_neg.sum(-1, keepdim=True)  # 0 up to rounding
    return to_pos @ pos - to_neg @ neg - balance * x


def toy_drift_field(x: Tensor, y_real: Tensor, temperature: float) -> Tensor:
    """Return the drift of the Drifting Models' 2D notebook, like `x` [N, D], for real samples `y_real` [M, D] (arXiv 2602.04770).

    The kernel is ``exp(-|x - y| / T)`` (Laplace) without rescaling of distances; each entry is divided by the square root of its row's sum
    times its column's sum. The negatives are `x` itself, each sample without itself. The result carries no gradient. Raises ValueError for
    fewer than 2 rows of `x`, or a temperature that is not positive.
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} rows; 2 are needed where each leaves itself out")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # the sums nearly cancel
        kernel = (torch.cdist(x, torch.cat([x, y_real]), compute_mode="donot_use_mm_for_euclid_dist") / -temperature).exp()
        kernel.diagonal().zero_()
        kernel = kernel / (kernel.sum(1, keepdim=True) * kernel.sum(0)).clamp_min(1e-12).sqrt()
        return _affinity_drift(kernel[:, : len(x)], kernel[:, len(x) :], x, x, y_real)


def drifting_loss(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None = None,
    temperatures: Sequence[float] = (0.02, 0.05, 0.2),
    weight_gen: Tensor | None = None,
    weight_pos: Tensor | None = None,
    weight_neg: Tensor | None = None,
    affinity_floor: float = 0.0,
    plan: str = "double_softmax",
    iterations: int = 20,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of Drifting Models, which moves samples `gen` along their drift (arXiv 2602.04770, Alg. 2 and Eqs. 13-17), and info.

    Distances are divided by their weighted mean S, and coordinates by ``S / sqrt(D)``. For each temperature the drift is divided by its own
    root mean square, so that the *value* of the loss carries no information: it is the number of temperatures where their drifts are
    uncorrelated. Watch ``info["drift_<temperature>"]`` instead, the root mean square before the division, in these coordinates.

    Args:
        gen: generated samples [N, D], or independent groups [B, N, D], such as one per class; the only tensor that gets a gradient.
        pos: real samples [M, D] or [B, M, D].
        neg: extra negatives [K, D] or [B, K, D]; unconditional real samples with the `weight_neg` ``(N - 1)(a - 1) / K`` give
            classifier-free guidance with scale a.
        temperatures: the temperatures of the kernel ``exp(-distance / temperature)``, at least one.
        weight_gen: weights of `gen`, [N] or [B, N]; None for 1.
        weight_pos: weights of `pos`, [M] or [B, M]; None for 1.
        weight_neg: weights of `neg`, [K] or [B, K], not negative; None for 1.
        affinity_floor: lower bound of the affinities. It is 1e-3 in the released code, which at low temperatures outweighs the kernel:
            far samples then act, and the samples come to rest too narrow (on a ring) or far too wide (in many dimensions). The paper has 0.
        plan: "double_softmax", or "sinkhorn": a transport plan to the positives and one to the negatives (arXiv 2603.12366).
        iterations: number of iterations of Sinkhorn's algorithm.

    Returns:
        The loss, a scalar, or [B] for groups; and a dict of scalars, ``scale`` (S) and ``drift_<temperature>``.

    Raises:
        ValueError: for shapes that do not fit, fewer than 2 samples in `gen`, temperatures that are not positive, or an unknown `plan`.

    """
    groups = gen.ndim == 3
    gen, pos = (a if a.ndim == 3 else a[None] for a in (gen, pos))
    neg = neg if neg is None or neg.ndim == 3 else neg[None]
    if gen.ndim != 3 or pos.ndim != 3 or gen.shape[::2] != pos.shape[::2] or (neg is not None and neg.shape[::2] != gen.shape[::2]):
        raise ValueError(f"gen has shape {tuple(gen.shape)}, pos {tuple(pos.shape)}: give [N, D] and [M, D], or groups of the same number")
    if gen.shape[1] < 2:
        raise ValueError(f"gen has {gen.shape[1]} rows; 2 are needed where each leaves itself out")
    if not temperatures or not all(temperature > 0 for temperature in temperatures):
        raise ValueError(f"temperatures are {list(temperatures)}; give at least one, all positive")
    if plan not in ("double_softmax", "sinkhorn"):
        raise ValueError(f"plan is {plan!r}; allowed: double_softmax, sinkhorn")
    num, dims = gen.shape[1:]
    with torch.no_grad(), torch.autocast(gen.device.type, enabled=False):  # the drift's sums nearly cancel
        x = gen.detach().float() if gen.dtype in (torch.float16, torch.bfloat16) else gen.detach()
        pos = pos.to(x)
        negatives = x if neg is None else torch.cat([x, neg.to(x)], 1)
        targets, k = torch.cat([negatives, pos], 1), negatives.shape[1]
        ones = [a.new_ones(a.shape[:2]) for a in (x, negatives[:, num:], pos)]
        given = [one if w is None else w.to(x).expand_as(one) for one, w in zip(ones, (weight_gen, weight_neg, weight_pos), strict=True)]
        weight = torch.cat(given, 1)[:, None]  # [B, 1, N + K + M]
        distance = torch.cdist(x, targets, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(1e-4)  # as released
        scale = (distance * weight).mean() / weight.mean()
        unit = (scale / dims**0.5).clamp_min(torch.finfo(x.dtype).tiny)
        distance = distance / scale.clamp_min(torch.finfo(x.dtype).tiny)
        distance.diagonal(dim1=1, dim2=2).add_(100.0)  # excludes each sample from its own negatives
        x_unit, targets_unit = x / unit, targets / unit
        info, total = {"scale": scale}, torch.zeros_like(x)
        for temperature in temperatures:
            logits = distance / -temperature
            if plan == "sinkhorn":
                drift = _plan(logits[..., k:], weight[..., k:], iterations) @ targets_unit[:, k:]
                drift = drift - _plan(logits[..., :k], weight[..., :k], iterations) @ targets_unit[:, :k]
            else:
                affinity = (logits.softmax(2) * logits.softmax(1)).sqrt().clamp_min(affinity_floor) * weight
                parts = affinity[..., :k], affinity[..., k:]
                drift = _affinity_drift(*parts, x_unit, targets_unit[:, :k], targets_unit[:, k:])
            rms = drift.square().mean().sqrt()
            info[f"drift_{temperature:g}"] = rms
            total += drift / rms.clamp_min(1e-8)
    loss = (gen.to(x) / unit - (x_unit + total)).square().mean((1, 2))
    return loss if groups else loss[0], info


def _plan(logits: Tensor, weight: Tensor, iterations: int = 20) -> Tensor:
    """Return the entropic transport plan [B, N, M] with uniform rows and column weights `weight` [B, 1, M], each row scaled to sum 1."""
    target = (weight / weight.sum(2, keepdim=True)).clamp_min(1e-30).log()
    g = torch.zeros_like(target)
    for _ in range(iterations):
        f = -(logits + g).logsumexp(2, keepdim=True) - math.log(logits.shape[1])
        g = target - (logits + f).logsumexp(1, keepdim=True)
    return (logits + g).softmax(2)
