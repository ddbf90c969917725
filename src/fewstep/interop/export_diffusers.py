"""Export of a few-step generator as a folder that the stock `ConsistencyModelPipeline` of diffusers loads and runs without fewstep.

The pipeline draws ``x = sigma_0 n``, then alternates the denoiser and fresh noise, as `fewstep.samplers.few_step` does. Its scheduler
(`CMStochasticIterativeScheduler`) has EDM's coefficients with `sigma_min` subtracted from sigma (arXiv 2303.01469, App. C), and gives the
network the timestep ``1000 ln(sigma) / 4``, as `fewstep.networks.unet` does.

Symbols: ``T`` the scheduler's ``num_train_timesteps``, ``k`` steps, levels ``sigma_j``, j from 0 to k - 1. In k steps the scheduler visits
``sigma_j = (a + j r_T (b - a))^rho`` with ``a = sigma_max^(1/rho)``, ``b = sigma_min^(1/rho)``, ``r_T = floor(T / k) / (T - 1)``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.denoisers import PreconditionedDenoiser
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.networks.unet import UNet

MOST_TIMESTEPS = 1000
TIME_SCALE = 1000.0  # factor of the pipeline's timestep
LEVEL_TOLERANCE = 1e-6  # relative: largest difference of a level, and largest sigma_min beside the last level


def check_pipeline(generator: Generator) -> None:
    """Raise UserError where the stock pipeline cannot hold `generator`."""
    denoiser, name = generator.denoiser, generator.network_config["name"]
    otherwise = "use --format onnx"
    if generator.sampler["name"] == "push_forward":
        raise UserError(
            f"this generator maps a latent to data at once (network {name}), which no stock pipeline of diffusers does; {otherwise}"
        )
    if len(generator.shape) != 3:
        raise UserError(f"this generator makes points of shape {list(generator.shape)}, and diffusers' pipelines make images; {otherwise}")
    if type(denoiser) is not PreconditionedDenoiser:
        raise UserError(
            f"this generator's network is parametrised by {type(denoiser).__name__}, and diffusers' ConsistencyModelPipeline knows EDM's "
            f"preconditioning only; {otherwise}"
        )
    if type(denoiser.network) is not UNet:
        raise UserError(f"this generator's network is {name}, and diffusers' ConsistencyModelPipeline takes a unet only; {otherwise}")
    if (patch := denoiser.network.patch) != 1:
        raise UserError(
            f"this generator's network takes patches of {patch}x{patch} pixels (network.patch), and diffusers' single ones only; "
            f"{otherwise}"
        )
    if (scale := denoiser.network.time_scale) != TIME_SCALE:
        raise UserError(
            f"this generator's network takes the timestep {scale:g} ln(sigma)/4 (network.time_scale), and diffusers' "
            f"ConsistencyModelPipeline gives {TIME_SCALE:g} ln(sigma)/4; {otherwise}"
        )
    if generator.shape[1] != generator.shape[2]:
        height, width = generator.shape[1:]
        raise UserError(
            f"this generator makes images of {height}x{width}, and diffusers' ConsistencyModelPipeline square ones only; {otherwise}"
        )
    sigmas = generator.sigmas().tolist()
    if scheduler_settings(sigmas) is None:
        levels = ", ".join(f"{sigma:g}" for sigma in sigmas)
        raise UserError(f"no setting of CMStochasticIterativeScheduler of diffusers visits the noise levels {levels}; {otherwise}")


def scheduler_settings(sigmas: Sequence[float]) -> dict[str, Any] | None:
    """Return arguments of the stock scheduler with which it visits the levels `sigmas` in ``len(sigmas)`` steps; None where none do.

    A ramp that falls by r in each step gives ``sigma_j / sigma_0 = (1 - j r)^rho``. Two levels can always be met; of more than two, the
    first, second and last fix r and rho, and the others have to agree to 1e-6. As ``r = r_T (1 - b/a)``, a `sigma_min` of 0 reaches only
    those r that are the r_T of some T. A `sigma_min` that is negligible beside the last level (at most 1e-6 of that level, else c_skip and
    c_out would change) still changes r by some per cent, for ``b/a`` is the 1/rho-th power of ``sigma_min / sigma_max``.
    """
    k = len(sigmas)
    if any(not math.isfinite(s) or s <= 0 for s in sigmas) or any(later >= s for s, later in pairwise(sigmas)):
        return None
    logs = [math.log(s / sigmas[0]) for s in sigmas]
    if k == 1:
        return {"num_train_timesteps": 2, "rho": 7.0, "sigma_min": 0.0, "sigma_max": sigmas[0]}
    if k == 2:
        num, r, gap = 3, 0.5, 0.0
    else:
        fitted = _ramp(k, logs[-1] / logs[1])
        if fitted is None:
            return None
        r = fitted
        steepness = {num: (num // k) / (num - 1) for num in range(k + 1, MOST_TIMESTEPS + 1)}
        gaps = {num: max(0.0, 1 - r / steep) for num, steep in steepness.items() if r < steep * (1 + 1e-9)}
        if not gaps:
            return None
        num = min(gaps, key=lambda n: (round(gaps[n], 9), n))
        gap = gaps[num]
    rho = logs[1] / math.log1p(-r)
    # a float32: after the last step the scheduler takes the root of (sigma_min^2 in float32) - sigma_min^2, which must not be below 0
    sigma_min = 0.0 if gap < 1e-9 else float(np.float32(sigmas[0] * gap**rho))
    settings = {"num_train_timesteps": num, "rho": round(rho, 9), "sigma_min": sigma_min, "sigma_max": sigmas[0]}
    if sigma_min > LEVEL_TOLERANCE * sigmas[-1]:
        return None
    visited = _visited(settings, k)
    agree = visited is not None and np.allclose(visited, sigmas, rtol=LEVEL_TOLERANCE, atol=0)
    return settings if agree else None


def _ramp(k: int, ratio: float) -> float | None:
    """Return the r in (0, 1/(k - 1)) with ``ln(1 - (k - 1) r) / ln(1 - r) = ratio``, by bisection; None where there is none.

    The left side of the equation grows with r, from k - 1 at r = 0.
    """
    if not ratio > k - 1:
        return None
    low, high = 0.0, 1 / (k - 1)
    for _ in range(200):
        r = (low + high) / 2
        if r in (low, high):
            break
        if math.log1p(-(k - 1) * r) < ratio * math.log1p(-r):
            high = r
        else:
            low = r
    return low or None


def _visited(settings: dict[str, Any], k: int) -> Any:
    """Return the noise levels that the stock scheduler visits in `k` steps, float32 [k]; None where its arithmetic overflows."""
    from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler

    try:
        scheduler = CMStochasticIterativeScheduler(**settings)
        scheduler.set_timesteps(k)
    except OverflowError:
        return None
    return scheduler.sigmas[:-1].numpy()


def write_pipeline(generator: Generator, folder: Path) -> None:
    """Write `generator` into `folder` as a stock pipeline, weights in safetensors. Raises UserError as `check_pipeline` does."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.pipelines.consistency_models.pipeline_consistency_models import ConsistencyModelPipeline
    from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler

    check_pipeline(generator)
    settings = scheduler_settings(generator.sigmas().tolist())
    assert settings is not None
    scheduler = CMStochasticIterativeScheduler(**settings, sigma_data=generator.sigma_data, clip_denoised=False)
    network = generator.denoiser.network
    assert isinstance(network, UNet)
    config = {key: value for key, value in network.unet.config.items() if not key.startswith("_")}
    weights = {key: value.detach().contiguous() for key, value in network.unet.state_dict().items()}
    if generator.num_classes is not None:
        # without the null class: where no class is asked for, the pipeline draws a random one from all rows of the table
        weights["class_embedding.weight"] = weights["class_embedding.weight"][:-1].clone()
    config |= {"sample_size": generator.shape[1], "num_class_embeds": generator.num_classes}  # the pipeline takes one side, not two
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
        unet = UNet2DModel.from_config(config)
    unet.load_state_dict(weights)
    ConsistencyModelPipeline(unet.eval(), scheduler).save_pretrained(folder)


def read_pipeline(folder: Path, generator: Generator) -> Callable[[int, list[int] | None, int], Tensor]:
    """Return ``draw(num, labels, seed) -> [num, C, H, W]`` in [-1, 1], which samples from the stock pipeline in `folder`.

    The number of steps is the default of `generator`.
    """
    from diffusers.pipelines.consistency_models.pipeline_consistency_models import ConsistencyModelPipeline
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        pipeline = ConsistencyModelPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    finally:
        if shown:
            logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)

    def draw(num: int, labels: list[int] | None, seed: int) -> Tensor:
        images = pipeline(
            num,
            class_labels=labels,
            num_inference_steps=generator.default_steps(),
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images
        return images * 2 - 1

    return draw
