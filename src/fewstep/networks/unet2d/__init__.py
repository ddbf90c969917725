"""A U-Net of diffusers that was trained elsewhere: settings, and the module, which is imported on first use."""

from typing import Any

__all__ = ["UNet2D"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.unet2d.network

        return getattr(fewstep.networks.unet2d.network, name)
    raise AttributeError(f"module 'fewstep.networks.unet2d' has no attribute {name!r}")
