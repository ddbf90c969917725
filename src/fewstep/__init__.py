"""One-step and few-step generative models: train, distil, measure and ship them.

    import fewstep
    generator = fewstep.load("runs/demo/student")     # a run folder, its model/ folder, or a Hub id
    images = generator.sample(64, seed=0)             # [64, C, H, W] in [-1, 1]

Nothing heavy is imported until it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.generator import Generator, load

__version__ = "0.1.0"
__all__ = ["Generator", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Generator", "load"):
        import fewstep.generator

        return getattr(fewstep.generator, name)
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
