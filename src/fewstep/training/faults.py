"""Detection of faults that must stop a run before it is saved: values that are not finite, and data that cannot be read."""

import math
from typing import NoReturn, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.errors import UserError
from fewstep.methods.base import LossOutput, Ratio, Turn
from fewstep.training.loading import from_all
from fewstep.training.run_folder import RunFolder
from fewstep.training.window import Window


def reduced(fabric: Fabric, values: list[float], operation: str) -> list[float]:
    """Return `values` reduced elementwise over all processes by `operation`: "sum", "mean", "min" or "max"."""
    return cast(Tensor, fabric.all_reduce(torch.tensor(values, device=fabric.device), reduce_op=operation)).tolist()


class Faults:
    """The faults of a run. One process on a CPU raises at once; others note the fault, and all raise together before anything is saved.

    Attributes:
        first_bad: the first step with a value that was not finite, infinity if there is none; a scalar on the device.
        unread: the first step whose batch this process could not read while other processes waited, and the error; or None.
        at_once: whether a fault is raised at once: on a CPU, where reading a value costs nothing, in a run of one process.

    """

    def __init__(self, fabric: Fabric, run: RunFolder) -> None:
        self.fabric, self.run = fabric, run
        self.first_bad = torch.full((), math.inf, device=fabric.device)
        self.unread: tuple[int, DataError] | None = None
        self.at_once = fabric.device.type == "cpu" and fabric.world_size == 1

    def look_at_loss(self, turn: Turn, output: LossOutput, step: int) -> None:
        """Raise UserError, naming the term, for a loss of `step` that is not finite, before it reaches the weights; or note the step."""
        if self.at_once and not torch.isfinite(output.loss):
            bad = [name for name, value in output.terms.items() if not torch.isfinite(value.value if isinstance(value, Ratio) else value)]
            self._fail(step, f"{turn.name}.{bad[0]}" if bad else f"the loss of {turn.name}", output.loss.item())
        self.look_at(output.loss.detach(), f"the loss of {turn.name}", step)

    def look_at(self, value: Tensor, name: str, step: int) -> None:
        """Raise UserError for a scalar `value`, called `name`, that is not finite at `step`, or note the step where `at_once` is False."""
        if self.at_once:
            if not torch.isfinite(value):
                self._fail(step, name, value.item())
        else:
            here = torch.full_like(self.first_bad, step)
            self.first_bad = torch.minimum(self.first_bad, torch.where(torch.isfinite(value), math.inf, here))

    def tell(self, window: Window) -> None:
        """Raise UserError in all processes if any has noted a fault; the message names the first term in `window` that is not finite."""
        unread = math.inf if self.unread is None else float(self.unread[0])
        step, unread = reduced(self.fabric, [self.first_bad.item(), unread], "min")
        if math.isfinite(unread):
            # every process raises the full message: the one that noted the fault may be ended before it has printed it
            told = from_all({"why": str(self.unread[1]) if self.unread else ""}, self.fabric)
            raise self.unreadable(int(unread), next(state["why"] for state in told if state["why"]))
        if math.isfinite(step):
            bad = [name for name, value in window.means().items() if not math.isfinite(value)]
            self._fail(int(step), bad[0] if bad else "a loss", math.nan)

    def unreadable(self, step: int, why: str) -> UserError:
        """Return the error for a batch of `step` that cannot be read, for the reason `why`."""
        return UserError(f"step {step}: {why}. Nothing is lost: {self.last_good()}; mend the data set, and go on with --resume")

    def _fail(self, step: int, name: str, value: float) -> NoReturn:
        raise UserError(
            f"step {step}: {name} is {value}. Nothing was overwritten; {self.last_good()}. Train into another "
            "folder with a lower learning rate (method.*lr) or method.*clip, or with trainer.precision=32-true"
        )

    def last_good(self) -> str:
        """Return the words for a message that say which step the last good checkpoint is of, or that there is none."""
        checkpoint, _ = self.run.latest_checkpoint()
        return f"the last good checkpoint is step {checkpoint.state['step']}" if checkpoint else "no checkpoint had been written yet"
