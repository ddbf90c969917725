"""Settings of consistency models."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fewstep.methods.self_taught_settings import SelfTaughtSettings
from fewstep.sections import Compared, Idle, NonNegativeFloat

Levels = list[Annotated[list[PositiveFloat], Field(min_length=1)]]


class ConsistencySettings(SelfTaughtSettings):
    """A consistency model: a denoiser that gives the same sample all along a path of the probability flow; with or without a teacher."""

    name: Literal["consistency"]
    solver: Literal["euler", "heun", "none"] = Field(
        "euler",
        description="ODE solver of the teacher's step from a noise level to the next; none uses the same noise at both levels, and the "
        "teacher's weights only as the student's start",
    )
    guidance_scale: NonNegativeFloat = Field(1.0, description="scale of the teacher's classifier-free guidance; 1 is no guidance")
    sigma_mean: float = Field(-1.1, description="mean of ln(sigma) of the noise levels in training")
    sigma_std: PositiveFloat = Field(2.0, description="standard deviation of ln(sigma) of the noise levels in training")
    sigma_min: PositiveFloat = Field(0.002, description="smallest noise level in training")
    sigma_max: PositiveFloat = Field(80.0, description="largest noise level in training; draws above are folded back below it")
    distance: Literal["squared", "pseudo_huber"] = Field(
        "squared",
        description="distance d of two outputs in the loss: squared is d^2 with EDM's weight over the gap; pseudo_huber is ECT's "
        "sqrt(d^2 + c^2) - c, weighted by 1 / (sigma - r)",
    )
    huber_c: PositiveFloat = Field(0.06, description="c of distance=pseudo_huber")
    levels: Levels = Field(
        [[80.0], [80.0, 0.8]], min_length=1, description="noise levels of sampling, descending: a list for each number of steps"
    )
    sampler_steps: PositiveInt = Field(1, description="number of sampling steps, unless sampling names another")

    roles: ClassVar = ("denoiser", "copy")
    compared: ClassVar = (Compared("consistency"),)

    @model_validator(mode="after")
    def _ordered(self) -> "ConsistencySettings":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        for row in self.levels:
            if not all(a > b for a, b in pairwise(row)) or row[0] > self.sigma_max:
                raise ValueError(f"levels hold {row}; each list must fall, from sigma_max {self.sigma_max} at most")
        counts = [len(row) for row in self.levels]
        if len(set(counts)) < len(counts) or self.sampler_steps not in counts:
            raise ValueError(f"levels are for {counts} steps; give one list for each number of steps, and one of {self.sampler_steps}")
        return self

    def idle(self) -> tuple[Idle, ...]:
        """Return the settings that others leave without effect."""
        return (*super().idle(), (self.distance != "pseudo_huber", f"method.distance is {self.distance!r}", ("huber_c",)))
