"""A text-to-image pipeline of diffusers as a teacher: its U-Net is used where it lies, and not copied into a run."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from fewstep import hub
from fewstep.data.prompt_table import PromptTable
from fewstep.denoisers import ForeignDenoiser
from fewstep.errors import UserError
from fewstep.files import check_free, whole_folder
from fewstep.generator import Generator, standing_on
from fewstep.networks.base import num_parameters
from fewstep.pipelines.folder import ENCODERS, PIPELINES, encoders_id
from fewstep.pipelines.lora import RANK, TARGETS
from fewstep.pipelines.reference import Base
from fewstep.pipelines.unet import described, read_denoiser, unet_folder, weights_id
from fewstep.quantities import short
from fewstep.text import read_json

STEPS, GUIDANCE = 50, 7.5  # as stock pipelines of Stable Diffusion draw where nothing is said


def is_text_pipeline(path: str | Path) -> bool:
    """Whether a text-to-image pipeline lies in the folder `path`, or on the Hub under that id."""
    folder = Path(path)
    if not folder.exists() and hub.is_id(str(path)):
        try:
            folder = hub.fetched(str(path), str(path), ["model_index.json"])
        except UserError:  # told by whoever opens it
            return False
    try:
        index = read_json(folder / "model_index.json")
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and index.get("_class_name") in PIPELINES


def text_teacher(model: str, sigma_data: float = 1.0, prompts: PromptTable | None = None) -> Generator:
    """The U-Net of the pipeline `model`, a folder or a Hub id, as a generator of latents that is told `prompts`, if they are given.

    Its folder, where it is saved, names the pipeline and holds no weights. `sigma_data` weighs the losses of a student. Raises UserError as
    `fewstep.pipelines.unet.described` does.
    """
    folder = unet_folder(model)
    found = described(folder)
    denoiser = read_denoiser(found, prompts, sigma_data)
    where = str(Path(model).resolve()) if Path(model).is_dir() else model
    sampler = {"name": "euler", "steps": STEPS, "sigma_min": denoiser.sigma_min, "sigma_max": denoiser.sigma_max, "rho": 7.0}
    info = {"method": "teacher", "imported_from": where, "label_dropout": True, "encoders": encoders_id(folder)}
    arguments = {
        "shape": list(found.shape),
        "num_classes": len(prompts) if prompts else 1,
        "sigma_data": sigma_data,
        "network": found.network,
        "denoiser": found.denoiser,
        "sampler": sampler | {"guidance_scale": GUIDANCE},
        "info": info,
        "latents": {"model": where},
        "base": Base(where, weights_id(folder)).config,
    }
    generator = standing_on(denoiser, arguments)
    return generator if prompts is None else generator.tell(prompts)


def import_text(model: str, out: Path, sigma_data: float) -> list[str]:
    """Write the model folder `out`, which names the pipeline `model`, whole or not at all; what the pipeline consists of, in lines.

    Raises UserError as `text_teacher` does, for a folder `out` that holds something already, and a `sigma_data` that is not above 0.
    """
    check_free(out)
    if not 0 < sigma_data < math.inf:
        raise UserError(f"--sigma-data is {sigma_data}; give a number above 0")
    generator = text_teacher(model, sigma_data)
    with whole_folder(out) as folder:
        generator.save_pretrained(folder)
    place = unet_folder(model)
    found, denoiser = described(place), generator.denoiser
    assert isinstance(denoiser, ForeignDenoiser)
    parameters, index = num_parameters(denoiser), read_json(place / "model_index.json")
    parts = [name for name in (*ENCODERS, "vae") if isinstance(index.get(name), list) and index[name][0] is not None]
    snr = ", with zero terminal SNR" if found.denoiser.get("zero_snr") else ""
    width, pooled = generator.told.takes
    told = f"hidden states of width {width}" + (f", a pooled vector of {pooled} and sizes {found.network['time_ids']}" if pooled else "")
    return [
        f"found: {found.kind} of {', '.join(['unet', *parts])}; the U-Net has {parameters:,} parameters and predicts "
        f"{denoiser.prediction}{snr}",
        f"noise levels: {denoiser.sigma_min:.4g} to {denoiser.sigma_max:.4g} at {len(denoiser.sigmas)} timesteps",
        f"latents: {'x'.join(map(str, found.shape))}; the U-Net is told {told}",
        f"memory for weights, gradients, AdamW's moments and the average: for one step {short(lora_bytes(denoiser), 'B')} as LoRA of rank "
        f"{RANK} in bf16-mixed, {short(4 * (1 + held(1)) * parameters, 'B')} as copies; for four, with a fake network for each, "
        f"{short(lora_bytes(denoiser, 4), 'B')} and {short(4 * (1 + held(4)) * parameters, 'B')}",
    ]


def held(fakes: int) -> int:
    """How many numbers are held at once for each that a student learns with so many `fakes`: they, the average, and gradients."""
    return 2 + fakes + 2 * (1 + fakes) + fakes  # moments of all that learns; the fakes learn together


def lora_bytes(denoiser: nn.Module, fakes: int = 1, rank: int = RANK, targets: Sequence[str] = TARGETS) -> int:
    """What a student and `fakes` on `denoiser` take: it in half precision, and in float32 what is held of their changes at once."""
    layers = [
        module.weight.shape
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    changes = sum(rank * (shape[0] + math.prod(shape[1:])) for shape in layers)
    return 2 * num_parameters(denoiser) + 4 * held(fakes) * changes
