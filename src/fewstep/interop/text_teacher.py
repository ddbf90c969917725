"""A text-to-image pipeline of diffusers as a teacher: its U-Net is used where it lies, and not copied into a run."""

from pathlib import Path

from fewstep import hub
from fewstep.data.prompt_table import PromptTable
from fewstep.errors import UserError
from fewstep.generator import Generator, standing_on
from fewstep.pipelines.folder import PIPELINES, encoders_id
from fewstep.pipelines.reference import Base
from fewstep.pipelines.unet import described, read_denoiser, unet_folder, weights_id
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
