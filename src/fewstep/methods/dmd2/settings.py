"""Settings of DMD2."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fewstep.pipelines.lora import RANK
from fewstep.sections import (
    EXACT,
    Compared,
    Fraction,
    Grid,
    Idle,
    NonNegativeFloat,
    NonNegativeInt,
    Optimizer,
    Role,
    Section,
    TaughtSettings,
)


class DMD2Optimizer(Optimizer):
    """AdamW of the generator, or of the fake network with the discriminator heads."""

    lr: PositiveFloat = Field(2e-6, description="learning rate after the warm-up and before the decay")


class LoRA(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685) of one network in memory, instead of copies of the network."""

    rank: PositiveInt = Field(RANK, description="rank of the low-rank adapters")
    targets: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="layers that get adapters, by the ends of their names; null for those that are usual for the teacher's network"
    )
    fake: Literal["lora", "full"] = Field(
        "lora", description="how the fake network learns: lora is adapters, full is a copy of the network, all of whose weights learn"
    )


class DMD2Settings(Grid, TaughtSettings):
    """Distribution matching distillation of a teacher into a generator of one or a few steps."""

    name: Literal["dmd2"]
    loss: Literal["dmd", "sid", "uni"] = Field(
        "dmd",
        description="loss of the generator: dmd is DMD2's, sid that of score identity distillation, uni Uni-Instruct's, the gradient of "
        "f_divergence as a weighted sum of the sid and the dmd term",
    )
    sid_alpha: float = Field(1.0, description="alpha of the SiD loss")
    gamma: PositiveFloat = Field(1.0, description="power of the density that the student aims at, p_real^gamma")
    guidance_scale: NonNegativeFloat = Field(1.0, description="scale of the teacher's classifier-free guidance; 1 is no guidance")
    lora: LoRA | None = Field(
        None,
        description="teacher, student and fake network share one network in memory, the last two with low-rank adapters; null is a copy "
        "of the network for each",
    )
    times: Literal["karras", "teacher"] = Field(
        "karras",
        description="noise levels that training and the student's steps use: karras is the Karras grid, teacher those of the teacher's "
        "own timesteps",
    )
    sampler_timesteps: list[NonNegativeInt] | None = Field(
        None,
        description="with times=teacher, the timesteps of the student's steps, descending; null divides the teacher's time equally, as "
        "LCM's scheduler does",
    )
    dfake_gen_update_ratio: PositiveInt = Field(
        5, description="training steps for each update of the generator; the fake network is updated at every step"
    )
    conditioning_sigma: PositiveFloat = Field(80.0, description="noise level of the student's first input")
    sampler_steps: PositiveInt = Field(1, description="number of steps in which the student samples")
    sampler_sigmas: Annotated[list[PositiveFloat], Field(min_length=1)] | None = Field(
        None,
        description="noise levels of the student's steps, descending from conditioning_sigma; null for levels that diffusers' scheduler "
        "can name",
    )
    fake_per_step: bool = Field(
        True,
        description="a fake network for each of several steps; false is one for all steps, as published, which matches only the mixture of "
        "their samples",
    )
    regression: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the run in which a one-step student first learns from pairs of noise and the teacher's sample from it "
        "(fewstep encode --pairs); for a first noise level at which the teacher's weights are no good start, such as SDXL's timestep 399",
    )
    inputs: Literal["backward_simulation", "noised_data"] = Field(
        "backward_simulation",
        description="training inputs of the student's later steps: outputs of its own earlier steps, or noised_data, real data with noise, "
        "a shortcut that is a known mistake",
    )
    min_step_percent: Fraction = Field(
        0.02,
        description="lower end, as a share of the ascending noise grid, of the levels that the distribution-matching term draws; high "
        "levels settle how much mass goes where",
    )
    max_step_percent: Fraction = Field(
        0.98, description="upper end, as a share of the ascending noise grid, of the levels that the distribution-matching term draws"
    )
    min_step_start: Fraction | None = Field(None, description="value from which min_step_percent is ramped; null for no ramp")
    min_step_warmup: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.6, description="length of the ramp of min_step_percent, as a fraction of the run"
    )
    fake_min_step_percent: Fraction = Field(
        0.0, description="lower end, as a share of the ascending noise grid, of the levels that the fake network's loss draws"
    )
    fake_max_step_percent: Fraction = Field(
        1.0, description="upper end, as a share of the ascending noise grid, of the levels that the fake network's loss draws"
    )
    generator_optimizer: DMD2Optimizer = Field(default_factory=DMD2Optimizer, description="AdamW of the generator")
    guidance_optimizer: DMD2Optimizer = Field(
        default_factory=DMD2Optimizer, description="AdamW of the fake network and the discriminator heads"
    )
    table_scale: PositiveFloat = Field(
        10.0, description="factor on the learning rate of the generator's tables, such as those of a coded latent"
    )
    fake_widths: list[PositiveInt] = Field(
        [256, 256, 256], min_length=1, description="widths of the hidden layers of the fake network, beside an exact teacher"
    )
    reuse_generator_batch: bool = Field(
        True, description="train the fake network on the samples of the generator's turn, at steps that have one"
    )
    gan: bool = Field(False, description="add the adversarial loss, with discriminator heads")
    gan_weight_generator: NonNegativeFloat | Literal["auto"] = Field(
        3e-3,
        description="weight of the adversarial term in the generator's loss; auto is the ratio of the gradient norms of the "
        "distribution-matching and the adversarial term at the samples, over the first updates after the warm-up",
    )
    gan_weight_guidance: NonNegativeFloat = Field(
        1e-2, description="weight of the discriminator heads' loss beside the fake network's denoising loss"
    )
    gan_features: Literal["fake", "teacher"] = Field("fake", description="network whose features the discriminator heads see")
    gan_levels: PositiveInt = Field(1, description="number of resolutions, from the bottleneck up, that have a discriminator head")
    r1_weight: NonNegativeFloat = Field(0.0, description="weight of the R1 penalty on the gradient of the discriminator heads at real data")
    r1: Literal["approximate", "exact"] = Field(
        "approximate", description="how the R1 penalty is computed: by a finite difference, or exactly, by second derivatives"
    )
    r1_alpha: PositiveFloat = Field(0.1, description="size of the finite difference in the approximate R1 penalty")
    f_divergence: Literal["reverse_kl", "softened_reverse_kl", "js", "hellinger", "kl", "jeffreys", "neyman"] = Field(
        "reverse_kl",
        description="divergence that the dmd loss (f-distill) or the uni loss minimises, by the discriminator heads' density ratio",
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
        """Whether training needs data items: for a discriminator, or for steps that learn from noised data."""
        return self.gan or self.inputs == "noised_data"

    @property
    def asked_levels(self) -> dict[str, float]:
        """The noise levels that the teacher has to know, by their settings; empty where the levels are the teacher's own."""
        return {} if self.times == "teacher" else super().asked_levels

    def idle(self) -> tuple[Idle, ...]:
        """Return the settings that others leave without effect."""
        levels = ("conditioning_sigma", "num_train_timesteps", "sigma_min", "sigma_max", "rho")
        return (
            (self.loss != "sid", f"method.loss is {self.loss!r}", ("sid_alpha",)),
            (self.times == "teacher", "method.times is 'teacher', whose own noise levels are used", levels),
            (self.sampler_steps == 1, "method.sampler_steps is 1", ("fake_per_step", "inputs")),
            (self.min_step_start is None, "method.min_step_start is null", ("min_step_warmup",)),
            (not self.exact, f"method.teacher is not {EXACT!r}", ("fake_widths",)),
            (not self.gan, "method.gan is false", ("gan_weight_generator", "gan_weight_guidance", "gan_features", "gan_levels")),
            (not self.r1_weight, "method.r1_weight is 0", ("r1", "r1_alpha")),
            (bool(self.r1_weight) and self.r1 == "exact", "method.r1 is 'exact'", ("r1_alpha",)),
        )

    @property
    def taught(self) -> bool:
        """Whether a trained teacher has to be opened."""
        return not self.exact

    def roles_on(self, points: bool) -> tuple[Role, ...]:
        """Return the roles of the student's network: "copy" (of the teacher's); on points also "map", the only one beside a closed form."""
        if not points:
            return ("copy",)
        return ("map",) if self.exact else ("copy", "map")

    @property
    def aims_at(self) -> float:
        """Gamma: the student aims at ``p_real^gamma``."""
        return self.gamma
