"""Flow maps: settings, and the method itself."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "FlowMap":
        from fewstep.methods.flow_map.method import FlowMap

        return FlowMap
    raise AttributeError(f"module 'fewstep.methods.flow_map' has no attribute {name!r}")
