"""Sharded networks: each of several processes keeps its shard of every weight, gradient and optimizer moment (FSDP2, arXiv 2304.11277).

All networks that a method calls are sharded, frozen ones too: a frozen teacher, or the base model of low-rank adapters (LoRA), is as large
as the trained network. A network is gathered block by block, each for as long as it is called. A block is an entry of an ``nn.ModuleList``
with at least a hundredth of its network's parameters, the innermost first; the remaining parameters are gathered with the network as a
whole. Low-rank adapters are sharded like any weights, and are one block.

The moving average is never called during training: its tensors are sharded like those that it follows, and `whole` makes an unsharded copy
when one is needed.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fewstep.denoisers.adapted import grounds
from fewstep.errors import UserError, first_line
from fewstep.generator import Generator
from fewstep.methods.base import Method
from fewstep.networks.base import whole_tensor as whole_tensor

LEAST = 0.01  # smallest share of a network's parameters that makes a module a block of its own
DEVICES = ("cpu", "cuda")
GATHERED = 4  # memory for gathering, in block sizes: the buffer received, the weights, and both again for the next block or gradients
INSTEAD = "give trainer.strategy=ddp, which keeps all of every network in each process"


def strategy() -> ModelParallelStrategy:
    """Return the Lightning strategy that starts and connects the processes, and leaves networks unchanged: `shard` shards all of them.

    By itself the strategy would shard only the networks that it is given to train, over a mesh of nodes times devices. Raises UserError for
    a torch version without FSDP2 or safetensors checkpoints.
    """
    try:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # noqa: F401
        from torch.distributed.fsdp import fully_shard  # noqa: F401
    except ImportError:
        raise UserError(
            f"trainer.strategy is fsdp, which torch {torch.__version__} does not have; install a newer one, or give ddp"
        ) from None
    return ModelParallelStrategy(lambda module, mesh: module)


def check_device(kind: str) -> None:
    """Raise UserError where networks cannot be sharded on devices of type `kind`, such as "mps"."""
    if kind not in DEVICES:
        raise UserError(f"trainer.strategy is fsdp, and trainer.accelerator is {kind} here; give {' or '.join(DEVICES)}, or strategy=auto")


def is_sharded(fabric: Fabric) -> bool:
    """Return whether networks are sharded in runs on `fabric` (``trainer.strategy`` fsdp)."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def called_by(method: Method) -> list[nn.Module]:
    """Return all networks that `method` may call, each once: its own, its generators' denoisers, and the base models of adapters."""
    found = [*method.networks.values(), *(part.denoiser for part in vars(method).values() if isinstance(part, Generator))]
    return list({id(module): module for network in found for module in (network, *grounds(network))}.values())


def shard(method: Method, average: nn.Module, fabric: Fabric) -> None:
    """Shard all networks of `method`, and the moving average `average` of the one that ships, over the devices of `fabric`, block by block.

    They may be on any device, but must be unsharded and equal in all processes. Raises UserError for a network that cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # torch warns that a returned view must not be modified in place, which nothing here does
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(fabric.device.type, (fabric.world_size,))
    for network in called_by(method):
        try:
            for module in [*blocks(network), network] if next(network.parameters(), None) is not None else ():
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
                module.register_forward_hook(lambda module, told, output: _differentiated_once(output))
                for entrance in getattr(module, "forward_methods", ()):
                    register_fsdp_forward_method(module, entrance)
                    setattr(module, entrance, _watched(getattr(module, entrance)))
        except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
            kind = type(network).__name__.removeprefix("FSDP")
            raise UserError(f"trainer.strategy is fsdp, and a {kind} cannot be sharded ({first_line(error)}); {INSTEAD}") from error
    shares = {id(p): nn.Parameter(_share(p.detach(), mesh), requires_grad=False) for p in average.parameters()}
    for module in average.modules():
        for name, parameter in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
            module.register_parameter(name, shares[id(parameter)])
    average.to(fabric.device)  # moves the buffers


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the modules of `network` that are gathered separately, the innermost first, by the rule in this module's docstring.

    A module that shares a parameter with modules outside it is not one of them.
    """
    uses = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    least = LEAST * sum(parameter.numel() for parameter in network.parameters())
    listed = {id(child): child for module in network.modules() if isinstance(module, nn.ModuleList) for child in module}
    found, taken = [], set[int]()
    for module in reversed([module for module in network.modules() if id(module) in listed]):
        mine = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
        left = sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in taken)
        if left >= max(1, least) and all(uses[key] == times for key, times in mine.items()) and not isinstance(module, nn.ModuleList):
            found.append(module)
            taken |= mine.keys()
    return found


def peak(network: nn.Module) -> int:
    """Return an estimate of the bytes that a device needs beside its shard while `network`, not sharded yet, is called and gathered."""
    sizes, seen = [0], set[int]()
    for module in (*blocks(network), network):
        mine = [parameter for parameter in module.parameters() if id(parameter) not in seen]
        sizes.append(sum(parameter.numel() * parameter.element_size() for parameter in mine))
        seen |= {id(parameter) for parameter in mine}
    return GATHERED * max(sizes)


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Gather `modules` in every process, which may then call them independently of the others. All processes must enter together."""
    sharded = [module for module in modules if any(map(in_shares, module.parameters()))]
    if not sharded:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [part for module in sharded for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def in_shares(tensor: Tensor) -> bool:
    """Return whether `tensor` is sharded (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def share(tensor: Tensor) -> Tensor:
    """Return this process's shard of `tensor`, in the same memory; `tensor` itself if it is not sharded."""
    dtensor: Any = tensor
    return dtensor.to_local() if in_shares(tensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return `tensor` sharded like `other`; `tensor` itself if it is sharded already, or `other` is not."""
    dtensor: Any = other
    return _share(tensor, dtensor.device_mesh) if in_shares(other) and not in_shares(tensor) else tensor


def whole(module: nn.Module) -> nn.Module:
    """Return an unsharded copy of the average `module`, for which all processes must call this together; `module` if it is not sharded."""
    shares = [p for p in module.parameters() if in_shares(p)]
    memo: dict[int, Any] = {id(p): nn.Parameter(whole_tensor(p), requires_grad=False) for p in shares}
    return copy.deepcopy(module, memo) if shares else module


def _watched(entrance: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*told: Any, **more: Any) -> Any:
        output = entrance(*told, **more)
        _differentiated_once(output)
        return output

    return watched


def _differentiated_once(output: Any) -> None:
    """Make the tensors in `output` raise RuntimeError on double backward, where FSDP has freed the weights and torch would crash."""

    def refuse(grad: Tensor) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("a gradient is differentiated again, which FSDP does not support")

    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(refuse)


def not_sharded(error: BaseException) -> str | None:
    """Return the reason if `error`, raised in a step, says that a loss cannot be computed on sharded networks; else None."""
    words = ("DTensor", "FSDP", "fully_shard", "storage of size 0", "setStorage")
    return first_line(error)[:200] if any(word in str(error) for word in words) else None


def _share(tensor: Tensor, mesh: Any) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor.to(mesh.device_type), mesh, [Shard(0)], src_data_rank=None)
