"""What a method declares, and what it is given to make itself from.

A method owns named networks and declares *turns*: which of them train together, how often, with which optimiser. At each
step the loop takes the turns that are due, in order, and asks for their losses.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.data.protocol import Data as Data
from fewstep.denoisers import MixtureDenoiser
from fewstep.generator import Generator
from fewstep.sections import EXACT, MethodSettings, NetworkSettings, Optimizer
from fewstep.streams import uniform

Networks = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Batch:
    """Real data `x` [B, ...] (images in [-1, 1]), and `label` int64 [B] or None."""

    x: Tensor
    label: Tensor | None = None


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
    """Networks that train together: every `every`-th step, from the share `begins` of the run up to `ends`.

    Parameters whose name ends in a key of `scales` learn that many times as fast as `optimizer` says.
    """

    name: str
    trains: tuple[str, ...]
    optimizer: Optimizer
    every: int = 1
    scales: Mapping[str, float] = field(default_factory=dict)
    begins: float = 0.0
    ends: float = 1.0

    def is_due(self, step: int, steps: int) -> bool:
        """Whether it is this turn at `step`, from 0, of a run of `steps`."""
        first, last = self._between(steps)
        return first <= step < last and step % self.every == 0

    def updates(self, steps: int) -> int:
        """How many updates it makes in a run of `steps`."""
        first, last = self._between(steps)
        return -(-last // self.every) + (-first // self.every)

    def _between(self, steps: int) -> tuple[int, int]:
        return round(self.begins * steps), round(self.ends * steps)


class Ratio(NamedTuple):
    """A term to log that is one mean over another, both scalars: over a whole batch, or several, each is averaged by itself."""

    over: Tensor
    under: Tensor

    @property
    def value(self) -> Tensor:
        """Of these items alone."""
        return self.over / self.under


@dataclass(frozen=True)
class LossOutput:
    """`loss`, a scalar with a gradient; `terms`, its named parts and other scalars or ratios to log; `samples`, made on the way.

    `samples` and their `label` are looked at by the health check and never by an optimiser.
    """

    loss: Tensor
    terms: Mapping[str, Tensor | Ratio]
    samples: Tensor | None = None
    label: Tensor | None = None


@dataclass(frozen=True)
class Alarm:
    """Raise the alarm `name` when `figure`, a logged term, leaves the range from `low` to `high`.

    `message` says what is seen, with ``{value}`` where the figure goes; `advice` says why, and what to change. Where `sound`, the value of
    a sound run, is given, the figure is compared with how it began: one that has hardly moved wants a longer run or a higher rate, or what
    `unmoved` says, and `advice` is for one that was better before, unless `lost` is for that. In all of these ``{rate}`` stands for the
    setting of the learning rate. A figure with an error (``FIGURE_error``) has to be out of the range by two of them.
    """

    name: str
    figure: str
    message: str
    advice: str
    low: float = -math.inf
    high: float = math.inf
    sound: float | None = None
    unmoved: str | None = None
    lost: str | None = None


@dataclass(frozen=True)
class Given:
    """What a method makes itself from, beside its own settings.

    Attributes:
        data: the training data.
        network: settings of the network that the recipe names.
        seed, steps, batch_size: of the recipe.
        teacher: the generator that is to teach, opened and held against the data; None where none was asked for, or there is a closed form.
        make_generator: an untrained generator from the recipe's network and ``(sampler, denoiser, network=..., **network_arguments)``; its
            weights depend on the seed alone. `network` takes other settings than the recipe's.
        feature_network: feature networks for images by name, as ``trainer.evaluate_features`` has them; "" is the data's own.
        open_generator: the generator in a run or model folder.

    """

    data: Data
    network: NetworkSettings
    seed: int
    steps: int
    batch_size: int
    teacher: Generator | None
    make_generator: Callable[..., Generator]
    feature_network: Callable[[str], Callable[[Tensor], Tensor]]
    open_generator: Callable[[str], Generator]


def exact_denoiser(data: Data) -> MixtureDenoiser:
    """The closed form of the denoiser of `data`. Raises ValueError for data that is no known mixture."""
    if data.mixture is None:
        raise ValueError(
            f"method.teacher is {EXACT!r}, but the data {data.name} is no mixture of Gaussians; name the run folder of a trained one"
        )
    return MixtureDenoiser(*data.mixture)


def hidden_labels(label: Tensor | None, share: float, null: int | None, rng: torch.Generator) -> Tensor | None:
    """`label` [B] with each entry replaced by the null class `null` with probability `share`: what guidance needs in training."""
    if label is None or not share:
        return label
    dropped = uniform((len(label),), rng) < share
    return label.masked_fill(dropped, null or 0)


class Method(ABC):
    """Networks, turns and losses. `networks[ships]` is what the EMA follows and what `ship` makes a `Generator` of.

    Class attributes:
        Settings: the method's settings, a `MethodSettings` class.
        ships: the name of the network that ships.
        shown: terms that stand below the progress bar, such as "loss", by what comes after the dot of their logged names.
        main: the logged term that a person would look at, such as "generator.loss": a picture's curve.
        drawn: curves of the report, a heading for each family and its terms; the loop's own (gradient norms, health) come by themselves.
        logarithmic: the headings of those that are drawn on a log scale.
        readings: how those are to be read: for each heading a sentence or two that say what is drawn, and which way is better.
        alarms: what is alarming in the method's own terms.
        advice: what to do about a common alarm (`fewstep.training.health`), by its name.
        renamed: names of logged terms (with their turn) and alarms in runs of older versions, each with its name now.
        rate: the setting that is the learning rate of what ships.
        compares_batch: whether a sample learns from where the others of the batch are, and the real ones, so that few teach it chance.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    ships: ClassVar[str]
    shown: ClassVar[tuple[str, ...]] = ("loss",)
    main: ClassVar[str | None] = None
    drawn: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    logarithmic: ClassVar[tuple[str, ...]] = ()
    readings: ClassVar[Mapping[str, str]] = {}
    alarms: ClassVar[tuple[Alarm, ...]] = ()
    advice: ClassVar[Mapping[str, str]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    rate: ClassVar[str] = "method.optimizer.lr"
    compares_batch: ClassVar[bool] = False

    networks: dict[str, nn.Module]
    turns: tuple[Turn, ...]

    @classmethod
    @abstractmethod
    def make(cls, settings: Any, given: Given) -> "Method":
        """The method, with all its networks, from its `settings` and what it is `given`.

        Raises ValueError, one sentence, for settings that do not go with the data or the networks.
        """

    @abstractmethod
    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """The loss of `turn` on one batch.

        `networks` are to be called instead of ``self.networks`` (they may be wrapped for several devices); of these only the
        turn's own can take gradients. `rng` is the only source of chance: what is drawn from it by `fewstep.streams.normal`, `uniform` and
        `integers`, a row an item, is the same for an item on however many devices; by torch's own functions, each device draws its own.
        `scratch` lives for one step and is shared by its turns.
        """

    @abstractmethod
    def ship(self, network: nn.Module, step: int) -> Generator:
        """The generator to save: `network`, weights like ``networks[ships]``, with its sampler."""

    @property
    def least_items(self) -> int:
        """The fewest items that a part of a batch must hold, a part being what one process learns from at once."""
        return 1

    @property
    def needs_whole_batch(self) -> str | None:
        """Why a batch cannot be learned from part by part, one after the other (``trainer.accumulate``); None where it can."""
        return None

    @property
    def best_from(self) -> float:
        """The share of the run from which on its best model may be chosen: what a schedule has not yet settled is no guide."""
        return 0.0

    @property
    def kept_teacher(self) -> Generator | None:
        """A teacher that has to stay in the run folder, so that the run can be resumed and measured beside it; or None."""
        return None

    @property
    def standing(self) -> dict[str, float]:
        """Figures that are known before the first step, for `alarms`; they go into every record."""
        return {}

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

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs besides that, and is too large for plain numbers; the same in all processes."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave, on the device where it was."""
