"""The diffusion teacher: its settings, and the method itself."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Teacher":
        from fewstep.methods.teacher.method import Teacher

        return Teacher
    raise AttributeError(f"module 'fewstep.methods.teacher' has no attribute {name!r}")
