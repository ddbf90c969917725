"""Settings of the diffusion teacher."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import Compared, Fraction, Grid, MethodSettings, NonNegativeInt, Optimizer, Share


class TeacherOptimizer(Optimizer):
    """AdamW of the denoiser."""

    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = Field(50, description="updates over which the learning rate rises")
    decay_from: Fraction = Field(0.4, description="fraction of the updates after which it falls")
    final: Fraction = Field(0.02, description="what it falls to, as a fraction of lr")


class TeacherSettings(Grid, MethodSettings):
    """EDM training of a diffusion teacher."""

    name: Literal["teacher"]
    optimizer: TeacherOptimizer = Field(default_factory=TeacherOptimizer)
    sigma_sampling: Literal["lognormal", "karras"] = Field("lognormal", description="karras: uniform over the levels of the grid")
    sigma_mean: float = Field(-1.2, description="mean of ln(sigma), with lognormal")
    sigma_std: PositiveFloat = Field(1.2, description="standard deviation of ln(sigma), with lognormal")
    label_dropout: Share = Field(0.1, description="share of labels hidden, which guidance needs")
    sampler: Literal["heun", "euler"] = "heun"
    sampler_steps: PositiveInt = Field(18, description="noise levels; 18 of Heun's are 35 evaluations")

    teaches: ClassVar = True
    compared: ClassVar = (Compared("teacher"),)
    moved: ClassVar = {
        key: (f"optimizer.{key}",) for key in ("lr", "warmup", "decay_from", "final", "beta1", "beta2", "weight_decay", "clip")
    }
