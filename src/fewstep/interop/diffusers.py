"""Import of diffusion teachers of the diffusers library: an unconditional or class-conditional `UNet2DModel`, alone or in a pipeline.

Weights are read from safetensors only, for a pickle (``.bin``) may run code when it is opened.
"""

import contextlib
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep import hub
from fewstep.denoisers import ForeignDenoiser
from fewstep.errors import UserError, first_line
from fewstep.files import check_free, whole_folder
from fewstep.generator import Generator
from fewstep.licences import licence_in
from fewstep.limits import in_units, memory
from fewstep.networks.base import num_parameters
from fewstep.pipelines.scheduler import SCHEDULER, json_object, parametrization_of, scheduler_of
from fewstep.weights import check_finite, header_of, numbers_of

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")


def diffusers_folder(path: str | Path) -> Path | None:
    """Return the folder of the diffusers model at `path`, a folder or a Hub id; None where `path` holds no diffusers model.

    Of a repository on the Hub only the configs and the model card are fetched, or found in the local cache. Raises UserError where neither
    the Hub nor the cache has the repository.
    """
    folder = Path(path)
    if not folder.exists() and hub.is_model(str(path)):
        small = ["model_index.json", "config.json", "unet/config.json", f"*{SCHEDULER}", "README.md"]
        folder = hub.fetched(str(path), str(path), small)
    if not folder.is_dir():
        return None
    if (folder / "model_index.json").is_file():
        return folder
    with contextlib.suppress(UserError):  # a broken config.json is no diffusers model's, and is reported by whoever reads the folder next
        return folder if "_class_name" in json_object(folder / "config.json") else None
    return None


def read_teacher(path: str | Path, sigma_data: float = 0.5, null_class: bool = False) -> Generator:
    """Return the diffusion teacher in a diffusers folder or a repository of the Hub, in eval mode.

    `path` is a pipeline's folder (model_index.json with a `UNet2DModel` and a scheduler that has betas, such as DDPM or DDIM) or a bare
    model's folder, with scheduler_config.json beside config.json or in the pipeline's folder above. Without scheduler_config.json the
    scheduler is assumed to be DDPM's, and ``info["assumed"]`` says so. Pixels lie in [-1, 1]. What the scheduler does in sampling
    (clipping, thresholding, spacing of the timesteps) is no part of the denoiser, and is left out.

    Args:
        path: the folder or Hub id.
        sigma_data: standard deviation of the data that the model was trained on; it weighs the losses of a student.
        null_class: whether the model's last class means "no class", which classifier-free guidance needs.

    Raises:
        UserError: for a folder that holds something else or lacks files, and for weights that exist only as a pickle.

    """
    folder = diffusers_folder(path)
    if folder is None:
        what = "holds no diffusers model" if Path(path).exists() or hub.is_model(str(path)) else "is no folder, and no Hub id (owner/name)"
        raise UserError(f"{path} {what}; give a folder with model_index.json, or with a UNet2DModel's config.json, or a Hub id of one")
    model_folder = _model_folder(folder)
    config = json_object(model_folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"{model_folder} holds a {config.get('_class_name')}; only a UNet2DModel of pixels can be a teacher here")
    scheduler, assumed = scheduler_of(folder, model_folder)
    info: dict[str, Any] = {"method": "teacher", "imported_from": str(path)}
    licence = licence_in(folder, model_folder)
    if licence:
        info["licence"] = licence
    if assumed:
        info["assumed"] = assumed
    if null_class:
        info["label_dropout"] = True  # the configs do not say how often labels were dropped
    _check_size(config, model_folder)
    try:
        generator = _untrained(config, parametrization_of(scheduler), sigma_data, null_class, info)
    except Exception as error:  # settings of the wrong type make diffusers and torch raise errors of any kind
        raise UserError(f"the diffusers model {path} cannot be a teacher here: {first_line(error)}") from error
    if folder != Path(path):  # `path` is a Hub id, whose weights are fetched only after the configs were found to fit
        hub.fetched(str(path), str(path), [f"{'unet/' if model_folder != folder else ''}diffusion_pytorch_model*.safetensors*"])
    network: Any = generator.denoiser.network
    network.unet.load_state_dict(_read_unet(model_folder).state_dict())
    return generator.eval()


@dataclass(frozen=True)
class Imported:
    """The imported generator, what its network predicts, its number of parameters, and the ends and length of its noise-level table."""

    generator: Generator
    prediction: str
    parameters: int
    sigma_min: float
    sigma_max: float
    timesteps: int


def import_diffusers(path: str | Path, out: Path, sigma_data: float = 0.5, null_class: bool = False) -> Imported:
    """Import the diffusion teacher at `path`, as `read_teacher` reads it, into the model folder `out`, written whole or not at all.

    Raises UserError as `read_teacher` does, for a folder `out` that is not empty, and for a `sigma_data` that is not above 0.
    """
    check_free(out)
    if not 0 < sigma_data < math.inf:
        raise UserError(f"--sigma-data is {sigma_data}; give a number above 0")
    generator = read_teacher(path, sigma_data, null_class)
    with whole_folder(out) as folder:
        generator.save_pretrained(folder)
    denoiser = generator.denoiser
    assert isinstance(denoiser, ForeignDenoiser)
    parameters = num_parameters(denoiser.network)
    return Imported(generator, denoiser.prediction, parameters, denoiser.sigma_min, denoiser.sigma_max, len(denoiser.sigmas))


def _untrained(
    config: dict[str, Any], parametrization: dict[str, Any], sigma_data: float, null_class: bool, info: dict[str, Any]
) -> Generator:
    """Return the generator that a `UNet2DModel`'s config describes, with initial weights. Raises ValueError for unfit settings."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    # the defaults of UNet2DModel's arguments are written out, for another version of diffusers may have others
    arguments = list(inspect.signature(UNet2DModel.__init__).parameters.values())[1:]
    network = {argument.name: config.get(argument.name, argument.default) for argument in arguments}
    network = {key: list(value) if isinstance(value, tuple) else value for key, value in network.items()}
    size, classes = network["sample_size"], network["num_class_embeds"]
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or len(sides) != 2:
        raise ValueError(f"sample_size is {size}; write the sides of its images into config.json")
    if null_class:
        if classes is None or classes < 2:
            raise ValueError(f"--null-class was given, but the model has {classes or 'no'} classes; leave it out")
        classes -= 1
    shape = [network["in_channels"], *sides]
    sampler = {"name": "heun", "steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away
        generator = Generator(shape, classes, sigma_data, {"name": "unet2d", **network}, sampler, info, parametrization)
    denoiser = generator.denoiser
    assert isinstance(denoiser, ForeignDenoiser)
    generator.sampler |= {"sigma_min": denoiser.sigma_min, "sigma_max": min(80.0, denoiser.sigma_max)}
    return generator


def _model_folder(folder: Path) -> Path:
    """Return the folder of the U-Net in a pipeline's or model's folder. Raises UserError for a pipeline of other parts, or without it."""
    index = folder / "model_index.json"
    if index.is_file():
        parts = {key: value for key, value in json_object(index).items() if not key.startswith("_")}
        if "unet" not in parts or not set(parts) <= {"unet", "scheduler"}:
            raise UserError(
                f"{folder} is a {json_object(index).get('_class_name')} of {', '.join(parts)}; only a pipeline of a unet of pixels and a "
                "scheduler can be a teacher here"
            )
    place = folder / "unet" if (folder / "unet").is_dir() else folder  # the oldest pipelines keep all files in one folder
    if not (place / "config.json").is_file():
        raise UserError(f"there is no {place / 'config.json'}; take another copy")
    return place


def _check_size(config: dict[str, Any], folder: Path) -> None:
    """Raise UserError where `config` asks for a network that is far larger than the weights in `folder`, or larger than the memory."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    try:
        claimed = numbers_of(lambda: UNet2DModel.from_config(config))
    except Exception as error:  # settings of the wrong type make diffusers and torch raise errors of any kind
        raise UserError(f"the diffusers model {folder} cannot be a teacher here: {first_line(error)}") from error
    if claimed is None:
        return
    try:
        headers = [header_of(file) for file in folder.glob("diffusion_pytorch_model*.safetensors")]
    except Exception:  # an unreadable file is reported when its weights are read
        headers = []
    there = sum(math.prod(shape) for header in headers for shape, _ in header.values())
    if headers and claimed > 2 * there:
        raise UserError(f"config.json in {folder} asks for {claimed:,} weights, and its files hold {there:,}; take another copy")
    if 4 * claimed > memory():
        raise UserError(
            f"config.json in {folder} asks for a network of {in_units(4 * claimed)}, and {in_units(memory())} of memory are available; "
            "take a smaller model, or another machine"
        )


def _read_unet(folder: Path) -> Any:
    """Read the `UNet2DModel` in `folder`. Raises UserError unless all of its weights are there, in safetensors, and finite."""
    if not any((folder / name).is_file() for name in WEIGHTS):
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        because = f"; {pickles[0]} is a pickle, which may run code when it is opened, and is not read" if pickles else ""
        raise UserError(
            f"there is no {WEIGHTS[0]} in {folder}{because}. Take a copy of the model in safetensors"
            + (", or write one where you trust it: UNet2DModel.from_pretrained(...).save_pretrained(...)" if pickles else "")
        )
    from diffusers.models.unets.unet_2d import UNet2DModel

    try:
        with torch.random.fork_rng(devices=[]):
            unet, found = UNet2DModel.from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
    except Exception as error:  # diffusers, safetensors and json each have exceptions of their own
        raise UserError(f"the model in {folder} cannot be read ({first_line(error)}); take another copy") from error
    wrong = [*found["missing_keys"], *found["unexpected_keys"]]
    if wrong:
        raise UserError(f"the weights in {folder} do not fit its config.json ({wrong[0]}, {len(wrong)} in all); take another copy")
    try:
        check_finite(unet.state_dict())
    except ValueError as error:
        raise UserError(f"the model in {folder} cannot be used: {error}; take another copy") from None
    return unet
