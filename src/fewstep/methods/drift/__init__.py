"""Drift: its settings, and the method itself."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Drift":
        from fewstep.methods.drift.method import Drift

        return Drift
    raise AttributeError(f"module 'fewstep.methods.drift' has no attribute {name!r}")
