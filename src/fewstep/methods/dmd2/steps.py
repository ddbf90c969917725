"""The samples that a student of one or several steps makes in training, each with a gradient through one step alone.

Symbols: ``n`` standard normal noise, ``sigma_1 > sigma_2 > ...`` the noise level of each step, ``x'`` a sample after its earlier steps.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.maths.parametrization import expand_like
from fewstep.maths.schedules import student_sigmas
from fewstep.methods.base import Batch
from fewstep.streams import normal, part_of, shares


def student_levels(conditioning_sigma: float, steps: int, sigmas: Sequence[float] | None) -> list[float]:
    """Return the noise levels of a student's steps, descending. Raises ValueError for `sigmas` that do not fit the other two arguments."""
    if sigmas is None:
        return student_sigmas(steps, conditioning_sigma).tolist()
    falling = all(a > b > 0 for a, b in itertools.pairwise(sigmas))
    if len(sigmas) != steps or sigmas[0] != conditioning_sigma or not falling:
        raise ValueError(
            f"method.sampler_sigmas is {list(sigmas)}; with method.sampler_steps {steps} and method.conditioning_sigma "
            f"{conditioning_sigma} give {steps} levels that fall from {conditioning_sigma}"
        )
    return list(sigmas)


def own_levels(denoiser: Any, steps: int, timesteps: Sequence[int] | None) -> list[float]:
    """Return the noise levels of a student's steps at `timesteps` of the teacher `denoiser`, from its ascending table ``sigmas``.

    Where `timesteps` is None, the levels lie at the ends of `steps` equal parts of the teacher's time, as its ``step_sigmas`` returns
    them. Raises ValueError where the denoiser has no such table, fewer timesteps than `steps`, or not these `timesteps`.
    """
    table: Tensor | None = getattr(denoiser, "sigmas", None)
    if table is None:
        raise ValueError("method.times is 'teacher', and this teacher has no timesteps, but knows all noise levels; set it to karras")
    if steps > len(table):
        raise ValueError(f"method.sampler_steps is {steps}, and the teacher has {len(table)} timesteps; give fewer")
    if timesteps is None:
        found: list[float] = denoiser.step_sigmas(steps)
        return found
    if timesteps[0] >= len(table):
        raise ValueError(f"method.sampler_timesteps is {list(timesteps)}, and the teacher's timesteps go from 0 to {len(table) - 1}")
    return [table[timestep].item() for timestep in timesteps]


class StudentSteps:
    """Draws training samples from a generator in its present state.

    Args:
        sigmas: noise levels of the generator's steps, descending.
        inputs: what a later step starts from: "backward_simulation", the output of the generator's own earlier steps, as in sampling; or
            "noised_data", real data with noise, which the step never sees in sampling.
        latent_shape: shape of one latent of a map from noise to data, which has one step; None for a denoiser.
        start: standard deviation of the initial noise; None for the first noise level.

    """

    def __init__(
        self,
        sigmas: Sequence[float],
        inputs: Literal["backward_simulation", "noised_data"],
        latent_shape: tuple[int, ...] | None,
        start: float | None = None,
    ) -> None:
        self.sigmas, self.inputs, self.latent_shape = list(sigmas), inputs, latent_shape
        self.start = self.sigmas[0] if start is None else start
        self.batches_made = 0

    def __call__(self, generator: Callable[..., Any], batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return (x [B, ...], step int64 [B]): the output of one of the generator's steps for each item, and which; None if it has one."""
        shape = self.latent_shape or batch.x.shape[1:]
        n = normal((len(batch.x), *shape), rng)
        if self.latent_shape:
            return generator(n, math.inf, batch.label), None
        sigmas = torch.tensor(self.sigmas, device=n.device)
        if len(sigmas) == 1:
            return generator(self.start * n, sigmas[0], batch.label), None
        step = self.dealt(len(n), rng).to(n.device)
        if self.inputs == "noised_data":
            sizes = torch.tensor([self.start, *self.sigmas[1:]], device=n.device)
            x = expand_like(sizes[step], n) * n + expand_like((step > 0).to(n), n) * batch.x
        else:
            x = simulated(generator, self.start * n, sigmas, step, batch.label, rng)
        return generator(x, sigmas[step], batch.label), step

    def dealt(self, num: int, rng: torch.Generator) -> Tensor:
        """Return the step that each of `num` items trains, int64 [num]: in turn from a random first step, so that all get equal shares."""
        self.batches_made += part_of(rng) == 0
        first = torch.randint(len(self.sigmas), (), generator=torch.Generator().manual_seed(self.batches_made))
        return (first + shares(len(self.sigmas), num, rng)) % len(self.sigmas)


@torch.no_grad()
def simulated(generator: Callable[..., Any], x: Tensor, sigmas: Tensor, step: Tensor, label: Tensor | None, rng: torch.Generator) -> Tensor:
    """Run backward simulation: return, like `x` [B, ...], item i of the noise `x` as its earlier steps leave it for step ``step[i]``."""
    for done, (sigma, below) in enumerate(itertools.pairwise(sigmas)):
        on = (step > done).nonzero().flatten()  # the items that take step number `done` and go on
        noise = normal(x.shape, rng)  # drawn for all items, so that an item's noise does not depend on which others go on
        if len(on):
            x0 = generator(x[on], sigma, None if label is None else label[on])
            x = x.index_copy(0, on, x0 + below * noise[on])
    return x
