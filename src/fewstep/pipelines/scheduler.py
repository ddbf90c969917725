"""What a network of diffusers was trained to predict, and when: as the scheduler beside it says."""

from pathlib import Path
from typing import Any

from fewstep.errors import UserError, first_line
from fewstep.limits import TooLarge
from fewstep.text import read_json

# what diffusers' DDPMScheduler takes where its file is silent, and what Ho et al. (arXiv 2006.11239) trained with
DDPM = {"prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
SCHEDULER = "scheduler_config.json"


def scheduler_of(folder: Path, model_folder: Path) -> tuple[dict[str, Any], str]:
    """The scheduler's settings, and what had to be assumed, if anything. Raises UserError."""
    above = [folder.parent / "scheduler" / SCHEDULER] if folder.name == "unet" else []
    for file in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER, model_folder / SCHEDULER, *above):
        if file.is_file():
            return json_object(file), ""
    told = "epsilon prediction, 1000 timesteps, linear betas from 0.0001 to 0.02"
    return {}, f"there is no {SCHEDULER} in {folder}; taken to be DDPM's: {told}. If it is not, put its {SCHEDULER} there"


def parametrization_of(scheduler: dict[str, Any]) -> dict[str, Any]:
    """What the network was trained to predict and when, from a scheduler's settings. Raises ValueError."""
    name = scheduler.get("_class_name", "DDPMScheduler")
    if scheduler and "beta_schedule" not in scheduler and scheduler.get("trained_betas") is None:
        raise ValueError(
            f"its scheduler is a {name}, which has no betas; allowed are DDPMScheduler, DDIMScheduler and those with the same betas"
        )
    if scheduler.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"its {name} has timestep_type {scheduler['timestep_type']!r}; only 'discrete' timesteps are known here")
    settings = DDPM | scheduler
    betas: Any = scheduler.get("trained_betas")
    if betas is None:
        betas = {name: settings[key] for name, key in (("schedule", "beta_schedule"), ("start", "beta_start"), ("end", "beta_end"))}
        betas["num"] = settings["num_train_timesteps"]
    parametrization = {"name": "ddpm", "prediction": settings["prediction_type"], "betas": betas}
    return parametrization | ({"zero_snr": True} if settings.get("rescale_betas_zero_snr") else {})


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError."""
    try:
        tree = read_json(file)
    except TooLarge:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); take another copy") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds no object; take another copy")
    return tree
