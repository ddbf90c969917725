"""The folder of a text-to-image pipeline of diffusers: the pipeline's class, its parts, and what its configs say."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fewstep import hub
from fewstep.errors import UserError, first_line
from fewstep.text import read_json

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
OF_TOKENIZERS = (".json", ".txt", ".model")
NETWORKS = {"unet": "U-Net", "transformer": "transformer"}  # the parts that denoise, and their names in messages


@dataclass(frozen=True)
class Form:
    """The parts of a class of pipelines, beside a VAE and a scheduler.

    Attributes:
        network: the part that denoises, a key of `NETWORKS`.
        needed: text encoders and tokenizers that the class cannot work without.
        optional: text encoders and tokenizers that the class can work without.
        without: parts that a pipeline must not have here, and what each means for the pipeline, as the predicate of a sentence.

    """

    network: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)


FORMS: dict[str, Form] = {
    "StableDiffusionPipeline": Form("unet", (ENCODERS[0], TOKENIZERS[0])),
    "StableDiffusionXLPipeline": Form("unet", (*ENCODERS[:2], *TOKENIZERS[:2])),
    "StableDiffusion3Pipeline": Form(
        "transformer",
        (*ENCODERS[:2], *TOKENIZERS[:2]),
        (ENCODERS[2], TOKENIZERS[2]),
        {"image_encoder": "takes an image, too (IP-Adapter)"},
    ),
}
SAMPLED, PLACES = 1 << 16, 64  # bytes that a checksum reads in one place of a file, and the number of places


def model_folder(model: str) -> Path:
    """Return the folder of the pipeline `model`: a local folder, or the local copy of a Hub repository's text encoders and configs.

    Raises UserError where `model` is neither a folder nor a Hub id, or the Hub cannot provide it.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists() or not hub.is_model(model):
        raise UserError(f"--model is {model!r}, which is no folder, and no Hub id (owner/name); give a text-to-image pipeline of diffusers")
    wanted = ["model_index.json", *(f"{name}/*" for name in TOKENIZERS)]
    wanted += [f"{name}/{file}" for name in ENCODERS for file in ("config.json", "model.safetensors", "model-*.safetensors*")]
    return hub.fetched(model, model, [*wanted, *(f"{name}/config.json" for name in (*NETWORKS, "vae"))])


def pipeline_kind(folder: Path, model: str) -> str:
    """Return the class of the pipeline in `folder`, a key of `FORMS`; messages call the pipeline `model`.

    Raises UserError for a pipeline of another class, without its text encoders, or with a part that is not supported.
    """
    try:
        index = read_json(folder / "model_index.json")
    except (OSError, ValueError) as error:
        if (own := _refers_to(folder)) is not None:
            raise UserError(f"{model} is of fewstep, and was made from the pipeline {own}; give that pipeline") from None
        raise UserError(f"{model} holds no pipeline ({first_line(error)}); give the folder of one, with model_index.json") from None
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind is None:
        raise UserError(
            f"{model} does not say what kind of pipeline it is (_class_name in model_index.json); take a whole copy of the model"
        )
    if kind not in FORMS:
        raise UserError(f"{model} is a {kind}; prompts can be encoded by {', '.join(FORMS)}")
    form = FORMS[kind]
    named = [part for part in (*form.needed, *form.optional, *form.without) if isinstance(index.get(part), list) and index[part][0]]
    for part in (*form.needed, *(part for part in form.optional if part in named)):
        if part not in named or not (folder / part).is_dir():
            raise UserError(f"{model} is a {kind} without its {part}, which prompts are encoded by; take a whole copy of the model")
    for part, why in form.without.items():
        if part in named:
            raise UserError(f"{model} is a {kind} with an {part}, and so {why}, which is not supported; take one without")
    return str(kind)


def _refers_to(folder: Path) -> str | None:
    """Return the pipeline that the run or model folder `folder` of fewstep was made from; None for any other folder."""
    try:
        config = read_json((folder / "model" if (folder / "model").is_dir() else folder) / "config.json")
        return str(config["latents"]["model"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def absent_parts(folder: Path) -> list[str]:
    """Return the optional parts that the pipeline in `folder` lacks, which diffusers must be told when it reads the pipeline."""
    index = read_json(folder / "model_index.json")
    return [part for part in FORMS[index["_class_name"]].optional if not (isinstance(index.get(part), list) and index[part][0])]


def latents_shape(folder: Path, kind: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of the latents for which the network of the pipeline in `folder`, of class `kind`, was trained.

    Raises UserError where the network's config does not say.
    """
    part = FORMS[kind].network
    try:
        config = read_json(folder / part / "config.json")
        channels, size = int(config["in_channels"]), config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else map(int, size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} does not say what size its latents have ({first_line(error)}): {part}/config.json does, with in_channels and "
            "sample_size; take a whole copy of the model"
        ) from None
    return channels, height, width


def time_ids(folder: Path, kind: str) -> tuple[int, ...] | None:
    """Return SDXL's size conditioning: original size, crop's corner and target size in pixels, six numbers; None for other classes.

    The image is one that was neither scaled nor cropped, of the size that the U-Net was trained for. Raises UserError where the configs of
    the U-Net and the VAE do not say that size.
    """
    if kind != "StableDiffusionXLPipeline":
        return None
    try:
        height, width = latents_shape(folder, kind)[1:]
        factor = 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} does not say what size its images have ({first_line(error)}): vae/config.json does, with block_out_channels; take a "
            "whole copy of the model"
        ) from None
    size = height * factor, width * factor
    return (*size, 0, 0, *size)


def files_id(folder: Path, files: Iterable[Path]) -> str:
    """Return a SHA-256 checksum of the `files` in `folder`: of their names, their sizes, and `PLACES` excerpts of each.

    Files are not read whole, for weights of several gigabytes would take longer to read than to load. Raises OSError.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        with file.open("rb") as opened:
            for place in range(PLACES):
                opened.seek(max(0, size - SAMPLED) * place // (PLACES - 1))
                digest.update(opened.read(SAMPLED))
    return digest.hexdigest()


def usual_weights(folder: Path) -> list[Path]:
    """Return the weight files in a part's `folder` that are read by default, without those of variants such as half precision."""
    return [file for file in sorted(folder.glob("*.safetensors")) if re.fullmatch(r"[a-z_]+(-\d+-of-\d+)?\.safetensors", file.name)]


def needed_weights(folder: Path) -> list[Path]:
    """Return `usual_weights` of a part's `folder`. Raises UserError where there are none."""
    if files := usual_weights(folder):
        return files
    names = " ".join(sorted(file.name for file in folder.glob("*")))
    anew = "load the pipeline by diffusers{}, write it by save_pretrained(FOLDER), and give that folder"
    if found := re.search(r"\b[a-z_]+\.(\w+)(-\d+-of-\d+)?\.safetensors", names):
        raise UserError(f"the weights in {folder} are only there as the variant {found[1]}; {anew.format(f' with variant={found[1]!r}')}")
    if re.search(r"\.bin\b", names):
        raise UserError(f"the weights in {folder} are only there as .bin, which can run code, and is not read; {anew.format('')}")
    raise UserError(f"there are no weights in {folder} (*.safetensors); take a whole copy of the model")


def encoders_id(folder: Path) -> str | None:
    """Return a checksum (`files_id`) of the text encoders and tokenizers in `folder`; None where weights are missing. Raises OSError."""
    parts = [part for part in (*ENCODERS, *TOKENIZERS) if (folder / part).is_dir()]
    files = [file for part in parts for file in usual_weights(folder / part)]
    files += [file for part in parts for file in sorted((folder / part).glob("*")) if _is_read(file)]
    weights = {file.parent.name for file in files if file.suffix == ".safetensors"}
    return files_id(folder, files) if weights and weights == {part for part in parts if part in ENCODERS} else None


def _is_read(file: Path) -> bool:
    """Return whether `file` is a config or vocabulary of a text encoder or tokenizer, and not an index of weight files."""
    return file.suffix in OF_TOKENIZERS and ".index." not in file.name


def part_of(model: str, part: str) -> Path:
    """Return the folder of a `part`, such as ``vae``, of the pipeline `model`, a folder or a Hub id. Raises UserError if it lacks one."""
    folder = Path(model)
    if not folder.is_dir() and hub.is_model(model):
        folder = hub.fetched(model, model, [f"{part}/*.json", f"{part}/*.safetensors"])
    if not folder.is_dir():
        raise UserError(
            f"the {part} of the pipeline {model} is needed, which is no folder, and no Hub id (owner/name); give one, or put it there"
        )
    if not (folder / part / "config.json").is_file():
        raise UserError(f"there is no {part} in {model}, whose latents these are; put the whole pipeline there")
    return folder / part
