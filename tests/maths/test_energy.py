import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.maths.energy import calibration, energy_score_of, generalized_energy_score, particle_distances

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "dddm.safetensors")
BETAS = (0.1, 1.0, 1.9, 2.0)
LAMS = (0.0, 0.5, 1.0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x0, samples, beta, lam):
    """(score [B], its gradient [B, m, D]) of vectors, in float64 with two loops; points that coincide do not push each other."""
    x0, samples = x0.double(), samples.double()
    batch, m = samples.shape[:2]
    scores, gradient = torch.zeros(batch, dtype=torch.float64), torch.zeros_like(samples)
    for b in range(batch):
        for j in range(m):
            apart = samples[b, j] - x0[b]
            scores[b] += apart.norm() ** beta / m
            gradient[b, j] += push(apart, beta) / m
            for k in range(m):
                if k != j:
                    apart = samples[b, j] - samples[b, k]
                    scores[b] -= lam * apart.norm() ** beta / (2 * m * (m - 1))
                    gradient[b, j] -= lam * push(apart, beta) / (m * (m - 1))  # the pair counts twice, (j, k) and (k, j)
    return scores, gradient


def push(apart, beta):
    """The gradient of ``|apart|^beta``."""
    return beta * apart.norm() ** (beta - 2) * apart if apart.any() else torch.zeros_like(apart)


def gradient_of(x0, samples, beta, lam):
    samples = samples.clone().requires_grad_()
    return torch.autograd.grad(generalized_energy_score(x0, samples, beta, lam).sum(), samples)[0]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("lam", LAMS)
def test_scores_are_the_golden_ones(beta, lam):
    found = generalized_energy_score(GOLDEN["energy.x0"], GOLDEN["energy.x0hats"], beta, lam)
    # 1e-12 under the root moves a distance near 1 by 1e-12
    torch.testing.assert_close(found, GOLDEN[f"energy.beta{beta}.lam{lam}.score_per_sample"], rtol=1e-10, atol=1e-11)
    weighted = (GOLDEN["energy.weight_b0"] * found).mean()
    torch.testing.assert_close(weighted, GOLDEN[f"energy.beta{beta}.lam{lam}.loss_proper"], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_are_the_golden_ones(beta):
    found = gradient_of(GOLDEN["energy.x0"], GOLDEN["energy.x0hats"], beta, 1.0)
    torch.testing.assert_close(found, GOLDEN[f"energy.beta{beta}.lam1.grad"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("lam", LAMS)
def test_the_pair_term_is_divided_once(m, beta, lam):
    x0, samples = random(3, 4), random(3, m, 4, seed=1)
    scores, gradient = by_hand(x0, samples, beta, lam)
    torch.testing.assert_close(generalized_energy_score(x0, samples, beta, lam), scores, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(gradient_of(x0, samples, beta, lam), gradient, rtol=1e-9, atol=1e-11)


def test_distances_by_hand():
    x0, samples = torch.tensor([[0.0, 0.0]]), torch.tensor([[[3.0, 4.0], [0.0, 0.0], [3.0, 0.0]]])
    errors, pairs = particle_distances(x0, samples)
    torch.testing.assert_close(errors, torch.tensor([[5.0, 0.0, 3.0]]), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(pairs, torch.tensor([[[0.0, 5.0, 4.0], [5.0, 0.0, 3.0], [4.0, 3.0, 0.0]]]), rtol=1e-6, atol=2e-6)
    # 8/3 - 1/2 (5 + 4 + 3)/3 = 2/3
    assert generalized_energy_score(x0, samples, 1.0, 1.0).item() == pytest.approx(2 / 3, abs=1e-5)


def test_the_norm_is_over_a_whole_item():
    x0, samples = random(2, 3, 4, 4), random(2, 5, 3, 4, 4, seed=1)
    found = generalized_energy_score(x0, samples, 0.7, 1.0)
    torch.testing.assert_close(found, generalized_energy_score(x0.flatten(1), samples.flatten(2), 0.7, 1.0), rtol=1e-14, atol=0)
    errors, pairs = particle_distances(x0, samples)
    torch.testing.assert_close(errors[1, 2], (x0[1] - samples[1, 2]).norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(pairs[1, 2, 4], (samples[1, 2] - samples[1, 4]).norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("m", [1, 4])
def test_beta_2_without_the_pair_term_is_the_squared_error(m):
    x0, samples = random(6, 3, 2), random(6, m, 3, 2, seed=1)
    expected = (samples - x0[:, None]).square().flatten(2).sum(2).mean(1)
    torch.testing.assert_close(generalized_energy_score(x0, samples, 2.0, 0.0), expected, rtol=1e-12, atol=2e-12)
    torch.testing.assert_close(gradient_of(x0, samples, 2.0, 0.0), 2 / m * (samples - x0[:, None]), rtol=1e-12, atol=1e-14)


SCALES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.33, 2.0)


@pytest.fixture(scope="module")
def posterior():
    """(errors, pairs) of m = 4 particles for a posterior N(2, .7^2), by the scale of their spread: the same noise at every scale."""
    x0, noise = 2 + 0.7 * random(60_000, 1), random(60_000, 4, 1, seed=1)
    return {c: particle_distances(x0, 2 + c * 0.7 * noise) for c in SCALES}


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
def test_the_expected_score_is_lowest_at_the_true_spread(posterior, beta):
    scores = {c: energy_score_of(*distances, beta, 1.0) for c, distances in posterior.items()}
    moment = 2 ** (beta / 2) * math.gamma((beta + 1) / 2) / math.sqrt(math.pi)  # E |n|^beta of a standard normal n
    for c, score in scores.items():
        expected = moment * 0.7**beta * ((1 + c**2) ** (beta / 2) - (2 * c**2) ** (beta / 2) / 2)
        assert abs(score.mean().item() - expected) < 4 * score.std().item() / math.sqrt(len(score))
        if c != 1:
            worse = score - scores[1.0]
            assert worse.mean() > 4 * worse.std() / math.sqrt(len(worse)), c


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
def test_a_pair_term_divided_twice_would_shrink_the_spread(posterior, beta):
    """What public code does, and what the test above has to be able to see: lam / (m - 1) in place of lam."""
    scores = {c: energy_score_of(*distances, beta, 1 / 3).mean().item() for c, distances in posterior.items()}
    # its derivative is 0 at (1 + c^2) / (2 c^2) = 3^(2 / (2 - beta)): c is .36, .24 and .08
    best = (2 * 3 ** (2 / (2 - beta)) - 1) ** -0.5
    assert min(scores, key=scores.get) == min(SCALES, key=lambda c: abs(c - best))
    assert best < 0.4


def test_gradient_is_finite_where_points_coincide():
    x0 = torch.tensor([[0.5, -1.0, 2.0]]).repeat(2, 1)
    samples = x0[:, None].repeat(1, 4, 1)
    samples[1, 1] = samples[1, 2] = torch.tensor([1.0, 1.0, 1.0])  # item 1: two on x0, two on each other; item 0: all on x0
    for beta in (0.1, 1.0, 2.0):
        found = gradient_of(x0, samples, beta, 1.0)
        assert torch.equal(found[0], torch.zeros(4, 3))
        _, expected = by_hand(x0, samples, beta, 1.0)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)
        assert generalized_energy_score(x0, samples, beta, 1.0).isfinite().all()


def test_gradient_is_bounded_between_points_that_are_almost_one():
    """In float32: the gradient of |d|^.1 is d^-.9, which without the 1e-12 under the root has no bound."""
    x0 = torch.zeros(1, 2)
    for gap in (1e-30, 1e-20, 1e-10, 1e-7, 1e-6, 1e-5):
        found = gradient_of(x0, torch.tensor([[[gap, 0.0], [0.0, 0.0]]]), 0.1, 1.0)
        assert found.isfinite().all()
        assert found.abs().max() < 0.1 * 1e-6**-0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x0, samples = 30 * random(2, 3072).to(dtype), 30 * random(2, 4, 3072, seed=1).to(dtype)
    expected = generalized_energy_score(x0.float(), samples.float(), 2.0, 1.0)
    found = generalized_energy_score(x0, samples, 2.0, 1.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert expected.min() > torch.finfo(torch.float16).max  # a sum of squares that float16 cannot hold
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generalized_energy_score(x0, samples, 2.0, 1.0), expected)
    # one side in half precision is enough to lose nothing of the other
    mixed = generalized_energy_score(x0.float() + 0.01, samples, 1.0, 0.0)
    assert torch.equal(mixed, generalized_energy_score(x0.float() + 0.01, samples.float(), 1.0, 0.0))


def test_differences_are_taken_directly():
    """Points 1e-3 apart, 1e3 from the origin: |x|^2 + |y|^2 - 2 x.y would lose their distance in float32."""
    x0 = torch.full((1, 8), 1024.0)
    samples = torch.stack([x0 + 2**-10, x0 - 2**-9], 1)
    errors, pairs = particle_distances(x0, samples)
    torch.testing.assert_close(errors[0], torch.tensor([8**0.5 * 2**-10, 8**0.5 * 2**-9]), rtol=1e-5, atol=0)
    torch.testing.assert_close(pairs[0, 0, 1].item(), 3 * 8**0.5 * 2**-10, rtol=1e-5, atol=0)


def test_no_array_of_all_pairs_of_differences():
    batch, m, size = 2, 16, 3072
    item_bytes = batch * m * size * 4  # an array [B, m, m, D] has m times as many
    x0, samples = torch.zeros(batch, size), torch.randn(batch, m, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            score = generalized_energy_score(x0, samples, 1.0, 1.0).sum()
        score.backward()
    # the particles, and the particles with the truth beside them: 2 + 1/16 items, and some distances
    assert item_bytes < sum(saved.values()) < 3 * item_bytes
    allocated = [event.cpu_memory_usage for event in profile.function_events]
    assert item_bytes <= max(allocated) < 4 * item_bytes  # of any one operation, forwards or backwards, on a CPU


def ratio(errors, pairs):
    apart, error = calibration(errors, pairs)
    return (apart / error).item()


def test_calibration_is_1_for_draws_and_less_for_narrower_ones():
    x0, noise = random(20_000, 3), random(20_000, 4, 3, seed=1)
    for c in (1.0, 0.5, 2.0):
        errors, pairs = particle_distances(x0, c * noise)
        # |xhat - x0| has a scale of (1 + c^2)^.5, |xhat - xhat'| one of 2^.5 c
        expected = math.sqrt(2 * c**2 / (1 + c**2))
        residual = pairs.sum((1, 2)) / 12 - expected * errors.mean(1)  # an item's; of mean 0, by the delta method
        tolerance = 4 * residual.std().item() / math.sqrt(len(x0)) / errors.mean().item()
        assert abs(ratio(errors, pairs) - expected) < tolerance < 0.02


def test_calibration_is_a_ratio_of_mean_distances():
    # errors 1, 3 and 2, 2; pairs 2 and 6: (2 + 6) / 2 over 2
    errors = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    pairs = torch.tensor([[[9.0, 2.0], [2.0, 9.0]], [[9.0, 6.0], [6.0, 9.0]]])  # the diagonal is no distance
    assert ratio(errors, pairs) == pytest.approx(2)


def test_calibration_is_0_for_particles_that_coincide():
    x0, samples = random(50, 3), random(50, 1, 3, seed=1).expand(50, 4, 3)
    assert ratio(*particle_distances(x0, samples)) < 1e-5  # 1e-6 is the root of 1e-12


@pytest.mark.parametrize(
    ("shapes", "beta", "lam", "said"),
    [
        (((2, 3), (2, 4, 3)), 0.0, 1.0, "beta is 0.0; allowed are values above 0, up to 2"),
        (((2, 3), (2, 4, 3)), -1.0, 1.0, "beta is -1.0; allowed are values above 0, up to 2"),
        (((2, 3), (2, 4, 3)), 2.1, 1.0, "beta is 2.1; allowed are values above 0, up to 2"),
        (((2, 3), (2, 4, 3)), math.nan, 1.0, "beta is nan; allowed are values above 0, up to 2"),
        (((2, 3), (2, 4, 3)), 1.0, -0.1, "lam is -0.1; allowed are values from 0 to 1"),
        (((2, 3), (2, 4, 3)), 1.0, 1.1, "lam is 1.1; allowed are values from 0 to 1"),
        (((2, 3), (2, 3)), 1.0, 1.0, r"x0 has shape \(2, 3\), samples \(2, 3\); give \[B, ...\] and \[B, m, ...\]"),
        (((2, 3), (3, 4, 3)), 1.0, 1.0, r"samples \(3, 4, 3\); give \[B, ...\] and \[B, m, ...\]"),
        (((2, 3), (2, 4, 1)), 1.0, 1.0, r"samples \(2, 4, 1\); give \[B, ...\] and \[B, m, ...\]"),
        (((2, 3), (2, 1, 3)), 1.0, 0.5, "m is 1 with lam 0.5; pairs need m of at least 2, or lam 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(shapes, beta, lam, said):
    x0, samples = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=said):
        generalized_energy_score(x0, samples, beta, lam)
