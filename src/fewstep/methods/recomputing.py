"""Activations computed again in the backward pass, instead of kept (checkpointing, arXiv 1604.06174): less memory for a third more time."""

from typing import Any

from torch import nn

from fewstep.denoisers.adapted import Adapted
from fewstep.methods.base import Method

ENABLE = "enable_gradient_checkpointing"  # as networks of diffusers call it


def recompute(method: Method) -> None:
    """Have the networks of `method` compute activations again, all that can. Raises ValueError where none can."""
    able = [enabled(network) for network in method.networks.values()]
    if not any(able):
        raise ValueError(
            "trainer.checkpointing is true, and none of these networks can compute its activations again: networks of diffusers can, "
            "which are network unet and those of text-to-image models; set it to false, and trainer.accumulate to more for less memory"
        )


def enabled(network: nn.Module) -> bool:
    """Whether some part of `network`, or what it stands on, can; it does from now on."""
    if isinstance(network, Adapted):
        inner = _outermost(network.stands_on)
        for part in inner:
            network.slot.recompute(getattr(part, ENABLE))
        return bool(inner)
    inner = _outermost(network)
    for part in inner:
        enabled(part) if isinstance(part, Adapted) else getattr(part, ENABLE)()
    return bool(inner)


def _outermost(module: nn.Module) -> list[Any]:
    """The parts of `module` that can, or that stand on something that may, but for those inside of one."""
    if hasattr(module, ENABLE) or isinstance(module, Adapted):
        return [module]
    return [part for child in module.children() for part in _outermost(child)]
