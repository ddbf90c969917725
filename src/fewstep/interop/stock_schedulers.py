"""Schedulers of diffusers that draw as `fewstep.samplers.few_step` does at a generator's own levels: denoise, add fresh noise, denoise.

Symbols: a flow's times ``1 = s_1 > s_2 > ... > s_k``, and ``r_j = 1 - s_(j+1)``, the share of data at the times after the first.
"""

import math
from typing import Any

import torch

from fewstep.denoisers import FlowDenoiser, ForeignDenoiser
from fewstep.denoisers.adapted import Adapted
from fewstep.errors import UserError
from fewstep.generator import Generator

CLOSE = 3e-7  # largest allowed difference of times: a few rounding errors of float32


def stock_scheduler(generator: Generator) -> Any:
    """Return the diffusers scheduler that draws in `generator`'s number of steps, at its noise levels.

    Raises UserError where no setting of the scheduler visits these levels.
    """
    denoiser = generator.denoiser.stands_on if isinstance(generator.denoiser, Adapted) else generator.denoiser
    if isinstance(denoiser, FlowDenoiser):
        return flow_scheduler(denoiser, generator.sigmas())
    assert isinstance(denoiser, ForeignDenoiser)
    return lcm_scheduler(denoiser, generator.sigmas())


def lcm_scheduler(denoiser: ForeignDenoiser, sigmas: torch.Tensor) -> Any:
    """Return an `LCMScheduler` that visits the noise levels `sigmas` [k], with ``original_inference_steps`` = k.

    Raises UserError where the levels are not those of equally spaced timesteps.
    """
    from diffusers import LCMScheduler

    timesteps = [int((denoiser.sigmas - sigma).abs().argmin()) for sigma in sigmas]
    steps, last = len(timesteps), timesteps[0] + 1
    if not torch.allclose(denoiser.sigmas[timesteps], sigmas, rtol=1e-6) or timesteps != [
        last // steps * part - 1 for part in range(steps, 0, -1)
    ]:
        raise UserError(
            f"this generator's steps are at the timesteps {timesteps}, and LCM's scheduler of diffusers takes equal parts alone, such as "
            "999, 749, 499, 249; train it with method.times=teacher and without method.sampler_timesteps"
        )
    kept = 1 / (1 + denoiser.sigmas[:last] ** 2)  # alpha_bar, the data's share of the variance, up to the first step's timestep
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    return LCMScheduler(
        num_train_timesteps=last,
        trained_betas=[float(beta) for beta in betas],
        original_inference_steps=steps,
        prediction_type=denoiser.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def flow_scheduler(denoiser: FlowDenoiser, sigmas: torch.Tensor) -> Any:
    """Return a `FlowMatchLCMScheduler` that visits the noise levels `sigmas` [k] for a user who sets only the number of steps, k.

    By default the scheduler takes times from 1 to nearly 0 in equal parts, and shifts them. Its setting `shift_terminal` sets the last
    time, and `shift` the times in between (see `bending`). Raises UserError where no values of the two reach the times of `sigmas`, and
    where the installed diffusers lacks the scheduler.
    """
    try:
        from diffusers import FlowMatchLCMScheduler
    except ImportError:
        raise UserError("this diffusers has no FlowMatchLCMScheduler, which draws as this generator does; install 0.34 or newer") from None
    times = sigmas / (1 + sigmas)
    steps = len(times)
    found: Any = FlowMatchLCMScheduler(
        num_train_timesteps=denoiser.timesteps,
        shift=bending((1 - times).tolist()[1:], denoiser.timesteps),
        shift_terminal=times[-1].item() if steps > 1 else None,
    )
    found.set_timesteps(steps)
    if not torch.allclose(found.sigmas[:-1].double(), times, rtol=0, atol=CLOSE):
        raise UserError(
            f"this generator's steps are at the times {', '.join(f'{time:.4g}' for time in times.tolist())}, and stock schedulers of flows "
            "take 1 first, and then equal parts that are shifted; train it with method.times=teacher and without method.sampler_timesteps"
        )
    return found


def bending(r: list[float], num: int) -> float:
    """Return the shift ``a`` with which diffusers' flow schedulers of `num` timesteps visit the shares of data `r` after the first time.

    Equal parts of time, shifted by a and stretched so that the last of them is r_k, have ``r_j`` proportional to ``j / (A - (a - 1) j)``,
    with ``A = k a (num - 1 + a) / (num - 1)`` for k shares, as the scheduler shifts its smallest time twice. The first and the last share
    give a, the smaller root of ``(q - 1) k / (num - 1) a^2 - (k - 1) a + q k - 1 = 0`` with ``q = r_k / (k r_1)``. The shift is 1 for
    fewer than two shares, and where the equation has no positive root.
    """
    k = len(r)
    if k < 2 or not r[0] > 0:
        return 1.0
    q = r[-1] / (k * r[0])
    inside = (k - 1) ** 2 - 4 * (q - 1) * k / (num - 1) * (q * k - 1)
    found = 2 * (q * k - 1) / (k - 1 + math.sqrt(inside)) if inside >= 0 else 1.0
    return found if found > 0 else 1.0
