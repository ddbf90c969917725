"""Settings of consistency models."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fewstep.sections import Compared, NonNegativeFloat, SelfTaughtSettings

Levels = list[Annotated[list[PositiveFloat], Field(min_length=1)]]


class ConsistencySettings(SelfTaughtSettings):
    """A consistency model: a denoiser that gives the same sample all along a path of the flow; from a teacher, or from data alone."""

    name: Literal["consistency"]
    solver: Literal["euler", "heun", "none"] = Field(
        "euler", description="how the teacher steps from a level to the next; none: the same noise, the teacher is where the student starts"
    )
    guidance_scale: NonNegativeFloat = Field(1.0, description="classifier-free guidance of the teacher")
    sigma_mean: float = Field(-1.1, description="mean of ln(sigma)")
    sigma_std: PositiveFloat = Field(2.0, description="standard deviation of ln(sigma)")
    sigma_min: PositiveFloat = Field(0.002, description="least noise level, where the student has to give its input back")
    sigma_max: PositiveFloat = Field(80.0, description="levels above are folded back below it")
    distance: Literal["squared", "pseudo_huber"] = Field(
        "squared", description="squared, weighted as EDM's over the gap; or ECT's sqrt(d^2 + c^2) - c, weighted by 1 / (sigma - r)"
    )
    huber_c: PositiveFloat = Field(0.06, description="c of pseudo_huber")
    levels: Levels = Field([[80.0], [80.0, 0.8]], min_length=1, description="noise levels to sample at, a list for each number of steps")
    sampler_steps: PositiveInt = Field(1, description="steps, where sampling names no other number")

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
