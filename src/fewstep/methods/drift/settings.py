"""Settings of drift."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import Compared, DataSettings, Fraction, MethodSettings, NonNegativeInt, Optimizer, UserPath

Warmup = PositiveInt | Annotated[float, Field(gt=0, lt=1)]


class DriftSettings(MethodSettings):
    """Drift: a push-forward generator follows a field between real and generated samples; no teacher."""

    name: Literal["drift"]
    optimizer: Optimizer = Field(default_factory=Optimizer, description="AdamW of the generator")
    field: Literal["strict", "two_temperature", "toy", "drifting", "wasserstein"] = Field(
        "strict", description="which definition of the drift; gamma through the field is known to the first two"
    )
    gamma: PositiveFloat = Field(1.0, description="aim at p^gamma")
    gamma_by: Literal["field", "data"] = Field("field", description="data reweights the data, and ends at p^gamma itself")
    gamma_start: PositiveFloat | None = Field(None, description="where gamma begins; null for no ramp")
    gamma_warmup: Warmup = Field(15_000, description="its ramp: a number of steps, or below 1 a fraction of the run")
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)] | Literal["auto"] = Field(
        [0.1], description="of the kernel, fields added up; auto from the distances inside a batch"
    )
    temperature_unit: Literal["one", "distance"] = Field(
        "one",
        description="distance: numbers count in the mean squared distance of a batch's real items of one class, in the features that "
        "the field acts on; for a Laplace kernel in its root",
    )
    temperature_start: PositiveFloat | Literal["auto"] | None = Field(
        None, description="where each temperature begins; auto is twice the data's total variance"
    )
    temperature_warmup: Warmup = Field(15_000, description="its ramp: a number of steps, or below 1 a fraction of the run")
    temperature_schedule: Literal["linear", "log"] = Field(
        "linear", description="how the ramp goes from temperature_start: by equal differences, or by equal factors"
    )
    temperature_neighbours: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.04, description="auto ends at the squared distance to the neighbour of this rank, as a share of the batch; less than a mode holds"
    )
    kernel: Literal["gaussian", "laplace"] = Field(
        "gaussian", description="of strict and two_temperature; wasserstein has the Gaussian one, the others Laplace's"
    )
    plan: Literal["softmax", "sinkhorn"] = Field(
        "softmax", description="sinkhorn: transport plans, at about ten times the cost; wasserstein has them anyway"
    )
    sinkhorn_iterations: PositiveInt = Field(20, description="of a transport plan; plan_error says whether they were enough")
    affinity_floor: Fraction = Field(0.0, description="of field drifting; the released code has 1e-3")
    guidance_scale: PositiveFloat = Field(1.0, description="of field drifting: guidance by weighted negatives")
    features: UserPath = Field("none", description="what the field acts on: none, random, pooled, evaluator, or a teacher's run folder")
    memory: NonNegativeInt = Field(
        0, description="so many of the last real samples attract, where that is more than a batch; forgotten when a run is resumed"
    )
    table_scale: PositiveFloat = Field(
        10.0, description="how many times as fast the tables of a network learn, such as those of a coded latent"
    )

    roles: ClassVar = ("map",)
    draws_power: ClassVar = True
    compared: ClassVar = (Compared("drift"),)
    moved: ClassVar = {
        key: (f"optimizer.{key}",) for key in ("lr", "warmup", "decay", "decay_from", "final", "beta1", "beta2", "weight_decay", "clip")
    }

    def check(self, data: DataSettings, points: bool) -> None:
        """Raise ValueError for images whose density would have to be estimated."""
        if self.gamma_by == "data" and not points:
            raise ValueError("method.gamma_by is 'data', which estimates the density of points; with images use 'field'")

    @property
    def aims_at(self) -> float:
        """Gamma."""
        return self.gamma

    @property
    def data_power(self) -> float | None:
        """Gamma, where it comes about by reweighting the data."""
        return self.gamma if self.gamma_by == "data" else None
