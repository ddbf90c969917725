"""Settings of distributional diffusion."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from fewstep.sections import Compared, DenoiserOptimizer, Fraction, MethodSettings, Share


class DDDMSettings(MethodSettings):
    """Distributional diffusion: a denoiser that samples the posterior, trained with a scoring rule; no teacher."""

    name: Literal["dddm"]
    optimizer: DenoiserOptimizer = Field(default_factory=DenoiserOptimizer, description="AdamW of the denoiser")
    m: PositiveInt = Field(8, description="particles an item")
    beta: Annotated[float, Field(gt=0, le=2)] = Field(1.0, description="power of the distance; 2 with lam 0 is plain diffusion")
    lam: Fraction = Field(1.0, description="weight of the term between particles; only 1 is strictly proper")
    lam_warmup: Fraction = Field(0.0, description="fraction of the run over which lam rises from 0")
    bias: float = Field(0.0, description="of the sigmoid weighting of times; below 0 moves weight towards noise")
    xi_channels: PositiveInt | None = Field(None, description="channels of the second noise; null for as many as the data has")
    output: Literal["x0", "edm"] = Field("x0", description="what the network's output is: the estimate itself, or EDM's preconditioned one")
    sampler_steps: PositiveInt = Field(20, description="steps, where sampling names no other number")
    churn: Fraction = Field(1.0, description="of the bridge in sampling: 1 is DDPM's posterior, 0 is deterministic")
    label_dropout: Share = Field(0.0, description="share of labels hidden, which guidance needs")

    needs: ClassVar = frozenset({"xi"})
    compared: ClassVar = (
        Compared("DDDM"),
        # one network pass an item, where the distributional recipe makes m: it runs m times as long; at one step it is the mean, a point
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
