"""A denoiser of two noise levels: what its network is told of the second, and how loudly."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoisers import TwoTimeDenoiser
from fewstep.denoisers.two_time import CONDITION, gap_features


class Told(nn.Module):
    """A network that keeps its condition, and answers with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.condition: Tensor | None = None

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None, condition: Tensor | None = None) -> Tensor:
        self.condition = condition
        return self.weight * x


@pytest.mark.parametrize("gain", [1.0, 10])
def test_the_network_is_told_of_the_gap_as_loudly_as_asked(gain):
    network = Told()
    denoiser = TwoTimeDenoiser(network, 0.5, gain=gain)
    sigma, rho = torch.tensor([40.0, 1.0]), torch.tensor([1.0, 1.0])
    denoiser(torch.zeros(2, 3), sigma, rho=rho)
    assert network.condition.shape == (2, CONDITION)
    torch.testing.assert_close(network.condition, gain * gap_features(sigma, rho, 0.5))
    assert (network.condition[1] == 0).all()  # no gap
    assert network.condition[0].abs().max() > 0.5 * gain


@pytest.mark.parametrize("gain", [0, -1.0, float("inf"), float("nan"), "loud"])
def test_a_gain_that_is_none_is_refused(gain):
    with pytest.raises(ValueError, match=r"gain is .*give a number above 0"):
        TwoTimeDenoiser(Told(), 0.5, gain=gain)
