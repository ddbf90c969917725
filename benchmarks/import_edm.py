"""Measure what it takes to import, sample and distil a full-size EDM network of CIFAR-10 on this machine.

    python benchmarks/import_edm.py [--folder runs/import_edm]

Writes a file in the official layout with the names and shapes of the published conditional VP network (55.7 million parameters) and
random weights: no published file is needed, and none is loaded. Then runs through the command line, each in a process of its own: the
import, 4 images in 18 steps of Heun's method, 2 steps of dmd2 with batch 2, where student, teacher and fake network are of full size, and 4
images of the student. Prints time and peak memory of each and writes results/import_edm.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fewstep.machine import machine
from fewstep.networks.edm_unet import EDMUNet

TESTS = Path(__file__).parents[1] / "tests" / "interop"
sys.path.insert(0, str(TESTS))
from official_edm import official_arguments, official_bytes, official_content, official_network, scattered  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "import_edm.json"
MIB = 2**20
# runs the command line, then prints the peak memory of the process
WITH_PEAK = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from measuring import peak_mib
from fewstep.cli import main
try:
    main()
finally:
    print(f"peak_mib {peak_mib()}", file=sys.stderr)
"""


def write_file(path: Path) -> dict:
    """Write a full-size conditional VP network with random weights to `path`, in the official layout; return its size and tensor count."""
    with torch.device("meta"):
        shapes = EDMUNet((3, 32, 32), 10).state_dict()
    weights = scattered(shapes)
    path.write_bytes(official_bytes(official_content(official_network(weights, official_arguments()))))
    return {"bytes": path.stat().st_size, "tensors": len(weights)}


def measured(*arguments: object) -> dict:
    """Return seconds, processor seconds of all threads and peak memory of ``fewstep ARGUMENTS`` in a process of its own, start included."""
    began, busy = time.perf_counter(), processor_seconds()
    whole = [sys.executable, "-c", WITH_PEAK, str(Path(__file__).parent), *map(str, arguments)]
    done = subprocess.run(whole, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=False)
    seconds, busy = time.perf_counter() - began, processor_seconds() - busy
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = next(line for line in reversed(done.stderr.splitlines()) if line.startswith("peak_mib"))
    return {"seconds": round(seconds, 1), "cpu_seconds": round(busy, 1), "peak_mib": round(float(peak.split()[1]))}


def processor_seconds() -> float:
    """Return the processor time of all child processes that have ended; on a busy machine it says more than wall time."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder below which a temporary one is made; default the system's")
    chosen = parser.parse_args().folder
    with tempfile.TemporaryDirectory(dir=chosen) as temporary:
        folder = Path(temporary)
        file, teacher = folder / "edm-cifar10-32x32-cond-vp.pkl", folder / "teacher"
        held = write_file(file)
        distillation = recipe(folder, random_images(folder / "images"), teacher)
        rows = {
            # the second import, since the first also reads code and libraries from the disk
            "import": [measured("import", file, "--out", folder / name) for name in ("first", "teacher")][1],
            "4 images in 18 steps": measured("sample", teacher, "-n", 4, "--seed", 0, "--out", folder / "samples.png"),
            "2 steps of dmd2, batch 2": measured("train", distillation, "--out", folder / "run"),
            "4 images of the student": measured("sample", folder / "run", "-n", 4, "--seed", 0, "--out", folder / "student.png"),
        }
    print(f"{held['tensors']} tensors, {held['bytes'] / MIB:.0f} MiB")
    for what, row in rows.items():
        print(f"{what:26} {row['seconds']:7.1f} s ({row['cpu_seconds']:.1f} s of processor time) {row['peak_mib']:7,} MiB")
    results = {
        "command": "python benchmarks/import_edm.py",
        "machine": machine(),
        "file": held,
        "load_at_end": os.getloadavg()[0],
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def random_images(folder: Path) -> Path:
    """Write four images of noise for each of ten classes; their content does not change what a step costs."""
    from PIL import Image

    rng = torch.Generator().manual_seed(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number in range(4):
            pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=rng).numpy()
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


def recipe(folder: Path, images: Path, teacher: Path) -> Path:
    """Write a recipe for two steps of dmd2, with the method's default settings, on a folder of images, and return its path."""
    path = folder / "recipe.yaml"
    sections = {
        "about": "A full-size EDM teacher distilled for two steps.",
        "method": {"name": "dmd2", "teacher": str(teacher)},
        "data": {"name": "images", "path": str(images), "size": 32, "holdout": 0.25},
        "network": {"name": "teacher", "sigma_data": 0.5},
        "trainer": {"accelerator": "cpu", "sample_every": 2},
        "seed": 0,
        "steps": 2,
        "batch_size": 2,
    }
    path.write_text(json.dumps(sections))  # JSON is YAML, too
    return path


if __name__ == "__main__":
    main()
