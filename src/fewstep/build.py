"""The one place where a recipe becomes objects, and where a run is started."""

import contextlib
import math
import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fewstep import __version__
from fewstep.config import (
    DMD2Config,
    GridConfig,
    ImagesConfig,
    PhotosConfig,
    Recipe,
    TeacherConfig,
    TrainerConfig,
    UNetConfig,
    shipped_recipes,
)
from fewstep.data import DataError, ImageData, image_folder, load_digits, photo_crops
from fewstep.errors import UserError
from fewstep.generator import Generator, first_line, load
from fewstep.methods import DMD2, Method, OptimizerSettings, Teacher
from fewstep.networks.unet import UNet, num_parameters, zero_output

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# below this many multiply-adds an image, a second CPU thread costs more than it brings (measured: README, "Threads")
THREADS_FROM = 1e9


def load_data(config: Any) -> ImageData:
    """The data set that `config` (a recipe's data section) names. Raises UserError."""
    try:
        if isinstance(config, PhotosConfig):
            return photo_crops(config.size, config.stride)
        if isinstance(config, ImagesConfig):
            return image_folder(config.path, config.size, config.channels, config.holdout, config.flip)
        return load_digits()
    except DataError as error:
        raise UserError(str(error)) from error


def load_teacher(config: DMD2Config, data: ImageData, sigma_data: float, kept: Path | None = None) -> Generator:
    """The teacher in `kept` (a copy inside the run folder) if it is given, else in ``method.teacher``; checked against the recipe.

    Raises UserError where there is none, or where it does not fit the data or `sigma_data`.
    """
    if config.teacher is None and kept is None:
        recipe = f"teacher/{data.name}"
        make = recipe if recipe in shipped_recipes() else "your-teacher.yaml"
        raise UserError(
            f"method.teacher is missing. Train one with\n  fewstep train {make} --out runs/teacher\nthen add method.teacher=runs/teacher"
        )
    try:
        teacher = load(kept or str(config.teacher))
    except UserError as error:
        raise UserError(f"method.teacher: {error}") from error
    wrong = []
    if teacher.shape != data.shape:
        wrong.append(f"it makes items of shape {list(teacher.shape)}, the data {data.name} has {list(data.shape)}")
    if teacher.num_classes != data.num_classes:
        wrong.append(f"it knows {teacher.num_classes or 'no'} classes, the data {data.name} has {data.num_classes or 'none'}")
    if not math.isclose(teacher.sigma_data, sigma_data, rel_tol=1e-6):
        wrong.append(f"its sigma_data is {teacher.sigma_data}, network.sigma_data is {sigma_data}")
    if teacher.sampler["name"] == "few_step":
        wrong.append("it is a distilled generator, and no denoiser at other noise levels than its own")
    if wrong:
        raise UserError(
            f"the teacher {config.teacher} does not fit this recipe: {'; '.join(wrong)}. Give another teacher, or change the recipe"
        )
    return teacher


def make_generator(recipe: Recipe, data: ImageData) -> Generator:
    """An untrained generator for a teacher recipe; its weights depend on the recipe's seed alone. Raises UserError."""
    assert isinstance(recipe.method, TeacherConfig)
    assert isinstance(recipe.network, UNetConfig)
    method = recipe.method
    network = recipe.network.model_dump(exclude={"sigma_data"})
    sampler = {
        "name": method.sampler,
        "steps": method.sampler_steps,
        "sigma_min": method.sigma_min,
        "sigma_max": method.sigma_max,
        "rho": method.rho,
    }
    info = {"data": data.name, "class_names": list(data.class_names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            generator = Generator(data.shape, data.num_classes, recipe.network.sigma_data, network, sampler, info)
        except ValueError as error:
            raise UserError(str(error)) from error
    assert isinstance(generator.denoiser.network, UNet)
    zero_output(generator.denoiser.network)
    return generator


def make_method(recipe: Recipe, data: ImageData, kept_teacher: Path | None = None) -> Method:
    """The method that `recipe` describes, with all its networks. Raises UserError for a missing or unfitting teacher or network."""
    method = recipe.method
    grid = {name: getattr(method, name) for name in GridConfig.model_fields}
    shared: dict[str, Any] = {"betas": (method.beta1, method.beta2), "weight_decay": method.weight_decay, "clip": method.clip}
    if isinstance(method, TeacherConfig):
        optimizer = OptimizerSettings(method.lr, warmup=method.warmup, decay_from=method.decay_from, final=method.final, **shared)
        return Teacher(
            make_generator(recipe, data),
            optimizer,
            method.sigma_sampling,
            method.sigma_mean,
            method.sigma_std,
            label_dropout=method.label_dropout if data.num_classes else 0.0,
            **grid,
        )
    teacher = load_teacher(method, data, recipe.network.sigma_data, kept_teacher)
    generator_optimizer = OptimizerSettings(
        method.generator_lr,
        warmup=method.generator_warmup,
        decay_from=method.generator_decay_from,
        final=method.generator_final,
        **shared,
    )
    names = (
        "dfake_gen_update_ratio loss sid_alpha gamma guidance_scale conditioning_sigma min_step_percent max_step_percent "
        "reuse_generator_batch gan gan_weight_generator gan_weight_guidance"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # the head is drawn
        try:
            return DMD2(
                teacher,
                generator_optimizer,
                OptimizerSettings(method.guidance_lr, **shared),
                **{name: getattr(method, name) for name in names.split()},
                **grid,
            )
        except ValueError as error:
            raise UserError(str(error)) from error


def choose_threads(threads: int | str, network: nn.Module, shape: tuple[int, ...]) -> int:
    """CPU threads for `network` on items of `shape`: `threads` itself, or for "auto" 1 if the network is small, else all cores."""
    if isinstance(threads, int):
        return threads
    work = num_parameters(network) * math.prod(shape[1:])  # bounds a convolutional network's multiply-adds from above
    if work < THREADS_FROM:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former not on macOS


def make_fabric(trainer: TrainerConfig) -> "Fabric":
    """lightning-fabric as the trainer section says. Raises UserError for what this machine does not offer."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    several = trainer.strategy == "ddp" or trainer.devices != 1 or trainer.num_nodes > 1
    strategy = DDPStrategy(broadcast_buffers=False) if several else "auto"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a GPU lies idle, when the user asked for the CPU
            return Fabric(
                accelerator=trainer.accelerator,
                devices=trainer.devices,
                strategy=strategy,
                precision=trainer.precision,
                num_nodes=trainer.num_nodes,
            )
    except Exception as error:  # Fabric raises several kinds for what a machine lacks
        raise UserError(
            f"trainer: this machine cannot run {trainer.accelerator} with precision {trainer.precision}: {first_line(error)}"
        ) from error


def made_by() -> dict[str, Any]:
    """Version of the package, of torch, and the git commit that the package stands at (None outside a checkout)."""
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(git, capture_output=True, text=True, timeout=5).stdout.strip() or None
    return {"fewstep": __version__, "torch": str(torch.__version__), "commit": commit}


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every default filled in."""
    return recipe.model_dump(mode="json")


def describe(recipe: Recipe) -> list[str]:
    """What a run of `recipe` would be, for --dry-run: parameters, images to be seen, updates. Raises UserError as the run would."""
    from fewstep.training.loop import check_batch_size

    trainer = recipe.trainer
    check_batch_size(recipe.batch_size, trainer.num_nodes * (1 if trainer.devices == "auto" else trainer.devices), trainer.accumulate)
    data = load_data(recipe.data)
    method = make_method(recipe, data)
    classes = f"{data.num_classes or 'no'} classes"
    lines = [f"data: {len(data.train)} training images, {len(data.heldout)} held out, shape {list(data.shape)}, {classes}"]
    for name, network in method.networks.items():
        turn = next((turn for turn in method.turns if name in turn.trains), None)
        does = f"learns every {turn.every} steps" if turn and turn.every > 1 else "learns every step" if turn else "frozen"
        lines.append(f"network {name}: {num_parameters(network):,} parameters, {does}")
    lines.append(f"images to be seen: {recipe.steps * recipe.batch_size:,} in {recipe.steps:,} steps of {recipe.batch_size}")
    lines.append(f"CPU threads: {choose_threads(recipe.trainer.threads, method.networks[method.ships], data.shape)}")
    return lines


def train(recipe: Recipe, out: Path, resume: bool = False, title: str = "training", after: Callable[[Path], None] | None = None) -> None:
    """Train `recipe` into the folder `out`; `after` is called with it at the end, in one process.

    Raises:
        UserError: for a folder, data set, teacher or machine that will not do, and for a loss that is not finite.
        Interrupted: after SIGINT or SIGTERM, everything saved.

    """
    from fewstep.training.loop import Loop, LoopSettings, check_batch_size
    from fewstep.training.run_folder import RunFolder
    from fewstep.training.tracking import check_tracker, make_tracker
    from fewstep.viz.plots import image_grid

    run = RunFolder(out)
    fabric = make_fabric(recipe.trainer)
    if fabric.is_global_zero:
        run.check(resolved(recipe), resume)
    fabric.launch()
    data = load_data(recipe.data)
    method = make_method(recipe, data, run.teacher_folder if run.has_teacher() else None)
    threads = choose_threads(recipe.trainer.threads, method.networks[method.ships], data.shape)
    torch.set_num_threads(max(1, threads // fabric.world_size) if fabric.device.type == "cpu" else threads)
    check_batch_size(recipe.batch_size, fabric.world_size, recipe.trainer.accumulate)
    check_tracker(recipe.trainer.tracker)
    fabric.barrier()  # all have read what the folder holds, and found no mistake: now it may be written to
    if fabric.is_global_zero:
        run.open(resolved(recipe), made_by())
        if isinstance(method, DMD2) and not run.has_teacher():
            run.save_model(method.teacher, run.teacher_folder)
    fabric.barrier()

    def on_sample(generator: Generator, step: int) -> Path:
        count = 2 * (data.num_classes or 10) if (data.num_classes or 10) <= 16 else 32
        path = run.sample_folder / f"step_{step}.png"
        image_grid(generator.sample(count, seed=recipe.seed), columns=count // 2).save(path)
        return path

    trainer, tenth = recipe.trainer, max(1, recipe.steps // 10)
    settings = LoopSettings(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        accumulate=trainer.accumulate,
        log_every=trainer.log_every,
        sample_every=trainer.sample_every or tenth,
        checkpoint_every=trainer.checkpoint_every or tenth,
        keep_checkpoints=trainer.keep_checkpoints,
        ema_decay=recipe.method.ema_decay,
        ema_warmup=recipe.method.ema_warmup,
    )
    tracker = make_tracker(trainer.tracker if fabric.is_global_zero else "none", out, resolved(recipe))
    Loop(method, data, fabric, run, settings, tracker, on_sample, title).train(resume)
    if fabric.is_global_zero and after is not None:
        after(out)
