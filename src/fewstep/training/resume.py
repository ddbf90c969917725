"""All that a run is at one step, and how it goes into a checkpoint and comes back: bit for bit, on as many processes."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor

from fewstep.generator import Generator
from fewstep.methods.base import Method
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
from fewstep.training.window import Window

Better = Literal["least", "greatest", "nearest 1"]
REMEMBERED = "remembered"  # what a checkpoint calls the tensors of a method beside its networks
HELD = 0.2  # of a learning rate: one that ends above it has not fallen, and the last steps are as rough as the first
LOOKS = "looks"  # and the sums of what health is told by


@dataclass
class State:
    """A run between two steps.

    Attributes:
        method: with its networks, of which those in `trained` learn.
        batches: what the next steps learn from.
        ema: the average of the network that ships.
        optimizers, updates: of each turn, and how many it has made.
        rng: the loop's stream in this process; `seed` is the run's.
        window: what was logged since the last record.
        looks, course: what health is told by: the samples beside the data, and how figures have gone.
        items: how many there are to train on, where that is known.
        standing: figures of health that are known from the first step on.
        step: steps made.
        began: the moment at which the run would have begun, had it never been stopped.
        raised: names of the alarms so far.
        best: step, metric and value of the best so far, if one is kept.
        is_logged: whether what is due at `step` has been logged and measured; a checkpoint comes before that.
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
        """How long it has been training."""
        return time.monotonic() - self.began

    def health(self, steps: int) -> dict[str, float]:
        """Figures of the samples, the data and the average, in a run of so many `steps`; pooled ones begin anew."""
        ships = self.method.ships
        turn = next((turn for turn in self.method.turns if ships in turn.trains), None)
        known = self.looks.data.figures(getattr(self.method.networks[ships], "sigma_data", None))
        updates = 0 if turn is None else turn.updates(steps)
        average: dict[str, float] = {}
        if turn is not None and updates >= 100:  # of fewer an average has hardly begun
            average["health.lag"] = self.ema.age / updates
            if turn.optimizer.lr_at(updates - 1, updates) > HELD * turn.optimizer.lr:
                average["health.averaged"] = self.ema.age
        return {**self.looks.take(), **known, **average, **self.standing}

    def shipped(self) -> Generator:
        """The generator as it would be saved now. Where networks are in shares all processes ask for it together."""
        return self.method.ship(whole(self.ema.module), self.step)


def save(state: State, run: RunFolder, fabric: Fabric, keep: int) -> None:
    """Write a checkpoint, of which the newest `keep` stay, and then the model folder. All processes call it.

    The first writes, and the others what they alone have of networks in shares.
    """
    rng = {"loop": state.rng.get_state(), "torch": torch.get_rng_state()}
    if state.rng.is_dealt:
        rng["batch"] = state.rng.shared.get_state()
    if fabric.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(fabric.device)
    gathered = {name: _of_all(numbers, fabric) for name, numbers in rng.items()}
    if fabric.world_size > 1:  # what is logged goes on in all of them from what one writes
        state.window.average(lambda sums: cast(Tensor, fabric.all_reduce(torch.tensor(sums, device=fabric.device))).tolist())
    stands = from_all(state.batches.state_dict(), fabric)
    # only what learns: a frozen network is in the run folder once, as the model folder that it came from
    shares, generator = Shares(fabric), state.shipped()
    networks = shares.out_of_networks(_weights(state))
    optimizers = shares.out_of_optimizers({name: optimizer.state_dict() for name, optimizer in state.optimizers.items()})
    if not fabric.is_global_zero and shares.tensors:
        shares.write()
    if fabric.is_global_zero:
        record = {
            "step": state.step,
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
    """Bring `state` to where the newest whole checkpoint was, and the folder with it; False where there is none yet.

    Raises UserError where all checkpoints are damaged.
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
    state.method.load_state_dict(record["method"])
    state.method.load_tensors({name: x.to(fabric.device) for name, x in checkpoint.networks.get(REMEMBERED, {}).items()})
    if (changed := state.batches.load_state_dict(record.get("batches", []))) is not None:
        say(changed)
    state.raised, state.best = {renamed.get(name, name) for name in record["alarms"]}, record.get("best")
    # up to version 0.1.0 a checkpoint came after all else of its step
    state.is_logged, state.logged = record.get("is_logged", True), tuple(record.get("logged", (step, record["seconds"])))
    _catch_up(state, run, fabric)
    if (changed := _restore_chance(state, checkpoint.rng, fabric)) is not None:
        say(changed)
    if fabric.broadcast(fabric.is_global_zero and run.model_step() != step):  # killed before it was written
        generator = state.shipped()
        if fabric.is_global_zero:
            run.save_model(generator)
    return True


def _of_all(numbers: Tensor, fabric: Fabric) -> Tensor:
    """`numbers` [N] of each process, in their order: [processes, N], on the CPU."""
    if fabric.world_size == 1:
        return numbers.cpu()[None]
    own = numbers.to(fabric.device)
    parts = [torch.empty_like(own) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, own)
    return torch.stack(parts).cpu()


def _named(window: Mapping[str, Mapping[str, Any]], renamed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What a checkpoint holds of a `window`, with today's names."""
    return {part: {renamed.get(name, name): value for name, value in values.items()} for part, values in window.items()}


def _weights(state: State) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint keeps of the networks that learn and of the average, by name."""
    return {name: learned_state(state.method.networks[name]) for name in state.trained} | {"ema": learned_state(state.ema.module)}


def _catch_up(state: State, run: RunFolder, fabric: Fabric) -> None:
    """Where the run went on for a while after its checkpoint, and its step was logged: that is not done again."""
    lines = run.metrics(older_names(state.method)) if fabric.is_global_zero and not state.is_logged else []
    last = lines[-1] if lines and lines[-1]["step"] == state.step else None
    last = fabric.broadcast(last)
    if last is not None:
        state.is_logged, state.window = True, Window()
        state.looks.take()  # as it was for the record
        state.course.follow(last, state.method.alarms)
        state.logged, state.raised = (state.step, last["seconds"]), state.raised | set(last["alarms"])


def _restore_chance(state: State, saved: Mapping[str, Tensor], fabric: Fabric) -> str | None:
    """Bring all random numbers to where `saved`, a row a process, has them; what is to be said where that cannot be done.

    What belongs to the items of a batch goes on by any number of processes and parts; dropout, and what a process draws for itself, by as
    many as before.
    """
    rank, before = fabric.global_rank, len(saved["loop"])
    shared = saved.get("batch", saved["loop"] if before == 1 else None)
    # a GPU's generator is another one than the CPU's, and knows nothing of its states
    other_kind = saved["loop"].shape[-1] != len(state.rng.get_state())
    if shared is not None and not other_kind:
        _set(state.rng.shared, shared[0])
    else:  # version 0.1.0 had a stream a process
        state.rng.shared.manual_seed(stream_seed(state.seed, "batch", state.step))
    if other_kind:
        if state.rng.is_dealt:
            state.rng.begin_own(state.seed, rank, state.step)
        torch.manual_seed(stream_seed(state.seed, "process", rank, state.step))
        return f"this run has come from another kind of device to {fabric.device.type}: going on with other random numbers"
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
    # a copy: torch 2.13 reads a row of a stacked tensor beyond its storage
    rng.set_state(row.clone())


def keep_if_best(
    state: State, run: RunFolder, metric: str | None, better: Better, generator: Generator, figures: Mapping[str, float]
) -> None:
    """Put `generator` into the run's folder ``best`` if no other was better by the figure `metric`; the first of equals stays."""
    value = figures.get(f"eval.{metric}", math.nan)  # a figure may not be defined yet
    if metric is None or not math.isfinite(value):
        return
    if state.best is None or _distance_from_best(value, better) < _distance_from_best(state.best["value"], better):
        state.best = {"step": state.step, "metric": metric, "value": value}
        generator.info["best"] = dict(state.best)
        run.save_best(generator)


def restore_best(state: State, run: RunFolder, metric: str | None, say: Callable[[str], None]) -> None:
    """Go on comparing with the model in the folder ``best``, which may have come after the checkpoint that `state` was restored from.

    It was found by the `metric` that is chosen now, or else comparing begins anew.
    """
    saved, state.best = state.best, None
    if metric is None:
        return
    found = run.best()
    if found is not None and found["metric"] == metric:
        state.best = found
    elif found is not None:
        say(f"best/ was chosen by {found['metric']}; it will be replaced by the best by {metric} from here")
    elif saved is not None:
        say(f"best/ (of step {saved['step']}) is not there any more; it will hold the best from here")


def _distance_from_best(value: float, better: Better) -> float:
    return {"least": value, "greatest": -value, "nearest 1": abs(value - 1)}[better]
