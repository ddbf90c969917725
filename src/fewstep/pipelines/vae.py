"""Encoding of pixels and decoding of latents by a pipeline's VAE, which is read for each use, and not kept in memory."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep.errors import UserError
from fewstep.pipelines.folder import files_id, needed_weights, part_of
from fewstep.pipelines.parts import read_part

PIXELS = 2**20  # most pixels in a batch of several images: those of one image of 1024x1024
MEASURED = 256  # longest side in pixels at which images are measured; larger images are reduced


class VAE:
    """The VAE of the pipeline `model`, a folder or a Hub id, in float32, which SDXL's VAE needs.

    Latents are shifted and scaled as the VAE's config says, each channel by itself where the config has means and standard deviations of
    the channels. `expected` is the checksum (`vae_id`) of the VAE that the latents are of, None where it is not known.

    Raises UserError where the pipeline has no VAE or another one, and where the VAE cannot be read.
    """

    def __init__(self, model: str, device: torch.device | str | None = None, expected: str | None = None) -> None:
        from diffusers import AutoencoderKL

        self.id = vae_id(model)
        if expected is not None and self.id != expected:
            raise UserError(f"the VAE of {model} is not the one whose latents these are; restore the former one")
        vae = read_part(part_of(model, "vae").parent, "vae", AutoencoderKL, "VAE", torch_dtype=torch.float32)
        self.model = str(Path(model).resolve()) if Path(model).is_dir() else model
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.vae = vae.to(self.device).eval()
        self.scale, self.shift = _scale_and_shift(vae.config)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def shape(self, size: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of images with `size` pixels a side."""
        return self.vae.config.latent_channels, size // self.factor, size // self.factor

    @torch.no_grad()
    def encoded(self, pixels: Tensor) -> Tensor:
        """Return latents float32 [N, C, h, w] of `pixels` [N, 3, H, W] in [-1, 1], on the CPU: the VAE's means, shifted and scaled."""
        parts = [self.vae.encode(part.to(self.device)).latent_dist.mode().cpu() for part in pixels.split(_batch(*pixels.shape[-2:]))]
        return (torch.cat(parts) - self.shift) * self.scale

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        """Return pixels float32 [N, 3, H, W] in [-1, 1], on the CPU, of `latents` [N, C, h, w] in the denoising network's scale."""
        parts = latents.float().cpu().split(_batch(*(side * self.factor for side in latents.shape[-2:])))
        made = [self.vae.decode((part / self.scale + self.shift).to(self.device)).sample.clamp(-1, 1).cpu() for part in parts]
        return torch.cat(made)


def vae_id(model: str) -> str:
    """Return a checksum (`files_id`) of the VAE of the pipeline `model`, a folder or a Hub id. Raises UserError where it has none."""
    folder = part_of(model, "vae")
    return files_id(folder, [*needed_weights(folder), folder / "config.json"])


def _scale_and_shift(config: Any) -> tuple[Any, Any]:
    """Return the `scale` and `shift` by which ``(encoding - shift) * scale`` is a latent: numbers, or tensors [C, 1, 1] on the CPU."""
    means, stds = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if means is None or stds is None:
        return config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    return config.scaling_factor / torch.tensor(stds)[:, None, None], torch.tensor(means)[:, None, None]


def _batch(height: int, width: int) -> int:
    return max(1, min(64, PIXELS // (height * width)))


def measured_size(pixels: Tensor) -> Tensor:
    """Return `pixels` [N, C, H, W] with at most `MEASURED` pixels a side; larger images are reduced by averaging over areas."""
    height, width = pixels.shape[-2:]
    shrunk = max(height, width) / MEASURED
    if shrunk <= 1:
        return pixels
    return interpolate(pixels, (round(height / shrunk), round(width / shrunk)), mode="area")


def decoded(latents: Tensor, model: str, expected: str | None = None) -> Tensor:
    """Decode `latents` by the VAE of the pipeline `model`, on the latents' device. Arguments and errors are those of `VAE`."""
    return VAE(model, latents.device, expected).decoded(latents)
