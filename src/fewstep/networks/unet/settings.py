"""Settings of the image U-Net, as a denoiser's network and as a map from noise."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import NetworkSettings, Share


class UNetSettings(NetworkSettings):
    """A U-Net of images, diffusers' UNet2DModel."""

    name: Literal["unet"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data in [-1, 1]")
    channels: list[PositiveInt] = Field([64, 128, 256, 512], min_length=1, description="width of each resolution level")
    attention: list[bool] | None = Field(None, description="whether each level has attention; null for the bottleneck only")
    layers_per_block: PositiveInt = Field(1, description="residual layers at each resolution level")
    groups: PositiveInt = Field(32, description="groups of each GroupNorm")
    head_dim: PositiveInt = Field(64, description="channels of an attention head")
    dropout: Share = Field(0.0, description="share of activations set to 0 in training")
    patch: PositiveInt = Field(
        1, description="side of the pixel squares that the network takes as one position; 2 costs a quarter; an export to diffusers needs 1"
    )
    time_scale: PositiveFloat = Field(
        1000.0, description="the timestep is time_scale ln(sigma)/4; a smaller one is smoother in time; an export to diffusers needs 1000"
    )
    attention_norm: bool = Field(
        False,
        description="normalise the features before the bottleneck's attention; advisable for every new network, because without it the "
        "attention's logits can grow until the gradient overflows; false is how networks were made before this setting",
    )

    items: ClassVar = ("images",)
    takes: ClassVar = frozenset({"xi", "features", "condition"})


class LatentUNetSettings(UNetSettings):
    """The U-Net of the network "unet" as a map from noise of the data's shape to data, for drift on images."""

    name: Literal["latent_unet"]  # type: ignore[assignment]

    role: ClassVar = "map"
    takes: ClassVar = frozenset()
