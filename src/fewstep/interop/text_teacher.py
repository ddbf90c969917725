"""A text-to-image pipeline of diffusers as a teacher: its network is read from the pipeline's folder, and not copied into a run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fewstep import hub
from fewstep.data.prompt_table import PromptTable
from fewstep.errors import UserError
from fewstep.files import check_free, whole_folder
from fewstep.generator import Generator, standing_on
from fewstep.licences import licence_in
from fewstep.networks.base import num_parameters
from fewstep.pipelines.denoiser import Described, described, network_folder, read_denoiser, weights_id
from fewstep.pipelines.folder import ENCODERS, FORMS, NETWORKS, absent_parts, encoders_id
from fewstep.pipelines.lora import RANK, TARGETS
from fewstep.pipelines.reference import Base
from fewstep.pipelines.scheduler import scheduler_of
from fewstep.pipelines.vae import vae_id
from fewstep.quantities import short
from fewstep.text import read_json

# (steps, guidance scale) that stock pipelines use by default: of diffusion models, and of flow-matching models
STOCK, STOCK_FLOW = (50, 7.5), (28, 7.0)


def is_text_pipeline(path: str | Path) -> bool:
    """Return whether `path` is the folder or Hub id of a text-to-image pipeline."""
    folder = Path(path)
    if not folder.exists() and hub.is_model(str(path)):
        try:
            folder = hub.fetched(str(path), str(path), ["model_index.json"])
        except UserError:  # reported by whoever reads the model next
            return False
    try:
        index = read_json(folder / "model_index.json")
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and index.get("_class_name") in FORMS


def text_teacher(model: str, sigma_data: float = 1.0, prompts: PromptTable | None = None) -> Generator:
    """Return the network of the pipeline `model`, a folder or a Hub id, as a generator of latents, with `prompts` if they are given.

    A model folder that this generator is saved to names the pipeline and holds no weights. `sigma_data` weighs the losses of a student.
    Raises UserError as `fewstep.pipelines.denoiser.described` does, and for a pipeline without a VAE.
    """
    folder = network_folder(model)
    found = described(folder)
    denoiser = read_denoiser(found, prompts, sigma_data)
    where = str(Path(model).resolve()) if Path(model).is_dir() else model
    info = {"method": "teacher", "imported_from": where, "label_dropout": True, "encoders": encoders_id(folder)}
    if (licence := licence_in(folder)) is not None:
        info["licence"] = licence
    arguments = {
        "shape": list(found.shape),
        "num_classes": len(prompts) if prompts else 1,
        "sigma_data": sigma_data,
        "network": found.network,
        "denoiser": found.denoiser,
        "sampler": _sampler(found, denoiser),
        "info": info,
        "latents": {"model": where, "vae": vae_id(where)},
        "base": Base(where, weights_id(folder)).config,
    }
    generator = standing_on(denoiser, arguments)
    return generator if prompts is None else generator.tell(prompts)


def import_text(model: str, out: Path, sigma_data: float) -> list[str]:
    """Write the model folder `out`, which names the pipeline `model`, whole or not at all; return lines that describe the pipeline.

    Raises UserError as `text_teacher` does, for a folder `out` that is not empty, and for a `sigma_data` that is not above 0.
    """
    check_free(out)
    if not 0 < sigma_data < math.inf:
        raise UserError(f"--sigma-data is {sigma_data}; give a number above 0")
    generator = text_teacher(model, sigma_data)
    with whole_folder(out) as folder:
        generator.save_pretrained(folder)
    place = network_folder(model)
    found, denoiser = described(place), generator.denoiser
    parameters, index = num_parameters(denoiser), read_json(place / "model_index.json")
    parts = [name for name in (*ENCODERS, "vae") if isinstance(index.get(name), list) and index[name][0] is not None]
    absent = [part for part in absent_parts(place) if part in ENCODERS]
    width, pooled = generator.told.takes
    sizes = f" and sizes {ids}" if (ids := found.network.get("time_ids")) else ""
    told = f"hidden states of width {width}" + (f"{' and' if not sizes else ','} a pooled vector of {pooled}{sizes}" if pooled else "")
    called, targets = NETWORKS[found.part], TARGETS[found.network["name"]]
    return [
        f"found: {found.kind} of {', '.join([found.part, *parts])}; the {called} has {parameters:,} parameters and predicts "
        f"{_prediction(found)}",
        *(f"there is no {part}: zeros stand for its output, as in the stock pipeline" for part in absent),
        _levels(found, denoiser),
        _sampled(generator, scheduler_of(place, place / found.part)[0]),
        f"latents: {'x'.join(map(str, found.shape))}; the {called} takes {told}",
        "memory for weights, gradients, AdamW's moments and the moving average: a one-step student takes "
        f"{short(lora_bytes(denoiser, targets), 'B')} as LoRA of rank {RANK} in bf16-mixed, {short(4 * (1 + held(1)) * parameters, 'B')} "
        "as full copies; a four-step student, with a fake network for each step, "
        f"{short(lora_bytes(denoiser, targets, 4), 'B')} and {short(4 * (1 + held(4)) * parameters, 'B')}",
    ]


def _sampler(found: Described, denoiser: Any) -> dict[str, Any]:
    """Return the default sampler settings of the `denoiser` of the pipeline `found`."""
    if found.flow is None:
        steps, guidance = STOCK
        grid = {"sigma_min": denoiser.sigma_min, "sigma_max": denoiser.sigma_max, "rho": 7.0}
        return {"name": "euler", "steps": steps, **grid, "guidance_scale": guidance}
    steps, guidance = STOCK_FLOW
    grid = {"shift": found.flow.shift, "last": found.flow.last}
    grid |= {} if found.flow.terminal is None else {"terminal": found.flow.terminal}
    return {"name": "flow_euler", "steps": steps, **grid, "guidance_scale": guidance}


def _prediction(found: Described) -> str:
    if found.flow is not None:
        return "the velocity of a flow"
    return f"{found.denoiser['prediction']}{', with zero terminal SNR' if found.denoiser.get('zero_snr') else ''}"


def _levels(found: Described, denoiser: Any) -> str:
    """Return a line on the noise levels or flow times that the network of `denoiser` was trained at."""
    if found.flow is None:
        return f"noise levels: {denoiser.sigma_min:.4g} to {denoiser.sigma_max:.4g} at {len(denoiser.sigmas)} timesteps"
    first = denoiser.sigma_min / (1 + denoiser.sigma_min)
    of_size = ", its scheduler's for images of this size" if found.flow.by_size else ""
    return f"times: {first:.4g} to 1, which is noise alone, at {denoiser.timesteps} timesteps; the shift is {found.flow.shift:.4g}{of_size}"


def _sampled(generator: Generator, scheduler: Mapping[str, Any]) -> str:
    """Return a line on how samples of the teacher are drawn: by Euler's method, also where the pipeline's `scheduler` has another one."""
    steps, scale = generator.default_steps(), generator.guidance_scale
    name = scheduler.get("_class_name", "scheduler")
    return (
        f"samples: {steps} steps of Euler's method with guidance scale {scale:g}; of the pipeline's {name} only the noise levels are taken"
    )


def held(fakes: int) -> int:
    """Return how many numbers are in memory for each weight that a student with `fakes` fake networks trains.

    These are the student, its exponential moving average, the fakes, AdamW's two moments of each, and gradients.
    """
    return 2 + fakes + 2 * (1 + fakes) + fakes  # 2 moments of the student and of each fake; gradients of all fakes at a time


def lora_bytes(denoiser: nn.Module, targets: Sequence[str], fakes: int = 1, rank: int = RANK) -> int:
    """Return the bytes that a student and `fakes` fake networks take as low-rank adapters of `rank` on the layers `targets` of `denoiser`.

    `denoiser` itself is in half precision; of the adapters `held` numbers a weight are in float32.
    """
    layers = [
        module.weight.shape
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    changes = sum(rank * (shape[0] + math.prod(shape[1:])) for shape in layers)
    return 2 * num_parameters(denoiser) + 4 * held(fakes) * changes
