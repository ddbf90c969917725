"""Encoding of images into latents by a pipeline's VAE, once, before training."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.captioned import captioned_images
from fewstep.data.errors import DataError
from fewstep.data.image_sets import image_folder
from fewstep.data.images import ImageData
from fewstep.data.latents import MANIFEST, SPLITS, Encoded, chunks
from fewstep.data.prompt_table import Manifest
from fewstep.data.splits import Bar, no_bar
from fewstep.errors import UserError, first_line
from fewstep.files import check_free, held_folder, sha256_of, sweep, write_part
from fewstep.pipelines.encoders import encode_prompts
from fewstep.pipelines.folder import FORMS, NETWORKS, latents_shape, model_folder, pipeline_kind
from fewstep.pipelines.vae import VAE, measured_size
from fewstep.text import read_json

BEGUN = "encoding.json"  # names the images and the VAE of an encoding, finished or not
BEGUN_BESIDE = "images.json"  # the same file where the images lie beside encoded prompts, whose own is encoding.json


def encode_images(
    images: str,
    model: str,
    out: Path,
    size: int,
    label_column: str | None = None,
    bar: Bar = no_bar,
    say: Callable[[str], None] = lambda text: None,
) -> Encoded:
    """Encode the images at `images`, in any form that `fewstep.data.image_sets.image_folder` reads, by the VAE of `model` into `out`.

    Images are first brought to `size` x `size` pixels in colour, as ``data: images`` does. A latent is the mean of the VAE's
    distribution, scaled and shifted as its config says. An encoding that was interrupted is continued.

    Raises:
        UserError: for images that cannot be read, a model without a VAE, a size that is no multiple of the VAE's factor, and a folder
            `out` that holds something else.

    """
    vae = VAE(model)
    _check_size(vae, size, model)
    try:
        data = image_folder(images, size, 3, label_column=label_column, bar=bar)
    except DataError as error:
        raise UserError(str(error)) from error
    if data.note:
        say(data.note)
    return _written(data, images, vae, size, out, BEGUN, bar)


def encode_captioned(
    images: str,
    model: str,
    out: Path,
    size: int | None = None,
    column: str | None = None,
    bar: Bar = no_bar,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Manifest, Encoded]:
    """Encode images with a caption each into `out`: the captions as prompts, and the images as latents labelled with their caption's row.

    See `fewstep.data.captioned.captioned_images` for what is read, `encode_prompts` and `encode_images` for what is written. `size` is by
    default the model's own. Raises UserError as these functions do, and for a size whose latents are not of the model's shape.
    """
    vae = VAE(model)
    folder = model_folder(model)
    own = latents_shape(folder, kind := pipeline_kind(folder, model))
    size = own[1] * vae.factor if size is None else size
    _check_size(vae, size, model)
    if vae.shape(size) != own:
        made, taken = ("x".join(map(str, shape)) for shape in (vae.shape(size), own))
        raise UserError(
            f"--size is {size}, of which the VAE of {model} makes latents of {made}; its {NETWORKS[FORMS[kind].network]} takes {taken}: "
            "leave it out"
        )
    try:
        found = captioned_images(images, size, column, bar=bar)
    except DataError as error:
        raise UserError(str(error)) from error
    if found.images.note:
        say(found.images.note)
    manifest = encode_prompts(found.captions, model, out, bar=bar, say=say)
    return manifest, _written(found.images, images, vae, size, out, BEGUN_BESIDE, bar)


def _check_size(vae: VAE, size: int, model: str) -> None:
    if size < 1 or size % vae.factor:
        raise UserError(
            f"--size is {size}; the VAE of {model} makes latents of 1/{vae.factor} of the size: give a multiple of {vae.factor}"
        )


def _written(data: ImageData, source: str, vae: VAE, size: int, out: Path, begun: str, bar: Bar) -> Encoded:
    """Write the latents of `data` to `out`, and the checksums of the images and the VAE into its file `begun`.

    Raises UserError for a folder `out` that holds something else, and for a disk that is full.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        label = data.labels(split)
        for tensor in (getattr(data, split), *(() if label is None else (label,))):
            digest.update(tensor.contiguous().numpy())
    belongs = {"images": digest.hexdigest(), "vae": vae.id}
    if out.is_dir() and (out / begun).is_file():
        try:
            theirs = read_json(out / begun)
        except (OSError, ValueError) as error:
            raise UserError(f"{out / begun} cannot be read ({first_line(error)}); give a new folder") from None
        if theirs != belongs:
            raise UserError(f"--out is {out}, which holds other images, or those of another VAE; give a new folder, or remove that one")
    elif begun == BEGUN:
        check_free(out)
        out.mkdir(parents=True, exist_ok=True)
    with held_folder(out, "encoding into", "give the same command again"):
        sweep(out)
        write_part(out / begun, json.dumps(belongs).encode())
        files: dict[str, str] = {}
        with bar("encoding images", len(data.train) + len(data.heldout)) as done:
            for split in SPLITS:
                for name, first, last in chunks(split, len(getattr(data, split))):
                    if not (out / name).is_file():  # a file that exists is complete
                        _encode(vae, data, split, first, last, out / name)
                    done(last - first)
                    files[name] = sha256_of(out / name)
        num = {split: len(getattr(data, split)) for split in SPLITS}
        labelled = data.labels("train") is not None
        found = Encoded(data.name, source, vae.model, vae.id, vae.shape(size), num, data.class_names, files, labelled)
        write_part(out / MANIFEST, found.json())
    return found


def _encode(vae: VAE, data: ImageData, split: str, first: int, last: int, path: Path) -> None:
    """Encode items `first` to `last` - 1 of a `split` and write them to `path`, see `fewstep.data.latents`."""
    from safetensors.torch import save

    pixels: Tensor = getattr(data, split)[first:last]
    assert data.half is not None
    latents = vae.encoded(pixels.float() / data.half - 1)
    tensors = {"latents": latents.half().contiguous(), "pixels": measured_size(pixels.float()).round().to(torch.uint8).contiguous()}
    label = data.labels(split)
    write_part(path, save(tensors if label is None else {**tensors, "label": label[first:last].contiguous()}))
