"""Gradient checkpointing (arXiv 1604.06174): recompute activations in the backward pass, which saves memory for a third more time."""

from typing import Any

from torch import nn

from fewstep.denoisers.adapted import Adapted
from fewstep.methods.base import Method

ENABLE = "enable_gradient_checkpointing"  # the method's name in networks of diffusers


def recompute(method: Method) -> None:
    """Turn on gradient checkpointing in each network of `method` that supports it. Raises ValueError where none does."""
    able = [enabled(network) for network in method.networks.values()]
    if not any(able):
        raise ValueError(
            "trainer.checkpointing is true, and none of these networks can compute its activations again: networks of diffusers can, "
            "which are network unet and those of text-to-image models; set it to false, and trainer.accumulate to more for less memory"
        )


def enabled(network: nn.Module) -> bool:
    """Turn on gradient checkpointing in `network`, or in the network that it adapts; return whether any part supports it."""
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
    """Return the outermost parts of `module` that support gradient checkpointing, or that adapt a network that may support it."""
    if hasattr(module, ENABLE) or isinstance(module, Adapted):
        return [module]
    return [part for child in module.children() for part in _outermost(child)]
