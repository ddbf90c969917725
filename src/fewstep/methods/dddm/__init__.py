"""Distributional diffusion: its settings, and the method itself."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "DDDM":
        from fewstep.methods.dddm.method import DDDM

        return DDDM
    raise AttributeError(f"module 'fewstep.methods.dddm' has no attribute {name!r}")
