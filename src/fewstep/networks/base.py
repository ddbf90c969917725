"""Networks by name, from plain arguments."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from fewstep import registry


def make_network(config: Mapping[str, Any], shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
    """Build the network that `config` names (key ``name``; the other keys are its arguments) for data [B, *shape].

    Raises ValueError for an unknown name or arguments that do not fit together.
    """
    arguments = dict(config)
    name = arguments.pop("name")
    network = registry.room("networks", name)
    if registry.is_own("networks", name):
        try:
            inspect.signature(network).bind(shape, num_classes, **arguments)
        except TypeError as error:
            given = "".join(f", {key}=..." for key in arguments)
            raise ValueError(f"the network {name!r} cannot be made as {network.__name__}(shape, num_classes{given}): {error}") from None
    return network(shape, num_classes, **arguments)


def frozen(module: nn.Module) -> nn.Module:
    """A copy of `module` that cannot learn: no parameter takes a gradient, and it is in eval mode."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def num_parameters(module: nn.Module) -> int:
    """Number of parameters of `module`, trainable or frozen."""
    return sum(p.numel() for p in module.parameters())


def tables_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of which one item teaches a row alone, as the networks in `module` tell in their attribute ``tables``."""
    return tuple(dict.fromkeys(name for part in module.modules() for name in getattr(part, "tables", ())))
