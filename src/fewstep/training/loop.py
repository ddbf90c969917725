"""The training loop: every method, one file, nothing hidden.

It knows networks, turns and losses, and no method's name. At each step it takes the turns that are due, in order; each
turn's networks learn and all others stand still. All chance comes from one generator a process, whose state is in every
checkpoint, so that a run that was stopped ends with the same numbers as one that was not.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor

from fewstep.errors import Interrupted, UserError
from fewstep.generator import Generator
from fewstep.methods import Batch, LossOutput, Method, Turn
from fewstep.training.checkpoint import Checkpoint
from fewstep.training.ema import EMA
from fewstep.training.health import alarms, sample_figures
from fewstep.training.progress import Progress
from fewstep.training.run_folder import RunFolder
from fewstep.training.tracking import NoTracker, Tracker


class TrainingData(Protocol):
    """What the loop asks of a data set."""

    @property
    def train(self) -> Tensor:
        """All training items [N, ...]."""
        ...

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Data [B, ...] and labels for `index` [B], on `device`."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """How long and how often; see `fewstep.config` for each. Cadences are in steps, `batch_size` counts all devices."""

    steps: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    log_every: int = 50
    sample_every: int = 1000
    evaluate_every: int | None = None
    keep_best: str | None = None
    best_is: Literal["least", "greatest", "nearest 1"] = "least"
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    ema_decay: float = 0.9999
    ema_warmup: float = 20.0


def check_batch_size(batch_size: int, devices: int, accumulate: int) -> None:
    """Raise UserError unless `batch_size` can be dealt out to `devices` in `accumulate` equal parts."""
    parts = devices * accumulate
    if batch_size % parts:
        raise UserError(
            f"batch_size is {batch_size}, which does not divide by {devices} device(s) times trainer.accumulate {accumulate}; "
            f"give a multiple of {parts}"
        )


class Shuffled:
    """Indices of each step's batch: one permutation after another, a function of the seed and the step alone."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """Indices int64 [batch_size]; an item comes again only when all others have come."""
        parts, position, end = [], step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, offset = divmod(position, self.size)
            if epoch != self.epoch:
                rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                self.epoch, self.order = epoch, torch.randperm(self.size, generator=rng)
            parts.append(self.order[offset : offset + end - position])
            position += len(parts[-1])
        return torch.cat(parts)


class Window:
    """Means of what was logged since the last record."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Scalars, left where they are: nothing waits for a device."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """One number a name."""
        return {name: (total / self.counts[name]).item() for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return {"sums": {name: total.item() for name, total in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self.sums = {name: torch.tensor(total, device=device) for name, total in state["sums"].items()}
        self.counts = dict(state["counts"])


class Loop:
    """One run of `method` on `data` into `run`.

    Args:
        method: its networks are moved to Fabric's device and trained in place.
        data: indexed by the loop, see `TrainingData`.
        fabric: launched already.
        run: where everything goes; opened already.
        settings: how long and how often.
        tracker: gets each record and each picture.
        on_sample: called with the averaged generator and the step on the sampling cadence; returns a picture, or None.
        title: for the progress bar.
        on_evaluate: called with the averaged generator on the evaluation cadence; what it returns goes into the record of that step.

    """

    def __init__(
        self,
        method: Method,
        data: TrainingData,
        fabric: Fabric,
        run: RunFolder,
        settings: LoopSettings,
        tracker: Tracker | None = None,
        on_sample: Callable[[Generator, int], Path | None] = lambda generator, step: None,
        title: str = "training",
        on_evaluate: Callable[[Generator], Mapping[str, float]] | None = None,
    ) -> None:
        check_batch_size(settings.batch_size, fabric.world_size, settings.accumulate)
        self.method, self.data, self.fabric, self.run, self.settings = method, data, fabric, run, settings
        self.tracker, self.on_sample, self.title, self.on_evaluate = tracker or NoTracker(), on_sample, title, on_evaluate
        for module in method.networks.values():
            module.to(fabric.device)
        self.ema = EMA(method.networks[method.ships], settings.ema_decay, settings.ema_warmup)
        trained = {name for turn in method.turns for name in turn.trains}
        self.wrapped: dict[str, _FabricModule] = {name: fabric.setup_module(method.networks[name]) for name in sorted(trained)}
        self.optimizers = {turn.name: cast(_FabricOptimizer, fabric.setup_optimizers(self._optimizer(turn))) for turn in method.turns}
        self.updates = {turn.name: 0 for turn in method.turns}
        self.indices = Shuffled(len(data.train), settings.batch_size, settings.seed)
        self.rng = torch.Generator(fabric.device).manual_seed(settings.seed * 1_000_003 + fabric.global_rank)
        self.window = Window()
        self.step, self.seconds = 0, 0.0
        self.first_bad = torch.full((), math.inf, device=fabric.device)
        self.raised: set[str] = set()
        self.best: dict[str, Any] | None = None
        self.stop_asked = False
        self.at_once = fabric.device.type == "cpu" and fabric.world_size == 1  # looking costs nothing, and no process waits for another

    def train(self, resume: bool = False) -> None:
        """Train to the last step, saving on the way.

        Raises:
            UserError: for a loss that is not finite, with the step, the term and the last good checkpoint.
            Interrupted: after SIGINT or SIGTERM, everything saved.

        """
        self.progress = Progress(self.title, self.settings.steps, quiet=not self.fabric.is_global_zero)
        try:
            # library code leaves the process's own random state alone; only dropout draws from it in here
            with torch.random.fork_rng([self.fabric.device] if self.fabric.device.type == "cuda" else []), self._stop_signals():
                torch.manual_seed(self.settings.seed * 1_000_003 + self.fabric.global_rank)
                if resume:
                    self._restore()
                if self.step < self.settings.steps:
                    self.progress.begin(self.step)
                    self._train()
        finally:
            self.progress.close()
            self.tracker.close()

    def _train(self) -> None:
        settings = self.settings
        self.began, self.logged_at, self.logged_step = time.monotonic() - self.seconds, time.monotonic(), self.step
        while self.step < settings.steps:
            self.advance()
            self.progress.advance()
            measured = self._evaluate()
            if self.step % settings.log_every == 0 or self.step == settings.steps or measured is not None:
                self._log(measured or {})
            if self.step % settings.sample_every == 0 or self.step == settings.steps:
                self._sample()
            stopping = self._should_stop()
            if self.step % settings.checkpoint_every == 0 or self.step == settings.steps or stopping:
                self._save()
            if stopping and self.step < settings.steps:
                raise Interrupted(f"stopped at step {self.step} of {settings.steps}, all saved; go on with --resume")

    def advance(self) -> None:
        """One step: all turns that are due, on one batch in `accumulate` parts. Nothing is logged or saved."""
        index = self.indices(self.step)[self.fabric.global_rank :: self.fabric.world_size]
        batches = [Batch(*self.data.batch(part, self.rng, self.fabric.device)) for part in index.chunk(self.settings.accumulate)]
        scratches: list[dict[str, Any]] = [{} for _ in batches]
        for turn in self.method.turns:
            if self.step % turn.every:
                continue
            for name, module in self.method.networks.items():
                module.requires_grad_(name in turn.trains)
            networks = {name: self.wrapped[name] if name in turn.trains else module for name, module in self.method.networks.items()}
            for part, (batch, scratch) in enumerate(zip(batches, scratches, strict=True)):
                with contextlib.ExitStack() as stack:
                    if part < len(batches) - 1:
                        for name in turn.trains:
                            stack.enter_context(self.fabric.no_backward_sync(self.wrapped[name]))
                    with self.fabric.autocast():
                        output = self.method.loss(turn.name, networks, batch, self.rng, scratch)
                    self._check(turn, output)
                    self.fabric.backward(output.loss / len(batches) if len(batches) > 1 else output.loss)
                self.window.add({f"{turn.name}.{name}": value for name, value in output.terms.items()})
                if output.samples is not None and self.step % max(1, self.settings.log_every // 5) == 0:
                    figures = sample_figures(output.samples, output.label, batch.x, batch.label)
                    self.window.add({f"health.{name}": value for name, value in figures.items()})
            self._update(turn)
        self.step += 1

    def _update(self, turn: Turn) -> None:
        """Clip, set the learning rate, take the optimiser's step, and let the average follow."""
        optimizer, settings = self.optimizers[turn.name], turn.optimizer
        limit = settings.clip or math.inf  # without a limit the norm is still measured, and looked at
        norm = self.fabric.clip_gradients(self.wrapped[turn.trains[0]], optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        self.window.add({f"{turn.name}.grad_norm": norm})
        self._check_finite(norm, f"{turn.name}.grad_norm")
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(self.updates[turn.name], -(-self.settings.steps // turn.every)) * group["scale"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.updates[turn.name] += 1
        self.method.after_update(turn.name)
        if self.method.ships in turn.trains:
            self.ema.update(self.method.networks[self.method.ships])

    def _optimizer(self, turn: Turn) -> torch.optim.Optimizer:
        s = turn.optimizer
        groups: dict[float, list[Tensor]] = {1.0: []}
        for network in turn.trains:
            for name, parameter in self.method.networks[network].named_parameters():
                scale = next((scale for ending, scale in s.scales.items() if name.endswith(ending)), 1.0)
                groups.setdefault(scale, []).append(parameter)
        parameters = [{"params": group, "scale": scale} for scale, group in groups.items() if group]
        return torch.optim.AdamW(parameters, s.lr, s.betas, weight_decay=s.weight_decay, fused=self.fabric.device.type in ("cpu", "cuda"))

    # --- what can go wrong -------------------------------------------------------------------------------------------

    def _check(self, turn: Turn, output: LossOutput) -> None:
        """Stop before a loss that is not finite can reach the weights."""
        if self.at_once and not torch.isfinite(output.loss):
            bad = [name for name, value in output.terms.items() if not torch.isfinite(value)]
            self._fail(self.step + 1, f"{turn.name}.{bad[0]}" if bad else f"the loss of {turn.name}", output.loss.item())
        self._check_finite(output.loss.detach(), f"the loss of {turn.name}")

    def _check_finite(self, value: Tensor, name: str) -> None:
        """At once on one CPU; elsewhere it is noted on the device, and read, by all processes together, before anything is saved."""
        if self.at_once:
            if not torch.isfinite(value):
                self._fail(self.step + 1, name, value.item())
        elif self.fabric._precision.precision != "16-mixed":  # whose scaler meets infinities and skips them
            step = torch.full_like(self.first_bad, self.step + 1)
            self.first_bad = torch.minimum(self.first_bad, torch.where(torch.isfinite(value), math.inf, step))

    def _check_noted(self) -> None:
        """Stop if a value was not finite since the last look."""
        if math.isfinite(step := self._reduced([self.first_bad.item()], "min")[0]):
            bad = [name for name, value in self.window.means().items() if not math.isfinite(value)]
            self._fail(int(step), bad[0] if bad else "a loss", math.nan)

    def _fail(self, step: int, name: str, value: float) -> None:
        raise UserError(
            f"step {step}: {name} is {value}. Nothing was overwritten; {self._last_good()}. Train into another "
            "folder with a lower learning rate (method.*lr) or method.clip, or with trainer.precision=32-true"
        )

    def _last_good(self) -> str:
        checkpoint, _ = self.run.latest_checkpoint()
        return f"the last good checkpoint is step {checkpoint.state['step']}" if checkpoint else "no checkpoint had been written yet"

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask the loop to finish its step and save; a second SIGINT interrupts at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop_asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_asked = True
            self.progress.say("finishing this step and saving; once more to stop at once")

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _should_stop(self) -> bool:
        """Whether to stop now; several processes agree on it on the logging cadence, for all must save together."""
        if self.fabric.world_size == 1:
            return self.stop_asked
        if self.step % self.settings.log_every:
            return False
        return self._reduced([float(self.stop_asked)], "sum")[0] > 0

    def _reduced(self, values: list[float], operation: str) -> list[float]:
        """`values` summed, averaged, ... over all processes."""
        reduced = self.fabric.all_reduce(torch.tensor(values, device=self.fabric.device), reduce_op=operation)
        return cast(Tensor, reduced).tolist()

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _evaluate(self) -> Mapping[str, float] | None:
        """What is measured at this step, where it is due; only the first process measures, and the others wait for it."""
        every = self.settings.evaluate_every
        if self.on_evaluate is None or every is None or (self.step % every and self.step != self.settings.steps):
            return None
        figures: Mapping[str, float] = {}
        if self.fabric.is_global_zero:
            generator = self.method.ship(self.ema.module, self.step)
            figures = self.on_evaluate(generator)
            self._keep_if_best(generator, figures)
        self.fabric.barrier()
        return figures

    def _keep_if_best(self, generator: Generator, figures: Mapping[str, float]) -> None:
        """Put `generator` into the run's folder ``best`` if no other was better by the figure chosen; the first of equals stays."""
        metric = self.settings.keep_best
        value = figures.get(f"eval.{metric}", math.nan)  # a figure may not be defined yet
        if metric is None or not math.isfinite(value):
            return
        if self.best is None or _distance_from_best(value, self.settings.best_is) < _distance_from_best(
            self.best["value"], self.settings.best_is
        ):
            self.best = {"step": self.step, "metric": metric, "value": value}
            generator.info["best"] = dict(self.best)
            self.run.save_best(generator)

    def _log(self, measured: Mapping[str, float]) -> None:
        """Average since the last record, over time and processes; raise alarms; write, track and show. `measured` is added."""
        self._check_noted()
        means = self.window.means()
        if self.fabric.world_size > 1:
            means = dict(zip(means, self._reduced(list(means.values()), "mean"), strict=True))
        self.window = Window()
        now = time.monotonic()
        self.seconds = now - self.began
        speed = (self.step - self.logged_step) * self.settings.batch_size / max(1e-9, now - self.logged_at)
        self.logged_at, self.logged_step = now, self.step
        raised = alarms(means, self.step / self.settings.steps, self.method.advice)
        for alarm in raised:
            if alarm.name not in self.raised:
                self.progress.say(f"step {self.step}: {alarm.name}: {alarm.message}")
        self.raised |= {alarm.name for alarm in raised}
        rates = {f"{name}.lr": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        record = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "images_seen": self.step * self.settings.batch_size,
            "images_per_second": round(speed, 1),
            **{name: float(f"{value:.9g}") for name, value in means.items()},
            **rates,
            **self.method.settings_now(),
            **{name: float(f"{value:.9g}") for name, value in measured.items()},
            "alarms": [alarm.name for alarm in raised],
        }
        if self.fabric.is_global_zero:
            self.run.log(record)
            self.tracker.log(record)
        terms = [
            f"{name.split('.')[1]} {means[name]:.3f}"
            for name in means
            if name.split(".")[1] in ("denoising", "dm", "fake", "gan", "drift", "score", "calibration")
        ]
        health = f"spread {means['health.spread']:.0%}" if "health.spread" in means else ""
        state = f"check: {', '.join(alarm.name for alarm in raised)}" if raised else "healthy"
        self.progress.show(", ".join(filter(None, [state, health, *terms, f"{speed:.0f} images/s"])))

    def _sample(self) -> None:
        if self.fabric.is_global_zero:
            picture = self.on_sample(self.method.ship(self.ema.module, self.step), self.step)
            if picture is not None:
                self.tracker.image(picture, self.step)
        self.fabric.barrier()

    def _save(self) -> None:
        """A checkpoint, then the model folder."""
        self._check_noted()
        self.seconds = time.monotonic() - self.began
        rng = {"loop": self.rng.get_state(), "torch": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        gathered = {
            name: cast(Tensor, self.fabric.all_gather(state.to(self.fabric.device))).cpu().reshape(-1, len(state))
            for name, state in rng.items()
        }
        if self.fabric.is_global_zero:
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "updates": self.updates,
                "ema_updates": self.ema.updates,
                "window": self.window.state_dict(),
                "method": self.method.state_dict(),
                "alarms": sorted(self.raised),
                "best": self.best,
            }
            # only what learns: a frozen network is in the run folder once, as the model folder that it came from
            networks = {name: self.method.networks[name].state_dict() for name in self.wrapped} | {"ema": self.ema.module.state_dict()}
            optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
            self.run.save_checkpoint(self.step, Checkpoint(networks, optimizers, gathered, state), self.settings.keep_checkpoints)
            self.run.save_model(self.method.ship(self.ema.module, self.step))
        self.fabric.barrier()

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint; from the start where there is none."""
        checkpoint, damaged = self.run.latest_checkpoint()
        for line in damaged:
            self.progress.say(f"{line}; going on from the one before")
        step = checkpoint.state["step"] if checkpoint else 0
        if self.fabric.is_global_zero:
            self.run.forget_after(step)
        self.fabric.barrier()
        if checkpoint is None:
            self.progress.say("no checkpoint yet; starting from the beginning")
            self._restore_best(None)
            return
        state = checkpoint.state
        for name in self.wrapped:
            self.method.networks[name].load_state_dict(checkpoint.networks[name])
        self.ema.module.load_state_dict(checkpoint.networks["ema"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(checkpoint.optimizers[name])
        self.step, self.seconds, self.updates = step, state["seconds"], dict(state["updates"])
        self.ema.updates = state["ema_updates"]
        self.window.load_state_dict(state["window"], self.fabric.device)
        self.method.load_state_dict(state["method"])
        self.raised = set(state["alarms"])
        self._restore_best(state.get("best"))
        rank, states = self.fabric.global_rank, checkpoint.rng
        if len(states["loop"]) == self.fabric.world_size:
            self.rng.set_state(states["loop"][rank].contiguous())
            torch.set_rng_state(states["torch"][rank].contiguous())
            if "cuda" in states and self.fabric.device.type == "cuda":
                torch.cuda.set_rng_state(states["cuda"][rank].contiguous(), self.fabric.device)
        else:
            self.rng.manual_seed((self.settings.seed * 1_000_003 + rank) ^ (step << 20))
            self.progress.say("the number of processes has changed: going on with other random numbers")
        if self.fabric.is_global_zero and self.run.model_step() != step:  # killed before it was written
            self.run.save_model(self.method.ship(self.ema.module, step))
        self.progress.say(f"going on from step {step}" if step < self.settings.steps else f"nothing left to do after step {step}")

    def _restore_best(self, saved: Mapping[str, Any] | None) -> None:
        """Go on comparing with the model in the folder ``best``, which may have come after the checkpoint, where `saved` was the best.

        It was found by the metric that is chosen now, or else comparing begins anew.
        """
        if self.settings.keep_best is None:
            return
        found = self.run.best() if self.fabric.is_global_zero else None
        if found is not None and found["metric"] == self.settings.keep_best:
            self.best = found
        elif found is not None:
            self.progress.say(
                f"best/ was chosen by {found['metric']}; it will be replaced by the best by {self.settings.keep_best} from here"
            )
        elif saved is not None:
            self.progress.say(f"best/ (of step {saved['step']}) is not there any more; it will hold the best from here")


def _distance_from_best(value: float, best_is: Literal["least", "greatest", "nearest 1"]) -> float:
    return {"least": value, "greatest": -value, "nearest 1": abs(value - 1)}[best_is]
