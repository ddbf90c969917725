"""Settings of the diffusion transformer."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import NetworkSettings, NonNegativeInt


class DiTSettings(NetworkSettings):
    """A diffusion transformer with adaLN-zero, DiT."""

    name: Literal["dit"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data in [-1, 1]")
    patch: PositiveInt = Field(4, description="side of a patch in pixels; must divide the sides of the image")
    width: PositiveInt = Field(384, description="channels of each token; must be divisible by heads and by 4")
    depth: PositiveInt = Field(8, description="number of transformer blocks")
    heads: PositiveInt = Field(6, description="number of attention heads; must divide width")
    mlp_ratio: PositiveFloat = Field(4.0, description="hidden width of a block's feed-forward layers, as a multiple of width")
    xi_block: NonNegativeInt = Field(
        0, description="number of blocks before a second noise xi is added; they run once for each item, and not for each particle"
    )
    time_scale: PositiveFloat = Field(1000.0, description="factor of the embedded noise level ln(sigma)/4; smaller is smoother in time")

    items: ClassVar = ("images",)
    takes: ClassVar = frozenset({"xi", "condition"})
