"""A measurement in the middle of a run: shared among its processes, and given up when somebody asks to stop."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor

from fewstep.training.signals import StopNow, StopRequest

PATIENCE = timedelta(days=30)  # an engine's own limit, of ten minutes or so, is for steps that hang, and not for a long measurement


class Measuring:
    """How the processes of a run measure together: each draws a share of the samples, and the first looks at all of them.

    Args:
        fabric: the engine, launched; None for one process by itself.
        stop: is looked at between two batches.

    """

    def __init__(self, fabric: Fabric | None = None, stop: StopRequest | None = None) -> None:
        self.rank, self.world = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
        self.stop = stop
        # on main memory, and apart from what the engine exchanges
        self.group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None

    def share(self, parts: Sequence[Callable[[], Tensor]]) -> list[Tensor] | None:
        """What `parts` make, each in one of the processes in turn, on the CPU and in their order; None in all processes but the first.

        Raises StopNow in all of them where any was asked to stop.
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
        """Whether it is so in any process; all wait for each other, however long that takes."""
        if self.group is None:
            return here
        told: list[bool | None] = [None] * self.world
        dist.all_gather_object(told, here, group=self.group)
        return any(told)
