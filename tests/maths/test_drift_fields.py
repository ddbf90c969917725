import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.maths.kernels import barycenter
from fewstep.maths.matching import _plan, drift_field, drifting_loss, toy_drift_field

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "drifting.safetensors")
CASES = ("ring2d", "ring2d_neg", "feat16_batch_w", "self_equal")
RELEASED = ("0.02", "0.05", "0.2")
PLANS = pytest.mark.parametrize("plan", ["softmax", "sinkhorn"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantiles(num, mean=0.0, std=1.0):
    """N(mean, std^2) by its quantiles, in order: float64 [num, 1]."""
    return (mean + std * torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num))[:, None]


def error(found, expected):
    return (found - expected).abs().max().item()


def softmax_drift(x, y_real, y_fake, temperature, gamma, left_out):
    """The strict field, sample by sample."""
    rows = []
    for i, x_i in enumerate(x):
        means = []
        for y in (y_real, torch.cat([y_fake[:i], y_fake[i + 1 :]]) if left_out else y_fake):
            weights = [math.exp(-((x_i - y_j) ** 2).sum().item() / temperature) for y_j in y]
            means.append(sum(w * y_j for w, y_j in zip(weights, y, strict=True)) / sum(weights))
        rows.append(gamma * (means[0] - x_i) - (means[1] - x_i))
    return torch.stack(rows)


# --- the score-based field


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.3, 1.0, 2.0])
def test_field_is_the_golden_one(temperature):
    x, y = GOLDEN["ring2d.in.gen"][0], GOLDEN["ring2d.in.pos"][0]
    expected = GOLDEN[f"seedlike.T{temperature}.V"]
    assert error(drift_field(x, y, x, temperature), expected) < 1e-12
    single = drift_field(x.float(), y.float(), x.float(), temperature)
    assert single.dtype == torch.float32
    assert error(single, expected) < 3e-5
    if temperature in (0.05, 1.0):
        assert error(drift_field(x, y, x, temperature, 0.5), GOLDEN[f"seedlike.g0.5.T{temperature}.V"]) < 1e-12


def test_field_away_from_the_samples():
    x, real, fake = normal(7, 3), normal(20, 3, seed=1), normal(15, 3, seed=2)
    assert error(drift_field(x, real, fake, 0.7, 1.4), softmax_drift(x, real, fake, 0.7, 1.4, False)) < 1e-12
    two = barycenter(x, real, 0.7) - barycenter(x, fake, 0.3)
    assert error(drift_field(x, real, fake, 0.7, temperature_fake=0.3), two) < 1e-12
    laplace = 1.4 * (barycenter(x, real, 0.7, "laplace") - x) - (barycenter(x, fake, 0.7, "laplace") - x)
    assert error(drift_field(x, real, fake, 0.7, 1.4, "laplace"), laplace) < 1e-12


def test_self_is_left_out_where_the_fake_samples_are_x():
    x, real = normal(9, 2), normal(12, 2, seed=1)
    expected = softmax_drift(x, real, x, 0.5, 1.0, True)
    assert error(drift_field(x, real, x, 0.5), expected) < 1e-12
    assert torch.equal(drift_field(x, real, x.clone(), 0.5), drift_field(x, real, x, 0.5))
    assert error(drift_field(x, real, x[:-1], 0.5), softmax_drift(x, real, x[:-1], 0.5, 1.0, False)) < 1e-12
    assert error(drift_field(x, real, x + 1e-13, 0.5), softmax_drift(x, real, x, 0.5, 1.0, False)) < 1e-11
    assert error(softmax_drift(x, real, x, 0.5, 1.0, False), expected) > 0.1


def test_only_with_self_left_out_are_equal_distributions_at_rest():
    # x_i sees 12 other x and 12 y, all from N(0, 1): the mean of x_i V(x_i) is 0 by symmetry. If x_i counted, it would be pulled to
    # itself, and so away. 3000 draws; 4 standard errors
    rng = torch.Generator().manual_seed(0)
    left_out, counted = [], []
    for _ in range(3000):
        draw = torch.randn(25, 1, generator=rng, dtype=torch.float64)
        x, y = draw[:13], draw[13:]
        left_out.append((x * drift_field(x, y, x, 1.0)).mean())
        counted.append((x * drift_field(x, y, x + 1e-12, 1.0)).mean())
    means = [torch.stack(values).mean().item() for values in (left_out, counted)]
    standard = torch.stack(left_out).std().item() / 3000**0.5
    assert abs(means[0]) < 4 * standard
    assert abs(means[1]) > 12 * standard


@PLANS
@pytest.mark.parametrize("kernel", ["gaussian", "laplace"])
def test_field_moves_with_the_samples(kernel, plan):
    x, real, fake = normal(12, 3), normal(14, 3, seed=1), normal(10, 3, seed=2)
    turn, shift = torch.linalg.qr(normal(3, 3, seed=3))[0], torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for others in (fake, x):
        options = (0.8, 1.3, kernel, None, plan)
        v = drift_field(x, real, others, *options)
        assert error(drift_field(x + shift, real + shift, others + shift, *options), v) < 1e-12
        assert error(drift_field(x @ turn, real @ turn, others @ turn, *options), v @ turn) < 1e-12
        assert error(drift_field(x[order], real.flip(0), x[order] if others is x else others.flip(0), *options), v[order]) < 1e-12
        # distances times 3 are temperatures times 9, or times 3
        warm = (0.8 * (9 if kernel == "gaussian" else 3), *options[1:])
        assert error(drift_field(3 * x, 3 * real, 3 * others, *warm), 3 * v) < 1e-12


@PLANS
def test_no_drift_between_equal_sets(plan):
    x, y = normal(12, 2), normal(20, 2, seed=1)
    assert torch.equal(drift_field(x, y, y, 0.3, plan=plan), torch.zeros_like(x))
    assert error(drift_field(x, y, y.flip(0), 0.3, plan=plan), 0) < 1e-12
    assert error(drift_field(x, y, y, 0.3, 1.5, plan=plan), 0) > 0.01


def test_between_two_gaussians_the_field_is_linear():
    x = torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None]
    real, fake = quantiles(16000, 0.4, 0.8), quantiles(16000, -0.3, 1.1)
    for temperature, gamma in [(0.2, 1.3), (1.0, 1.3), (1.0, 1.0)]:
        h2 = temperature / 2
        expected = -gamma * h2 * (x - 0.4) / (0.8**2 + h2) + h2 * (x + 0.3) / (1.1**2 + h2)
        assert error(drift_field(x, real, fake, temperature, gamma), expected) < 2e-4  # of .3 to .9; quantiles end at 4 std
    h2, cold = 0.5, 0.2
    expected = -h2 * (x - 0.4) / (0.8**2 + h2) + cold * (x + 0.3) / (1.1**2 + cold)
    assert error(drift_field(x, real, fake, 1.0, temperature_fake=0.4), expected) < 2e-4


def at_rest(gamma, temperature_fake=None, left_out=False, num=200):
    """Variances of a real set and of particles that have followed the field, from N(.1, 1.3^2), at temperature 1."""
    y, x = quantiles(400), quantiles(num, 0.1, 1.3)
    for _ in range(80):
        # a set that is not quite x: each counts itself, and the sum over x is a quadrature of the field of a density
        x = x + 0.5 * drift_field(x, y, x if left_out else x + 1e-9, 1.0, gamma, temperature_fake=temperature_fake)
    return y.var(correction=0).item(), x.var(correction=0).item()


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5, 2.0])
def test_variance_at_rest(gamma):
    # quantiles end early: 400 have .997 of the variance, which `real` knows, and 200 particles .994, which the field takes for more
    real, found = at_rest(gamma)
    assert found == pytest.approx((real + 0.5) / gamma - 0.5, rel=0.02)
    assert abs(found - real / gamma) > 0.05 or gamma == 1


@pytest.mark.parametrize("gamma", [0.7, 2.0])
def test_variance_at_rest_of_the_two_temperature_field(gamma):
    real, found = at_rest(1.0, temperature_fake=1 / gamma)
    assert found == pytest.approx(real / gamma, rel=0.02)


def test_a_gamma_above_one_plus_the_ratio_of_variances_collapses():
    assert at_rest(3.5)[1] < 1e-3  # 1 + 1 / .5 = 3
    assert at_rest(2.5)[1] == pytest.approx(0.1, abs=0.01)


def test_particles_that_leave_themselves_out_rest_wider_the_fewer_they_are():
    # no random draws, so no symmetry as above: the field of N - 1 particles lacks just the one at hand
    few, more = at_rest(1.0, left_out=True, num=100)[1], at_rest(1.0, left_out=True, num=400)[1]
    assert few > more > 1.02


def test_with_transport_plans_x_at_the_data_rests():
    x = normal(16, 2)
    order, other = (torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert error(drift_field(x, x[order], x[other], 0.4, plan="sinkhorn"), 0) < 1e-12
    assert error(drift_field(x, normal(16, 2, seed=1), x[other], 0.4, plan="sinkhorn"), 0) > 0.01


@pytest.mark.parametrize("temperature", [2.0, 8.0])
def test_with_transport_plans_samples_distributed_like_the_data_are_not_pulled_together(temperature):
    """Other draws of one law than the data: samples held by their own weight would be pulled together by .46 x and .14 x."""
    pulls = []
    for seed in range(6):
        x, y = normal(256, 16, seed=2 * seed), normal(256, 16, seed=2 * seed + 1)
        field = drift_field(x, y, x, temperature, plan="sinkhorn")
        pulls.append(((field * x).sum() / x.square().sum()).item())
    assert abs(sum(pulls)) / 6 < 0.015  # three standard errors of the mean of 6, measured on 24


def test_with_transport_plans_all_samples_pull_alike():
    # the mean pull towards y is towards its mean: every y has the same share, wherever x are
    x, y = normal(20, 2) + 1, normal(30, 2, seed=1)
    fake = normal(25, 2, seed=2) - 2
    assert error(drift_field(x, y, fake, 4.0, plan="sinkhorn").mean(0), y.mean(0) - fake.mean(0)) < 1e-6
    assert error(drift_field(x, y, fake, 4.0).mean(0), y.mean(0) - fake.mean(0)) > 0.1


def test_field_carries_no_gradient():
    x, y = normal(4, 2).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    for plan in ("softmax", "sinkhorn"):
        assert not drift_field(x, y, x, 1.0, plan=plan).requires_grad
    assert not toy_drift_field(x, y, 1.0).requires_grad


def test_autocast_changes_nothing():
    x, y = normal(40, 8).float(), normal(50, 8, seed=1).float()
    functions = (
        lambda: drift_field(x, y, x, 1.0),
        lambda: drift_field(x, y, x, 1.0, plan="sinkhorn"),
        lambda: toy_drift_field(x, y, 1.0),
        lambda: unit_field(x, y, temperatures=[0.2])[0],
        lambda: unit_field(x, y, temperatures=[0.2], plan="sinkhorn")[0],
    )
    for function in functions:
        expected = function()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(function(), expected)


# --- the 2D notebook's field


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.3, 1.0, 2.0])
def test_toy_field_is_the_golden_one(temperature):
    x, y, expected = GOLDEN["ring2d.in.gen"][0], GOLDEN["ring2d.in.pos"][0], GOLDEN[f"toy.T{temperature}.f64.V"]
    assert error(toy_drift_field(x, y, temperature), expected) < 1e-13
    assert error(toy_drift_field(x.float(), y.float(), temperature), expected) < 2e-6


def test_toy_field_moves_with_the_samples():
    x, y = normal(12, 3), normal(14, 3, seed=1)
    turn, v = torch.linalg.qr(normal(3, 3, seed=3))[0], toy_drift_field(x, y, 0.8)
    assert error(toy_drift_field(x @ turn + 4, y @ turn + 4, 0.8), v @ turn) < 1e-12
    assert error(toy_drift_field(x.flip(0), y[torch.randperm(14)], 0.8), v.flip(0)) < 1e-12
    assert error(toy_drift_field(3 * x, 3 * y, 2.4), 3 * v) < 1e-12


# --- the loss of Drifting Models


def unit_field(gen, *rest, **options):
    """(V in unit coordinates, info, loss): what moves gen, from the gradient of the loss."""
    gen = gen.clone().requires_grad_()
    loss, info = drifting_loss(gen, *rest, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), gen)
    num, dims = gen.shape[-2:]
    return -gradient * num * dims * (info["scale"] / dims**0.5) / 2, info, loss.detach()


def golden_inputs(case, dtype=torch.float64):
    names = ("gen", "pos", "neg", "w_gen", "w_pos", "w_neg")
    gen, pos, neg, *weights = (GOLDEN[key].to(dtype) if (key := f"{case}.in.{name}") in GOLDEN else None for name in names)
    return gen, pos, neg, dict(zip(("weight_gen", "weight_pos", "weight_neg"), weights, strict=True))


@pytest.mark.parametrize("released", [(r,) for r in (*RELEASED, "1.0")] + [RELEASED], ids="_".join)
@pytest.mark.parametrize("case", CASES)
def test_loss_is_the_golden_one(case, released):
    gen, pos, neg, weights = golden_inputs(case)
    v, info, loss = unit_field(gen, pos, neg, temperatures=[float(r) for r in released], affinity_floor=1e-3, **weights)
    name = f"{case}.R{'_'.join(released)}"
    assert error(loss, GOLDEN[f"{name}.np64.loss"]) < 1e-12
    assert error(v[:, ::4], sum(GOLDEN[f"{case}.R{r}.np64.V"] for r in released)) < 1e-12  # each over its RMS, and then summed
    # the rest is the release itself, in float32
    assert info["scale"].item() == pytest.approx(GOLDEN[f"{case}.scale"].item(), rel=1e-6)
    assert set(info) == {"scale", *(f"drift_{float(r):g}" for r in released)}
    for r in released:
        rms = info[f"drift_{float(r):g}"].item()
        # where the samples are the data the float32 force is a small difference of large sums
        assert rms**2 == pytest.approx(GOLDEN[f"{case}.R{r}.loss_{r}"].item(), rel=1e-4 if case == "self_equal" else 1e-5)
    if f"{name}.loss" in GOLDEN:
        assert error(loss, GOLDEN[f"{name}.loss"]) < (1e-4 if case == "self_equal" else 1e-5)
        found = v[:, ::4] * 2 / (gen.shape[1] * gen.shape[2]) / (info["scale"] / gen.shape[2] ** 0.5)
        expected = -GOLDEN[f"{name}.dgen"]
        assert error(found, expected) < (3e-3 if case == "self_equal" else 4e-5) * expected.abs().max()


@pytest.mark.parametrize("case", ["ring2d", "ring2d_neg", "feat16_batch_w"])
def test_loss_in_float32(case):
    gen, pos, neg, weights = golden_inputs(case, torch.float32)
    v, _, loss = unit_field(gen, pos, neg, affinity_floor=1e-3, **weights)
    assert v.dtype == torch.float32
    assert error(loss, GOLDEN[f"{case}.R0.02_0.05_0.2.np64.loss"]) < 1e-5
    assert error(v[:, ::4], sum(GOLDEN[f"{case}.R{r}.np64.V"] for r in RELEASED)) < 1e-4


def written_out(gen, pos, neg=None, temperature=0.2, weights=(), floor=0.0, sinkhorn=0):
    """Drift of groups before its division, [B, N, D] in unit coordinates, and S: arXiv 2602.04770, Alg. 2, sample by sample.

    `weights` are those of gen, neg and pos, [B, ...]; `sinkhorn` iterations replace the double softmax.
    """
    num, dims = gen.shape[1:]
    negatives = gen if neg is None else torch.cat([gen, neg], 1)
    targets, k = torch.cat([negatives, pos], 1), negatives.shape[1]
    weight = torch.cat(weights, 1) if weights else torch.ones(targets.shape[:2], dtype=gen.dtype)
    distance = (gen[:, :, None] - targets[:, None]).square().sum(3).sqrt().clamp_min(1e-4)
    scale = (distance * weight[:, None]).sum() / (weight.sum() * num)  # over all groups
    drifts = []
    for x, y, d, w in zip(gen, targets, distance, weight, strict=True):
        kernel = (-(d / scale) / temperature).exp()
        kernel[range(num), range(num)] = 0
        v = torch.zeros_like(x)
        if sinkhorn:
            for part, sign in ((slice(k, None), 1), (slice(0, k), -1)):
                gibbs, column = kernel[:, part], w[part] / w[part].sum()
                right = torch.ones_like(column)
                for _ in range(sinkhorn):
                    left = 1 / num / (gibbs @ right)
                    right = column / (gibbs.T @ left)
                plan = gibbs * right / (gibbs @ right)[:, None]
                v += sign * plan @ y[part]
        else:
            affinity = (kernel / kernel.sum(1, keepdim=True) * (kernel / kernel.sum(0))).sqrt().clamp_min(floor) * w
            for i in range(num):
                to_neg, to_pos = affinity[i, :k].sum(), affinity[i, k:].sum()
                for j in range(len(y)):
                    v[i] += (affinity[i, j] * to_neg if j >= k else -affinity[i, j] * to_pos) * (y[j] - x[i])
        drifts.append(v / (scale / dims**0.5))
    return torch.stack(drifts), scale


def groups_and_weights():
    gen, pos, neg = normal(3, 5, 2), normal(3, 6, 2, seed=1) + 0.5, normal(3, 4, 2, seed=2)
    return gen, pos, neg, tuple(normal(3, n, seed=n).exp() for n in (5, 4, 6))


@pytest.mark.parametrize("sinkhorn", [0, 20])
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_loss_is_the_algorithm_written_out(floor, sinkhorn):
    gen, pos, neg, weights = groups_and_weights()
    named = dict(zip(("weight_gen", "weight_neg", "weight_pos"), weights, strict=True))
    options = {"affinity_floor": floor, "plan": "sinkhorn" if sinkhorn else "double_softmax"}
    v, info, loss = unit_field(gen, pos, neg, (0.1, 0.5), **named, **options)
    expected = 0
    for temperature in (0.1, 0.5):
        drift, scale = written_out(gen, pos, neg, temperature, weights, floor, sinkhorn)
        rms = drift.square().mean().sqrt()  # over all groups
        expected = expected + drift / rms
        assert info[f"drift_{temperature}"].item() == pytest.approx(rms.item(), rel=1e-11)
    assert info["scale"].item() == pytest.approx(scale.item(), rel=1e-12)
    assert error(v, expected) < 1e-11
    assert error(loss, expected.square().mean((1, 2))) < 1e-11


def test_without_groups_or_negatives():
    gen, pos = normal(5, 2), normal(6, 2, seed=1) + 0.5
    drift, _ = written_out(gen[None], pos[None])
    v, info, loss = unit_field(gen, pos, temperatures=[0.2])
    assert loss.shape == ()
    assert error(v, drift[0] / drift.square().mean().sqrt()) < 1e-12
    grouped = drifting_loss(gen[None], pos[None], temperatures=[0.2])
    assert grouped[0].shape == (1,)
    assert (grouped[0][0], grouped[1]) == (loss, info)
    weight = torch.tensor([1.0, 2, 1, 1, 3, 1])
    alone = drifting_loss(gen, pos, weight_pos=weight)[0]
    assert error(drifting_loss(gen.expand(2, 5, 2), pos.expand(2, 6, 2), weight_pos=weight)[0], alone) < 1e-12


def test_groups_share_nothing_but_the_scale_and_the_root_mean_square():
    gen, pos, neg, _ = groups_and_weights()
    v, info, _ = unit_field(gen, pos, neg, [0.2])
    for i in range(3):
        one, one_info, _ = unit_field(gen[i], pos[i], neg[i], [0.2 * (info["scale"] / unit_scale(gen[i], pos[i], neg[i])).item()])
        (key,) = (key for key in one_info if key.startswith("drift"))
        # at the temperature that undoes the group's own scale, the drift in data coordinates is the same
        raw = one * one_info[key] * one_info["scale"]
        assert error(v[i] * info["drift_0.2"] * info["scale"], raw) < 1e-12
    changed = gen.clone()
    changed[0] += 3
    assert unit_field(changed, pos, neg, [0.2])[1]["scale"] > info["scale"] + 0.1
    assert error(unit_field(gen[0], pos[0], neg[0], temperatures=[0.2])[0], v[0]) > 0.01


def unit_scale(gen, pos, neg):
    return drifting_loss(gen, pos, neg)[1]["scale"]


def test_by_hand_on_the_corners_of_a_simplex():
    # 2 generated, 1 negative, 2 real at the corners e_1 .. e_5: all distances are sqrt(2). Leaving self out, softmax over targets is
    # 1/4 everywhere, over generated 1 at the other generated one and 1/2 elsewhere: A = 1/2 and 1/sqrt(8)
    corners = torch.eye(5, dtype=torch.float64)
    guidance = 3.0
    weight = torch.tensor([(2 - 1) * (guidance - 1) / 1])
    v, info, _ = unit_field(corners[:2], corners[3:], corners[2:3], [0.7], weight_neg=weight)
    other, extra, real = 1 / 2, 2 / 8**0.5, 1 / 8**0.5
    row = torch.tensor([0, -other * 2 * real, -extra * 2 * real, real * (other + extra), real * (other + extra)]).double()
    row[0] = -row.sum()  # 0: what all pulls take from x_1
    assert abs(row[0]) < 1e-7
    expected = torch.stack([row, row[[1, 0, 2, 3, 4]]])
    mean_distance = (2 * 0 + 2 * 2**0.5 + 2 * 2**0.5 * weight.item() + 4 * 2**0.5) / (2 * (4 + weight.item()))
    assert info["scale"].item() == pytest.approx(mean_distance, rel=1e-4)  # the diagonal counts as 1e-4, as released
    found = v * info["drift_0.7"] * info["scale"] / 5**0.5
    assert error(found, expected) < 1e-6


def test_the_value_is_constant_and_the_drift_is_not():
    y = normal(64, 2, seed=1)
    drifts = []
    for offset in (4.0, 1.0, 0.0):
        loss, info = drifting_loss(normal(64, 2) + offset, y, temperatures=[0.2])
        assert loss.item() == pytest.approx(1, abs=1e-12)
        drifts.append(info["drift_0.2"].item())
    assert drifts[0] > 1.5 * drifts[1] > 3 * drifts[2]
    # of several temperatures: their number, and twice the correlations
    loss, _ = drifting_loss(normal(64, 2), y, temperatures=[0.02, 0.05, 0.2])
    fields = [unit_field(normal(64, 2), y, temperatures=[t])[0].flatten() for t in (0.02, 0.05, 0.2)]
    correlations = torch.corrcoef(torch.stack(fields))
    assert loss.item() == pytest.approx(correlations.sum().item(), rel=0.02)  # the fields' means are nearly 0


@pytest.mark.parametrize("plan", ["double_softmax", "sinkhorn"])
def test_units_of_the_data_do_not_matter(plan):
    gen, pos, neg = normal(12, 3), normal(14, 3, seed=1), normal(5, 3, seed=2)
    v, info, loss = unit_field(gen, pos, neg, plan=plan)
    # the diagonal's 1e-4, 12 of 372 distances, does not scale: 1e-5 of S
    large_v, large_info, large_loss = unit_field(10 * gen, 10 * pos, 10 * neg, plan=plan)
    assert error(large_v, v) < 1e-3
    assert large_loss.item() == pytest.approx(loss.item(), rel=1e-4)
    assert large_info["scale"].item() == pytest.approx(10 * info["scale"].item(), rel=1e-5)
    assert large_info["drift_0.2"].item() == pytest.approx(info["drift_0.2"].item(), rel=1e-4)
    turn = torch.linalg.qr(normal(3, 3, seed=3))[0]
    moved = unit_field((gen @ turn + 2).flip(0), (pos @ turn + 2).flip(0), (neg @ turn + 2).flip(0), plan=plan)
    assert error(moved[0], (v @ turn).flip(0)) < 1e-9
    assert moved[2].item() == pytest.approx(loss.item(), rel=1e-10)


def raw(*arguments, **options):
    """The drift before its division, in data coordinates, and S."""
    v, info, _ = unit_field(*arguments, temperatures=[0.5], **options)
    return v * info["drift_0.5"] * info["scale"] / v.shape[-1] ** 0.5, info["scale"]


def test_what_weights_do():
    gen, pos, neg = normal(6, 2), normal(8, 2, seed=1), normal(4, 2, seed=2)
    ones = [torch.ones(n, dtype=torch.float64) for n in (6, 8, 4)]
    plain, scale = raw(gen, pos, neg)
    # all weights times c: the same S, and both sums of affinities times c
    assert error(raw(gen, pos, neg, weight_gen=3 * ones[0], weight_pos=3 * ones[1], weight_neg=3 * ones[2])[0], 9 * plain) < 1e-12
    v, _, loss = unit_field(gen, pos, neg, weight_gen=3 * ones[0], weight_pos=3 * ones[1], weight_neg=3 * ones[2])
    expected = unit_field(gen, pos, neg)
    assert error(v, expected[0]) < 1e-10
    assert loss.item() == pytest.approx(expected[2].item(), rel=1e-12)
    # weight 0 takes a negative out of the sums and of S: moving it then acts through the softmaxes alone, and not at all from afar
    none = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
    far = neg.clone()
    far[3] = 1e4
    without = raw(gen, pos, far, weight_neg=none)
    assert error(without[0], raw(gen, pos, neg[:3])[0]) < 1e-12
    assert without[1].item() == pytest.approx(raw(gen, pos, neg[:3])[1].item(), rel=1e-12)
    near, near_scale = raw(gen, pos, neg, weight_neg=none)
    assert near_scale.item() == pytest.approx(without[1].item(), rel=1e-12)
    assert error(near, without[0]) > 1e-3
    # weight 2 counts twice in S, and is not the sample twice, which would also take its share of each softmax
    twice = raw(gen, pos, torch.cat([neg, neg[3:]]))
    heavy = raw(gen, pos, neg, weight_neg=none + torch.tensor([0.0, 0, 0, 2]))
    assert heavy[1].item() == pytest.approx(twice[1].item(), rel=1e-12)
    assert error(heavy[0], twice[0]) > 1e-2
    assert heavy[1] != scale


def test_in_a_transport_plan_weight_2_is_the_sample_twice():
    gen, pos, neg = normal(6, 2), normal(8, 2, seed=1), normal(4, 2, seed=2)
    weight_neg, weight_pos = torch.tensor([1.0, 1, 1, 2]), torch.tensor([2.0, 1, 1, 1, 1, 1, 1, 1])
    twice = raw(gen, torch.cat([pos, pos[:1]]), torch.cat([neg, neg[3:]]), plan="sinkhorn")[0]
    assert error(raw(gen, pos, neg, weight_neg=weight_neg, weight_pos=weight_pos, plan="sinkhorn")[0], twice) < 1e-4  # 20 iterations
    assert error(raw(gen, pos, neg, plan="sinkhorn")[0], twice) > 0.01


def test_plan_has_the_rows_and_columns_it_should():
    logits, weight = -3 * normal(2, 7, 9).abs(), normal(2, 1, 9, seed=1).exp()
    for iterations in (20, 500):
        plan = _plan(logits, weight, iterations)
        assert error(plan.sum(2), 1) < 1e-12
        share = 7 * weight / weight.sum(2, keepdim=True)
        assert error(plan.sum(1, keepdim=True), share) < (1e-12 if iterations == 500 else 0.02)
        # a plan is the kernel times a number for each row and one for each column
        ratio = plan.log() - logits
        assert error(ratio - ratio[:, :1] - ratio[:, :, :1] + ratio[:, :1, :1], 0) < 1e-11
    assert torch.equal(_plan(logits, weight), _plan(logits, weight, 20))
    removed = torch.cat([weight[:, :, :-1], torch.zeros(2, 1, 1)], 2)
    assert _plan(logits, removed)[:, :, -1].max() < 1e-20
    assert error(_plan(logits, removed, 500)[:, :, :-1], _plan(logits[:, :, :-1], weight[:, :, :-1], 500)) < 1e-12


def test_the_default_has_no_floor():
    gen, pos = normal(40, 2), normal(40, 2, seed=1)
    options = {"temperatures": [0.02]}
    v = unit_field(gen, pos, **options)[0]
    assert torch.equal(v, unit_field(gen, pos, affinity_floor=0.0, **options)[0])
    assert error(v, unit_field(gen, pos, affinity_floor=1e-3, **options)[0]) > 0.1
    assert set(drifting_loss(gen, pos)[1]) == {"scale", "drift_0.02", "drift_0.05", "drift_0.2"}


def test_the_floor_drives_samples_that_are_the_data():
    # 32 samples, once as generated and once as real, temperature .02: without a floor hardly more than a sample's own copy is seen,
    # at distance 0, and the drift is 8e-4 of the unit. With the floor f all 32 of either kind are, and the sum of affinities is 32 f of
    # the generated, 1 + 31 f of the real ones for the copy's sake. Each kind's sum multiplies the other's pull, 32 f (mean - x):
    # V = 32 f (32 f - 1 - 31 f) (mean - x), straight away from the mean
    gen, pos = GOLDEN["self_equal.in.gen"][0], GOLDEN["self_equal.in.pos"][0]
    assert torch.equal(gen, pos)
    outwards = gen - gen.mean(0)
    found = {}
    for floor in (0.0, 1e-3):
        v, info, _ = unit_field(gen, pos, temperatures=[0.02], affinity_floor=floor)
        found[floor] = info["drift_0.02"].item(), torch.nn.functional.cosine_similarity(v.flatten(), outwards.flatten(), 0).item()
    assert found[0.0][0] == pytest.approx(8.4e-4, rel=0.02)
    assert found[0.0][1] < 0.1
    assert found[1e-3][0] == pytest.approx(2.46e-2, rel=0.02)
    assert found[1e-3][1] > 0.99
    expected = 0.032 * (1 - 0.001) * (outwards / info["scale"] * 4**0.5).square().mean().sqrt().item()
    assert found[1e-3][0] == pytest.approx(expected, rel=0.1)


def ring(num, rng):
    angle = torch.randint(8, (num,), generator=rng) * (2 * math.pi / 8)
    return 3 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(num, 2, generator=rng)


def gaussian16(num, rng):
    return torch.randn(num, 16, generator=rng)


def spread_after(data, num, floor):
    """Variance, relative to the start, of samples of the data that have followed the loss for 30 steps, at temperature .02."""
    rng = torch.Generator().manual_seed(0)
    x = data(num, rng)
    before = x.var(0).sum()
    for _ in range(30):
        v, info, _ = unit_field(x, data(num, rng), temperatures=[0.02], affinity_floor=floor)
        x = x + 0.05 * v * info["scale"] / x.shape[1] ** 0.5
    return (x.var(0).sum() / before).item()


def test_the_released_floor_contracts_a_ring_and_blows_up_a_gaussian():
    # two seeds each gave 1.00, 1.00 and .69, .71; 1.69, 1.71 and 6.3, 6.8
    assert spread_after(ring, 512, 0.0) == pytest.approx(1, abs=0.05)
    assert spread_after(ring, 512, 1e-3) < 0.8
    assert spread_after(gaussian16, 128, 0.0) < 2
    assert spread_after(gaussian16, 128, 1e-3) > 4


def test_the_gradient_goes_to_gen_alone():
    tensors = [normal(*shape).requires_grad_() for shape in ((4, 2), (5, 2), (3, 2), (4,), (5,), (3,))]
    loss, info = drifting_loss(*tensors[:3], (0.2,), tensors[3], tensors[4], tensors[5])
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    assert gradients[0].abs().min() > 0
    assert gradients[1:] == (None,) * 5
    assert not any(value.requires_grad for value in info.values())


def test_loss_of_half_precision_is_computed_in_float32():
    gen, pos = normal(12, 3).bfloat16(), normal(14, 3, seed=1).bfloat16()
    loss, info = drifting_loss(gen, pos)
    expected, expected_info = drifting_loss(gen.float(), pos.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(info, expected_info, rtol=0, atol=0)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("plan", ["double_softmax", "sinkhorn"])
def test_samples_that_all_coincide_stay_finite(plan):
    v, info, loss = unit_field(torch.zeros(4, 2), torch.zeros(5, 2), plan=plan)
    assert v.isfinite().all()
    assert loss.isfinite()
    assert all(value.isfinite() for value in info.values())


def test_errors_of_the_fields():
    x, y = normal(4, 2), normal(5, 2)
    with pytest.raises(ValueError, match="plan is 'hungarian'; allowed: softmax, sinkhorn"):
        drift_field(x, y, x, 1.0, plan="hungarian")
    with pytest.raises(ValueError, match="y has 1 rows; 2 are needed where each leaves itself out"):
        drift_field(x[:1], y, x[:1], 1.0)
    with pytest.raises(ValueError, match="kernel is 'cauchy'"):
        drift_field(x, y, x, 1.0, kernel="cauchy")
    with pytest.raises(ValueError, match="x has 1 rows; 2 are needed"):
        toy_drift_field(x[:1], y, 1.0)
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be positive"):
            drift_field(x, y, x, temperature)
        with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be positive"):
            toy_drift_field(x, y, temperature)
    with pytest.raises(ValueError, match=r"temperature is 0.0; it must be positive"):
        drift_field(x, y, x, 1.0, temperature_fake=0.0)


def test_errors_of_the_loss():
    x, y = normal(4, 2), normal(5, 2)
    groups = (normal(2, 4, 2), normal(2, 5, 2))
    shapes = [
        (x, normal(5, 3), None),
        (groups[0], y, None),
        (x, y, normal(3, 3)),
        (*groups, normal(3, 2)),
        (x[0], y, None),
        (groups[0], normal(3, 5, 2), None),
    ]
    for gen, pos, neg in shapes:
        with pytest.raises(ValueError, match=r"give \[N, D\] and \[M, D\], or groups of the same number"):
            drifting_loss(gen, pos, neg)
    with pytest.raises(ValueError, match="gen has 1 rows; 2 are needed"):
        drifting_loss(x[:1], y)
    for temperatures in ([0.1, 0.0], [-1.0], []):
        with pytest.raises(ValueError, match=r"temperatures are \[.*\]; give at least one, all positive"):
            drifting_loss(x, y, temperatures=temperatures)
    with pytest.raises(ValueError, match="plan is 'softmax'; allowed: double_softmax, sinkhorn"):
        drifting_loss(x, y, plan="softmax")
