"""Denoisers ``D(x, sigma, label) -> x0_hat``: estimates of ``E[x0 | x0 + sigma n = x]``. Everything else is built on them."""

from fewstep.denoisers.distributional import DistributionalDenoiser
from fewstep.denoisers.foreign import ForeignDenoiser
from fewstep.denoisers.mixture import MixtureDenoiser, MixturePosterior
from fewstep.denoisers.preconditioned import PreconditionedDenoiser
from fewstep.denoisers.protocol import Denoiser, guided
from fewstep.denoisers.push_forward import PushForward
from fewstep.denoisers.stepwise import StepwiseDenoiser

__all__ = [
    "Denoiser",
    "DistributionalDenoiser",
    "ForeignDenoiser",
    "MixtureDenoiser",
    "MixturePosterior",
    "PreconditionedDenoiser",
    "PushForward",
    "StepwiseDenoiser",
    "guided",
]
