"""Settings of the U-Net of a text-to-image model, which model folders name and recipes do not: it comes with a teacher."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from fewstep.sections import NetworkSettings


class TextUNetSettings(NetworkSettings):
    """diffusers' UNet2DConditionModel as its own config.json describes it."""

    model_config = ConfigDict(extra="allow")

    name: Literal["text_unet"]
    time_ids: list[float] | None = Field(None, description="what SDXL is told of sizes; null for models that are told none")

    items: ClassVar = ("images",)
    takes: ClassVar = frozenset({"features"})
