"""The interface of a training method: what it is made from, and what it declares to the training loop.

A method owns named networks and declares *turns*: which of its networks train together, how often, with which optimizer. At each
training step the loop takes the turns that are due, in order, and asks the method for their losses.
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
from fewstep.sections import EXACT, MethodSettings, NetworkSettings, Optimizer, Section, section_in
from fewstep.streams import uniform

Networks = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Batch:
    """Real data `x` [B, ...] (images in [-1, 1]), and `label` int64 [B] or None."""

    x: Tensor
    label: Tensor | None = None


@dataclass(frozen=True)
class Ramp:
    """A setting that goes from `start` to `end` over `steps` updates, linearly or, with `log`, geometrically; `end` without `start`."""

    end: float
    start: float | None = None
    steps: int = 0
    log: bool = False

    def __call__(self, update: int) -> float:
        """Return the setting's value at update number `update`, counted from 0."""
        if self.start is None or update >= self.steps:
            return self.end
        progress = update / self.steps
        return self.start * (self.end / self.start) ** progress if self.log else self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Turn:
    """Networks that train together, with one optimizer: at every `every`-th step, from the fraction `begins` of the run up to `ends`.

    Parameters whose name ends in a key of `scales` have the learning rate of `optimizer` times that key's value.
    """

    name: str
    trains: tuple[str, ...]
    optimizer: Optimizer
    every: int = 1
    scales: Mapping[str, float] = field(default_factory=dict)
    begins: float = 0.0
    ends: float = 1.0

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether the turn is taken at `step`, counted from 0, of a run of `steps` steps."""
        first, last = self._between(steps)
        return first <= step < last and step % self.every == 0

    def updates(self, steps: int) -> int:
        """Return how many updates the turn's optimizer makes in a run of `steps` steps."""
        first, last = self._between(steps)
        return -(-last // self.every) + (-first // self.every)

    def _between(self, steps: int) -> tuple[int, int]:
        return round(self.begins * steps), round(self.ends * steps)


class Ratio(NamedTuple):
    """A logged term that is the ratio of two scalar means, which are averaged over devices and batches separately and then divided."""

    over: Tensor
    under: Tensor

    @property
    def value(self) -> Tensor:
        """The ratio `over` / `under`, from the items of this part of the batch alone."""
        return self.over / self.under


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns: `loss`, a scalar with a gradient; `terms`, named scalars or ratios to log; `samples`, generated on the way.

    `samples` [B, ...] and their `label` [B] are for the health check alone; no optimizer sees them.
    """

    loss: Tensor
    terms: Mapping[str, Tensor | Ratio]
    samples: Tensor | None = None
    label: Tensor | None = None


@dataclass(frozen=True)
class Alarm:
    """Raise the alarm `name` when `figure`, a logged term, leaves the range from `low` to `high`.

    `message` says what is seen, with ``{value}`` where the figure goes; `advice` says why, and what to change. `sound` is the figure's
    value in a healthy run. Where it is given, the figure is also compared with its own past: if it has hardly moved since the start of the
    run, `unmoved` is the advice (None: train longer, or raise the learning rate), and if it was better before, `lost` is (None: `advice`).
    In these texts ``{rate}`` stands for the name of the learning-rate setting. A figure whose standard error is known as ``FIGURE_error``
    raises the alarm only where it lies outside the range by two standard errors, and not where it differs by more than that from `chance`,
    the value that chance alone would give, if the alarm says that there is nothing but chance.
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
    chance: float | None = None


@dataclass(frozen=True)
class Given:
    """What a method is made from, besides its own settings.

    Attributes:
        data: the training data.
        network: settings of the network that the recipe names.
        seed, steps, batch_size: the recipe's settings of these names; `steps` is the length of the run.
        teacher: the trained teacher, opened and checked against the data; None where the recipe names none, or the closed form.
        make_generator: called with ``(sampler, denoiser, network=..., **network_arguments)``, makes an untrained generator. Its network is
            the recipe's, or that of the settings `network`; its initial weights depend on the seed alone.
        feature_network: returns the feature network for images of a given name, as in ``trainer.evaluate_features``; "" is the data set's.
        open_generator: opens the generator in a run folder or model folder.

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
    """Return the exact denoiser of `data`, in closed form. Raises ValueError unless the data is a known mixture of Gaussians."""
    if data.mixture is None:
        raise ValueError(
            f"method.teacher is {EXACT!r}, but the data {data.name} is no mixture of Gaussians; name the run folder of a trained one"
        )
    return MixtureDenoiser(*data.mixture)


def hidden_labels(label: Tensor | None, share: float, null: int | None, rng: torch.Generator) -> Tensor | None:
    """Apply label dropout, which classifier-free guidance needs: each entry of `label` [B] becomes `null` with probability `share`."""
    if label is None or not share:
        return label
    dropped = uniform((len(label),), rng) < share
    return label.masked_fill(dropped, null or 0)


class Method(ABC):
    """A training method: its networks, turns and losses.

    The exponential moving average (EMA) follows ``networks[ships]``, and `ship` makes a `Generator` of that network.

    Class attributes:
        Settings: the class of the method's settings, derived from `MethodSettings`.
        ships: name of the network that is saved as the trained model.
        shown: terms that stand below the progress bar, such as "loss", by the part of their logged name after the dot.
        main: the logged term to watch, such as "generator.loss", whose curve stands in the pictures made during training.
        drawn: the curves of the report: headings, and the terms drawn under each; the loop adds gradient norms and health by itself.
        logarithmic: headings of `drawn` whose curves are drawn on a logarithmic scale.
        readings: for each heading of `drawn` a sentence or two that say what is drawn, and which direction is better.
        alarms: alarms of this method, besides the common ones.
        advice: what to do about a common alarm (`fewstep.training.health`), by the alarm's name, in place of the usual advice.
        renamed: for names of logged terms (with their turn) and alarms in runs of older versions, the present name of each.
        rate: name of the setting that is the learning rate of the network `ships`.
        compares_batch: whether a sample's loss depends on the batch's other samples and real items of its class, and with few is noise.
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

    def __init_subclass__(cls, **options: Any) -> None:
        """Name as `rate`, unless the method does, the learning rates of all its optimizers, where none is called ``optimizer``."""
        super().__init_subclass__(**options)
        fields = getattr(cls.Settings, "model_fields", {})
        own = [key for key, entry in fields.items() if issubclass(section_in(entry.annotation) or Section, Optimizer)]
        if own and "optimizer" not in own and cls.rate == Method.rate:
            cls.rate = " or ".join(f"method.{key}.lr" for key in own)

    @classmethod
    @abstractmethod
    def make(cls, settings: Any, given: Given) -> "Method":
        """Make the method, with all its networks, from its `settings` and from what it is `given`.

        Raises ValueError, with one sentence, for settings that do not fit the data or the networks.
        """

    @abstractmethod
    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """Return the loss of `turn` on one batch.

        Call `networks` instead of ``self.networks``, for they may be wrapped for several devices; only the networks of this turn receive
        gradients. `rng` is the only source of randomness: drawn by `fewstep.streams.normal`, `uniform` and `integers`, a row for each item,
        an item's numbers do not depend on the number of devices; drawn by torch's own functions, they differ between devices. `scratch` is
        a dictionary that the turns of one step share, and that is discarded after the step.
        """

    @abstractmethod
    def ship(self, network: nn.Module, step: int) -> Generator:
        """Return the generator to save at `step`: a sampler, and `network`, which has the structure of ``networks[ships]``."""

    @property
    def least_items(self) -> int:
        """The fewest items that a process must have in one forward and backward pass."""
        return 1

    @property
    def needs_whole_batch(self) -> str | None:
        """The reason, a clause, why gradient accumulation (``trainer.accumulate``) is impossible; None where it is possible."""
        return None

    @property
    def divides_run(self) -> bool:
        """Whether a run has parts that learn something else, whose ends would be other steps in a longer run: it is not made longer."""
        return any((turn.begins, turn.ends) != (0.0, 1.0) for turn in self.turns)

    @property
    def best_from(self) -> float:
        """The fraction of the run after which its best model may be chosen, for figures before a schedule has settled are no guide."""
        return 0.0

    @property
    def kept_teacher(self) -> Generator | None:
        """The teacher to save in the run folder, so that the run can be resumed and evaluated beside the teacher; None for no teacher."""
        return None

    @property
    def standing(self) -> dict[str, float]:
        """Figures that are known before the first step, for `alarms`; every log record contains them."""
        return {}

    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (positions, V), both [K, D]: how the method would move samples at the positions, for the pictures made during training.

        `samples` [N, D] are generated, `real` [M, D] real items. The positions are `points` [K, D], or others where the method knows V only
        there; None if it knows V nowhere.
        """
        return None

    def settings_now(self) -> dict[str, float]:
        """Return the present values of the settings that follow a schedule, for logs and pictures."""
        return {}

    def after_update(self, turn: str) -> None:
        """Take note that the optimizer of `turn` has made an update."""

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming a run needs besides the networks and optimizers, as plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that resuming a run needs besides `state_dict`; they must be equal in all processes."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, here on the device of the run."""
