"""Networks by name, from plain arguments."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fewstep import registry


def make_network(config: Mapping[str, Any], shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
    """Build the network that `config` names (key ``name``; the other keys are its arguments) for data [B, *shape].

    Raises ValueError for an unknown name or arguments that do not fit together.
    """
    arguments = dict(config)
    return registry.room("networks", arguments.pop("name"))(shape, num_classes, **arguments)


def num_parameters(module: nn.Module) -> int:
    """Number of parameters of `module`, trainable or frozen."""
    return sum(p.numel() for p in module.parameters())
