"""Does the loader keep up with training, how long does reading a data set take, and how much memory?

    python benchmarks/loader.py [--repeats 5]

Batches: the time of one batch of the loop (indices, bytes, flip, floats on the device) against that of one training step of the
64-128-256-512 U-Net of teacher/photos on 32x32 images, batch 128; the two alternate in one process. Reading: a set of CIFAR-10's size with
random pixels, as the official binary files and their archive, as PNGs in parquet, and as a folder of PNGs; each in a process of its own,
which has read a small set of the same kind before, and with a cache of `datasets` that is empty. Seconds, and the growth of resident
memory at its peak over the bytes of the pixels. Random pixels are the worst case: PNG cannot compress them. Writes results/loader.json
(with the GPU's name where there is one).
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image

from fewstep.build import make_method
from fewstep.data import ImageData, cifar10, image_folder
from fewstep.data.cifar import CLASSES, META, RECORDS, TEST, TRAIN, cifar10_of
from fewstep.evaluation import machine
from fewstep.recipe import load_recipe
from fewstep.run import choose_threads
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder
from measuring import peak_mib, timed

RESULTS = Path(__file__).parent / "results"
SEED, NUM, SMALL, BATCH = 0, 50_000, 200, 128
KINDS = ("binary", "archive", "parquet", "folder")


def batches(repeats: int) -> dict:
    """Times of a training step and of the batch in it."""
    load = os.getloadavg()[0]  # what else the machine does slows the step, and flatters the loader
    rng = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (NUM, 3, 32, 32), dtype=torch.uint8, generator=rng)
    label = torch.arange(NUM) % 10
    data = ImageData("random", images, images[:64], label, label[:64], 127.5, tuple(map(str, range(10))), flip=True)
    recipe = load_recipe("teacher/photos", [f"batch_size={BATCH}"])
    method = make_method(recipe, data)
    fabric = Fabric(accelerator="auto", devices=1)
    if fabric.device.type == "cpu":
        torch.set_num_threads(choose_threads("auto", method.networks["denoiser"], data.shape))
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(method, data, fabric, RunFolder(Path(folder)), LoopSettings(steps=10**6, batch_size=BATCH))
        draws = torch.Generator(fabric.device).manual_seed(SEED)
        step = iter(range(1, 10**6))  # the first epoch is shuffled before the clock starts

        def batch() -> None:
            data.batch(loop.indices(next(step)), draws, fabric.device)

        for call in (loop.advance, batch) * 2:
            call()
        times = [(timed(loop.advance), statistics.median(timed(batch) for _ in range(9))) for _ in range(repeats)]
    step_ms, batch_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return {
        "network": "unet 64-128-256-512",
        "batch": BATCH,
        "load": round(load, 1),
        "shape": [3, 32, 32],
        "n": NUM,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "step_ms": step_ms,
        "batch_ms": batch_ms,
        "batches_per_step": statistics.median(a / b for a, b in times),
    }


def write_binary(folder: Path, rng: np.random.Generator) -> None:
    """CIFAR-10's files with random bytes in them."""
    folder.mkdir()
    for name in (*TRAIN, TEST):
        records = rng.integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
        records[:, 0] %= CLASSES
        records.tofile(folder / name)
    (folder / META).write_text("\n".join(f"class{k}" for k in range(CLASSES)) + "\n\n")


def png(rng: np.random.Generator) -> bytes:
    """A random image."""
    content = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def write_parquet(file: Path, num: int, rng: np.random.Generator) -> None:
    """PNGs and labels in the columns that CIFAR-10 has on the Hub, through `datasets`."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=[f"class{k}" for k in range(CLASSES)])})
    columns = {"img": [{"bytes": png(rng), "path": None} for _ in range(num)], "label": [k % CLASSES for k in range(num)]}
    datasets.Dataset.from_dict(columns, features).to_parquet(file)


def write_folder(folder: Path, num: int, rng: np.random.Generator) -> None:
    """PNGs in a sub-folder a class."""
    for k in range(num):
        file = folder / f"class{k % CLASSES}" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(rng))


def prepare(root: Path) -> None:
    """All data sets, large and small."""
    rng = np.random.default_rng(SEED)
    write_binary(root / "binary", rng)
    (root / "archive").mkdir()
    with tarfile.open(root / "archive" / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(root / "binary", "cifar-10-batches-bin")
    with (root / "archive" / "cifar-10-binary.tar.gz").open("rb") as content:
        (root / "md5").write_text(hashlib.file_digest(content, "md5").hexdigest())
    for size, num in (("large", NUM), ("small", SMALL)):
        write_parquet(root / f"{size}.parquet", num, rng)
        write_folder(root / f"{size}_folder", num, rng)


def read(root: Path, kind: str, size: str) -> ImageData:
    """One of them."""
    if kind == "archive":
        return cifar10_of(str(root / "archive"), md5=(root / "md5").read_text())
    if kind == "binary":
        return cifar10(str(root / "binary"))
    return image_folder(str(root / (f"{size}.parquet" if kind == "parquet" else f"{size}_folder")), 32, resize="none")


def reading(root: Path, kind: str) -> dict:
    """Seconds and memory of reading one set, in this process."""
    if kind in ("parquet", "folder"):
        read(root, kind, "small")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = peak_mib(), time.perf_counter()
    data = read(root, kind, "large")
    seconds = time.perf_counter() - began
    grown, pixels = peak_mib() - before, (data.train.numel() + data.heldout.numel()) / 2**20
    num = len(data.train) + len(data.heldout)
    return {"kind": kind, "n": num, "seconds": seconds, "pixels_mib": pixels, "grown_mib": grown, "memory_over_pixels": grown / pixels}


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--read", nargs=2, metavar=("ROOT", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(reading(Path(arguments.read[0]), arguments.read[1])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        print(f"{'data':8} {'images':>7} {'seconds':>8} {'MiB':>6} {'of pixels':>9} {'ratio':>6}")
        for kind in KINDS:
            command = [sys.executable, __file__, "--read", folder, kind]
            environment = {"HF_HOME": f"{folder}/cache", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
            ended = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
            row = json.loads(ended.stdout.splitlines()[-1])
            rows.append(row)
            print(
                f"{kind:8} {row['n']:7} {row['seconds']:8.2f} {row['grown_mib']:6.0f} {row['pixels_mib']:9.0f} "
                f"{row['memory_over_pixels']:6.3f}",
                flush=True,
            )
    row = batches(arguments.repeats)
    print(f"a step {row['step_ms']:.1f} ms, its batch {row['batch_ms']:.3f} ms: {row['batches_per_step']:.0f} batches a step")
    place = f"_{torch.cuda.get_device_name().replace(' ', '_')}" if torch.cuda.is_available() else ""
    command_line = f"python benchmarks/loader.py --repeats {arguments.repeats}"
    content = {"command": command_line, "machine": machine(), "seed": SEED, "batches": row, "reading": rows}
    (RESULTS / f"loader{place}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
