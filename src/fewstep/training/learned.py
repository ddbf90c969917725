"""What a network learns, of all that it holds.

A network may share tensors that it does not learn, such as a frozen base that two sets of adapters stand on. What it learns is what its
optimiser sees, what its average follows, what a checkpoint keeps and what a step costs: for most networks, all there is. A module says
otherwise by a method ``learned_parameters()`` that gives names and parameters like ``named_parameters()``.
"""

import copy
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fewstep.training.sharding import like


def learned(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that `module` learns, by their names in it; a module inside it that tells of its own is asked."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in _told(module, ""):
        found.setdefault(id(parameter), (name, parameter))  # of two names the first
    return dict(found.values())


def _told(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
    told = getattr(module, "learned_parameters", None)
    for name, parameter in told() if callable(told) else module.named_parameters(recurse=False):
        yield prefix + name, parameter
    if not callable(told):
        for name, child in module.named_children():
            yield from _told(child, f"{prefix}{name}.")


def set_learning(module: nn.Module, on: bool) -> None:
    """Let what `module` learns take gradients, or not; what it does not learn is left as it is."""
    for parameter in learned(module).values():
        parameter.requires_grad_(on)


def learned_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of `module` without what it does not learn; persistent buffers belong to it."""
    foreign = {name for name, _ in module.named_parameters()} - learned(module).keys()
    return {name: tensor for name, tensor in module.state_dict().items() if name not in foreign}


def load_learned(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take back what `learned_state` gave, whole or in shares. Raises RuntimeError, as torch does, for names or shapes that differ."""
    whole = module.state_dict()
    foreign = {name: whole[name] for name in whole.keys() - learned_state(module).keys()}
    module.load_state_dict({**foreign, **{name: like(tensor, whole.get(name, tensor)) for name, tensor in state.items()}})


def average_of(module: nn.Module) -> nn.Module:
    """A frozen copy of `module`, in eval mode, that shares with it what it does not learn."""
    mine = {id(parameter) for parameter in learned(module).values()}
    shared = {id(p): p for p in module.parameters() if id(p) not in mine}
    twin = copy.deepcopy(module, shared)
    set_learning(twin, False)
    return twin.eval()
