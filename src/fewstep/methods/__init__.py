"""Training methods, a subpackage each, which reads like the algorithm box of its paper and knows nothing of loops, files or devices.

To write your own method, derive it from `Method` and its settings from `MethodSettings` (docs/own_method.md). Modules that need torch are
imported on first use, so that settings can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewstep.sections import Compared, Grid, MethodSettings, Optimizer, Section

if TYPE_CHECKING:
    from fewstep.methods.base import Alarm, Batch, Data, Given, LossOutput, Method, Networks, Ramp, Ratio, Turn
    from fewstep.methods.devices import whole_batch, world_size
    from fewstep.streams import integers, normal, uniform

__all__ = [
    "Alarm",
    "Batch",
    "Compared",
    "Data",
    "Given",
    "Grid",
    "LossOutput",
    "Method",
    "MethodSettings",
    "Networks",
    "Optimizer",
    "Ramp",
    "Ratio",
    "Section",
    "Turn",
    "integers",
    "normal",
    "uniform",
    "whole_batch",
    "world_size",
]
_ELSEWHERE = {
    **dict.fromkeys(("whole_batch", "world_size"), "fewstep.methods.devices"),
    **dict.fromkeys(("integers", "normal", "uniform"), "fewstep.streams"),
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "fewstep.methods.base")), name)
    raise AttributeError(f"module 'fewstep.methods' has no attribute {name!r}")
