"""The parameters that a network learns, which need not be all of its parameters.

A network may share tensors that it does not learn, such as a frozen base model under two sets of adapters. The learned parameters are those
that its optimizer updates, its moving average follows, a checkpoint keeps, and the cost of a step counts. For most networks they are all
parameters; a module restricts them by a method ``learned_parameters()`` that yields names and parameters like ``named_parameters()``.
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fewstep.methods.base import Method, Turn
from fewstep.training.sharding import like


def learned(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that `module` learns, by name; a submodule with ``learned_parameters()`` decides for itself."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in _told(module, ""):
        found.setdefault(id(parameter), (name, parameter))  # a parameter with two names is listed under the first
    return dict(found.values())


def _told(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
    told = getattr(module, "learned_parameters", None)
    for name, parameter in told() if callable(told) else module.named_parameters(recurse=False):
        yield prefix + name, parameter
    if not callable(told):
        for name, child in module.named_children():
            yield from _told(child, f"{prefix}{name}.")


def set_learning(module: nn.Module, on: bool) -> None:
    """Set ``requires_grad`` of the parameters that `module` learns to `on`; its other parameters are left unchanged."""
    for parameter in learned(module).values():
        parameter.requires_grad_(on)


def make_optimizer(method: Method, turn: Turn, fused: bool) -> torch.optim.AdamW:
    """Return AdamW for what the networks of `turn` learn, in a parameter group for each factor (``scale``) of the learning rate.

    `fused` chooses PyTorch's fused update, which CPUs and CUDA devices have.
    """
    settings = turn.optimizer
    groups: dict[float, list[Tensor]] = {1.0: []}
    for network in turn.trains:
        for name, parameter in learned(method.networks[network]).items():
            scale = next((scale for ending, scale in turn.scales.items() if name.endswith(ending)), 1.0)
            groups.setdefault(scale, []).append(parameter)
    parameters = [{"params": group, "scale": scale} for scale, group in groups.items() if group]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(parameters, settings.lr, betas, weight_decay=settings.weight_decay, fused=fused)


def learned_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `module` without the parameters that it does not learn; persistent buffers are included."""
    foreign = {name for name, _ in module.named_parameters()} - learned(module).keys()
    return {name: tensor for name, tensor in module.state_dict().items() if name not in foreign}


def load_learned(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state`, as `learned_state` returned it, into `module`, which may be sharded. Raises RuntimeError for other names or shapes."""
    whole = module.state_dict()
    foreign = {name: whole[name] for name in whole.keys() - learned_state(module).keys()}
    module.load_state_dict({**foreign, **{name: like(tensor, whole.get(name, tensor)) for name, tensor in state.items()}})


def average_of(module: nn.Module) -> nn.Module:
    """Return a frozen copy of `module`, in eval mode; the parameters that `module` does not learn are shared, not copied."""
    mine = {id(parameter) for parameter in learned(module).values()}
    shared = {id(p): p for p in module.parameters() if id(p) not in mine}
    twin = copy.deepcopy(module, shared)
    set_learning(twin, False)
    return twin.eval()
