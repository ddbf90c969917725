"""Export of a one-step or few-step generator as an ONNX file that takes the noise as an input.

Inputs, of any batch size B: ``latents`` float32 [B, C, H, W], or [B, L] for a push-forward, standard normal; ``labels`` int64 [B] for a
generator with classes; ``noise`` float32 [k - 1, B, C, H, W], standard normal, for a generator of k > 1 steps. Output: ``samples``
[B, C, H, W], clamped to [-1, 1] where they are images.
"""

import copy
import json
import logging
import math
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.networks.base import num_parameters
from fewstep.networks.dit.network import Sinusoids
from fewstep.version import __version__

FILE = "model.onnx"
EXAMPLE = 3  # batch size that the graph is traced with; the exporter would take 1 for a constant
MOST_BYTES = 2**31  # size that a protobuf message has to stay below


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


class SamplingGraph(nn.Module):
    """``Generator.sample`` without its random numbers: ``samples = forward(latents, labels, noise)``, of the module docstring's shapes."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.denoiser = with_constant_frequencies(generator.denoiser)
        self.levels = generator.sigmas().tolist()
        self.is_image = len(generator.shape) == 3
        self.scaled = generator.sampler["name"] == "few_step"
        self.units = generator.units
        self.classes: Tensor | None
        self.register_buffer("classes", None if generator.num_classes is None else torch.arange(generator.num_classes))

    def forward(self, latents: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Return samples [B, ...], by the steps of `fewstep.samplers.few_step`, or by the one step of a push-forward."""
        if labels is not None and self.classes is not None:
            # a label that is no class, or is the null class, lies outside this table, so that the graph's runtime refuses it
            labels = self.classes.index_select(0, torch.where(labels < 0, len(self.classes), labels))
        first = torch.tensor(self.levels[0], dtype=torch.float32)
        x = self.denoiser(latents * first if self.scaled else latents, first, labels)
        for j, level in enumerate(self.levels[1:]):
            assert noise is not None
            sigma = torch.tensor(level, dtype=torch.float32)
            x = self.denoiser(x + sigma * noise[j], sigma, labels)
        if self.units is not None:
            return self.units.back(x)
        return x.clamp(-1, 1) if self.is_image else x


def check_onnx(generator: Generator) -> None:
    """Raise UserError where a package of the extra ``fewstep[onnx]`` is missing, or `generator` is too large for one ONNX file."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError:
            raise UserError(f'--format onnx needs the package {package}; install it with: pip install "fewstep[onnx]"') from None
    if 4 * num_parameters(generator) >= MOST_BYTES:
        raise UserError(
            f"this generator has {num_parameters(generator):,} parameters, and an ONNX file holds at most 2 GiB ({MOST_BYTES // 4:,}); "
            "use --format diffusers"
        )


def _searchsorted(
    sorted_sequence: Any, values: Any, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    """Translate `torch.searchsorted` of a table [T], left side, which the exporter lacks: count the entries below each value."""
    from onnxscript import opset18

    assert not any((out_int32, right, side, sorter))
    op: Any = opset18
    below = op.Less(sorted_sequence, op.Unsqueeze(values, [-1]))
    return op.ReduceSum(op.Cast(below, to=7), [-1], keepdims=0)  # 7 is int64


def write_onnx(generator: Generator, folder: Path) -> None:
    """Write ``folder/model.onnx``, one file that holds the weights, and class names, noise levels and version among its metadata.

    Raises UserError as `check_onnx` does.
    """
    check_onnx(generator)
    import onnx_ir.passes.common as passes

    inputs = {"latents": torch.zeros(EXAMPLE, *generator.latent_shape)}
    if generator.num_classes is not None:
        inputs["labels"] = torch.zeros(EXAMPLE, dtype=torch.long)
    if generator.default_steps() > 1:
        inputs["noise"] = torch.zeros(generator.default_steps() - 1, EXAMPLE, *generator.shape)
    batch = {name: {1 if name == "noise" else 0: torch.export.Dim.DYNAMIC} for name in inputs}
    exporter = logging.getLogger("torch.onnx")  # it warns that torchvision is not installed
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = SamplingGraph(generator).eval()
            traced = torch.export.export(graph, (), inputs, dynamic_shapes=batch, strict=False)
            program = torch.onnx.export(
                traced,
                kwargs=inputs,
                input_names=list(inputs),
                output_names=["samples"],
                dynamo=True,
                verbose=False,
                custom_translation_table={torch.ops.aten.searchsorted.Tensor: _searchsorted},
            )
    finally:
        exporter.setLevel(before)
    assert program is not None
    _name_batch(program.model)
    passes.ClearMetadataAndDocStringPass()(program.model)  # a stack trace for each node, with this machine's paths
    sigmas = [sigma for sigma in generator.sigmas().tolist() if math.isfinite(sigma)]
    program.model.metadata_props.update(
        {
            "fewstep": __version__,
            "sampler": generator.sampler["name"],
            "sigmas": json.dumps(sigmas),
            "class_names": json.dumps(generator.info.get("class_names") or []),
        }
    )
    program.save(folder / FILE, external_data=False)


def _name_batch(model: Any) -> None:
    """Name the batch axis ``batch`` in all shapes, in place of the name that the exporter made up."""
    made_up = str(model.graph.outputs[0].shape[0])
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if str(size) == made_up:
                value.shape[axis] = "batch"


def read_onnx(folder: Path, generator: Generator) -> Callable[[int, list[int] | None, int], Tensor]:
    """Return ``draw(num, labels, seed)``, which runs onnxruntime on the CPU with the noise of ``Generator.sample`` for that seed."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def draw(num: int, labels: list[int] | None, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        inputs = {"latents": torch.randn(num, *generator.latent_shape, generator=rng)}
        if labels is not None:
            inputs["labels"] = torch.tensor(labels)
        more = [torch.randn(num, *generator.shape, generator=rng) for _ in range(generator.default_steps() - 1)]
        if more:
            inputs["noise"] = torch.stack(more)
        (samples,) = session.run(["samples"], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(samples)

    return draw
