"""What a network of diffusers was trained to predict, and at which noise levels, by the config of the scheduler beside it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, first_line
from fewstep.limits import TooLarge
from fewstep.text import read_json

# the defaults of diffusers' DDPMScheduler, with which Ho et al. (arXiv 2006.11239) trained
DDPM = {"prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
SCHEDULER = "scheduler_config.json"
HEUN = "FlowMatchHeunDiscreteScheduler"  # of the settings below it has num_train_timesteps and shift alone
FLOWS = ("FlowMatchEulerDiscreteScheduler", HEUN, "FlowMatchLCMScheduler")
# settings of flow schedulers that are not followed, and what a scheduler does with them, as a predicate
OTHERWISE = {
    "invert_sigmas": "lets time run from noise to data",
    "use_karras_sigmas": "samples at times of its own",
    "use_exponential_sigmas": "samples at times of its own",
    "use_beta_sigmas": "samples at times of its own",
    "stochastic_sampling": "adds new noise in each step",
    "scale_factors": "samples at several sizes in turn",
}


def scheduler_of(folder: Path, model_folder: Path) -> tuple[dict[str, Any], str]:
    """Return the settings of a model's scheduler, and a sentence on what had to be assumed, empty where nothing was.

    Raises UserError for a scheduler config that cannot be read.
    """
    above = [folder.parent / "scheduler" / SCHEDULER] if folder.name == "unet" else []
    for file in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER, model_folder / SCHEDULER, *above):
        if file.is_file():
            return json_object(file), ""
    told = "epsilon prediction, 1000 timesteps, linear betas from 0.0001 to 0.02"
    return {}, f"there is no {SCHEDULER} in {folder}; taken to be DDPM's: {told}. If it is not, put its {SCHEDULER} there"


def parametrization_of(scheduler: dict[str, Any]) -> dict[str, Any]:
    """Return the denoiser settings (prediction and betas) that a scheduler's settings imply. Raises ValueError for other schedulers."""
    name = scheduler.get("_class_name", "DDPMScheduler")
    if scheduler and "beta_schedule" not in scheduler and scheduler.get("trained_betas") is None:
        raise ValueError(
            f"its scheduler is a {name}, which has no betas; allowed are DDPMScheduler, DDIMScheduler and those with the same betas"
        )
    if scheduler.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"its {name} has timestep_type {scheduler['timestep_type']!r}; only 'discrete' timesteps are supported")
    settings = DDPM | scheduler
    betas: Any = scheduler.get("trained_betas")
    if betas is None:
        betas = {name: settings[key] for name, key in (("schedule", "beta_schedule"), ("start", "beta_start"), ("end", "beta_end"))}
        betas["num"] = settings["num_train_timesteps"]
    parametrization = {"name": "ddpm", "prediction": settings["prediction_type"], "betas": betas}
    return parametrization | ({"zero_snr": True} if settings.get("rescale_betas_zero_snr") else {})


@dataclass(frozen=True)
class Flow:
    """The times of a flow-matching network.

    Attributes:
        timesteps: number of timesteps that the network was trained at.
        shift: shift of the timesteps towards noise.
        last: the last time at which the stock pipeline evaluates the network, before the shift.
        by_size: whether the scheduler's shift depends on the size of the image.
        terminal: the last time after the shift, to which the scheduler stretches the times; None for times as they are shifted.

    """

    timesteps: int
    shift: float
    last: float
    by_size: bool
    terminal: float | None = None


def flow_of(scheduler: dict[str, Any], patches: int) -> Flow:
    """Return the times of a flow-matching network from a scheduler's settings.

    Where the shift depends on the size of the image, it is that of images of `patches` patches. Raises ValueError for other schedulers.
    """
    name = scheduler.get("_class_name", FLOWS[0])
    if name not in FLOWS:
        raise ValueError(f"its scheduler is a {name}, which is of no flow; allowed are {', '.join(FLOWS)}")
    if name == HEUN:
        scheduler = {key: scheduler[key] for key in ("num_train_timesteps", "shift") if key in scheduler}
    if asked := next((key for key in OTHERWISE if scheduler.get(key)), None):
        raise ValueError(
            f"its {name} has {asked}, with which it {OTHERWISE[asked]}, and this is not supported; take a model whose "
            f"scheduler/{SCHEDULER} has it off"
        )
    num, shift, terminal = scheduler.get("num_train_timesteps", 1000), scheduler.get("shift", 1.0), scheduler.get("shift_terminal") or None
    if terminal is not None and not 0 < terminal < 1:
        raise ValueError(f"its {name} has shift_terminal {terminal}, which is a time between 0 and 1")
    if not scheduler.get("use_dynamic_shifting"):  # the smallest trained time, shifted once more by the scheduler
        return Flow(num, shift, shift / (num - 1 + shift), by_size=False, terminal=terminal)
    first, most = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = low + (patches - first) * (high - low) / (most - first)
    return Flow(num, mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu), 1 / num, True, terminal)


def json_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises UserError where the file cannot be read or holds no object."""
    try:
        tree = read_json(file)
    except TooLarge:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); take another copy") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds no object; take another copy")
    return tree
