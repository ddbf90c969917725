"""What the sections of a recipe are made of: strict typed settings, and what each kind of room declares beside them.

Nothing here imports torch: a recipe is validated before anything heavy is.
"""

import inspect
import math
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    PydanticUserError,
    create_model,
    model_validator,
)

from fewstep.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

# a file or folder as the user names it, of which "~" is the home folder; or another name, which does not begin so
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]  # of what must not be all
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]

Role = Literal["denoiser", "map", "copy"]
"""What a network is for: ``F(x, c_noise, label)``, a map from noise ``G(z, label)``, or a copy of the teacher's own."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, and no value is bent to fit."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Grid(Section):
    """The Karras grid of noise levels that a method trains on."""

    num_train_timesteps: PositiveInt = Field(1000, description="levels of the grid")
    sigma_min: PositiveFloat = Field(0.002, description="least noise level of the grid, in the units of the data")
    sigma_max: PositiveFloat = Field(80.0, description="largest noise level of the grid, in the units of the data")
    rho: PositiveFloat = Field(7.0, description="power of the grid; a larger one puts more of its levels near sigma_min")

    @model_validator(mode="after")
    def _ordered(self) -> "Grid":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class Optimizer(Section):
    """AdamW and its learning rate over a turn's own updates (not steps of the loop).

    `lr` is reached linearly over `warmup` updates, held until the fraction `decay_from` of all updates, then taken to ``final * lr``.
    """

    lr: PositiveFloat = Field(1e-3, description="learning rate, after the warm-up and before the fall")
    warmup: NonNegativeInt = Field(0, description="updates over which the learning rate rises")
    decay_from: Fraction = Field(1.0, description="fraction of the updates after which it falls")
    final: Fraction = Field(1.0, description="what it falls to, as a fraction of lr")
    decay: Literal["linear", "cosine"] = Field("linear", description="along a straight line, or half a cosine")
    beta1: Share = Field(0.9, description="AdamW's decay of the mean gradient")
    beta2: Share = Field(0.99, description="AdamW's decay of the mean squared gradient")
    weight_decay: NonNegativeFloat = Field(0.01, description="AdamW's weight decay: an update takes lr times this share off each weight")
    clip: PositiveFloat | None = Field(10.0, description="largest gradient norm; null for no clipping")

    def lr_at(self, update: int, updates: int) -> float:
        """The learning rate of update number `update` (from 0) out of `updates`."""
        warm = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        start = self.decay_from * updates
        progress = (update - start) / max(1.0, updates - start) if update > start else 0.0
        progress = min(1.0, progress)
        if self.decay == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.lr * warm * (1 + progress * (self.final - 1))


class DenoiserOptimizer(Optimizer):
    """AdamW of a denoiser that learns from data: a short rise, and a fall over the last three fifths of the run."""

    warmup: NonNegativeInt = Field(50, description="updates over which the learning rate rises")
    decay_from: Fraction = Field(0.4, description="fraction of the updates after which it falls")
    final: Fraction = Field(0.02, description="what it falls to, as a fraction of lr")


@dataclass(frozen=True)
class Compared:
    """A method as it stands in a comparison.

    Attributes:
        title: what it is called there.
        overrides: what differs from its recipe for the data.
        taught: whether it is given a run that teaches, made from the same data.
        items: of what it stands in one, "images" or "points".
        needs_mixture: whether it only goes with a mixture of Gaussians, whose closed form it knows.
        costs: how many times as long its recipe runs.
        one_step: whether its samples at one step are worth a picture, where it is no few-step generator.

    """

    title: str
    overrides: tuple[str, ...] = ()
    taught: bool = False
    items: tuple[str, ...] = ("images", "points")
    needs_mixture: bool = False
    costs: Callable[[Any], int] = lambda settings: 1
    one_step: bool = True


class MethodSettings(Section):
    """The settings of a method; derive your own from it. A recipe's section ``method`` is one of these.

    Class attributes, each with a default that will do for a first method:
        roles: which networks its own may be (`Role`).
        needs: what those have to take beside ``(x, c_noise, label)``, such as "xi" (see `NetworkSettings.takes`).
        teaches: whether what it ships denoises at every noise level, and so can teach.
        draws_power: whether a setting ``gamma`` makes it aim at ``p^gamma``.
        compared: how it stands in ``fewstep compare``; empty where it does not.
        moved: keys of older recipes, and where they are now.
    """

    name: str
    ema_decay: Fraction = Field(0.9999, description="largest decay of the weight average")
    ema_warmup: NonNegativeFloat = Field(20.0, description="the decay at update u is min(ema_decay, u / (u + ema_warmup))")

    roles: ClassVar[tuple[Role, ...]] = ("denoiser",)
    needs: ClassVar[frozenset[str]] = frozenset()
    teaches: ClassVar[bool] = False
    draws_power: ClassVar[bool] = False
    compared: ClassVar[tuple[Compared, ...]] = ()
    moved: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def roles_on(self, points: bool) -> tuple[Role, ...]:
        """The roles of networks that are allowed on points, or on images."""
        return self.roles

    def check(self, data: "DataSettings", points: bool) -> None:
        """Raise ValueError for a recipe's other sections that do not go with these settings; the message is a whole sentence."""

    @property
    def teacher_path(self) -> str | None:
        """The generator that is to teach, a run folder, a model folder or a Hub id; None where none is given."""
        return getattr(self, "teacher", None)

    @property
    def taught(self) -> bool:
        """Whether a trained teacher has to be opened before the method can be made."""
        return self.teacher_path is not None

    @property
    def needs_items(self) -> bool:
        """Whether it learns from items of the data, and not from their labels alone."""
        return True

    @property
    def asked_levels(self) -> dict[str, float]:
        """Noise levels that a teacher is asked at, each by its setting, which it has to know."""
        return {key: getattr(self, key) for key in ("sigma_max", "conditioning_sigma") if hasattr(self, key)}

    def other_teachers(self, mixture: bool) -> str:
        """What can be said where a teacher is missing, such as ``, or ...``; `mixture`: whether the data is a mixture of Gaussians."""
        return ""

    @property
    def aims_at(self) -> float:
        """The gamma of ``p^gamma`` that points are to come out as."""
        return 1.0

    @property
    def data_power(self) -> float | None:
        """The power of their own density that points are reweighted to before training; None for points as they are."""
        return None


EXACT = "exact"  # the teacher that is a closed form


class TaughtSettings(MethodSettings):
    """The settings of a method that a teacher may teach: a trained one, or the closed form of a mixture of Gaussians."""

    teacher: UserPath | None = Field(None, description="run folder, model folder or Hub id; or exact, the closed form of toy mixtures")

    @property
    def exact(self) -> bool:
        """Whether the teacher is the closed form of a mixture."""
        return self.teacher == EXACT

    @property
    def taught(self) -> bool:
        """Whether a trained teacher has to be opened."""
        return self.teacher is not None and not self.exact

    def other_teachers(self, mixture: bool) -> str:
        """The closed form, of a mixture."""
        return f", or method.teacher={EXACT} for the closed form" if mixture else ""

    def check(self, data: "DataSettings", points: bool) -> None:
        """Raise ValueError for a closed form that the data has not."""
        if self.exact and not getattr(data, "density", None):
            raise ValueError(f"method.teacher is {EXACT!r}, which only data toy has; name the run folder of a trained one")


class OwnOptimizer(DenoiserOptimizer):
    """AdamW of a teacher of one's own."""

    lr: PositiveFloat = Field(2e-3, description="learning rate, after the warm-up and before the fall")


class StudentOptimizer(Optimizer):
    """AdamW of a student: half a cosine over the whole of its part of the run."""

    lr: PositiveFloat = Field(1e-3, description="learning rate, after the warm-up and before the fall")
    warmup: NonNegativeInt = Field(20, description="updates over which the learning rate rises")
    decay_from: Fraction = Field(0.0, description="fraction of the updates after which it falls")
    final: Fraction = Field(0.0, description="what it falls to, as a fraction of lr")
    decay: Literal["linear", "cosine"] = Field("cosine", description="along a straight line, or half a cosine")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW's weight decay: an update takes lr times this share off each weight")


class SelfTaughtSettings(TaughtSettings):
    """The settings of a method whose student may first learn a teacher of its own, and then goes through stages."""

    optimizer: StudentOptimizer = Field(default_factory=StudentOptimizer, description="AdamW of the student")
    own_teacher: Share = Field(0.0, description="share of the run in which a teacher of its own learns to denoise, where none is given")
    own_optimizer: OwnOptimizer = Field(default_factory=OwnOptimizer, description="AdamW of the teacher of its own")
    own_sigma_mean: float = Field(-1.2, description="mean of ln(sigma) that it learns at")
    own_sigma_std: PositiveFloat = Field(1.2, description="standard deviation of ln(sigma) that it learns at")
    stages: PositiveInt = Field(6, description="of equal length; each halves the gap between a noise level and the next")
    first_stage: NonNegativeInt = Field(0, description="0 begins with denoising, which a student that starts from a teacher knows already")
    gap_k: NonNegativeFloat = Field(8.0, description="the gap is (1 + gap_k sigmoid(-gap_b sigma)) / 2^stage, at most 1")
    gap_b: NonNegativeFloat = Field(1.0, description="how fast the gap narrows as the noise level rises; see gap_k")
    label_dropout: Share = Field(0.0, description="share of labels hidden, which guidance needs")

    @model_validator(mode="after")
    def _one_teacher(self) -> "SelfTaughtSettings":
        if self.own_teacher and self.teacher is not None:
            raise ValueError(
                f"own_teacher is {self.own_teacher}, but teacher is {self.teacher!r}; set own_teacher to 0, or give no teacher"
            )
        return self


class NetworkSettings(Section):
    """The settings of a network; derive your own from it, or let the constructor's annotated arguments stand for them.

    Class attributes:
        role: what it is for, see `Role`.
        items: the data it can be of, of "images" and "points".
        takes: what it can be given beside ``(x, c_noise, label)``: "xi", "condition", "features" (see `fewstep.networks`).
    """

    name: str
    sigma_data: PositiveFloat | None = Field(None, description="standard deviation of the data; null measures it")

    role: ClassVar[Role] = "denoiser"
    items: ClassVar[tuple[str, ...]] = ("images", "points")
    takes: ClassVar[frozenset[str]] = frozenset()

    def arguments(self) -> dict[str, Any]:
        """What the network's class is made with, beside the data's shape and classes: ``name`` first."""
        return self.model_dump(exclude={"sigma_data"})


class DataSettings(Section):
    """The settings of a data set; derive your own from it, or let the constructor's annotated arguments stand for them.

    Class attributes:
        points: whether its items are points [D]; None where that is not known before it is opened.
    """

    name: str

    points: ClassVar[bool | None] = None

    _recorded_units: dict[str, Any] | None = PrivateAttr(None)

    @property
    def recorded_units(self) -> dict[str, Any] | None:
        """The units of points in the run that is gone on with; empty where it has none, None where there is no such run."""
        return self._recorded_units

    def with_units(self, units: Mapping[str, Any]) -> "Self":
        """These settings, for the run whose model was trained in `units`."""
        made = self.model_copy()
        made._recorded_units = dict(units)
        return made

    def arguments(self) -> dict[str, Any]:
        """What the data set is made with."""
        return self.model_dump(exclude={"name"})

    def around(self) -> dict[str, Any]:
        """What is to be done with the data set that was made, as far as the recipe says; see `OwnData`."""
        return {}


class OwnData(DataSettings):
    """What a recipe can say of a data set of one's own, beside the arguments that it is made with.

    Where the data set takes an argument of such a name itself, it is given that, and the key does not mean what it means here.
    """

    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="fraction of the items held out, where there is no held-out part; null for 0.1"
    )
    heldout: dict[str, Any] | None = Field(
        None, description="arguments that give the held-out part, such as {split: test}; null where there is none"
    )
    heldout_items: PositiveInt | None = Field(None, description="of an iterable: items held out; null for 2,000")
    num_classes: NonNegativeInt | None = Field(None, description="0 leaves labels alone; null finds the classes")
    buffer: PositiveInt | None = Field(None, description="of an iterable: items shuffled together; null for 1,000")
    standardize: bool | None = Field(
        None,
        description="of points: learn each column about its mean, in standard deviations, and draw in the data's units; null for true",
    )

    its_own: ClassVar[frozenset[str]] = frozenset()  # keys that the data set takes itself

    def arguments(self) -> dict[str, Any]:
        """What the data set is made with."""
        return self.model_dump(exclude={"name", *(OwnData.model_fields.keys() - self.its_own)})

    def around(self) -> dict[str, Any]:
        """What the recipe says of the keys above."""
        keys = OwnData.model_fields.keys() - self.its_own - {"name"}
        return {key: getattr(self, key) for key in sorted(keys) if getattr(self, key) is not None}


GIVEN = ("self", "shape", "num_classes", "seed", "xi_channels", "condition")  # arguments that whoever makes a room gives


def section_from_signature(room: Callable[..., Any], base: type[Section], name: str) -> type[Section]:
    """The settings that the annotated arguments of `room` stand for, as a class derived from `base`.

    Raises UserError for an argument without an annotation, or of a type that no recipe can hold.
    """
    try:
        parameters = inspect.signature(room).parameters.values()
        made_by: Any = getattr(room, "__init__") if isinstance(room, type) else room  # noqa: B009 - a class's own
        hints = typing.get_type_hints(made_by, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise UserError(f"{name!r}: its arguments cannot be read ({error}); give it a class Settings beside it") from error
    given = ("self", "seed") if issubclass(base, DataSettings) else GIVEN
    fields: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in hints:
            raise UserError(f"{name!r}: its argument {parameter.name!r} has no type; annotate it, or give the class a Settings of its own")
        fields[parameter.name] = (hints[parameter.name], ... if parameter.default is parameter.empty else parameter.default)
    attributes = {key: getattr(room, key) for key in ("role", "items", "takes", "points") if hasattr(room, key)}
    try:
        made = create_model(f"{getattr(room, '__name__', 'Own')}Settings", __base__=base, **fields)
    except (PydanticUserError, NameError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name!r}: its arguments make no settings ({reason}); give it a class Settings beside it") from error
    if issubclass(made, OwnData):
        attributes["its_own"] = frozenset(fields)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made
