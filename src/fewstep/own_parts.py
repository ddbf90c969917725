"""Check the user's own parts (methods, networks, data sets), and turn exceptions from their code into errors that name the part.

Exceptions from built-in parts are bugs of fewstep, and keep their traceback.
"""

import contextlib
import copy
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fewstep import registry
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.methods.base import Alarm, LossOutput, Method, Ratio, Turn
from fewstep.recipe import Recipe
from fewstep.sections import Optimizer

OF_THE_LOOP = ("grad_norm", "lr")  # figures that the loop logs for each turn
JOLT = 0.1  # standard deviation of what is added to weights, so that none is zero, where two networks are compared


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
    """Raise UserError where `method`, called `name`, lacks networks, a network that ships, or turns that train its networks.

    The generator that it ships is made once, and must have the weights that `Method.ship` is given.
    """
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
        if not isinstance(turn.optimizer, Optimizer):
            raise UserError(f"{of}: the optimizer of its turn {turn.name!r} is {_what(turn.optimizer)}; give a fewstep.methods.Optimizer")
        if not isinstance(turn.every, int) or turn.every < 1 or not 0 <= turn.begins < turn.ends <= 1:
            raise UserError(
                f"{of}: its turn {turn.name!r} is taken every {turn.every!r} steps, from the share {turn.begins!r} of the run to "
                f"{turn.ends!r}; give a whole number from 1, and shares of which the first is less, from 0 to 1"
            )
    for alarm in method.alarms:
        if not isinstance(alarm, Alarm):
            raise UserError(f"{of}: its alarms hold {_what(alarm)}; each must be a fewstep.methods.Alarm")
        try:
            alarm.message.format(value=1.0)
        except (LookupError, ValueError) as error:
            raise UserError(
                f"{of}: the message of its alarm {alarm.name!r} cannot be filled in ({_in_words(error)}); it may hold {{value}}"
            ) from error
    _check_ship(of, method)


def _check_ship(of: str, method: Method) -> None:
    """Raise UserError unless `method` ships a generator that can be saved, of the network that it is given and not of its own."""
    own = method.networks[method.ships]
    given = own
    if not any(hasattr(module, "learned_parameters") for module in own.modules()):  # such a network shares what is large with others
        given = copy.deepcopy(own)
        _jolt(given)
    generator: Any = method.ship(given, 0)
    if not isinstance(generator, Generator):
        raise UserError(f"{of}: ship returned {_what(generator)}; it must return the fewstep.Generator to save")
    try:
        json.dumps(generator.config)
    except (TypeError, ValueError) as error:
        raise UserError(f"{of}: the generator that ship returned cannot be saved ({error}); give plain values in its info") from error
    saved, new, old = generator.denoiser.state_dict(), given.state_dict(), own.state_dict()
    others = [network.state_dict() for network in method.networks.values() if network is not own]

    def is_stale(key: str) -> bool:
        """Whether the saved tensor `key` is the one before the jolt, and no other network's."""
        if key not in new or saved[key].shape != new[key].shape or torch.equal(new[key], old[key]):
            return False
        return torch.equal(saved[key], old[key]) and not any(key in other and torch.equal(saved[key], other[key]) for other in others)

    if any(map(is_stale, saved)):
        raise UserError(
            f"{of}: ship returned a generator with the weights of self.networks[{method.ships!r}]; it must have those of the network that "
            "ship is given, which is the average over the run: give it to derive as its third argument"
        )


def _jolt(module: nn.Module) -> None:
    """Add the same small random numbers to the parameters of `module` whenever it is called."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.add_((JOLT * torch.randn(parameter.shape, generator=rng)).to(parameter))


def check_kept(method: Method) -> None:
    """Raise UserError unless what `method` keeps for a resumed run can be written into a checkpoint, and be read as what it was."""
    of = f"the method {type(method).__module__}:{type(method).__qualname__}"
    if (wrong := _no_json(method.state_dict(), "state_dict()")) is not None:
        raise UserError(
            f"{of}: {wrong}; state_dict must return a dict of plain numbers, text, lists and dicts whose keys are text. Return tensors by "
            "the method tensors"
        )
    tensors: Any = method.tensors()
    if not isinstance(tensors, Mapping) or not all(isinstance(key, str) and isinstance(x, Tensor) for key, x in tensors.items()):
        what = {key: _what(x) for key, x in tensors.items()} if isinstance(tensors, Mapping) else _what(tensors)
        raise UserError(f"{of}: tensors() returned {what}; it must return a dict of tensors by name")


def _no_json(value: Any, path: str) -> str | None:
    """Return what in `value`, at `path`, JSON does not hold or would give back as something else; None if nothing."""
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            return f"{path} has the key {wrong!r}"
        return next((found for key, inner in value.items() if (found := _no_json(inner, f"{path}[{key!r}]")) is not None), None)
    if isinstance(value, list | tuple) and path != "state_dict()":
        return next((found for i, inner in enumerate(value) if (found := _no_json(inner, f"{path}[{i}]")) is not None), None)
    plain = (value is None or isinstance(value, bool | int | float | str)) and path != "state_dict()"
    return None if plain else f"{path} is {_what(value)}"


def check_network(name: str, generator: Generator) -> None:
    """Raise UserError unless the network `name` in `generator`, new and on the CPU, returns items of its input's shape and type.

    Two samples are drawn for this, in eval mode: gradients, torch's random state and the network's buffers are unchanged afterwards. The
    network must also be the same function again when it is made once more and given its weights, as a saved model is.
    """
    network: Any = generator.denoiser.network
    of, shape = f"the network {name!r}", generator.shape
    if not list(network.parameters()):
        raise UserError(f"{of} has no parameters; there is nothing to train")
    if any(map(is_lazy, network.parameters())):
        raise UserError(
            f"{of} has layers without a size (torch's lazy layers), into which a saved model cannot be loaded; give their sizes"
        )

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
            _two_samples(generator)
    except UserError:
        raise
    except Exception as error:
        place = _blamed(error, [Part(of, type(network).__module__, True)])
        where, takes = f" {place[1]}" if place else "", "(z, label)" if generator.kind.of == "map" else "(x, c_noise, label)"
        raise UserError(f"{of} failed{where} when it was tried ({_in_words(error)}); it is called with {takes}") from error
    finally:
        handle.remove()
    first, second = _made_again(generator, 1), _made_again(generator, 2)
    if first is not None and second is not None and not torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UserError(
            f"{of} gives other samples when it is made once more and given the same weights, so that a saved model is not the trained one: "
            "it holds random numbers, or tensors that change, beside its weights; keep each by self.register_buffer(name, tensor)"
        )


def _two_samples(generator: Generator) -> Tensor:
    """Return two samples [2, ...] of `generator` from seed 0, in one step where its sampler takes any number."""
    return generator.sample(2, seed=0, steps=1 if generator.any_steps and generator.step_counts is None else None)


def _made_again(generator: Generator, seed: int) -> Tensor | None:
    """Return samples of `generator` made again by torch's random numbers from `seed`, with its weights a little changed.

    None where samples cannot be drawn with the changed weights, which says nothing of the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = generator.derive(generator.sampler, generator.info)
        _jolt(other)
        torch.manual_seed(0)  # for a network that draws at each call
        with contextlib.suppress(Exception):
            return _two_samples(other)
    return None


def check_output(method: Method, turn: Turn, output: Any) -> None:
    """Raise UserError unless `output`, from the loss of `turn`, is a `LossOutput` of a scalar loss with a gradient, and scalar terms."""
    if isinstance(output, LossOutput) and _is_scalar(output.loss) and output.loss.requires_grad:
        taken = next((key for key in OF_THE_LOOP if key in output.terms), None)
        if taken is None and all(map(_is_scalar, output.terms.values())):
            return
        wrong = taken or next(key for key, value in output.terms.items() if not _is_scalar(value))
        what = f"returned the term {wrong!r} as {_what(output.terms[wrong])}; terms must be tensors of one number"
        if taken is not None:
            what = f"returned a term {taken!r}, which is what the training loop calls a figure of its own; give it another name"
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
