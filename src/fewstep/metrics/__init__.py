"""Metrics of generated sets beside real ones: distances, precision and recall, memorisation, and the floor, which real sets reach.

Modules that need torch are imported on first use; `fewstep.metrics.figures`, the table of the figures, does not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.metrics.frechet import frechet_distance
    from fewstep.metrics.kernel_mmd import kernel_distance
    from fewstep.metrics.manifold import precision_recall

__all__ = ["frechet_distance", "kernel_distance", "precision_recall"]
_PLACES = {"frechet_distance": "frechet", "kernel_distance": "kernel_mmd", "precision_recall": "manifold"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"fewstep.metrics.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'fewstep.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
