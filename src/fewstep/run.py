"""Start a training run: set up the engine, threads, run folder, pictures and measurements, and run the training loop."""

import contextlib
import functools
import subprocess
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewstep.build import Data, in_memory, load_data, make_method, note, training_data
from fewstep.data import PointData
from fewstep.data.audit import audit
from fewstep.data.beforehand import beforehand
from fewstep.data.own import ForeignData
from fewstep.data.prompts import PromptData
from fewstep.denoisers.adapted import grounds, halve
from fewstep.engine import Chosen, choose, make_fabric, settle, use_threads
from fewstep.errors import UserError
from fewstep.files import at_home, held_folder, replace_file
from fewstep.finding import settled
from fewstep.generator import Generator
from fewstep.hub import NotHad
from fewstep.methods.base import Method
from fewstep.metrics.figures import choices
from fewstep.networks.base import num_parameters
from fewstep.own_parts import named_faults
from fewstep.recipe import Recipe, load_recipe, resolved
from fewstep.recipe.idle import idle
from fewstep.run_data import as_recorded, keep, once_allowed, tell
from fewstep.screen import SCREEN
from fewstep.starting import check_longer, start_from
from fewstep.training.checkpoint import checkpoints
from fewstep.training.precision import MIXED
from fewstep.training.run_folder import RunFolder
from fewstep.version import __version__

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from fewstep.training.loop import Loop
    from fewstep.training.measuring import Measuring


def made_by() -> dict[str, Any]:
    """Return the versions of the package and of torch, and the git commit of the package's code (None outside a git checkout)."""
    return {"fewstep": __version__, "torch": str(torch.__version__), "commit": _commit()}


@functools.cache  # the code that this process has imported does not change
def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # an installed package may lie inside another git repository, whose commit says nothing about the package
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True, timeout=5)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(describe, capture_output=True, text=True, timeout=5).stdout.strip() or None
    return None


def check_parts(recipe: Recipe, method: Method, devices: int) -> None:
    """Raise UserError unless a batch divides equally among devices and accumulation steps, with as many items each as `method` needs."""
    from fewstep.training.loop import check_batch_size

    check_batch_size(recipe.batch_size, devices, recipe.trainer.accumulate)
    reason = method.needs_whole_batch
    if recipe.trainer.accumulate > 1 and reason is not None:
        raise UserError(
            f"trainer.accumulate is {recipe.trainer.accumulate}, but method {recipe.method.name} learns from a batch as a whole: {reason}. "
            "Set it to 1, and batch_size to what fits into memory; several devices (trainer.devices) share one batch"
        )
    parts, least = devices * recipe.trainer.accumulate, method.least_items
    if recipe.batch_size // parts < least:
        raise UserError(
            f"batch_size is {recipe.batch_size}, in {parts} part(s) of {recipe.batch_size // parts}; method {recipe.method.name} needs "
            f"{least} items in each: give at least {parts * least}"
        )


def describe(recipe: Recipe, timed: bool = False) -> list[str]:
    """Return lines that describe a run of `recipe` for --dry-run: its data, networks, items to be seen, FLOPs and memory.

    With `timed` a few training steps are made, to say how long the run would take. Raises UserError as the run would.
    """
    from fewstep import trial
    from fewstep.costs import measure
    from fewstep.training.learned import learned

    recipe, settings = settled(recipe)
    trainer = recipe.trainer
    devices = trainer.known_devices
    with named_faults(recipe, lambda error: "nothing was trained"):
        data, unread = _known_data(recipe)
        data = as_recorded(recipe, data)
        method = make_method(recipe, data)
    check_parts(recipe, method, devices)
    items = "points" if len(data.shape) == 1 else "images"
    unit, classes = "training", f", {data.num_classes or 'no'} classes"
    if isinstance(data, PromptData):
        unit, classes = "training" if data.images else "prompts without", ""
    training = f"a stream of {items}" if data.train_size is None else f"{data.train_size:,} {unit} {items}"
    told = [] if unread else audit(data).lines()
    about = f"data: {training}, {data.heldout_size:,} held out, shape {list(data.shape)}{classes}"
    lines = [*map(str, settings), *(f"note: {sentence}" for sentence in idle(recipe)), about, *unread, *told]
    for name, network in method.networks.items():
        turn = next((turn for turn in method.turns if name in turn.trains), None)
        does = f"learns every {turn.every} steps" if turn and turn.every > 1 else "learns every step" if turn else "frozen"
        if turn and (turn.begins, turn.ends) != (0.0, 1.0):
            does += f" from {turn.begins:.0%} to {turn.ends:.0%} of the run"
        learns = sum(parameter.numel() for parameter in learned(network).values())
        some = f" ({learns:,} of them)" if turn and learns < num_parameters(network) else ""
        on = "".join(f", on a network of {num_parameters(ground):,}" for ground in grounds(network))
        lines.append(f"network {name}: {num_parameters(network):,} parameters{on}, {does}{some}")
    seen = recipe.steps * recipe.batch_size
    lines.append(f"{items} to be seen: {seen:,} in {recipe.steps:,} steps of {recipe.batch_size}")
    alone = trainer.model_copy(update={"devices": 1, "num_nodes": 1, "strategy": "auto"})
    fabric = make_fabric(alone)
    chosen = choose(recipe, method, data.shape, data.num_classes, fabric.device, devices)
    lines.append(chosen.line)
    if chosen.precision == MIXED:
        halve(method.networks.values())
    with named_faults(recipe, lambda error: "this was a trial step on a few random items, which counts the costs"):
        parts = devices, trainer.accumulate, chosen.precision, trainer.strategy == "fsdp"
        costs = measure(method, data.shape, data.num_classes, recipe.steps, recipe.batch_size, *parts)
    lines += costs.lines(items[:-1], seen)
    if timed and not unread:
        settle(fabric, chosen.precision)
        with named_faults(recipe, lambda error: "this was one of a few trial steps, which measure the time"):
            found = trial.tried(recipe, data, method, costs.memory.total, fabric, chosen.threads)
        lines += trial.lines(recipe, found, items == "points", costs.evaluations)
    return lines


def _known_data(recipe: Recipe) -> tuple[Data, list[str]]:
    """Return the data of `recipe`, and an empty list; or, where it cannot be fetched, what is known of it, and a line that says so.

    Raises UserError where nothing is known of the data, and for other errors than in fetching.
    """
    try:
        return training_data(recipe), []
    except UserError as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        known = beforehand(recipe.data)
        if known is None or not any(isinstance(cause, NotHad) for cause in causes):
            raise
        return known, [f"the data was not read, and the line above is what is known without reading it: {error}"]


def _data_in_turn(recipe: Recipe, fabric: "Fabric") -> Data:
    """Return `training_data`, loaded first by one process of each machine, which fills the cache for the others. Raises UserError."""
    with fabric.rank_zero_first(local=True):
        try:
            with named_faults(recipe, lambda error: "nothing was trained"):
                data: Data | UserError = training_data(recipe)
        except UserError as error:  # raised below, when no other process waits for this one
            data = error
    if isinstance(data, UserError):
        raise data
    return data


def _chosen_together(recipe: Recipe, method: Method, data: Data, fabric: "Fabric", begun: Mapping[str, Any] | None) -> Chosen:
    """Return in all processes what `choose` returns in the first. Raises UserError in all of them where it raises one."""
    chosen: Chosen | UserError | None = None
    if fabric.is_global_zero:
        try:
            chosen = choose(recipe, method, data.shape, data.num_classes, fabric.device, fabric.world_size, begun)
        except UserError as error:
            chosen = error
    chosen = fabric.broadcast(chosen)
    if isinstance(chosen, UserError):
        raise chosen
    assert chosen is not None
    return chosen


def _watch(recipe: Recipe, data: Data, fabric: "Fabric") -> "Callable[[Generator, Measuring], Mapping[str, float]] | None":
    """Return what measures the generator every trainer.evaluate_every steps, or None without that. Raises UserError as `Watch` does."""
    from fewstep.measurement import Watch, usual_samples, watched_elsewhere

    trainer = recipe.trainer
    if trainer.evaluate_every is None:
        return None
    if not fabric.is_global_zero:
        num = trainer.evaluate_samples or usual_samples(len(data.shape) == 1)
        return watched_elsewhere(num, in_memory(data).labels("train") if len(data.shape) == 3 else None)
    power = recipe.power(len(data.shape) == 1)
    # `data` may be points that were reweighted for the method; samples are measured against the original ones
    measured = load_data(recipe.data, recipe.seed) if recipe.method.data_power is not None else data
    watch = Watch(
        measured, trainer.evaluate_samples, power, features=trainer.evaluate_features, device=fabric.device, keep_best=trainer.keep_best
    )
    for sentence in watch.untold():
        note(sentence)
    return watch


def _kept(loop: "Loop", run: RunFolder, error: BaseException) -> str:
    """Write the traceback of `error`, raised by a user's own part, into the run folder; return at which step it was, and what is saved."""
    if loop.fabric.is_global_zero:
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # `error` may itself be about a full disk
            replace_file(run.fault_file, text.encode())
    kept = checkpoints(run.checkpoint_folder)
    left = f"the checkpoint {kept[0].name} is untouched" if kept else "no checkpoint had been written yet"
    step = loop.state.step + any(frame.f_code is type(loop).advance.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))
    return f"that was at step {step}, and {left}: mend it, and go on with --resume. The whole traceback is in {run.fault_file}"


def train_recipe(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    title: str = "training",
    after: Callable[[Path], None] | None = None,
    source: str | None = None,
) -> None:
    """Train `recipe`, and write the run into the folder `out`; with `resume` continue from the newest checkpoint there, if there is one.

    The progress bar is called `title`; `after` is called with `out` at the end, in the first process. `source`, the shipped recipe's name
    or the path that the recipe was loaded from, is recorded in the run folder.

    Raises:
        UserError: for a folder, data set, teacher or machine that cannot be used, and for a loss that is not finite.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with a checkpoint saved.

    """
    with contextlib.ExitStack() as held:
        _train_recipe(recipe, RunFolder(out), resume, title, after, source, held)


def _train_recipe(
    recipe: Recipe,
    run: RunFolder,
    resume: bool,
    title: str,
    after: Callable[[Path], None] | None,
    source: str | None,
    held: contextlib.ExitStack,
) -> None:
    """Do the work of `train_recipe`; the lock on the run folder is added to `held`, which its caller releases."""
    from fewstep.pictures import ImagePictures, PointPictures
    from fewstep.training.loop import Loop, LoopSettings
    from fewstep.training.tracking import check_tracker, make_tracker

    fabric = make_fabric(recipe.trainer)
    recipe, found = settled(recipe, run if resume else None)
    if fabric.is_global_zero:
        is_held = run.path.is_dir()
        if is_held:
            held.enter_context(held_folder(run.path))
        run.check(resolved(recipe), resume, longer=True)
        for one in found:
            SCREEN.say(str(one))
        for sentence in idle(recipe):
            note(sentence)
    recipe = run.going_on(recipe)
    fabric.launch()
    if recipe.trainer.strategy == "fsdp" and fabric.world_size == 1:
        note("trainer.strategy is fsdp, and there is one process: nothing is sharded, and no memory is saved")
    data = _data_in_turn(recipe, fabric)
    data = as_recorded(recipe, data, run)
    audited = audit(data)
    if recipe.trainer.workers and not isinstance(data, ForeignData):
        note(f"trainer.workers is {recipe.trainer.workers}, and {data.name} lies in memory: no worker is started")
    with named_faults(recipe, lambda error: "nothing was trained"), once_allowed(run):
        method = make_method(recipe, data, run.teacher_folder if run.has_teacher() else None)
    check_parts(recipe, method, fabric.world_size)
    chosen = _chosen_together(recipe, method, data, fabric, run.recipe() if run.recipe_file.is_file() else None)
    recipe = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"precision": chosen.precision})})
    settle(fabric, chosen.precision)
    if chosen.precision == MIXED:
        halve(method.networks.values())
    use_threads(max(1, chosen.threads // fabric.world_size) if fabric.device.type == "cpu" else chosen.threads)
    check_longer(recipe, run, method)
    if recipe.trainer.init is not None and not checkpoints(run.checkpoint_folder):  # a resumed run takes the weights of its checkpoint
        start_from(recipe.trainer.init, method)
    check_tracker(recipe.trainer.tracker)
    watch = _watch(recipe, data, fabric)
    fabric.barrier()  # every process has read the folder and found no error, so that it may be written to
    if fabric.is_global_zero:
        engine = {"engine": chosen.line, "threads": chosen.threads}
        run.open(resolved(recipe), made_by() | ({} if source is None else {"recipe": source}) | engine | {"data_audit": audited.lines()})
        SCREEN.say(chosen.line)
        tell(audited, run, recipe, getattr(data, "note", "") or "")
        keep(audited, run)
        if not is_held:
            held.enter_context(held_folder(run.path))
        if method.kept_teacher is not None and not run.has_teacher():
            run.save_model(method.kept_teacher, run.teacher_folder)
    fabric.barrier()

    images = len(data.shape) == 3
    pictures: ImagePictures | PointPictures = ImagePictures(recipe, data, run)
    if not images and isinstance(points := in_memory(data), PointData):
        pictures = PointPictures(recipe, points, run, method, recipe.steps)
    trainer, tenth = recipe.trainer, max(1, recipe.steps // 10)
    often = tenth if images else max(1, recipe.steps // 40)  # frames of the dashboard take little time
    settings = LoopSettings(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        accumulate=trainer.accumulate,
        workers=trainer.workers,
        log_every=trainer.log_every,
        sample_every=trainer.sample_every or often,
        evaluate_every=trainer.evaluate_every,
        keep_best=trainer.keep_best,
        best_is={**choices("images"), **choices("points")}[trainer.keep_best] if trainer.keep_best else "least",
        measured_by=getattr(watch, "by", ""),
        checkpoint_every=trainer.checkpoint_every or tenth,
        keep_checkpoints=trainer.keep_checkpoints,
        ema_decay=recipe.method.ema_decay,
        ema_warmup=recipe.method.ema_warmup,
        compile=trainer.compile,
        data_on_device=trainer.data_on_device,
    )
    tracker = make_tracker(trainer.tracker if fabric.is_global_zero else "none", run.path, resolved(recipe))
    try:
        loop = Loop(method, data, fabric, run, settings, tracker, pictures, title, watch, pictures.begin)
        with named_faults(recipe, lambda error: _kept(loop, run, error)):
            loop.train(resume)
    finally:
        pictures.close()
    if fabric.is_global_zero and after is not None:
        after(run.path)


def train(recipe: str | Path | Recipe, out: str | Path, resume: bool = False, **overrides: Any) -> Path:
    """Train `recipe`, write the run into the folder `out`, and return the path of that folder.

    Args:
        recipe: name of a shipped recipe, such as "teacher/digits", path of a YAML file, or a loaded `Recipe`.
        out: run folder: new or empty, or with `resume` that of a run of the same recipe.
        resume: whether to continue from the newest checkpoint in `out`; without a checkpoint there, training begins at step 0.
        overrides: settings to change, such as ``steps=500`` or ``data={"name": "points", "path": "x.npy"}``; a single setting in a section
            is named by a key with dots: ``**{"method.optimizer.lr": 1e-3}``.

    Raises:
        UserError: (a ValueError) for mistakes in the recipe, and for a folder, data set, teacher or machine that cannot be used.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with a checkpoint saved.

    """
    folder = at_home(out)
    if isinstance(recipe, Recipe):
        if overrides:
            raise UserError(f"overrides are {', '.join(overrides)}, but the recipe is loaded already; give them to load_recipe")
        settings, title, source = recipe, recipe.method.name, None
    else:
        settings, title, source = load_recipe(str(recipe), list(overrides.items())), str(recipe), str(recipe)
    train_recipe(settings, folder, resume, title=title, source=source)
    return folder
