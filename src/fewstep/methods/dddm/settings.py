"""Settings of distributional diffusion."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from fewstep.methods.guided import GuidedSettings
from fewstep.sections import Compared, DenoiserOptimizer, Fraction, Idle


class DDDMSettings(GuidedSettings):
    """Distributional diffusion: a denoiser that samples the posterior, trained with a scoring rule; no teacher."""

    name: Literal["dddm"]
    optimizer: DenoiserOptimizer = Field(default_factory=DenoiserOptimizer, description="AdamW of the denoiser")
    m: PositiveInt = Field(8, description="particles (draws of x0) for each item in the loss")
    beta: Annotated[float, Field(gt=0, le=2)] = Field(
        1.0, description="power of the distance in the scoring rule; 2 with lam 0 is plain diffusion"
    )
    lam: Fraction = Field(
        1.0, description="weight of the distance between particles in the scoring rule, which is strictly proper only at 1"
    )
    lam_warmup: Fraction = Field(0.0, description="fraction of the run over which lam rises from 0")
    bias: float = Field(0.0, description="bias of the sigmoid weighting of times; below 0 moves weight towards noise")
    xi_channels: PositiveInt | None = Field(None, description="channels of the second noise, xi; null for as many as the data has")
    output: Literal["x0", "edm"] = Field(
        "x0", description="what the network predicts: x0 is the sample itself, edm the output that EDM's preconditioning turns into it"
    )
    sampler_steps: PositiveInt = Field(20, description="number of sampling steps, unless sampling names another")
    churn: Fraction = Field(1.0, description="churn of the bridge in sampling: 1 is DDPM's posterior, 0 is deterministic (DDIM)")

    needs: ClassVar = frozenset({"xi"})
    compared: ClassVar = (
        Compared("DDDM"),
        # one network pass for each item, where the distributional recipe makes m: it runs m times as long; its one-step sample is a mean
        Compared("plain diffusion", ("method.lam=0", "method.beta=2", "method.m=1"), costs=lambda settings: settings.m, one_step=False),
    )
    moved: ClassVar = {
        key: (f"optimizer.{key}",) for key in ("lr", "warmup", "decay", "decay_from", "final", "beta1", "beta2", "weight_decay", "clip")
    }

    @model_validator(mode="after")
    def _pairs(self) -> "DDDMSettings":
        if self.m < 2 and self.lam > 0:
            raise ValueError(
                f"m is {self.m} with lam {self.lam}; pairs of particles need m of at least 2 (or lam 0, which is plain diffusion)"
            )
        return self

    def idle(self) -> tuple[Idle, ...]:
        """Return the settings that others leave without effect."""
        return ((self.lam == 0, "method.lam is 0", ("lam_warmup",)),)
