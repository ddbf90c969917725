"""Settings of the diffusion transformer."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import NetworkSettings, NonNegativeInt


class DiTSettings(NetworkSettings):
    """A diffusion transformer."""

    name: Literal["dit"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data in [-1, 1]")
    patch: PositiveInt = Field(4, description="side of a patch; must divide the image")
    width: PositiveInt = Field(384, description="of a token")
    depth: PositiveInt = Field(8, description="blocks")
    heads: PositiveInt = Field(6, description="of the attention; must divide width")
    mlp_ratio: PositiveFloat = Field(4.0, description="hidden width of a block's two layers, over width")
    xi_block: NonNegativeInt = Field(
        0, description="blocks before a second noise xi enters, which run once an item and not once a particle"
    )
    time_scale: PositiveFloat = Field(1000.0, description="the noise level is embedded as time_scale ln(sigma)/4; less is smoother in time")

    items: ClassVar = ("images",)
    takes: ClassVar = frozenset({"xi", "condition"})
