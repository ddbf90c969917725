"""Measure the one-step throughput of an ONNX export in onnxruntime beside the same generator in torch, on the CPU.

    python benchmarks/export_speed.py                      about 5 minutes on an otherwise idle machine
    python benchmarks/export_speed.py --networks digits

Both make samples from the same noise, in one process, in turns; torch runs the generator's own sampler under no_grad, as
Generator.sample does. Reported are median throughputs, and the median ratio of neighbouring calls (above 1: onnxruntime is faster).
Weights are random, which does not affect the time. Writes results/export_speed.json.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

from fewstep.build import load_data, make_method
from fewstep.generator import Generator
from fewstep.interop.export_onnx import FILE, write_onnx
from fewstep.machine import machine
from fewstep.networks.base import num_parameters
from fewstep.recipe import load_recipe
from fewstep.samplers import few_step
from measuring import timed

RESULTS = Path(__file__).parent / "results"
SAMPLER = {"name": "few_step", "sigmas": [80.0]}
BATCHES = {"digits": (1, 64, 256), "unet32": (1, 16)}


def generator(name: str) -> Generator:
    """Return the digits student's network, or the 64-128-256-512 U-Net of 32x32 colour images, with random weights of which none is 0."""
    torch.manual_seed(0)
    if name == "digits":
        recipe = load_recipe("teacher/digits", [])
        teacher = make_method(recipe, load_data(recipe.data)).generator
        made = teacher.derive(SAMPLER, {})
    else:
        made = Generator((3, 32, 32), 10, 0.5, {"name": "unet", "channels": [64, 128, 256, 512]}, SAMPLER)
    for weight in made.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return made.eval()


def rows(name: str, threads: list[int], repeats: int) -> list[dict[str, float | str]]:
    """Return images per second of torch and of onnxruntime for the network `name`, at each number of threads and batch size."""
    made = generator(name)
    sigmas = made.sigmas()
    found: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(made, Path(folder))
        for count in threads:
            torch.set_num_threads(count)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = count
            session = onnxruntime.InferenceSession(Path(folder) / FILE, options, providers=["CPUExecutionProvider"])
            for batch in BATCHES[name]:
                rng = torch.Generator().manual_seed(0)
                latents, labels = torch.randn(batch, *made.shape, generator=rng), torch.arange(batch) % 10
                inputs = {"latents": latents.numpy(), "labels": labels.numpy()}

                @torch.no_grad()
                def in_torch(latents: torch.Tensor = latents, labels: torch.Tensor = labels) -> object:
                    return few_step(made.denoiser, latents, sigmas, labels).clamp_(-1, 1)

                def in_onnx(inputs: dict = inputs, session: onnxruntime.InferenceSession = session) -> object:
                    return session.run(["samples"], inputs)

                calls: dict[str, Callable[[], object]] = {"torch": in_torch, "onnxruntime": in_onnx}
                difference = abs(in_torch().numpy() - in_onnx()[0]).max().item()
                times: dict[str, list[float]] = {key: [] for key in calls}
                for call in calls.values():
                    call()
                for _ in range(repeats if name == "unet32" else 5 * repeats):
                    for key, call in calls.items():
                        times[key].append(timed(call))
                row: dict[str, float | str] = {"network": name, "parameters": num_parameters(made), "threads": count, "batch": batch}
                row |= {f"{key}_images_per_second": batch / statistics.median(values) for key, values in times.items()}
                row["onnxruntime_over_torch"] = statistics.median(a / b for a, b in zip(times["torch"], times["onnxruntime"], strict=True))
                row |= {"repeats": len(times["torch"]), "difference": difference}
                found.append(row)
                print(
                    {key: round(value, 2) if isinstance(value, float) and value > 0.01 else value for key, value in row.items()}, flush=True
                )
    return found


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=tuple(BATCHES), default=list(BATCHES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    measured = [row for name in arguments.networks for row in rows(name, arguments.threads, arguments.repeats)]
    content = {
        "command": "python benchmarks/export_speed.py",
        "machine": machine() | {"threads": arguments.threads, "onnxruntime": onnxruntime.__version__},
        "rows": measured,
    }
    (RESULTS / "export_speed.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
