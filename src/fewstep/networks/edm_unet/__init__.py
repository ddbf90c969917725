"""EDM's U-Net: settings, and the module, which is imported on first use."""

from typing import Any

__all__ = ["EDMUNet"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.edm_unet.network

        return getattr(fewstep.networks.edm_unet.network, name)
    raise AttributeError(f"module 'fewstep.networks.edm_unet' has no attribute {name!r}")
