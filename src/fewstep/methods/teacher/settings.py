"""Settings of the diffusion teacher."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.methods.guided import GuidedSettings
from fewstep.sections import Compared, DenoiserOptimizer, Grid, Idle, Share


class TeacherSettings(Grid, GuidedSettings):
    """EDM training of a diffusion teacher."""

    name: Literal["teacher"]
    optimizer: DenoiserOptimizer = Field(default_factory=DenoiserOptimizer, description="AdamW of the denoiser")
    sigma_sampling: Literal["lognormal", "karras"] = Field(
        "lognormal", description="distribution of the noise levels in training; karras is uniform over the levels of the Karras grid"
    )
    sigma_mean: float = Field(-1.2, description="mean of ln(sigma) with sigma_sampling=lognormal")
    sigma_std: PositiveFloat = Field(1.2, description="standard deviation of ln(sigma) with sigma_sampling=lognormal")
    label_dropout: Share = Field(0.1, description="share of labels hidden in training, which classifier-free guidance needs")
    sampler: Literal["heun", "euler"] = Field(
        "heun", description="ODE solver of sampling: heun makes two evaluations in each step but the last, euler one in each"
    )
    sampler_steps: PositiveInt = Field(18, description="number of noise levels in sampling; 18 with sampler=heun are 35 evaluations")

    teaches: ClassVar = True
    compared: ClassVar = (Compared("teacher"),)
    moved: ClassVar = {
        key: (f"optimizer.{key}",) for key in ("lr", "warmup", "decay_from", "final", "beta1", "beta2", "weight_decay", "clip")
    }

    def idle(self) -> tuple[Idle, ...]:
        """Return the settings that others leave without effect."""
        why, is_grid = f"method.sigma_sampling is {self.sigma_sampling!r}", self.sigma_sampling == "karras"
        return ((is_grid, why, ("sigma_mean", "sigma_std")), (not is_grid, why, ("num_train_timesteps",)))
