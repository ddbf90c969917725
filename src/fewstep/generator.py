"""Generators: a denoiser with the sampler that belongs to it, saved in a model folder that is enough to load it.

A model folder holds ``config.json`` (the arguments of `Generator`, and the number of the format) and ``model.safetensors``; there is no
pickle in it. Import paths in the config are imported only where `fewstep.registry` permits it.
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
from fewstep.networks.base import make_network, num_parameters, whole_state
from fewstep.pipelines.reference import Base, file_tensors, read_based
from fewstep.pipelines.vae import decoded
from fewstep.publishing import card_fields, filled, published
from fewstep.samplers import SAMPLERS
from fewstep.streams import Seed
from fewstep.weights import LORA_FILE, WEIGHTS, apart, based_arguments, load_folder, reading, weight_file

SHOWN = 10  # samples in the picture by which a notebook shows a generator


class Generator(nn.Module, PyTorchModelHubMixin, library_name="fewstep", tags=["fewstep", "few-step-generation"]):
    """A denoiser and the sampler that draws from it: a diffusion teacher, a distilled student, or a map from noise to data.

    Saved and loaded with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` (huggingface_hub).

    Args:
        shape: shape of one item, (C, H, W) for images.
        num_classes: number of classes, or None.
        sigma_data: standard deviation of the data that the network was trained for; for a push-forward the unit of its output.
        network: ``name`` and arguments of the network (see `fewstep.networks`).
        sampler: ``name`` and settings, as `fewstep.samplers.SAMPLERS` has them: for "heun" and "euler" ``steps`` (the default), the
            grid, and ``guidance_scale`` if guided; for "few_step" ``sigmas``, or ``levels``, a list for each number of steps, with
            ``steps``; for "distributional" ``steps``, ``churn``, and ``guidance_scale`` if guided; for "two_time" ``steps``, ``churn``
            and its grid; for "push_forward" none.
        info: further information to save: method, recipe, step, whether labels were dropped in training.
        denoiser: ``name`` and settings of the denoiser (see `fewstep.denoisers.DENOISERS`); None is ``{"name": "preconditioned"}``.
        units: ``location`` and ``scale`` of each column of points, by which samples are brought to the data's units; None for no change.
        latents: ``model``, the pipeline whose VAE decodes the samples, and ``vae``, that VAE's checksum, if known; None for others.
        base: pipeline network that holds or underlies the weights, see `fewstep.pipelines.reference.Base`; None for weights of its own.

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
        with contextlib.nullcontext() if base is None else torch.device("meta"):  # the weights are in the pipeline
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
        """Shape of the noise from which one item is generated."""
        return tuple(getattr(self.denoiser, "latent_shape", self.shape))

    @property
    def is_denoiser(self) -> bool:
        """Whether the generator denoises at every noise level, and so can be a teacher."""
        return self.kind.every_level

    @property
    def any_steps(self) -> bool:
        """Whether the sampler allows several numbers of steps, with ``steps`` as the default."""
        return "steps" in self.sampler

    @property
    def guidance_scale(self) -> float:
        """Default scale of classifier-free guidance; 1 is no guidance."""
        return float(self.sampler.get("guidance_scale", 1.0))

    @property
    def step_counts(self) -> list[int] | None:
        """The numbers of steps that the sampler allows; None for any number."""
        return self.kind.counts(self.sampler)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(itertools.chain(self.parameters(), *(ground.parameters() for ground in grounds(self)))).device

    @property
    def told(self) -> Any:
        """The network of a text-to-image generator, whose attribute ``prompts`` is its table of prompts; None for other generators."""
        return network if hasattr(network := getattr(self.denoiser, "network", None), "prompts") else None

    @property
    def lacks_prompts(self) -> bool:
        """Whether this is a text-to-image generator without a table of prompts."""
        return self.told is not None and self.told.prompts is None

    def tell(self, prompts: Any) -> "Generator":
        """Make `prompts` (see `fewstep.networks.prompts.Rows`, or None) the table whose rows labels stand for; return the generator."""
        self.told.prompts, self.num_classes = prompts, self.num_classes if prompts is None else len(prompts)
        for ground in (self.denoiser, *grounds(self)):
            ground.num_classes = self.num_classes  # type: ignore[assignment]
        return self

    def __repr__(self) -> str:
        """Return the kind of items, method, network, sampler and device in words."""
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
        # the config.json that PyTorchModelHubMixin writes would hold defaults in place of arguments that were not given
        (save_directory / "config.json").write_text(json.dumps(self.config, indent=2))

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the weight file, as safetensors takes them: all weights, or with a `base` its low-rank changes."""
        return apart(self.state_dict()) if self.base is None else file_tensors(self.denoiser)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Generator":
        """Implement ``from_pretrained`` by `load`, so that a model on the Hub is read like a local folder."""
        asking = {key: options[key] for key in hub.ASKING if options.get(key)}
        return load(model_id, options.get("map_location", "cpu"), options.get("allow", ()), options.get("revision"), **asking)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card for the Hub, with the licence that ``info["licence"]`` states, if any; see `card_fields`."""
        return filled(super().generate_model_card(*args, **kwargs), card_fields(self, self.info.get("licence")))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish this generator on the Hub, see `published`; `options` are those of huggingface_hub. Return the address of the commit."""
        return super(Generator, published(self)).push_to_hub(repo_id, **options)

    @property
    def config(self) -> dict[str, Any]:
        """Content of config.json: `arguments`, and the number of the format."""
        return {"format": FORMAT, **self.arguments}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `Generator` that make this generator again, as plain values."""
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
        """Return a generator of the same kind with another sampler, and a copy of this generator's weights or of those of `denoiser`.

        Of a network with low-rank changes (LoRA) only the changes are copied, and the network itself is shared.
        """
        source, arguments = denoiser or self.denoiser, {**self.arguments, "sampler": dict(sampler), "info": dict(info)}
        if self.base is not None and isinstance(source, Adapted):
            return standing_on(copy.deepcopy(source), {**arguments, "base": self.base.changed_by(source).config})
        with torch.random.fork_rng(devices=[]):  # random initial weights, which are replaced below, leave torch's random state unchanged
            other = Generator(**{**arguments, "base": None})
        other.denoiser.load_state_dict(whole_state(source))
        if self.told is not None and not self.lacks_prompts:
            other.tell(self.told.prompts)
        return other.to(self.device).eval()

    def reworked(self, sampler: Mapping[str, Any], denoiser: Mapping[str, Any], **network: Any) -> "Generator":
        """Return a student with this generator's weights, but another sampler and denoiser, and further arguments for its `network`.

        Weights that only the new network has keep their initial values. Raises ValueError where it lacks a weight of this generator.
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
        """Return the default number of steps (noise levels) of `sample`."""
        return self.sampler["steps"] if self.any_steps else (self.step_counts or [1])[0]

    def evaluations(self, steps: int | None = None, sampler: str | None = None, guidance_scale: float | None = None) -> int:
        """Return the number of network evaluations for one sample; guidance (None for the default) doubles it, where it is not 1."""
        kind = SAMPLERS.get(str(sampler), self.kind)
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        return kind.evaluations(steps or self.default_steps()) * (1 if scale == 1.0 else 2)

    def sigmas(self, steps: int | None = None) -> Tensor:
        """Return the noise levels for `steps` (for "distributional" the times), float64 [steps], descending.

        Raises UserError for a number of steps that the sampler does not allow.
        """
        return self.kind.sigmas(self.sampler, checked_steps(self, steps))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; empty where they are not known."""
        names = self.info.get("class_names") or ()
        return tuple(map(str, names)) if len(names) == self.num_classes else ()

    def labels(self, num: int, labels: Labels = None, first: int = 0) -> Tensor | None:
        """Return labels int64 [num] for `sample`: `labels` repeated to length, or 0, 1, 2, ... in turn; None if there are no classes.

        A string is the name of a class (see `class_names`). The labels are those of samples from number `first` on. Raises UserError for
        labels of a generator without classes, for a name of no class or of several, and for numbers outside 0..num_classes - 1.
        """
        if self.num_classes is None:
            if labels is not None:
                raise UserError("labels were given, but this generator has no classes; leave them out")
            return None
        return repeated_labels(num, labels, self.class_names, self.num_classes, first)

    def pixels(self, samples: Tensor) -> Tensor:
        """Return `samples` as images float32 [N, C, H, W] in [-1, 1]: latents decoded by the VAE of their pipeline, others unchanged."""
        return samples if self.latents is None else decoded(samples, str(self.latents["model"]), self.latents.get("vae"))

    def to_pil(self, samples: Tensor) -> list[Any]:
        """Return a `PIL.Image.Image` for each of `samples` [N, C, H, W] (in [-1, 1], C 1 or 3; or latents). Raises UserError for points."""
        return pil.to_pil(self.pixels(samples))

    def _repr_png_(self) -> bytes | None:
        """Return the picture that a notebook shows: a PNG with a row of samples from seed 0; None for points and for latents."""
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
        """Draw `num` samples [num, *shape], float32, on this generator's device; images lie in [-1, 1], points are in the data's units.

        Points so far from 0 that float32 cannot tell them apart are float64.

        Args:
            num: number of samples.
            labels: class of each sample, by number or by name (see `class_names`), [num] or shorter (then repeated); default 0, 1, 2, ...
                in turn.
            seed: one seed, which gives the same noise on every device for the same `num` and `batch_size`; or one for each sample, which
                then depends on its own seed alone, however samples are divided into calls and batches; None draws a new seed.
            steps: number of noise levels; a distilled student allows only the numbers that it was distilled for.
            sampler: "heun" or "euler", for a generator that integrates an ODE; None for the generator's own.
            guidance_scale: scale of classifier-free guidance, for networks trained with label dropout; None for the generator's own.
            batch_size: samples for each network evaluation; None for 256 images, 10,000 points, or fewer of large latents.
            churn: new noise in each step of a "distributional" or "two_time" sampler, from 0 (none) to 1; None for the generator's own.
            prompts: prompts for a text-to-image generator, repeated to `num`; None takes the rows of its table of prompts in turn.

        Raises:
            UserError: (a ValueError) for a number, seed, batch size, label, step count, sampler, churn, guidance or prompts that this
                generator does not allow.

        """
        check_memory(self, num)
        if prompts is not None:
            with asked(self, prompts, num):
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
        """Return an iterator over the samples of `sample` in batches [B, *shape], so that they may be more than memory holds.

        The arguments are checked before the first batch is drawn. Raises UserError as `sample` does.
        """
        return draw_batches(self, num, labels, seed, steps, sampler, guidance_scale, batch_size, churn)


def sample(path: str | Path, num: int, allow: Iterable[str] = (), **options: Any) -> Tensor:
    """Return `num` samples [num, *shape] of the generator at `path`: ``load(path, allow=allow).sample(num, **options)``."""
    return load(path, allow=allow).sample(num, **options)


def load(
    path: str | Path, device: str | torch.device = "cpu", allow: Iterable[str] = (), revision: str | None = None, **asking: Any
) -> Generator:
    """Return the generator at `path`, a run folder, a model folder, or an id on the Hugging Face Hub, in eval mode on `device`.

    A network of the user's own is in a module whose code runs when it is imported. It is imported if it is installed as an entry point,
    registered, or in a package in `allow`. Of the Hub `revision` is a branch, tag or commit, and `asking` has options of `hub.fetched`.
    Raises UserError for other such networks, where there is no generator, and where its files do not fit together.
    """
    folder = at_home(path)
    if (folder / "model").is_dir():
        folder = folder / "model"
    with registry.allowing(allow):
        if folder.is_dir():
            return _loaded(folder, str(folder)).to(device).eval()
        if folder.exists() or not hub.is_model(str(path)):
            raise UserError(f"{path} is not a folder; give a run folder, a model folder, or a Hub id (owner/name)")
        fetched = hub.fetched(str(path), str(path), ["config.json", WEIGHTS, LORA_FILE], revision, **asking)
        return _loaded(fetched, str(path)).to(device).eval()


def standing_on(denoiser: nn.Module, arguments: Mapping[str, Any]) -> Generator:
    """Return the generator that `arguments` describe, with `denoiser` as its denoiser."""
    generator = Generator(**arguments)
    generator.denoiser = denoiser
    return generator.eval()


def _loaded(folder: Path, name: str) -> Generator:
    """Return the generator in a model folder, called `name` in messages; a generator with a `base` also takes the pipeline's weights."""
    if (arguments := based_arguments(folder, name)) is None:
        generator = load_folder(folder, name, Generator)
    else:
        with reading(name):
            base = Base.of(arguments["base"])
            generator = standing_on(read_based(base, folder, float(arguments["sigma_data"])), arguments)
    table = generator.info.get("prompts")
    if generator.told is not None and isinstance(table, str) and (Path(table) / MANIFEST).is_file():
        with contextlib.suppress(DataError):  # a missing table is reported when samples are drawn
            if (found := PromptTable(Path(table))).manifest.fits(generator.told.takes, generator.info.get("encoders")):
                generator.tell(found)
    return generator
