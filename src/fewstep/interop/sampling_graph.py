"""A generator's sampling as one graph without random numbers, which are inputs instead: what an ONNX file holds.

Symbols: B items, k steps, levels ``sigma_j`` from the first to the last; ``sigma_k = 0``.
"""

import copy
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import Guided, PosteriorDenoiser
from fewstep.generator import Generator
from fewstep.maths.schedules import bridge
from fewstep.networks.dit.network import Sinusoids

SAMPLED = ("few_step", "push_forward", "two_time", "distributional")  # samplers whose steps `SamplingGraph` takes


class ConstantFrequencies(nn.Module):
    """A sinusoidal time embedding whose frequencies are numbers in the graph.

    Networks work them out by ``exp`` at each call, which the exporter evaluates with another library. A frequency that differs in its last
    bit turns a timestep of 1,000 ln(sigma)/4 by 1e-4 of a radian, and pixels of a trained network by more than an export may differ.

    Args:
        frequencies: float32 [channels / 2].
        scale: factor of every angle.
        cosines_first: whether the cosines come before the sines.

    """

    def __init__(self, frequencies: Tensor, scale: float = 1, cosines_first: bool = True) -> None:
        super().__init__()
        self.scale, self.cosines_first = scale, cosines_first
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies)

    def forward(self, timesteps: Tensor) -> Tensor:
        """The embedding [B, channels] of `timesteps` [B]."""
        angle = self.scale * (timesteps[:, None].float() * self.frequencies)
        waves = [angle.sin(), angle.cos()]
        return torch.cat(waves[::-1] if self.cosines_first else waves, -1)

    @classmethod
    def of(cls, module: nn.Module) -> "ConstantFrequencies | None":
        """The same embedding as `module`, if that is diffusers' or the DiT's; None for any other module."""
        from diffusers.models.embeddings import Timesteps

        if isinstance(module, Sinusoids):
            return cls(module.frequencies())
        if isinstance(module, Timesteps) and module.num_channels % 2 == 0:  # diffusers appends a 0 to an odd number of channels
            half = module.num_channels // 2
            exponent = -math.log(10_000) * torch.arange(half, dtype=torch.float32) / (half - module.downscale_freq_shift)
            return cls(exponent.exp(), module.scale, module.flip_sin_to_cos)
        return None


def with_constant_frequencies(denoiser: nn.Module) -> nn.Module:
    """A copy of `denoiser` whose time embeddings are `ConstantFrequencies`."""
    denoiser = copy.deepcopy(denoiser)
    for module in list(denoiser.modules()):
        for name, child in module.named_children():
            if (constant := ConstantFrequencies.of(child)) is not None:
                setattr(module, name, constant)
    return denoiser


def draws(generator: Generator) -> list[str]:
    """Return the inputs from which one sample of `generator` draws after its latents, in the order in which `Generator.sample` draws them.

    "noise" is noise of the shape of an item, between two steps; "xi" is the second noise of a step of a distributional denoiser.
    """
    name, between = generator.sampler["name"], generator.default_steps() - 1
    if name == "distributional":
        step = ["xi", "noise"] if generator.sampler["churn"] else ["xi"]
        return [*step * between, "xi"]
    return ["noise"] * between if name == "few_step" or generator.sampler.get("churn") else []


def noise_shapes(generator: Generator) -> dict[str, tuple[int, ...]]:
    """Return the shape of each random input for one item, without its batch axis: ``latents``, and ``noise`` and ``xi`` where it has them.

    ``noise`` and ``xi`` have as many noises of each item, on their first axis, as `draws` lists.
    """
    order = draws(generator)
    shapes = {"latents": tuple(generator.latent_shape)}
    if "noise" in order:
        shapes["noise"] = (order.count("noise"), *generator.shape)
    if "xi" in order:
        shapes["xi"] = (order.count("xi"), *cast(PosteriorDenoiser, generator.denoiser).xi_shape)
    return shapes


def drawn_inputs(generator: Generator, num: int, seed: int) -> dict[str, Tensor]:
    """Return the random inputs for `num` items, from the numbers that ``Generator.sample(num, seed=seed)`` draws in one batch.

    ``latents`` is float32 [num, ...], ``noise`` and ``xi`` are [noises, num, ...].
    """
    rng, shapes = torch.Generator().manual_seed(seed), noise_shapes(generator)
    inputs = {"latents": torch.randn(num, *shapes["latents"], generator=rng)}
    found: dict[str, list[Tensor]] = {name: [] for name in shapes if name != "latents"}
    for name in draws(generator):
        found[name].append(torch.randn(num, *shapes[name][1:], generator=rng))
    return inputs | {name: torch.stack(noises) for name, noises in found.items()}


class SamplingGraph(nn.Module):
    """``Generator.sample`` without its random numbers: ``samples = forward(latents, labels, noise, xi)``, for the samplers `SAMPLED`.

    `latents` is [B, ...], `labels` int64 [B], `noise` and `xi` [noises, B, ...] as `noise_shapes` says; those that the generator has not
    are None.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.denoiser = with_constant_frequencies(generator.denoiser)
        self.sampler = generator.sampler["name"]
        self.levels = generator.sigmas().float().tolist()
        self.start = float(generator.sampler.get("start") or self.levels[0])  # standard deviation of the first noise
        self.churn = float(generator.sampler.get("churn", 0.0))
        self.guidance_scale = generator.guidance_scale
        self.is_image = len(generator.shape) == 3
        self.units = generator.units
        self.classes: Tensor | None
        self.register_buffer("classes", None if generator.num_classes is None else torch.arange(generator.num_classes))
        walk = {"two_time": self._gaps, "distributional": self._bridges}.get(self.sampler)
        self.numbers = [[number.item() for number in step] for step in walk(generator)] if walk else []

    def forward(self, latents: Tensor, labels: Tensor | None = None, noise: Tensor | None = None, xi: Tensor | None = None) -> Tensor:
        """Return samples [B, ...]."""
        if labels is not None and self.classes is not None:
            # a label that is no class, or is the null class, lies outside this table, so that the graph's runtime refuses it
            labels = self.classes.index_select(0, torch.where(labels < 0, len(self.classes), labels))
        x = getattr(self, f"_{self.sampler}")(latents, labels, noise, xi)
        if self.units is not None:
            return self.units.back(x)
        return x.clamp(-1, 1) if self.is_image else x

    def _push_forward(self, latents: Tensor, labels: Tensor | None, *unused: Tensor | None) -> Tensor:
        return self.denoiser(latents, torch.tensor(self.levels[0]), labels)

    def _few_step(self, latents: Tensor, labels: Tensor | None, noise: Tensor | None, *unused: Tensor | None) -> Tensor:
        first, *later = (torch.tensor(level) for level in self.levels)
        x = self.denoiser(latents * self.start, first, labels)
        for j, sigma in enumerate(later):
            assert noise is not None
            x = self.denoiser(x + sigma * noise[j], sigma, labels)
        return x

    def _gaps(self, generator: Generator) -> Iterator[tuple[Tensor, ...]]:
        """Yield (sigma, rho, rho / sigma, 1 - rho / sigma, standard deviation of the new noise) of each step of a flow map."""
        for sigma, level in pairwise(torch.tensor([*self.levels, 0.0])):
            rho = math.sqrt(1 - self.churn**2) * level
            yield sigma, rho, rho / sigma, 1 - rho / sigma, self.churn * level

    def _two_time(self, latents: Tensor, labels: Tensor | None, noise: Tensor | None, *unused: Tensor | None) -> Tensor:
        x = latents * self.numbers[0][0]
        for j, (sigma, rho, kept, taken, std) in enumerate(self.numbers):
            x = kept * x + taken * self.denoiser(x, torch.tensor(sigma), labels, torch.tensor(rho))
            if std:
                assert noise is not None
                x = x + std * noise[j]
        return x

    def _bridges(self, generator: Generator) -> Iterator[tuple[Tensor, ...]]:
        """Yield (time, coefficients of x and of x0 in the mean of the bridge, its standard deviation) of each step."""
        zero, one = torch.zeros(1), torch.ones(1)
        for t, s in pairwise([*generator.sigmas().tolist(), 0.0]):
            of_x0, std = bridge(one, zero, s, t, self.churn)
            yield torch.tensor(t), bridge(zero, one, s, t, self.churn)[0], of_x0, std if s else zero

    def _distributional(self, latents: Tensor, labels: Tensor | None, noise: Tensor | None, xi: Tensor | None) -> Tensor:
        assert xi is not None
        x, denoiser = latents, Guided.of(self.denoiser, self.guidance_scale)
        for j, (t, of_x, of_x0, std) in enumerate(self.numbers):
            x = of_x * x + of_x0 * denoiser(x, torch.tensor(t), labels, xi[j])
            if std:
                assert noise is not None
                x = x + std * noise[j]
        return x
