"""The image U-Net: settings, and the module, which is imported on first use."""

from typing import Any

__all__ = ["LatentUNet", "UNet"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.unet.network

        return getattr(fewstep.networks.unet.network, name)
    raise AttributeError(f"module 'fewstep.networks.unet' has no attribute {name!r}")
