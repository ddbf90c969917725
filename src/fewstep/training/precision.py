"""Mixed precision inside the networks alone: bfloat16 is what their layers work in, and nothing else is ever rounded to it.

The engine's own plugin rounds what a network is *given*, too: a noise level of .002, or a time of .999, is then another one. Losses,
kernels and closed forms are no networks, and are worked out in float32.
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
    """bfloat16 in the layers of a network: what goes in stays as it is, and what comes out is float32.

    A loss may take gradients of its own on the way, which the engine's plugin for mixed precision forbids.

    Attributes:
        device: the kind of device that it works on, such as "cpu" or "cuda"; to be set when it is known.
        on: whether it is in force; without, all is float32. To be set before a network is wrapped.

    """

    precision = MIXED

    def __init__(self) -> None:
        self.device, self.on = "cpu", True

    def forward_context(self) -> AbstractContextManager[Any]:
        """Inside, layers work in bfloat16."""
        return torch.autocast(self.device, torch.bfloat16) if self.on else contextlib.nullcontext()

    def convert_output(self, data: Any) -> Any:
        """`data`, a tensor or a tree of them, with what came in bfloat16 in float32."""
        if not self.on:
            return data
        return tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, data)


class InPrecision:
    """A network that runs in the precision of the engine by every entrance; what else it has is its own.

    The engine sees to ``forward`` of what learns alone: not to other entrances, and not to what stands still.

    Args:
        module: the network.
        precision: of the engine.

    """

    def __init__(self, module: nn.Module, precision: Mixed) -> None:
        self.module, self.precision = module, precision

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
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
    """`module` as it is to be called: itself in full precision, and where it has no weights, as a closed form has none."""
    has_weights = next(module.parameters(), None) is not None or bool(grounds(module))
    mixed = isinstance(precision, Mixed) and precision.on and has_weights
    return InPrecision(module, precision) if mixed else module
