"""Settings of a U-Net trained elsewhere, which is named in model folders and not in recipes: it comes with a teacher."""

from typing import ClassVar, Literal

from pydantic import ConfigDict

from fewstep.sections import NetworkSettings


class UNet2DSettings(NetworkSettings):
    """diffusers' UNet2DModel as its own config.json describes it."""

    model_config = ConfigDict(extra="allow")

    name: Literal["unet2d"]

    items: ClassVar = ("images",)
    takes: ClassVar = frozenset({"features"})
