"""Measure whether the loader keeps up with training, and the time and memory that reading a data set takes.

    python benchmarks/loader.py [--repeats 5] [--parts reading batches own]

Batches: the time of one batch of the loop (indices, bytes, flip, floats on the device) against that of one training step of the
64-128-256-512 U-Net of teacher/photos on 32x32 images, batch 128; the two alternate in one process.

Reading: seconds, and the peak growth of resident memory over the bytes of the pixels, for a set of CIFAR-10's size with random pixels, as
the official binary files and their archive, as PNGs in parquet, and as a folder of PNGs. Each set is read in a process of its own, which
has read a small set of the same kind before, with an empty cache of `datasets`. Random pixels are the worst case: PNG cannot compress them.

Own: data sets of the user's own. The time of a batch of 128 from the same bytes as `ImageData` and as a map-style data set, in turns;
images a second of a stream of parquet shards, by the number of workers; and the peak private memory (RssAnon) of the process and its
workers in 400 training steps of a network of one layer, on memory-mapped sets of 20,000 and of 200,000 images, for which it has to be the
same.

Writes the parts that are asked for to results/loader.json (with the GPU's name where there is one).
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
from fewstep.data.own import item_data
from fewstep.data.stream import image_stream
from fewstep.engine import choose_threads
from fewstep.machine import machine
from fewstep.recipe import load_recipe
from fewstep.training.loading import Dealt, make_batches
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder
from measuring import peak_mib, timed

RESULTS = Path(__file__).parent / "results"
SEED, NUM, SMALL, BATCH = 0, 50_000, 200, 128
PARTS = ("reading", "batches", "own")
KINDS = ("binary", "archive", "parquet", "folder")


def batches(repeats: int) -> dict:
    """Return the times of a training step and of the batch that it takes."""
    load = os.getloadavg()[0]  # other work on the machine slows the step, and flatters the loader
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
            data.batch(loop.state.batches.indices(next(step)), draws, fabric.device)

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
    """Write CIFAR-10's binary files, with random bytes in them, to `folder`."""
    folder.mkdir()
    for name in (*TRAIN, TEST):
        records = rng.integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
        records[:, 0] %= CLASSES
        records.tofile(folder / name)
    (folder / META).write_text("\n".join(f"class{k}" for k in range(CLASSES)) + "\n\n")


def png(rng: np.random.Generator) -> bytes:
    """Return a random 32x32 image as PNG."""
    content = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def write_parquet(file: Path, num: int, rng: np.random.Generator) -> None:
    """Write `num` PNGs and labels in the columns that CIFAR-10 has on the Hub, through `datasets`."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=[f"class{k}" for k in range(CLASSES)])})
    columns = {"img": [{"bytes": png(rng), "path": None} for _ in range(num)], "label": [k % CLASSES for k in range(num)]}
    datasets.Dataset.from_dict(columns, features).to_parquet(file)


def write_folder(folder: Path, num: int, rng: np.random.Generator) -> None:
    """Write `num` PNGs to `folder`, a sub-folder a class."""
    for k in range(num):
        file = folder / f"class{k % CLASSES}" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(rng))


def prepare(root: Path) -> None:
    """Write all data sets, large and small, below `root`."""
    rng = np.random.default_rng(SEED)
    write_binary(root / "binary", rng)
    (root / "archive").mkdir()
    with tarfile.open(root / "archive" / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(root / "binary", "cifar-10-batches-bin")
    (root / "md5").write_text(hashlib.md5((root / "archive" / "cifar-10-binary.tar.gz").read_bytes()).hexdigest())
    for size, num in (("large", NUM), ("small", SMALL)):
        write_parquet(root / f"{size}.parquet", num, rng)
        write_folder(root / f"{size}_folder", num, rng)


def read(root: Path, kind: str, size: str) -> ImageData:
    """Return the data set of this kind and size that `prepare` has written below `root`."""
    if kind == "archive":
        return cifar10_of(str(root / "archive"), md5=(root / "md5").read_text())
    if kind == "binary":
        return cifar10(str(root / "binary"))
    return image_folder(str(root / (f"{size}.parquet" if kind == "parquet" else f"{size}_folder")), 32, resize="none")


def reading(root: Path, kind: str) -> dict:
    """Return seconds and memory of reading one set, in this process."""
    if kind in ("parquet", "folder"):
        read(root, kind, "small")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory
    before, began = peak_mib(), time.perf_counter()
    data = read(root, kind, "large")
    seconds = time.perf_counter() - began
    grown, pixels = peak_mib() - before, (data.train.numel() + data.heldout.numel()) / 2**20
    num = len(data.train) + len(data.heldout)
    return {"kind": kind, "n": num, "seconds": seconds, "pixels_mib": pixels, "grown_mib": grown, "memory_over_pixels": grown / pixels}


class Mapped(torch.utils.data.Dataset):
    """A map-style data set of images in a memory-mapped file, as a user would write it."""

    num_classes = 10

    def __init__(self, file: str, num: int) -> None:
        self.pixels = np.memmap(file, np.uint8, "r", shape=(num, 3, 32, 32))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.pixels[k].copy()), k % 10


def own_batches(repeats: int) -> list[dict]:
    """Return the time of a batch of the same images: held in memory, and fetched item by item without and with workers."""
    rng = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (NUM, 3, 32, 32), dtype=torch.uint8, generator=rng)
    label = torch.arange(NUM) % 10
    memory = ImageData("random", images, images[:64], label, label[:64], 127.5, tuple(map(str, range(10))))
    foreign = item_data(torch.utils.data.TensorDataset(images, label), "random", num_classes=10)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds = {"in memory": (memory, 0), "by number": (foreign, 0), "by number, 1 worker": (foreign, 1), "by number, 2 workers": (foreign, 2)}
    made = {
        name: make_batches(data, Dealt(BATCH, SEED, workers=workers), torch.Generator(device).manual_seed(SEED), device)
        for name, (data, workers) in kinds.items()
    }
    times: dict[str, list[float]] = {name: [] for name in made}
    for number in range(1 + repeats):
        for name, batches in made.items():  # workers read ahead: 40 batches are timed together, so that they have to keep up
            first = 40 * number
            seconds = timed(lambda batches=batches, first=first: [batches(step) for step in range(first, first + 40)])
            if number:
                times[name].append(seconds / 40)
    for batches in made.values():
        batches.close()
    median = {name: statistics.median(row) for name, row in times.items()}
    return [{"kind": name, "batch_ms": 1e3 * one, "over_in_memory": one / median["in memory"]} for name, one in median.items()]


def streamed(repeats: int) -> list[dict]:
    """Return images a second of a stream of four parquet shards of PNGs, and the time to resume it, by the number of workers."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(SEED)
        for shard in range(4):
            write_parquet(Path(folder) / f"{shard}.parquet", 2_500, rng)
        for workers in (0, 1, 2):
            data = image_stream(f"{folder}/*.parquet", 32, resize="none", heldout_items=500)
            batches = make_batches(data, Dealt(BATCH, SEED, workers=workers), torch.Generator(), torch.device("cpu"))
            batches(0)
            seconds = [timed(lambda batches=batches: [batches(step) for step in range(30)]) for _ in range(repeats)]
            batches.close()
            began = time.perf_counter()
            again = make_batches(data, Dealt(BATCH, SEED, workers=workers), torch.Generator(), torch.device("cpu"))
            again.load_state_dict([batches.state_dict()])
            again(0)
            resumed = time.perf_counter() - began
            again.close()
            rate = 30 * BATCH / statistics.median(seconds)
            rows.append(
                {
                    "workers": workers,
                    "images_per_second": rate,
                    "seconds_to_go_on": resumed,
                    "state_bytes": len(json.dumps(batches.state_dict())),
                }
            )
    return rows


def private_mib(pids: list[int]) -> float:
    """Return the current private memory in MiB of the processes `pids`, which leaves out a memory-mapped file's page cache."""
    found = 0
    for pid in pids:
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon"))
        found += int(line.split()[1])
    return found / 2**10


def mapped(num: int, workers: int) -> dict:
    """Return the peak private memory of 400 steps on a memory-mapped set of `num` images, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/pixels"
        pixels = np.memmap(file, np.uint8, "w+", shape=(num, 3, 32, 32))
        for first in range(0, num, 10_000):
            pixels[first : first + 10_000] = np.random.default_rng(first).integers(
                0, 256, (len(pixels[first : first + 10_000]), 3, 32, 32), np.uint8
            )
        pixels.flush()
        del pixels
        data = item_data(Mapped(file, num), "mapped")
        batches = make_batches(data, Dealt(BATCH, SEED, workers=workers), torch.Generator().manual_seed(SEED), torch.device("cpu"))
        network = torch.nn.Conv2d(3, 3, 3, padding=1)
        optimizer = torch.optim.AdamW(network.parameters())
        peak, began = 0.0, time.perf_counter()
        for step in range(400):
            (batch,) = batches(step)
            loss = (network(batch.x) - batch.x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 9:
                peak = max(peak, private_mib([os.getpid(), *(worker.pid for worker in getattr(batches.iterator, "_workers", ()))]))
        seconds = time.perf_counter() - began
        batches.close()
        size = os.path.getsize(file) / 2**20
    return {"n": num, "workers": workers, "file_mib": size, "private_peak_mib": peak, "images_per_second": 400 * BATCH / seconds}


def own(repeats: int) -> dict:
    """Measure the part "own", print its tables and return the results."""
    batches, streams, sets = own_batches(repeats), streamed(repeats), []
    for row in batches:
        print(f"{row['kind']:22} {row['batch_ms']:7.3f} ms a batch, {row['over_in_memory']:5.1f} times that in memory")
    for row in streams:
        print(
            f"stream, {row['workers']} workers: {row['images_per_second']:,.0f} images/s; going on {row['seconds_to_go_on']:.2f} s, "
            f"state {row['state_bytes']} bytes"
        )
    for num in (20_000, 200_000):
        for workers in (0, 2):
            command = [sys.executable, __file__, "--mapped", str(num), str(workers)]
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            sets.append(row := json.loads(ended.stdout.splitlines()[-1]))
            print(
                f"memory-mapped, {num:7,} images ({row['file_mib']:.0f} MiB), {workers} workers: private memory at most "
                f"{row['private_peak_mib']:.0f} MiB, {row['images_per_second']:,.0f} images/s"
            )
    return {"load": round(os.getloadavg()[0], 1), "batches": batches, "streams": streams, "mapped": sets}


def all_readings() -> list[dict]:
    """Read every kind of set in a process of its own, print a table and return its rows."""
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
    return rows


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--read", nargs=2, metavar=("ROOT", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--mapped", nargs=2, type=int, metavar=("NUM", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(reading(Path(arguments.read[0]), arguments.read[1])))
        return
    if arguments.mapped:
        print(json.dumps(mapped(*arguments.mapped)))
        return
    place = f"_{torch.cuda.get_device_name().replace(' ', '_')}" if torch.cuda.is_available() else ""
    file = RESULTS / f"loader{place}.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    command_line = " ".join(["python benchmarks/loader.py", *sys.argv[1:]])
    about = {"command": command_line, "machine": machine(), "seed": SEED}
    if "reading" in arguments.parts:
        content["reading"] = all_readings()
    if "batches" in arguments.parts:
        content["batches"] = row = batches(arguments.repeats)
        print(f"a step {row['step_ms']:.1f} ms, its batch {row['batch_ms']:.3f} ms: {row['batches_per_step']:.0f} batches a step")
    if "own" in arguments.parts:
        content["own"] = {**about, **own(arguments.repeats)}
    if set(arguments.parts) >= {"reading", "batches"}:
        content |= about
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
