"""Losses that move a generated sample from the fake distribution towards the real one.

Symbols: ``x`` [B, ...] a generated sample (the only tensor that may carry a gradient), ``x_s = x + s n`` the same sample
noised, ``x0_real`` and ``x0_fake`` what the real (teacher) and the fake denoiser make of ``x_s``. Drift fields act on ``x`` [N, D]
itself, between real samples ``y`` and the generated ones.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.maths.kernels import barycenter, sinkhorn_log_weights


def _item_mean(x: Tensor) -> Tensor:
    """Mean over everything but the first dimension, kept for broadcasting: [B, ...] -> [B, 1, ..., 1]."""
    return x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))


def _direction(x0_real: Tensor, x0_fake: Tensor, gamma: float, x_s: Tensor | None) -> Tensor:
    """``(x0_real - x0_fake) + (gamma - 1)(x0_real - x_s)``: where the sample has to move, at rest where q_s is p_s^gamma."""
    if gamma == 1.0:
        return x0_real - x0_fake
    if x_s is None:
        raise ValueError(f"gamma is {gamma}; other than 1 it needs x_s, the noised sample")
    return x0_real - x0_fake + (gamma - 1) * (x0_real - x_s)


def _divisor(x: Tensor, x0_real: Tensor, direction: Tensor, max_ratio: float) -> Tensor:
    """``mean|x - x0_real|`` of each item, [B, 1, ..., 1], but no less than ``mean|direction| / max_ratio``."""
    return torch.maximum(_item_mean((x - x0_real).abs()), _item_mean(direction.abs()) / max_ratio)


def dmd_gradient(
    x: Tensor, x0_real: Tensor, x0_fake: Tensor, gamma: float = 1.0, x_s: Tensor | None = None, max_ratio: float = 10.0
) -> Tensor:
    """The normalised distribution-matching gradient at `x`, like `x` (DMD, arXiv 2311.18828, Eqs. 7-8; DMD2, 2405.14867).

    ``[(x - x0_real) - (x - x0_fake)] / mean|x - x0_real|``, the mean taken over each sample. With `gamma` other than 1 the
    target is ``p_real^gamma``: ``(gamma - 1)(x0_real - x_s)`` joins the pull of the real side, and `x_s` must be given.

    The published form divides by zero where ``x`` equals ``x0_real``. Here the divisor never falls below
    ``mean|numerator| / max_ratio``, so a sample's mean absolute gradient is at most `max_ratio`; smaller ones are as published.
    Non-finite entries become 0, as in the reference. Raises ValueError for `gamma` != 1 without `x_s`.
    """
    direction = _direction(x0_real, x0_fake, gamma, x_s)
    divisor = _divisor(x, x0_real, direction, max_ratio)
    return torch.nan_to_num(-direction / divisor, nan=0.0, posinf=0.0, neginf=0.0).detach()


def dmd_loss(x: Tensor, grad: Tensor) -> Tensor:
    """``0.5 mean((x - stop_gradient(x - grad))^2)``, a scalar whose gradient in `x` is ``grad / x.numel()``.

    DMD2 (arXiv 2405.14867), as released. The value is half the mean square of a normalised direction: it measures how far
    the two denoisers disagree, relative to the teacher's error, and need not fall while the samples improve.
    """
    return 0.5 * (x - (x - grad).detach()).square().mean()


def sid_loss(x: Tensor, x0_real: Tensor, x0_fake: Tensor, alpha: float = 1.0, gamma: float = 1.0, x_s: Tensor | None = None) -> Tensor:
    """Score identity distillation (SiD, arXiv 2404.04057, Eq. 23), a scalar.

    ``mean( (x0_real - x0_fake) [ (x0_real - x) - alpha (x0_real - x0_fake) ] / mean|x - x0_real| )``. Here `x0_real` and
    `x0_fake` must carry the gradient of the two frozen networks in ``x_s``, and through it in `x`. `gamma` other than 1
    sharpens ``x0_real`` to ``x0_real + (gamma - 1)(x0_real - x_s)`` everywhere but in the divisor, which is that of
    `dmd_gradient`. Raises ValueError for `gamma` != 1 without `x_s`.
    """
    direction = _direction(x0_real, x0_fake, gamma, x_s)
    with torch.no_grad():
        divisor = _divisor(x, x0_real, direction, max_ratio=10.0).clamp_min(torch.finfo(x.dtype).tiny)
    sharpened = direction + x0_fake
    return (direction * ((sharpened - x) - alpha * direction) / divisor).mean()


# h(r) for r = p_real / p_fake at the noised sample (f-distill, arXiv 2502.15681, Table 1): what each sample's gradient weighs
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
    """``h(r)`` of density ratios ``p_real / p_fake`` [B], the factor by which a divergence other than reverse KL weighs the gradient.

    Of `F_DIVERGENCES` (arXiv 2502.15681, Table 1). It grows with r for the mode-covering ones (kl, js, squared hellinger, jeffreys), and
    falls for those that seek modes harder than reverse KL, which is 1. Raises ValueError for another name.
    """
    if divergence not in F_DIVERGENCES:
        raise ValueError(f"divergence is {divergence!r}; allowed: {', '.join(F_DIVERGENCES)}")
    return F_DIVERGENCES[divergence](ratio)


# the first two derivatives of h in log r
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
    """What each item gives to the descent of an f-divergence along the diffusion, [B] (Uni-Instruct, arXiv 2505.20755).

    ``D_f(real | fake) = 1/2 int E_fake[ h(r) |score_real - score_fake|^2 ] d(s^2)``, where ``h = r^2 f''`` is that of `f_divergence_weight`
    and r = p_real / p_fake at ``x_s = x + s n`` (Thm. 3.1). With ``d = x0_real - x0_fake``, derivatives h' and h'' in log r, and sums over
    an item, SiD's term and DMD's,

        h d . [ (x0_real - x) - a d ]  +  w d . x_s,    a = (1 + h'/h) / 2,    w = [ (h' - h'') |d|^2 / 2 + h' d . (x0_fake - x) ] / s^2,

    has on average the gradient of ``s^4 / 2 E[ h |score difference|^2 ]``, over the item's dimension. The first is SiD's term, through both
    networks: its alpha is 1/2 for reverse KL, 1 for KL. In the second w and d stand still: DMD's direction. Reverse KL has h 1 and w 0.
    (Thm. 3.2 says that there is such a sum; what stands in it is worked out here, and held to the divergence by finite differences.)

    Args:
        x: [B, ...], samples with a gradient.
        x_s: the noised samples, made of them.
        s: their noise levels, [B].
        x0_real: what the frozen teacher makes of `x_s`, with a gradient.
        x0_fake: what the fake network makes of it, likewise.
        ratio: r, [B].
        divergence: of `F_DIVERGENCES`.
        max_weight: bound of ``|w| / h``, for where r and the denoisers do not belong together.

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
    """Uni-Instruct (arXiv 2505.20755), a scalar: `uni_terms`, each over the divisor of `dmd_gradient`, averaged.

    For reverse KL it is `sid_loss` with an alpha of 1/2, and `ratio` does not matter. Raises ValueError for an unknown divergence.
    """
    with torch.no_grad():
        divisor = _divisor(x, x0_real, x0_real - x0_fake, max_ratio=10.0).clamp_min(torch.finfo(x.dtype).tiny).flatten()
    return (uni_terms(x, x_s, s, x0_real, x0_fake, ratio, divergence, max_weight) / divisor).mean()


def density_ratio(logits: Tensor, lower: float = 0.1, upper: float = 20.0) -> Tensor:
    """``p_real / p_fake`` [B] as a discriminator's `logits` [B] or [B, heads] have it: exp of their mean, clipped (as above, Sec. 4.2)."""
    return logits.reshape(len(logits), -1).float().mean(1).exp().clamp(lower, upper)


def ratio_means(means: Tensor, ratio: Tensor, group: Tensor, decay: float) -> Tensor:
    """Running means [K] of density ratios, moved towards those of `ratio` [B] in each of the groups [B] (of 0 to K - 1) that are there.

    A ratio divided by its group's mean is right on average at each noise level: ``E_fake[p_real / p_fake] = 1`` (as above, Sec. 4.2).
    """
    number = torch.zeros_like(means).index_add(0, group, torch.ones_like(ratio).to(means))
    total = torch.zeros_like(means).index_add(0, group, ratio.to(means))
    return torch.where(number > 0, decay * means + (1 - decay) * total / number.clamp_min(1), means)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether `a` and `b` hold the same values."""
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
    """The score-based drift ``V(x) = gamma (b_real(x) - x) - (b_fake(x) - x)``, like `x` [N, D] (MATHS 3.1; arXiv 2603.07514).

    ``b`` are kernel barycentres (`fewstep.maths.kernels.barycenter`) of real samples `y_real` [M, D] and of generated ones
    `y_fake`; where these are x itself, each leaves itself out. At rest the *smoothed* densities are in balance,
    ``q_h ~ p_h^gamma`` with ``h^2 = temperature / 2``: a Gaussian mode of variance s^2 ends at ``(s^2 + h^2) / gamma - h^2``.

    With `temperature_fake` set to ``temperature / gamma`` and gamma 1 this is the two-temperature field, whose Gaussian modes end at
    ``s^2 / gamma`` (their weights do not: MATHS 3.1). `plan` "sinkhorn" replaces both softmaxes by transport plans, which see to it
    that all samples pull alike (arXiv 2603.12366; nothing is left out of the plan from x to itself), in so many `iterations`. No gradient.

    Raises ValueError for fewer than 2 rows of x, and as `barycenter` does.
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
            weights_fake = sinkhorn_log_weights(x, y_fake, cold, kernel, iterations)
            b_real = barycenter(x, y_real, temperature, kernel, log_weights=weights_real)
            b_fake = barycenter(x, y_fake, cold, kernel, log_weights=weights_fake)
        return gamma * (b_real - x) - (b_fake - x)


def _affinity_drift(affinity_neg: Tensor, affinity_pos: Tensor, x: Tensor, neg: Tensor, pos: Tensor) -> Tensor:
    """``sum_pos A_ip (sum_neg A_in) y_p - sum_neg A_in (sum_pos A_ip) y_n``, taken from x_i: [..., N, D] (arXiv 2602.04770, Alg. 2)."""
    to_pos = affinity_pos * affinity_neg.sum(-1, keepdim=True)
    to_neg = affinity_neg * affinity_pos.sum(-1, keepdim=True)
    balance = to_pos.sum(-1, keepdim=True) - to_neg.sum(-1, keepdim=True)  # 0 up to rounding
    return to_pos @ pos - to_neg @ neg - balance * x


def toy_drift_field(x: Tensor, y_real: Tensor, temperature: float) -> Tensor:
    """The drift of the Drifting Models' 2D notebook, like `x` [N, D], for real samples `y_real` [M, D] (arXiv 2602.04770).

    Laplace kernel ``exp(-|x - y| / T)`` with no rescaling of distances, each entry divided by the root of its row's and its
    column's sum; x itself are the negatives, self left out. Carries no gradient.
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
    """The loss of Drifting Models (arXiv 2602.04770, Alg. 2 and Eqs. 13-17): generated `gen` follow their drift.

    Distances are divided by their weighted mean S, coordinates by ``S / sqrt(D)``. For each temperature the drift is divided by its
    own root mean square, so the *value* of the loss is constant (their number, were the drifts uncorrelated) and says nothing:
    watch ``info["drift_<temperature>"]``, the RMS before the division, in these coordinates.

    Args:
        gen: [N, D], or groups [B, N, D] that do not see each other (one a class); the only tensor that gets a gradient.
        pos: real samples [M, D] or [B, M, D].
        neg: extra negatives [K, D] or [B, K, D]; unconditional real samples with `weight_neg` ``(N - 1)(a - 1) / K`` guide by a.
        temperatures: of the kernel ``exp(-distance / temperature)``.
        weight_gen: [N], or with B in front; 1 where None.
        weight_pos: [M], likewise.
        weight_neg: [K], likewise.
        affinity_floor: least affinity. The released code has 1e-3, which at low temperatures outweighs the kernel: far samples
            then act, and the set comes to rest too narrow (a ring) or far too wide (many dimensions). 0 is the paper.
        plan: "double_softmax", or "sinkhorn": a transport plan to the positives and one to the negatives (arXiv 2603.12366).
        iterations: of Sinkhorn's algorithm.

    Returns:
        The loss, a scalar, or [B] for groups; and info: ``scale`` (S) and ``drift_<temperature>``, scalars.

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
        distance.diagonal(dim1=1, dim2=2).add_(100.0)  # leaves self out
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
    """The entropic plan [B, N, M] with uniform rows and columns as `weight` [B, 1, M] says, each row scaled to 1."""
    target = (weight / weight.sum(2, keepdim=True)).clamp_min(1e-30).log()
    g = torch.zeros_like(target)
    for _ in range(iterations):
        f = -(logits + g).logsumexp(2, keepdim=True) - math.log(logits.shape[1])
        g = target - (logits + f).logsumexp(1, keepdim=True)
    return (logits + g).softmax(2)
