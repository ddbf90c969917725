import pytest
import torch

from fewstep.generator import Generator


@pytest.fixture
def make_generator():
    """``make(num_classes, label_dropout) -> Generator``: a tiny U-Net on 8x8 images with random weights."""

    def make(num_classes=3, label_dropout=0.0):
        torch.manual_seed(0)
        network = {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8}
        sampler = {"name": "heun", "steps": 3, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
        return Generator((1, 8, 8), num_classes, 0.5, network, sampler, {"label_dropout": label_dropout})

    return make
