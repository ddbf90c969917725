"""One-step and few-step generative models: train, distil, measure and ship them.

    import fewstep
    run = fewstep.train("teacher/digits", "runs/teacher")           # a shipped recipe, or a YAML file; keyword arguments change settings
    generator = fewstep.load(run)                                   # a run folder, its model/ folder, or a Hub id
    images = generator.sample(64, seed=0)                           # [64, C, H, W] in [-1, 1]; generator.to_pil(images) for Pillow images
    fewstep.image_grid(images)                                      # one picture with all images in a grid
    results = fewstep.evaluate(run)                                 # what `fewstep evaluate` writes into results.json; shown as a table
    fewstep.register("methods", "mine", MyMethod)                   # a method of your own, which recipes can then name

Packages that are slow to import, such as torch, are imported when they are first needed.
"""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewstep.version import __version__

if TYPE_CHECKING:
    from fewstep.comparison import compare
    from fewstep.evaluation import evaluate
    from fewstep.generator import Generator, load, sample
    from fewstep.registry import register
    from fewstep.run import train
    from fewstep.viz.plots import image_grid

__all__ = ["Generator", "__version__", "compare", "evaluate", "image_grid", "load", "register", "sample", "train"]
if "ipykernel" in sys.modules:  # tqdm, which other libraries import, warns where a notebook has no ipywidgets; fewstep does not need them
    warnings.filterwarnings("ignore", "IProgress not found")
_PLACES = {
    "Generator": "generator",
    "compare": "comparison",
    "evaluate": "evaluation",
    "image_grid": "viz.plots",
    "load": "generator",
    "register": "registry",
    "sample": "generator",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"fewstep.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "import_module", "sys", "warnings"})
