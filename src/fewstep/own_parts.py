"""Check the user's own parts (methods, networks, data sets), and turn exceptions from their code into errors that name the part.

Exceptions from built-in parts are bugs of fewstep, and keep their traceback.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import registry
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.methods.base import LossOutput, Method, Ratio, Turn
from fewstep.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """A part of a recipe that is the user's own.

    Attributes:
        called: its kind and name in messages, such as "the network 'mine'".
        module: name of the module that defines it.
        learns: whether losses are computed through it, as through methods and networks.

    """

    called: str
    module: str
    learns: bool

    @property
    def package(self) -> str:
        """Name of the outermost package that contains the module."""
        return self.module.partition(".")[0]


def own_parts(recipe: Recipe) -> list[Part]:
    """Return the parts of `recipe` that are not built in: the method first, then the network, then the data."""
    parts = []
    for kind, settings in (("methods", recipe.method), ("networks", recipe.network), ("data", recipe.data)):
        if registry.is_own(kind, settings.name):
            room = registry.room(kind, settings.name)
            module = getattr(room, "__module__", type(room).__module__)
            parts.append(Part(f"the {registry.SINGULAR[kind]} {settings.name!r}", module, kind != "data"))
    return [part for part in parts if part.package != registry.OWN]


@contextlib.contextmanager
def named_faults(recipe: Recipe, doing: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn an exception raised inside by one of the user's own parts into a UserError.

    Its message names the part and the line, and ends with what `doing` returns for the exception, such as when it happened.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = _blamed(error, own_parts(recipe))
        if found is None:
            raise
        part, place = found
        raise UserError(f"{part.called} failed {place} ({_in_words(error)}); {doing(error)}") from error


def _blamed(error: BaseException, parts: list[Part]) -> tuple[Part, str] | None:
    """Return the part whose code raised `error`, or called the code that did, and the place in its file; None for no such part."""
    frames = list(traceback.walk_tb(error.__traceback__))
    for frame, line in reversed(frames):
        home = frame.f_globals.get("__name__", "")
        near = [part for part in parts if home == part.module] or [part for part in parts if registry.within(home, [part.package])]
        if near:
            return near[0], f"in {Path(frame.f_code.co_filename).name}, line {line}"
    learns = [part for part in parts if part.learns]
    engine = ("backward", "lightning_fabric.fabric")
    if learns and any((frame.f_code.co_name, frame.f_globals.get("__name__")) == engine for frame, _ in frames):
        return learns[0], "in the gradients of its loss"  # the backward pass runs no line of the part's own code
    return None


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def check_method(name: str, method: Any) -> None:
    """Raise UserError where `method`, called `name`, lacks networks, a network that ships, or turns that train its networks."""
    of = f"the method {name!r}"
    if not isinstance(method, Method):
        raise UserError(f"{of}: make returned {_what(method)}; it must return the method")
    networks, turns = getattr(method, "networks", None), getattr(method, "turns", None)
    if not isinstance(networks, Mapping) or not networks or not all(isinstance(module, nn.Module) for module in networks.values()):
        raise UserError(f"{of}: networks is {_what(networks)}; it must be a dict of torch.nn.Module by name")
    if getattr(method, "ships", None) not in networks:
        raise UserError(f"{of}: ships is {getattr(method, 'ships', None)!r}; it must name one of its networks: {', '.join(networks)}")
    if not isinstance(turns, tuple) or not turns or not all(isinstance(turn, Turn) for turn in turns):
        raise UserError(f"{of}: turns is {_what(turns)}; it must be a tuple of fewstep.methods.Turn, at least one")
    if len({turn.name for turn in turns}) < len(turns):
        raise UserError(f"{of}: its turns are called {', '.join(turn.name for turn in turns)}; give each a name of its own")
    for turn in turns:
        missing = [network for network in turn.trains if network not in networks]
        if missing or not turn.trains:
            raise UserError(f"{of}: its turn {turn.name!r} trains {turn.trains!r}; its networks are {', '.join(networks)}")


def check_network(name: str, generator: Generator) -> None:
    """Raise UserError unless the network `name` in `generator`, new and on the CPU, returns items of its input's shape and type.

    Two samples are drawn for this, in eval mode: gradients, torch's random state and the network's buffers are unchanged afterwards.
    """
    network: Any = generator.denoiser.network
    of, shape = f"the network {name!r}", generator.shape
    if not list(network.parameters()):
        raise UserError(f"{of} has no parameters; there is nothing to train")

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0]
        if not isinstance(output, Tensor):
            raise UserError(f"{of} gives {_what(output)}; it must give a tensor")
        several = generator.kind.of == "posterior" and output.ndim == len(shape) + 2
        wanted = (*output.shape[: 2 if several else 1], *shape)
        if output.shape != wanted or len(output) != len(x):
            raise UserError(f"{of} gives shape {list(output.shape)} for {len(x)} items; it must give {[len(x), *shape]}")
        if output.dtype != x.dtype:
            raise UserError(f"{of} gives {output.dtype} for an input of {x.dtype}; it must give the type of its input")

    handle = network.register_forward_hook(look)
    try:
        with torch.random.fork_rng(devices=[]):
            generator.sample(2, seed=0, steps=1 if generator.any_steps and generator.step_counts is None else None)
    except UserError:
        raise
    except Exception as error:
        place = _blamed(error, [Part(of, type(network).__module__, True)])
        where, takes = f" {place[1]}" if place else "", "(z, label)" if generator.kind.of == "map" else "(x, c_noise, label)"
        raise UserError(f"{of} failed{where} when it was tried ({_in_words(error)}); it is called with {takes}") from error
    finally:
        handle.remove()


def check_output(method: Method, turn: Turn, output: Any) -> None:
    """Raise UserError unless `output`, from the loss of `turn`, is a `LossOutput` of a scalar loss with a gradient, and scalar terms."""
    if isinstance(output, LossOutput) and _is_scalar(output.loss) and output.loss.requires_grad:
        if all(map(_is_scalar, output.terms.values())):
            return
        wrong = next(key for key, value in output.terms.items() if not _is_scalar(value))
        what = f"returned the term {wrong!r} as {_what(output.terms[wrong])}; terms must be tensors of one number"
    elif not isinstance(output, LossOutput):
        what = f"returned {_what(output)}; it must return a fewstep.methods.LossOutput(loss, terms)"
    elif not _is_scalar(output.loss):
        what = f"returned {_what(output.loss)}; it must be a tensor of one number, shape []"
    else:
        what = f"has no gradient; it must depend on what the turn trains ({', '.join(turn.trains)}), called by the loss's `networks`"
    raise UserError(f"the loss of turn {turn.name!r} of the method {type(method).__module__}:{type(method).__qualname__} {what}")


def _is_scalar(value: Any) -> bool:
    return all(map(_is_scalar, value)) if isinstance(value, Ratio) else isinstance(value, Tensor) and value.numel() == 1


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"
