"""Pixels and latents by the VAE of a pipeline, which is read when it is asked for, and not kept."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep.pipelines.folder import files_id, part_of, usual_weights
from fewstep.pipelines.parts import read_part

PIXELS = 2**20  # of images at once: one of 1024x1024
MEASURED = 256  # pixels a side, to which larger images are reduced where they are measured


class VAE:
    """The VAE of the pipeline `model`, a folder or a Hub id, in float32, in which that of SDXL has to work.

    Scale and shift of latents are as its config has them. Raises UserError where there is none, or where it cannot be read.
    """

    def __init__(self, model: str, device: torch.device | str | None = None) -> None:
        from diffusers import AutoencoderKL

        folder = part_of(model, "vae")
        vae = read_part(folder.parent, "vae", AutoencoderKL, "VAE", torch_dtype=torch.float32)
        self.id = files_id(folder, [*usual_weights(folder), folder / "config.json"])
        self.model = str(Path(model).resolve()) if Path(model).is_dir() else model
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.vae = vae.to(self.device).eval()
        self.scale, self.shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def shape(self, size: int) -> tuple[int, int, int]:
        """Of the latents of images of `size` pixels a side."""
        return self.vae.config.latent_channels, size // self.factor, size // self.factor

    @torch.no_grad()
    def encoded(self, pixels: Tensor) -> Tensor:
        """Latents float32 [N, C, h, w] of `pixels` [N, 3, H, W] in [-1, 1], on the CPU: the mean of what the VAE gives, scaled."""
        parts = [self.vae.encode(part.to(self.device)).latent_dist.mode().cpu() for part in pixels.split(_batch(*pixels.shape[-2:]))]
        return (torch.cat(parts) - self.shift) * self.scale

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        """Pixels float32 [N, 3, H, W] in [-1, 1], on the CPU, of `latents` [N, C, h, w] as the U-Net of the pipeline has them."""
        parts = latents.float().split(_batch(*(side * self.factor for side in latents.shape[-2:])))
        return torch.cat([self.vae.decode(part.to(self.device) / self.scale + self.shift).sample.clamp(-1, 1).cpu() for part in parts])


def _batch(height: int, width: int) -> int:
    return max(1, min(64, PIXELS // (height * width)))


def measured_size(pixels: Tensor) -> Tensor:
    """`pixels` [N, C, H, W] as they are measured: with at most `MEASURED` a side, means over squares of larger ones."""
    height, width = pixels.shape[-2:]
    shrunk = max(height, width) / MEASURED
    if shrunk <= 1:
        return pixels
    return interpolate(pixels, (round(height / shrunk), round(width / shrunk)), mode="area")


def decoded(latents: Tensor, model: str) -> Tensor:
    """`VAE.decoded` by the VAE of the pipeline `model`, where the latents are. Raises UserError as `VAE` does."""
    return VAE(model, latents.device).decoded(latents)
