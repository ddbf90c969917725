import copy

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.denoisers import ForeignDenoiser, MixtureDenoiser

LINEAR = {"schedule": "linear", "num": 1000}
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA = (1 - BETAS).cumprod(0).sqrt()
SIGMAS = (1 - ALPHA**2).sqrt() / ALPHA
MEAN, STD = 0.3, 0.6
X = 3 * torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class GaussianNet(nn.Module):
    """What a network trained to the end on ``x0 ~ N(MEAN, STD^2)`` predicts: ``E[target | x_t]``, in closed form."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x_t, timestep, label):
        t = timestep.double().numpy()
        sigma = np.exp(np.interp(t, np.arange(1000), SIGMAS.log().numpy()))
        alpha = torch.from_numpy(1 / np.sqrt(1 + sigma**2)).view(-1, 1, 1, 1)
        sigma_t = (1 - alpha**2).sqrt()
        gap = (x_t.double() - alpha * MEAN) / (alpha**2 * STD**2 + sigma_t**2)
        x0, eps = MEAN + alpha * STD**2 * gap, sigma_t * gap
        return {"epsilon": eps, "v_prediction": alpha * eps - sigma_t * x0, "sample": x0}[self.prediction].float()


class Recorder(nn.Module):
    """A network that keeps its arguments and returns ``2 x_t``; its features are ``-x_t``."""

    def __init__(self, dtype=torch.float32, null_class=True):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.null_class = null_class

    def forward(self, x_t, timestep, label):
        self.x_t, self.timestep, self.label = x_t, timestep, label
        return self.weight * x_t

    def features(self, x_t, timestep, label, levels):
        self.x_t, self.timestep, self.label = x_t, timestep, label
        return [-x_t] * levels


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_network_gives_the_exact_denoiser_of_a_gaussian(prediction):
    denoiser = ForeignDenoiser(GaussianNet(prediction), 0.5, None, prediction, LINEAR)
    exact = MixtureDenoiser(torch.full((1, 1, 2, 2), MEAN), STD)
    sigma = torch.tensor([SIGMAS[0], 0.037, 0.8, 5.5, 79.0, SIGMAS[-1]]).float()  # at integers and between
    found = denoiser(X + sigma.view(-1, 1, 1, 1), sigma)
    # an estimate of noise is 1 part in 1e7, and is multiplied by sigma
    torch.testing.assert_close(found, exact(X + sigma.view(-1, 1, 1, 1), sigma), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoiser(X, 0.8), exact(X, 0.8), rtol=1e-5, atol=1e-5)


def test_the_network_is_told_what_it_was_trained_on():
    denoiser = ForeignDenoiser(Recorder(), 0.5, betas=LINEAR)
    steps = torch.tensor([0, 1, 400, 998, 999])
    sigma = SIGMAS[steps].float()
    denoiser(X[:5], sigma)
    torch.testing.assert_close(denoiser.network.timestep, steps.float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(denoiser.network.x_t, X[:5] * ALPHA[steps].float().view(-1, 1, 1, 1), rtol=1e-5, atol=0)
    denoiser(X, torch.tensor(1.2))
    assert denoiser.network.timestep.shape == (6,)
    assert (denoiser.network.timestep == denoiser.network.timestep[0]).all()
    assert denoiser.sigma_min == pytest.approx(SIGMAS[0].item())
    assert denoiser.sigma_max == pytest.approx(157.407, rel=1e-5)  # DDPM's


def test_predictions_by_hand():
    # sigma 3/4: alpha 4/5, sigma_t 3/5; F(x_t) = 2 x_t = 8/5 x
    betas = [0.1, 0.4, 0.7]
    epsilon, v, sample = (ForeignDenoiser(Recorder(), 0.5, None, p, betas)(X, 0.75) for p in ("epsilon", "v_prediction", "sample"))
    torch.testing.assert_close(epsilon, X - 0.75 * 1.6 * X)
    torch.testing.assert_close(v, 0.64 * X - 0.6 * 1.6 * X)
    torch.testing.assert_close(sample, 1.6 * X)


def test_outside_the_table_the_timestep_stands_still_and_the_levels_go_on():
    denoiser = ForeignDenoiser(Recorder(), 0.5, betas=LINEAR)
    for sigma, t in ((1e-3, 0), (1e3, 999)):
        found = denoiser(X, sigma)
        assert denoiser.network.timestep.tolist() == [t] * 6
        x_t = X / (1 + sigma**2) ** 0.5
        torch.testing.assert_close(denoiser.network.x_t, x_t)
        torch.testing.assert_close(found, X - sigma * 2 * x_t, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoiser(X, 1e-6), X, rtol=1e-5, atol=0)


def test_without_signal_at_the_end_the_table_ends_before_it():
    zero = ForeignDenoiser(Recorder(), 0.5, prediction="v_prediction", betas=LINEAR, zero_snr=True)
    assert zero.sigma_max > 1000
    assert zero.timestep(torch.tensor([1e9])).item() == 998
    assert zero(X, 1e3).isfinite().all()


def test_labels():
    denoiser = ForeignDenoiser(Recorder(), 0.5, 7, betas=LINEAR)
    denoiser(X, 1.0)
    assert denoiser.network.label.tolist() == [7] * 6
    denoiser(X, 1.0, torch.arange(6))
    assert denoiser.network.label.tolist() == [0, 1, 2, 3, 4, 5]
    without = ForeignDenoiser(Recorder(null_class=False), 0.5, 7, betas=LINEAR)
    with pytest.raises(ValueError, match="label is None, but this network has 7 classes and no null class; give labels"):
        without(X, 1.0)
    without(X, 1.0, torch.arange(6))
    unconditional = ForeignDenoiser(Recorder(null_class=False), 0.5, None, betas=LINEAR)
    unconditional(X, 1.0, torch.arange(6))
    assert unconditional.network.label is None


def test_features_are_the_network_s_own():
    denoiser = ForeignDenoiser(Recorder(), 0.5, 7, betas=LINEAR)
    denoiser(X, 1.0)
    told = denoiser.network.x_t, denoiser.network.timestep, denoiser.network.label
    features = denoiser.features(X, 1.0, None, 2)
    assert len(features) == 2
    assert torch.equal(features[0], -denoiser.network.x_t)
    assert all(map(torch.equal, told, (denoiser.network.x_t, denoiser.network.timestep, denoiser.network.label)))


def test_features_need_a_label_where_there_is_no_null_class():
    denoiser = ForeignDenoiser(Recorder(null_class=False), 0.5, 7, betas=LINEAR)
    with pytest.raises(ValueError, match="label is None, but this network has 7 classes and no null class; give labels"):
        denoiser.features(X, 1.0, None, 1)


def test_feature_shapes_are_the_network_s_own():
    denoiser = ForeignDenoiser(Recorder(), 0.5, betas=LINEAR)
    assert denoiser.feature_shapes == []  # of a network without
    denoiser.network.feature_shapes = [(16, (2, 2))]
    assert denoiser.feature_shapes == [(16, (2, 2))]


def test_in_half_precision_only_the_network_is():
    denoiser = ForeignDenoiser(Recorder(), 0.5, betas=LINEAR)
    half = copy.deepcopy(denoiser).to(torch.bfloat16)
    sigma = SIGMAS[[3, 333, 500, 777, 997, 998]].float()
    found = half(X, sigma)
    assert half.network.x_t.dtype == torch.bfloat16
    assert found.dtype == half.network.timestep.dtype == torch.float32
    torch.testing.assert_close(half.network.timestep, torch.tensor([3.0, 333, 500, 777, 997, 998]), rtol=0, atol=1e-2)
    torch.testing.assert_close(half(X, 1e-4), X, rtol=0, atol=2e-3)


def test_it_can_be_made_without_memory():
    with torch.device("meta"):
        denoiser = ForeignDenoiser(nn.Linear(1, 1), 0.5, betas=LINEAR)
    assert denoiser.sigma_max == pytest.approx(157.407, rel=1e-5)
    assert denoiser.state_dict().keys() == {"network.weight", "network.bias"}


def test_what_is_no_parametrisation():
    with pytest.raises(ValueError, match="prediction is 'flow'; allowed: epsilon, v_prediction, sample"):
        ForeignDenoiser(Recorder(), 0.5, None, "flow", LINEAR)
    with pytest.raises(ValueError, match="betas"):
        ForeignDenoiser(Recorder(), 0.5, None, "epsilon", [0.5])
