"""Make what a recipe describes: its data set, teacher, networks and method, each from the class or function that its name stands for."""

import contextlib
import inspect
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep import registry
from fewstep.data import DataError, ImageData, PointData, power_data
from fewstep.data.items import in_words
from fewstep.data.own import ForeignData
from fewstep.data.prompts import PromptData
from fewstep.data.protocol import Data as AnyData
from fewstep.data.rooms import check_made, opened
from fewstep.denoisers.adapted import grounds
from fewstep.errors import Refused, UserError
from fewstep.generator import Generator, load
from fewstep.hub import NotHad
from fewstep.methods.base import Given, Method
from fewstep.methods.recomputing import recompute
from fewstep.metrics.features import feature_network, named_features
from fewstep.own_parts import check_method, check_network
from fewstep.recipe import Recipe, shipped_recipes
from fewstep.screen import SCREEN
from fewstep.sections import DataSettings, MethodSettings, NetworkSettings, Optimizer
from fewstep.streams import stream_seed
from fewstep.training.progress import reading_bar

Data = ImageData | PointData | PromptData | ForeignData


def load_data(settings: DataSettings, seed: int = 0) -> Data:
    """Return the data set that a recipe's data section, `settings`, names; its random choices depend on `seed`. Raises UserError."""
    room = registry.room("data", settings.name)
    asked = inspect.signature(room).parameters
    given: dict[str, Any] = {"seed": seed} if "seed" in asked else {}
    if "bar" in asked and settings.name in registry.BUILT_IN["data"]:
        given["bar"] = reading_bar

    def made(settings: DataSettings) -> Any:
        try:
            return room(**settings.arguments(), **given)
        except (DataError, UserError):
            raise
        except Exception as error:  # raised by the user's own code; from a built-in data set it is a bug, and is left as it is
            if settings.name in registry.BUILT_IN["data"]:
                raise
            raise DataError(f"the data set {settings.name} raised {in_words(error)} when it was made") from error

    try:
        data = opened(settings, made, note)
        if registry.is_own("data", settings.name):
            check_made(data, settings.name)
        return data
    except DataError as error:
        raise UserError(str(error)) from error


def in_memory(data: AnyData) -> ImageData | PointData:
    """Return the training and the held-out split of `data` in memory, of a large data set a bounded part of each, to measure against.

    Raises UserError where they cannot be read.
    """
    try:
        return data.excerpt()
    except DataError as error:
        raise UserError(str(error)) from error


def note(text: str) -> None:
    """Print `text` as a note, such as what was assumed of the data, in the first process of each machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        SCREEN.say(f"note: {text}")


def training_data(recipe: Recipe) -> Data:
    """Return the data that the method of `recipe` trains on: points reweighted to a power of their density if its settings ask for it.

    Raises UserError.
    """
    data, power = load_data(recipe.data, recipe.seed), recipe.method.data_power
    if power is not None and isinstance(data, ForeignData):
        raise UserError(
            f"method.gamma_by is 'data', which needs all points in memory, and {data.name} is read item by item; save the points in a .npy "
            "file, and give data.name=points data.path=FILE"
        )
    if power is not None and isinstance(data, PointData):
        try:
            return power_data(data, power, recipe.seed)
        except DataError as error:
            raise UserError(f"method.gamma_by is 'data': {error}") from error
    return data


def open_teacher(
    settings: MethodSettings, data: Data, sigma_data: float | None, kept: Path | None = None, keys: Collection[str] = ()
) -> Generator:
    """Return the teacher in `kept` (a copy inside the run folder) if that is given, else the one in ``settings.teacher``.

    With `sigma_data` None the teacher's own value holds. Raises UserError where there is no teacher, or where it does not fit the data or
    `sigma_data`; where changes to network.sigma_data and to `keys`, the settings of the data section, are enough, the message names them.
    """
    path = settings.teacher_path
    if path is None and kept is None:
        raise UserError(_no_teacher(settings, data))
    try:
        teacher = generator_at(kept or str(path), sigma_data)
    except UserError as error:
        raise UserError(f"method.teacher: {error}") from error
    if isinstance(data, PromptData):
        _tell(teacher, data, str(path))
        _note_guidance(settings, data)
    elif teacher.told is not None:
        raise UserError(
            f"method.teacher is {path}, a text-to-image model, and the data {data.name} has no prompts; encode some by fewstep encode, and "
            "give data.name=prompts data.path=FOLDER"
        )
    wrong: list[tuple[str, dict[str, Any]]] = []  # what does not fit, and the settings that would make it fit
    if teacher.shape != data.shape:
        pairs = (("data.channels", teacher.shape[0], data.shape[0]), ("data.size", teacher.shape[-1], data.shape[-1]))
        square = len(teacher.shape) == len(data.shape) == 3 and teacher.shape[1] == teacher.shape[2]
        mend = {key: theirs for key, theirs, mine in pairs if theirs != mine} if square else {}
        wrong.append((f"it makes items of shape {list(teacher.shape)}, the data {data.name} has {list(data.shape)}", mend))
    if teacher.num_classes != data.num_classes:
        said = f"it knows {teacher.num_classes or 'no'} classes, the data {data.name} has {data.num_classes or 'none'}"
        wrong.append((said, {"data.label_column": "none"} if teacher.num_classes is None else {}))
    if sigma_data is not None and not math.isclose(teacher.sigma_data, sigma_data, rel_tol=1e-6):
        said = f"its sigma_data is {teacher.sigma_data}, network.sigma_data is {sigma_data}"
        wrong.append((said, {"network.sigma_data": teacher.sigma_data}))
    theirs = None if teacher.units is None else teacher.units.config
    if theirs != units_in(data):
        wrong.append(("its points have another location and scale than the data (data.standardize): it was trained on other points", {}))
    latents = teacher.latents is not None, isinstance(data, PromptData) or getattr(data, "latents", None) is not None
    if latents[0] != latents[1]:
        theirs_are, mine_are = ("latents" if one else "no latents" for one in latents)
        wrong.append((f"it makes {theirs_are}, and the data {data.name} has {mine_are}", {}))
    vaes = [(one or {}).get("vae") for one in (teacher.latents, getattr(data, "latents", None))]
    if None not in vaes and vaes[0] != vaes[1]:
        wrong.append((f"its latents are of another VAE than those of the data {data.name}", {}))
    limit = getattr(teacher.denoiser, "sigma_max", None)
    if limit is not None:
        high = [f"method.{key} is {sigma:.15g}" for key, sigma in settings.asked_levels.items() if sigma > limit]
        if high:  # the limit is rounded down, so that the value shown is itself allowed
            wrong.append((f"it knows noise levels up to {math.floor(1e4 * limit) / 1e4:.15g}, {' and '.join(high)}", {}))
    if not teacher.is_denoiser:
        draws = teacher.kind.of == "posterior"
        said = (
            "it draws samples of the posterior, and a teacher gives the mean of the posterior"
            if draws
            else "it is a few-step generator, which denoises at its own noise levels only"
        )
        wrong.append((said, {}))
    if wrong:
        own = {f"data.{key}" for key in keys} | {"network.sigma_data"}
        mending = {key: value for _, mend in wrong for key, value in mend.items()}
        mends = all(mend and mend.keys() <= own for _, mend in wrong)
        that_fit = f". Settings that fit it: {' '.join(f'{key}={value}' for key, value in mending.items())}" if mends else ""
        reasons = "; ".join(said for said, _ in wrong)
        raise UserError(f"the teacher {path} does not fit this recipe: {reasons}{that_fit}. Give another teacher, or change the recipe")
    return teacher


def tell_prompts(generator: Generator, data: PromptData, called: str) -> None:
    """Give `generator` the prompts in `data`, so that its labels are their row numbers; messages name the generator by `called`.

    Raises UserError where it takes no prompts, where they were encoded for another model, or where samples, pairs or images stored beside
    them are those of another network or VAE.
    """
    told, table = generator.told, data.table.manifest
    if told is None:
        raise UserError(f"{called} takes no prompts; give the text-to-image model that encoded {data.name}")
    if not table.fits(told.takes, generator.info.get("encoders")):
        raise UserError(
            f"the prompts in {data.table.folder} were encoded by {table.model}, and {called} has other text encoders; encode the prompts "
            "by that model"
        )
    base = generator.base
    for drawn in (data.samples, data.pairs):
        if base is not None and drawn is not None and drawn.drawn.weights != base.weights:
            raise UserError(
                f"the {drawn.use.what} in {data.table.folder} were drawn from another network than {called}; encode the prompts into a new "
                f"folder, with {drawn.use.option} to draw from that network, or without"
            )
    vae = (generator.latents or {}).get("vae")
    beside = {
        "samples": data.samples.drawn.vae if data.samples is not None else None,
        "images": (data.images.latents or {}).get("vae") if data.images is not None else None,
    }
    if vae is not None and (other := next((what for what, theirs in beside.items() if theirs not in (None, vae)), None)):
        raise UserError(
            f"the {other} in {data.table.folder} are those of another VAE than {called} has; encode them into a new folder by that model"
        )
    generator.tell(data.table)


def _tell(teacher: Generator, data: PromptData, path: str) -> None:
    """Give the `teacher` at `path` the prompts in `data` by `tell_prompts`, and record their folder in its info. Raises UserError."""
    tell_prompts(teacher, data, f"method.teacher={path}")
    teacher.info["prompts"] = str(data.table.folder.resolve())


def _note_guidance(settings: MethodSettings, data: PromptData) -> None:
    """Print a note where the teacher's stored samples or pairs in `data` were drawn with another guidance than the student is to learn."""
    mine = getattr(settings, "guidance_scale", None)
    for drawn in (data.samples, data.pairs):
        if drawn is not None and mine is not None and (theirs := drawn.drawn.guidance_scale) != mine:
            note(
                f"the {drawn.use.what} in {data.table.folder} were drawn with guidance scale {theirs:g}, and method.guidance_scale is "
                f"{mine:g}, so that they are not what the student learns; set method.guidance_scale={theirs:g}, or draw others into a new "
                f"folder with --guidance-scale {mine:g}"
            )


def _no_teacher(settings: MethodSettings, data: Data) -> str:
    """Return the error message for a missing teacher, which says how to train, import or name one."""
    if isinstance(data, PromptData):
        return (
            f"method.teacher is missing; give the text-to-image pipeline that the prompts were encoded by: method.teacher="
            f"{data.table.manifest.model}"
        )
    recipe = teaching_recipe(data.name) or "your-teacher.yaml"
    otherwise = settings.other_teachers(data.mixture is not None)
    rgb = len(data.shape) == 3 and data.shape[0] == 3
    published = "or take one that exists with\n  fewstep import FILE --out runs/teacher\n" * rgb
    return (
        f"method.teacher is missing. Train one with\n  fewstep train {recipe} --out runs/teacher\n{published}"
        f"then add method.teacher=runs/teacher{otherwise}"
    )


def teaching_recipe(data: str) -> str | None:
    """Return the name of the shipped recipe that trains a teacher on the data set called `data`, or None if there is none."""
    taught = (f"{name}/{data}" for name, known in registry.readable("methods").items() if known.teaches)
    return next((name for name in taught if name in shipped_recipes()), None)


def generator_at(path: str | Path, sigma_data: float | None) -> Generator:
    """Return the generator at `path`: one of fewstep, or a diffusers model, which records no `sigma_data` and takes the one given.

    Raises UserError.
    """
    from fewstep.interop.diffusers import diffusers_folder
    from fewstep.interop.text_teacher import is_text_pipeline, text_teacher

    if is_text_pipeline(path):
        return text_teacher(str(path), sigma_data or 1.0)
    with contextlib.suppress(NotHad):  # the Hub's cache may hold a generator of fewstep, without the files that diffusers_folder looks for
        if diffusers_folder(path) is not None:
            return _teacher_of_diffusers(path, sigma_data)
    return load(path)


def _teacher_of_diffusers(path: str | Path, sigma_data: float | None) -> Generator:
    from fewstep.interop.diffusers import read_teacher

    teacher = read_teacher(path) if sigma_data is None else read_teacher(path, sigma_data)
    if "assumed" in teacher.info:
        SCREEN.say(f"warning: method.teacher: {teacher.info['assumed']}")
    return teacher


def units_in(data: Data) -> dict[str, Any] | None:
    """Return the location and scale of each column of the points in `data`, as a generator's config holds them; None without such units."""
    units = data.units if isinstance(data, PointData | ForeignData) else None
    return None if units is None else units.config


def make_generator(
    recipe: Recipe,
    data: Data,
    sampler: Mapping[str, Any],
    denoiser: Mapping[str, Any] | None = None,
    network: NetworkSettings | None = None,
    **arguments: Any,
) -> Generator:
    """Return an untrained generator with `sampler` and `denoiser`, whose weights depend on the recipe's seed alone.

    Its network is made from the settings `network`, by default the recipe's, and further `arguments`. Raises UserError.
    """
    network = network or recipe.network
    sigma_data = network.sigma_data
    if sigma_data is None:  # points, which may have any scale
        spread = in_memory(data).images("train").var(0).mean().sqrt().item()
        sigma_data = round(spread, 4) if spread >= 0.1 else float(f"{spread:.4g}")
        if not sigma_data > 0:
            raise UserError(f"the points of {data.name} all coincide; there is nothing to learn")
    info = {"data": data.name, "class_names": list(data.class_names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            config = {**network.arguments(), **arguments}
            latents = getattr(data, "latents", None)
            generator = Generator(data.shape, data.num_classes, sigma_data, config, sampler, info, denoiser, units_in(data), latents)
        except ValueError as error:
            raise UserError(str(error)) from error
    made: Any = generator.denoiser.network
    if hasattr(made, "zero_output"):
        made.zero_output()
    if registry.is_own("networks", network.name):
        check_network(network.name, generator)
    return generator


def make_method(recipe: Recipe, data: Data, kept_teacher: Path | None = None) -> Method:
    """Return the method that `recipe` describes, with all its networks.

    Its teacher is read from `kept_teacher`, a copy inside the run folder, if that is given. Raises UserError for a teacher or network that
    is missing or does not fit, and Refused for settings that do not go together.
    """
    try:
        recipe.check_fit(len(data.shape) == 1)
    except ValueError as error:
        raise Refused(str(error)) from error
    settings = recipe.method
    if isinstance(data, PromptData) and data.images is None and settings.needs_items:
        raise UserError(
            f"the data {data.name} has prompts and no images, and method {settings.name} as it is set learns from images; encode images "
            "with captions (fewstep encode IMAGES --images --captions), or give a method and settings that need none"
        )
    teacher = None
    if settings.taught or recipe.network.role == "copy":
        teacher = open_teacher(settings, data, recipe.network.sigma_data, kept_teacher, type(recipe.data).model_fields)

    def untrained(sampler: Mapping[str, Any], denoiser: Mapping[str, Any] | None = None, **options: Any) -> Generator:
        return make_generator(recipe, data, sampler, denoiser, **options)

    given = Given(
        data,
        recipe.network,
        recipe.seed,
        recipe.steps,
        recipe.batch_size,
        teacher,
        untrained,
        lambda name: named_features(name) if name else feature_network(data.name, data.shape, data.num_classes),
        load,
    )
    room = registry.room("methods", settings.name)
    try:
        with torch.random.fork_rng(devices=[]):  # what a method makes beside the recipe's network depends on the seed, too
            torch.manual_seed(stream_seed(recipe.seed, "method"))
            method: Method = room.make(settings, given)
        if recipe.trainer.checkpointing:
            recompute(method)
        if recipe.trainer.compile and any(grounds(network) for network in method.networks.values()):
            raise ValueError(
                "trainer.compile is on, and method.lora puts the low-rank adapters of three roles into one network in turn, which a "
                "compiled network would not notice; turn one of these settings off"
            )
    except UserError:
        raise
    except ValueError as error:
        raise Refused(str(error)) from error
    if registry.is_own("methods", settings.name):
        check_method(settings.name, method)
    _note_rates(settings)
    return method


def _note_rates(settings: MethodSettings) -> None:
    """Print a note for each optimizer of which half of a learning rate's decay is given, and the default of the other undoes it."""
    for name in type(settings).model_fields:
        section = getattr(settings, name)
        if not isinstance(section, Optimizer) or (section.decay_from < 1) == (section.final < 1):
            continue
        given, missing = ("final", "decay_from") if section.final < 1 else ("decay_from", "final")
        if given in section.model_fields_set and missing not in section.model_fields_set:
            note(
                f"method.{name}.{given} is {getattr(section, given)}, and the learning rate never falls, as method.{name}.{missing} is "
                "1; give it, too, or leave both out"
            )
