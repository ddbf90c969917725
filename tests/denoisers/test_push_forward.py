import math

import pytest
import torch
from torch import nn

from fewstep.denoisers import PushForward
from fewstep.samplers import SAMPLERS, push_forward


class Network(nn.Module):
    """Keeps what it was called with; a parameter gives it a type."""

    latent = 3

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2, dtype=dtype))
        self.seen = []

    def forward(self, z, label):
        self.seen.append((z, label))
        return z @ self.weight


Z = torch.arange(12.0).view(4, 3)
LABEL = torch.tensor([0, 1, 1, 0])


def test_output_is_the_network_s_in_units_of_the_data_at_every_noise_level():
    denoiser = PushForward(Network(), 0.5)
    expected = 0.5 * Z.sum(1, keepdim=True).expand(4, 2)
    for sigma in (math.inf, 0.1, torch.full((4,), 7.0)):
        torch.testing.assert_close(denoiser(Z, sigma), expected)
    torch.testing.assert_close(denoiser(Z), expected)
    assert denoiser.latent_shape == (3,)


@pytest.mark.parametrize("num_classes", [None, 2])
def test_labels_reach_a_network_with_classes_alone(num_classes):
    denoiser = PushForward(Network(), 1.0, num_classes)
    denoiser(Z, math.inf, LABEL)
    ((_, label),) = denoiser.network.seen
    assert label is (None if num_classes is None else LABEL)


def test_a_map_with_classes_is_not_asked_without_one():
    denoiser = PushForward(Network(), 1.0, 2)
    for arguments in ((Z,), (Z, math.inf), (Z, math.inf, None)):
        with pytest.raises(ValueError, match="label is None, but this map has 2 classes and none that means no class; give labels"):
            denoiser(*arguments)
    assert denoiser.network.seen == []
    PushForward(Network(), 1.0, None)(Z, math.inf, None)  # and one without needs none


def test_noise_takes_the_network_s_type_and_items_are_float32():
    denoiser = PushForward(Network(torch.bfloat16), 1.0)
    assert denoiser(Z).dtype == torch.float32
    assert denoiser.network.seen[0][0].dtype == torch.bfloat16


def test_gradient_reaches_the_network():
    denoiser = PushForward(Network(), 0.5)
    denoiser(Z).sum().backward()
    torch.testing.assert_close(denoiser.network.weight.grad, 0.5 * Z.sum(0)[:, None].expand(3, 2))


def test_the_sampler_calls_it_once_with_the_noise_as_it_is():
    denoiser = PushForward(Network(), 0.5, 2)
    x = push_forward(denoiser, Z, torch.tensor([math.inf], dtype=torch.float64), LABEL)
    torch.testing.assert_close(x, 0.5 * Z.sum(1, keepdim=True).expand(4, 2))
    ((z, label),) = denoiser.network.seen
    assert torch.equal(z, Z)  # not multiplied by sigma, which is infinite
    assert label is LABEL
    assert SAMPLERS["push_forward"].evaluations(1) == 1
