"""Base classes of a recipe's sections: strict typed settings, and what each kind of method, network and data set declares beside them.

Nothing here imports torch, so that a recipe is validated before slow imports.
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

# a file or folder named by the user, with "~" replaced by the home folder; or a name of another kind, which stays as it is
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]  # a fraction that must be less than the whole
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]

Idle = tuple[bool, str, tuple[str, ...]]
"""Settings that others leave without effect: whether they do now; why, a clause with whole keys; and the keys of these settings."""

Role = Literal["denoiser", "map", "copy"]
"""Role of a network: in a denoiser, as ``F(x, c_noise, label)``; a map from noise, ``G(z, label)``; or a copy of the teacher's network."""


class Section(BaseModel):
    """A section of a recipe. Unknown keys are errors, and values of a wrong type are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section class that a field of this type holds; None where it holds a plain value.

    A list[int] is a type to Python 3.10, and no class.
    """
    kinds = (kind for kind in (annotation, *typing.get_args(annotation)) if typing.get_origin(kind) is None)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


class Grid(Section):
    """The Karras grid of noise levels that a method trains on."""

    num_train_timesteps: PositiveInt = Field(1000, description="number of noise levels in the grid")
    sigma_min: PositiveFloat = Field(0.002, description="smallest noise level of the grid, in the units of the data")
    sigma_max: PositiveFloat = Field(80.0, description="largest noise level of the grid, in the units of the data")
    rho: PositiveFloat = Field(7.0, description="exponent of the Karras grid; a larger one puts more noise levels near sigma_min")

    @model_validator(mode="after")
    def _ordered(self) -> "Grid":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class Optimizer(Section):
    """AdamW with its learning-rate schedule, counted in a turn's own updates (not in steps of the training loop).

    The rate rises linearly to `lr` over `warmup` updates, is held until the fraction `decay_from` of all updates, and then decays to
    ``final * lr``.
    """

    lr: PositiveFloat = Field(1e-3, description="learning rate between warm-up and decay")
    warmup: NonNegativeInt = Field(0, description="updates of the learning-rate warm-up, in which it rises linearly to lr")
    decay_from: Fraction = Field(1.0, description="fraction of all updates after which the learning rate decays")
    final: Fraction = Field(1.0, description="learning rate at the end of its decay, as a fraction of lr")
    decay: Literal["linear", "cosine"] = Field("linear", description="shape of the learning-rate decay: linear, or half a cosine")
    beta1: Share = Field(0.9, description="AdamW's decay of the running mean of the gradient")
    beta2: Share = Field(0.99, description="AdamW's decay of the running mean of the squared gradient")
    weight_decay: NonNegativeFloat = Field(0.01, description="AdamW's weight decay: each update reduces each weight by lr times this share")
    clip: PositiveFloat | None = Field(10.0, description="largest norm of the gradient, above which it is scaled down; null for no limit")

    def lr_at(self, update: int, updates: int) -> float:
        """Return the learning rate of update number `update`, from 0, of a run of `updates` updates."""
        warm = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        start = self.decay_from * updates
        progress = (update - start) / max(1.0, updates - start) if update > start else 0.0
        progress = min(1.0, progress)
        if self.decay == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.lr * warm * (1 + progress * (self.final - 1))


class DenoiserOptimizer(Optimizer):
    """AdamW for a denoiser that learns from data: a short warm-up, and a decay over the last three fifths of the updates."""

    warmup: NonNegativeInt = Field(50, description="updates of the learning-rate warm-up, in which it rises linearly to lr")
    decay_from: Fraction = Field(0.4, description="fraction of all updates after which the learning rate decays")
    final: Fraction = Field(0.02, description="learning rate at the end of its decay, as a fraction of lr")


@dataclass(frozen=True)
class Compared:
    """How a method takes part in ``fewstep compare``.

    Attributes:
        title: name of the method in tables and plots.
        overrides: settings in which it differs from its recipe for the data, as ``key=value``.
        taught: whether it is given a teacher that was trained on the same data.
        items: the kinds of data on which it takes part, "images" and "points".
        needs_mixture: whether it needs a mixture of Gaussians, whose denoiser has a closed form.
        costs: function of the method's settings that returns a factor on its recipe's number of steps.
        one_step: whether its samples at one step are shown in the picture; False for methods that need several steps.

    """

    title: str
    overrides: tuple[str, ...] = ()
    taught: bool = False
    items: tuple[str, ...] = ("images", "points")
    needs_mixture: bool = False
    costs: Callable[[Any], int] = lambda settings: 1
    one_step: bool = True


class MethodSettings(Section):
    """The settings of a method, a recipe's section ``method``; derive those of your own method from this class.

    Class attributes, whose defaults are enough for a first method:
        roles: the roles that the recipe's network may have (`Role`).
        needs: inputs that the network must take beside ``(x, c_noise, label)``, such as "xi" (see `NetworkSettings.takes`).
        teaches: whether the generator it ships denoises at every noise level, and so can be a teacher.
        draws_power: whether it has a setting ``gamma`` for learning ``p^gamma``, a power of the data's density.
        compared: how it takes part in ``fewstep compare``; if empty, by its name and the defaults of `Compared`.
        moved: keys of older recipes, each with the keys that replace it.
    """

    name: str
    ema_decay: Fraction = Field(0.9999, description="largest decay of the exponential moving average of the weights (EMA)")
    ema_warmup: NonNegativeFloat = Field(
        20.0, description="warm-up of the weights' EMA: its decay at update u is min(ema_decay, u / (u + ema_warmup))"
    )

    roles: ClassVar[tuple[Role, ...]] = ("denoiser",)
    needs: ClassVar[frozenset[str]] = frozenset()
    teaches: ClassVar[bool] = False
    draws_power: ClassVar[bool] = False
    compared: ClassVar[tuple[Compared, ...]] = ()
    moved: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def roles_on(self, points: bool) -> tuple[Role, ...]:
        """Return the roles that the network may have, with data of points or else of images."""
        return self.roles

    def check(self, data: "DataSettings", points: bool) -> None:
        """Raise ValueError where the recipe's `data` section, of `points` or else images, does not fit these settings.

        The message is a whole sentence.
        """

    @property
    def teacher_path(self) -> str | None:
        """Run folder, model folder or Hub id of the teacher; None without a teacher."""
        return getattr(self, "teacher", None)

    @property
    def taught(self) -> bool:
        """Whether a trained teacher must be loaded before the method can be made."""
        return self.teacher_path is not None

    @property
    def needs_items(self) -> bool:
        """Whether the method learns from items of the data, and not from labels (or prompts) alone."""
        return True

    def idle(self) -> tuple[Idle, ...]:
        """Return the settings that others leave without effect; a run says so of each whose value is not its default."""
        return ()

    @property
    def asked_levels(self) -> dict[str, float]:
        """Noise levels at which the teacher is evaluated, by the name of their setting; its range of noise levels must include them."""
        return {key: getattr(self, key) for key in ("sigma_max", "conditioning_sigma") if hasattr(self, key)}

    def other_teachers(self, mixture: bool) -> str:
        """Return an ending such as ``, or ...`` for the message about a missing teacher; `mixture`: whether the data is such a density."""
        return ""

    @property
    def aims_at(self) -> float:
        """The gamma of ``p^gamma``, the power of the data's density that generated points should have."""
        return 1.0

    @property
    def data_power(self) -> float | None:
        """The power of the data's density to which points are reweighted before training; None for no reweighting."""
        return None


EXACT = "exact"  # value of method.teacher for the closed-form denoiser of a mixture


class TaughtSettings(MethodSettings):
    """The settings of a method that can have a teacher: a trained one, or the closed-form denoiser of a mixture of Gaussians."""

    teacher: UserPath | None = Field(
        None, description="run folder, model folder or Hub id of the teacher; or exact, the closed-form denoiser of toy mixtures"
    )

    @property
    def exact(self) -> bool:
        """Whether the teacher is the closed-form denoiser of a mixture."""
        return self.teacher == EXACT

    @property
    def taught(self) -> bool:
        """Whether a trained teacher must be loaded."""
        return self.teacher is not None and not self.exact

    def other_teachers(self, mixture: bool) -> str:
        """Return, for a `mixture`, the advice to take its closed-form denoiser as the teacher; else ""."""
        return f", or method.teacher={EXACT} for the closed form" if mixture else ""

    def check(self, data: "DataSettings", points: bool) -> None:
        """Raise ValueError where the teacher is "exact" and the data has no known density."""
        if self.exact and not getattr(data, "density", None):
            raise ValueError(f"method.teacher is {EXACT!r}, which only data toy has; name the run folder of a trained one")


class NetworkSettings(Section):
    """The settings of a network; derive those of your own from this class, or have them made from its constructor's annotated arguments.

    Class attributes:
        role: what the network is for, see `Role`.
        items: the kinds of data that it can be used for, "images" and "points".
        takes: inputs that it can take beside ``(x, c_noise, label)``: "xi", "condition", "features" (see `fewstep.networks`).
    """

    name: str
    sigma_data: PositiveFloat | None = Field(None, description="standard deviation of the data; null measures it on the training data")

    role: ClassVar[Role] = "denoiser"
    items: ClassVar[tuple[str, ...]] = ("images", "points")
    takes: ClassVar[frozenset[str]] = frozenset()

    def arguments(self) -> dict[str, Any]:
        """Return the ``name`` of the network and its arguments beside the shape and number of classes, as values that JSON can hold."""
        return self.model_dump(mode="json", exclude={"sigma_data"})


class DataSettings(Section):
    """The settings of a data set; derive those of your own from this class, or have them made from its constructor's annotated arguments.

    Class attributes:
        points: whether its items are points [D]; None where that is not known before the data set is loaded.
    """

    name: str

    points: ClassVar[bool | None] = None

    _recorded_units: dict[str, Any] | None = PrivateAttr(None)

    @property
    def recorded_units(self) -> dict[str, Any] | None:
        """Location and scale of each column of points in the resumed run; empty if it has none, None if no run is resumed."""
        return self._recorded_units

    def with_units(self, units: Mapping[str, Any]) -> "Self":
        """Return these settings for resuming a run whose model was trained in `units`."""
        made = self.model_copy()
        made._recorded_units = dict(units)
        return made

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that the data set's class or function gets."""
        return self.model_dump(exclude={"name"})

    def around(self) -> dict[str, Any]:
        """Return the settings that are applied to the data set after it was made, such as its held-out share; see `OwnData`."""
        return {}


class OwnData(DataSettings):
    """The settings of a user's own data set, beside the arguments that it is made with.

    If the data set's class or function has an argument with the name of one of these keys, it gets the value, and the key does not have the
    meaning described here.
    """

    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="fraction of the items that is held out, if heldout gives no held-out split; null for 0.1"
    )
    heldout: dict[str, Any] | None = Field(
        None, description="arguments that make the data set return its held-out split, such as {split: test}; null if it has none"
    )
    heldout_items: PositiveInt | None = Field(None, description="for iterable data sets: number of held-out items; null for 2,000")
    num_classes: NonNegativeInt | None = Field(None, description="number of classes; 0 ignores labels, null finds it in the data")
    buffer: PositiveInt | None = Field(None, description="for iterable data sets: items in the shuffle buffer; null for 1,000")
    standardize: bool | None = Field(
        None,
        description="for points: train on columns of mean 0 and standard deviation 1, and sample in the data's units; null for true",
    )

    its_own: ClassVar[frozenset[str]] = frozenset()  # keys that are arguments of the data set itself

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that the data set's class or function gets."""
        return self.model_dump(exclude={"name", *(OwnData.model_fields.keys() - self.its_own)})

    def around(self) -> dict[str, Any]:
        """Return those of the keys above that the recipe sets, without arguments of the data set itself."""
        keys = OwnData.model_fields.keys() - self.its_own - {"name"}
        return {key: getattr(self, key) for key in sorted(keys) if getattr(self, key) is not None}


GIVEN = (
    "self",
    "shape",
    "num_classes",
    "seed",
    "xi_channels",
    "condition",
)  # arguments that are not settings, as fewstep passes them itself


def section_from_signature(room: Callable[..., Any], base: type[Section], name: str) -> type[Section]:
    """Return a settings class derived from `base`, with a field for each annotated argument of `room`; `name` is for messages.

    Raises UserError for an argument without an annotation, or of a type that a recipe cannot hold.
    """
    try:
        parameters = inspect.signature(room).parameters.values()
        made_by: Any = getattr(room, "__init__") if isinstance(room, type) else room  # noqa: B009 - a class's own __init__
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
