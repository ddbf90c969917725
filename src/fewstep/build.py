"""The one place where a recipe becomes objects, and where a run is started."""

import contextlib
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep import __version__
from fewstep.config import (
    EXACT,
    Cifar10Config,
    DDDMConfig,
    DMD2Config,
    DriftConfig,
    GridConfig,
    ImagesConfig,
    MLPConfig,
    PhotosConfig,
    PointsConfig,
    Recipe,
    TeacherConfig,
    ToyConfig,
    TrainerConfig,
    shipped_recipes,
)
from fewstep.data import (
    DataError,
    ImageData,
    Mixture,
    PointData,
    cifar10,
    cifar10_of_the_hub,
    image_folder,
    load_digits,
    photo_crops,
    point_file,
    power_data,
    toy_data,
)
from fewstep.denoisers import ForeignDenoiser, MixtureDenoiser
from fewstep.errors import UserError
from fewstep.generator import Generator, first_line, frozen, load
from fewstep.maths.kernels import temperature_range
from fewstep.methods import DDDM, DMD2, Drift, Method, OptimizerSettings, Ramp, Teacher
from fewstep.metrics.features import PooledPixels, RandomFeatures, TeacherFeatures, feature_network
from fewstep.metrics.figures import choices
from fewstep.networks.mlp import CodedMLP
from fewstep.networks.unet import UNet, num_parameters, zero_output

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# below this many multiply-adds an image, a second CPU thread costs more than it brings (measured: README, "Threads")
THREADS_FROM = 1e9


Data = ImageData | PointData


def load_data(config: Any, seed: int = 0) -> Data:
    """The data set that `config` (a recipe's data section) names; points of a density are drawn from `seed`. Raises UserError."""
    try:
        if isinstance(config, ToyConfig):
            return toy_data(config.density, config.size, seed)
        if isinstance(config, PointsConfig):
            return point_file(config.path, config.holdout)
        if isinstance(config, PhotosConfig):
            return photo_crops(config.size, config.stride)
        if isinstance(config, ImagesConfig):
            options = ("channels", "holdout", "flip", "resize", "image_column", "label_column", "config")
            return image_folder(config.path, config.size, **{name: getattr(config, name) for name in options})
        if isinstance(config, Cifar10Config):
            return cifar10(config.dir, config.flip) if config.dir is not None else cifar10_of_the_hub(config.flip)
        return load_digits()
    except DataError as error:
        raise UserError(str(error)) from error


def training_data(recipe: Recipe) -> Data:
    """The data set of `recipe` as its method is to see it: reweighted to p^gamma where the recipe says so. Raises UserError."""
    data, method = load_data(recipe.data, recipe.seed), recipe.method
    if isinstance(method, DriftConfig) and method.gamma_by == "data" and isinstance(data, PointData):
        try:
            return power_data(data, method.gamma, recipe.seed)
        except DataError as error:
            raise UserError(f"method.gamma_by is 'data': {error}") from error
    return data


def load_teacher(config: DMD2Config, data: Data, sigma_data: float | None, kept: Path | None = None) -> Generator:
    """The teacher in `kept` (a copy inside the run folder) if it is given, else in ``method.teacher``; checked against the recipe.

    `sigma_data` None takes the teacher's. Raises UserError where there is none, or where it does not fit the data or `sigma_data`.
    """
    if config.teacher is None and kept is None:
        recipe = f"teacher/{data.name}"
        make = recipe if recipe in shipped_recipes() else "your-teacher.yaml"
        exact = ", or method.teacher=exact for the closed form" if isinstance(data, PointData) and isinstance(data.density, Mixture) else ""
        rgb = isinstance(data, ImageData) and data.shape[0] == 3
        published = "or take one that exists with\n  fewstep import FILE --out runs/teacher\n" * rgb
        raise UserError(
            f"method.teacher is missing. Train one with\n  fewstep train {make} --out runs/teacher\n{published}"
            f"then add method.teacher=runs/teacher{exact}"
        )
    try:
        teacher = _open_teacher(kept or str(config.teacher), sigma_data)
    except UserError as error:
        raise UserError(f"method.teacher: {error}") from error
    wrong = []
    if teacher.shape != data.shape:
        wrong.append(f"it makes items of shape {list(teacher.shape)}, the data {data.name} has {list(data.shape)}")
    if teacher.num_classes != data.num_classes:
        wrong.append(f"it knows {teacher.num_classes or 'no'} classes, the data {data.name} has {data.num_classes or 'none'}")
    if sigma_data is not None and not math.isclose(teacher.sigma_data, sigma_data, rel_tol=1e-6):
        wrong.append(f"its sigma_data is {teacher.sigma_data}, network.sigma_data is {sigma_data}")
    if isinstance(teacher.denoiser, ForeignDenoiser):
        limit, asked = teacher.denoiser.sigma_max, {key: getattr(config, key) for key in ("sigma_max", "conditioning_sigma")}
        high = [f"method.{key} is {sigma:.15g}" for key, sigma in asked.items() if sigma > limit]
        if high:  # the limit is rounded down, so that it can be given
            wrong.append(f"it knows noise levels up to {math.floor(1e4 * limit) / 1e4:.15g}, {' and '.join(high)}")
    if not teacher.is_denoiser:
        draws = teacher.sampler["name"] == "distributional"
        wrong.append(
            "it draws from the posterior, where a teacher gives its mean"
            if draws
            else "it is a few-step generator, and no denoiser at other noise levels than its own"
        )
    if wrong:
        raise UserError(
            f"the teacher {config.teacher} does not fit this recipe: {'; '.join(wrong)}. Give another teacher, or change the recipe"
        )
    return teacher


def _open_teacher(path: str | Path, sigma_data: float | None) -> Generator:
    """The generator at `path`: ours, or else one of diffusers, which has no `sigma_data` of its own and takes this. Raises UserError."""
    from fewstep.interop.diffusers import diffusers_folder, read_teacher

    if diffusers_folder(path) is None:
        return load(path)
    teacher = read_teacher(path) if sigma_data is None else read_teacher(path, sigma_data)
    if "assumed" in teacher.info:
        sys.stderr.write(f"warning: method.teacher: {teacher.info['assumed']}\n")
    return teacher


def make_generator(recipe: Recipe, data: Data) -> Generator:
    """An untrained generator for `recipe`; its weights depend on the recipe's seed alone. Raises UserError."""
    method = recipe.method
    network = recipe.network.model_dump(exclude={"sigma_data"})
    sigma_data = recipe.network.sigma_data
    if sigma_data is None:  # of points, whose scale is their own
        sigma_data = round(data.images("train").var(0).mean().sqrt().item(), 4)
    sampler: dict[str, Any] = {"name": "push_forward"}
    if isinstance(method, TeacherConfig):
        sampler = {name: getattr(method, name) for name in ("sigma_min", "sigma_max", "rho")}
        sampler |= {"name": method.sampler, "steps": method.sampler_steps}
    elif isinstance(method, DDDMConfig):
        sampler = {"name": "distributional", "steps": method.sampler_steps, "churn": method.churn, "output": method.output}
        network["xi_channels"] = method.xi_channels or data.shape[0]
    info = {"data": data.name, "class_names": list(data.class_names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            generator = Generator(data.shape, data.num_classes, sigma_data, network, sampler, info)
        except ValueError as error:
            raise UserError(str(error)) from error
    if isinstance(generator.denoiser.network, UNet):
        zero_output(generator.denoiser.network)
    return generator


def make_method(recipe: Recipe, data: Data, kept_teacher: Path | None = None) -> Method:
    """The method that `recipe` describes, with all its networks. Raises UserError for a missing or unfitting teacher or network."""
    method = recipe.method
    shared: dict[str, Any] = {"betas": (method.beta1, method.beta2), "weight_decay": method.weight_decay, "clip": method.clip}
    if isinstance(method, DriftConfig):
        return _make_drift(recipe, method, data, shared)
    if isinstance(method, DDDMConfig):
        return _make_dddm(recipe, method, data, shared)
    grid = {name: getattr(method, name) for name in GridConfig.model_fields}
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
    exact = None
    # a network of its own, or None for a copy of the teacher's
    student = make_generator(recipe, data) if recipe.network.name != "teacher" else None
    if method.teacher == EXACT:
        assert student is not None
        teacher, exact = _untrained_denoiser(recipe, method, data, student.sigma_data), _exact_denoiser(data)
    else:
        teacher = load_teacher(method, data, recipe.network.sigma_data, kept_teacher)
    generator_optimizer = OptimizerSettings(
        method.generator_lr,
        warmup=method.generator_warmup,
        decay_from=method.generator_decay_from,
        final=method.generator_final,
        cosine=method.generator_decay == "cosine",
        scales=dict.fromkeys(CodedMLP.tables, method.table_scale),
        **shared,
    )
    parts = recipe.trainer.accumulate * recipe.trainer.known_devices
    if recipe.batch_size // parts < method.sampler_steps:
        raise UserError(
            f"batch_size is {recipe.batch_size}, in {parts} part(s); with method.sampler_steps {method.sampler_steps} each part needs an "
            f"item for every step: give at least {parts * method.sampler_steps}"
        )
    updates = -(-recipe.steps // method.dfake_gen_update_ratio)
    names = (
        "dfake_gen_update_ratio loss sid_alpha gamma guidance_scale conditioning_sigma sampler_steps sampler_sigmas fake_per_step "
        "inputs max_step_percent fake_min_step_percent fake_max_step_percent reuse_generator_batch "
        "gan gan_weight_generator gan_weight_guidance gan_features gan_levels r1_weight r1 r1_alpha f_divergence"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # the head is drawn
        try:
            return DMD2(
                teacher,
                generator_optimizer,
                OptimizerSettings(method.guidance_lr, **shared),
                real=exact,
                student=student,
                min_step_percent=Ramp(method.min_step_percent, method.min_step_start, round(method.min_step_warmup * updates)),
                **{name: getattr(method, name) for name in names.split()},
                **grid,
            )
        except ValueError as error:
            raise UserError(str(error)) from error


def _make_dddm(recipe: Recipe, method: DDDMConfig, data: Data, shared: dict[str, Any]) -> DDDM:
    optimizer = OptimizerSettings(
        method.lr, warmup=method.warmup, decay_from=method.decay_from, final=method.final, cosine=method.decay == "cosine", **shared
    )
    lam = Ramp(method.lam, 0.0 if method.lam_warmup else None, round(method.lam_warmup * recipe.steps))
    dropout = method.label_dropout if data.num_classes else 0.0
    return DDDM(make_generator(recipe, data), optimizer, method.m, method.beta, lam, method.bias, dropout)


def _untrained_denoiser(recipe: Recipe, method: DMD2Config, data: Data, sigma_data: float) -> Generator:
    """Where the fake network of points starts when there is no trained teacher to start from."""
    network = MLPConfig(name="mlp", sigma_data=sigma_data, widths=method.fake_widths)
    sampling = TeacherConfig(name="teacher", sigma_min=method.sigma_min, sigma_max=method.sigma_max, rho=method.rho)
    return make_generator(recipe.model_copy(update={"network": network, "method": sampling}), data)


def _exact_denoiser(data: Data) -> MixtureDenoiser:
    """The closed form of a mixture's denoiser. Raises UserError for data that is no known mixture."""
    density = data.density if isinstance(data, PointData) else None
    if not isinstance(density, Mixture):
        raise UserError(
            f"method.teacher is {EXACT!r}, but the data {data.name} is no mixture of Gaussians; name the run folder of a trained one"
        )
    return MixtureDenoiser(density.modes, density.mode_stds, density.mode_weights)


def _make_drift(recipe: Recipe, method: DriftConfig, data: Data, shared: dict[str, Any]) -> Drift:
    high = low = 0.0
    if "auto" in (method.temperatures, method.temperature_start):
        rng = torch.Generator().manual_seed(recipe.seed)
        batch, _ = data.batch(torch.randperm(len(data.train), generator=rng)[: recipe.batch_size], rng, torch.device("cpu"))
        high, low = temperature_range(batch.flatten(1), method.temperature_neighbours)
        if not low > 0:
            raise UserError("method.temperatures is 'auto', but most points of a batch coincide; give numbers, or data without copies")
    ends = [low] if method.temperatures == "auto" else method.temperatures
    assert not isinstance(ends, str)
    start = high if method.temperature_start == "auto" else method.temperature_start
    assert not isinstance(start, str)
    steps = [round(w * recipe.steps) if isinstance(w, float) else w for w in (method.gamma_warmup, method.temperature_warmup)]
    by_field = method.gamma_by == "field"
    gamma = Ramp(method.gamma, method.gamma_start, steps[0]) if by_field else Ramp(1.0)
    if by_field and method.field == "strict":
        _warn_of_bound(method, min(ends), data)
    optimizer = OptimizerSettings(
        method.lr,
        warmup=method.warmup,
        decay_from=method.decay_from,
        final=method.final,
        cosine=method.decay == "cosine",
        scales=dict.fromkeys(CodedMLP.tables, method.table_scale),
        **shared,
    )
    generator = make_generator(recipe, data)
    generator.info["drift_features"] = method.features
    try:
        return Drift(
            generator,
            optimizer,
            method.field,
            gamma,
            [Ramp(end, start, steps[1], method.temperature_schedule == "log") for end in ends],
            method.kernel,
            method.plan,
            method.affinity_floor,
            method.guidance_scale,
            make_features(method.features, data),
            method.memory,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _warn_of_bound(method: DriftConfig, temperature: float, data: Data) -> None:
    """Say so where the strict field cannot reach p^gamma: a mode of variance s^2 ends at (s^2 + h^2) / gamma - h^2 (MATHS 3.1)."""
    if not isinstance(data, PointData) or not isinstance(data.density, Mixture) or method.kernel != "gaussian":
        return
    variance = data.density.mode_stds.min().item() ** 2
    bound = 1 + 2 * variance / temperature
    if method.gamma >= bound:
        sys.stderr.write(
            f"warning: method.gamma is {method.gamma}, and with the strict field at temperature {temperature:g} a mode of {data.name} "
            f"becomes a point from gamma {bound:.3g} on (1 + 2 std^2 / T); drift/ring (method.gamma_by=data) has no such bound\n"
        )


def make_features(name: str, data: Data) -> Callable[[Tensor], Tensor] | None:
    """What a drift on `data` acts on: see `fewstep.config.DriftConfig.features`. Raises UserError."""
    if name == "none":
        return None
    if isinstance(data, PointData):
        raise UserError(f"method.features is {name!r}; points drift as they are, with 'none'")
    if name == "random":
        return RandomFeatures(data.shape)
    if name == "pooled":
        return PooledPixels()
    if name == "evaluator":
        return feature_network(data.name)
    try:
        teacher = load(name)
    except UserError as error:
        raise UserError(f"method.features is {name!r}; allowed: none, random, pooled, evaluator, or a run folder: {error}") from error
    inner = teacher.sampler["name"] not in ("push_forward", "distributional") and hasattr(teacher.denoiser.network, "feature_shapes")
    if teacher.shape != data.shape or not inner:
        raise UserError(f"method.features is {name!r}, which is no U-Net that denoises items of shape {list(data.shape)}; give one that is")
    features = TeacherFeatures(frozen(teacher.denoiser))
    try:
        features(torch.zeros(2, *data.shape))
    except ValueError as error:  # a model with classes and none that means no class
        raise UserError(f"method.features is {name!r}, which gives no features without a class: {error}") from error
    return features


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
    """What a run of `recipe` would be, for --dry-run: parameters, images to be seen, FLOPs, memory. Raises UserError as the run would."""
    from fewstep.costs import measure
    from fewstep.training.loop import check_batch_size

    trainer = recipe.trainer
    devices = trainer.known_devices
    check_batch_size(recipe.batch_size, devices, trainer.accumulate)
    data = training_data(recipe)
    method = make_method(recipe, data)
    classes = f"{data.num_classes or 'no'} classes"
    items = "points" if isinstance(data, PointData) else "images"
    lines = [f"data: {len(data.train)} training {items}, {len(data.heldout)} held out, shape {list(data.shape)}, {classes}"]
    for name, network in method.networks.items():
        turn = next((turn for turn in method.turns if name in turn.trains), None)
        does = f"learns every {turn.every} steps" if turn and turn.every > 1 else "learns every step" if turn else "frozen"
        lines.append(f"network {name}: {num_parameters(network):,} parameters, {does}")
    seen = recipe.steps * recipe.batch_size
    lines.append(f"{items} to be seen: {seen:,} in {recipe.steps:,} steps of {recipe.batch_size}")
    lines.append(f"CPU threads: {choose_threads(recipe.trainer.threads, method.networks[method.ships], data.shape)}")
    costs = measure(method, data.shape, data.num_classes, recipe.steps, recipe.batch_size, devices, trainer.accumulate)
    return [*lines, *costs.lines(items[:-1], seen)]


def _measured_elsewhere(generator: Generator) -> Mapping[str, float]:
    """What stands for the watch in all processes but the first, which alone measures."""
    raise AssertionError("only the first process measures")


def _data_in_turn(recipe: Recipe, fabric: "Fabric") -> Data:
    """`training_data`, first in one process of each machine, which downloads and writes the cache that the others then read."""
    if not isinstance(recipe.data, ImagesConfig | Cifar10Config):
        return training_data(recipe)
    with fabric.rank_zero_first(local=True):
        try:
            data: Data | UserError = training_data(recipe)
        except UserError as error:  # told when nobody waits for this process any more
            data = error
    if isinstance(data, UserError):
        raise data
    return data


def train(recipe: Recipe, out: Path, resume: bool = False, title: str = "training", after: Callable[[Path], None] | None = None) -> None:
    """Train `recipe` into the folder `out`; `after` is called with it at the end, in one process.

    Raises:
        UserError: for a folder, data set, teacher or machine that will not do, and for a loss that is not finite.
        Interrupted: after SIGINT or SIGTERM, everything saved.

    """
    from fewstep.measurement import Watch
    from fewstep.pictures import ImagePictures, PointPictures
    from fewstep.training.loop import Loop, LoopSettings, check_batch_size
    from fewstep.training.run_folder import RunFolder
    from fewstep.training.tracking import check_tracker, make_tracker

    run = RunFolder(out)
    fabric = make_fabric(recipe.trainer)
    if fabric.is_global_zero:
        run.check(resolved(recipe), resume)
    fabric.launch()
    data = _data_in_turn(recipe, fabric)
    method = make_method(recipe, data, run.teacher_folder if run.has_teacher() else None)
    threads = choose_threads(recipe.trainer.threads, method.networks[method.ships], data.shape)
    torch.set_num_threads(max(1, threads // fabric.world_size) if fabric.device.type == "cpu" else threads)
    check_batch_size(recipe.batch_size, fabric.world_size, recipe.trainer.accumulate)
    check_tracker(recipe.trainer.tracker)
    watch: Callable[[Generator], Mapping[str, float]] | None = None
    if recipe.trainer.evaluate_every is not None:
        # points may have been reweighted for the method; images are as they came
        measured = data if isinstance(data, ImageData) else load_data(recipe.data, recipe.seed)
        if fabric.is_global_zero:
            samples, features = recipe.trainer.evaluate_samples, recipe.trainer.evaluate_features
            watch = Watch(measured, samples, recipe.power, features=features, device=fabric.device)
        else:
            watch = _measured_elsewhere
    fabric.barrier()  # all have read what the folder holds, and found no mistake: now it may be written to
    if fabric.is_global_zero:
        run.open(resolved(recipe), made_by())
        if isinstance(method, DMD2) and method.real is None and not run.has_teacher():
            run.save_model(method.teacher, run.teacher_folder)
    fabric.barrier()

    pictures = ImagePictures(recipe, data, run) if isinstance(data, ImageData) else PointPictures(recipe, data, run, method, recipe.steps)
    trainer, tenth = recipe.trainer, max(1, recipe.steps // 10)
    often = tenth if isinstance(data, ImageData) else max(1, recipe.steps // 40)  # a frame of the dashboard costs training little
    settings = LoopSettings(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        accumulate=trainer.accumulate,
        log_every=trainer.log_every,
        sample_every=trainer.sample_every or often,
        evaluate_every=trainer.evaluate_every,
        keep_best=trainer.keep_best,
        best_is={**choices("images"), **choices("points")}[trainer.keep_best] if trainer.keep_best else "least",
        checkpoint_every=trainer.checkpoint_every or tenth,
        keep_checkpoints=trainer.keep_checkpoints,
        ema_decay=recipe.method.ema_decay,
        ema_warmup=recipe.method.ema_warmup,
    )
    tracker = make_tracker(trainer.tracker if fabric.is_global_zero else "none", out, resolved(recipe))
    try:
        Loop(method, data, fabric, run, settings, tracker, pictures, title, watch).train(resume)
    finally:
        pictures.close()
    if fabric.is_global_zero and after is not None:
        after(out)
