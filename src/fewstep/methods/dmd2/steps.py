"""What a student of one or several steps makes while it learns: its samples, each with a gradient through one step alone.

Symbols: ``n`` standard normal noise, noise levels ``sigma_1 > sigma_2 > ...``, one a step; ``x'`` what a sample's earlier steps have left.
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
    """The noise levels of a student's steps, descending. Raises ValueError where those given do not fit the other two settings."""
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
    """The noise levels of a student's steps at `timesteps` of its teacher `denoiser`, which has a table `sigmas` of them, ascending.

    Where none are given they are the ends of equal parts of its time, as the teacher's ``step_sigmas`` has them. Raises ValueError where
    it has no such table, or no such timestep.
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
    """Draws training samples from a generator as it stands.

    Args:
        sigmas: noise levels of its steps, descending.
        inputs: what a later step starts from: "backward_simulation", the generator's own earlier steps, as it will be sampled; or
            "noised_data", real data, which it will never see there.
        latent_shape: shape of one latent of a map from noise to data, which has one step; None for a denoiser.
        start: size of the first noise; None for the first level.

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
        """(x, step): what `generator` makes at one of its steps, dealt to the items in turn, [B, ...] and int64 [B] (None of one step)."""
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
        """The step that each of `num` items trains, int64 [num]: an equal share of the whole batch for each, from a random first one."""
        self.batches_made += part_of(rng) == 0
        first = torch.randint(len(self.sigmas), (), generator=torch.Generator().manual_seed(self.batches_made))
        return (first + shares(len(self.sigmas), num, rng)) % len(self.sigmas)


@torch.no_grad()
def simulated(generator: Callable[..., Any], x: Tensor, sigmas: Tensor, step: Tensor, label: Tensor | None, rng: torch.Generator) -> Tensor:
    """Backward simulation: each item of `x` [B, ...] as its own earlier steps have left it before step ``step[i]``, like x."""
    for done, (sigma, below) in enumerate(itertools.pairwise(sigmas)):
        on = (step > done).nonzero().flatten()  # the items that take step number `done` and go on
        noise = normal(x.shape, rng)  # drawn for all, so that an item's does not depend on which others go on
        if len(on):
            x0 = generator(x[on], sigma, None if label is None else label[on])
            x = x.index_copy(0, on, x0 + below * noise[on])
    return x
