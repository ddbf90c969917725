"""Several denoisers on one network in memory: each is the network with low-rank changes of its own, or as it is (LoRA, arXiv 2106.09685).

A teacher, a student and a fake network of a large model are three copies of it; here they are one, the student and the fake each some
millions of parameters. The library that makes the low-rank layers (peft) keeps every set of changes in the network and switches between
them, and switching says which of them learns, too: done between a pass and its backward it takes the gradient away, silently. Here the
network has one empty place for changes. Each denoiser owns its tensors, which are its parameters and nobody else's, and puts them into
the place for as long as it is called. So nothing is switched that could be left switched: what learns is said by the parameters alone.
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

PLACE = "place"  # what peft calls the one set of changes that it makes layers for
PARTS = ("lora_A", "lora_B")


class Slot:
    """A frozen denoiser with a place for low-rank changes in its layers `targets`.

    Args:
        denoiser: it is changed in place, and no longer to be called by itself; `as_it_is` is what it was.
        rank: of the changes. They are added with weight 1.
        targets: names of layers, or how their names end.

    Raises:
        UserError: where peft is not installed, no layer has such a name, or there are changes in the denoiser already.

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
        """Have `tensors` act, or nothing."""
        self.now = tensors
        for name, place in self.places.items():
            place._parameters["weight"] = None if tensors is None else tensors[name]  # type: ignore[assignment]
        for layer in self.layers.values():
            layer._disable_adapters = tensors is None

    @contextmanager
    def acting(self, tensors: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Inside, the denoiser has the changes `tensors`, by the names in `shapes`; None is none."""
        before = self.now
        self._put(tensors)
        try:
            yield
        finally:
            self._put(before)

    def as_it_is(self) -> "Adapted":
        """The denoiser without changes, such as a teacher."""
        return Adapted(self, None)

    def adapted(self, seed: int) -> "Adapted":
        """The denoiser with changes of its own, which are nothing at first: one factor is random, by `seed`, and the other 0."""
        rng = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, shape in self.shapes.items():
            tensor = torch.zeros(shape)
            if name.endswith(PARTS[0]):
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=rng)
            tensors[name] = tensor
        return Adapted(self, tensors)

    def recompute(self, enable: Callable[[Callable[..., Any]], None]) -> None:
        """Have activations computed again in backward passes, with the changes that acted in the forward one.

        `enable` is a diffusers model's ``enable_gradient_checkpointing``. By itself the library's would compute them again with whatever
        acts when the backward pass comes by.
        """

        def checkpointed(module: Callable[..., Any], *told: Any) -> Any:
            acted = self.now

            def run(*told: Any) -> Any:
                with self.acting(acted):
                    return module(*told)

            return checkpoint(run, *told, use_reentrant=False)

        enable(checkpointed)


class Adapted(nn.Module):
    """``D(x, sigma, label)`` of the denoiser in `slot` with the changes `tensors`, its parameters, or with none.

    A copy has tensors of its own, and the same network. Whatever else is asked of it the denoiser answers.
    """

    forward_methods = ("features",)

    def __init__(self, slot: Slot, tensors: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        object.__setattr__(self, "slot", slot)  # no part of this module: the network is everybody's
        self.keys = None if tensors is None else {name: name.replace(".", "/") for name in tensors}
        for name, tensor in (tensors or {}).items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor))

    @property
    def stands_on(self) -> nn.Module:
        """The denoiser that it changes, which it does not own."""
        return self.slot.denoiser

    @property
    def tensors(self) -> dict[str, Tensor] | None:
        """The changes, by the names of their places."""
        return None if self.keys is None else {name: self._parameters[key] for name, key in self.keys.items()}  # type: ignore[misc]

    def forward(self, *told: Any, **more: Any) -> Tensor:
        """The estimate of x0, like the denoiser's own."""
        with self.slot.acting(self.tensors):
            found: Tensor = self.slot.denoiser(*told, **more)
            return found

    def features(self, *told: Any) -> list[Tensor]:
        """Inner features, as the denoiser gives them."""
        with self.slot.acting(self.tensors):
            denoiser: Any = self.slot.denoiser
            found: list[Tensor] = denoiser.features(*told)
            return found

    def merged(self) -> nn.Module:
        """A whole copy of the denoiser, with the changes added to its weights."""
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
        """As of any module; the network stays in eval mode, for it has nothing that behaves otherwise in training."""
        self.training = mode
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """To another device or type with the network."""
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
        """Take over changes by the names of their places. Raises ValueError where they are others, or of another shape."""
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
    """The networks that `module`, or parts of it, stand on without owning them; each once."""
    found = {id(part.stands_on): part.stands_on for part in module.modules() if isinstance(part, Adapted)}
    return list(found.values())


def halve(modules: Iterable[nn.Module]) -> None:
    """Keep in bfloat16 what `modules` stand on: half the memory, of weights that nobody learns and layers that work in it anyway."""
    for module in modules:
        for ground in grounds(module):
            ground.to(torch.bfloat16)  # changes are not in it but while it is called
