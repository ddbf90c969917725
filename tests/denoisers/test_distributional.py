import pytest
import torch
from torch import nn

from fewstep.denoisers import DistributionalDenoiser
from fewstep.networks.mlp import MLP
from fewstep.samplers import distributional
from fewstep.streams import Noise


class Recorder(nn.Module):
    """A network that keeps its arguments and returns ``scale * x + xi``, particle by particle."""

    def __init__(self, scale=3.0, dtype=torch.float32):
        super().__init__()
        self.xi_shape = [1, 2, 2]
        self.scale = nn.Parameter(torch.tensor(scale, dtype=dtype))

    def forward(self, x, t, label, xi):
        self.x, self.t, self.label, self.xi = x, t, label, xi
        return self.scale * x[:, None] + xi


RNG = torch.Generator().manual_seed(0)
X = torch.randn(3, 1, 2, 2, generator=RNG)
XI = torch.randn(3, 5, 1, 2, 2, generator=RNG)
T = torch.tensor([0.0, 0.3, 1.0])


def mlp(num_classes=None):
    """An MLP of images [1, 2, 2] whose xi has 7 entries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP((1, 2, 2), num_classes, (32, 32), "silu", xi_channels=7)


@pytest.mark.parametrize("output", ["x0", "edm"])
def test_denoiser_is_its_formula_item_by_item(output):
    denoiser = DistributionalDenoiser(Recorder(), 0.5, output=output)
    found = denoiser(X, T, None, XI)
    assert found.shape == (3, 5, 1, 2, 2)
    for i, t in enumerate(T.double()):
        variance = (1 - t) ** 2 * 0.25 + t**2  # of x_t
        for j in range(5):
            x = X[i].double()
            f = 3 * x / variance.sqrt() + XI[i, j].double()
            expected = 0.5 * f if output == "x0" else (1 - t) * 0.25 / variance * x + 0.5 * t / variance.sqrt() * f
            torch.testing.assert_close(found[i, j], expected.float())
        torch.testing.assert_close(denoiser.network.x[i], (X[i].double() / variance.sqrt()).float())
    assert torch.equal(denoiser.network.t, T)  # the conditioning is the time itself


def test_the_output_is_x0_unless_asked():
    found = DistributionalDenoiser(Recorder(), 0.5)(X, T, None, XI)
    assert torch.equal(found, DistributionalDenoiser(Recorder(), 0.5, output="x0")(X, T, None, XI))


@pytest.mark.parametrize("output", ["x0", "edm"])
def test_one_xi_gives_one_draw_the_same_as_among_many(output):
    denoiser = DistributionalDenoiser(mlp(4), 0.5, 4, output)
    label, xi = torch.tensor([0, 3, 1]), torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
    assert denoiser.xi_shape == (7,)
    many = denoiser(X, torch.tensor([0.1, 0.5, 1.0]), label, xi)
    assert many.shape == (3, 5, 1, 2, 2)
    for j in range(5):
        one = denoiser(X, torch.tensor([0.1, 0.5, 1.0]), label, xi[:, j])
        assert one.shape == X.shape
        torch.testing.assert_close(one, many[:, j], rtol=1e-5, atol=1e-6)
    assert (many[:, 0] - many[:, 1]).abs().min() > 1e-4  # another xi is another draw
    assert denoiser(X, T, label, xi[:, :1]).shape == (3, 1, 1, 2, 2)  # a single particle is still a set


def test_xi_shape_is_the_network_s():
    denoiser = DistributionalDenoiser(Recorder(), 0.5)
    assert denoiser.xi_shape == (1, 2, 2)
    assert denoiser(X, T, None, XI[:, 0]).shape == X.shape  # four dimensions, like x, and not particles
    assert denoiser.network.xi.shape == (3, 1, 1, 2, 2)


def test_edm_output_is_the_identity_without_noise():
    denoiser = DistributionalDenoiser(Recorder(), 0.5, output="edm")
    torch.testing.assert_close(denoiser(X, 0.0, None, XI), X[:, None].expand_as(XI), rtol=1e-6, atol=0)
    for t in (1e-3, 1e-5):
        # F = 6 x + xi: D - x is t (F + x) to first order, for c_skip is about 1 + t
        distance = (denoiser(X, t, None, XI) - X[:, None]).abs().max()
        assert distance < 2 * t * (7 * X.abs().max() + XI.abs().max())


@pytest.mark.parametrize("output", ["x0", "edm"])
def test_pure_noise_is_left_to_the_network(output):
    """At t = 1 nothing of the data is in x_t: c_skip is 0, and both outputs are ``sigma_data F``."""
    found = DistributionalDenoiser(Recorder(), 0.5, output=output)(X, 1.0, None, XI)
    torch.testing.assert_close(found, 0.5 * (3 * X[:, None] + XI))


def test_one_time_stands_for_all():
    denoiser = DistributionalDenoiser(Recorder(), 0.5)
    expected = denoiser(X, torch.full((3,), 0.3), None, XI)
    for t in (torch.tensor(0.3), 0.3, torch.tensor(0.3, dtype=torch.float64)):
        assert torch.equal(denoiser(X, t, None, XI), expected)
        assert denoiser.network.t.shape == (3,)


def test_no_label_is_the_null_class():
    denoiser = DistributionalDenoiser(Recorder(), 0.5, num_classes=7)
    denoiser(X, T, None, XI)
    assert denoiser.network.label.tolist() == [7, 7, 7]
    assert denoiser.network.label.dtype == torch.int64
    denoiser(X, T, torch.tensor([0, 6, 7]), XI)
    assert denoiser.network.label.tolist() == [0, 6, 7]


def test_the_null_class_has_an_embedding_of_its_own():
    denoiser, xi = DistributionalDenoiser(mlp(4), 0.5, 4), torch.zeros(3, 2, 7)
    unconditional = denoiser(X, 0.5, None, xi)
    assert torch.equal(unconditional, denoiser(X, 0.5, torch.full((3,), 4), xi))
    assert (unconditional - denoiser(X, 0.5, torch.full((3,), 3), xi)).abs().max() > 1e-3


def test_without_classes_a_label_is_not_passed_on():
    denoiser = DistributionalDenoiser(Recorder(), 0.5)
    denoiser(X, T, torch.tensor([0, 1, 2]), XI)
    assert denoiser.network.label is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_network_is_fed_in_its_own_precision_and_the_answer_is_float32(dtype):
    denoiser = DistributionalDenoiser(Recorder(0.0, dtype), 0.5, output="edm")
    # t 1e-4: in bfloat16 the skip would lose all but 8 bits of x
    found = denoiser(X.double(), torch.tensor(1e-4), None, torch.ones_like(XI))
    seen = denoiser.network
    assert seen.x.dtype == seen.t.dtype == seen.xi.dtype == dtype
    assert found.dtype == torch.float32
    skip = (1 - 1e-4) * 0.25 / ((1 - 1e-4) ** 2 * 0.25 + 1e-8)
    torch.testing.assert_close(found, (skip * X + 1e-4)[:, None].expand_as(XI), rtol=0, atol=1e-6)


def test_gradient_reaches_every_parameter():
    denoiser = DistributionalDenoiser(mlp(4), 0.5, 4)
    denoiser(X, T, torch.tensor([0, 1, 2]), torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(2))).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in denoiser.parameters())


def test_the_sampler_draws_xi_of_the_network_s_shape():
    denoiser = DistributionalDenoiser(mlp(4), 0.5, 4)
    label, rng = torch.tensor([0, 3, 1]), torch.Generator().manual_seed(3)
    found = distributional(denoiser, X, torch.ones(1, dtype=torch.float64), label, Noise(rng))
    xi = torch.randn(3, 7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, denoiser(X, 1.0, label, xi))
    assert distributional(denoiser, X, torch.tensor([1.0, 0.4], dtype=torch.float64), label, Noise(rng)).shape == X.shape
