import math

import pytest
import torch

from fewstep.denoisers import MixtureDenoiser
from fewstep.maths import kernels
from fewstep.maths.kernels import KERNELS, barycenter, log_kernel_sum, sinkhorn_log_weights, temperature_range
from peaks import peak_bytes

BOTH = pytest.mark.parametrize("kernel", KERNELS)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive_logits(x, y, temperature, kernel, exclude_self=False, log_weights=None):
    """Every difference written out, in float64."""
    square = (x.double()[:, None] - y.double()).square().sum(2)
    logits = -(square if kernel == "gaussian" else square.sqrt()) / temperature
    if log_weights is not None:
        logits = logits + log_weights.double()
    return logits.masked_fill(torch.eye(len(x), dtype=torch.bool), -math.inf) if exclude_self else logits


def naive(x, y, temperature, kernel="gaussian", exclude_self=False, log_weights=None):
    return naive_logits(x, y, temperature, kernel, exclude_self, log_weights).softmax(1) @ y.double()


def error(found, expected):
    return (found - expected).abs().max().item()


def paths(monkeypatch):
    """A list that grows by one with every use of fused attention."""
    seen, attention = [], kernels._attention
    monkeypatch.setattr(kernels, "_attention", lambda *arguments: seen.append(1) or attention(*arguments))
    return seen


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 64])
@BOTH
def test_barycenter_is_the_softmax_written_out(kernel, dims, exclude_self, weighted, monkeypatch):
    attention = paths(monkeypatch)
    y = normal(170, dims)
    x = y if exclude_self else 1.5 * normal(130, dims, seed=1)
    log_weights = normal(170, seed=2) if weighted else None
    for temperature in (0.3 if dims < 64 else 1.0, 3.0, 20.0):
        options = (temperature, kernel, exclude_self, log_weights)
        expected = naive(x, y, *options)
        assert barycenter(x, y, *options).dtype == torch.float32
        assert error(barycenter(x, y, *options), expected) < 1e-5 * y.abs().max()
        assert error(barycenter(x.double(), y.double(), *options), expected) < 1e-12
    assert len(attention) == (6 if kernel == "gaussian" else 0)  # float64 keeps its precision, and so never goes there


def test_self_is_masked_and_not_subtracted_afterwards():
    # neighbours are at squared distance 128 in 64 dimensions, the own weight within e^-10 of 1 in most rows
    x = normal(300, 64)
    expected = naive(x, x, 5.0, exclude_self=True)
    assert error(barycenter(x, x, 5.0, exclude_self=True), expected) < 1e-5 * x.abs().max()
    weights = (torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square() / -5.0).softmax(1)
    own = weights.diagonal()[:, None]
    assert own.median() > 1 - 1e-4
    subtracted = (barycenter(x, x, 5.0) - own * x) / (1 - own).clamp_min(1e-7)
    assert error(subtracted, expected) > 1


def test_details_far_finer_than_the_spread_take_distances_directly(monkeypatch):
    # 16 clusters of 0.003 in 64 dimensions: within them |x - y|^2 / T is about 2.3, |y|^2 / T about 130,000
    centres, temperature = normal(16, 64), 0.0005
    y, x = (centres.repeat(12, 1) + 0.003 * normal(192, 64, seed=seed) for seed in (1, 2))
    expected = naive(x, y, temperature)
    assert error(barycenter(x, y, temperature), expected) < 2e-6
    assert error(barycenter(y, y, temperature, exclude_self=True), naive(y, y, temperature, exclude_self=True)) < 2e-6
    assert error(barycenter(x, y, 0.02, "laplace"), naive(x, y, 0.02, "laplace")) < 2e-6
    monkeypatch.setattr(kernels, "SPREAD", math.inf)
    assert error(barycenter(x, y, temperature), expected) > 5e-5


@pytest.mark.parametrize("dims", [2, 64])
def test_attention_is_good_up_to_its_limit(dims, monkeypatch):
    attention = paths(monkeypatch)
    # clusters of a width that the kernel resolves, at the largest |y|^2 / T that goes to attention. Its logits, up to 1000, are off
    # by some 1000 * 2^-24 = 6e-5, and so the weights; the samples that share them are sqrt(T) apart, 1/30 of the largest
    centres = normal(16, dims)
    shape = 0.02 * normal(192, dims, seed=1)
    y, x = centres.repeat(12, 1) + shape, centres.repeat(12, 1) + shape.flip(0)
    temperature = (y - y.mean(0)).square().sum(1).max().item() / 990
    assert error(barycenter(x, y, temperature), naive(x, y, temperature)) < 1e-5 * y.abs().max()
    assert len(attention) == 1
    barycenter(x, y, temperature * 0.98)
    assert len(attention) == 1


def test_competitors_far_away_cost_no_more_than_the_rounding_of_their_distances():
    # no clusters: the nearest of 170 in 64 dimensions have |x - y|^2 / T = 800, which float32 knows to some units of 2^-24 = 6e-8 of
    # it, 5e-5; that is the relative error of a weight, w (1 - w) <= 1/4 of it moves the result between samples 7 apart in a coordinate
    x, y = normal(130, 64), normal(170, 64, seed=1)
    units = 4
    assert error(barycenter(x, y, 0.1), naive(x, y, 0.1)) < units * 2**-24 * 800 / 4 * 7


@BOTH
@pytest.mark.parametrize("exclude_self", [False, True])
def test_data_far_from_the_origin(kernel, exclude_self, monkeypatch):
    attention = paths(monkeypatch)
    y = normal(170, 2) + 1000
    x = y if exclude_self else normal(130, 2, seed=1) + 1000
    # the result is near 1000 and rounded there: half a unit in the last place is 3.1e-5, once in the sum and once in the mean
    assert error(barycenter(x, y, 0.5, kernel, exclude_self), naive(x, y, 0.5, kernel, exclude_self)) < 1e-5 + 2**-14
    assert len(attention) == (kernel == "gaussian")


@BOTH
def test_cold_is_the_nearest_sample_and_hot_is_the_mean(kernel):
    x, y = normal(130, 3), normal(170, 3, seed=1)
    nearest = y[(x[:, None] - y).square().sum(2).argmin(1)]
    assert error(barycenter(x, y, 1e-7, kernel), nearest) < 1e-6
    assert error(barycenter(x, y, 1e9, kernel), y.mean(0)) < 1e-6
    others = (y[:, None] - y).square().sum(2).fill_diagonal_(math.inf).argmin(1)
    assert error(barycenter(y, y, 1e-7, kernel, exclude_self=True), y[others]) < 1e-6
    assert error(barycenter(y, y, 1e9, kernel, exclude_self=True), (y.sum(0) - y) / 169) < 1e-6


@pytest.mark.parametrize("block", [1000, 100])  # 5 rows of 170, and 1 row though it is larger
@pytest.mark.parametrize("temperature", [1.0, 1e-3])  # by attention, and directly
@pytest.mark.parametrize("exclude_self", [False, True])
@BOTH
def test_blocks_change_nothing(kernel, exclude_self, temperature, block, monkeypatch):
    y = normal(170, 2)
    x = y if exclude_self else normal(131, 2, seed=1)
    options = (temperature, kernel, exclude_self, normal(170, seed=2))
    barycenters, sums = barycenter(x, y, *options), log_kernel_sum(x, y, *options)
    direct, sizes = kernels._logits, []
    monkeypatch.setattr(kernels, "_logits", lambda *arguments: sizes.append(len(arguments[0])) or direct(*arguments))
    monkeypatch.setattr(kernels, "BLOCK", block)
    assert error(barycenter(x, y, *options), barycenters) < 1e-6
    torch.testing.assert_close(log_kernel_sum(x, y, *options), sums, rtol=1e-6, atol=1e-6)
    assert max(sizes) == max(1, block // 170)


def test_attention_with_self_left_out_goes_in_blocks(monkeypatch):
    sizes, attend = [], kernels.scaled_dot_product_attention
    monkeypatch.setattr(kernels, "BLOCK", 1000)
    monkeypatch.setattr(
        kernels,
        "scaled_dot_product_attention",
        lambda query, *rest, **options: sizes.append(query.shape[2]) or attend(query, *rest, **options),
    )
    y = normal(17, 2).repeat(10, 1) + normal(170, 2, seed=1)
    barycenter(y, y, 1.0, exclude_self=True)
    assert sizes == [5] * 34


def test_gaussian_barycenter_is_the_denoiser_of_the_samples():
    x, y, weights = normal(50, 3, dtype=torch.float64), normal(40, 3, seed=1, dtype=torch.float64), normal(40, seed=2).double().exp()
    for temperature in (0.1, 1.0, 10.0):
        denoiser = MixtureDenoiser(y, 1e-8, weights)  # modes so narrow that they are the samples
        expected = denoiser(x, (temperature / 2) ** 0.5)
        assert error(barycenter(x, y, temperature, log_weights=weights.log()), expected) < 1e-11
    assert error(barycenter(x, y, 1.1, log_weights=weights.log()), denoiser(x, 0.5**0.5)) > 0.01


def peak_mib(function, number, kernel, exclude_self):
    x = torch.randn(number, 64, generator=torch.Generator().manual_seed(0))
    return peak_bytes(lambda: function(x, x, 10.0, kernel, exclude_self)) / 2**20


# all pairs in float32 are 1024 MiB of 16384 samples, 256 of 8192; blocks are 16 MiB, of which some live at once
@pytest.mark.parametrize(
    ("function", "number", "kernel", "exclude_self"),
    [
        (barycenter, 16384, "gaussian", False),
        (barycenter, 16384, "gaussian", True),
        (barycenter, 8192, "laplace", True),
        (log_kernel_sum, 8192, "laplace", True),
    ],
)
def test_memory_is_linear(function, number, kernel, exclude_self):
    assert 16 < peak_mib(function, number, kernel, exclude_self) < 64


def test_the_memory_of_all_pairs_is_seen():
    """The check's own check."""
    assert peak_mib(lambda x, *_: torch.cdist(x, x), 8192, "gaussian", False) > 256


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "exclude_self"), [("gaussian", False), ("gaussian", True), ("laplace", True)])
def test_memory_of_65536_samples_in_64_dimensions(kernel, exclude_self):
    assert peak_mib(barycenter, 65536, kernel, exclude_self) < 256  # all pairs are 16 GiB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BOTH
def test_half_precision_is_computed_in_float32(kernel, dtype):
    x, y = normal(130, 8).to(dtype), normal(170, 8, seed=1).to(dtype)
    expected = barycenter(x.float(), y.float(), 0.5, kernel)
    assert torch.equal(barycenter(x, y, 0.5, kernel), expected.to(dtype))
    assert torch.equal(barycenter(x.float(), y, 0.5, kernel), expected)
    assert torch.equal(barycenter(x, y.float(), 0.5, kernel), expected.to(dtype))


@BOTH
@pytest.mark.parametrize("exclude_self", [False, True])
def test_autocast_changes_nothing(kernel, exclude_self):
    y = normal(170, 8)
    x = y if exclude_self else normal(130, 8, seed=1)
    expected = barycenter(x, y, 0.5, kernel, exclude_self), log_kernel_sum(x, y, 0.5, kernel, exclude_self)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = barycenter(x, y, 0.5, kernel, exclude_self), log_kernel_sum(x, y, 0.5, kernel, exclude_self)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 64])
def test_on_a_gpu(dims, exclude_self):
    y = normal(1003, dims)
    expected = naive(y, y, 1.0, exclude_self=exclude_self)
    assert error(barycenter(y.cuda(), y.cuda(), 1.0, exclude_self=exclude_self).cpu(), expected) < 1e-5 * y.abs().max()
    many = torch.randn(65536, dims, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    barycenter(many, many, 1.0, exclude_self=exclude_self)
    assert torch.cuda.max_memory_allocated() - before < 2**30


@pytest.mark.parametrize("function", [barycenter, log_kernel_sum, sinkhorn_log_weights])
def test_errors(function):
    x, y = normal(4, 2), normal(5, 2)
    for a, b in [(x, normal(5, 3)), (x[0], y), (x, y[None])]:
        with pytest.raises(ValueError, match=r"have shapes .* give \[N, D\] and \[M, D\]"):
            function(a, b, 1.0)
    for a, b in [(x.long(), y), (x, y.long())]:
        with pytest.raises(ValueError, match=r"int64.*floating point"):
            function(a, b, 1.0)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"temperature is {temperature}; it must be positive"):
            function(x, y, temperature)
    with pytest.raises(ValueError, match="kernel is 'cauchy'; allowed: gaussian, laplace"):
        function(x, y, 1.0, "cauchy")
    with pytest.raises(ValueError, match="y has 0 rows; 1 is needed"):
        function(x, y[:0], 1.0)
    with pytest.raises(ValueError, match="x has 4 rows and y 5"):
        function(x, y, 1.0, exclude_self=True)
    with pytest.raises(ValueError, match="y has 1 rows; 2 are needed"):
        function(x[:1], x[:1], 1.0, exclude_self=True)


def test_no_gradient():
    x, y, log_weights = normal(4, 2).requires_grad_(), normal(5, 2).requires_grad_(), normal(5).requires_grad_()
    for temperature in (1.0, 1e-4):
        assert not barycenter(x, y, temperature, log_weights=log_weights).requires_grad
    assert not sinkhorn_log_weights(x, y, 1.0).requires_grad


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
@BOTH
def test_log_kernel_sum_is_the_sum_written_out(kernel, exclude_self, weighted):
    y = normal(170, 2)
    x = y if exclude_self else 3 * normal(130, 2, seed=1)
    options = (0.1, kernel, exclude_self, normal(170, seed=2) if weighted else None)
    expected = naive_logits(x, y, *options).logsumexp(1)
    torch.testing.assert_close(log_kernel_sum(x, y, *options).double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_kernel_sum(x.double(), y.double(), *options), expected, rtol=1e-12, atol=1e-12)


def test_log_kernel_sum_estimates_the_blurred_density():
    # 20,001 points 0.001 apart weighted by N(0, 1): the trapezoidal sum, exact to rounding, of N(0, 1) blurred by h^2 = T / 2
    y = torch.linspace(-10, 10, 20_001, dtype=torch.float64)[:, None]
    log_density = -(y[:, 0] ** 2) / 2 - math.log(2 * math.pi) / 2 + math.log(0.001)
    x, temperature = normal(50, 1, dtype=torch.float64), 0.6
    variance = 1 + temperature / 2
    expected = -(x[:, 0] ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2
    found = log_kernel_sum(x, y, temperature, log_weights=log_density) - math.log(math.pi * temperature) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    # and the barycentre is the posterior mean x / (1 + h^2)
    assert error(barycenter(x, y, temperature, log_weights=log_density), x / variance) < 1e-12


def sinkhorn(x, y, temperature, kernel, iterations):
    """The plan [N, M] as Cuturi's u and v make it, in probabilities: rows sum to 1."""
    gibbs = naive_logits(x, y, temperature, kernel).exp()
    v = torch.ones(len(y), dtype=torch.float64)
    for _ in range(iterations):
        u = 1 / len(x) / (gibbs @ v)
        v = 1 / len(y) / (gibbs.T @ u)
    return gibbs * v / (gibbs @ v)[:, None]


@pytest.mark.parametrize("iterations", [1, 20, 400])
@BOTH
def test_sinkhorn_plan(kernel, iterations):
    x, y = normal(16, 2, dtype=torch.float64), normal(20, 2, seed=1, dtype=torch.float64)
    log_weights = sinkhorn_log_weights(x, y, 1.0, kernel, iterations)
    expected = sinkhorn(x, y, 1.0, kernel, iterations)
    plan = naive_logits(x, y, 1.0, kernel, log_weights=log_weights).softmax(1)
    assert error(plan, expected) < 1e-12
    assert error(barycenter(x, y, 1.0, kernel, log_weights=log_weights), expected @ y) < 1e-12
    assert error(plan.sum(1), 1) < 1e-12
    if iterations == 400:
        assert error(plan.sum(0), 16 / 20) < 1e-12
    if iterations == 1:
        assert error(plan.sum(0), 16 / 20) > 1e-4


@BOTH
@pytest.mark.parametrize("block", [kernels.BLOCK, 60])
def test_a_sinkhorn_plan_that_leaves_each_row_out(kernel, block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)
    x = normal(16, 2, dtype=torch.float64)
    gibbs = naive_logits(x, x, 1.0, kernel).exp().fill_diagonal_(0.0)
    v = torch.ones(16, dtype=torch.float64)
    for _ in range(50):
        u = 1 / (gibbs @ v)
        v = 1 / (gibbs.T @ u)
    expected = gibbs * v / (gibbs @ v)[:, None]
    log_weights = sinkhorn_log_weights(x, x, 1.0, kernel, 50, exclude_self=True)
    assert error(barycenter(x, x, 1.0, kernel, exclude_self=True, log_weights=log_weights), expected @ x) < 1e-12
    assert error(expected.sum(0), 1) < 1e-3


def test_sinkhorn_takes_twenty_iterations():
    x, y = normal(16, 2, dtype=torch.float64), normal(20, 2, seed=1, dtype=torch.float64)
    assert torch.equal(sinkhorn_log_weights(x, y, 1.0), sinkhorn_log_weights(x, y, 1.0, "gaussian", 20))
    # what they leave at this temperature, a quarter of the mean squared distance
    plan = naive_logits(x, y, 1.0, "gaussian", log_weights=sinkhorn_log_weights(x, y, 1.0)).softmax(1)
    assert error(plan.sum(0) * 20 / 16, 1) < 1e-3


def test_sinkhorn_leaves_no_cluster():
    # 4 of 40 x, but half of y, are at the right: softmax follows x, the plan y
    x = normal(40, 1, dtype=torch.float64) * 0.3 + torch.tensor([[6.0]] * 4 + [[0.0]] * 36)
    y = normal(30, 1, seed=1, dtype=torch.float64) * 0.3 + torch.tensor([[6.0]] * 15 + [[0.0]] * 15)
    plan = sinkhorn_log_weights(x, y, 2.0, iterations=2000)
    assert error(barycenter(x, y, 2.0, log_weights=plan).mean(0), y.mean(0)) < 1e-6
    assert error(barycenter(x, y, 2.0).mean(0), y.mean(0)) > 2


def test_temperature_range_by_hand():
    y = torch.tensor([[0.0], [1.0], [3.0]])  # squared distances 1, 9, 4; the nearest are at 1, 1, 4
    assert temperature_range(y) == pytest.approx((14 / 3, 1))
    assert temperature_range(10 * y) == pytest.approx((1400 / 3, 100))
    assert temperature_range(y, neighbours=0.7) == pytest.approx((14 / 3, 9))  # rank 2: 9, 4, 9
    assert temperature_range(y, neighbours=5.0) == pytest.approx((14 / 3, 9))
    with pytest.raises(ValueError, match="y has 1 rows; 2 are needed"):
        temperature_range(y[:1])
