"""The state of a run at one step, and how it is saved to a checkpoint and restored: bit for bit on the same number of processes."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor

from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.methods.base import Method
from fewstep.own_parts import check_kept
from fewstep.streams import Draws, stream_seed
from fewstep.training.batches import Batches
from fewstep.training.checkpoint import Checkpoint
from fewstep.training.ema import EMA
from fewstep.training.health import Course, older_names
from fewstep.training.learned import learned_state, load_learned
from fewstep.training.loading import from_all
from fewstep.training.looks import Looks
from fewstep.training.run_folder import RunFolder
from fewstep.training.sharding import whole
from fewstep.training.shards import Shares, filled, moments_like
from fewstep.training.standing import reaches
from fewstep.training.window import Window

Better = Literal["least", "greatest", "nearest 1"]
REMEMBERED = "remembered"  # a checkpoint's name for the tensors that a method keeps beside its networks
HELD = 0.2  # share of the learning rate: one that ends above this share counts as held to the end, and not as decayed
LOOKS = "looks"  # a checkpoint's name for the sums from which health figures are computed


class KeepsBest(Protocol):
    """How the best model of a run is chosen; see `fewstep.recipe.Trainer`."""

    @property
    def steps(self) -> int:
        """Number of steps of the run."""

    @property
    def keep_best(self) -> str | None:
        """Key of the figure by which the best model is chosen; None where none is kept."""

    @property
    def best_is(self) -> Better:
        """Which value of that figure is best."""

    @property
    def measured_by(self) -> str:
        """How the figure is measured, a phrase such as "of 2,000 samples in digits-v1"; empty where that is not known."""


@dataclass
class State:
    """The state of a run between two steps.

    Attributes:
        method: the method with its networks.
        trained: names of the networks that are trained in at least one turn.
        batches: the batches of the following steps.
        ema: the moving average of the network that ships.
        optimizers: the optimizer of each turn, by the turn's name.
        updates: the number of updates that each turn has made.
        rng: the training loop's random stream in this process.
        seed: the run's seed.
        steps: the number of steps of the whole run.
        window: the terms logged since the last record.
        looks: the sums from which health figures are computed.
        course: the history of the health figures.
        items: the number of training items; None where it is not known.
        standing: health figures that are known from the first step on.
        step: the number of steps made.
        began: the time, by `time.monotonic`, at which the run would have begun had it never been stopped.
        raised: names of the alarms raised so far.
        best: step, metric and value of the best model so far; None where none is kept.
        is_logged: whether the logging and measuring due at `step` is done; a checkpoint is written before it.
        logged: step and seconds of the last record.

    """

    method: Method
    trained: tuple[str, ...]
    batches: Batches
    ema: EMA
    optimizers: Mapping[str, _FabricOptimizer]
    updates: dict[str, int]
    rng: Draws
    seed: int
    steps: int
    window: Window = field(default_factory=Window)
    looks: Looks = field(default_factory=Looks)
    course: Course = field(default_factory=Course)
    items: int | None = None
    standing: dict[str, float] = field(default_factory=dict)
    step: int = 0
    began: float = field(default_factory=time.monotonic)
    raised: set[str] = field(default_factory=set)
    best: dict[str, Any] | None = None
    is_logged: bool = True
    logged: tuple[int, float] = (0, 0.0)

    @property
    def seconds(self) -> float:
        """The time spent on training so far, in seconds, over all parts of a resumed run."""
        return time.monotonic() - self.began

    def health(self) -> dict[str, float]:
        """Return the health figures of the samples, the data and the average; pooled figures are reset."""
        ships = self.method.ships
        turn = next((turn for turn in self.method.turns if ships in turn.trains), None)
        known = self.looks.data.figures(getattr(self.method.networks[ships], "sigma_data", None), self.items)
        updates = 0 if turn is None else turn.updates(self.steps)
        average: dict[str, float] = {}
        if turn is not None and updates >= 100:  # with fewer updates, the average has hardly begun
            average["health.lag"] = self.ema.age / updates
            if turn.optimizer.lr_at(updates - 1, updates) > HELD * turn.optimizer.lr:
                average["health.averaged"] = self.ema.age
        return {**self.looks.take(), **known, **average, **self.standing}

    def shipped(self) -> Generator:
        """Return the generator of the averaged weights, as it would be saved. With sharded networks all processes must call it together."""
        generator = self.method.ship(whole(self.ema.module), self.step)
        if isinstance(generator, Generator):
            generator.info.setdefault("step", self.step)  # which a user's own method may leave out
        return generator


def save(state: State, run: RunFolder, fabric: Fabric, keep: int) -> None:
    """Write a checkpoint, keep the newest `keep` of them, and write the model folder. All processes must call it together.

    The first process writes all files but the shards of sharded networks, of which each process writes its own. Raises UserError where the
    method keeps what a checkpoint cannot hold.
    """
    check_kept(state.method)
    rng = {"loop": state.rng.get_state(), "torch": torch.get_rng_state()}
    if state.rng.is_dealt:
        rng["batch"] = state.rng.shared.get_state()
    if fabric.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(fabric.device)
    gathered = {name: _of_all(numbers, fabric) for name, numbers in rng.items()}
    if fabric.world_size > 1:  # one process writes the window, from which all processes go on when the run is resumed
        state.window.average(lambda sums: cast(Tensor, fabric.all_reduce(torch.tensor(sums, device=fabric.device))).tolist())
    stands = from_all(state.batches.state_dict(), fabric)
    # trained networks only: a frozen network is in the run folder once, as the model folder that it came from
    shares, generator = Shares(fabric), state.shipped()
    networks = shares.out_of_networks(_weights(state))
    optimizers = shares.out_of_optimizers({name: optimizer.state_dict() for name, optimizer in state.optimizers.items()})
    if not fabric.is_global_zero and shares.tensors:
        shares.write()
    if fabric.is_global_zero:
        record = {
            "step": state.step,
            "steps": state.steps,
            "seconds": state.seconds,
            "updates": state.updates,
            "ema_updates": state.ema.updates,
            "window": state.window.state_dict(),
            "course": state.course.state_dict(),
            "standing": state.standing,
            "method": state.method.state_dict(),
            "alarms": sorted(state.raised),
            "best": state.best,
            "is_logged": state.is_logged,
            "logged": state.logged,
        }
        if any(stands):
            record["batches"] = stands
        if tensors := state.method.tensors():
            networks[REMEMBERED] = tensors
        if looks := state.looks.tensors():
            networks[LOOKS] = looks
        checkpoint = Checkpoint(networks, optimizers, gathered, record)
        run.save_checkpoint(state.step, checkpoint, keep, *((shares.write,) if shares.tensors else ()))
        run.save_model(generator)
    fabric.barrier()


def restore(state: State, run: RunFolder, fabric: Fabric, say: Callable[[str], None]) -> bool:
    """Restore `state` from the newest whole checkpoint, and remove later records and checkpoints from the run folder.

    Returns False where there is no checkpoint yet. `say` is called with a line for each thing that the user should know. Raises UserError
    where all checkpoints are damaged, and where the networks or turns are no longer those of the checkpoint.
    """
    checkpoint, damaged = run.latest_checkpoint()
    for line in damaged:
        say(f"{line}; going on from the one before")
    step = checkpoint.state["step"] if checkpoint else 0
    if fabric.is_global_zero and (damage := run.forget_after(step)) is not None:
        say(damage)
    fabric.barrier()
    if checkpoint is None:
        return False
    record = checkpoint.state
    if (changed := _changed(state, checkpoint)) is not None:
        raise UserError(
            f"the checkpoint step_{step} in {run.path} does not fit what the recipe makes now: {changed}. Give the code of the method, "
            "network and packages back as they were when the run began; or train into another folder"
        )
    checkpoint = filled(checkpoint, _weights(state), state.optimizers)
    for name in state.trained:
        load_learned(state.method.networks[name], checkpoint.networks[name])
    load_learned(state.ema.module, checkpoint.networks["ema"])
    for name, optimizer in state.optimizers.items():
        optimizer.load_state_dict(moments_like(optimizer, checkpoint.optimizers[name]))
    state.step, state.began, state.updates = step, time.monotonic() - record["seconds"], dict(record["updates"])
    state.ema.go_on_from(record["ema_updates"])
    renamed = older_names(state.method)
    state.window.load_state_dict(_named(record["window"], renamed), fabric.device)
    state.looks.load_tensors(checkpoint.networks.get(LOOKS, {}), fabric.device)
    state.course.load_state_dict(record.get("course", {}))  # a run of version 0.1.0 has none
    state.standing = dict(record.get("standing", {}))
    if record.get("steps", state.steps) != state.steps:  # the run has become longer
        state.standing |= reaches(state.method, state.steps)
    state.method.load_state_dict(record["method"])
    state.method.load_tensors({name: x.to(fabric.device) for name, x in checkpoint.networks.get(REMEMBERED, {}).items()})
    if (changed := state.batches.load_state_dict(record.get("batches", []))) is not None:
        say(changed)
    state.raised, state.best = {renamed.get(name, name) for name in record["alarms"]}, record.get("best")
    # up to version 0.1.0 a checkpoint was written after its step had been logged and measured
    state.is_logged, state.logged = record.get("is_logged", True), tuple(record.get("logged", (step, record["seconds"])))
    _catch_up(state, run, fabric)
    if (changed := _restore_chance(state, checkpoint.rng, fabric)) is not None:
        say(changed)
    if fabric.broadcast(fabric.is_global_zero and run.model_step() != step):  # the run was killed before it wrote the model folder
        generator = state.shipped()
        if fabric.is_global_zero:
            run.save_model(generator)
    return True


def _changed(state: State, checkpoint: Checkpoint) -> str | None:
    """Return how the networks and turns of `state` differ from those that `checkpoint` was written of, a clause; None if they do not.

    Of tensors that a sharded run keeps elsewhere, neither names nor shapes are compared.
    """
    turns, before = set(state.optimizers), set(checkpoint.optimizers)
    if turns != before:
        return f"its turns were {', '.join(sorted(before))}, and are {', '.join(sorted(turns))}"
    for network, tensors in _weights(state).items():
        if network not in checkpoint.networks:
            return f"it has no network {network!r}"
        kept = {} if checkpoint.shards is not None else checkpoint.networks[network]
        for name in dict.fromkeys([*tensors, *kept]) if kept else ():
            was, now = ("nothing" if x is None else f"shape {list(x.shape)}" for x in (kept.get(name), tensors.get(name)))
            if was != now:
                return f"{name} of its network {network!r} had {was}, and has {now}"
    for turn, optimizer in state.optimizers.items():
        was_of, now_of = (
            [len(group["params"]) for group in one["param_groups"]] for one in (checkpoint.optimizers[turn], optimizer.state_dict())
        )
        if was_of != now_of:
            return f"its turn {turn!r} trained {sum(was_of)} tensors in {len(was_of)} group(s), and trains {sum(now_of)} in {len(now_of)}"
    return None


def _of_all(numbers: Tensor, fabric: Fabric) -> Tensor:
    """Return `numbers` [N] of every process, in the order of their ranks: [processes, N], on the CPU."""
    if fabric.world_size == 1:
        return numbers.cpu()[None]
    own = numbers.to(fabric.device)
    parts = [torch.empty_like(own) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, own)
    return torch.stack(parts).cpu()


def _named(window: Mapping[str, Mapping[str, Any]], renamed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return a checkpoint's `window` with older names of figures replaced by their current ones."""
    return {part: {renamed.get(name, name): value for name, value in values.items()} for part, values in window.items()}


def _weights(state: State) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts that a checkpoint keeps of the trained networks and of the moving average ("ema"), by name."""
    return {name: learned_state(state.method.networks[name]) for name in state.trained} | {"ema": learned_state(state.ema.module)}


def _catch_up(state: State, run: RunFolder, fabric: Fabric) -> None:
    """Take over the last record into `state` if the run logged the checkpoint's step before it stopped, so that it is not logged twice."""
    lines = run.metrics(older_names(state.method)) if fabric.is_global_zero and not state.is_logged else []
    last = lines[-1] if lines and lines[-1]["step"] == state.step else None
    last = fabric.broadcast(last)
    if last is not None:
        state.is_logged, state.window = True, Window()
        state.looks.take()  # resets the pooled figures, as the record did
        state.course.follow(last, state.method.alarms)
        state.course.after(last["alarms"], last, state.method.alarms)
        state.logged, state.raised = (state.step, last["seconds"]), state.raised | set(last["alarms"])


def _restore_chance(state: State, saved: Mapping[str, Tensor], fabric: Fabric) -> str | None:
    """Set all random generators to the states in `saved`, which have one row per process.

    Numbers drawn per item of a batch go on with any number of processes and parts. Dropout, and what a process draws for itself, go on only
    with as many processes as before, on the same kind of device. Returns a message for the user where the numbers cannot be continued.
    """
    rank, before = fabric.global_rank, len(saved["loop"])
    shared = saved.get("batch", saved["loop"] if before == 1 else None)
    # the generators of CPU and GPU differ, and cannot take over each other's states
    other_kind = saved["loop"].shape[-1] != len(state.rng.get_state())
    if shared is not None and not other_kind:
        _set(state.rng.shared, shared[0])
    else:  # version 0.1.0 had one stream per process
        state.rng.shared.manual_seed(stream_seed(state.seed, "batch", state.step))
    if other_kind:
        if state.rng.is_dealt:
            state.rng.begin_own(state.seed, rank, state.step)
        torch.manual_seed(stream_seed(state.seed, "process", rank, state.step))
        return f"this run was trained on another kind of device than {fabric.device.type}: going on with other random numbers"
    if before == fabric.world_size:
        if "batch" in saved and state.rng.is_dealt:
            _set(state.rng, saved["loop"][rank])
        torch.set_rng_state(saved["torch"][rank].clone())
        if "cuda" in saved and fabric.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"][rank].clone(), fabric.device)
        return None if shared is not None else "this run was begun by version 0.1.0: going on with other random numbers"
    if state.rng.is_dealt:
        state.rng.begin_own(state.seed, rank, state.step)
    torch.manual_seed(stream_seed(state.seed, "process", rank, state.step))
    what = "dropout is drawn anew" if shared is not None else "going on with other random numbers"
    return f"the number of processes has changed from {before} to {fabric.world_size}: {what}"


def _set(rng: torch.Generator, row: Tensor) -> None:
    # a copy of the row: torch 2.13 reads beyond the storage of a row of a stacked tensor
    rng.set_state(row.clone())


def keep_if_best(
    state: State, run: RunFolder, how: KeepsBest, generator: Generator, figures: Mapping[str, float], say: Callable[[str], None]
) -> None:
    """Save `generator` to the run's folder ``best`` if its figure ``eval.KEEP_BEST`` is better than that of every model before it.

    The first of equal models stays. If no model of the run had the figure, `say` tells so at the last step.
    """
    if how.keep_best is None:
        return
    value = figures.get(f"eval.{how.keep_best}", math.nan)  # a figure may not be defined early in a run
    if math.isfinite(value):
        if state.best is None or _distance_from_best(value, how.best_is) < _distance_from_best(state.best["value"], how.best_is):
            by = {"by": how.measured_by} if how.measured_by else {}
            state.best = {"step": state.step, "metric": how.keep_best, "value": value, **by}
            generator.info["best"] = dict(state.best)
            run.save_best(generator)
    elif state.best is None and state.step == how.steps:
        say(
            f"warning: trainer.keep_best is {how.keep_best!r}, which had no value at any measurement: no best model is kept; model/ is the "
            "last one, and another figure would choose (metrics.jsonl has those that were measured)"
        )


def restore_best(state: State, run: RunFolder, how: KeepsBest, say: Callable[[str], None]) -> None:
    """Set ``state.best`` to the record of the model in the folder ``best``, which may be newer than the restored checkpoint.

    If that model was chosen by another figure than today's, or by one that was measured otherwise (values by two judges, or of two numbers
    of samples, do not compare), or if it is missing, the search for the best model begins anew, and `say` tells so.
    """
    saved, state.best = state.best, None
    if how.keep_best is None:
        return
    found = run.best()
    if found is not None:
        before, now = (found["metric"], found.get("by", how.measured_by)), (how.keep_best, how.measured_by)
        if before == now:
            state.best = found
        else:
            was, will = (" ".join(filter(None, words)) for words in (before, now))
            say(f"best/ holds the best model by {was}; from here on it will hold the best by {will}")
    elif saved is not None:
        say(f"best/ (of step {saved['step']}) is missing; it will hold the best model from here on")


def _distance_from_best(value: float, better: Better) -> float:
    return {"least": value, "greatest": -value, "nearest 1": abs(value - 1)}[better]
