"""Settings of the network "teacher", a copy of the teacher's own network."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from fewstep.sections import NetworkSettings


class CopySettings(NetworkSettings):
    """A copy of the teacher's own network; `sigma_data` must be the value that the teacher was trained with."""

    name: Literal["teacher"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data that the teacher was trained on")

    role: ClassVar = "copy"
