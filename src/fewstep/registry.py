"""Look up methods, networks, data sets, denoisers and samplers by name, built-in ones and the user's own.

A *room* is the object that a name in a recipe or a model folder stands for: a method's class, a network's class, or what loads a data set.
The *settings* of a room are a class of their own, which can be imported without torch, so that mistakes in a recipe are reported before
slow imports. A name is looked up in this order:

    built in        the tables below, with one line for each room
    registered      ``fewstep.register("methods", "mine", MyMethod)`` in this process
    installed       entry points ``fewstep.methods``, ``fewstep.networks``, ``fewstep.data`` and so on of any installed package
    import path     ``package.module:Name``, where the module may be imported

Importing a module runs its code. A module that the *user* names (`trust`) is imported. One that only a model folder or another person's run
folder names is imported only if it is registered, installed, or in a package that the user allows (`allowing`). Such a folder may use only
what the allowed module itself defines, and not what the module imports, such as a function that starts a program.
"""

import contextlib
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.sections import DataSettings, MethodSettings, NetworkSettings, OwnData, Section, section_from_signature

# a folder may always name classes in fewstep's own modules, also ones that are not in the tables below; but no data set, which may be any
# function, such as one that trains
OWN, OWN_KINDS = "fewstep", ("methods", "networks", "denoisers", "samplers")


@dataclass(frozen=True)
class Place:
    """The import paths of a built-in room and of its settings class, which can be imported without torch.

    `offered` is False for a room that model folders may name, but recipes may not.
    """

    room: str
    settings: str
    offered: bool = True


def _method(name: str, cls: str) -> Place:
    return Place(f"fewstep.methods.{name}.method:{cls}", f"fewstep.methods.{name}.settings:{cls}Settings")


def _network(package: str, cls: str, offered: bool = True) -> Place:
    return Place(f"fewstep.networks.{package}.network:{cls}", f"fewstep.networks.{package}.settings:{cls}Settings", offered)


def _data(function: str, settings: str) -> Place:
    return Place(f"fewstep.data.{function}", f"fewstep.data.settings:{settings}")


BUILT_IN: Mapping[str, Mapping[str, Place]] = {
    "methods": {
        "teacher": _method("teacher", "Teacher"),
        "dmd2": _method("dmd2", "DMD2"),
        "drift": _method("drift", "Drift"),
        "dddm": _method("dddm", "DDDM"),
        "consistency": _method("consistency", "Consistency"),
        "flow_map": _method("flow_map", "FlowMap"),
    },
    "networks": {
        "unet": _network("unet", "UNet"),
        "edm_unet": _network("edm_unet", "EDMUNet"),
        "dit": _network("dit", "DiT"),
        "mlp": _network("mlp", "MLP"),
        "latent_unet": _network("unet", "LatentUNet"),
        "latent_mlp": _network("mlp", "LatentMLP"),
        "coded_mlp": _network("mlp", "CodedMLP"),
        "teacher": Place("", "fewstep.networks.settings:CopySettings"),
        "unet2d": _network("unet2d", "UNet2D", offered=False),
        "text_unet": _network("text_unet", "TextUNet", offered=False),
        "text_transformer": _network("text_transformer", "TextTransformer", offered=False),
    },
    "data": {
        "digits": _data("images:load_digits", "Digits"),
        "photos": _data("images:photo_crops", "Photos"),
        "images": _data("image_sets:image_folder", "Images"),
        "mnist": _data("idx:mnist", "Mnist"),
        "cifar10": _data("cifar:cifar10", "Cifar10"),
        "toy": _data("toys:toy_data", "Toy"),
        "points": _data("points:point_file", "Points"),
        "stream": _data("stream:image_stream", "Stream"),
        "latents": _data("latents:latent_folder", "Latents"),
        "prompts": _data("prompts:prompt_table", "PromptTable"),
    },
    "denoisers": {},
    "samplers": {},
}
# import paths of the tables of built-in denoisers and samplers, which only model folders name
TABLES = {"denoisers": "fewstep.denoisers:DENOISERS", "samplers": "fewstep.samplers:SAMPLERS"}
SINGULAR = {"methods": "method", "networks": "network", "data": "data set", "denoisers": "denoiser", "samplers": "sampler"}

SETTINGS: Mapping[str, type[Section]] = {"methods": MethodSettings, "networks": NetworkSettings, "data": DataSettings}
# the classes' names, as importing the classes would import torch
BASE_CLASSES = {
    "methods": "fewstep.methods.base.Method",
    "networks": "torch.nn.modules.module.Module",
    "denoisers": "torch.nn.modules.module.Module",
}
DERIVED_FROM = {"methods": "fewstep.methods.Method", "networks": "torch.nn.Module", "denoisers": "torch.nn.Module"}
SAMPLER_KIND = "fewstep.samplers.SamplerKind"

_registered: dict[str, dict[str, Any]] = {kind: {} for kind in BUILT_IN}
_trusted: set[str] = set()  # import paths
_folders: list[str] = []
_allowed: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())


def register(kind: str, name: str, room: Any) -> None:
    """Make a method, network, data set, denoiser or sampler known by `name` in this process, to recipes and to model folders.

    Args:
        kind: "methods", "networks", "data", "denoisers" or "samplers", or the singular of one of these.
        name: name in recipes and model folders. A name that was registered before is overwritten.
        room: a `fewstep.methods.Method` class; a `torch.nn.Module` class for a network or denoiser; a data set's class or a function that
            returns one; a `fewstep.samplers.SamplerKind`.

    Raises:
        UserError: for another kind, and for a name that is empty, has a colon, or is that of a built-in.

    """
    kind = next((k for k, one in SINGULAR.items() if kind in (k, one, one.split()[0])), kind)
    if kind not in BUILT_IN:
        raise UserError(f"kind is {kind!r}; allowed: {', '.join(BUILT_IN)}")
    taken = built_in(kind)
    if not name or ":" in name or name in taken:
        raise UserError(f"name is {name!r}; give a word without a colon that is no built-in {SINGULAR[kind]} ({', '.join(taken)})")
    _registered[kind][name] = room


@contextlib.contextmanager
def allowing(modules: Iterable[str]) -> Iterator[None]:
    """Let run and model folders name import paths in `modules` (modules or whole packages) inside the block; their code is then run."""
    token = _allowed.set((*_allowed.get(), *modules))
    try:
        yield
    finally:
        _allowed.reset(token)


def trust(path: str, folder: Path | None = None) -> None:
    """Allow the import path `path`, which the user has named; its module is also searched in the working folder and in `folder`."""
    _trusted.add(path)
    if folder is not None and str(folder.resolve()) not in _folders:
        _folders.append(str(folder.resolve()))


def names(kind: str, offered: bool = True) -> list[str]:
    """Return the known names of a `kind`: built in, then registered, then installed; with `offered` only those that recipes may name."""
    built_in = [name for name, place in BUILT_IN[kind].items() if place.offered or not offered]
    return list(dict.fromkeys([*built_in, *_registered[kind], *_installed(kind)]))


def is_import_path(name: str) -> bool:
    """Return whether `name` has a colon, as an import path ``package.module:Name`` has."""
    return ":" in name


def built_in(kind: str) -> Collection[str]:
    """Return the names of the built-in rooms of a `kind`; for denoisers and samplers torch is imported."""
    return _object(TABLES[kind]) if kind in TABLES else BUILT_IN[kind]


def is_own(kind: str, name: str) -> bool:
    """Return whether the room called `name` is not built in, and so the user's own."""
    return name not in built_in(kind)


def readable(kind: str) -> dict[str, Any]:
    """Return the settings class of every known room of a `kind` by name, without installed rooms that cannot be imported."""
    found = {}
    for name in names(kind):
        with contextlib.suppress(UserError):
            found[name] = settings(kind, name)
    return found


def settings(kind: str, name: str) -> type[Section]:
    """Return the settings class of the room called `name`; for built-in rooms torch is not imported.

    Raises UserError where there is no such room, it cannot be imported, or it is not of the `kind`.
    """
    place = BUILT_IN[kind].get(name)
    if place is not None:
        return _object(place.settings)
    return settings_of(kind, name, room(kind, name))


def room(kind: str, name: str) -> Any:
    """Return the room called `name`. Raises UserError as `settings` does."""
    place = BUILT_IN[kind].get(name)
    if place is not None:
        return _object(place.room)
    if name in _registered[kind]:
        found = _registered[kind][name]
    elif name in (installed := _installed(kind)):
        found = _loaded(kind, name, installed[name].load)
    elif is_import_path(name):
        found = _imported(kind, name)
    else:
        raise UserError(unknown(kind, name))
    _check_kind(kind, name, found)
    return found


def unknown(kind: str, name: str) -> str:
    """Return the error message for a name that is not known, with the nearest known name and a list of all."""
    close = difflib.get_close_matches(name, names(kind), 1, 0.5)
    return (
        f"{name!r} is no {SINGULAR[kind]}{f'; did you mean {close[0]!r}?' if close else ''}; known are {', '.join(names(kind))}, "
        "and your own by an import path such as package.module:Name"
    )


def _object(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def _installed(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"fewstep.{kind}") if point.name not in BUILT_IN[kind]}


def _imported(kind: str, path: str) -> Any:
    module, _, name = path.partition(":")
    permitted = _permitted(kind)
    if path not in _trusted and path not in _known_paths(kind) and not within(module, permitted):
        top = module.split(".")[0]
        raise UserError(
            f"{path!r} is asked for as a {SINGULAR[kind]}; importing it would run the module {module}, which the folder may not ask for by "
            f"itself. If you trust it, allow it: --allow {top} on the command line, or allow=[{top!r}] in Python"
        )

    def load() -> Any:
        if not module or not name:
            raise UserError(f"the import path {path!r} is not of the form package.module:Name")
        if "/" in module or "\\" in module or module.endswith(".py"):
            stem = module.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
            raise UserError(
                f"the import path {path!r} names a file; give its module, {stem}:{name}, which is looked for in the working folder and "
                "beside the recipe"
            )
        return _attribute(_module(module, path), name, path)

    found = _loaded(kind, path, load)
    home = getattr(found, "__module__", None)
    if path not in _trusted and path not in _known_paths(kind) and not (isinstance(home, str) and within(home, permitted)):
        elsewhere = "" if home is None else f", but in {home}"
        raise UserError(f"{path!r} is not defined in {module}{elsewhere}; a folder may only name what the allowed module itself defines")
    return found


def _permitted(kind: str) -> tuple[str, ...]:
    """Return the modules and packages from which a folder may name rooms of this `kind`."""
    ours = (OWN,) if kind in OWN_KINDS else ()
    return (*(path.partition(":")[0] for path in _trusted), *_allowed.get(), *ours)


def _known_paths(kind: str) -> set[str]:
    """Return the import paths of registered and installed rooms, which a folder may name instead of their names."""
    registered = {f"{getattr(room, '__module__', '')}:{getattr(room, '__qualname__', '')}" for room in _registered[kind].values()}
    return registered | {point.value for point in _installed(kind).values()}


def within(module: str, names: Iterable[str]) -> bool:
    """Return whether `module` is one of the packages or modules `names`, or inside one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def _module(module: str, path: str) -> Any:
    added = [folder for folder in (*_folders, str(Path.cwd())) if folder not in sys.path]
    sys.path.extend(added)  # at the end, so that a user's file does not hide an installed package
    try:
        importlib.invalidate_caches()  # the file may have been written after Python last listed its folder
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        where = f" (searched beside the installed packages: {', '.join(dict.fromkeys([*_folders, str(Path.cwd())]))})"
        raise UserError(
            f"there is no module {error.name!r}, which {path!r} asks for{where}; check the name, run from its folder, or put "
            "that folder into PYTHONPATH"
        ) from None


def folder_of(package: str) -> str | None:
    """Return the folder of a recipe in which the imported `package` was found; None for one found elsewhere, or in the working folder."""
    file = getattr(sys.modules.get(package), "__file__", None)
    if not file:
        return None
    place = Path(file).resolve().parent
    folder = str(place.parent if Path(file).name == "__init__.py" else place)
    return folder if folder in _folders and folder != str(Path.cwd()) else None


def _attribute(module: Any, name: str, path: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
            close = difflib.get_close_matches(name, public, 1, 0.5)
            raise UserError(
                f"{path!r}: the module {module.__name__} has no {name!r}{f'; did you mean {close[0]!r}?' if close else ''}; "
                f"classes in it: {', '.join(public) or 'none'}"
            )
        found = getattr(found, part)
    return found


def _loaded(kind: str, name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except UserError:
        raise
    except Exception as error:  # anything that the user's module raises when it is imported
        line = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"the {SINGULAR[kind]} {name!r} cannot be imported ({type(error).__name__}: {line}); mend its module") from error


def _check_kind(kind: str, name: str, found: Any) -> None:
    """Raise UserError where `found` is not a room of this `kind`: not of the right class, abstract, or a data set without items."""
    base = BASE_CLASSES.get(kind)
    if kind == "samplers" and f"{type(found).__module__}.{type(found).__qualname__}" != SAMPLER_KIND:
        raise UserError(f"{name!r} is {_what(found)}; a sampler is a {SAMPLER_KIND}")
    if kind == "data" and not callable(found):
        raise UserError(f"{name!r} is {_what(found)}; a {SINGULAR[kind]} is a class or a function")
    if base is None:
        if kind == "data" and isinstance(found, type) and not _holds_items(found):
            raise UserError(f"{name!r} is {_what(found)}; a data set has __len__ and __getitem__, or __iter__")
        return
    if not isinstance(found, type) or base not in (f"{c.__module__}.{c.__qualname__}" for c in found.__mro__):
        raise UserError(f"{name!r} is {_what(found)}; a {SINGULAR[kind]} is a class derived from {DERIVED_FROM[kind]}")
    if inspect.isabstract(found):
        raise UserError(
            f"the {SINGULAR[kind]} {name!r} does not define {', '.join(sorted(vars(found)['__abstractmethods__']))}; define what is named"
        )


def _holds_items(found: type) -> bool:
    """Return whether the class `found` has items, by index or by iteration, or is derived from one of fewstep's data classes."""
    ours = any(c.__module__.startswith(f"{OWN}.data.") for c in found.__mro__)
    return ours or hasattr(found, "__iter__") or (hasattr(found, "__len__") and hasattr(found, "__getitem__"))


def _what(found: Any) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"


def settings_of(kind: str, name: str, found: Any) -> type[Section]:
    """Return the settings class of a user's own room: its attribute ``Settings``, or one made from its constructor's annotated arguments.

    Raises UserError where neither makes a settings class of the `kind`.
    """
    base = SETTINGS[kind]
    own = getattr(found, "Settings", None)
    if own is not None:
        if not (isinstance(own, type) and issubclass(own, base)):
            raise UserError(f"{name!r}: its Settings is {_what(own)}; derive it from fewstep.sections.{base.__name__}")
        return own
    if kind == "methods":
        return base
    return section_from_signature(found, OwnData if kind == "data" else base, name)
