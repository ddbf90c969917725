"""Settings that methods share whose student may learn from a teacher of the same run; see `fewstep.methods.self_taught`."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fewstep.sections import DenoiserOptimizer, Fraction, Idle, NonNegativeFloat, NonNegativeInt, Optimizer, Share, TaughtSettings


class OwnOptimizer(DenoiserOptimizer):
    """AdamW for the teacher that a method trains by itself."""

    lr: PositiveFloat = Field(2e-3, description="learning rate between warm-up and decay")


class StudentOptimizer(Optimizer):
    """AdamW for a student: a cosine decay of the learning rate over all updates of its part of the run."""

    lr: PositiveFloat = Field(1e-3, description="learning rate between warm-up and decay")
    warmup: NonNegativeInt = Field(20, description="updates of the learning-rate warm-up, in which it rises linearly to lr")
    decay_from: Fraction = Field(0.0, description="fraction of all updates after which the learning rate decays")
    final: Fraction = Field(0.0, description="learning rate at the end of its decay, as a fraction of lr")
    decay: Literal["linear", "cosine"] = Field("cosine", description="shape of the learning-rate decay: linear, or half a cosine")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW's weight decay: each update reduces each weight by lr times this share")


class SelfTaughtSettings(TaughtSettings):
    """The settings of a method that can first train a teacher of its own, and then trains its student in stages."""

    optimizer: StudentOptimizer = Field(default_factory=StudentOptimizer, description="AdamW of the student")
    own_teacher: Share = Field(0.0, description="share of the run in which, without a given teacher, one is first trained to denoise")
    own_optimizer: OwnOptimizer = Field(default_factory=OwnOptimizer, description="AdamW of the teacher trained by own_teacher")
    own_sigma_mean: float = Field(-1.2, description="mean of ln(noise level) in the training of own_teacher")
    own_sigma_std: PositiveFloat = Field(1.2, description="standard deviation of ln(noise level) in the training of own_teacher")
    stages: PositiveInt = Field(
        6, description="number of stages of equal length; each halves the relative gap between a noise level and the next lower one"
    )
    first_stage: NonNegativeInt = Field(
        0, description="number of the first stage; 0 is denoising, which a student that starts from a teacher has learned already"
    )
    gap_k: NonNegativeFloat = Field(
        8.0, description="k in the relative gap from noise level sigma to the next: (1 + k sigmoid(-gap_b sigma)) / 2^stage, at most 1"
    )
    gap_b: NonNegativeFloat = Field(1.0, description="how fast the relative gap between noise levels narrows as they rise; see gap_k")
    label_dropout: Share = Field(0.0, description="share of labels hidden in training, as classifier-free guidance needs")

    @model_validator(mode="after")
    def _one_teacher(self) -> "SelfTaughtSettings":
        if self.own_teacher and self.teacher is not None:
            raise ValueError(
                f"own_teacher is {self.own_teacher}, but teacher is {self.teacher!r}; set own_teacher to 0, or give no teacher"
            )
        return self

    def idle(self) -> tuple[Idle, ...]:
        """Return the settings of a teacher that the run does not train."""
        return ((not self.own_teacher, "method.own_teacher is 0", ("own_optimizer", "own_sigma_mean", "own_sigma_std")),)
