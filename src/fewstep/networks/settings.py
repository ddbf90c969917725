"""Settings of the network that is no network of its own: the teacher's, copied."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat

from fewstep.sections import NetworkSettings


class CopySettings(NetworkSettings):
    """The teacher's own network, copied; `sigma_data` must be what the teacher was trained for."""

    name: Literal["teacher"]
    sigma_data: PositiveFloat = 0.5

    role: ClassVar = "copy"
