"""The diffusion transformer: settings, and the module, which is imported on first use."""

from typing import Any

__all__ = ["DiT"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.dit.network

        return getattr(fewstep.networks.dit.network, name)
    raise AttributeError(f"module 'fewstep.networks.dit' has no attribute {name!r}")
