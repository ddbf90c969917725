"""Handling of steps that do not fit into memory: smaller parts of the batch are tried, and the user is told settings that fit."""

import traceback
from collections.abc import Mapping
from typing import Any

import torch

from fewstep.data.own import ForeignData
from fewstep.errors import UserError
from fewstep.limits import in_units
from fewstep.methods.base import Method
from fewstep.training.batches import TrainingData, random_batch
from fewstep.training.called import Called
from fewstep.training.sharding import is_sharded

NO_ROOM = ("can't allocate memory", "not enough memory", "out of memory")  # parts of torch's messages for main memory and other devices


def is_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that memory has run out, a GPU's or the machine's."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_ROOM))


class Room:
    """The search for a batch that fits into memory, in a run that has run out of it.

    Args:
        method: the method whose losses are tried; its state is of no use to the run afterwards.
        called: the method's networks as its losses call them.
        optimizers: the optimizer of each turn, by the turn's name.
        data: the training data, for the shape of an item and the number of classes.
        batch_size: items per step over all devices.
        accumulate: the number of parts that a device's share of the batch is divided into.

    """

    def __init__(
        self,
        method: Method,
        called: Called,
        optimizers: Mapping[str, Any],
        data: TrainingData | ForeignData,
        batch_size: int,
        accumulate: int,
    ) -> None:
        self.method, self.called, self.optimizers = method, called, optimizers
        self.data, self.batch_size, self.accumulate = data, batch_size, accumulate
        self.device, self.devices = called.fabric.device, called.fabric.world_size

    def lacking(self, error: BaseException, step: int, kept: str) -> UserError:
        """Return the error to raise where step number `step` (from 1) ended in `error`; its message names settings that fit.

        `kept` says in words what is left of the run, such as the last checkpoint.
        """
        self._let_go(error)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        where = "memory"
        if self.device.type == "cuda":
            gpu = torch.cuda.get_device_properties(self.device)
            where = f"memory on {gpu.name} ({in_units(gpu.total_memory)})"
        share = self.batch_size // self.devices
        now = f"batch_size {self.batch_size}" + (f" and trainer.accumulate {self.accumulate}" if self.accumulate > 1 else "")
        told = f"step {step}: out of {where} with {now}, {share // self.accumulate} items at once. Nothing is lost: {kept}. "
        fitting = self._fitting(share)
        if fitting is None:
            mixed = getattr(self.called.fabric.strategy.precision, "on", False)
            otherwise = "" if mixed else ", or trainer.precision=bf16-mixed"
            return UserError(f"{told}Fewer items would not help, or the method needs them: take a smaller network (network.*){otherwise}")
        parts, how = fitting
        if (reason := self.method.needs_whole_batch) is not None:
            smaller = f"batch_size={share // parts * self.devices}"
            return UserError(
                f"{told}{smaller} {how}; train with that into another folder, because the method needs whole batches ({reason})"
            )
        return UserError(f"{told}trainer.accumulate={parts} {how}: the same batch in {parts} parts; go on with --resume and that")

    def _let_go(self, error: BaseException) -> None:
        """Free the memory that the stack frames of `error` hold, which includes all activations."""
        traceback.clear_frames(error.__traceback__)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fitting(self, share: int) -> tuple[int, str] | None:
        """Return the number of parts in which a device's `share` of a batch fits, and how that is known; None where no number does.

        With several processes, or sharded networks, nothing can be tried, because the others wait in the middle of their step; the next
        number of parts that at least halves the items is returned then.
        """
        parts = self.accumulate
        while True:
            parts = next((number for number in range(2 * parts, share + 1) if share % number == 0), 0)
            if not parts or share // parts < self.method.least_items:
                return None
            if self.devices > 1 or is_sharded(self.called.fabric):
                return parts, "takes about half as much"
            try:
                self._try(share // parts)
            except Exception as error:
                if not is_of_memory(error):
                    raise
                self._let_go(error)
                continue
            return parts, f"fits (a step of {share // parts} items at once was tried)"

    def _try(self, items: int) -> None:
        """Compute a step's losses and gradients on `items` random items, with memory set aside for optimizer moments not allocated yet."""
        unmade = [optimizer for optimizer in self.optimizers.values() if not optimizer.state]
        moments = [torch.empty_like(p) for optimizer in unmade for group in optimizer.param_groups for p in group["params"] for _ in "mv"]
        rng, scratch = torch.Generator(self.device).manual_seed(0), dict[str, Any]()
        batch = random_batch(items, tuple(self.data.shape), self.data.num_classes, rng)
        for turn in self.method.turns:
            networks = self.called.in_turn(turn)
            learning = [p for name in turn.trains for p in self.called.parameters[name]]
            torch.autograd.grad(self.method.loss(turn.name, networks, batch, rng, scratch).loss, learning, allow_unused=True)
        del moments
