"""DMD2: its settings, and the method itself."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "DMD2":
        from fewstep.methods.dmd2.method import DMD2

        return DMD2
    raise AttributeError(f"module 'fewstep.methods.dmd2' has no attribute {name!r}")
