"""Weights held against the network that is to take them: before memory is taken for it, and before they are used."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook, register_module_parameter_registration_hook

from fewstep.errors import UserError, first_line
from fewstep.model_config import brought_forward
from fewstep.text import read_json

WEIGHTS, LORA_FILE = "model.safetensors", "pytorch_lora_weights.safetensors"  # the latter as stock diffusers calls it
MOST_TENSORS = 50_000  # of a network whose weights are not there yet
FLOATING = ("F64", "F32", "F16", "BF16")
Module = TypeVar("Module", bound=nn.Module)
Header = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and type, as safetensors names it, of each tensor of a file."""


def weight_file(config: Any) -> str | None:
    """The file of weights beside a config.json that holds `config`; None for a model whose weights are all another's."""
    base = config.get("base") if isinstance(config, Mapping) else None
    if not isinstance(base, Mapping):
        return WEIGHTS
    return None if base.get("rank") is None else LORA_FILE


def is_whole(folder: Path) -> bool:
    """Whether a model folder has its config.json, which can be read, and the weights that belong to it."""
    try:
        file = weight_file(read_json(folder / "config.json"))
    except (OSError, ValueError):
        return False
    return file is None or (folder / file).is_file()


def based_arguments(folder: Path, name: str) -> dict[str, Any] | None:
    """What config.json in a model folder called `name` says of a model that stands on another's weights; None of any other folder.

    Raises UserError for one of a newer version.
    """
    try:
        found = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None  # told by whoever reads it next
    if not isinstance(found, dict) or found.get("base") is None:
        return None
    with reading(name):
        return brought_forward(found)


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Inside, whatever is raised becomes a UserError that says that the generator in the folder `name` cannot be read, and why."""
    try:
        yield
    except UserError as error:  # a room that may not be had: nothing is wrong with the folder
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # torch, safetensors, json and the network each have their own
        raise UserError(f"the generator in {name} cannot be read ({first_line(error)}); write it again, or take another copy") from error


def load_folder(folder: Path, name: str, make: Callable[..., Module]) -> Module:
    """What config.json in a model folder called `name` describes, by `make(**arguments)`, with its weights. Raises UserError."""
    from safetensors.torch import load_file

    missing = [file for file in ("config.json", WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{name} holds no generator ({' and '.join(missing)} not found); give a run folder that has reached its first "
            "checkpoint, or a model folder"
        )
    with reading(name):
        arguments = brought_forward(read_json(folder / "config.json"))
        with torch.random.fork_rng(devices=[]):
            check_header(header_of(folder / WEIGHTS), lambda: make(**arguments))
            module = make(**arguments)
        weights = load_file(folder / WEIGHTS)
        check_finite(weights)
        module.load_state_dict(weights)
    return module


def header_of(path: Path) -> Header:
    """What a safetensors file holds, without its contents. Raises the library's own exceptions for what is none."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        return {key: (tuple(found.get_shape()), str(found.get_dtype())) for key, found in slices.items()}


def check_header(header: Header, make: Callable[[], nn.Module]) -> None:
    """Raise ValueError where the tensors of a file are not those of the network that `make` makes, which is made without any memory.

    A network that cannot be made so, as somebody's own may be, is not looked at.
    """
    try:
        with torch.device("meta"), _at_most(len(header)):
            expected = make().state_dict()
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error).lower():
            return
        raise
    if (missing := next((name for name in expected if name not in header), None)) is not None:
        raise ValueError(f"model.safetensors has no {missing}, which the network in config.json has")
    for name, (shape, kind) in header.items():
        if name not in expected:
            raise ValueError(f"model.safetensors has {name}, which the network in config.json has not")
        if shape != tuple(expected[name].shape):
            raise ValueError(f"{name} has shape {list(shape)}, and the network in config.json has it of {list(expected[name].shape)}")
        if expected[name].is_floating_point() and kind not in FLOATING:
            raise ValueError(f"{name} is of type {kind}; weights are floating point")


def numbers_of(make: Callable[[], nn.Module], tensors: int = MOST_TENSORS) -> int | None:
    """How many numbers the network that `make` makes holds, found without memory; None where it cannot be. Raises ValueError."""
    try:
        with torch.device("meta"), _at_most(tensors):
            return sum(tensor.numel() for tensor in make().state_dict().values())
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error).lower():
            return None
        raise


@contextlib.contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Inside, no network is made of many more tensors than so many, whatever its config asks for. Raises ValueError."""
    left = {"parameters": 2 * tensors + 1_000, "modules": 40 * tensors + 10_000}

    def count(kind: str) -> Callable[..., None]:
        def counted(module: nn.Module, name: str, value: Any) -> None:
            left[kind] -= 1
            if left[kind] < 0:
                raise ValueError(f"config.json asks for a network of far more layers than model.safetensors, with {tensors} tensors, has")

        return counted

    hooks = (
        register_module_parameter_registration_hook(count("parameters")),
        register_module_module_registration_hook(count("modules")),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a weight is NaN or infinite, naming its tensor."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            raise ValueError(f"{name} holds {int((~finite).sum()):,} of {tensor.numel():,} values that are not finite (NaN or infinity)")
