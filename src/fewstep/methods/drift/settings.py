"""Settings of drift."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import Compared, DataSettings, Fraction, Idle, MethodSettings, NonNegativeInt, Optimizer, UserPath

Warmup = PositiveInt | Annotated[float, Field(gt=0, lt=1)]


class DriftSettings(MethodSettings):
    """Drift: a push-forward generator follows a field between real and generated samples; no teacher."""

    name: Literal["drift"]
    optimizer: Optimizer = Field(default_factory=Optimizer, description="AdamW of the generator")
    field: Literal["strict", "two_temperature", "toy", "drifting", "wasserstein"] = Field(
        "strict", description="definition of the drift field; only strict and two_temperature can take gamma into the field"
    )
    gamma: PositiveFloat = Field(1.0, description="power of the density that the generator aims at, p^gamma")
    gamma_by: Literal["field", "data"] = Field(
        "field", description="how gamma acts: in the drift field, or by reweighting the data, which ends at p^gamma itself"
    )
    gamma_start: PositiveFloat | None = Field(None, description="value from which gamma is ramped; null for no ramp")
    gamma_warmup: Warmup = Field(15_000, description="length of gamma's ramp: a number of steps, or below 1 a fraction of the run")
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)] | Literal["auto"] = Field(
        [0.1], description="temperatures of the kernel, whose fields are added up; auto takes one from the distances within a batch"
    )
    temperature_unit: Literal["one", "distance"] = Field(
        "one",
        description="unit of the temperatures: distance is the mean squared distance of a batch's real items of one class, in the "
        "features that the field acts on, and for a Laplace kernel its root",
    )
    temperature_start: PositiveFloat | Literal["auto"] | None = Field(
        None,
        description="value from which each temperature is ramped; auto is twice the data's total variance (for a Laplace kernel its "
        "root), null no ramp",
    )
    temperature_warmup: Warmup = Field(
        15_000, description="length of the temperatures' ramp: a number of steps, or below 1 a fraction of the run"
    )
    temperature_schedule: Literal["linear", "log"] = Field(
        "linear", description="shape of the temperatures' ramp: by equal differences, or by equal factors"
    )
    temperature_neighbours: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.04,
        description="with temperatures=auto, the rank, as a share of the batch, of the neighbour whose squared distance (for a Laplace "
        "kernel the distance) is the final temperature; choose less than the share of a mode",
    )
    kernel: Literal["gaussian", "laplace"] = Field(
        "gaussian", description="kernel of strict and two_temperature; wasserstein always has the Gaussian one, toy and drifting Laplace's"
    )
    plan: Literal["softmax", "sinkhorn"] = Field(
        "softmax",
        description="how samples are weighted: by softmax, or by transport plans, at about ten times the cost; wasserstein always has "
        "transport plans",
    )
    sinkhorn_iterations: PositiveInt = Field(
        20, description="Sinkhorn iterations of a transport plan; with field=wasserstein the term plan_error says whether they suffice"
    )
    affinity_floor: Fraction = Field(0.0, description="smallest affinity in field=drifting; the released code has 1e-3")
    guidance_scale: Annotated[float, Field(ge=1)] = Field(
        1.0, description="scale of classifier-free guidance with field=drifting, by weighted real negatives; 1 is no guidance"
    )
    features: UserPath = Field(
        "none", description="features that the field acts on: none for the items, random, pooled, evaluator, or a teacher's run folder"
    )
    memory: NonNegativeInt = Field(
        0, description="number of last real samples that attract, where it is more than a batch; checkpoints hold these samples"
    )
    table_scale: PositiveFloat = Field(
        10.0, description="factor on the learning rate of the generator's tables, such as those of a coded latent"
    )

    roles: ClassVar = ("map",)
    draws_power: ClassVar = True
    compared: ClassVar = (Compared("drift"),)
    moved: ClassVar = {
        key: (f"optimizer.{key}",) for key in ("lr", "warmup", "decay", "decay_from", "final", "beta1", "beta2", "weight_decay", "clip")
    }

    def check(self, data: DataSettings, points: bool) -> None:
        """Raise ValueError for ``gamma_by`` "data" on images, whose density would have to be estimated."""
        if self.gamma_by == "data" and not points:
            raise ValueError("method.gamma_by is 'data', which estimates the density of points; with images use 'field'")

    def idle(self) -> tuple[Idle, ...]:
        """Return the settings that others leave without effect."""
        planned = self.plan == "sinkhorn" or self.field == "wasserstein"
        return (
            (self.gamma_start is None, "method.gamma_start is null", ("gamma_warmup",)),
            (self.temperature_start is None, "method.temperature_start is null", ("temperature_warmup", "temperature_schedule")),
            (self.temperatures != "auto", "method.temperatures is not 'auto'", ("temperature_neighbours",)),
            (self.field in ("toy", "drifting"), f"method.field is {self.field!r}, whose kernel is Laplace's", ("kernel",)),
            (not planned, f"method.plan is {self.plan!r}", ("sinkhorn_iterations",)),
        )

    @property
    def aims_at(self) -> float:
        """Gamma: the generator aims at ``p^gamma``."""
        return self.gamma

    @property
    def data_power(self) -> float | None:
        """Gamma, where it acts by reweighting the data; else None."""
        return self.gamma if self.gamma_by == "data" else None
