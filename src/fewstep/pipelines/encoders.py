"""Encoding of prompts, once, before training, by the text encoders of a text-to-image pipeline of diffusers.

The pipeline's own ``encode_prompt`` is called, so that a student is trained with the same encodings that stock pipelines sample with. The
denoising network and the VAE are not read.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fewstep import hub
from fewstep.data.errors import DataError
from fewstep.data.prompt_files import SHOWN, Prompts, read_prompts
from fewstep.data.prompt_table import MANIFEST, NULL, PROMPTS, Manifest, PromptTable, chunk_files
from fewstep.data.splits import Bar, no_bar
from fewstep.errors import UserError, first_line
from fewstep.files import check_free, held_folder, sha256_of, sweep, write_part
from fewstep.networks.prompts import EncodedPrompts
from fewstep.pipelines.folder import (
    ENCODERS,
    FORMS,
    TOKENIZERS,
    absent_parts,
    encoders_id,
    latents_shape,
    model_folder,
    pipeline_kind,
    time_ids,
)
from fewstep.pipelines.parts import quiet, read_part
from fewstep.text import read_json

MOST_TOKENS = 1 << 20  # no text encoder reads as many, and transformers takes more to mean that the number is not known
BATCH = 16  # prompts that the text encoders are given at a time
BEGUN = "encoding.json"  # names the prompts and the text encoders of an encoding, finished or not


def encode_prompts(
    prompts: Path | Prompts,
    model: str,
    out: Path,
    column: str | None = None,
    bar: Bar = no_bar,
    say: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Encode `prompts`, or the prompts in a file, by the text encoders of `model`, a pipeline's folder or Hub id, into the folder `out`.

    The Hub id may name a revision, as everywhere: ``owner/name@revision``. An encoding that was interrupted is continued; a finished one is
    left as it is. Each distinct prompt is encoded once. See `fewstep.data.prompt_files.read_prompts` for the file and `column`, and
    `fewstep.data.prompt_table` for what is written.

    Raises:
        UserError: for prompts that cannot be read; for a model without text encoders, of another class, or incomplete; for a folder `out`
            that holds something else, or an encoding of other prompts or by another model; and where transformers is not installed.

    """
    try:
        found = read_prompts(prompts, column) if isinstance(prompts, Path) else prompts
    except DataError as error:
        raise UserError(str(error)) from error
    if column is None and found.column is not None:
        say(f"the prompts are those of the column {found.column!r}")
    folder = model_folder(model)
    kind = pipeline_kind(folder, model)
    sizes, latents = time_ids(folder, kind), latents_shape(folder, kind)
    belongs = {"encoders": encoders_id(folder) or "", "prompts": _sha256_of_texts(found), "pipeline": kind}
    if out.is_dir() and (out / BEGUN).is_file():
        _check_same(out, belongs)
    else:
        check_free(out)
    encoder = None if (out / MANIFEST).is_file() else Encoder(folder, model, kind)  # what it refuses, it refuses before anything is written
    out.mkdir(parents=True, exist_ok=True)
    with held_folder(out, "encoding into", "give the same command again"):
        if encoder is None or (out / MANIFEST).is_file():
            say(f"{out} holds these prompts already, encoded by the same model")
            return _checked(out)
        sweep(out)
        write_part(out / BEGUN, json.dumps(belongs).encode())
        write_part(out / PROMPTS, "".join(f"{json.dumps(text)}\n" for text in found.texts).encode())
        cut = encoder.longer_ones(found.texts)
        row = encoder.nothing()
        files = {PROMPTS: sha256_of(out / PROMPTS), NULL: _save(out / NULL, row)}
        with bar("encoding prompts", len(found.texts)) as done:
            for name, start, stop in chunk_files(len(found.texts), *row["hidden"].shape[1:]):
                if not (out / name).is_file():  # a file that exists is complete
                    parts = []
                    for first in range(start, stop, BATCH):
                        parts.append(encoder(found.texts[first : min(first + BATCH, stop)]))
                        done(len(parts[-1]["hidden"]))
                    _save(out / name, {key: torch.cat([part[key] for part in parts]) for key in parts[0]})
                else:
                    done(stop - start)
                files[name] = sha256_of(out / name)
        manifest = Manifest(
            model=model,
            revision=hub.parted(model)[1],
            pipeline=kind,
            encoders=belongs["encoders"],
            num=len(found.texts),
            tokens=row["hidden"].shape[1],
            width=row["hidden"].shape[2],
            pooled=row["pooled"].shape[1] if "pooled" in row else None,
            time_ids=sizes,
            latents=latents,
            repeated=found.repeated,
            blank=found.blank,
            cut=len(cut),
            files=files,
        )
        write_part(out / MANIFEST, manifest.json())
    if cut:
        say(_told_cut(cut, found.texts, encoder.tokens, f"line {found.line_of(cut[0]):,} "))
    return manifest


def encoded(
    model: str,
    texts: Sequence[str],
    expected: str | None = None,
    dtype: torch.dtype = torch.float16,
    say: Callable[[str], None] = lambda text: None,
) -> EncodedPrompts:
    """Return `texts`, and the row for no prompt, encoded in memory by the pipeline `model`; long prompts are truncated, which `say` tells.

    `expected` is the checksum (`encoders_id`) of the text encoders that the pipeline has to have, None where it is not known. Raises
    UserError for other text encoders, and as `encode_prompts` does.
    """
    if not Path(model).is_dir() and not hub.is_model(model):
        raise UserError(
            f"prompts are encoded by the pipeline {model}, which is no folder, and no Hub id (owner/name); if it has moved, write its new "
            "place into config.json, as latents.model"
        )
    folder = model_folder(model)
    if expected and (own := encoders_id(folder)) is not None and own != expected:
        raise UserError(f"the text encoders of {model} are not those that this generator was trained with; restore the former ones")
    encoder = Encoder(folder, model, pipeline_kind(folder, model))
    if cut := encoder.longer_ones(texts):
        say(f"note: {_told_cut(cut, texts, encoder.tokens)}")
    parts = [encoder(texts[first : first + BATCH], dtype) for first in range(0, len(texts), BATCH)] + [encoder.nothing(dtype)]
    hidden = torch.cat([part["hidden"] for part in parts])
    return EncodedPrompts(hidden, torch.cat([part["pooled"] for part in parts]) if "pooled" in parts[0] else None)


class Encoder:
    """The text encoders of the pipeline in `folder`, which messages call `model`, of the class `kind`.

    Raises UserError where text encoders or tokenizers cannot be read, or a tokenizer lacks its vocabulary or its number of tokens.
    """

    def __init__(self, folder: Path, model: str, kind: str) -> None:
        self.kind = kind
        self.pipeline = _pipeline(folder, model)
        named = {name: tokenizer for name in TOKENIZERS if (tokenizer := getattr(self.pipeline, name, None)) is not None}
        for name, tokenizer in named.items():  # transformers makes up what is missing, and does not say so
            unlimited = name in FORMS[kind].needed and tokenizer.model_max_length > MOST_TOKENS
            if unlimited or len(tokenizer) <= len(tokenizer.all_special_ids):
                what = "model_max_length in tokenizer_config.json" if unlimited else "vocabulary"
                raise UserError(f"the {name} of {model} has no {what}; take a whole copy of the model")
        self.tokenizers = list(named.values())
        self.tokens: int = self.tokenizers[0].model_max_length
        if torch.cuda.is_available():
            self.pipeline.to("cuda")

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """Return ``hidden`` [n, tokens, width] and, where the model takes one, ``pooled`` [n, width] of `texts`, of `dtype` on the CPU.

        Raises UserError where `dtype` cannot hold the encodings.
        """
        more = {"prompt_2": None, "prompt_3": None} if self.kind == "StableDiffusion3Pipeline" else {}
        with quiet():
            found = self.pipeline.encode_prompt(
                list(texts), device=self.pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False, **more
            )
        rows = {"hidden": found[0]} | ({"pooled": found[2]} if len(found) == 4 else {})
        rows = {key: row.to("cpu", dtype).contiguous() for key, row in rows.items()}
        for row in rows.values():
            if not row.isfinite().all():
                raise UserError(
                    "the text encoders give numbers that half precision cannot hold (NaN, infinity, or above 65,504); take another copy of "
                    "the model"
                )
        return rows

    def nothing(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """Return the row for no prompt: the encoded empty string, or zeros for SDXL, unless its pipeline's config says otherwise."""
        row = self([""], dtype)
        if self.kind == "StableDiffusionXLPipeline" and self.pipeline.config.get("force_zeros_for_empty_prompt", True):
            row = {key: torch.zeros_like(value) for key, value in row.items()}
        return row

    def longer_ones(self, texts: Sequence[str]) -> list[int]:
        """Return the positions of those `texts` that have more tokens than one of the text encoders reads, and are truncated."""
        with quiet():
            return [
                number
                for number, text in enumerate(texts)
                if any(len(tokenizer(text).input_ids) > tokenizer.model_max_length for tokenizer in self.tokenizers)
            ]


def _told_cut(cut: Sequence[int], texts: Sequence[str], tokens: int, place: str = "") -> str:
    """Return a sentence on the prompts of the numbers `cut`, which were truncated; `place` is where the first of them stands."""
    return (
        f"{len(cut):,} of {len(texts):,} prompts have more than the {tokens} tokens that the encoder sees, and were cut; "
        f"the first is {place}({texts[cut[0]][:SHOWN]!r}...)"
    )


def _pipeline(folder: Path, model: str) -> Any:
    """Return the pipeline in `folder` with only its text encoders and tokenizers. Raises UserError where they cannot be read."""
    try:
        import transformers
    except ImportError:
        raise UserError("prompts are encoded by transformers, which is not installed: pip install 'fewstep[text]'") from None
    from diffusers import DiffusionPipeline

    index = read_json(folder / "model_index.json")
    others = [name for name, named in index.items() if isinstance(named, list) and name not in (*ENCODERS, *TOKENIZERS)]
    without: dict[str, Any] = dict.fromkeys([*others, *absent_parts(folder)])
    if "requires_safety_checker" in index:
        without["requires_safety_checker"] = False
    there = [name for name in ENCODERS if isinstance(index.get(name), list) and name not in without]
    with quiet():
        # in float32, as transformers itself read weights of half precision before its version 5
        encoders = {name: read_part(folder, name, getattr(transformers, index[name][1], None), "text encoder").float() for name in there}
    try:
        with quiet():
            pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **encoders, **without)
        if "transformer" in others:  # SD 3's pipeline asks its transformer for the width of an absent text encoder's states
            width = read_json(folder / "transformer" / "config.json")["joint_attention_dim"]
            pipeline.__dict__["transformer"] = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))
    except Exception as error:  # diffusers, transformers, safetensors and json have exceptions of their own
        raise UserError(f"the text encoders of {model} cannot be read ({first_line(error)}); take another copy of the model") from error
    return pipeline


def _check_same(out: Path, belongs: dict[str, str]) -> None:
    """Raise UserError where the encoding in `out`, finished or not, is of other prompts or by another model's text encoders."""
    try:
        theirs = read_json(out / BEGUN)
    except (OSError, ValueError) as error:
        raise UserError(f"{out / BEGUN} cannot be read ({first_line(error)}); give a new folder") from None
    if theirs != belongs:
        what = (
            "other prompts" if not isinstance(theirs, dict) or theirs.get("prompts") != belongs["prompts"] else "another model's encoders"
        )
        raise UserError(f"--out is {out}, which holds encodings of {what}; give a new folder, or remove that one")


def _checked(out: Path) -> Manifest:
    """Return the manifest of the finished encoding in `out`. Raises UserError where a file does not have the checksum in the manifest."""
    try:
        return PromptTable(out, check=True).manifest
    except DataError as error:
        raise UserError(str(error)) from error


def _sha256_of_texts(found: Prompts) -> str:
    return hashlib.sha256(json.dumps(found.texts).encode()).hexdigest()


def _save(path: Path, rows: dict[str, Tensor]) -> str:
    """Write `rows` to `path` in safetensors, and return the file's SHA-256."""
    from safetensors.torch import save

    write_part(path, save(rows))
    return sha256_of(path)
