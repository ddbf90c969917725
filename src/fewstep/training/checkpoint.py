"""Checkpoints: each is written whole or not at all, and verified by checksums when it is read.

A checkpoint is a folder ``step_N`` with one safetensors file per network, ``optimizers.pt``, ``rng.safetensors``, ``state.json``, and
``manifest.json`` with the SHA-256 of each file. Sharded networks add the files of `fewstep.training.shards`.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fewstep import files
from fewstep.text import parse_json, read_json
from fewstep.weights import apart

MANIFEST = "manifest.json"
SHARDS = "shards"


class Damaged(ValueError):
    """Raised for a checkpoint whose files are missing, or differ from the checksums in its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume.

    Attributes:
        networks: state dict of each network and of the moving average, by name.
        optimizers: state dict of each turn's optimizer, by the turn's name.
        rng: states of the random generators, by name, with one row per process: uint8 [processes, bytes].
        state: everything else, as values that JSON can hold.
        shards: the folder of the tensors that a sharded run keeps outside `networks` and `optimizers`; None for other runs.

    """

    networks: Mapping[str, Mapping[str, Tensor]]
    optimizers: Mapping[str, Any]
    rng: Mapping[str, Tensor]
    state: Mapping[str, Any]
    shards: Path | None = None


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return `tensors` serialized in the safetensors format."""
    return safetensors.torch.save(apart(tensors))


def save_checkpoint(folder: Path, checkpoint: Checkpoint, shards: Callable[[Path], Mapping[str, str]] = lambda folder: {}) -> None:
    """Write `checkpoint` to `folder` (``.../step_N``), completely or not at all. Raises OSError.

    `shards` is called with the folder being written; it may add files, and returns the SHA-256 of each by its name in the folder.
    """
    with files.replace_folder(folder) as partial:
        manifest = dict(shards(partial))
        for name, tensors in checkpoint.networks.items():
            manifest[f"{name}.safetensors"] = files.write_file(partial / f"{name}.safetensors", tensor_bytes(tensors))
        buffer = io.BytesIO()
        torch.save(dict(checkpoint.optimizers), buffer)
        manifest["optimizers.pt"] = files.write_file(partial / "optimizers.pt", buffer.getvalue())
        manifest["rng.safetensors"] = files.write_file(partial / "rng.safetensors", tensor_bytes(checkpoint.rng))
        manifest["state.json"] = files.write_file(partial / "state.json", json.dumps(checkpoint.state).encode())
        files.write_file(partial / MANIFEST, json.dumps(manifest, indent=1).encode())


def load_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in `folder`, verified, with its tensors on the CPU; no code in the files is executed.

    Raises Damaged for a file that is missing, does not match its checksum or cannot be read.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        shards = [name for name in dict(manifest) if name.startswith(f"{SHARDS}/")]
        contents = {name: (folder / name).read_bytes() for name in manifest if name not in shards}
        digests = {name: files.sha256_of(folder / name) for name in shards}
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(f"{folder.name} is not whole: {error}") from error
    if not {"optimizers.pt", "rng.safetensors", "state.json"} <= contents.keys():
        raise Damaged(f"{folder.name} is not whole: its manifest names {sorted(contents)}")
    digests |= {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for name, digest in manifest.items():
        if digests[name] != digest:
            raise Damaged(f"{folder.name} is damaged: {name} is not what was written")
    tensors = {name.removesuffix(".safetensors"): contents[name] for name in contents if name.endswith(".safetensors")}
    number = folder.name.removeprefix("step_")
    try:
        state = parse_json(contents["state.json"])
        if not isinstance(state, dict) or state.get("step") != (int(number) if number.isdigit() else state.get("step")):
            raise ValueError(f"its state.json is of step {state.get('step') if isinstance(state, dict) else state}")
        loaded = {name: safetensors.torch.load(content) for name, content in tensors.items()}
        rng = loaded.pop("rng")
        _check_optimizers(contents["optimizers.pt"])
        optimizers = torch.load(io.BytesIO(contents["optimizers.pt"]), map_location="cpu", weights_only=True)
        return Checkpoint(loaded, optimizers, rng, state, folder / SHARDS if shards else None)
    except Exception as error:  # safetensors, pickle, zip and json each raise exceptions of their own
        raise Damaged(f"{folder.name} is damaged: {error}") from error


def _check_optimizers(content: bytes) -> None:
    """Raise ValueError if the zip archive `content` unpacks to more bytes than its own size: torch stores tensors uncompressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(content):
            raise ValueError("optimizers.pt claims to unpack to more than its own size, which no checkpoint does")


def checkpoints(folder: Path) -> list[Path]:
    """Return the paths of the checkpoint folders ``step_N`` in `folder`, newest first."""
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)
