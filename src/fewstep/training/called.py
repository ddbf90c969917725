"""The networks of a method as its losses call them: wrapped by Lightning Fabric, in its precision, and compiled if the recipe says so.

`torch.compile` is applied to wrappers, so that the method's own networks, and with them checkpoints, averages and the shipped model, stay
unchanged.
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
    """The callable forms of the networks of `method`: one for the turns that train a network, one for the turns that only use it.

    Args:
        method: the method; its networks are on the device of `fabric` already.
        fabric: the engine (Lightning Fabric); its precision must not change afterwards.
        trained: names of the networks that are trained in at least one turn.
        compile: whether each network's ``forward`` is compiled; with "reduce-overhead" it is also recorded as CUDA graphs.

    Attributes:
        wrapped: the networks named in `trained`, wrapped by `fabric`, by name.

    """

    def __init__(self, method: Method, fabric: Fabric, trained: tuple[str, ...], compile: Compile = False) -> None:
        self.method, self.fabric, self.compile = method, fabric, compile
        # whether methods other than forward are called through Fabric's wrapper, which would call the compiled network
        self.through = (not compile or fabric.world_size > 1) and not is_sharded(fabric)  # sharded networks gather in any method
        self.wrapped: dict[str, _FabricModule] = {name: self._wrapped(method.networks[name]) for name in trained}
        standing = {name: self._compiled(network) for name, network in method.networks.items()}
        learning: dict[str, Any] = {**self.wrapped}
        if not self.through:
            learning = {name: Beside(wrapped, method.networks[name]) for name, wrapped in self.wrapped.items()}
        self.standing, self.learning = (  # the networks to call in turns that do not train them, and in turns that do
            {name: self._kept(in_precision(module, fabric.strategy.precision)) for name, module in modules.items()}
            for modules in (standing, learning)
        )
        # collected once: walking through all modules takes longer than an update of the moving average
        self.parameters = {name: list(learned(network).values()) for name, network in method.networks.items()}

    def in_turn(self, turn: Turn) -> dict[str, Any]:
        """Set ``requires_grad`` for the parameters that `turn` trains and for no others; return the networks to call in `turn`, by name."""
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
        """Clip the gradients of `turn` if its optimizer settings have a limit; return their norm before clipping, a scalar."""
        wrapped, limit = self.wrapped[turn.trains[0]], turn.optimizer.clip or math.inf
        norm = self.fabric.clip_gradients(wrapped, optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        return whole_tensor(norm)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Return a context for a training step: float32 products on a GPU use TF32, and failed compilation or sharding raises UserError."""
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
                    f"trainer.strategy is fsdp, and the networks or losses of this run do not work sharded ({why}); {INSTEAD}"
                ) from error
            raise
        finally:
            if on_gpu:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def _wrapped(self, network: nn.Module) -> _FabricModule:
        """Return `network`, compiled if asked for, wrapped by Fabric; its ``forward_methods`` go through the wrapper where `through`."""
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
    """A network whose ``forward`` is that of `wrapped`, while all other methods and attributes are those of the plain `network`."""

    def __init__(self, wrapped: nn.Module, network: nn.Module) -> None:
        self.wrapped, self.network = wrapped, network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the wrapped network."""
        return self.wrapped(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["network"], name)


class Kept:
    """A network whose outputs are copied, so that they outlive its next call: a CUDA graph writes each output into the same memory."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return a copy of the network's output."""
        return tree_map_only(Tensor, torch.clone, self.network(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["network"], name)
