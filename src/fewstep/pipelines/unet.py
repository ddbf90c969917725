"""The U-Net of a text-to-image pipeline of diffusers as a denoiser of latents: Stable Diffusion's form and SDXL's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep import hub
from fewstep.denoisers import ForeignDenoiser
from fewstep.errors import UserError, first_line
from fewstep.networks.text_unet.network import Rows, TextUNet
from fewstep.pipelines.folder import files_id, latents_shape, pipeline_kind, time_ids, usual_weights
from fewstep.pipelines.scheduler import parametrization_of, scheduler_of
from fewstep.text import read_json


@dataclass(frozen=True)
class Described:
    """The U-Net of a pipeline, as its configs have it.

    Attributes:
        folder: where the pipeline lies.
        kind: its class.
        shape: (channels, height, width) of its latents.
        network: settings of the network, ``name`` among them.
        denoiser: the same of the denoiser.

    """

    folder: Path
    kind: str
    shape: tuple[int, int, int]
    network: dict[str, Any]
    denoiser: dict[str, Any]


def unet_folder(model: str) -> Path:
    """Where the pipeline `model`, a folder or a Hub id, lies with its U-Net. Raises UserError."""
    folder = Path(model)
    if not folder.is_dir() and hub.is_id(model):
        folder = hub.fetched(
            model,
            model,
            ["model_index.json", "*/*.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model-*.safetensors"],
        )
    if not folder.is_dir():
        raise UserError(f"{model} is no folder, and no Hub id (owner/name); give a text-to-image pipeline of diffusers")
    return folder


def described(folder: Path) -> Described:
    """What the pipeline in `folder` says of its U-Net; no weights are read.

    Raises UserError for a pipeline of another kind, one that is not whole, and a U-Net that is told more than a time and a text.
    """
    kind = pipeline_kind(folder, str(folder))
    scheduler, assumed = scheduler_of(folder, folder / "unet")
    if assumed:
        raise UserError(f"{folder} has no scheduler, which says what its U-Net predicts and when; take a whole copy of the model")
    shape, told = latents_shape(folder), time_ids(folder, kind)
    try:
        config = {key: value for key, value in read_json(folder / "unet" / "config.json").items() if not key.startswith("_")}
        network = {"name": "text_unet", "time_ids": None if told is None else list(told), **config}
        with torch.device("meta"):
            TextUNet(shape, **{key: value for key, value in network.items() if key != "name"})
        return Described(folder, kind, shape, network, parametrization_of(scheduler))
    except Exception as error:  # diffusers and json each have their own
        raise UserError(f"the U-Net in {folder} cannot be used: {first_line(error)}") from error


def text_denoiser(folder: Path, prompts: Rows, sigma_data: float = 1.0) -> ForeignDenoiser:
    """The U-Net in a pipeline's `folder`, in eval mode, as ``D(x, sigma, label)`` of latents; labels are rows of `prompts`.

    `x` is in variance-exploding form, ``x_t / alpha``, of latents as the U-Net has them: the VAE's, scaled. Its levels and prediction
    are those of the pipeline's scheduler; how that samples (spacing, clipping) is no part of the denoiser. `sigma_data` weighs losses.

    Raises UserError as `described` does, and for weights that cannot be read.
    """
    return read_denoiser(described(folder), prompts, sigma_data)


def read_denoiser(found: Described, prompts: Rows | None, sigma_data: float) -> ForeignDenoiser:
    """The U-Net that was `found`, with its weights. Raises UserError."""
    from diffusers import UNet2DConditionModel

    try:
        with torch.device("meta"):
            network = TextUNet(found.shape, **{key: value for key, value in found.network.items() if key != "name"})
        network.unet = UNet2DConditionModel.from_pretrained(
            str(found.folder / "unet"), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        ).float()
        given = {key: value for key, value in found.denoiser.items() if key != "name"}
        denoiser = ForeignDenoiser(network, sigma_data, len(prompts or ()), **given)
    except Exception as error:  # diffusers, safetensors and json each have their own
        raise UserError(f"the U-Net in {found.folder} cannot be used: {first_line(error)}") from error
    network.prompts = prompts
    return denoiser.eval()


def weights_id(folder: Path) -> str:
    """What tells the U-Net in a pipeline's `folder` from any other. Raises UserError where there are no weights."""
    files = usual_weights(folder / "unet")
    if not files:
        raise UserError(f"there are no weights in {folder / 'unet'} (*.safetensors); take a whole copy of the model")
    try:
        return files_id(folder, [folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json", *files])
    except OSError as error:
        raise UserError(f"the U-Net in {folder} cannot be read ({first_line(error)}); take a whole copy of the model") from error
