"""Measuring during a run: the work is divided among the run's processes, and abandoned when the user asks to stop."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor

from fewstep.training.signals import StopNow, StopRequest

PATIENCE = timedelta(days=30)  # the engine's own timeout, of about ten minutes, is meant for steps that hang; measuring may take longer


class Measuring:
    """Cooperation of a run's processes in measuring: each draws a share of the samples, and the first process gathers all of them.

    Args:
        fabric: the engine (Lightning Fabric), launched; None for a single process.
        stop: the user's request to stop, checked by `share` and `check`; None for a measurement that is not to be stopped.

    """

    def __init__(self, fabric: Fabric | None = None, stop: StopRequest | None = None) -> None:
        self.rank, self.world = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
        self.stop = stop
        # a process group in main memory, separate from the engine's own
        self.group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None

    def share(self, parts: Sequence[Callable[[], Tensor]]) -> list[Tensor] | None:
        """Return the tensors that the functions `parts` make, on the CPU and in order; None in all processes but the first.

        The functions are dealt out to the processes in turn. Raises StopNow in all processes if any was asked to stop.
        """
        self.check()
        mine = [make().cpu() for make in parts[self.rank :: self.world]]
        if self.group is None:
            return mine
        gathered: list[Any] | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(mine, gathered, dst=0, group=self.group)
        return None if gathered is None else [gathered[k % self.world][k // self.world] for k in range(len(parts))]

    def check(self) -> None:
        """Raise StopNow in all processes if any was asked to stop."""
        if self.any(self.stop is not None and self.stop.asked):
            raise StopNow

    def any(self, here: bool) -> bool:
        """Return whether `here` is True in any process; all processes wait for each other, for up to `PATIENCE`."""
        if self.group is None:
            return here
        told: list[bool | None] = [None] * self.world
        dist.all_gather_object(told, here, group=self.group)
        return any(told)
