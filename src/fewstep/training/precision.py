"""Mixed precision inside the networks alone: their layers compute in bfloat16, and nothing else is rounded to it.

Lightning Fabric's own plugin also rounds a network's *inputs*, which changes a noise level of 0.002 or a time of 0.999. Losses, kernels and
closed forms are not networks, and are computed in float32.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from lightning_fabric.plugins.precision import Precision
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fewstep.denoisers.adapted import grounds

MIXED: Literal["bf16-mixed"] = "bf16-mixed"
FULL: Literal["32-true"] = "32-true"


class Mixed(Precision):
    """A precision plugin for Fabric: layers compute in bfloat16, inputs are left unchanged, and outputs are converted to float32.

    A loss may call ``torch.autograd.grad`` itself, which Fabric's own plugin for mixed precision forbids.

    Attributes:
        device: the type of the device that networks run on, such as "cpu" or "cuda"; to be set once it is known.
        on: whether bfloat16 is used; without it everything is float32. To be set before a network is wrapped.

    """

    precision = MIXED

    def __init__(self) -> None:
        self.device, self.on = "cpu", True

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context in which layers compute in bfloat16, or one that changes nothing without `on`."""
        return torch.autocast(self.device, torch.bfloat16) if self.on else contextlib.nullcontext()

    def convert_output(self, data: Any) -> Any:
        """Return `data`, a tensor or a tree of tensors, with all bfloat16 tensors converted to float32."""
        if not self.on:
            return data
        return tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, data)


class InPrecision:
    """A network whose ``forward`` and ``forward_methods`` run in mixed precision; all other attributes are the network's own.

    Fabric applies its precision only to ``forward``, and only in networks that it has wrapped for training: not to other methods, and not
    to frozen networks.

    Args:
        module: the network.
        precision: the engine's precision plugin.

    """

    def __init__(self, module: nn.Module, precision: Mixed) -> None:
        self.module, self.precision = module, precision

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the network's ``forward``, computed in mixed precision."""
        return self._run(self.module, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["module"], name)
        if name not in getattr(self.__dict__["module"], "forward_methods", ()):
            return found
        return lambda *args, **kwargs: self._run(found, *args, **kwargs)

    def _run(self, entrance: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.precision.forward_context():
            return self.precision.convert_output(entrance(*args, **kwargs))


def in_precision(module: nn.Module, precision: Any) -> Any:
    """Return `module` wrapped to run in `precision`; `module` itself in full precision, or if it has no weights, such as a closed form."""
    has_weights = next(module.parameters(), None) is not None or bool(grounds(module))
    mixed = isinstance(precision, Mixed) and precision.on and has_weights
    return InPrecision(module, precision) if mixed else module
