"""The U-Net of a text-to-image pipeline of diffusers as a denoiser of latents: Stable Diffusion's form and SDXL's."""

from pathlib import Path
from typing import Any

import torch

from fewstep.denoisers import ForeignDenoiser
from fewstep.errors import UserError, first_line
from fewstep.interop.diffusers import parametrization_of, scheduler_of
from fewstep.interop.text_encoders import pipeline_kind, time_ids
from fewstep.networks.text_unet import TextUNet
from fewstep.networks.text_unet.network import Rows
from fewstep.text import read_json


def text_denoiser(folder: Path, prompts: Rows, sigma_data: float = 1.0) -> ForeignDenoiser:
    """The U-Net in a pipeline's `folder`, in eval mode, as ``D(x, sigma, label)`` of latents; labels are rows of `prompts`.

    `x` is in variance-exploding form, ``x_t / alpha``, of latents as the U-Net has them: the VAE's, scaled. Its levels and prediction
    are those of the pipeline's scheduler; how that samples (spacing, clipping) is no part of the denoiser. `sigma_data` weighs losses.

    Raises UserError for a pipeline of another kind, one that is not whole, and a U-Net that is told more than a time and a text.
    """
    from diffusers import UNet2DConditionModel

    kind = pipeline_kind(folder, str(folder))
    scheduler, assumed = scheduler_of(folder, folder / "unet")
    if assumed:
        raise UserError(f"{folder} has no scheduler, which says what its U-Net predicts and when; take a whole copy of the model")
    try:
        config = {key: value for key, value in read_json(folder / "unet" / "config.json").items() if not key.startswith("_")}
        shape = [config["in_channels"], *([config["sample_size"]] * 2)]
        with torch.device("meta"):
            network = TextUNet(shape, time_ids=time_ids(folder, kind), **config)
        network.unet = UNet2DConditionModel.from_pretrained(
            str(folder / "unet"), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        ).float()
        given: dict[str, Any] = {key: value for key, value in parametrization_of(scheduler).items() if key != "name"}
        denoiser = ForeignDenoiser(network, sigma_data, len(prompts), **given)
    except Exception as error:  # diffusers, safetensors and json each have their own
        raise UserError(f"the U-Net in {folder} cannot be used: {first_line(error)}") from error
    network.prompts = prompts
    return denoiser.eval()
