"""Denoisers ``D(x, sigma, label) -> x0_hat``: estimates of ``E[x0 | x0 + sigma n = x]``. Everything else is built on them."""

from torch import nn

from fewstep.denoisers.distributional import DistributionalDenoiser
from fewstep.denoisers.flow import FlowDenoiser
from fewstep.denoisers.foreign import ForeignDenoiser
from fewstep.denoisers.mixture import MixtureDenoiser, MixturePosterior
from fewstep.denoisers.preconditioned import PreconditionedDenoiser
from fewstep.denoisers.protocol import (
    Denoiser,
    FeatureDenoiser,
    Guided,
    PosteriorDenoiser,
    StepDenoiser,
    TwoTime,
)
from fewstep.denoisers.push_forward import PushForward
from fewstep.denoisers.stepwise import StepwiseDenoiser
from fewstep.denoisers.two_time import TwoTimeDenoiser

DENOISERS: dict[str, type[nn.Module]] = {
    "preconditioned": PreconditionedDenoiser,
    "push_forward": PushForward,
    "distributional": DistributionalDenoiser,
    "ddpm": ForeignDenoiser,
    "flow": FlowDenoiser,
    "two_time": TwoTimeDenoiser,
}
"""By the names that config.json has for them; each is made with ``(network, sigma_data, num_classes, **its own settings)``."""

__all__ = [
    "DENOISERS",
    "Denoiser",
    "DistributionalDenoiser",
    "FeatureDenoiser",
    "FlowDenoiser",
    "ForeignDenoiser",
    "Guided",
    "MixtureDenoiser",
    "MixturePosterior",
    "PosteriorDenoiser",
    "PreconditionedDenoiser",
    "PushForward",
    "StepDenoiser",
    "StepwiseDenoiser",
    "TwoTime",
    "TwoTimeDenoiser",
]
