"""Export of a one-step or few-step generator as an ONNX file that takes the noise as an input.

Inputs, of any batch size B: ``latents`` float32 [B, C, H, W], or [B, L] for a push-forward, standard normal; ``labels`` int64 [B] for a
generator with classes; ``noise`` float32 [k - 1, B, C, H, W], standard normal, for a generator of k > 1 steps that adds new noise between
them; ``xi`` float32 [k, B, ...], standard normal, for one that draws from a posterior by a second noise. Output: ``samples`` [B, C, H, W],
clamped to [-1, 1] where they are images.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.interop.sampling_graph import SAMPLED, SamplingGraph, drawn_inputs
from fewstep.networks.base import num_parameters
from fewstep.version import __version__

FILE = "model.onnx"
EXAMPLE = 3  # batch size that the graph is traced with; the exporter would take 1 for a constant
MOST_BYTES = 2**31  # size that a protobuf message has to stay below


def check_onnx(generator: Generator) -> None:
    """Raise UserError where a package of the extra ``fewstep[onnx]`` is missing, or one ONNX file cannot hold `generator`."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError:
            raise UserError(f'--format onnx needs the package {package}; install it with: pip install "fewstep[onnx]"') from None
    if (name := generator.sampler["name"]) not in SAMPLED:
        raise UserError(
            f"this generator is sampled with {name}, and an ONNX file holds the steps of {', '.join(SAMPLED)} only; draw from it with "
            "fewstep sample"
        )
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

    inputs = drawn_inputs(generator, EXAMPLE, 0)
    if generator.num_classes is not None:
        inputs["labels"] = torch.zeros(EXAMPLE, dtype=torch.long)
    batch = {name: {1 if name in ("noise", "xi") else 0: torch.export.Dim.DYNAMIC} for name in inputs}
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
        inputs = drawn_inputs(generator, num, seed)
        if labels is not None:
            inputs["labels"] = torch.tensor(labels)
        (samples,) = session.run(["samples"], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(samples)

    return draw
