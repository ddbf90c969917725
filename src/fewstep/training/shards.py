"""Checkpoints of sharded networks: each process writes its shards, and any number of processes can read them when the run is resumed.

The files are those of `torch.distributed.checkpoint` in its safetensors format, which holds only tensors: reading it executes no code,
unlike the library's default format. They are read into shards, or into whole tensors where the run goes on unsharded.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor

from fewstep import files
from fewstep.errors import UserError, first_line
from fewstep.training.checkpoint import SHARDS, Checkpoint
from fewstep.training.loading import from_all
from fewstep.training.sharding import in_shares, like


class Shares:
    """The sharded tensors of a run on `fabric` that a checkpoint keeps, by the names that they have in its files."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.tensors: dict[str, Tensor] = {}

    def out_of_networks(self, networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return the state dicts `networks`, by name, without their sharded tensors, which are added to ``self.tensors``."""
        for name, state in networks.items():
            self.tensors |= {_weight(name, key): tensor for key, tensor in state.items() if in_shares(tensor)}
        return {name: {key: tensor for key, tensor in state.items() if not in_shares(tensor)} for name, state in networks.items()}

    def out_of_optimizers(self, optimizers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state dicts `optimizers`, by turn, with None for their sharded tensors, which are added to ``self.tensors``."""
        found = {}
        for turn, state in optimizers.items():
            kept = {number: dict(moments) for number, moments in state["state"].items()}
            for number, moments in kept.items():
                for key, value in moments.items():
                    if isinstance(value, Tensor) and in_shares(value):
                        self.tensors[_moment(turn, number, key)] = value
                        moments[key] = None
            found[turn] = {**state, "state": kept}
        return found

    def write(self, folder: Path | None = None) -> dict[str, str]:
        """Write the sharded tensors into `folder`, which the first process gives; return the SHA-256 of each file by its name in `folder`.

        All processes must call it together. Raises OSError in all of them where one cannot write.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        place = Path(self.fabric.broadcast(str(folder and folder.absolute()))) / SHARDS
        try:
            save(self.tensors, storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True))
        except CheckpointException as error:
            causes = [failure[0] for failure in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, OSError)), OSError(str(causes[0]))) from error
        mine = place.glob(f"shard-{self.fabric.global_rank + 1:05d}-*")
        digests = from_all({"of": {f"{SHARDS}/{path.name}": files.sha256_of(path) for path in mine}}, self.fabric)
        return {name: digest for one in digests for name, digest in one["of"].items()}


def filled(checkpoint: Checkpoint, weights: Mapping[str, Mapping[str, Tensor]], optimizers: Mapping[str, Any]) -> Checkpoint:
    """Return `checkpoint` with the tensors that its shards hold; `checkpoint` itself where it has no shards.

    Each tensor is sharded, or whole, like its counterpart in `weights` (state dicts by name) or among the parameters of `optimizers`. All
    processes must call this together. Raises UserError where the shards cannot be read into these networks.
    """
    if checkpoint.shards is None:
        return checkpoint
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    wanted: dict[str, Tensor] = {}
    networks = {name: dict(tensors) for name, tensors in checkpoint.networks.items()}
    for name, state in weights.items():
        for key in state.keys() - networks.get(name, {}).keys():
            wanted[_weight(name, key)] = networks.setdefault(name, {})[key] = torch.empty_like(state[key])
    for turn, optimizer in optimizers.items():
        learned: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, moments in checkpoint.optimizers[turn]["state"].items():
            for key in [key for key, value in moments.items() if value is None]:
                wanted[_moment(turn, number, key)] = moments[key] = torch.empty_like(learned[number])
    try:
        reader = HuggingFaceStorageReader(str(checkpoint.shards))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns where there is one process only
            load(wanted, storage_reader=reader, no_dist=not (dist.is_available() and dist.is_initialized()))
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"{checkpoint.shards} cannot be read into the networks of this run: {_cause(error)}") from error
    return replace(checkpoint, networks=networks)


def moments_like(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optimizer state dict `state` with each moment sharded like its parameter in `optimizer`, where that is sharded."""
    learned: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    each = {
        number: {key: like(value, learned[number]) if value.shape == learned[number].shape else value for key, value in moments.items()}
        for number, moments in state["state"].items()
    }
    return {**state, "state": each}


def _cause(error: BaseException) -> str:
    failures: Mapping[int, Any] = getattr(error, "failures", {})  # by process
    return first_line(next((failure[0] for failure in failures.values()), error))


def _weight(network: str, key: str) -> str:
    return f"networks/{network}/{key}"


def _moment(turn: str, number: int, key: str) -> str:
    return f"optimizers/{turn}/{number}/{key}"
