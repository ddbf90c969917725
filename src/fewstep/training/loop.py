"""The training loop, which is the same for every method.

It knows networks, turns and losses, and no method by name. At each step it takes the turns that are due, in order; each turn trains its
own networks, and all others are frozen. The loop's random numbers come from `fewstep.streams.Draws`, whose state is in every checkpoint, so
that a run that was stopped and resumed ends with the same numbers as one that was not.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.own import ForeignData
from fewstep.denoisers.adapted import grounds
from fewstep.errors import RESUME, Interrupted, UserError
from fewstep.generator import Generator
from fewstep.methods.base import Batch, Method, Turn
from fewstep.own_parts import check_kept, check_output
from fewstep.streams import Draws
from fewstep.training.batches import OnDevice, TrainingData
from fewstep.training.called import Called, Compile
from fewstep.training.ema import placed
from fewstep.training.faults import Faults, reduced
from fewstep.training.health import SETTLED, alarms
from fewstep.training.learned import make_optimizer
from fewstep.training.loading import dealt_to, make_batches
from fewstep.training.measuring import Measuring
from fewstep.training.progress import Progress
from fewstep.training.resume import Better, State, keep_if_best, restore, restore_best, save
from fewstep.training.room import Room, is_of_memory
from fewstep.training.run_folder import RunFolder
from fewstep.training.sharding import called_by, gathered, is_sharded
from fewstep.training.signals import StopNow, StopRequest
from fewstep.training.standing import standing
from fewstep.training.tracking import NoTracker, Tracker
from fewstep.training.window import Window


@dataclass(frozen=True)
class LoopSettings:
    """The length of a run and its intervals; see `fewstep.recipe.Trainer`. Intervals are in steps; `batch_size` counts all devices."""

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
    measured_by: str = ""
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    ema_decay: float = 0.9999
    ema_warmup: float = 20.0
    compile: Compile = False
    data_on_device: OnDevice = "auto"


def check_batch_size(batch_size: int, devices: int, accumulate: int) -> None:
    """Raise UserError unless `batch_size` divides evenly among `devices` devices with `accumulate` parts each."""
    parts = devices * accumulate
    if batch_size % parts:
        raise UserError(
            f"batch_size is {batch_size}, which does not divide by {devices} device(s) times trainer.accumulate {accumulate}; "
            f"give a multiple of {parts}"
        )


class Loop:
    """One training run of `method` on `data`, kept in the run folder `run`.

    Args:
        method: the method; its networks are moved to Fabric's device and trained in place.
        data: the training data, in memory or read on demand; see `fewstep.training.loading`.
        fabric: the engine (Lightning Fabric), launched already.
        run: the run folder, opened already.
        settings: the length of the run and its intervals.
        tracker: the logger that gets each record, alarm and picture beside metrics.jsonl; None for none.
        on_sample: called with the averaged generator and the step every `sample_every` steps; returns a picture's path, or None.
        title: the title of the progress bar.
        on_begin: called with the step that training goes on from, 0 at the start; returns whether that step's picture is missing.
        on_evaluate: called in every process every `evaluate_every` steps, with the averaged generator and a `Measuring`; the figures that
            it returns in the first process go into that step's record.

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
        on_evaluate: Callable[[Generator, Measuring], Mapping[str, float]] | None = None,
        on_begin: Callable[[int], bool] = lambda step: False,
    ) -> None:
        check_batch_size(settings.batch_size, fabric.world_size, settings.accumulate)
        self.method, self.fabric, self.run, self.settings, self.on_begin = method, fabric, run, settings, on_begin
        self.tracker, self.on_sample, self.title, self.on_evaluate = tracker or NoTracker(), on_sample, title, on_evaluate
        ema = placed(method, fabric, settings.ema_decay, settings.ema_warmup)
        trained = tuple(sorted({name for turn in method.turns for name in turn.trains}))
        self.called = Called(method, fabric, trained, settings.compile)
        made = {turn.name: make_optimizer(method, turn, fabric.device.type in ("cpu", "cuda")) for turn in method.turns}
        optimizers = {name: cast(_FabricOptimizer, fabric.setup_optimizers(optimizer)) for name, optimizer in made.items()}
        parts = (fabric.global_rank, fabric.world_size, settings.accumulate)
        rng = Draws(settings.seed, settings.batch_size, *parts, fabric.device)
        dealt = dealt_to(fabric, settings.batch_size, settings.seed, settings.accumulate, settings.workers)
        batches = make_batches(data, dealt, rng, fabric.device, settings.data_on_device)
        self.state = State(method, trained, batches, ema, optimizers, dict.fromkeys(optimizers, 0), rng, settings.seed, settings.steps)
        self.state.items = getattr(data, "train_size", None)  # the size of a streamed data set is not known
        self.state.looks.at(data)
        self.faults = Faults(fabric, run)
        self.room = Room(method, self.called, optimizers, data, settings.batch_size, settings.accumulate)
        self.saved: int | None = None  # the step of the last checkpoint
        # sharded networks that drawing a picture of points may call
        self.asked = called_by(method) if is_sharded(fabric) and len(data.shape) == 1 else []

    def train(self, resume: bool = False) -> None:
        """Train to the last step, saving checkpoints; with `resume` from the newest whole checkpoint in the run folder.

        Raises:
            UserError: for a loss that is not finite, with the step, the term and the last good checkpoint; for data that cannot be read.
            Interrupted: after SIGINT, SIGTERM or SIGHUP, with everything saved.

        """
        state, settings = self.state, self.settings
        self.progress = Progress(self.title, settings.steps, quiet=not self.fabric.is_global_zero)
        self.stop = StopRequest(self.progress.say)
        self.measuring = Measuring(self.fabric, self.stop)
        try:
            # the process's global random state is restored afterwards; in here only dropout draws from it
            with torch.random.fork_rng([self.fabric.device] if self.fabric.device.type == "cuda" else []), self.stop.listening():
                torch.manual_seed(settings.seed * 1_000_003 + self.fabric.global_rank)
                if resume:
                    self._restore()
                self.tracker.begin(state.step)
                missing = self.fabric.broadcast(self.fabric.is_global_zero and self.on_begin(state.step))
                if state.step:  # do what was due at this step and had not been done when the run stopped
                    self._look(missing)
                if state.step < settings.steps:
                    self.progress.begin(state.step)
                    self._train()
        finally:
            state.batches.close()
            self.progress.close()
            self.tracker.close()

    def _train(self) -> None:
        state, settings = self.state, self.settings
        if not state.step:  # the clock starts here: what came before the first step was not training
            state.began = time.monotonic()
        while state.step < settings.steps:
            self.advance()
            state.is_logged = False
            self.progress.advance()
            stopping, measures = self._should_stop(), self._is_due(settings.evaluate_every)
            if self._is_due(settings.checkpoint_every) or stopping or measures:  # before logging and measuring, which may take long
                self._save()
            if stopping and (measures or state.step < settings.steps):
                if not measures and self._is_due(settings.log_every):
                    self._log({}, state.seconds)
                raise Interrupted(f"stopped at step {state.step} of {settings.steps}, all saved; {RESUME}")
            self._look()

    def _is_due(self, every: int | None) -> bool:
        """Return whether a task that is done every `every` steps, and at the last step, is due at this step; False for None."""
        return every is not None and (self.state.step % every == 0 or self.state.step == self.settings.steps)

    def advance(self) -> None:
        """Make one step: all turns that are due, on one batch in `accumulate` parts. Nothing is logged or saved.

        Raises UserError for a loss that is not finite, networks that cannot be compiled, and too little memory (with settings that fit).
        """
        try:
            with self.called.at_work():
                self._advance()
        except Exception as error:
            if is_of_memory(error):
                raise self.room.lacking(error, self.state.step + 1, self.faults.last_good()) from None
            raise

    def _advance(self) -> None:
        state = self.state
        batches = self._batches()
        scratches: list[dict[str, Any]] = [{} for _ in batches]
        if state.step == 0:
            state.standing = standing(self.method, self.settings.steps, self.settings.batch_size, batches if state.looks.compares else ())
        for turn in self.method.turns:
            if not turn.is_due(state.step, self.settings.steps):
                continue
            networks = self.called.in_turn(turn)
            looks = state.updates[turn.name] % max(1, self.settings.log_every // (5 * turn.every)) == 0
            seen: list[tuple[Tensor | None, Tensor | None, Batch]] = []
            for part in state.rng.parts():
                batch, scratch = batches[part], scratches[part]
                with contextlib.ExitStack() as stack:
                    if part < len(batches) - 1:
                        for name in turn.trains:
                            stack.enter_context(self.fabric.no_backward_sync(self.called.wrapped[name]))
                    output = self.method.loss(turn.name, networks, batch, state.rng, scratch)
                    check_output(self.method, turn, output)
                    self.faults.look_at_loss(turn, output, state.step + 1)
                    self.fabric.backward(output.loss / len(batches) if len(batches) > 1 else output.loss)
                state.window.add({f"{turn.name}.{name}": value for name, value in output.terms.items()})
                if looks:
                    seen.append((output.samples, output.label, batch))
            state.looks.look(seen, at_data=turn is self.method.turns[0])
            if state.step == 0 and self.method.ships in turn.trains:
                state.course.follow(state.looks.peek(), self.method.alarms)
            self._update(turn)
        state.step += 1
        if state.step == 1:  # a method may make what it keeps in its first loss
            check_kept(self.method)

    def _update(self, turn: Turn) -> None:
        """Clip the gradients of `turn`, set its learning rate, take the optimizer's step, and update the moving average."""
        state, settings = self.state, turn.optimizer
        optimizer = state.optimizers[turn.name]
        norm = self.called.clipped(turn, optimizer)
        state.window.add({f"{turn.name}.grad_norm": norm})
        self.faults.look_at(norm, f"{turn.name}.grad_norm", self.state.step + 1)
        lr = settings.lr_at(state.updates[turn.name], turn.updates(self.settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.updates[turn.name] += 1
        self.method.after_update(turn.name)
        if self.method.ships in turn.trains:
            state.ema.update(self.method.networks[self.method.ships])

    # --- faults and requests to stop ---------------------------------------------------------------------------------

    def _batches(self) -> list[Batch]:
        """Return this step's batch, in parts. Where it cannot be read, save everything and raise UserError.

        Several processes note the fault and go on with placeholders, and end together at the next log or save, with the last checkpoint.
        """
        state = self.state
        if self.faults.unread is not None:
            return state.batches.spare()
        try:
            return state.batches(state.step)
        except DataError as error:
            if self.fabric.world_size > 1:
                self.faults.unread = (state.step + 1, error)
                return state.batches.spare()
            if state.step:
                self._save()
            raise self.faults.unreadable(state.step + 1, str(error)) from error

    def _should_stop(self) -> bool:
        """Return whether to stop now; several processes agree on it every `log_every` steps, because all must save together."""
        if self.fabric.world_size == 1:
            return self.stop.asked
        if self.state.step % self.settings.log_every:
            return False
        return reduced(self.fabric, [float(self.stop.asked)], "sum")[0] > 0

    # --- checkpoints, measurements, records and pictures -------------------------------------------------------------

    def _save(self) -> None:
        if self.saved != self.state.step:
            self.faults.tell(self.state.window)
            save(self.state, self.run, self.fabric, self.settings.keep_checkpoints)
            self.saved = self.state.step

    def _look(self, draws: bool = True) -> None:
        """Do the measuring, logging and drawing that is due at this step; the picture is drawn only with `draws`."""
        if not self.state.is_logged:
            ended = self.state.seconds
            measured = self._evaluate() if self._is_due(self.settings.evaluate_every) else None
            if self._is_due(self.settings.log_every) or measured is not None:
                self._log(measured or {}, ended)
            self.state.is_logged = True
        if self._is_due(self.settings.sample_every):
            self._draw(draws)

    def _evaluate(self) -> Mapping[str, float] | None:
        """Return the figures measured at this step, which only the first process has. Raises Interrupted, with all saved, to stop."""
        state, settings, stopped = self.state, self.settings, False
        if self.on_evaluate is None:
            return None
        figures: Mapping[str, float] = {}
        try:
            with self.stop.at_once(self.fabric.world_size == 1):
                self.measuring.check()
                generator = state.shipped()
                with gathered(grounds(generator)):
                    figures = self.on_evaluate(generator, self.measuring)
                if self.fabric.is_global_zero and state.step >= self.method.best_from * settings.steps:
                    keep_if_best(state, self.run, settings, generator, figures, self.progress.say)
        except StopNow:
            stopped = True
        if self.measuring.any(stopped):
            done = f"stopped while measuring step {state.step} of {settings.steps}"
            raise Interrupted(f"{done}, all saved; {RESUME}, which measures it again")
        return figures

    def _log(self, measured: Mapping[str, float], ended: float) -> None:
        """Write a record with the means since the last one, and `measured`, begun `ended` s into the run; raise alarms, show progress."""
        state = self.state
        self.faults.tell(state.window)
        if self.fabric.world_size > 1:
            state.window.average(lambda sums: reduced(self.fabric, sums, "mean"))
        means, state.window = state.window.means() | state.health(), Window()
        if state.logged[0] == 0:
            means |= {f"{name}_first": value for name, value in state.course.first.items()}
        state.course.follow(means, self.method.alarms)
        step, seconds = state.logged
        state.logged = (state.step, state.seconds)
        speed = (state.step - step) * self.settings.batch_size / max(1e-9, ended - seconds)
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
        lasting = state.course.after([alarm.name for alarm in raised], means, method.alarms)
        verdict = "healthy" if progress >= SETTLED else "too early to say"
        verdict = f"check: {', '.join(lasting)}" if lasting else verdict
        self.progress.show(", ".join(filter(None, [verdict, health, *terms, f"{speed:.0f} images/s"])))

    def _draw(self, draws: bool) -> None:
        """Draw the picture in the first process if `draws`, while the others wait. Raises Interrupted, with all saved, to stop."""
        stopped = False
        try:
            if draws:
                self._picture()
        except StopNow:
            stopped = True
        if self.measuring.any(stopped):
            self._save()
            done = f"stopped while drawing step {self.state.step} of {self.settings.steps}"
            raise Interrupted(f"{done}, all saved; {RESUME}")

    def _picture(self) -> None:
        first = self.fabric.is_global_zero
        try:
            generator = self.state.shipped()
            with gathered([*grounds(generator), *self.asked]), self.stop.at_once(first):
                picture = self.on_sample(generator, self.state.step) if first else None
        except UserError as error:  # finite weights can give samples that are not finite: training may recover
            return self.progress.say(f"step {self.state.step}: no picture was drawn: {error}")
        except Exception as error:
            if not is_of_memory(error):
                raise
            return self.progress.say(f"step {self.state.step}: no picture was drawn: there is too little memory")
        if picture is not None:
            self.tracker.image(picture, self.state.step)

    def _restore(self) -> None:
        """Restore the newest whole checkpoint, and say which step it is of; without one the run starts from the beginning."""
        state, say = self.state, self.progress.say
        if not (found := restore(state, self.run, self.fabric, say)):
            say("no checkpoint yet; starting from the beginning")
        self.saved = state.step if found else None
        if self.fabric.is_global_zero:
            restore_best(state, self.run, self.settings, say)
        if found:
            done = state.step == self.settings.steps and state.is_logged
            say(f"nothing left to do after step {state.step}" if done else f"going on from step {state.step}")
