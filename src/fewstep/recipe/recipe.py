"""What a recipe is: a method, a data set and a network, each a room with settings of its own, and how they are trained."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, SerializeAsAny, model_validator

from fewstep import registry
from fewstep.metrics.figures import choices
from fewstep.recipe.mistakes import nearest
from fewstep.sections import DataSettings, MethodSettings, NetworkSettings, NonNegativeInt, Section, UserPath

FORMAT = 3  # of recipe.yaml in a run folder; 1 is version 0.1.0's, which had no number; up to 2 points were learned as they came


# what `fewstep.finding` has rules for
Findable = Literal[
    "batch_size",
    "data.channels",
    "data.config",
    "data.flip",
    "data.holdout",
    "data.image_column",
    "data.label_column",
    "data.path",
    "data.resize",
    "data.size",
    "method.ema_decay",
    "method.generator_optimizer.lr",
    "method.generator_optimizer.warmup",
    "method.guidance_optimizer.lr",
    "method.optimizer.lr",
    "method.optimizer.warmup",
    "method.optimizer.weight_decay",
    "method.sigma_mean",
    "network.channels",
    "network.groups",
    "network.head_dim",
    "network.patch",
    "network.sigma_data",
]


class Wandb(Section):
    """Where Weights & Biases keeps the run."""

    project: str = Field("fewstep", description="name of the project")
    entity: str | None = Field(None, description="user or team; null for the default of the account")
    tags: list[str] = Field(default_factory=list, description="words that the run can be found by")


class Trainer(Section):
    """The engine and the cadences. Nothing here changes what is learned, except precision and where weights start."""

    accelerator: str = Field("auto", description="what lightning-fabric offers: auto, cpu, cuda, mps, ...")
    devices: PositiveInt | Literal["auto"] = Field(1, description="devices a node; batch_size is divided among all")
    num_nodes: PositiveInt = Field(1, description="machines that train together, each with trainer.devices devices")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto", description="auto: ddp on several devices; fsdp: each keeps its share of all weights, gradients and moments (FSDP2)"
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto", description="bf16-mixed: the networks' layers work in bfloat16; auto does so where it is at least 1.15 times as fast"
    )
    threads: PositiveInt | Literal["auto"] = Field(
        "auto", description="CPU threads; auto is 1 for small networks, and for others the fewest that are nearly as fast as more"
    )
    compile: bool | Literal["reduce-overhead"] = Field(
        False, description="compile the networks (torch.compile): faster steps after a slow first one; reduce-overhead: CUDA graphs, too"
    )
    checkpointing: bool = Field(
        False, description="compute activations again in the backward pass and keep few, in networks that can: those of diffusers"
    )
    data_on_device: bool | Literal["auto"] = Field(
        "auto", description="keep the training images on the GPU; auto: where they take at most a tenth of its free memory"
    )
    accumulate: PositiveInt = Field(1, description="parts of a batch whose gradients are added up, to save memory")
    workers: NonNegativeInt = Field(0, description="processes a device that read ahead, for data that does not lie in memory")
    log_every: PositiveInt = Field(50, description="steps between lines of metrics.jsonl")
    sample_every: PositiveInt | None = Field(None, description="steps between sample grids; null for a tenth of the run")
    evaluate_every: PositiveInt | None = Field(None, description="steps between measurements while training; null for none")
    evaluate_samples: Annotated[int, Field(ge=40)] | None = Field(
        None, description="samples a measurement; null for 2,000 images or 10,000 points"
    )
    evaluate_features: UserPath | None = Field(
        None,
        description="of images: a name such as inception, mnist or pixels-8x8, a .safetensors of tools/train_features.py, or a TorchScript "
        "file (code that runs); null for the data's own",
    )
    keep_best: str | None = Field(None, description="a figure, such as frechet, whose best checkpoint is kept in best/; null for none")
    checkpoint_every: PositiveInt | None = Field(None, description="steps between checkpoints; null for a tenth of the run")
    keep_checkpoints: PositiveInt = Field(2, description="checkpoints that are kept, the newest; older ones are deleted")
    tracker: Literal["none", "wandb", "tensorboard"] = Field("none", description="where numbers go beside metrics.jsonl")
    wandb: Wandb = Field(default_factory=Wandb, description="of tracker wandb: where it keeps the run")
    init: UserPath | None = Field(None, description="a run or model folder whose weights the network that ships starts from; null for none")

    @property
    def known_devices(self) -> int:
        """Devices on all nodes, as far as the recipe says: "auto" counts as one a node."""
        return self.num_nodes * (1 if self.devices == "auto" else self.devices)

    @model_validator(mode="after")
    def _whole(self) -> "Trainer":
        if self.strategy == "fsdp" and self.compile:
            raise ValueError(
                f"compile is {str(self.compile).lower()}, and strategy is fsdp, which gathers a network as it is called and not a compiled "
                "one; set compile to false, or strategy to ddp"
            )
        return self

    @model_validator(mode="after")
    def _measured(self) -> "Trainer":
        for key in ("keep_best", "evaluate_features"):
            if getattr(self, key) is not None and self.evaluate_every is None:
                raise ValueError(f"{key} is {getattr(self, key)!r}, but nothing is measured while training; give evaluate_every, too")
        return self


class Recipe(Section):
    """Everything that a training run depends on."""

    method: SerializeAsAny[MethodSettings] = Field(description="what is learned, and by which losses")
    data: SerializeAsAny[DataSettings] = Field(description="what is learned from, and held out")
    network: SerializeAsAny[NetworkSettings] = Field(description="what the weights belong to")
    trainer: Trainer = Field(default_factory=Trainer, description="the engine, and how often things are done")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of everything that is drawn: the same seed gives the same run")
    steps: PositiveInt = Field(1000, description="steps of the loop, each with one batch")
    batch_size: PositiveInt = Field(128, description="items a step, over all devices")
    finds: list[Findable] = Field(
        default_factory=list,
        description="settings that are found when a run begins, from its images or its teacher, whatever stands for them here",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        # a section whose kind is not known has been told of already
        known = ((self.method, MethodSettings), (self.data, DataSettings), (self.network, NetworkSettings))
        if all(isinstance(section, kind) for section, kind in known) and self.data.points is not None:
            self.check_fit(self.data.points)
        return self

    def check_fit(self, points: bool) -> None:
        """Raise ValueError where the sections do not go with each other, the data being points or images."""
        method, network, items = self.method, self.network, "points" if points else "images"
        roles = method.roles_on(points)
        if network.role not in roles or items not in network.items or not method.needs <= network.takes:
            known = registry.readable("networks").items()
            allowed = [name for name, own in known if own.role in roles and items in own.items and method.needs <= own.takes]
            raise ValueError(
                f"network.name is {network.name!r}; with method {method.name} on {items} it must be {' or '.join(map(repr, allowed))}"
            )
        method.check(self.data, points)
        best, figures = self.trainer.keep_best, choices("points" if points else "images")
        if best is not None and best not in figures:
            raise ValueError(f"trainer.keep_best is {best!r}{nearest(best, figures)}; allowed: {', '.join(figures)}")
        if points and self.trainer.evaluate_features is not None:
            raise ValueError("trainer.evaluate_features is for images; points are measured as they are: leave it out")

    def power(self, points: bool) -> float:
        """The gamma of the density ``p^gamma`` that samples are measured against: the method's for points, 1 for images."""
        return float(self.method.aims_at) if points else 1.0


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every default filled in."""
    return recipe.model_dump(mode="json", exclude=None if recipe.finds else {"finds"})
