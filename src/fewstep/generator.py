"""What is shipped: a denoiser with the sampler that belongs to it, in a folder that loads alone.

A model folder holds ``config.json`` (the arguments of `Generator`, and the number of the format) and ``model.safetensors``; there is no
pickle in it. Import paths in the config are followed only where `fewstep.registry` permits it.
"""

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from fewstep import hub, pil, registry
from fewstep.class_labels import Labels, label_tensor
from fewstep.data.units import Units
from fewstep.denoisers import Guided
from fewstep.errors import UserError
from fewstep.files import at_home
from fewstep.limits import memory
from fewstep.model_config import FORMAT, MOST_STEPS, checked_sampler, denoiser_class, inherited
from fewstep.networks.base import make_network, num_parameters
from fewstep.samplers import SAMPLERS
from fewstep.streams import Noise, Seed, seeded
from fewstep.weights import load_folder

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
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.network_config = dict(network)
        self.denoiser_config = {"name": "preconditioned"} if denoiser is None else dict(denoiser)
        self.sampler = dict(sampler)
        self.info = dict(info or {})
        self.units = None if units is None else Units.of(units)
        if self.units is not None and self.shape != self.units.scale.shape:
            raise ValueError(f"units have {len(self.units.scale)} columns, and one item has shape {list(self.shape)}; give one a column")
        self.kind = checked_sampler(sampler)
        if isinstance(sigma_data, bool) or not isinstance(sigma_data, int | float) or not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data is {sigma_data!r}; it must be a finite number above 0")
        cls, settings = denoiser_class(self.denoiser_config)
        if getattr(cls, "draws", "denoiser") != self.kind.of:
            fitting = [name for name, kind in SAMPLERS.items() if kind.of == getattr(cls, "draws", "denoiser")]
            raise ValueError(
                f"the sampler is {self.sampler['name']!r}, which does not draw from the denoiser {self.denoiser_config['name']!r}; "
                f"give one of {', '.join(fitting)}"
            )
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
        return next(self.parameters()).device

    def __repr__(self) -> str:
        """What it makes, how, and of what size."""
        steps, name = self.default_steps(), self.info.get("method")
        items = f"{'x'.join(map(str, self.shape))} {'images' if len(self.shape) == 3 else 'points'}"
        classes = f" of {self.num_classes} classes" if self.num_classes else ""
        evaluations = self.evaluations()
        return (
            f"Generator of {items}{classes}{f', made by {name}' if name else ''}: network {self.network_config['name']} with "
            f"{num_parameters(self):,} parameters, sampler {self.sampler['name']} in {steps} step{'s' * (steps > 1)} "
            f"({evaluations} evaluation{'s' * (evaluations > 1)} a sample), on {self.device}"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        # a channels_last convolution is not contiguous in memory, which the format asks for
        save_file({k: v.detach().contiguous() for k, v in self.state_dict().items()}, str(save_directory / "model.safetensors"))
        # the mix-in's own config.json would hold the defaults of arguments that were not given
        (save_directory / "config.json").write_text(json.dumps(self.config, indent=2))

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
        }

    def derive(self, sampler: Mapping[str, Any], info: Mapping[str, Any], denoiser: nn.Module | None = None) -> "Generator":
        """A generator of the same kind with another sampler: a copy of this one's weights, or of those of `denoiser`."""
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
            other = Generator(**{**self.arguments, "sampler": dict(sampler), "info": dict(info)})
        other.denoiser.load_state_dict((denoiser or self.denoiser).state_dict())
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
        """How many network evaluations one sample costs with the guidance that is its own; guidance doubles them."""
        kind = SAMPLERS[sampler] if sampler else self.kind
        return kind.evaluations(steps or self.default_steps()) * (1 if self.guidance_scale == 1.0 else 2)

    def sigmas(self, steps: int | None = None) -> Tensor:
        """The noise levels for `steps` (times, for "distributional"), float64 [steps], descending.

        Raises UserError where the generator has no such grid.
        """
        default, counts = self.default_steps(), self.step_counts
        steps = default if steps is None else steps
        if not 1 <= steps <= MOST_STEPS and counts is None:
            raise UserError(f"steps is {steps}; give {'at least 1' if steps < 1 else f'at most {MOST_STEPS:,}'}")
        if counts is not None and steps not in counts:
            if len(counts) > 1:
                raise UserError(f"steps is {steps}; this generator was made for {', '.join(map(str, counts))}: give one of these")
            raise UserError(f"steps is {steps}; this generator was made for {default}: leave steps out, or give {default}")
        return self.kind.sigmas(self.sampler, steps)

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
        if labels is None:
            return torch.arange(first, first + num) % self.num_classes
        wanted = label_tensor(labels, self.class_names, self.num_classes)
        return wanted[torch.arange(first, first + num) % len(wanted)]

    def to_pil(self, samples: Tensor) -> list[Any]:
        """One `PIL.Image.Image` for each of `samples` [N, C, H, W] in [-1, 1], of one channel or three. Raises UserError for points."""
        return pil.to_pil(samples)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: a row of samples from seed 0, of images; None for points."""
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
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

        Raises:
            UserError: (a ValueError) for a number, seed, batch size, label, step count, sampler, churn or guidance that this generator
                cannot serve.

        """
        if num > 0 and (size := 4 * num * math.prod(self.shape)) > (most := memory()):
            raise UserError(
                f"num is {num:,}: so many samples are {size / 1e9:,.0f} GB, and this machine has {most / 1e9:,.0f} GB; draw fewer at "
                "a time, each part with a seed of its own, or use `batches`"
            )
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
        if num < 1:
            raise UserError(f"num is {num}; give at least 1")
        batch_size = (256 if len(self.shape) == 3 else 10_000) if batch_size is None else batch_size
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; give at least 1")
        name = sampler or self.sampler["name"]
        allowed = [key for key, kind in SAMPLERS.items() if kind.every_level] if self.is_denoiser else [self.sampler["name"]]
        if name not in allowed:
            raise UserError(f"sampler is {name!r}; allowed for this generator: {' or '.join(allowed)}")
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        if not abs(guidance_scale) <= torch.finfo(torch.float32).max:
            raise UserError(f"guidance_scale is {guidance_scale}; give a number that float32 can hold, 1 for none")
        if guidance_scale != 1.0 and not self.info.get("label_dropout"):
            raise UserError(f"guidance_scale is {guidance_scale}, but this network was trained without label dropout; only 1 is allowed")
        options = {key: self.sampler[key] for key in self.kind.options}
        if churn is not None:
            if "churn" not in options:
                raise UserError(f"churn is {churn}, but this generator's sampler {name} has none; leave it out")
            if not 0 <= churn <= 1:
                raise UserError(f"churn is {churn}; allowed are values from 0 to 1")
            options["churn"] = churn
        self.labels(1, labels)  # whether they will do
        draw = SAMPLERS[name].draw if name in SAMPLERS else self.kind.draw
        denoiser, sources, sigmas = Guided.of(self.denoiser, guidance_scale), seeded(seed, num), self.sigmas(steps)

        def drawn(start: int, count: int) -> Tensor:
            noise = Noise(sources if isinstance(sources, torch.Generator) else sources[start : start + count])
            latents = noise((count, *self.latent_shape), torch.empty((), device=self.device))
            label = self.labels(count, labels, start)
            samples = draw(denoiser, latents, sigmas, None if label is None else label.to(self.device), noise, **options)
            if bad := int((~samples.flatten(1).isfinite().all(1)).sum()):
                raise UserError(
                    f"{bad} of {count} samples are not finite (NaN or infinity): this generator's training ran away, or it is sampled "
                    "where it was never trained; take an earlier checkpoint of it, or train again with a lower learning rate"
                )
            if self.units is not None:
                return self.units.back(samples)
            return samples.clamp_(-1, 1) if len(self.shape) == 3 else samples

        return self._each(drawn, num, batch_size)

    def _each(self, drawn: Callable[[int, int], Tensor], num: int, batch_size: int) -> Iterator[Tensor]:
        for start in range(0, num, batch_size):
            training = self.training
            self.eval()
            try:
                with torch.no_grad():
                    batch = drawn(start, min(batch_size, num - start))
            finally:
                self.train(training)
            yield batch


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
            return load_folder(folder, str(folder), Generator).to(device).eval()
        if folder.exists() or not hub.is_id(str(path)):
            raise UserError(f"{path} is not a folder; give a run folder, a model folder, or a Hub id (owner/name)")
        fetched = hub.fetched(str(path), str(path), ["config.json", "model.safetensors"], revision)
        return load_folder(fetched, str(path), Generator).to(device).eval()


def frozen(module: nn.Module) -> nn.Module:
    """A copy of `module` that cannot learn: no parameter takes a gradient, and it is in eval mode."""
    return copy.deepcopy(module).requires_grad_(False).eval()
