"""The networks of a method as its losses call them: wrapped by the engine, in its precision, compiled where that is asked for.

`torch.compile` gets wrappers of its own, so the method's networks, and with them checkpoints, averages and what ships, stay as they are.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fewstep.compiling import not_compiled
from fewstep.errors import UserError
from fewstep.methods.base import Method, Turn
from fewstep.training.learned import learned
from fewstep.training.precision import in_precision
from fewstep.training.sharding import INSTEAD, is_sharded, not_sharded, whole_tensor

Compile = bool | Literal["reduce-overhead"]
GRAPHS: Literal["reduce-overhead"] = "reduce-overhead"  # torch's name for the mode that records CUDA graphs


class Called:
    """How the networks of `method` are called.

    Args:
        method: its networks lie on the engine's device already.
        fabric: the engine, in the precision that it stays in.
        trained: names of the networks that learn in some turn.
        compile: whether their ``forward`` is compiled, and with "reduce-overhead" also recorded as CUDA graphs.

    Attributes:
        wrapped: those in `trained` as the engine has them.

    """

    def __init__(self, method: Method, fabric: Fabric, trained: tuple[str, ...], compile: Compile = False) -> None:
        self.method, self.fabric, self.compile = method, fabric, compile
        # whether other entrances than forward go through the engine, which would send them through what is compiled
        self.through = (not compile or fabric.world_size > 1) and not is_sharded(fabric)  # shares are gathered by any entrance
        self.wrapped: dict[str, _FabricModule] = {name: self._wrapped(method.networks[name]) for name in trained}
        standing = {name: self._compiled(network) for name, network in method.networks.items()}
        learning: dict[str, Any] = {**self.wrapped}
        if not self.through:
            learning = {name: Beside(wrapped, method.networks[name]) for name, wrapped in self.wrapped.items()}
        self.standing, self.learning = (  # as they are called while they do not learn, and while they do
            {name: self._kept(in_precision(module, fabric.strategy.precision)) for name, module in modules.items()}
            for modules in (standing, learning)
        )
        # asked for once: to go through all modules takes longer than an average's step
        self.parameters = {name: list(learned(network).values()) for name, network in method.networks.items()}

    def in_turn(self, turn: Turn) -> dict[str, Any]:
        """The networks as they are called in `turn`: what it trains learns, and all others stand still."""
        for learns in (False, True):
            for name, parameters in self.parameters.items():
                if (name in turn.trains) is learns:
                    for parameter in parameters:
                        if parameter.requires_grad is not learns:
                            parameter.requires_grad_(learns)
        if self.compile == GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        return {name: self.learning[name] if name in turn.trains else self.standing[name] for name in self.method.networks}

    def clipped(self, turn: Turn, optimizer: _FabricOptimizer) -> Tensor:
        """Clip the gradients of `turn` where it says so; their norm before that, a scalar, which is measured and looked at anyway."""
        wrapped, limit = self.wrapped[turn.trains[0]], turn.optimizer.clip or math.inf
        norm = self.fabric.clip_gradients(wrapped, optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        return whole_tensor(norm)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside a step is made: on a GPU products of float32 are TF32's. Raises UserError for what cannot be compiled or sharded."""
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        on_gpu = self.fabric.device.type == "cuda"
        if on_gpu:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        try:
            yield
        except Exception as error:
            if self.compile and (why := not_compiled(error)) is not None:
                raise UserError(
                    f"trainer.compile is {str(self.compile).lower()}, and the networks of this run cannot be compiled here ({why}); "
                    "set it to false, or install what is missing"
                ) from error
            if is_sharded(self.fabric) and (why := not_sharded(error)) is not None:
                raise UserError(
                    f"trainer.strategy is fsdp, and the networks or losses of this run do not work in shares ({why}); {INSTEAD}"
                ) from error
            raise
        finally:
            if on_gpu:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def _wrapped(self, network: nn.Module) -> _FabricModule:
        """`network` as the engine runs it, other entrances than ``forward`` included."""
        wrapped: _FabricModule = self.fabric.setup_module(self._compiled(network))
        for entrance in getattr(network, "forward_methods", ()) if self.through else ():
            wrapped.mark_forward_method(entrance)
        return wrapped

    def _compiled(self, network: nn.Module) -> Any:
        if not self.compile or next(network.parameters(), None) is None:
            return network
        return torch.compile(network, mode=GRAPHS) if self.compile == GRAPHS else torch.compile(network)

    def _kept(self, network: Any) -> Any:
        return Kept(network) if self.compile == GRAPHS else network


class Beside:
    """A network that is called as `wrapped`, and by its other entrances as it is."""

    def __init__(self, wrapped: nn.Module, network: nn.Module) -> None:
        self.wrapped, self.network = wrapped, network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return self.wrapped(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["network"], name)


class Kept:
    """A network whose output outlives its next call: a CUDA graph writes into the same memory each time, and what it made is copied."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return tree_map_only(Tensor, torch.clone, self.network(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["network"], name)
