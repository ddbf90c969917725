"""Settings of flow maps."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fewstep.sections import Compared, Fraction, NonNegativeFloat, SelfTaughtSettings


class FlowMapSettings(SelfTaughtSettings):
    """A flow map: from any noise level to any lower one in one evaluation, and so to data in one; from a teacher, or from data alone."""

    name: Literal["flow_map"]
    form: Literal["discrete", "derivative"] = Field(
        "discrete", description="a target a finite gap away, halved at each stage; or the derivative in time, as published"
    )
    velocity: Literal["auto", "data", "own", "teacher"] = Field(
        "auto",
        description="what the flow's slope is taken from: the noised item (MeanFlow), the student's own estimate (iMF), the teacher (AYF); "
        "auto is the teacher where there is one, else the data",
    )
    solver: Literal["euler", "heun"] = Field(
        "euler", description="how the teacher steps in form discrete; heun asks it twice, and errs less while the gap is wide"
    )
    derivative: Literal["auto", "jvp", "difference"] = Field(
        "auto", description="of form derivative: by torch.func.jvp, or a central difference; auto is the former where the network allows it"
    )
    step_in_log: PositiveFloat = Field(0.1, description="of the central difference, in ln(sigma)")
    guidance_scale: NonNegativeFloat = Field(1.0, description="learned classifier-free guidance; other than 1 needs classes")
    zero: Fraction = Field(0.4, description="share of a batch that aims at data itself, rho = 0")
    anchor: Fraction = Field(0.0, description="share of a batch that denoises, rho = sigma")
    sigma_mean: float = Field(-0.4, description="mean of ln(sigma)")
    sigma_std: PositiveFloat = Field(1.6, description="standard deviation of ln(sigma)")
    sigma_min: PositiveFloat = Field(0.002, description="least noise level that is trained on")
    sigma_max: PositiveFloat = Field(30.0, description="levels above are folded back below it")
    first_level: PositiveFloat = Field(20.0, description="noise level that sampling starts at")
    middle: PositiveFloat | None = Field(
        None, description="levels fall in equal steps of atan(sigma / middle); null is the data's standard deviation"
    )
    gap_gain: PositiveFloat = Field(
        1.0,
        description="how many times as fast a network that was made for one noise level learns of the second; above 1 where more steps are "
        "no better",
    )
    sampler_steps: PositiveInt = Field(1, description="steps, where sampling names no other number")

    roles: ClassVar = ("denoiser", "copy")
    compared: ClassVar = (Compared("flow map"),)

    @model_validator(mode="after")
    def _fits(self) -> "FlowMapSettings":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        if self.first_level > self.sigma_max:
            raise ValueError(f"first_level is {self.first_level}; it must be sigma_max {self.sigma_max} at most, up to which is trained")
        if self.zero + self.anchor > 1:
            raise ValueError(f"zero is {self.zero} and anchor {self.anchor}; they are shares of one batch and must not exceed 1 together")
        if self.velocity == "own" and self.form == "discrete" and not self.anchor:
            raise ValueError(
                "velocity is 'own', which is learned where anchor items denoise, and anchor is 0; give it a share, such as 0.25"
            )
        if self.velocity == "teacher" and self.teacher is None:
            raise ValueError("velocity is 'teacher', but there is none; name it in teacher, or leave velocity at 'auto'")
        if self.solver == "heun" and (self.teacher is None or self.form == "derivative" or self.velocity not in ("auto", "teacher")):
            raise ValueError("solver is 'heun', by which a teacher steps in form discrete; give a teacher for the slope, or use 'euler'")
        if self.guidance_scale != 1.0 and not self.label_dropout and self.velocity in ("data", "own"):
            raise ValueError(f"guidance_scale is {self.guidance_scale}, but no label is ever hidden; give label_dropout, such as 0.1")
        return self
