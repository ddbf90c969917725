"""The network of a text-to-image pipeline of diffusers (Stable Diffusion, SDXL or SD 3) as a denoiser of latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep import hub
from fewstep.denoisers import DENOISERS
from fewstep.errors import UserError, first_line
from fewstep.networks.base import make_network
from fewstep.networks.prompts import Rows
from fewstep.pipelines.folder import FORMS, NETWORKS, files_id, latents_shape, needed_weights, pipeline_kind, time_ids
from fewstep.pipelines.parts import read_part
from fewstep.pipelines.scheduler import Flow, flow_of, parametrization_of, scheduler_of
from fewstep.text import read_json

WEIGHTS = "diffusion_pytorch_model"
CLASSES = {"unet": "UNet2DConditionModel", "transformer": "SD3Transformer2DModel"}


@dataclass(frozen=True)
class Described:
    """The network of a pipeline, as the pipeline's configs describe it.

    Attributes:
        folder: where the pipeline lies.
        kind: the pipeline's class, a key of `FORMS`.
        shape: (channels, height, width) of the pipeline's latents.
        network: the network's ``name`` and settings.
        denoiser: the denoiser's ``name`` (see `DENOISERS`) and settings.
        flow: the times of a network that was trained by flow matching; None for other networks.

    """

    folder: Path
    kind: str
    shape: tuple[int, int, int]
    network: dict[str, Any]
    denoiser: dict[str, Any]
    flow: Flow | None = None

    @property
    def part(self) -> str:
        """The name of the pipeline's part that denoises, "unet" or "transformer"."""
        return FORMS[self.kind].network

    def made(self) -> Any:
        """Return the network without weights and prompts, on the device "meta", where it takes no memory."""
        with torch.device("meta"):
            return make_network(self.network, self.shape, None)


def network_folder(model: str) -> Path:
    """Return the folder of the pipeline `model`, a folder or a Hub id, of which configs and denoising network are fetched.

    Raises UserError for anything else, and where the Hub cannot provide the pipeline.
    """
    folder = Path(model)
    if not folder.is_dir() and hub.is_model(model):
        weights = [f"{part}/{WEIGHTS}{rest}.safetensors" for part in NETWORKS for rest in ("", "-*")]
        folder = hub.fetched(model, model, ["model_index.json", "README.md", "*/*.json", *weights])
    if not folder.is_dir():
        raise UserError(f"{model} is no folder, and no Hub id (owner/name); give a text-to-image pipeline of diffusers")
    return folder


def described(folder: Path) -> Described:
    """Return the description of the network of the pipeline in `folder`; no weights are read.

    Raises UserError for a pipeline of another class, an incomplete one, and a network that takes more inputs than a time and a text.
    """
    kind = pipeline_kind(folder, str(folder))
    part = FORMS[kind].network
    scheduler, assumed = scheduler_of(folder, folder / part)
    if assumed:
        raise UserError(
            f"{folder} has no scheduler, which says what its {NETWORKS[part]} predicts and when; take a whole copy of the model"
        )
    shape, told, flow = latents_shape(folder, kind), time_ids(folder, kind), None
    try:
        config = read_json(folder / part / "config.json")
        if (name := config.get("_class_name", CLASSES[part])) != CLASSES[part]:
            raise ValueError(f"it is a {name}, and only a {CLASSES[part]} is supported")
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        if part == "unet":
            network = {"name": "text_unet", "time_ids": None if told is None else list(told), **config}
            denoiser = parametrization_of(scheduler)
        else:
            network = {"name": "text_transformer", **config}
            patch = config.get("patch_size", 2)
            flow = flow_of(scheduler, (shape[1] // patch) * (shape[2] // patch))
            denoiser = {"name": "flow", "timesteps": flow.timesteps, "shift": flow.shift}
        found = Described(folder, kind, shape, network, denoiser, flow)
        found.made()
    except Exception as error:  # diffusers and json each have exceptions of their own
        raise UserError(f"the {NETWORKS[part]} in {folder} cannot be used: {first_line(error)}") from error
    return found


def text_denoiser(folder: Path, prompts: Rows, sigma_data: float = 1.0) -> nn.Module:
    """Return the network in a pipeline's `folder`, in eval mode, as ``D(x, sigma, label)`` of latents; labels are rows of `prompts`.

    `x` is in variance-exploding form, ``x_t / alpha``, of latents in the network's own scale (see `fewstep.pipelines.vae.VAE`). Noise
    levels and prediction are those of the pipeline's scheduler; how the scheduler samples (spacing of timesteps, clipping) is no part of
    the denoiser. `sigma_data` weighs losses.

    Raises UserError as `described` does, and for weights that cannot be read.
    """
    return read_denoiser(described(folder), prompts, sigma_data)


def read_denoiser(found: Described, prompts: Rows | None, sigma_data: float) -> Any:
    """Return the network described by `found`, with its weights and `prompts`, as one of `DENOISERS`. Raises UserError."""
    import diffusers

    part = found.part
    inner = read_part(found.folder, part, getattr(diffusers, CLASSES[part]), NETWORKS[part], low_cpu_mem_usage=False)
    try:
        network = found.made()
        setattr(network, part, inner.float())
        settings = {key: value for key, value in found.denoiser.items() if key != "name"}
        denoiser = DENOISERS[found.denoiser["name"]](network, sigma_data, len(prompts or ()), **settings)
    except Exception as error:  # diffusers and json each have exceptions of their own
        raise UserError(f"the {NETWORKS[part]} in {found.folder} cannot be used: {first_line(error)}") from error
    network.prompts = prompts
    return denoiser.eval()


def weights_id(folder: Path) -> str:
    """Return a SHA-256 checksum (`files_id`) of the denoising network in a pipeline's `folder`: of its weights, config and scheduler.

    Raises UserError where there are no weights, or the files cannot be read.
    """
    part = FORMS[pipeline_kind(folder, str(folder))].network
    files = needed_weights(folder / part)
    try:
        return files_id(folder, [folder / part / "config.json", folder / "scheduler" / "scheduler_config.json", *files])
    except OSError as error:
        raise UserError(f"the {NETWORKS[part]} in {folder} cannot be read ({first_line(error)}); take a whole copy of the model") from error
