import pytest
import torch
from torch import nn

from fewstep.denoisers import PreconditionedDenoiser


class Recorder(nn.Module):
    """A network that keeps its arguments and returns ``scale * x + 1``; its features are ``-x``."""

    def __init__(self, scale=3.0, dtype=torch.float32):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=dtype))

    def forward(self, x, c_noise, label):
        self.x, self.c_noise, self.label = x, c_noise, label
        return self.scale * x + 1

    def features(self, x, c_noise, label, levels):
        self.x, self.c_noise, self.label = x, c_noise, label
        return [-x] * levels


X = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.01, 1.2, 60.0])


def test_denoiser_is_edm_s_formula_item_by_item():
    denoiser = PreconditionedDenoiser(Recorder(), 0.5)
    found = denoiser(X, SIGMA)
    for i, s in enumerate(SIGMA.double()):
        x, total = X[i].double(), s**2 + 0.25
        expected = 0.25 / total * x + 0.5 * s / total.sqrt() * (3 * x / total.sqrt() + 1)
        torch.testing.assert_close(found[i], expected.float())
        torch.testing.assert_close(denoiser.network.c_noise[i], (s.log() / 4).float())
    assert denoiser.network.c_noise.shape == (3,)


def test_one_noise_level_stands_for_all():
    denoiser = PreconditionedDenoiser(Recorder(), 0.5)
    expected = denoiser(X, torch.full((3,), 1.2))
    assert torch.equal(denoiser(X, torch.tensor(1.2)), expected)
    assert torch.equal(denoiser(X, 1.2), expected)


def test_network_sees_unit_variance():
    num, sigma_data, sigma = 50_000, 0.7, 2.0
    x = (sigma_data**2 + sigma**2) ** 0.5 * torch.randn(num, 1, generator=torch.Generator().manual_seed(0))
    denoiser = PreconditionedDenoiser(Recorder(), sigma_data)
    denoiser(x, sigma)
    assert abs(denoiser.network.x.var().item() - 1) < 4 * (2 / num) ** 0.5  # four standard errors of a Gaussian's variance


def test_no_label_is_the_null_class():
    denoiser = PreconditionedDenoiser(Recorder(), 0.5, num_classes=7)
    denoiser(X, SIGMA)
    assert denoiser.network.label.tolist() == [7, 7, 7]
    denoiser(X, SIGMA, torch.tensor([0, 6, 7]))
    assert denoiser.network.label.tolist() == [0, 6, 7]


def test_without_classes_a_label_is_not_passed_on():
    denoiser = PreconditionedDenoiser(Recorder(), 0.5)
    denoiser(X, SIGMA, torch.tensor([0, 1, 2]))
    assert denoiser.network.label is None


def test_features_are_the_network_s_own():
    denoiser = PreconditionedDenoiser(Recorder(), 0.5, num_classes=7)
    denoiser(X, SIGMA)
    told = denoiser.network.x, denoiser.network.c_noise, denoiser.network.label
    features = denoiser.features(X, SIGMA, None, 2)
    assert len(features) == 2
    assert torch.equal(features[0], -denoiser.network.x)
    assert all(map(torch.equal, told, (denoiser.network.x, denoiser.network.c_noise, denoiser.network.label)))


def test_feature_shapes_are_the_network_s_own():
    denoiser = PreconditionedDenoiser(Recorder(), 0.5)
    assert denoiser.feature_shapes == []  # of a network without
    denoiser.network.feature_shapes = [(16, (2, 2)), (8, (4, 4))]
    assert denoiser.feature_shapes == [(16, (2, 2)), (8, (4, 4))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_network_is_fed_in_its_own_precision_and_the_answer_is_float32(dtype):
    denoiser = PreconditionedDenoiser(Recorder(0.0, dtype), 0.5)
    # sigma 1e-4: in bfloat16 the skip would lose all but 8 bits of x
    found = denoiser(X.double(), torch.tensor(1e-4))
    assert denoiser.network.x.dtype == denoiser.network.c_noise.dtype == dtype
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, X + 1e-4, rtol=0, atol=1e-6)
