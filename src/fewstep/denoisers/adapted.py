"""Several denoisers that share one network in memory, each with low-rank adapters of its own or with none (LoRA, arXiv 2106.09685).

The teacher, student and fake network of a large model would be three copies of it; here they share one network, and the student and the
fake network each add some millions of parameters. The library that makes the low-rank layers (peft) keeps every set of adapters in the
network and switches between the sets. Switching also sets which adapters require gradients, so that a switch between a forward and its
backward pass silently loses the gradient. Here the network has one empty place for adapters. Each denoiser owns its adapters' tensors as
its parameters, and puts them into the place only while it is called, so that which of them learn is set by the parameters alone.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.errors import UserError

PLACE = "place"  # peft's name of the only set of adapters that it makes layers for
PARTS = ("lora_A", "lora_B")


class Slot:
    """A frozen denoiser with a place for low-rank adapters in its layers `targets`.

    Args:
        denoiser: the denoiser, which is changed in place; afterwards call it only by `as_it_is` and `adapted`.
        rank: rank of the adapters, which are added with weight 1.
        targets: names of layers, or the ends of their names.

    Raises:
        UserError: where peft is not installed, no layer has such a name, or the denoiser has adapters already.

    """

    def __init__(self, denoiser: nn.Module, rank: int, targets: Sequence[str]) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.tuners_utils import BaseTunerLayer
        except ImportError:
            raise UserError("low-rank training is done by peft, which is not installed: pip install 'fewstep[text]'") from None
        if any(isinstance(module, BaseTunerLayer) for module in denoiser.modules()):
            raise UserError("there are low-rank changes (LoRA) in this model already; fuse them into it first, or take it without them")
        denoiser.requires_grad_(False).eval()
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), bias="none")
        try:
            inject_adapter_in_model(config, denoiser, PLACE)
        except ValueError as error:
            raise UserError(f"no layer of this model is called {' or '.join(targets)}; name others") from error
        self.denoiser, self.rank, self.targets = denoiser, rank, tuple(targets)
        self.layers: dict[str, Any] = {name: layer for name, layer in denoiser.named_modules() if isinstance(layer, BaseTunerLayer)}
        # name of a tensor -> the module that takes it as its weight
        self.places: dict[str, nn.Module] = {
            f"{name}.{part}": getattr(layer, part)[PLACE] for name, layer in self.layers.items() for part in PARTS
        }
        self.shapes = {name: tuple(place.weight.shape) for name, place in self.places.items()}  # type: ignore[arg-type]
        self.now: Mapping[str, Tensor] | None = None
        self._put(None)

    def _put(self, tensors: Mapping[str, Tensor] | None) -> None:
        """Put the adapters `tensors` into the place, or leave the place empty for None."""
        self.now = tensors
        for name, place in self.places.items():
            place._parameters["weight"] = None if tensors is None else tensors[name]  # type: ignore[assignment]
        for layer in self.layers.values():
            layer._disable_adapters = tensors is None

    @contextmanager
    def acting(self, tensors: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Give the denoiser the adapters `tensors` inside the context, by the names in `shapes`; None is no adapters."""
        before = self.now
        self._put(tensors)
        try:
            yield
        finally:
            self._put(before)

    def as_it_is(self) -> "Adapted":
        """Return the denoiser without adapters, such as a teacher."""
        return Adapted(self, None)

    def adapted(self, seed: int) -> "Adapted":
        """Return the denoiser with adapters of its own, which add 0 at first: one factor is random, from `seed`, and the other 0."""
        rng = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, shape in self.shapes.items():
            tensor = torch.zeros(shape)
            if name.endswith(PARTS[0]):
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=rng)
            tensors[name] = tensor
        return Adapted(self, tensors)

    def recompute(self, enable: Callable[[Callable[..., Any]], None]) -> None:
        """Turn on gradient checkpointing that recomputes activations with the adapters of the forward pass.

        `enable` is a diffusers model's ``enable_gradient_checkpointing``, which by itself would recompute with the adapters that are in the
        place during the backward pass.
        """

        def checkpointed(module: Callable[..., Any], *told: Any) -> Any:
            acted = self.now

            def run(*told: Any) -> Any:
                with self.acting(acted):
                    return module(*told)

            return checkpoint(run, *told, use_reentrant=False)

        enable(checkpointed)


class Adapted(nn.Module):
    """``D(x, sigma, label)`` of the denoiser in `slot` with the adapters `tensors`, which are its parameters, or without adapters.

    A deep copy has adapters of its own and shares the network. All other attributes are the denoiser's.
    """

    forward_methods = ("features",)

    def __init__(self, slot: Slot, tensors: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        object.__setattr__(self, "slot", slot)  # not as a submodule: the network is shared
        self.keys = None if tensors is None else {name: name.replace(".", "/") for name in tensors}
        for name, tensor in (tensors or {}).items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor))

    @property
    def stands_on(self) -> nn.Module:
        """The shared denoiser that the adapters change, and that this module does not own."""
        return self.slot.denoiser

    @property
    def tensors(self) -> dict[str, Tensor] | None:
        """The adapters' tensors by the names of their places; None without adapters."""
        return None if self.keys is None else {name: self._parameters[key] for name, key in self.keys.items()}  # type: ignore[misc]

    def forward(self, *told: Any, **more: Any) -> Tensor:
        """Return the estimate of x0; arguments and result are those of the denoiser."""
        with self.slot.acting(self.tensors):
            found: Tensor = self.slot.denoiser(*told, **more)
            return found

    def features(self, *told: Any) -> list[Tensor]:
        """Return inner features; arguments and result are those of the denoiser."""
        with self.slot.acting(self.tensors):
            denoiser: Any = self.slot.denoiser
            found: list[Tensor] = denoiser.features(*told)
            return found

    def merged(self) -> nn.Module:
        """Return a whole copy of the denoiser, with the adapters merged into its weights."""
        with self.slot.acting(self.tensors):
            whole = copy.deepcopy(self.slot.denoiser)
        for name in self.slot.layers:
            parent, _, child = name.rpartition(".")
            layer: Any = whole.get_submodule(name)
            if self.keys is not None:
                layer.merge()
            setattr(whole.get_submodule(parent), child, layer.get_base_layer())
        return whole

    def train(self, mode: bool = True) -> "Adapted":
        """Set the training mode of this module; the network, which behaves no differently in training, stays in eval mode."""
        self.training = mode
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or convert the shared network together with the adapters."""
        self.slot.denoiser._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapted":
        tensors = self.tensors
        given: Mapping[int, Any] = memo
        own = None if tensors is None else {name: given.get(id(tensor), tensor).detach().clone() for name, tensor in tensors.items()}
        found = Adapted(self.slot, own)
        for (_, theirs), (_, mine) in zip(self.named_parameters(), found.named_parameters(), strict=True):
            mine.requires_grad_(theirs.requires_grad)
        memo[id(self)] = found
        return found.train(self.training)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` into the adapters, by the names of their places. Raises ValueError for other names or shapes."""
        mine = self.tensors or {}
        if mine.keys() != tensors.keys():
            odd = sorted(mine.keys() ^ tensors.keys())[0]
            raise ValueError(f"{odd} is {'missing' if odd in mine else 'no place of these changes'}")
        for name, tensor in tensors.items():
            if tensor.shape != mine[name].shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, and is to have {list(mine[name].shape)}")
            mine[name].data.copy_(tensor)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["slot"].denoiser, name)


def grounds(module: nn.Module) -> list[nn.Module]:
    """Return the shared networks that `module`, or parts of it, adapt without owning them; each once."""
    found = {id(part.stands_on): part.stands_on for part in module.modules() if isinstance(part, Adapted)}
    return list(found.values())


def halve(modules: Iterable[nn.Module]) -> None:
    """Convert the shared networks of `modules` to bfloat16, which halves the memory of frozen weights whose layers compute in it anyway."""
    for module in modules:
        for ground in grounds(module):
            ground.to(torch.bfloat16)  # adapters are in it only while it is called, and are not converted
