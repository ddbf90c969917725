"""Settings of flow maps."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fewstep.methods.self_taught_settings import SelfTaughtSettings
from fewstep.sections import Compared, Fraction, Idle, NonNegativeFloat


class FlowMapSettings(SelfTaughtSettings):
    """A flow map: a network that goes from any noise level to any lower one, or to data, in one evaluation; with or without a teacher."""

    name: Literal["flow_map"]
    form: Literal["discrete", "derivative"] = Field(
        "discrete",
        description="form of the training target: discrete compares noise levels a finite gap apart, which is halved at each stage; "
        "derivative uses the derivative in time, as published",
    )
    velocity: Literal["auto", "data", "own", "teacher"] = Field(
        "auto",
        description="what the flow's slope is taken from: data is the noised item (MeanFlow), own the student's estimate (iMF), teacher "
        "the teacher's (AYF), auto the teacher's where there is one and else data",
    )
    solver: Literal["euler", "heun"] = Field(
        "euler",
        description="ODE solver of the teacher's step with form=discrete; heun evaluates the teacher twice, and errs less while the gap "
        "is wide",
    )
    derivative: Literal["auto", "jvp", "difference"] = Field(
        "auto",
        description="how the time derivative of form=derivative is computed: jvp is torch.func.jvp, difference a central difference, auto "
        "jvp where the network allows it",
    )
    step_in_log: PositiveFloat = Field(0.1, description="step of the central difference of derivative=difference, in ln(sigma)")
    guidance_scale: NonNegativeFloat = Field(
        1.0, description="scale of the classifier-free guidance that the student learns; other than 1 needs classes"
    )
    zero: Fraction = Field(0.4, description="share of a batch that learns to go all the way to data, rho = 0")
    anchor: Fraction = Field(0.0, description="share of a batch that learns to denoise, rho = sigma")
    sigma_mean: float = Field(-0.4, description="mean of ln(sigma) of the noise levels in training")
    sigma_std: PositiveFloat = Field(1.6, description="standard deviation of ln(sigma) of the noise levels in training")
    sigma_min: PositiveFloat = Field(0.002, description="smallest noise level in training")
    sigma_max: PositiveFloat = Field(30.0, description="largest noise level in training; draws above are folded back below it")
    first_level: PositiveFloat = Field(20.0, description="noise level at which sampling starts")
    middle: PositiveFloat | None = Field(
        None,
        description="noise levels of sampling are spaced equally in atan(sigma / middle); null is the data's standard deviation",
    )
    churn: Fraction = Field(
        0.0,
        description="new noise between the steps of sampling: 0 follows the flow, 1 replaces all noise at each level; more helps where "
        "several steps are worse than one",
    )
    gap_gain: PositiveFloat = Field(
        1.0,
        description="factor on the network's input that describes the second noise level, by which a network made for one level learns "
        "to use it that many times faster; set it above 1 where more sampling steps give no better samples",
    )
    sampler_steps: PositiveInt = Field(1, description="number of sampling steps, unless sampling names another")

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

    def idle(self) -> tuple[Idle, ...]:
        """Return the settings that others leave without effect."""
        return (
            *super().idle(),
            (self.form == "discrete", "method.form is 'discrete'", ("derivative", "step_in_log")),
            (self.form == "derivative", "method.form is 'derivative'", ("stages", "first_stage", "gap_k", "gap_b")),
            (self.form == "derivative" and self.derivative == "jvp", "method.derivative is 'jvp'", ("step_in_log",)),
        )
