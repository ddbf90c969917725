"""The classes of a recipe: a method, a data set and a network, each with settings of its own, and how they are trained."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, SerializeAsAny, model_validator

from fewstep import registry
from fewstep.metrics.figures import choices
from fewstep.recipe.mistakes import nearest
from fewstep.sections import DataSettings, MethodSettings, NetworkSettings, NonNegativeInt, Section, UserPath

# the format of recipe.yaml in a run folder; 1 is that of version 0.1.0, without a number; up to 2, points were learned unstandardized
FORMAT = 3


# the settings that `fewstep.finding` has rules for
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
    """Where Weights & Biases stores the run: project, entity and tags."""

    project: str = Field("fewstep", description="Weights & Biases project that the run is logged to")
    entity: str | None = Field(None, description="Weights & Biases user or team that the run belongs to; null for the account's default")
    tags: list[str] = Field(default_factory=list, description="tags of the run in Weights & Biases")


class Trainer(Section):
    """Devices, memory, logging and checkpoints. Nothing here changes what is learned, except precision and the initial weights."""

    accelerator: str = Field("auto", description="type of device, as lightning-fabric calls it, such as auto, cpu, cuda or mps")
    devices: PositiveInt | Literal["auto"] = Field(1, description="devices per node; batch_size is divided among the devices of all nodes")
    num_nodes: PositiveInt = Field(1, description="machines that train together, each with trainer.devices devices")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="how several devices share the work; ddp: each holds all weights; fsdp: weights, gradients and optimizer moments are "
        "sharded (FSDP2); auto: ddp on several devices",
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto",
        description="bf16-mixed: mixed precision, in which the networks' layers compute in bfloat16; 32-true: float32; auto: bf16-mixed "
        "where it is at least 1.15 times as fast",
    )
    threads: PositiveInt | Literal["auto"] = Field(
        "auto", description="CPU threads; auto: 1 for small networks, and for others the fewest threads that are nearly as fast as more"
    )
    compile: bool | Literal["reduce-overhead"] = Field(
        False,
        description="compile the networks (torch.compile), for faster steps after a slow first one; reduce-overhead: with CUDA graphs, too",
    )
    checkpointing: bool = Field(
        False,
        description="activation checkpointing, which saves memory by computing activations again in the backward pass; for networks of "
        "diffusers only",
    )
    data_on_device: bool | Literal["auto"] = Field(
        "auto", description="keep the training images in GPU memory; auto: where they take at most a tenth of the GPU's free memory"
    )
    accumulate: PositiveInt = Field(
        1, description="gradient accumulation: number of parts of a batch whose gradients are added up, to save memory"
    )
    workers: NonNegativeInt = Field(0, description="worker processes per device that read data ahead; unused for data held in memory")
    log_every: PositiveInt = Field(50, description="steps between lines of metrics.jsonl")
    sample_every: PositiveInt | None = Field(None, description="steps between sample grids; null for a tenth of the run")
    evaluate_every: PositiveInt | None = Field(None, description="steps between measurements while training; null for none")
    evaluate_samples: Annotated[int, Field(ge=40)] | None = Field(
        None, description="samples drawn for each measurement while training; null for 2,000 images or 10,000 points"
    )
    evaluate_features: UserPath | None = Field(
        None,
        description="feature network in which images are measured while training: a name such as inception, mnist or pixels-8x8, a "
        ".safetensors of tools/train_features.py, or a TorchScript file (code that runs); null for the data's own",
    )
    keep_best: str | None = Field(
        None, description="a measured figure, such as frechet, by which the best model is kept in the folder best/; null for none"
    )
    checkpoint_every: PositiveInt | None = Field(None, description="steps between checkpoints; null for a tenth of the run")
    keep_checkpoints: PositiveInt = Field(2, description="number of newest checkpoints that are kept; older ones are deleted")
    tracker: Literal["none", "wandb", "tensorboard"] = Field(
        "none", description="experiment tracker that gets figures, pictures and alarms beside metrics.jsonl"
    )
    wandb: Wandb = Field(default_factory=Wandb, description="where the tracker wandb (Weights & Biases) stores the run")
    init: UserPath | None = Field(
        None, description="a run or model folder whose weights initialize the network that ships; null for random initial weights"
    )

    @property
    def known_devices(self) -> int:
        """The number of devices on all nodes, as far as the recipe says: "auto" counts as one per node."""
        return self.num_nodes * (1 if self.devices == "auto" else self.devices)

    @model_validator(mode="after")
    def _whole(self) -> "Trainer":
        if self.strategy == "fsdp" and self.compile:
            raise ValueError(
                f"compile is {str(self.compile).lower()}, and strategy is fsdp, which gathers a network as it is called and cannot gather "
                "a compiled one; set compile to false, or strategy to ddp"
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

    method: SerializeAsAny[MethodSettings] = Field(description="the training method, which method.name chooses, and its settings")
    data: SerializeAsAny[DataSettings] = Field(description="the data set, which data.name chooses, and its training and held-out splits")
    network: SerializeAsAny[NetworkSettings] = Field(description="the network to train, which network.name chooses, and its settings")
    trainer: Trainer = Field(
        default_factory=Trainer, description="devices and precision, and how often to log, sample, measure and save checkpoints"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seed of all random numbers: the same seed gives the same run")
    steps: PositiveInt = Field(1000, description="length of the run in training steps, each on one batch")
    batch_size: PositiveInt = Field(128, description="items per training step, over all devices")
    finds: list[Findable] = Field(
        default_factory=list,
        description="keys of settings that are chosen automatically when a run begins, from its images or its teacher, in place of the "
        "values in this recipe",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        # a section of unknown name has been reported already
        known = ((self.method, MethodSettings), (self.data, DataSettings), (self.network, NetworkSettings))
        if all(isinstance(section, kind) for section, kind in known) and self.data.points is not None:
            self.check_fit(self.data.points)
        return self

    def check_fit(self, points: bool) -> None:
        """Raise ValueError where method, network, data and trainer do not fit together; the data are points if `points`, else images."""
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
        """Return the gamma of the density ``p^gamma`` that samples are measured against: the method's for points, 1 for images."""
        return float(self.method.aims_at) if points else 1.0


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested plain values, with every default filled in; an empty ``finds`` is left out."""
    return recipe.model_dump(mode="json", exclude=None if recipe.finds else {"finds"})
