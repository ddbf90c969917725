"""Settings of EDM's own U-Net."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import NetworkSettings, NonNegativeInt, Share


class EDMUNetSettings(NetworkSettings):
    """EDM's own U-Net, DDPM++ or NCSN++, which can load EDM's published weights."""

    name: Literal["edm_unet"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data in [-1, 1]")
    form: Literal["ddpmpp", "ncsnpp"] = Field("ddpmpp", description="architecture: of EDM's VP models, or of its VE models")
    channels: PositiveInt = Field(128, description="width of the first convolution; a multiple of 4")
    multipliers: list[PositiveInt] = Field([2, 2, 2], min_length=1, description="width of each resolution level, in channels")
    blocks: PositiveInt = Field(4, description="residual blocks at each resolution level")
    attention: list[PositiveInt] = Field([16], description="heights of the levels with attention; the bottleneck always has it")
    dropout: Share = Field(0.13, description="share of activations set to 0 in training")
    augment_dim: NonNegativeInt = Field(9, description="inputs that describe augmentation, always 0; the published weights have 9")

    items: ClassVar = ("images",)
    takes: ClassVar = frozenset({"features", "condition"})
