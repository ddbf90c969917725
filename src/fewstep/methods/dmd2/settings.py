"""Settings of DMD2."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fewstep.pipelines.lora import RANK
from fewstep.sections import Compared, Fraction, Grid, NonNegativeFloat, NonNegativeInt, Optimizer, Role, Section, TaughtSettings


class DMD2Optimizer(Optimizer):
    """AdamW of the generator, or of the fake network with the heads."""

    lr: PositiveFloat = Field(2e-6, description="learning rate, after the warm-up and before the fall")


class LoRA(Section):
    """Low-rank changes of one network (arXiv 2106.09685), instead of copies of it."""

    rank: PositiveInt = Field(RANK, description="of the changes")
    targets: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="layers that are changed, by how their names end; null for those that are usual for the teacher's network"
    )
    fake: Literal["lora", "full"] = Field("lora", description="of the fake network: full is a whole copy, all of which learns")


class DMD2Settings(Grid, TaughtSettings):
    """Distribution matching distillation of a teacher into a generator of one or a few steps."""

    name: Literal["dmd2"]
    loss: Literal["dmd", "sid", "uni"] = Field(
        "dmd", description="uni is Uni-Instruct: the gradient of f_divergence as a weighted sum of the SiD and the DMD term"
    )
    sid_alpha: float = Field(1.0, description="alpha of the SiD loss")
    gamma: PositiveFloat = Field(1.0, description="match p_real^gamma")
    guidance_scale: NonNegativeFloat = Field(1.0, description="classifier-free guidance of the teacher")
    lora: LoRA | None = Field(
        None, description="teacher, student and fake network are one network in memory, two of them with low-rank changes; null is copies"
    )
    times: Literal["karras", "teacher"] = Field(
        "karras", description="teacher: noise levels are those of the teacher's own timesteps, and so are the student's steps"
    )
    sampler_timesteps: list[NonNegativeInt] | None = Field(
        None,
        description="with times=teacher: those of the student's steps, falling; null for equal parts, as of LCM's scheduler",
    )
    dfake_gen_update_ratio: PositiveInt = Field(5, description="the generator learns at every so many-th step, the fake network at each")
    conditioning_sigma: PositiveFloat = Field(80.0, description="noise level of the student's first input")
    sampler_steps: PositiveInt = Field(1, description="steps that the student is made for")
    sampler_sigmas: Annotated[list[PositiveFloat], Field(min_length=1)] | None = Field(
        None, description="their noise levels, from conditioning_sigma down; null for levels that diffusers' scheduler can name"
    )
    fake_per_step: bool = Field(
        True, description="a fake network for each of several steps; false is one for all, as published, which holds only the mixture"
    )
    regression: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the run in which a student of one step first learns pairs of its teacher, noise and what came of it (fewstep "
        "encode --pairs): for a step from a level to which the teacher is no start, as SDXL's from timestep 399",
    )
    inputs: Literal["backward_simulation", "noised_data"] = Field(
        "backward_simulation", description="what later steps learn from; noised_data is a shortcut, and a known mistake"
    )
    min_step_percent: Fraction = Field(
        0.02, description="share of the ascending grid from which the DM term draws its levels; coarse ones settle how much mass goes where"
    )
    max_step_percent: Fraction = Field(0.98, description="and up to which it does")
    min_step_start: Fraction | None = Field(None, description="where min_step_percent begins; null for no ramp")
    min_step_warmup: Annotated[float, Field(gt=0, lt=1)] = Field(0.6, description="its ramp, a fraction of the run")
    fake_min_step_percent: Fraction = Field(0.0, description="as min_step_percent, of the fake network's loss")
    fake_max_step_percent: Fraction = Field(1.0, description="as max_step_percent, of the fake network's loss")
    generator_optimizer: DMD2Optimizer = Field(default_factory=DMD2Optimizer, description="AdamW of the generator")
    guidance_optimizer: DMD2Optimizer = Field(default_factory=DMD2Optimizer, description="of the fake network, with the heads")
    table_scale: PositiveFloat = Field(
        10.0, description="how many times as fast the tables of a network learn, such as those of a coded latent"
    )
    fake_widths: list[PositiveInt] = Field([256, 256, 256], min_length=1, description="of the fake network, beside an exact teacher")
    reuse_generator_batch: bool = Field(True, description="the fake network learns from the generator turn's samples, where there are any")
    gan: bool = Field(False, description="add the adversarial heads")
    gan_weight_generator: NonNegativeFloat | Literal["auto"] = Field(
        3e-3, description="auto: the ratio of the two terms' gradient norms at the image, over the first updates after warm-up"
    )
    gan_weight_guidance: NonNegativeFloat = Field(1e-2, description="weight of the heads' loss beside the fake network's own")
    gan_features: Literal["fake", "teacher"] = Field("fake", description="whose features the heads see")
    gan_levels: PositiveInt = Field(1, description="at how many resolutions, from the bottleneck up; a head at each")
    r1_weight: NonNegativeFloat = Field(0.0, description="of the penalty on the heads' slope at real data")
    r1: Literal["approximate", "exact"] = Field("approximate", description="that slope by a finite difference, or by a second gradient")
    r1_alpha: PositiveFloat = Field(0.1, description="length of the finite difference")
    f_divergence: Literal["reverse_kl", "softened_reverse_kl", "js", "hellinger", "kl", "jeffreys", "neyman"] = Field(
        "reverse_kl", description="the divergence that the DMD loss (f-distill) or the uni loss descends, by the heads' density ratio"
    )

    draws_power: ClassVar = True
    compared: ClassVar = (
        Compared("DMD2, exact teacher", items=("points",), needs_mixture=True),
        Compared("DMD2, trained teacher", taught=True, items=("points",)),
        Compared("DMD2", taught=True, items=("images",)),
    )
    moved: ClassVar = {
        **{f"generator_{key}": (f"generator_optimizer.{key}",) for key in ("lr", "warmup", "decay_from", "final", "decay")},
        "guidance_lr": ("guidance_optimizer.lr",),
        **{key: (f"generator_optimizer.{key}", f"guidance_optimizer.{key}") for key in ("beta1", "beta2", "weight_decay", "clip")},
    }

    @model_validator(mode="after")
    def _levels(self) -> "DMD2Settings":
        if self.min_step_percent > self.max_step_percent:
            raise ValueError(f"min_step_percent {self.min_step_percent} must not exceed max_step_percent {self.max_step_percent}")
        if self.r1_weight and not self.gan:
            raise ValueError(f"r1_weight is {self.r1_weight}, but there is no discriminator to hold; set gan to true, or r1_weight to 0")
        return self

    @model_validator(mode="after")
    def _regression(self) -> "DMD2Settings":
        if self.regression and self.sampler_steps > 1:
            raise ValueError(f"regression is {self.regression}, for students of one step; with sampler_steps {self.sampler_steps} give 0")
        return self

    @model_validator(mode="after")
    def _times(self) -> "DMD2Settings":
        steps = self.sampler_timesteps
        if steps is not None and self.times != "teacher":
            raise ValueError(f"sampler_timesteps is {steps}, which goes with times=teacher; set that, or leave it out")
        if steps is not None and (len(steps) != self.sampler_steps or any(a <= b for a, b in pairwise(steps))):
            raise ValueError(f"sampler_timesteps is {steps}; with sampler_steps {self.sampler_steps} give so many that fall")
        if self.times == "teacher" and self.sampler_sigmas is not None:
            raise ValueError("sampler_sigmas is given, and times=teacher takes the student's levels from sampler_timesteps; leave one out")
        return self

    @property
    def needs_items(self) -> bool:
        """For a discriminator, and for steps that learn from noised data."""
        return self.gan or self.inputs == "noised_data"

    @property
    def asked_levels(self) -> dict[str, float]:
        """None but the teacher's own, where these are taken."""
        return {} if self.times == "teacher" else super().asked_levels

    @property
    def taught(self) -> bool:
        """Whether a trained teacher has to be opened."""
        return not self.exact

    def roles_on(self, points: bool) -> tuple[Role, ...]:
        """A copy of the teacher's network; on points also a map from noise, which is all there can be beside a closed form."""
        if not points:
            return ("copy",)
        return ("map",) if self.exact else ("copy", "map")

    @property
    def aims_at(self) -> float:
        """Gamma."""
        return self.gamma
