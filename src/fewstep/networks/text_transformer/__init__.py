"""The transformer of a text-to-image model: settings, and the module, which is imported on first use."""

from typing import Any

__all__ = ["TextTransformer"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.text_transformer.network

        return getattr(fewstep.networks.text_transformer.network, name)
    raise AttributeError(f"module 'fewstep.networks.text_transformer' has no attribute {name!r}")
