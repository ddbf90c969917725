"""Estimate what it takes to reach the published figures of CIFAR-10: images, floating-point operations, hours of a GPU.

    python benchmarks/gpu_outlook.py

Counts the operations of each recipe as it is shipped, on tensors without content (`fewstep train ... --dry-run` counts the same), with an
untrained network for a teacher, and writes results/gpu_outlook.json: a minute on a CPU. `benchmarks/tables.py` turns the operations into
hours: by the speed that `benchmarks/gpu.py` has measured, if any, and by an assumed share of an H100's peak.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from fewstep.build import make_method
from fewstep.costs import measure
from fewstep.data.images import ImageData
from fewstep.recipe import load_recipe
from fewstep.training.run_folder import RunFolder
from gpu_tables import assumed_tflops, hours

RESULTS = Path(__file__).parent / "results" / "gpu_outlook.json"
# recipe -> its network in `gpu_steps`, the recipe of its teacher if it has one, and the FID published for its settings
RUNS: dict[str, tuple[str, str | None, str]] = {
    "teacher/cifar10": ("edm", None, "1.79 at 35 evaluations (EDM's README, with augmentation)"),
    "dmd2/cifar10": ("edm", "teacher/cifar10", "2.13 published, 1.99 re-run, at one (FastGen's README)"),
    "consistency/cifar10": ("edm", "teacher/cifar10", "3.60 at one (ECT, arXiv 2406.14548)"),
    "flow_map/cifar10": ("edm", "teacher/cifar10", "2.92 at one, from scratch and by the derivative (arXiv 2505.13447)"),
    "teacher/cifar10_small": ("small", None, "nothing"),
    "dmd2/cifar10_small": ("small", "teacher/cifar10_small", "nothing"),
}


def stand_in() -> ImageData:
    """Return blank images of CIFAR-10's shape and classes."""
    pixels, label = torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10
    return ImageData("cifar10", pixels, pixels, label, label, 127.5, tuple(map(str, range(10))))


def counted(recipe: str, teacher: Path | None) -> dict[str, Any]:
    """Return the images and steps of `recipe` as it is shipped, and the operations of a training step for one image."""
    settings, data = load_recipe(recipe, () if teacher is None else (f"method.teacher={teacher}",)), stand_in()
    costs = measure(make_method(settings, data), data.shape, data.num_classes, settings.steps, settings.batch_size)
    return {"images": settings.steps * settings.batch_size, "steps": settings.steps, "flops_per_image": costs.step}


def main() -> None:
    """Count every recipe, print and write the results."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        taught: dict[str, Path] = {}
        for recipe, (network, teacher, published) in RUNS.items():
            if teacher is not None and teacher not in taught:
                made = make_method(load_recipe(teacher), stand_in())
                taught[teacher] = Path(folder) / teacher.replace("/", "_")
                RunFolder(taught[teacher]).save_model(made.ship(made.networks["denoiser"], 0), taught[teacher])
            row = counted(recipe, taught[teacher] if teacher else None)
            rows.append({"recipe": recipe, "network": network, "published": published, **row})
            at = hours(row["images"], row["flops_per_image"], assumed_tflops())
            print(f"{recipe:22} {row['images']:12,} images, {row['flops_per_image']:.3g} FLOP each, {at:6.1f} h assumed")
    RESULTS.write_text(json.dumps({"command": "python benchmarks/gpu_outlook.py", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
