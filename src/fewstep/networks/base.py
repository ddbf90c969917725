"""Networks by name, made from plain arguments, and helpers for modules."""

import contextlib
import copy
import inspect
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from fewstep import registry
from fewstep.errors import UserError


def make_network(config: Mapping[str, Any], shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
    """Build the network that `config` names (key ``name``; the other keys are its arguments) for data [B, *shape].

    Raises ValueError for an unknown name or arguments that do not fit together.
    """
    arguments = dict(config)
    name = arguments.pop("name")
    network = registry.room("networks", name)
    if registry.is_own("networks", name):
        arguments = _of_types(name, arguments)
        try:
            inspect.signature(network).bind(shape, num_classes, **arguments)
        except TypeError as error:
            given = "".join(f", {key}=..." for key in arguments)
            raise ValueError(f"the network {name!r} cannot be made as {network.__name__}(shape, num_classes{given}): {error}") from None
    return network(shape, num_classes, **arguments)


def _of_types(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return `arguments` of the user's own network, which JSON holds, as its settings have them: a tuple where JSON has a list."""
    with contextlib.suppress(UserError, ValidationError, TypeError):  # a class that takes other arguments than it has settings
        settings = registry.settings("networks", name)
        known = {key: value for key, value in arguments.items() if key in settings.model_fields}
        made = settings.model_validate_json(json.dumps({"name": name, **known}))
        return arguments | {key: getattr(made, key) for key in known}
    return arguments


def frozen(module: nn.Module) -> nn.Module:
    """Return a frozen copy of `module`: no parameter takes a gradient, and the copy is in eval mode."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return all of a sharded `tensor`, for which all processes must call this together; `tensor` itself if it is not sharded."""
    dtensor: Any = tensor
    return dtensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `module`, which may be sharded, with all of each tensor; see `whole_tensor`."""
    return {name: whole_tensor(tensor) for name, tensor in module.state_dict().items()}


def dropout_of(module: nn.Module) -> list[nn.Module]:
    """Return the layers of `module` that drop activations in training, by a probability `p` above 0."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    return [part for part in module.modules() if isinstance(part, kinds) and part.p > 0]


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters of `module`, trainable or frozen."""
    return sum(p.numel() for p in module.parameters())


def tables_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of parameters of which each item trains one row only, from the attributes ``tables`` of networks in `module`."""
    return tuple(dict.fromkeys(name for part in module.modules() for name in getattr(part, "tables", ())))
