"""What is shipped: a denoiser with the sampler that belongs to it, in a folder that loads alone.

A model folder holds ``config.json`` (the arguments of `Generator`) and ``model.safetensors``; there is no pickle in it.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from fewstep.denoisers import DistributionalDenoiser, ForeignDenoiser, PreconditionedDenoiser, PushForward
from fewstep.errors import UserError
from fewstep.maths.schedules import karras_sigmas, uniform_times
from fewstep.networks import make_network
from fewstep.samplers import ODE_SAMPLERS, SAMPLERS, evaluations


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
        network: the network's name and arguments (see `fewstep.networks.make_network`).
        sampler: ``{"name": "heun" or "euler", "steps", "sigma_min", "sigma_max", "rho"}``, where `steps` is a default, or
            ``{"name": "few_step", "sigmas": [...]}``, the levels the student was distilled at, or ``{"name": "push_forward"}`` for a
            network that maps a latent to data, or ``{"name": "distributional", "steps", "churn", "output"}`` for a denoiser that
            samples the posterior (`output` as in `fewstep.denoisers.DistributionalDenoiser`).
        info: anything worth keeping: method, recipe, step, whether labels were dropped in training.
        parametrization: what the network predicts, where that is not EDM's preconditioned output: ``{"name": "ddpm", "prediction",
            "betas", "zero_snr"}``, see `fewstep.denoisers.ForeignDenoiser`.

    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int | None,
        sigma_data: float,
        network: Mapping[str, Any],
        sampler: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
        parametrization: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        needs = {"few_step": ("sigmas",), "push_forward": (), "distributional": ("steps", "churn", "output")}
        wanted = needs.get(sampler.get("name", ""), ("steps", "sigma_min", "sigma_max", "rho"))
        if sampler.get("name") not in SAMPLERS or any(key not in sampler for key in wanted):
            raise ValueError(f"sampler is {dict(sampler)}; give a name of {', '.join(SAMPLERS)}, and {', '.join(wanted)}")
        steps, churn = sampler.get("steps", 1), sampler.get("churn", 1.0)
        if not isinstance(steps, int) or steps < 1 or not isinstance(churn, int | float) or not 0 <= churn <= 1:
            raise ValueError(f"sampler is {dict(sampler)}; steps must be a whole number from 1, churn lie from 0 to 1")
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.network_config = dict(network)
        self.sampler = dict(sampler)
        self.info = dict(info or {})
        self.parametrization = None if parametrization is None else dict(parametrization)
        made = make_network(network, self.shape, num_classes)
        self.denoiser: PreconditionedDenoiser | PushForward | DistributionalDenoiser | ForeignDenoiser
        if parametrization is not None:
            self.denoiser = ForeignDenoiser(made, sigma_data, num_classes, **_foreign(parametrization, sampler["name"]))
        elif sampler["name"] == "distributional":
            self.denoiser = DistributionalDenoiser(made, sigma_data, num_classes, sampler["output"])
        else:
            kind = PushForward if sampler["name"] == "push_forward" else PreconditionedDenoiser
            self.denoiser = kind(made, sigma_data, num_classes)

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data that the network was trained for."""
        return self.denoiser.sigma_data

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one item is made of."""
        return self.denoiser.latent_shape if isinstance(self.denoiser, PushForward) else self.shape

    @property
    def is_denoiser(self) -> bool:
        """Whether it denoises at every noise level, and so may be a teacher."""
        return self.sampler["name"] in ODE_SAMPLERS

    @property
    def any_steps(self) -> bool:
        """Whether it can be sampled with any number of steps, of which its sampler names the default."""
        return "steps" in self.sampler

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        # a channels_last convolution is not contiguous in memory, which the format asks for
        save_file({k: v.detach().contiguous() for k, v in self.state_dict().items()}, str(save_directory / "model.safetensors"))
        # the mix-in's own config.json would hold the defaults of arguments that were not given
        (save_directory / "config.json").write_text(json.dumps(self.config, indent=2))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that goes with a model folder to the Hub; what was imported keeps its own licence there, or none."""
        card = super().generate_model_card(*args, **kwargs)
        if self.info.keys() & {"licence", "imported_from"}:
            card.data["license"] = self.info.get("licence")
        return card

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make this generator again, as plain values: what config.json holds."""
        return {
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "sigma_data": self.sigma_data,
            "network": self.network_config,
            "sampler": self.sampler,
            "info": self.info,
            **({} if self.parametrization is None else {"parametrization": self.parametrization}),
        }

    def derive(self, sampler: Mapping[str, Any], info: Mapping[str, Any], denoiser: nn.Module | None = None) -> "Generator":
        """A generator of the same kind with another sampler: a copy of this one's weights, or of those of `denoiser`."""
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
            other = Generator(**{**self.config, "sampler": dict(sampler), "info": dict(info)})
        other.denoiser.load_state_dict((denoiser or self.denoiser).state_dict())
        return other.to(self.device).eval()

    def default_steps(self) -> int:
        """Number of noise levels that `sample` uses where none is asked for."""
        return self.sampler["steps"] if self.any_steps else len(self.sampler.get("sigmas", [0]))

    def evaluations(self, steps: int | None = None, sampler: str | None = None) -> int:
        """How many network evaluations one sample costs (without guidance)."""
        return evaluations(sampler or self.sampler["name"], steps or self.default_steps())

    def sigmas(self, steps: int | None = None) -> Tensor:
        """The noise levels for `steps` (times, for "distributional"), float64 [steps], descending.

        Raises UserError where the generator has no such grid.
        """
        default = self.default_steps()
        steps = default if steps is None else steps
        if not self.any_steps:
            if steps != default:
                raise UserError(f"steps is {steps}; this generator was made for {default}: leave steps out, or give {default}")
            return torch.tensor(self.sampler.get("sigmas", [math.inf]), dtype=torch.float64)
        if steps < 1:
            raise UserError(f"steps is {steps}; give at least 1")
        if not self.is_denoiser:
            return uniform_times(steps)
        return karras_sigmas(steps, self.sampler["sigma_min"], self.sampler["sigma_max"], self.sampler["rho"])

    def labels(self, num: int, labels: int | Sequence[int] | Tensor | None = None) -> Tensor | None:
        """Labels int64 [num] for `sample`: those given, repeated to length, or 0, 1, 2, ... in turn; None if there are no classes.

        Raises UserError for labels of a generator without classes, or outside 0..num_classes - 1.
        """
        if self.num_classes is None:
            if labels is not None:
                raise UserError("labels were given, but this generator has no classes; leave them out")
            return None
        if labels is None:
            return torch.arange(num) % self.num_classes
        wanted = torch.as_tensor(labels).flatten()
        if wanted.is_floating_point() or not len(wanted) or wanted.min() < 0 or wanted.max() >= self.num_classes:
            raise UserError(f"labels are {wanted.tolist()}; allowed are whole numbers from 0 to {self.num_classes - 1}")
        return wanted.long()[torch.arange(num) % len(wanted)]

    @torch.no_grad()
    def sample(
        self,
        num: int,
        labels: int | Sequence[int] | Tensor | None = None,
        seed: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float = 1.0,
        batch_size: int | None = None,
        churn: float | None = None,
    ) -> Tensor:
        """Draw `num` samples [num, *shape], float32, on this generator's device; images lie in [-1, 1].

        Args:
            num: how many.
            labels: class of each sample, [num] or shorter (then repeated); default 0, 1, 2, ... in turn.
            seed: the same seed, `num` and `batch_size` give the same noise on every device; None draws a new one.
            steps: noise levels; a distilled student only has the number it was distilled for.
            sampler: "heun" or "euler", for a generator that integrates an ODE.
            guidance_scale: classifier-free guidance; needs a network trained with label dropout.
            batch_size: samples a network evaluation; 256 images or 10,000 points if None.
            churn: of a distributional denoiser's bridge, from 0 (no new noise) to 1 (DDPM's posterior); None for its own.

        Raises:
            UserError: (a ValueError) for a number, batch size, label, step count, sampler, churn or guidance that this generator
                cannot serve.

        """
        if num < 1:
            raise UserError(f"num is {num}; give at least 1")
        if seed is not None and not -(2**63) <= seed < 2**64:
            raise UserError(f"seed is {seed}; allowed are whole numbers of at most 64 bits")
        if batch_size is None:
            batch_size = 256 if len(self.shape) == 3 else 10_000
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; give at least 1")
        name = sampler or self.sampler["name"]
        allowed = ODE_SAMPLERS if self.is_denoiser else (self.sampler["name"],)
        if name not in allowed:
            raise UserError(f"sampler is {name!r}; allowed for this generator: {' or '.join(allowed)}")
        if guidance_scale != 1.0 and not self.info.get("label_dropout"):
            raise UserError(f"guidance_scale is {guidance_scale}, but this network was trained without label dropout; only 1 is allowed")
        options = {}
        if self.sampler["name"] == "distributional":
            options["churn"] = self.sampler["churn"] if churn is None else churn
            if not 0 <= options["churn"] <= 1:
                raise UserError(f"churn is {churn}; allowed are values from 0 to 1")
        elif churn is not None:
            raise UserError(f"churn is {churn}, but this generator's sampler {name} has none; leave it out")
        sigmas, all_labels = self.sigmas(steps), self.labels(num, labels)
        rng = torch.Generator()
        if seed is None:
            rng.seed()
        else:
            rng.manual_seed(seed)
        training = self.training
        self.eval()
        batches = []
        for start in range(0, num, batch_size):
            count = min(batch_size, num - start)
            latents = torch.randn(count, *self.latent_shape, generator=rng).to(self.device)
            label = None if all_labels is None else all_labels[start : start + count].to(self.device)
            batches.append(SAMPLERS[name](self.denoiser, latents, sigmas, label, rng, guidance_scale, **options))
        self.train(training)
        samples = torch.cat(batches)
        return samples.clamp_(-1, 1) if len(self.shape) == 3 else samples


def _foreign(parametrization: Mapping[str, Any], sampler: str) -> dict[str, Any]:
    """The arguments of a `ForeignDenoiser` in `parametrization`. Raises ValueError for one that is not known, or not for `sampler`."""
    arguments = dict(parametrization)
    name, allowed = arguments.pop("name", None), (*ODE_SAMPLERS, "few_step")
    if name != "ddpm" or sampler not in allowed or not {"prediction", "betas"} <= arguments.keys() <= {"prediction", "betas", "zero_snr"}:
        raise ValueError(
            f"parametrization is {dict(parametrization)} with sampler {sampler}; give the name ddpm, a prediction, betas and perhaps "
            f"zero_snr, and one of the samplers {', '.join(allowed)}"
        )
    return arguments


def load(path: str | Path, device: str | torch.device = "cpu") -> Generator:
    """The generator in a run folder, in its model/ folder, or on the Hugging Face Hub under that id, in eval mode.

    Raises UserError where there is none, or where its files do not fit together.
    """
    folder = Path(path)
    if (folder / "model").is_dir():
        folder = folder / "model"
    if folder.is_dir():
        return _load_folder(folder).to(device).eval()
    if folder.exists() or str(path).startswith((".", "/", "~")) or str(path).count("/") != 1:
        raise UserError(f"{path} is not a folder; give a run folder, a model folder, or a Hub id (owner/name)")
    try:
        with torch.random.fork_rng(devices=[]):
            return Generator.from_pretrained(str(path), strict=True).to(device).eval()
    except Exception as error:  # from three libraries, each with exceptions of its own
        raise UserError(f"{path} is neither a folder here nor a model that the Hub gives: {first_line(error)}") from error


def _load_folder(folder: Path) -> Generator:
    """The generator in a model folder. Raises UserError."""
    from safetensors.torch import load_file

    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} holds no generator ({' and '.join(missing)} not found); give a run folder that has reached its first "
            "checkpoint, or a model folder"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            generator = Generator(**json.loads((folder / "config.json").read_bytes()))
        generator.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:  # torch, safetensors, json and the network each have their own
        raise UserError(f"the generator in {folder} cannot be read ({first_line(error)}); write it again, or take another copy") from error
    return generator


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def frozen(module: nn.Module) -> nn.Module:
    """A copy of `module` that cannot learn: no parameter takes a gradient, and it is in eval mode."""
    return copy.deepcopy(module).requires_grad_(False).eval()
