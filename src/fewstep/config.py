"""Recipes: YAML and ``key=value`` to typed settings. Strict, and every error of a file is told at once, with its path.

Nothing here imports torch: the command line must answer at once.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from fewstep.errors import UserError
from fewstep.metrics.figures import choices

Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


EXACT = "exact"  # the teacher that is a closed form


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, and no value is bent to fit."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GridConfig(Section):
    """The Karras grid of noise levels that a method trains on."""

    num_train_timesteps: PositiveInt = Field(1000, description="levels of the grid")
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    rho: PositiveFloat = 7.0

    @model_validator(mode="after")
    def _ordered(self) -> "GridConfig":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class AdamConfig(Section):
    """What the optimisers of a method have in common, and the EMA of the network that ships."""

    beta1: Beta = 0.9
    beta2: Beta = 0.99
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat | None = Field(10.0, description="largest gradient norm; null for no clipping")
    ema_decay: Fraction = Field(0.9999, description="largest decay of the weight average")
    ema_warmup: NonNegativeFloat = Field(20.0, description="the decay at update u is min(ema_decay, u / (u + ema_warmup))")


class TeacherConfig(GridConfig, AdamConfig):
    """EDM training of a diffusion teacher."""

    name: Literal["teacher"]
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = Field(50, description="updates over which the learning rate rises")
    decay_from: Fraction = Field(0.4, description="fraction of the updates after which it falls")
    final: Fraction = Field(0.02, description="what it falls to, as a fraction of lr")
    sigma_sampling: Literal["lognormal", "karras"] = "lognormal"
    sigma_mean: float = Field(-1.2, description="mean of ln(sigma), with lognormal")
    sigma_std: PositiveFloat = Field(1.2, description="standard deviation of ln(sigma), with lognormal")
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of labels hidden, which guidance needs")
    sampler: Literal["heun", "euler"] = "heun"
    sampler_steps: PositiveInt = Field(18, description="noise levels; 18 of Heun's are 35 evaluations")


class DMD2Config(GridConfig, AdamConfig):
    """Distribution matching distillation of a teacher into a generator of one or a few steps."""

    name: Literal["dmd2"]
    teacher: str | None = Field(None, description="run folder, model folder or Hub id; or exact, the closed form of toy mixtures")
    loss: Literal["dmd", "sid"] = "dmd"
    sid_alpha: float = Field(1.0, description="alpha of the SiD loss")
    gamma: PositiveFloat = Field(1.0, description="match p_real^gamma")
    guidance_scale: NonNegativeFloat = Field(1.0, description="classifier-free guidance of the teacher")
    dfake_gen_update_ratio: PositiveInt = Field(5, description="fake updates for each generator update")
    conditioning_sigma: PositiveFloat = Field(80.0, description="noise level of the student's first input")
    sampler_steps: PositiveInt = Field(1, description="steps that the student is made for")
    sampler_sigmas: Annotated[list[PositiveFloat], Field(min_length=1)] | None = Field(
        None, description="their noise levels, from conditioning_sigma down; null for levels that diffusers' scheduler can name"
    )
    fake_per_step: bool = Field(True, description="a fake network for each of several steps; false is one for all, as published")
    inputs: Literal["backward_simulation", "noised_data"] = Field(
        "backward_simulation", description="what later steps learn from; noised_data is a shortcut, and a known mistake"
    )
    min_step_percent: Fraction = 0.02
    max_step_percent: Fraction = 0.98
    min_step_start: Fraction | None = Field(None, description="where min_step_percent begins; null for no ramp")
    min_step_warmup: Annotated[float, Field(gt=0, lt=1)] = Field(0.6, description="its ramp, a fraction of the run")
    fake_min_step_percent: Fraction = Field(0.0, description="as min_step_percent, of the fake network's loss")
    fake_max_step_percent: Fraction = Field(1.0, description="as max_step_percent, of the fake network's loss")
    generator_lr: PositiveFloat = 2e-6
    generator_warmup: NonNegativeInt = Field(0, description="generator updates over which its learning rate rises")
    generator_decay_from: Fraction = Field(1.0, description="fraction of its updates after which it falls")
    generator_final: Fraction = Field(1.0, description="what it falls to, as a fraction of generator_lr")
    generator_decay: Literal["linear", "cosine"] = "linear"
    guidance_lr: PositiveFloat = 2e-6
    table_scale: PositiveFloat = Field(10.0, description="how many times as fast the tables of a coded latent learn")
    fake_widths: list[PositiveInt] = Field([256, 256, 256], min_length=1, description="of the fake network, beside an exact teacher")
    reuse_generator_batch: bool = Field(True, description="the fake network learns from the generator turn's samples, where there are any")
    gan: bool = Field(False, description="add the adversarial head")
    gan_weight_generator: NonNegativeFloat | Literal["auto"] = 3e-3
    gan_weight_guidance: NonNegativeFloat = 1e-2
    gan_features: Literal["fake", "teacher"] = Field("fake", description="whose features the heads see")
    gan_levels: PositiveInt = Field(1, description="at how many resolutions, from the bottleneck up; a head at each")
    r1_weight: NonNegativeFloat = Field(0.0, description="of the penalty on the heads' slope at real data")
    r1: Literal["approximate", "exact"] = Field("approximate", description="that slope by a finite difference, or by a second gradient")
    r1_alpha: PositiveFloat = Field(0.1, description="length of the finite difference")
    f_divergence: Literal["reverse_kl", "softened_reverse_kl", "js", "hellinger", "kl", "jeffreys", "neyman"] = Field(
        "reverse_kl", description="f-distill: weigh the DMD loss by the heads' density ratio"
    )

    @model_validator(mode="after")
    def _levels(self) -> "DMD2Config":
        if self.min_step_percent > self.max_step_percent:
            raise ValueError(f"min_step_percent {self.min_step_percent} must not exceed max_step_percent {self.max_step_percent}")
        if self.r1_weight and not self.gan:
            raise ValueError(f"r1_weight is {self.r1_weight}, but there is no discriminator to hold; set gan to true, or r1_weight to 0")
        return self


Warmup = PositiveInt | Annotated[float, Field(gt=0, lt=1)]


class DriftConfig(AdamConfig):
    """Drift: a push-forward generator follows a field between real and generated samples; no teacher."""

    name: Literal["drift"]
    field: Literal["strict", "two_temperature", "toy", "drifting"] = Field("strict", description="which definition of the drift")
    gamma: PositiveFloat = Field(1.0, description="aim at p^gamma")
    gamma_by: Literal["field", "data"] = Field("field", description="data reweights the data, and ends at p^gamma itself")
    gamma_start: PositiveFloat | None = Field(None, description="where gamma begins; null for no ramp")
    gamma_warmup: Warmup = Field(15_000, description="its ramp: a number of steps, or below 1 a fraction of the run")
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)] | Literal["auto"] = Field(
        [0.1], description="of the kernel, fields added up; auto from the distances inside a batch"
    )
    temperature_start: PositiveFloat | Literal["auto"] | None = Field(
        None, description="where each temperature begins; auto is twice the data's total variance"
    )
    temperature_warmup: Warmup = Field(15_000, description="its ramp: a number of steps, or below 1 a fraction of the run")
    temperature_schedule: Literal["linear", "log"] = "linear"
    temperature_neighbours: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.04, description="auto ends at the squared distance to the neighbour of this rank, as a share of the batch; less than a mode holds"
    )
    kernel: Literal["gaussian", "laplace"] = "gaussian"
    plan: Literal["softmax", "sinkhorn"] = Field("softmax", description="sinkhorn: transport plans in place of softmaxes")
    affinity_floor: Fraction = Field(0.0, description="of field drifting; the released code has 1e-3")
    guidance_scale: PositiveFloat = Field(1.0, description="of field drifting: guidance by weighted negatives")
    features: str = Field("none", description="what the field acts on: none, random, pooled, evaluator, or a teacher's run folder")
    memory: NonNegativeInt = Field(0, description="so many of the last real samples attract, where that is more than a batch")
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = Field(0, description="updates over which the learning rate rises")
    decay: Literal["linear", "cosine"] = "linear"
    decay_from: Fraction = Field(1.0, description="fraction of the updates after which the learning rate falls")
    final: Fraction = Field(1.0, description="what it falls to, as a fraction of lr")
    table_scale: PositiveFloat = Field(10.0, description="how many times as fast the tables of a coded latent learn")


class DDDMConfig(AdamConfig):
    """Distributional diffusion: a denoiser that samples the posterior, trained with a scoring rule; no teacher."""

    name: Literal["dddm"]
    m: PositiveInt = Field(8, description="particles an item")
    beta: Annotated[float, Field(gt=0, le=2)] = Field(1.0, description="power of the distance; 2 with lam 0 is plain diffusion")
    lam: Fraction = Field(1.0, description="weight of the term between particles; only 1 is strictly proper")
    lam_warmup: Fraction = Field(0.0, description="fraction of the run over which lam rises from 0")
    bias: float = Field(0.0, description="of the sigmoid weighting of times; below 0 moves weight towards noise")
    xi_channels: PositiveInt | None = Field(None, description="channels of the second noise; null for as many as the data has")
    output: Literal["x0", "edm"] = Field("x0", description="what the network's output is: the estimate itself, or EDM's preconditioned one")
    sampler_steps: PositiveInt = Field(20, description="steps, where sampling names no other number")
    churn: Fraction = Field(1.0, description="of the bridge in sampling: 1 is DDPM's posterior, 0 is deterministic")
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of labels hidden, which guidance needs")
    lr: PositiveFloat = 1e-3
    warmup: NonNegativeInt = Field(50, description="updates over which the learning rate rises")
    decay: Literal["linear", "cosine"] = "linear"
    decay_from: Fraction = Field(0.4, description="fraction of the updates after which it falls")
    final: Fraction = Field(0.02, description="what it falls to, as a fraction of lr")

    @model_validator(mode="after")
    def _pairs(self) -> "DDDMConfig":
        if self.m < 2 and self.lam > 0:
            raise ValueError(
                f"m is {self.m} with lam {self.lam}; pairs of particles need m of at least 2 (or lam 0, which is plain diffusion)"
            )
        return self


class DigitsConfig(Section):
    """scikit-learn's 1,797 digits, 8x8, grey, 10 classes."""

    name: Literal["digits"]


class PhotosConfig(Section):
    """Crops of scikit-learn's two sample photographs, RGB."""

    name: Literal["photos"]
    size: PositiveInt = 32
    stride: PositiveInt = Field(8, description="pixels between neighbouring crops")


class ImagesConfig(Section):
    """Images of your own: a folder (class = sub-folder), parquet, a save_to_disk folder, or a data set of the Hugging Face Hub."""

    name: Literal["images"]
    path: str = Field(description="folder, .parquet file, or Hub id such as owner/name")
    config: str | None = Field(None, description="one of several configurations of a data set of the Hub")
    size: PositiveInt = Field(32, description="images become size x size")
    resize: Literal["fit", "stretch", "pad", "none"] = Field(
        "fit",
        description="fit: shorter side to size, then centre crop; stretch: both sides; pad: centred on -1; none: must be size x size",
    )
    channels: Literal[1, 3] = 3
    image_column: str | None = Field(None, description="column of the images; null for the first of that type")
    label_column: str | None = Field(None, description="column of the labels; null finds one, none is for no classes")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="fraction held out where the data has no test split")
    flip: bool = Field(False, description="mirror half of the training images")


class Cifar10Config(Section):
    """CIFAR-10, from the binary archive that its authors publish, or from the Hugging Face Hub."""

    name: Literal["cifar10"]
    dir: str | None = Field(
        None, description="folder of cifar-10-binary.tar.gz, or what it unpacks to; null reads uoft-cs/cifar10 of the Hub"
    )
    flip: bool = Field(False, description="mirror half of the training images")


class ToyConfig(Section):
    """A density on which everything is known, sampled into a pool."""

    name: Literal["toy"]
    density: str = Field(
        description="ring, grid25, unequal, mixture8d, gaussian, bimodal, checkerboard, swiss_roll, moons, spirals, pinwheel"
    )
    size: Annotated[int, Field(ge=2)] = Field(50_000, description="points to train on; 10,000 others are held out")


class PointsConfig(Section):
    """Points of your own: a .npy file of shape [N, D]."""

    name: Literal["points"]
    path: str = Field(description="a .npy file")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="fraction held out")


class UNetConfig(Section):
    """diffusers' UNet2DModel."""

    name: Literal["unet"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data in [-1, 1]")
    channels: list[PositiveInt] = Field([64, 128, 256, 512], min_length=1, description="width of each resolution level")
    attention: list[bool] | None = Field(None, description="one flag a level; null for none but the bottleneck's")
    layers_per_block: PositiveInt = 1
    groups: PositiveInt = Field(32, description="groups of each GroupNorm")
    head_dim: PositiveInt = Field(64, description="channels of an attention head")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class EDMUNetConfig(Section):
    """EDM's own U-Net, DDPM++ or NCSN++, whose published weights it can take."""

    name: Literal["edm_unet"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data in [-1, 1]")
    form: Literal["ddpmpp", "ncsnpp"] = Field("ddpmpp", description="of the published VP models, or of the VE ones")
    channels: PositiveInt = Field(128, description="width of the first convolution; a multiple of 4")
    multipliers: list[PositiveInt] = Field([2, 2, 2], min_length=1, description="width of each resolution level, in channels")
    blocks: PositiveInt = Field(4, description="residual blocks a level")
    attention: list[PositiveInt] = Field([16], description="heights of the levels that have attention; the bottleneck has it anyway")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.13
    augment_dim: NonNegativeInt = Field(9, description="inputs for augmentation, always 0; the published weights have 9")


class LatentUNetConfig(UNetConfig):
    """The same U-Net as a map from noise of the data's shape to data, for drift on images."""

    name: Literal["latent_unet"]  # type: ignore[assignment]


class DiTConfig(Section):
    """A diffusion transformer."""

    name: Literal["dit"]
    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data in [-1, 1]")
    patch: PositiveInt = Field(4, description="side of a patch; must divide the image")
    width: PositiveInt = Field(384, description="of a token")
    depth: PositiveInt = Field(8, description="blocks")
    heads: PositiveInt = Field(6, description="of the attention; must divide width")
    mlp_ratio: PositiveFloat = Field(4.0, description="hidden width of a block's two layers, over width")
    xi_block: NonNegativeInt = Field(0, description="of dddm: blocks before xi enters, which run once an item and not once a particle")


class MLPConfig(Section):
    """A fully connected denoiser of points."""

    name: Literal["mlp"]
    sigma_data: PositiveFloat | None = Field(None, description="standard deviation of the data; null measures it")
    widths: list[PositiveInt] = Field([256, 256, 256], min_length=1, description="of the hidden layers")
    activation: Literal["relu", "silu"] = "relu"
    frequencies: PositiveInt = Field(8, description="Fourier features of the noise level")


class LatentMLPConfig(Section):
    """A fully connected map from noise to data; continuous, hence with bridges between modes."""

    name: Literal["latent_mlp"]
    sigma_data: PositiveFloat | None = Field(None, description="unit of the output; null is the data's standard deviation")
    widths: list[PositiveInt] = Field([256, 256], min_length=1, description="of the hidden layers")
    latent: PositiveInt = Field(16, description="dimension of the noise")
    activation: Literal["relu", "silu"] = "relu"
    embedding: PositiveInt = Field(32, description="numbers that stand for a label")
    gain: PositiveFloat = Field(1.0, description="of the last layer at initialisation")
    he: bool = Field(False, description="initial weights that keep the variance of ReLU activations, and not torch's own")


class CodedMLPConfig(Section):
    """A map from noise to data whose noise picks one of 2^bits learned codes; jumps, hence without bridges."""

    name: Literal["coded_mlp"]
    sigma_data: PositiveFloat | None = Field(None, description="unit of the output; null is the data's standard deviation")
    widths: list[PositiveInt] = Field([256, 256], min_length=1, description="of the hidden layers")
    latent: PositiveInt = Field(16, description="dimension of the noise")
    bits: PositiveInt = Field(8, description="latent coordinates whose signs pick the code")
    embedding: PositiveInt = Field(16, description="numbers that tell the network which code it is")
    activation: Literal["relu", "silu"] = "silu"
    gain: PositiveFloat = Field(0.1, description="of the last layer at initialisation")
    spread: PositiveFloat = Field(1.0, description="standard deviation of the centres at initialisation, in sigma_data")


class TeachersNetworkConfig(Section):
    """The teacher's own network, copied; `sigma_data` must be what the teacher was trained for."""

    name: Literal["teacher"]
    sigma_data: PositiveFloat = 0.5


class TrainerConfig(Section):
    """The engine and the cadences. Nothing here changes what is learned, except precision and the number of devices."""

    accelerator: str = Field("auto", description="what lightning-fabric offers: auto, cpu, cuda, mps, ...")
    devices: PositiveInt | Literal["auto"] = Field(1, description="devices a node; batch_size is divided among all")
    num_nodes: PositiveInt = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    threads: PositiveInt | Literal["auto"] = Field("auto", description="CPU threads; auto is 1 for small networks")
    accumulate: PositiveInt = Field(1, description="parts of a batch whose gradients are added up, to save memory")
    log_every: PositiveInt = 50
    sample_every: PositiveInt | None = Field(None, description="steps between sample grids; null for a tenth of the run")
    evaluate_every: PositiveInt | None = Field(None, description="steps between measurements while training; null for none")
    evaluate_samples: Annotated[int, Field(ge=40)] | None = Field(
        None, description="samples a measurement; null for 2,000 images or 10,000 points"
    )
    evaluate_features: str | None = Field(
        None, description="of images: inception, digits-v1, pixels-8x8 or a TorchScript file; null for what belongs to the data"
    )
    keep_best: str | None = Field(None, description="a figure, such as frechet, whose best checkpoint is kept in best/; null for none")
    checkpoint_every: PositiveInt | None = Field(None, description="steps between checkpoints; null for a tenth of the run")
    keep_checkpoints: PositiveInt = 2
    tracker: Literal["none", "wandb", "tensorboard"] = "none"

    @property
    def known_devices(self) -> int:
        """Devices on all nodes, as far as the recipe says: "auto" counts as one a node."""
        return self.num_nodes * (1 if self.devices == "auto" else self.devices)

    @model_validator(mode="after")
    def _measured(self) -> "TrainerConfig":
        for key in ("keep_best", "evaluate_features"):
            if getattr(self, key) is not None and self.evaluate_every is None:
                raise ValueError(f"{key} is {getattr(self, key)!r}, but nothing is measured while training; give evaluate_every, too")
        return self


class Recipe(Section):
    """Everything that a training run depends on."""

    method: Annotated[TeacherConfig | DMD2Config | DriftConfig | DDDMConfig, Field(discriminator="name")]
    data: Annotated[DigitsConfig | PhotosConfig | ImagesConfig | Cifar10Config | ToyConfig | PointsConfig, Field(discriminator="name")]
    network: Annotated[
        UNetConfig | EDMUNetConfig | DiTConfig | MLPConfig | LatentUNetConfig | LatentMLPConfig | CodedMLPConfig | TeachersNetworkConfig,
        Field(discriminator="name"),
    ]
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: PositiveInt = 1000
    batch_size: PositiveInt = Field(128, description="items a step, over all devices")

    @property
    def power(self) -> float:
        """The gamma of the density ``p^gamma`` that samples are measured against: the method's for points, 1 for images."""
        return float(getattr(self.method, "gamma", 1.0)) if self.data.name in ("toy", "points") else 1.0

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        points = self.data.name in ("toy", "points")
        on_images = ["unet", "dit"] if isinstance(self.method, DDDMConfig) else ["unet", "edm_unet", "dit"]  # which has no place for xi
        allowed = ["mlp"] if points else on_images
        if isinstance(self.method, DMD2Config):
            allowed = ["latent_mlp", "coded_mlp"] if self.method.teacher == EXACT else ["teacher", "latent_mlp", "coded_mlp"]
            allowed = allowed if points else ["teacher"]
        elif isinstance(self.method, DriftConfig):
            allowed = ["latent_mlp", "coded_mlp"] if points else ["latent_unet", "latent_mlp", "coded_mlp"]
        if self.network.name not in allowed:
            raise ValueError(
                f"network.name is {self.network.name!r}; with method {self.method.name} on {'points' if points else 'images'} it must be "
                f"{' or '.join(map(repr, allowed))}"
            )
        if isinstance(self.method, DMD2Config) and self.method.teacher == EXACT and self.data.name != "toy":
            raise ValueError(f"method.teacher is {EXACT!r}, which only data toy has; name the run folder of a trained one")
        figures = choices("points" if points else "images")
        if (best := self.trainer.keep_best) is not None and best not in figures:
            raise ValueError(f"trainer.keep_best is {best!r}{nearest(best, figures)}; allowed: {', '.join(figures)}")
        if points and self.trainer.evaluate_features is not None:
            raise ValueError("trainer.evaluate_features is for images; points are measured as they are: leave it out")
        if isinstance(self.method, DriftConfig) and self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; drift needs at least 2 samples a step, for each leaves itself out")
        if isinstance(self.method, DriftConfig) and self.method.gamma_by == "data" and not points:
            raise ValueError("method.gamma_by is 'data', which estimates the density of points; with images use 'field'")
        return self


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (PyYAML reads ``1e-4`` as a string otherwise), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, or a YAMLError for a key that is given twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """YAML with 1.2's floats, plain containers only. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def shipped_recipes() -> dict[str, Path]:
    """Names of the recipes inside the package, such as ``dmd2/digits``, and their files."""
    root = Path(str(files("fewstep"))) / "recipes"
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.glob("*/*.yaml"))}


def nearest(word: str, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest of `allowed`, or nothing."""
    close = difflib.get_close_matches(word, list(allowed), 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def load_recipe(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe called `source` (a shipped name, or a path of a YAML file) with ``key=value`` overrides such as ``method.lr=1e-3``.

    Raises UserError with every mistake of the file and the overrides, one a line.
    """
    shipped = shipped_recipes()
    path = shipped.get(source, Path(source))
    if not path.is_file():
        raise UserError(
            f"there is no recipe {source!r}{nearest(source, shipped)}; shipped are {', '.join(shipped)}, or give the path of a YAML file"
        )
    try:
        tree = parse_yaml(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{source} holds {type(tree).__name__}; a recipe has the keys {', '.join(Recipe.model_fields)}")
    tree.pop("about", None)
    tree.pop("made_by", None)  # what a run folder's recipe.yaml adds
    mistakes = [mistake for override in overrides if (mistake := _apply(tree, override))]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return validated(tree, source)


def validated(tree: Mapping[str, Any], source: str) -> Recipe:
    """`tree` as a Recipe, or a UserError that lists every mistake in it."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = _explain(error.errors())
        raise UserError(
            f"{source} has {len(lines)} mistake{'s' * (len(lines) > 1)}:\n" + "\n".join(f"  {line}" for line in lines)
        ) from None


def _apply(tree: dict[str, Any], override: str) -> str | None:
    """Set one ``a.b=value`` in `tree`; what is wrong with it, if anything is."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return f"{override!r} is not of the form key=value, such as steps=500 or method.lr=1e-3"
    try:
        value = parse_yaml(text) if text else None
    except yaml.YAMLError as error:
        return f"the value of {override!r} is not YAML ({' '.join(str(error).split())}); put quotes round it"
    node: Any = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            return f"{key} cannot be set: {part} is not a section"
    node[parts[-1]] = value
    return None


def _sections() -> dict[str, list[type[Section]]]:
    """The kinds that each section of a recipe can be of."""
    found: dict[str, list[type[Section]]] = {}
    for name, field in Recipe.model_fields.items():
        kinds = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type) and issubclass(a, Section)]
        if kinds:
            found[name] = kinds
    return found


def _explain(errors: Iterable[Any]) -> list[str]:
    """Validation errors in one sentence each: the path, what was got, what is allowed. A union's branches become one."""
    found: dict[str, list[str]] = {}
    for error in errors:
        path, sentence, allowed = _explain_one(error)
        found.setdefault(path + sentence, []).extend([allowed] * bool(allowed))
    return [sentence + (f"; allowed: {' or '.join(allowed)}" if allowed else "") for sentence, allowed in found.items()]


BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")  # pydantic's names of errors
BOUND_WORDS = {"gt": "greater than", "ge": "greater than or equal to", "lt": "less than", "le": "less than or equal to"}


def _explain_one(error: Any) -> tuple[str, str, str]:
    """(path, what is wrong, what is allowed) of one of pydantic's errors."""
    where = [str(part) for part in error["loc"]]
    section = where[0] if where else ""
    kinds = _sections().get(section, [])
    kind: type[Section] = Recipe
    if len(where) > 1 and kinds:
        kind = next((k for k in kinds if where[1] in _tags_of(k)), kinds[0])
        if len(kinds) > 1:
            where.pop(1)  # the tag that chose the kind
        if len(where) > 1 and where[1] in kind.model_fields:
            where = [section, where[1], *(f"[{part}]" for part in where[2:] if part.isdigit())]
    path = ".".join(where).replace(".[", "[") or "recipe"
    what, got, context = error["type"], error.get("input"), error.get("ctx", {})
    if what == "extra_forbidden":
        return path, f" is not a key{nearest(where[-1], kind.model_fields)} (allowed: {', '.join(kind.model_fields)})", ""
    if what == "missing":
        return path, " is missing; it must be given", ""
    if what == "union_tag_invalid":
        return f"{path}.name", f" is {context['tag']!r}{nearest(str(context['tag']), _tags(section))}", context["expected_tags"]
    if what == "union_tag_not_found":
        return f"{path}.name", " is missing", " or ".join(map(repr, _tags(section)))
    if what == "value_error":
        return path, f": {context['error']}", ""
    if what in ("model_type", "model_attributes_type"):
        return path, f" is {got!r}", "a section with keys of its own"
    message = error["msg"].removeprefix("Input should be ").replace("a valid ", "a ").replace("a integer", "an integer")
    if what in BOUNDS and where[-1] in kind.model_fields:
        given = [
            (name, getattr(limit, name)) for limit in kind.model_fields[where[-1]].metadata for name in BOUND_WORDS if hasattr(limit, name)
        ]
        message = " and ".join(f"{BOUND_WORDS[name]} {value}" for name, value in given) or message
    if what == "too_short":
        message = f"at least {context['min_length']} entry"
    return path, f" is {got!r}", message


def _tags_of(kind: type[Section]) -> tuple[str, ...]:
    """The names that choose `kind`; none for a section of one kind only."""
    return get_args(kind.model_fields["name"].annotation) if "name" in kind.model_fields else ()


def _tags(section: str) -> list[str]:
    """The names that `section` can have."""
    return [tag for kind in _sections().get(section, []) for tag in _tags_of(kind)]
