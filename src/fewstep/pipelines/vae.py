"""Latents become pixels by the VAE of a pipeline, which is read when it is asked for, and not kept."""

import warnings

import torch
from torch import Tensor

from fewstep.errors import UserError, first_line
from fewstep.pipelines.folder import part_of


@torch.no_grad()
def decoded(latents: Tensor, model: str, batch_size: int = 4) -> Tensor:
    """Pixels float32 [N, 3, H, W] in [-1, 1], on the CPU, of `latents` [N, C, h, w] as the U-Net of the pipeline `model` has them.

    Scale and shift are the VAE's own, as its config has them. It works in float32, in which that of SDXL has to. Raises UserError where
    there is no VAE, or where it cannot be read.
    """
    from diffusers import AutoencoderKL

    folder = part_of(model, "vae")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vae = AutoencoderKL.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, torch_dtype=torch.float32)
    except Exception as error:  # diffusers, safetensors and json each have their own
        raise UserError(f"the VAE of {model} cannot be read ({first_line(error)}); take another copy of the model") from error
    vae = vae.to(latents.device).eval()
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    parts = [vae.decode(part.float() / scale + shift).sample.clamp(-1, 1).cpu() for part in latents.split(batch_size)]
    return torch.cat(parts)
