"""What a method declares, and what the training loop may ask of it.

A method owns named networks and declares *turns*: which of them train together, how often, with which optimiser. At each
step the loop takes the turns that are due, in order, and asks for their losses.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.generator import Generator

Networks = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Batch:
    """Real data `x` [B, ...] (images in [-1, 1]), and `label` int64 [B] or None."""

    x: Tensor
    label: Tensor | None = None


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate over a turn's own updates (not steps of the loop).

    `lr` is reached linearly over `warmup` updates, held until the fraction `decay_from` of all updates, then taken to
    ``final * lr``, linearly or along half a cosine. `clip` is the largest gradient norm over the turn's networks; None leaves it
    alone. Parameters whose name ends in a key of `scales` learn that many times as fast.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float | None = 10.0
    warmup: int = 0
    decay_from: float = 1.0
    final: float = 1.0
    cosine: bool = False
    scales: Mapping[str, float] = field(default_factory=dict)

    def lr_at(self, update: int, updates: int) -> float:
        """The learning rate of update number `update` (from 0) out of `updates`."""
        warm = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        start = self.decay_from * updates
        progress = (update - start) / max(1.0, updates - start) if update > start else 0.0
        progress = min(1.0, progress)
        if self.cosine:
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.lr * warm * (1 + progress * (self.final - 1))


@dataclass(frozen=True)
class Ramp:
    """A setting that goes from `start` to `end` over `steps` updates, in a straight line or, with `log`, by equal factors."""

    end: float
    start: float | None = None
    steps: int = 0
    log: bool = False

    def __call__(self, update: int) -> float:
        """Its value at update number `update`, from 0."""
        if self.start is None or update >= self.steps:
            return self.end
        progress = update / self.steps
        return self.start * (self.end / self.start) ** progress if self.log else self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Turn:
    """Networks that train together: every `every`-th step, starting with the first."""

    name: str
    trains: tuple[str, ...]
    optimizer: OptimizerSettings
    every: int = 1


@dataclass(frozen=True)
class LossOutput:
    """`loss`, a scalar with a gradient; `terms`, its named parts and other scalars to log; `samples`, made on the way.

    `samples` and their `label` are looked at by the health check and never by an optimiser.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    samples: Tensor | None = None
    label: Tensor | None = None


def hidden_labels(label: Tensor | None, share: float, null: int | None, rng: torch.Generator) -> Tensor | None:
    """`label` [B] with each entry replaced by the null class `null` with probability `share`: what guidance needs in training."""
    if label is None or not share:
        return label
    dropped = torch.rand(len(label), generator=rng, device=label.device) < share
    return label.masked_fill(dropped, null or 0)


class Method(ABC):
    """Networks, turns and losses. `networks[ships]` is what the EMA follows and what `ship` makes a `Generator` of."""

    networks: dict[str, nn.Module]
    turns: tuple[Turn, ...]
    ships: str
    advice: ClassVar[Mapping[str, str]] = {}  # what to do about an alarm (`fewstep.training.health`), where it is not the usual

    @abstractmethod
    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """The loss of `turn` on one batch.

        `networks` are to be called instead of ``self.networks`` (they may be wrapped for several devices); of these only the
        turn's own can take gradients. `rng` is the only source of chance. `scratch` lives for one step and is shared by its
        turns.
        """

    @abstractmethod
    def ship(self, network: nn.Module, step: int) -> Generator:
        """The generator to save: `network`, weights like ``networks[ships]``, with its sampler."""

    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
        """(where, V): how the method would move samples that lie at `points` [M, D], given generated `samples` and `real` ones.

        A method that knows it elsewhere only says where; None if it cannot say. For pictures.
        """
        return None

    def settings_now(self) -> dict[str, float]:
        """Scheduled settings as they stand, for logs and pictures."""
        return {}

    def after_update(self, turn: str) -> None:
        """`turn`'s optimiser has taken a step."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides networks and optimisers: plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
