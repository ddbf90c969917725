"""Settings of the network that is no network of its own: the teacher's, copied."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from fewstep.sections import NetworkSettings


class CopySettings(NetworkSettings):
    """The teacher's own network, copied; `sigma_data` must be what the teacher was trained for."""

    name: Literal["teacher"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data that the teacher was trained for")

    role: ClassVar = "copy"
