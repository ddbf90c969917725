"""Settings that methods share whose generators are sampled with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from fewstep.errors import UserError
from fewstep.sections import MethodSettings, NonNegativeFloat, Share


class GuidedSettings(MethodSettings):
    """The settings of a method that learns data by itself, with labels and without, and whose samples may be guided."""

    label_dropout: Share = Field(0.0, description="share of labels hidden in training, which classifier-free guidance needs")
    guidance_scale: NonNegativeFloat = Field(
        1.0, description="scale of classifier-free guidance in sampling; other than 1 doubles the evaluations"
    )

    @model_validator(mode="after")
    def _guidance_was_taught(self) -> "GuidedSettings":
        if self.guidance_scale != 1.0 and not self.label_dropout:
            raise ValueError(f"guidance_scale is {self.guidance_scale}, but no label is ever hidden; give label_dropout, such as 0.1")
        return self

    def guided(self, sampler: Mapping[str, Any], name: str, num_classes: int | None) -> dict[str, Any]:
        """Return the config `sampler` with the scale of guidance, where it is not 1.

        Raises UserError for guidance where the data, called `name`, has no classes (`num_classes` None).
        """
        if self.guidance_scale == 1.0:
            return dict(sampler)
        if num_classes is None:
            raise UserError(f"method.guidance_scale is {self.guidance_scale}, and {name} has no classes; leave it out")
        return {**sampler, "guidance_scale": self.guidance_scale}
