"""What must stop a run before it is saved: values that are not finite, and data that cannot be read."""

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
    """`values` summed ("sum"), averaged ("mean"), ... over all processes."""
    return cast(Tensor, fabric.all_reduce(torch.tensor(values, device=fabric.device), reduce_op=operation)).tolist()


class Faults:
    """What has gone wrong in a run: told at once on one CPU; elsewhere noted, and told by all processes together before anything is saved.

    Attributes:
        first_bad: the first step with a value that was not finite, infinity for none: a scalar on the device.
        unread: the first step whose batch this process could not read, and why, while other processes waited for it.
        at_once: whether looking at a value costs nothing, and no process waits for another.

    """

    def __init__(self, fabric: Fabric, run: RunFolder) -> None:
        self.fabric, self.run = fabric, run
        self.first_bad = torch.full((), math.inf, device=fabric.device)
        self.unread: tuple[int, DataError] | None = None
        self.at_once = fabric.device.type == "cpu" and fabric.world_size == 1

    def look_at_loss(self, turn: Turn, output: LossOutput, step: int) -> None:
        """Raise UserError for a loss of `step` that is not finite, before it can reach the weights; its term is named. Or note it."""
        if self.at_once and not torch.isfinite(output.loss):
            bad = [name for name, value in output.terms.items() if not torch.isfinite(value.value if isinstance(value, Ratio) else value)]
            self._fail(step, f"{turn.name}.{bad[0]}" if bad else f"the loss of {turn.name}", output.loss.item())
        self.look_at(output.loss.detach(), f"the loss of {turn.name}", step)

    def look_at(self, value: Tensor, name: str, step: int) -> None:
        """Raise UserError for a scalar `value` of `step` that is not finite, or note it."""
        if self.at_once:
            if not torch.isfinite(value):
                self._fail(step, name, value.item())
        else:
            here = torch.full_like(self.first_bad, step)
            self.first_bad = torch.minimum(self.first_bad, torch.where(torch.isfinite(value), math.inf, here))

    def tell(self, window: Window) -> None:
        """Raise UserError, in all processes, if any of them has noted anything. The first name in `window` that is not finite is named."""
        unread = math.inf if self.unread is None else float(self.unread[0])
        step, unread = reduced(self.fabric, [self.first_bad.item(), unread], "min")
        if math.isfinite(unread):
            # each says all of it: the process that knows may be ended before it has spoken
            told = from_all({"why": str(self.unread[1]) if self.unread else ""}, self.fabric)
            raise self.unreadable(int(unread), next(state["why"] for state in told if state["why"]))
        if math.isfinite(step):
            bad = [name for name, value in window.means().items() if not math.isfinite(value)]
            self._fail(int(step), bad[0] if bad else "a loss", math.nan)

    def unreadable(self, step: int, why: str) -> UserError:
        """What is said of a batch of `step` that cannot be had."""
        return UserError(f"step {step}: {why}. Nothing is lost: {self.last_good()}; mend the data set, and go on with --resume")

    def _fail(self, step: int, name: str, value: float) -> NoReturn:
        raise UserError(
            f"step {step}: {name} is {value}. Nothing was overwritten; {self.last_good()}. Train into another "
            "folder with a lower learning rate (method.*lr) or method.*clip, or with trainer.precision=32-true"
        )

    def last_good(self) -> str:
        """What is left of the run, in words."""
        checkpoint, _ = self.run.latest_checkpoint()
        return f"the last good checkpoint is step {checkpoint.state['step']}" if checkpoint else "no checkpoint had been written yet"
