"""Load weights, and check that they fit the network: before memory is allocated for it, and before they are used."""

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

WEIGHTS, LORA_FILE = "model.safetensors", "pytorch_lora_weights.safetensors"  # LORA_FILE is the name that diffusers uses
MOST_TENSORS = 50_000  # limit on the tensors of a network whose weight file is not known
FLOATING = ("F64", "F32", "F16", "BF16")
Module = TypeVar("Module", bound=nn.Module)
Header = Mapping[str, tuple[tuple[int, ...], str]]
"""(shape, type) of each tensor in a weight file, by the tensor's name; types have the names of safetensors, such as "F32"."""


def weight_file(config: Any) -> str | None:
    """Return the name of the weight file beside a config.json with content `config`; None where all weights are in a pipeline."""
    base = config.get("base") if isinstance(config, Mapping) else None
    if not isinstance(base, Mapping):
        return WEIGHTS
    return None if base.get("rank") is None else LORA_FILE


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` as safetensors takes them: detached, in main memory, contiguous, and each in memory of its own.

    Weights that a network uses under two names share one memory, and are copied for each name but the first.
    """
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        found[name] = whole.clone() if place in places else whole
        places.add(place)
    return found


def is_whole(folder: Path) -> bool:
    """Return whether a model folder has a readable config.json, and the weight file that belongs to it, if any does."""
    try:
        file = weight_file(read_json(folder / "config.json"))
    except (OSError, ValueError):
        return False
    return file is None or (folder / file).is_file()


def based_arguments(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the arguments in a model folder's config.json if the model has a ``base``, a pipeline whose weights it uses; else None.

    `name` is what messages call the folder. Raises UserError for a config.json of a newer version of fewstep.
    """
    try:
        found = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None  # the error is reported when the folder is loaded
    if not isinstance(found, dict) or found.get("base") is None:
        return None
    with reading(name):
        return brought_forward(found)


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn every exception raised inside into a UserError that says that the generator in the folder `name` cannot be read, and why."""
    try:
        yield
    except UserError as error:  # such as for a class that the folder may not name: the files themselves are not damaged
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # torch, safetensors, json and the network raise kinds of their own
        raise UserError(f"the generator in {name} cannot be read ({first_line(error)}); write it again, or take another copy") from error


def load_folder(folder: Path, name: str, make: Callable[..., Module]) -> Module:
    """Return ``make(**arguments)`` with the arguments in a model folder's config.json, and load the folder's weights into it.

    `name` is what messages call the folder. Raises UserError for missing or damaged files, and for weights that do not fit.
    """
    from safetensors.torch import load_file

    missing = [file for file in ("config.json", WEIGHTS) if not (folder / file).is_file()]
    if missing and (folder / "model_index.json").is_file():
        raise UserError(f"{name} is a pipeline of diffusers; make a model folder that refers to it: fewstep import {name} --out FOLDER")
    if missing and (folder / LORA_FILE).is_file():
        raise UserError(
            f"{name} holds a LoRA for stock diffusers ({LORA_FILE}); give the run or the model folder that it was exported from"
        )
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
    """Return the shape and type of each tensor in a safetensors file, read from its header. Raises safetensors' exceptions, and OSError."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - safe_open is not a mapping
        return {key: (tuple(found.get_shape()), str(found.get_dtype())) for key, found in slices.items()}


def check_header(header: Header, make: Callable[[], nn.Module]) -> None:
    """Raise ValueError where the tensors in a file's `header` are not those of the network that `make` returns.

    The network is made on the meta device, without memory. One that cannot be made there, as may be the case for a user's own, is not
    checked.
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
    """Return how many numbers the network that `make` returns holds, made on the meta device; None where it cannot be made there.

    Raises ValueError for a network of far more than `tensors` tensors.
    """
    try:
        with torch.device("meta"), _at_most(tensors):
            return sum(tensor.numel() for tensor in make().state_dict().values())
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error).lower():
            return None
        raise


@contextlib.contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Raise ValueError inside the block as soon as a network gets far more parameters or modules than `tensors` tensors need."""
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
    """Raise ValueError, naming the tensor, where one of `weights` has values that are NaN or infinite."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            raise ValueError(f"{name} holds {int((~finite).sum()):,} of {tensor.numel():,} values that are not finite (NaN or infinity)")
