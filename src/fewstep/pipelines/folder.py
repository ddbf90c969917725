"""The folder of a text-to-image pipeline of diffusers: what kind it is, what it consists of, and what its configs say."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from fewstep import hub
from fewstep.errors import UserError, first_line
from fewstep.text import read_json

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
OF_TOKENIZERS = (".json", ".txt", ".model")
SAMPLED, PLACES = 1 << 16, 64  # bytes of a file that are looked at in one place, and in how many


def model_folder(model: str, revision: str | None = None) -> Path:
    """Where the pipeline `model` lies: a folder, or the local copy of what the Hub has under that id. Raises UserError."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists() or not hub.is_id(model):
        raise UserError(f"--model is {model!r}, which is no folder, and no Hub id (owner/name); give a text-to-image pipeline of diffusers")
    wanted = ["model_index.json", *(f"{name}/*" for name in TOKENIZERS)]
    wanted += [f"{name}/{file}" for name in ENCODERS for file in ("config.json", "model.safetensors", "model-*.safetensors*")]
    return hub.fetched(model, model, [*wanted, "unet/config.json", "vae/config.json"], revision)


def pipeline_kind(folder: Path, model: str) -> str:
    """The class of the pipeline in `folder`, one of `PIPELINES`, which has its text encoders. Raises UserError."""
    try:
        index = read_json(folder / "model_index.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{model} holds no pipeline ({first_line(error)}); give the folder of one, with model_index.json") from None
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind not in PIPELINES:
        raise UserError(f"{model} is a {kind}; prompts can be encoded by {' or '.join(PIPELINES)}")
    needed = [*ENCODERS, *TOKENIZERS] if kind == "StableDiffusionXLPipeline" else [ENCODERS[0], TOKENIZERS[0]]
    for part in needed:
        if not isinstance(index.get(part), list) or index[part][0] is None or not (folder / part).is_dir():
            raise UserError(f"{model} is a {kind} without its {part}, which prompts are encoded by; take a whole copy of the model")
    return str(kind)


def latents_shape(folder: Path) -> tuple[int, int, int]:
    """(channels, height, width) of the latents that the U-Net in `folder` was trained for. Raises UserError where it does not say."""
    try:
        config = read_json(folder / "unet" / "config.json")
        channels, size = int(config["in_channels"]), config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else map(int, size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} does not say what size its latents have ({first_line(error)}): unet/config.json does, with in_channels and "
            "sample_size; take a whole copy of the model"
        ) from None
    return channels, height, width


def time_ids(folder: Path, kind: str) -> tuple[int, ...] | None:
    """What SDXL is told of an image that was neither scaled nor cropped, of the size in pixels that its U-Net was trained for.

    Raises UserError where the configs of the U-Net and the VAE do not say that size.
    """
    if kind != "StableDiffusionXLPipeline":
        return None
    try:
        height, width = latents_shape(folder)[1:]
        factor = 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} does not say what size its images have ({first_line(error)}): vae/config.json does, with block_out_channels; take a "
            "whole copy of the model"
        ) from None
    size = height * factor, width * factor
    return (*size, 0, 0, *size)


def files_id(folder: Path, files: Iterable[Path]) -> str:
    """What tells the `files` in `folder` from any others: a hash of their names, sizes and places all over them.

    To read all of some gigabytes would take longer than to load them. Raises OSError.
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
    """The files of weights in a part's `folder` that are read where no variant is asked for: not those of half precision beside them."""
    return [file for file in sorted(folder.glob("*.safetensors")) if re.fullmatch(r"[a-z_]+(-\d+-of-\d+)?\.safetensors", file.name)]


def encoders_id(folder: Path) -> str | None:
    """What tells the text encoders and tokenizers in `folder` from any others; None where they are not all there. Raises OSError."""
    parts = [part for part in (*ENCODERS, *TOKENIZERS) if (folder / part).is_dir()]
    files = [file for part in parts for file in usual_weights(folder / part)]
    files += [file for part in parts for file in sorted((folder / part).glob("*")) if _is_read(file)]
    weights = {file.parent.name for file in files if file.suffix == ".safetensors"}
    return files_id(folder, files) if weights and weights == {part for part in parts if part in ENCODERS} else None


def _is_read(file: Path) -> bool:
    """Whether a file beside the weights says something of an encoder or a tokenizer; not where parts of weights are."""
    return file.suffix in OF_TOKENIZERS and ".index." not in file.name


def part_of(model: str, part: str) -> Path:
    """The folder of a `part` of the pipeline `model`, a folder or a Hub id, such as ``vae``. Raises UserError where it has none."""
    folder = Path(model)
    if not folder.is_dir() and hub.is_id(model):
        folder = hub.fetched(model, model, [f"{part}/*.json", f"{part}/*.safetensors"])
    if not (folder / part / "config.json").is_file():
        raise UserError(f"there is no {part} in {model}, whose latents these are; put the whole pipeline there")
    return folder / part
