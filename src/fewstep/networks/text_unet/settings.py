"""Settings of the U-Net of a text-to-image model, which is named in model folders and not in recipes: it comes with a teacher."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from fewstep.sections import NetworkSettings


class TextUNetSettings(NetworkSettings):
    """diffusers' UNet2DConditionModel as its own config.json describes it."""

    model_config = ConfigDict(extra="allow")

    name: Literal["text_unet"]
    time_ids: list[float] | None = Field(None, description="the six numbers of SDXL's size conditioning; null for other models")

    items: ClassVar = ("images",)
    takes: ClassVar = frozenset({"features"})
