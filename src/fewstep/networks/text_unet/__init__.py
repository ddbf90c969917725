"""The U-Net of a text-to-image model: settings, and the module, which is imported on first use."""

from typing import Any

__all__ = ["TextUNet"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.text_unet.network

        return getattr(fewstep.networks.text_unet.network, name)
    raise AttributeError(f"module 'fewstep.networks.text_unet' has no attribute {name!r}")
