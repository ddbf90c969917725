"""What is shipped: a denoiser with the sampler that belongs to it, in a folder that loads alone.

A model folder holds ``config.json`` (the arguments of `Generator`, and the number of the format) and ``model.safetensors``; there is no
pickle in it. Import paths in the config are followed only where `fewstep.registry` permits it.
"""

import contextlib
import copy
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from fewstep import hub, pil, registry
from fewstep.class_labels import Labels, repeated_labels
from fewstep.data.errors import DataError
from fewstep.data.prompt_table import MANIFEST, PromptTable
from fewstep.data.units import Units
from fewstep.denoisers.adapted import Adapted, grounds
from fewstep.drawing import asked, check_memory, checked_steps, draw_batches
from fewstep.errors import UserError
from fewstep.files import at_home
from fewstep.model_config import FORMAT, checked_denoiser, checked_sampler, inherited
from fewstep.networks.base import frozen as frozen
from fewstep.networks.base import make_network, num_parameters
from fewstep.pipelines.reference import Base, file_tensors, read_based
from fewstep.pipelines.vae import decoded
from fewstep.samplers import SAMPLERS
from fewstep.streams import Seed
from fewstep.weights import LORA_FILE, WEIGHTS, based_arguments, load_folder, reading, weight_file

SHOWN = 10  # samples in a notebook's picture


class Generator(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="fewstep",
    tags=["fewstep", "few-step-generation"],
    license="mit",
):
    """A trained denoiser and how to sample from it: a diffusion teacher, a distilled student, or a map from noise to data.

    Saved and loaded with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` (huggingface_hub).

    Args:
        shape: shape of one item, (C, H, W) for images.
        num_classes: number of classes, or None.
        sigma_data: standard deviation of the data that the network was trained for; a push-forward's unit of output.
        network: the network's name and arguments (see `fewstep.networks`).
        sampler: its ``name`` and what that needs (see `fewstep.samplers.SAMPLERS`): of "heun" and "euler" ``steps``, a default, the grid
            ``sigma_min``, ``sigma_max``, ``rho``, and ``guidance_scale`` if it is guided; of "few_step" ``sigmas``, or ``levels``, a list
            for each number of steps, with ``steps``; of "distributional" ``steps`` and ``churn``; of "push_forward" nothing.
        info: anything worth keeping: method, recipe, step, whether labels were dropped in training.
        denoiser: its ``name`` and settings (see `fewstep.denoisers.DENOISERS`); None is ``{"name": "preconditioned"}``.
        units: ``location`` and ``scale`` of each column of points, in which samples come out; None for those that were learned.
        latents: ``model``, the pipeline whose VAE makes pixels of the samples; None for samples that are pixels, or points.
        base: the network that its weights are, or change, see `fewstep.pipelines.reference.Base`; None for weights of its own.

    Raises:
        ValueError: for a name that is not known, and for settings that are missing or do not go together.

    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int | None,
        sigma_data: float,
        network: Mapping[str, Any],
        sampler: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
        denoiser: Mapping[str, Any] | None = None,
        units: Mapping[str, Any] | None = None,
        latents: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.network_config = dict(network)
        self.denoiser_config = {"name": "preconditioned"} if denoiser is None else dict(denoiser)
        self.sampler = dict(sampler)
        self.info = dict(info or {})
        self.units = None if units is None else Units.of(units)
        self.latents = None if latents is None else dict(latents)
        self.base = None if base is None else Base.of(base)
        if self.units is not None and self.shape != self.units.scale.shape:
            raise ValueError(f"units have {len(self.units.scale)} columns, and one item has shape {list(self.shape)}; give one a column")
        self.kind = checked_sampler(sampler)
        cls, settings = checked_denoiser(self.denoiser_config, self.sampler, self.kind, sigma_data)
        with contextlib.nullcontext() if base is None else torch.device("meta"):  # its weights are elsewhere
            made = make_network(network, self.shape, num_classes)
        try:
            self.denoiser: nn.Module = cls(made, sigma_data, num_classes, **settings)
        except TypeError as error:
            raise ValueError(f"denoiser is {self.denoiser_config}, whose settings do not fit it: {error}") from error

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data that the network was trained for."""
        return float(self.denoiser.sigma_data)  # type: ignore[arg-type]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one item is made of."""
        shape = getattr(self.denoiser, "latent_shape", self.shape)
        return tuple(shape)

    @property
    def is_denoiser(self) -> bool:
        """Whether it denoises at every noise level, and so may be a teacher."""
        return self.kind.every_level

    @property
    def any_steps(self) -> bool:
        """Whether it can be sampled with several numbers of steps; its sampler names the default."""
        return "steps" in self.sampler

    @property
    def guidance_scale(self) -> float:
        """Classifier-free guidance with which it is sampled where none is asked for; 1 is none."""
        return float(self.sampler.get("guidance_scale", 1.0))

    @property
    def step_counts(self) -> list[int] | None:
        """The numbers of steps that it can be sampled with; None for any."""
        return self.kind.counts(self.sampler)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(itertools.chain(self.parameters(), *(ground.parameters() for ground in grounds(self)))).device

    @property
    def told(self) -> Any:
        """The network that is told prompts, in whose attribute ``prompts`` their table is; None for other generators."""
        return network if hasattr(network := getattr(self.denoiser, "network", None), "prompts") else None

    @property
    def lacks_prompts(self) -> bool:
        """Whether it is told prompts, and has none."""
        return self.told is not None and self.told.prompts is None

    def tell(self, prompts: Any) -> "Generator":
        """Have labels be rows of `prompts`, a table of them (`fewstep.networks.prompts.Rows`), or None; itself."""
        self.told.prompts, self.num_classes = prompts, self.num_classes if prompts is None else len(prompts)
        for ground in (self.denoiser, *grounds(self)):
            ground.num_classes = self.num_classes  # type: ignore[assignment]
        return self

    def __repr__(self) -> str:
        """What it makes, how, and of what size."""
        steps, name = self.default_steps(), self.info.get("method")
        items = f"{'x'.join(map(str, self.shape))} {'latents' if self.latents else 'images' if len(self.shape) == 3 else 'points'}"
        classes = f" of {self.num_classes} classes" if self.num_classes else ""
        evaluations = self.evaluations()
        return (
            f"Generator of {items}{classes}{f', made by {name}' if name else ''}: network {self.network_config['name']} with "
            f"{num_parameters(self):,} parameters, sampler {self.sampler['name']} in {steps} step{'s' * (steps > 1)} "
            f"({evaluations} evaluation{'s' * (evaluations > 1)} a sample), on {self.device}"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        if (file := weight_file(self.config)) is not None:
            save_file(self.saved_tensors(), str(save_directory / file), {"format": "pt"})
        # the mix-in's own config.json would hold the defaults of arguments that were not given
        (save_directory / "config.json").write_text(json.dumps(self.config, indent=2))

    def saved_tensors(self) -> dict[str, Tensor]:
        """What its file of weights holds: all of them, or where it stands on another's its changes; contiguous, as the format asks."""
        own = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        return own if self.base is None else file_tensors(self.denoiser)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Generator":
        """What ``from_pretrained`` calls: `load`, so that a folder of the Hub is read like any other."""
        return load(model_id, options.get("map_location", "cpu"), options.get("allow", ()), options.get("revision"))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that goes with a model folder to the Hub; what was imported keeps its own licence there, or none."""
        card = super().generate_model_card(*args, **kwargs)
        if self.info.keys() & {"licence", "imported_from"}:
            card.data["license"] = self.info.get("licence")
        return card

    @property
    def config(self) -> dict[str, Any]:
        """What config.json holds: the arguments that make this generator again, as plain values, and the format's number."""
        return {"format": FORMAT, **self.arguments}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that make this generator again, as plain values."""
        return {
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "sigma_data": self.sigma_data,
            "network": self.network_config,
            "denoiser": self.denoiser_config,
            "sampler": self.sampler,
            "info": self.info,
            **({} if self.units is None else {"units": self.units.config}),
            **({} if self.latents is None else {"latents": self.latents}),
            **({} if self.base is None else {"base": self.base.config}),
        }

    def derive(self, sampler: Mapping[str, Any], info: Mapping[str, Any], denoiser: nn.Module | None = None) -> "Generator":
        """A generator of the same kind with another sampler: a copy of this one's weights, or of those of `denoiser`.

        What only changes a network (LoRA) is copied, and the network is not.
        """
        source, arguments = denoiser or self.denoiser, {**self.arguments, "sampler": dict(sampler), "info": dict(info)}
        if self.base is not None and isinstance(source, Adapted):
            return standing_on(copy.deepcopy(source), {**arguments, "base": self.base.changed_by(source).config})
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
            other = Generator(**{**arguments, "base": None})
        other.denoiser.load_state_dict(source.state_dict())
        if self.told is not None and not self.lacks_prompts:
            other.tell(self.told.prompts)
        return other.to(self.device).eval()

    def reworked(self, sampler: Mapping[str, Any], denoiser: Mapping[str, Any], **network: Any) -> "Generator":
        """A student with this one's weights under another sampler and denoiser, its network made with further arguments.

        Weights that only the new network has are as it makes them. Raises ValueError where weights of this one have no place in it.
        """
        with torch.random.fork_rng(devices=[]):
            arguments = {
                **self.arguments,
                "network": {**self.network_config, **network},
                "sampler": dict(sampler),
                "denoiser": dict(denoiser),
                "info": inherited(self.info),
                "base": None,
            }
            other = Generator(**arguments)
        found = other.denoiser.load_state_dict(self.denoiser.state_dict(), strict=False)
        if found.unexpected_keys:
            raise ValueError(f"the network {self.network_config['name']} loses {found.unexpected_keys[0]} when it is made with {network}")
        return other.to(self.device)

    def default_steps(self) -> int:
        """Number of noise levels that `sample` uses where none is asked for."""
        return self.sampler["steps"] if self.any_steps else (self.step_counts or [1])[0]

    def evaluations(self, steps: int | None = None, sampler: str | None = None) -> int:
        """How many network evaluations one sample costs with its own guidance, which doubles them."""
        kind = SAMPLERS[sampler] if sampler else self.kind
        return kind.evaluations(steps or self.default_steps()) * (1 if self.guidance_scale == 1.0 else 2)

    def sigmas(self, steps: int | None = None) -> Tensor:
        """The noise levels for `steps` (times, for "distributional"), float64 [steps], descending.

        Raises UserError where the generator has no such grid.
        """
        return self.kind.sigmas(self.sampler, checked_steps(self, steps))

    @property
    def class_names(self) -> tuple[str, ...]:
        """What its classes are called, in the order of their numbers; empty where nobody knows."""
        names = self.info.get("class_names") or ()
        return tuple(map(str, names)) if len(names) == self.num_classes else ()

    def labels(self, num: int, labels: Labels = None, first: int = 0) -> Tensor | None:
        """Labels int64 [num] for `sample`: those given, repeated to length, or 0, 1, 2, ... in turn; None if there are no classes.

        A string is the name of a class (see `class_names`). They begin at sample number `first`. Raises UserError for labels of a generator
        without classes, for a name that is none of theirs or of several, and outside 0..num_classes - 1.
        """
        if self.num_classes is None:
            if labels is not None:
                raise UserError("labels were given, but this generator has no classes; leave them out")
            return None
        return repeated_labels(num, labels, self.class_names, self.num_classes, first)

    def pixels(self, samples: Tensor) -> Tensor:
        """`samples` as images float32 [N, C, H, W] in [-1, 1]: latents by the VAE of their pipeline, others as they are."""
        return samples if self.latents is None else decoded(samples, str(self.latents["model"]))

    def to_pil(self, samples: Tensor) -> list[Any]:
        """One `PIL.Image.Image` for each of `samples` [N, C, H, W] in [-1, 1], of one channel or three. Raises UserError for points."""
        return pil.to_pil(self.pixels(samples))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: a row of samples from seed 0, of images; None for points."""
        if len(self.shape) != 3 or self.shape[0] not in (1, 3) or self.latents is not None:
            return None
        return pil.row_png(self.to_pil(self.sample(SHOWN, seed=0)))

    def sample(
        self,
        num: int,
        labels: Labels = None,
        seed: Seed = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        churn: float | None = None,
        prompts: str | Sequence[str] | None = None,
    ) -> Tensor:
        """Draw `num` samples [num, *shape], float32, on this generator's device; images lie in [-1, 1], points in the user's units.

        Points so far from 0 that float32 cannot tell them apart are float64.

        Args:
            num: how many.
            labels: class of each sample, by number or by name (see `class_names`), [num] or shorter (then repeated); default 0, 1, 2, ...
                in turn.
            seed: one seed, and the same seed, `num` and `batch_size` give the same noise on every device; or one for each sample, which
                then depends on its own seed alone, however samples are dealt into calls and batches; None draws a new one.
            steps: noise levels; a distilled student only has the numbers it was distilled for.
            sampler: "heun" or "euler", for a generator that integrates an ODE.
            guidance_scale: classifier-free guidance, which needs a network trained with label dropout; None for its own.
            batch_size: samples a network evaluation; 256 images or 10,000 points if None.
            churn: of a distributional denoiser's bridge, from 0 (no new noise) to 1 (DDPM's posterior); None for its own.
            prompts: of a text-to-image generator: what each sample is of, repeated to `num`; None takes the rows of its table in turn.

        Raises:
            UserError: (a ValueError) for a number, seed, batch size, label, step count, sampler, churn, guidance or prompts that this
                generator cannot serve.

        """
        check_memory(self, num)
        if prompts is not None:
            with asked(self, prompts):
                return self.sample(num, labels, seed, steps, sampler, guidance_scale, batch_size, churn)
        return torch.cat(list(self.batches(num, labels, seed, steps, sampler, guidance_scale, batch_size, churn)))

    def batches(
        self,
        num: int,
        labels: Labels = None,
        seed: Seed = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        churn: float | None = None,
    ) -> Iterator[Tensor]:
        """What `sample` gives, one batch [B, *shape] after the other, so that there may be more of it than memory holds.

        What is asked for is checked before the first batch is drawn. Raises as `sample` does.
        """
        return draw_batches(self, num, labels, seed, steps, sampler, guidance_scale, batch_size, churn)


def sample(path: str | Path, num: int, allow: Iterable[str] = (), **options: Any) -> Tensor:
    """`num` samples [num, *shape] of the generator at `path`: ``load(path, allow=allow).sample(num, **options)``."""
    return load(path, allow=allow).sample(num, **options)


def load(path: str | Path, device: str | torch.device = "cpu", allow: Iterable[str] = (), revision: str | None = None) -> Generator:
    """The generator in a run folder, in its model/ folder, or on the Hugging Face Hub under that id, in eval mode.

    A network of somebody's own is a module of theirs, which runs when it is imported: it is, where it is installed as an entry point,
    registered, or in one of the packages that are in `allow`. Raises UserError where it is not, where there is no generator, or where its
    files do not fit together.
    """
    folder = at_home(path)
    if (folder / "model").is_dir():
        folder = folder / "model"
    with registry.allowing(allow):
        if folder.is_dir():
            return _loaded(folder, str(folder)).to(device).eval()
        if folder.exists() or not hub.is_id(str(path)):
            raise UserError(f"{path} is not a folder; give a run folder, a model folder, or a Hub id (owner/name)")
        fetched = hub.fetched(str(path), str(path), ["config.json", WEIGHTS, LORA_FILE], revision)
        return _loaded(fetched, str(path)).to(device).eval()


def standing_on(denoiser: nn.Module, arguments: Mapping[str, Any]) -> Generator:
    """The generator that `arguments` describe, around a `denoiser` that is there already."""
    generator = Generator(**arguments)
    generator.denoiser = denoiser
    return generator.eval()


def _loaded(folder: Path, name: str) -> Generator:
    """The generator in a model folder called `name`, whose weights lie there, or else in the pipeline that it stands on."""
    if (arguments := based_arguments(folder, name)) is None:
        generator = load_folder(folder, name, Generator)
    else:
        with reading(name):
            base = Base.of(arguments["base"])
            generator = standing_on(read_based(base, folder, float(arguments["sigma_data"])), arguments)
    table = generator.info.get("prompts")
    if generator.told is not None and isinstance(table, str) and (Path(table) / MANIFEST).is_file():
        with contextlib.suppress(DataError):  # told of where labels are asked for
            if (found := PromptTable(Path(table))).manifest.fits(generator.told.takes, generator.info.get("encoders")):
                generator.tell(found)
    return generator
