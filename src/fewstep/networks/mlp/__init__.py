"""Fully connected networks: settings, and the module, which is imported on first use."""

from typing import Any

__all__ = ["MLP", "CodedMLP", "LatentMLP"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.mlp.network

        return getattr(fewstep.networks.mlp.network, name)
    raise AttributeError(f"module 'fewstep.networks.mlp' has no attribute {name!r}")
