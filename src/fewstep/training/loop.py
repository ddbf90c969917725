"""The training loop: every method, one file, nothing hidden.

It knows networks, turns and losses, and no method's name. At each step it takes the turns that are due, in order; each
turn's networks learn and all others stand still. All chance comes from one generator a process, whose state is in every
checkpoint, so that a run that was stopped ends with the same numbers as one that was not.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.own import ForeignData
from fewstep.errors import Interrupted, UserError
from fewstep.generator import Generator
from fewstep.methods.base import Batch, LossOutput, Method, Ratio, Turn
from fewstep.methods.devices import move
from fewstep.own_parts import check_output
from fewstep.streams import Draws
from fewstep.training.batches import TrainingData
from fewstep.training.ema import EMA
from fewstep.training.health import SETTLED, alarms
from fewstep.training.learned import learned, set_learning
from fewstep.training.loading import dealt_to, from_all, make_batches
from fewstep.training.precision import in_precision
from fewstep.training.progress import Progress
from fewstep.training.resume import Better, State, keep_if_best, restore, restore_best, save
from fewstep.training.run_folder import RunFolder
from fewstep.training.signals import StopRequest
from fewstep.training.tracking import NoTracker, Tracker
from fewstep.training.window import Window


@dataclass(frozen=True)
class LoopSettings:
    """How long and how often; see `fewstep.recipe.Trainer` for each. Cadences are in steps, `batch_size` counts all devices."""

    steps: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    workers: int = 0
    log_every: int = 50
    sample_every: int = 1000
    evaluate_every: int | None = None
    keep_best: str | None = None
    best_is: Better = "least"
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


class Loop:
    """One run of `method` on `data` into `run`.

    Args:
        method: its networks are moved to Fabric's device and trained in place.
        data: in memory, or read as it is asked for; see `fewstep.training.loading`.
        fabric: launched already.
        run: where everything goes; opened already.
        settings: how long and how often.
        tracker: gets each record and each picture.
        on_sample: called with the averaged generator and the step on the sampling cadence; returns a picture, or None.
        title: for the progress bar.
        on_begin: called with the step that training goes on from, 0 at the start; returns whether that step's picture is missing.
        on_evaluate: called with the averaged generator on the evaluation cadence; what it returns goes into the record of that step.

    """

    def __init__(
        self,
        method: Method,
        data: TrainingData | ForeignData,
        fabric: Fabric,
        run: RunFolder,
        settings: LoopSettings,
        tracker: Tracker | None = None,
        on_sample: Callable[[Generator, int], Path | None] = lambda generator, step: None,
        title: str = "training",
        on_evaluate: Callable[[Generator], Mapping[str, float]] | None = None,
        on_begin: Callable[[int], bool] = lambda step: False,
    ) -> None:
        check_batch_size(settings.batch_size, fabric.world_size, settings.accumulate)
        self.method, self.fabric, self.run, self.settings = method, fabric, run, settings
        self.tracker, self.on_sample, self.title, self.on_evaluate = tracker or NoTracker(), on_sample, title, on_evaluate
        self.on_begin = on_begin
        move(method, fabric.device)
        ema = EMA(method.networks[method.ships], settings.ema_decay, settings.ema_warmup)
        trained = tuple(sorted({name for turn in method.turns for name in turn.trains}))
        self.wrapped: dict[str, _FabricModule] = {name: self._wrapped(name) for name in trained}
        self.standing, self.learning = (  # as they are called while they do not learn, and while they do
            {name: in_precision(module, fabric.strategy.precision) for name, module in modules.items()}
            for modules in (method.networks, self.wrapped)
        )
        optimizers = {turn.name: cast(_FabricOptimizer, fabric.setup_optimizers(self._optimizer(turn))) for turn in method.turns}
        parts = (fabric.global_rank, fabric.world_size, settings.accumulate)
        rng = Draws(settings.seed, settings.batch_size, *parts, fabric.device)
        dealt = dealt_to(fabric, settings.batch_size, settings.seed, settings.accumulate, settings.workers)
        batches = make_batches(data, dealt, rng, fabric.device)
        self.state = State(method, trained, batches, ema, optimizers, dict.fromkeys(optimizers, 0), rng, settings.seed)
        self.first_bad = torch.full((), math.inf, device=fabric.device)
        self.unread: tuple[int, DataError] | None = None  # the first step whose batch this process could not read, while others waited
        self.at_once = fabric.device.type == "cpu" and fabric.world_size == 1  # looking costs nothing, and no process waits for another

    def train(self, resume: bool = False) -> None:
        """Train to the last step, saving on the way.

        Raises:
            UserError: for a loss that is not finite, with the step, the term and the last good checkpoint; for a data set that fails.
            Interrupted: after SIGINT or SIGTERM, everything saved.

        """
        state, settings = self.state, self.settings
        self.progress = Progress(self.title, settings.steps, quiet=not self.fabric.is_global_zero)
        self.stop = StopRequest(self.progress.say)
        try:
            # library code leaves the process's own random state alone; only dropout draws from it in here
            with torch.random.fork_rng([self.fabric.device] if self.fabric.device.type == "cuda" else []), self.stop.listening():
                torch.manual_seed(settings.seed * 1_000_003 + self.fabric.global_rank)
                if resume:
                    self._restore()
                missing = self.fabric.is_global_zero and self.on_begin(state.step)
                if missing and (state.step % settings.sample_every == 0 or state.step == settings.steps):
                    self._draw()
                if state.step < settings.steps:
                    self.progress.begin(state.step)
                    self._train()
        finally:
            state.batches.close()
            self.progress.close()
            self.tracker.close()

    def _train(self) -> None:
        state, settings = self.state, self.settings
        if not state.step:  # what came before the first step was not training
            state.began = time.monotonic()
        self.logged_at, self.logged_step = time.monotonic(), state.step
        while state.step < settings.steps:
            self.advance()
            self.progress.advance()
            measured = self._evaluate()
            if state.step % settings.log_every == 0 or state.step == settings.steps or measured is not None:
                self._log(measured or {})
            if state.step % settings.sample_every == 0 or state.step == settings.steps:
                self._sample()
            stopping = self._should_stop()
            if state.step % settings.checkpoint_every == 0 or state.step == settings.steps or stopping:
                self._check_noted()
                save(state, self.run, self.fabric, settings.keep_checkpoints)
            if stopping and state.step < settings.steps:
                raise Interrupted(f"stopped at step {state.step} of {settings.steps}, all saved; go on with --resume")

    def advance(self) -> None:
        """One step: all turns that are due, on one batch in `accumulate` parts. Nothing is logged or saved."""
        state = self.state
        batches = self._batches()
        scratches: list[dict[str, Any]] = [{} for _ in batches]
        for turn in self.method.turns:
            if not turn.is_due(state.step, self.settings.steps):
                continue
            for name, module in self.method.networks.items():
                if name not in turn.trains:
                    set_learning(module, False)
            for name in turn.trains:
                set_learning(self.method.networks[name], True)
            networks = {name: self.learning[name] if name in turn.trains else self.standing[name] for name in self.method.networks}
            looks = state.updates[turn.name] % max(1, self.settings.log_every // (5 * turn.every)) == 0
            seen: list[tuple[Tensor | None, Tensor | None, Batch]] = []
            for part in state.rng.parts():
                batch, scratch = batches[part], scratches[part]
                with contextlib.ExitStack() as stack:
                    if part < len(batches) - 1:
                        for name in turn.trains:
                            stack.enter_context(self.fabric.no_backward_sync(self.wrapped[name]))
                    output = self.method.loss(turn.name, networks, batch, state.rng, scratch)
                    self._check(turn, output)
                    self.fabric.backward(output.loss / len(batches) if len(batches) > 1 else output.loss)
                state.window.add({f"{turn.name}.{name}": value for name, value in output.terms.items()})
                if looks:
                    seen.append((output.samples, output.label, batch))
            state.looks.look(seen, at_data=turn is self.method.turns[0])
            self._update(turn)
        state.step += 1

    def _update(self, turn: Turn) -> None:
        """Clip, set the learning rate, take the optimiser's step, and let the average follow."""
        state, settings = self.state, turn.optimizer
        optimizer = state.optimizers[turn.name]
        limit = settings.clip or math.inf  # without a limit the norm is still measured, and looked at
        norm = self.fabric.clip_gradients(self.wrapped[turn.trains[0]], optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        state.window.add({f"{turn.name}.grad_norm": norm})
        self._check_finite(norm, f"{turn.name}.grad_norm")
        lr = settings.lr_at(state.updates[turn.name], turn.updates(self.settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.updates[turn.name] += 1
        self.method.after_update(turn.name)
        if self.method.ships in turn.trains:
            state.ema.update(self.method.networks[self.method.ships])

    def _wrapped(self, name: str) -> _FabricModule:
        """The network called `name` as the engine runs it, other entrances than ``forward`` included."""
        module = self.method.networks[name]
        wrapped = self.fabric.setup_module(module)
        for entrance in getattr(module, "forward_methods", ()):
            wrapped.mark_forward_method(entrance)
        return wrapped

    def _optimizer(self, turn: Turn) -> torch.optim.Optimizer:
        s = turn.optimizer
        groups: dict[float, list[Tensor]] = {1.0: []}
        for network in turn.trains:
            for name, parameter in learned(self.method.networks[network]).items():
                scale = next((scale for ending, scale in turn.scales.items() if name.endswith(ending)), 1.0)
                groups.setdefault(scale, []).append(parameter)
        parameters = [{"params": group, "scale": scale} for scale, group in groups.items() if group]
        betas, fused = (s.beta1, s.beta2), self.fabric.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(parameters, s.lr, betas, weight_decay=s.weight_decay, fused=fused)

    # --- what can go wrong -------------------------------------------------------------------------------------------

    def _check(self, turn: Turn, output: LossOutput) -> None:
        """Stop before a loss that is none, or is not finite, can reach the weights."""
        check_output(self.method, turn, output)
        if self.at_once and not torch.isfinite(output.loss):
            bad = [name for name, value in output.terms.items() if not torch.isfinite(value.value if isinstance(value, Ratio) else value)]
            self._fail(self.state.step + 1, f"{turn.name}.{bad[0]}" if bad else f"the loss of {turn.name}", output.loss.item())
        self._check_finite(output.loss.detach(), f"the loss of {turn.name}")

    def _check_finite(self, value: Tensor, name: str) -> None:
        """At once on one CPU; elsewhere it is noted on the device, and read, by all processes together, before anything is saved."""
        if self.at_once:
            if not torch.isfinite(value):
                self._fail(self.state.step + 1, name, value.item())
        else:
            step = torch.full_like(self.first_bad, self.state.step + 1)
            self.first_bad = torch.minimum(self.first_bad, torch.where(torch.isfinite(value), math.inf, step))

    def _check_noted(self) -> None:
        """Stop if a value was not finite since the last look."""
        unread = math.inf if self.unread is None else float(self.unread[0])
        step, unread = self._reduced([self.first_bad.item(), unread], "min")
        if math.isfinite(unread):
            # each says all of it: the process that knows may be ended before it has spoken
            told = from_all({"why": str(self.unread[1]) if self.unread else ""}, self.fabric)
            raise UserError(self._unread(int(unread), next(state["why"] for state in told if state["why"])))
        if math.isfinite(step):
            bad = [name for name, value in self.state.window.means().items() if not math.isfinite(value)]
            self._fail(int(step), bad[0] if bad else "a loss", math.nan)

    def _batches(self) -> list[Batch]:
        """What this step learns from; where it cannot be had, the run ends with everything saved.

        Several processes end together, when they next look at what was noted, and go back to the last checkpoint.
        """
        state = self.state
        if self.unread is not None:
            return state.batches.spare()
        try:
            return state.batches(state.step)
        except DataError as error:
            if self.fabric.world_size > 1:
                self.unread = (state.step + 1, error)
                return state.batches.spare()
            self._check_noted()
            if state.step and not (self.run.checkpoint_folder / f"step_{state.step}").exists():
                save(state, self.run, self.fabric, self.settings.keep_checkpoints)
            raise UserError(self._unread(state.step + 1, str(error))) from error

    def _unread(self, step: int, why: str) -> str:
        return f"step {step}: {why}. Nothing is lost: {self._last_good()}; mend the data set, and go on with --resume"

    def _fail(self, step: int, name: str, value: float) -> None:
        raise UserError(
            f"step {step}: {name} is {value}. Nothing was overwritten; {self._last_good()}. Train into another "
            "folder with a lower learning rate (method.*lr) or method.*clip, or with trainer.precision=32-true"
        )

    def _last_good(self) -> str:
        checkpoint, _ = self.run.latest_checkpoint()
        return f"the last good checkpoint is step {checkpoint.state['step']}" if checkpoint else "no checkpoint had been written yet"

    def _should_stop(self) -> bool:
        """Whether to stop now; several processes agree on it on the logging cadence, for all must save together."""
        if self.fabric.world_size == 1:
            return self.stop.asked
        if self.state.step % self.settings.log_every:
            return False
        return self._reduced([float(self.stop.asked)], "sum")[0] > 0

    def _reduced(self, values: list[float], operation: str) -> list[float]:
        """`values` summed, averaged, ... over all processes."""
        reduced = self.fabric.all_reduce(torch.tensor(values, device=self.fabric.device), reduce_op=operation)
        return cast(Tensor, reduced).tolist()

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _evaluate(self) -> Mapping[str, float] | None:
        """What is measured at this step, where it is due; only the first process measures, and the others wait for it."""
        every, state = self.settings.evaluate_every, self.state
        if self.on_evaluate is None or every is None or (state.step % every and state.step != self.settings.steps):
            return None
        figures: Mapping[str, float] = {}
        if self.fabric.is_global_zero:
            generator = state.shipped()
            figures = self.on_evaluate(generator)
            if state.step >= self.method.best_from * self.settings.steps:
                keep_if_best(state, self.run, self.settings.keep_best, self.settings.best_is, generator, figures)
        self.fabric.barrier()
        return figures

    def _log(self, measured: Mapping[str, float]) -> None:
        """Average since the last record, over time and processes; raise alarms; write, track and show. `measured` is added."""
        self._check_noted()
        state = self.state
        if self.fabric.world_size > 1:
            state.window.average(lambda sums: self._reduced(sums, "mean"))
        means, state.window = state.window.means() | state.health(self.settings.steps), Window()
        state.course.follow(means, self.method.alarms)
        now = time.monotonic()
        speed = (state.step - self.logged_step) * self.settings.batch_size / max(1e-9, now - self.logged_at)
        self.logged_at, self.logged_step = now, state.step
        method, progress = self.method, state.step / self.settings.steps
        raised = alarms(means, progress, method.alarms, method.advice, state.course, method.rate)
        for alarm in raised:
            if alarm.name not in state.raised:
                self.progress.say(f"step {state.step}: {alarm.name}: {alarm.message}")
                self.tracker.alarm(alarm.name, alarm.message, state.step)
        state.raised |= {alarm.name for alarm in raised}
        rates = {f"{name}.lr": optimizer.param_groups[0]["lr"] for name, optimizer in state.optimizers.items()}
        record = {
            "step": state.step,
            "seconds": round(state.seconds, 3),
            "images_seen": state.step * self.settings.batch_size,
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
        terms = [f"{name.split('.')[1]} {means[name]:.3f}" for name in means if name.split(".")[1] in self.method.shown]
        health = f"spread {means['health.spread']:.0%}" if "health.spread" in means else ""
        verdict = "healthy" if progress >= SETTLED else "too early to say"
        verdict = f"check: {', '.join(alarm.name for alarm in raised)}" if raised else verdict
        self.progress.show(", ".join(filter(None, [verdict, health, *terms, f"{speed:.0f} images/s"])))

    def _sample(self) -> None:
        if self.fabric.is_global_zero:
            self._draw()
        self.fabric.barrier()

    def _draw(self) -> None:
        try:
            picture = self.on_sample(self.state.shipped(), self.state.step)
        except UserError as error:  # samples that are not finite, of weights that are: training may find back
            return self.progress.say(f"step {self.state.step}: no picture, for {error}")
        if picture is not None:
            self.tracker.image(picture, self.state.step)

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint; from the start where there is none."""
        state, say = self.state, self.progress.say
        found = restore(state, self.run, self.fabric, say)
        if not found:
            say("no checkpoint yet; starting from the beginning")
        if self.fabric.is_global_zero:
            restore_best(state, self.run, self.settings.keep_best, say)
        if found:
            say(f"going on from step {state.step}" if state.step < self.settings.steps else f"nothing left to do after step {state.step}")
