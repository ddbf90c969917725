"""A foreign U-Net: settings, and the module, which is imported when it is asked for."""

from typing import Any

__all__ = ["UNet2D"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.unet2d.network

        return getattr(fewstep.networks.unet2d.network, name)
    raise AttributeError(f"module 'fewstep.networks.unet2d' has no attribute {name!r}")
