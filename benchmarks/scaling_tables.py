"""Tables of the counts of `scaling.py`; `tables.py` puts them into docs/scaling.md."""

from typing import Any

from fewstep.interop.text_teacher import held
from gpu_peaks import PEAKS
from scaling import exchanged, step_flops

NAMES = {"sd15": "SD 1.5", "sdxl": "SDXL"}
SHARE = 0.3  # of a GPU's bf16 peak, that a step is assumed to reach
GPUS = {"A100": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3"}
# title -> network, steps, ratio, whether LoRA adapters of one network learn instead of copies, items a GPU
SETTINGS: dict[str, tuple[str, int, int, bool, int]] = {
    "SD 1.5, one step, copies": ("sd15", 1, 10, False, 32),
    "SD 1.5, one step, LoRA": ("sd15", 1, 10, True, 32),
    "SDXL, four steps, copies": ("sdxl", 4, 5, False, 2),
    "SDXL, four steps, LoRA": ("sdxl", 4, 5, True, 2),
}
LINKS = {"NVLink, 300 GB/s": 300e9, "400 Gb/s a GPU": 50e9, "100 Gb/s for 8": 1.5625e9}


def copies(one: dict[str, float]) -> float:
    """Return the bytes of teacher, student and fake network as copies, with average, moments and gradients, in float32."""
    return 4 * (1 + held(1)) * one["parameters"]


def flops(one: dict[str, float], steps: int, ratio: int, lora: bool) -> float:
    """Return the operations of a training step for one item.

    With `lora`, gradients are needed of activations and adapters, but not of the network's own weights.
    """
    learned = {**one, "both": 2 * one["forward"]} if lora else one
    return step_flops(learned, steps, ratio, guided=True, gan=False)


def tflops(gpu: str) -> float:
    """Return the TFLOP/s that a GPU of `GPUS` is assumed to reach."""
    peak = PEAKS[GPUS[gpu]].bf16
    assert peak is not None
    return SHARE * peak


def network_lines(content: dict[str, Any]) -> list[list[str]]:
    """Return a line for each network: its size, operations and memory."""
    heads = ["network", "parameters", "TFLOP an evaluation", "with gradients", "activations", "computed again", "blocks", "gathered"]
    lines = []
    for name, one in content["networks"].items():
        cells = [f"{one['parameters']:,}", f"{one['forward'] / 1e12:.2f}", f"{one['both'] / 1e12:.2f}"]
        cells += [f"{one[key] / 1e9:.1f} GB" for key in ("activations", "recomputed")]
        lines.append([NAMES[name], *cells, f"{one['blocks']}", f"{one['gathered'] / 1e9:.1f} GB"])
    return [heads, *lines]


def memory_lines(content: dict[str, Any]) -> list[list[str]]:
    """Return a line for each network, as copies and as LoRA: memory of a GPU without activations, in one process and sharded."""
    lines = []
    for name, one in content["networks"].items():
        kinds = (("copies", copies(one), one["gathered"]), ("LoRA", one["lora"], one["gathered"] / 2))
        for kind, whole, gathered in kinds:
            cells = [f"{(whole / count + gathered) / 1e9:.1f} GB" for count in (8, 64, 640)]
            lines.append([f"{NAMES[name]}, {kind}", f"{whole / 1e9:.1f} GB", *cells])
    return [["one step, or one fake network", "one process", "fsdp on 8", "on 64", "on 640"], *lines]


def speed_lines(content: dict[str, Any]) -> list[list[str]]:
    """Return a line for each setting: images a second, and what is gathered from other GPUs in a step."""
    lines = []
    for title, (name, steps, ratio, lora, items) in SETTINGS.items():
        one = content["networks"][name]
        each = flops(one, steps, ratio, lora)
        sent = exchanged(one, steps, ratio, 2 if lora else 4)
        seconds = items * each / (tflops("A100") * 1e12)
        rates = [f"{tflops(gpu) * 1e12 / each:.1f}" for gpu in GPUS]
        lines.append([title, f"{each / 1e12:.1f}", *rates, f"{items}", f"{seconds:.2g} s", f"{sent / 1e9:.0f} GB"])
        lines[-1] += [f"{sent / rate:.2g} s" for rate in LINKS.values()]
    heads = ["", "TFLOP an image", *(f"images/s, {gpu}" for gpu in GPUS), "images a GPU", "a step, A100", "gathered a step", *LINKS]
    return [heads, *lines]


def published_lines(content: dict[str, Any]) -> list[list[str]]:
    """Return a line for each published run: the utilization that its hours imply, and its hours at the assumed utilization."""
    peak = PEAKS[GPUS["A100"]].bf16
    assert peak is not None
    lines = []
    for title, run in content["runs"].items():
        used = run["rate"] / 1e12
        assumed = run["hours"] * used / tflops("A100")
        cells = [f"{run['gpus']}", f"{run['batch']:,}", f"{run['iterations']:,}", f"{run['hours']:g}", f"{run['flops'] / 1e12:.1f}"]
        lines.append([title, *cells, f"{used:.0f}", f"{used / peak:.0%}", f"{assumed:.0f}"])
    heads = ["", "GPUs", "batch", "iterations", "hours", "TFLOP an image", "TFLOP/s a GPU", "of an A100", f"hours at {SHARE:.0%}"]
    return [heads, *lines]
