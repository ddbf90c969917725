"""Tables of what `gpu.py` has measured and of the cost of published figures; `tables.py` puts them into docs/cifar10.md."""

import json
from pathlib import Path
from typing import Any

from gpu_peaks import PEAKS

FOLDER = Path(__file__).parent / "results"
ASSUMED_GPU, ASSUMED_SHARE = "NVIDIA H100 80GB HBM3", 0.4
NOTHING = "Nothing has been measured on a GPU yet: `python benchmarks/gpu.py` on a machine with one fills this in."


def results(folder: Path = FOLDER) -> dict[str, Any]:
    """Return the results of `gpu.py`, without any piece if it has not been run."""
    file = folder / "gpu.json"
    return json.loads(file.read_text()) if file.exists() else {"pieces": {}}


def rows_of(found: dict[str, Any], piece: str) -> list[dict[str, Any]]:
    """Return the rows of `piece` in the results `found`."""
    rows: list[dict[str, Any]] = found["pieces"].get(piece, {}).get("rows", [])
    return rows


def hours(images: float, flops_per_image: float, tflops: float) -> float:
    """Return the hours that a GPU takes for `images` training images at `tflops` 10^12 operations a second."""
    return images * flops_per_image / (tflops * 1e12) / 3600


def assumed_tflops() -> float:
    """Return the assumed TFLOP/s: `ASSUMED_SHARE` of the bf16 peak of `ASSUMED_GPU`."""
    peak = PEAKS[ASSUMED_GPU].bf16
    assert peak is not None
    return ASSUMED_SHARE * peak


def measured_tflops(found: dict[str, Any], network: str) -> dict[str, float]:
    """Return, by GPU, the TFLOP/s of the fastest bf16 step of `network` in the results of `gpu.py`; empty for tiny results or none."""
    rows = rows_of(found, f"steps_{network}") if not found.get("tiny") else []
    rates: dict[str, float] = {}
    for row in rows:
        if row["precision"] == "bf16" and "tflops" in row:
            rates[row["device"]] = max(rates.get(row["device"], 0.0), row["tflops"])
    return rates


def devices(found: dict[str, Any]) -> str:
    """Return the GPUs on which pieces have run, with the version of torch, in words."""
    seen = {
        f"{sitting['machine']['accelerator']} (torch {sitting['machine']['torch']})"
        for piece in found["pieces"].values()
        for state in piece["states"].values()
        for sitting in state["sittings"]
    }
    return ", ".join(sorted(seen))


def steps_lines(found: dict[str, Any]) -> list[list[str]]:
    """Return headings, and a line for each GPU, network and precision at the batch with most images a second; empty without results."""
    lines = []
    for network in ("small", "edm", "sdxl"):
        groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
        for row in rows_of(found, f"steps_{network}"):
            if not row.get("begun"):
                groups.setdefault((row["device"], row["precision"], row["compiled"]), []).append(row)
        for (device, precision, compiled), group in groups.items():
            name = f"{network}, {precision}{', compiled' * compiled} ({device})"
            fitting = [row for row in group if "images_per_second" in row]
            if not fitting:
                lines.append([name, "", "", group[0].get("failed", f"out of memory at {group[0]['batch']}"), "", "", "", ""])
                continue
            best = max(fitting, key=lambda row: row["images_per_second"])
            cells = [f"{best['batch']:,}", f"{best['step_ms']:.1f}", f"{best['images_per_second']:,.0f}", f"{best['tflops']:.0f}"]
            cells += ["" if best["share"] is None else f"{best['share']:.0%}", f"{best['peak_mib'] / 1024:.1f} GiB"]
            lines.append([name, *cells, "" if compiled else f"{max(row['batch'] for row in fitting):,}"])
    heads = ["network, precision", "batch", "step, ms", "images/s", "TFLOP/s", "of the peak", "memory", "largest batch"]
    return [heads, *lines] if lines else []


def runs_lines(found: dict[str, Any]) -> list[list[str]]:
    """Return headings, and a line for each measurement that the runs made while they trained; empty if nothing has been trained."""
    lines = []
    for run in ("teacher", "student", "flow_map"):
        for row in rows_of(found, run):
            if "eval.frechet" in row and not row.get("lost"):
                floor = row.get("eval.frechet_over_floor")
                cells = [f"{row['step']:,}", f"{row['images_seen']:,}", f"{row['seconds']:.0f}", f"{row['eval.frechet']:.4g}"]
                lines.append([run, *cells, "" if floor is None else f"{floor:.2f}"])
    return [["run", "steps", "images", "seconds", "FD", "FD / floor"], *lines] if lines else []


def outlook_lines(found: dict[str, Any], outlook: dict[str, Any]) -> list[list[str]]:
    """Return headings, and a line for each recipe: images, operations, and hours at the assumed and at the measured speed."""
    gpus = sorted({gpu for network in ("small", "edm") for gpu in measured_tflops(found, network)})
    heads = ["recipe as shipped", "published FID", "images", "FLOP", f"hours, {ASSUMED_SHARE:.0%} of an H100 (assumed)"]
    heads += [f"hours, {gpu} (measured)" for gpu in gpus] or ["hours, measured"]
    lines = [heads]
    for row in outlook["rows"]:
        images, each = row["images"], row["flops_per_image"]
        rates = measured_tflops(found, row["network"])
        cells = [f"{images / 1e6:,.1f} M", f"{images * each:.1e}", f"{hours(images, each, assumed_tflops()):.1f}"]
        cells += [f"{hours(images, each, rates[gpu]):.1f}" if gpu in rates else "not measured" for gpu in gpus] or ["not measured"]
        lines.append([row["recipe"], row["published"], *cells])
    return lines


def outlook_note() -> str:
    """Return the note that says what the hours are based on."""
    return (
        "`python benchmarks/gpu_outlook.py` counts the operations; a multiplication and its addition are two. Assumed: "
        f"{ASSUMED_SHARE:.0%} of the dense bf16 peak of one {ASSUMED_GPU}, {assumed_tflops():.0f} TFLOP/s; small networks reach less. "
        "Measured: the fastest bf16 step of the recipe's network in the table of steps; what the loop and measuring add is left out."
    )
