"""Consistency models: settings, and the method itself."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Consistency":
        from fewstep.methods.consistency.method import Consistency

        return Consistency
    raise AttributeError(f"module 'fewstep.methods.consistency' has no attribute {name!r}")
