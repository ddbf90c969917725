"""Settings of the transformer of a text-to-image model, which is named in model folders and not in recipes: it comes with a teacher."""

from typing import ClassVar, Literal

from pydantic import ConfigDict

from fewstep.sections import NetworkSettings


class TextTransformerSettings(NetworkSettings):
    """diffusers' SD3Transformer2DModel as its own config.json describes it."""

    model_config = ConfigDict(extra="allow")

    name: Literal["text_transformer"]

    items: ClassVar = ("images",)
    takes: ClassVar = frozenset({"features"})
