"""Agreement of samples with their prompts, measured by a CLIP model (arXiv 2103.00020; as a figure, CLIPScore, arXiv 2104.08718)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fewstep import hub
from fewstep.errors import UserError, first_line
from fewstep.pipelines.folder import files_id, usual_weights
from fewstep.pipelines.parts import quiet, read_part
from fewstep.text import read_json

BATCH = 64  # images, or prompts, that the model is given at a time


class Agreement:
    """The cosine similarity of images and prompts in the embedding space of a CLIP model.

    Args:
        model: Hub id of the CLIP model, or its folder, with a tokenizer and ``preprocessor_config.json``.
        texts: all prompts; a prompt's row is its place in this sequence.
        device: where the model computes.

    Attributes:
        id: the model's ``name``, and a ``sha256`` checksum of its configs and weights.
        cut: how many of the prompts encoded so far had more tokens than the model reads, and were truncated.

    Raises:
        UserError: where transformers is not installed, and for a model that cannot be found, is no CLIP model, or is incomplete.

    """

    def __init__(self, model: str, texts: Sequence[str], device: torch.device | str = "cpu") -> None:
        try:
            from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
        except ImportError:
            raise UserError(
                "agreement with prompts is measured by transformers, which is not installed: pip install 'fewstep[text]'"
            ) from None
        folder = _folder(model)
        try:
            with quiet():
                clip: Any = read_part(folder.resolve().parent, folder.resolve().name, CLIPModel, "CLIP model")
                self.tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
                self.prepare: Any = CLIPImageProcessor.from_pretrained(str(folder), local_files_only=True)
            files = [*usual_weights(folder), *sorted(folder.glob("*.json"))]
            self.id = {"name": Path(model).name, "sha256": files_id(folder, files)}
        except Exception as error:  # transformers, safetensors and json each have exceptions of their own
            raise UserError(f"--clip is {model}, which cannot be read ({first_line(error)}); take a whole copy of the model") from error
        self.clip = clip.to(device).float().eval()  # transformers keeps weights in half precision, and images are not
        self.texts, self.device, self.cut = list(texts), device, 0
        self.words: dict[int, Tensor] = {}  # the embeddings of prompts, by their rows

    @torch.no_grad()
    def _prompts(self, rows: Sequence[int]) -> Tensor:
        """Return the embeddings [B, D] of the prompts in `rows`."""
        new = sorted(set(rows) - self.words.keys())
        for first in range(0, len(new), BATCH):
            some = new[first : first + BATCH]
            texts, longest = [self.texts[row] for row in some], self.tokenizer.model_max_length
            with quiet():
                self.cut += sum(len(found) > longest for found in self.tokenizer(texts).input_ids)
                told = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
            self.words |= dict(zip(some, _vector(self.clip.get_text_features(**told)), strict=True))
        return torch.stack([self.words[row] for row in rows])

    @torch.no_grad()
    def _images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings [B, D] of `pixels` [B, 3, H, W] in [-1, 1], resized and cropped as the model's own config says."""
        parts = []
        for part in ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1).split(BATCH):
            given = self.prepare(list(part.numpy()), return_tensors="pt", input_data_format="channels_first")
            parts.append(_vector(self.clip.get_image_features(given.pixel_values.to(self.device))))
        return torch.cat(parts)

    def seen(self, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines [B] of images [B, 3, H, W] in [-1, 1] with the prompts in `rows` int64 [B], and in the rows after these."""
        images, own = self._images(pixels.cpu()), rows.tolist()
        found = (cosine_similarity(images, self._prompts(which)) for which in (own, [(row + 1) % len(self.texts) for row in own]))
        mine, others = (cosines.cpu() for cosines in found)
        return mine, others

    def listen(self, batches: Iterable[Tensor], rows: Tensor, row: dict[str, Any]) -> Iterator[Tensor]:
        """Yield `batches` of images for the prompts `rows` unchanged, and after the last put their figures into the results `row`.

        ``prompt_agreement`` is the mean cosine of an image with its own prompt, and ``prompt_margin`` that mean less the mean cosine with
        another prompt.
        """
        found: list[tuple[Tensor, Tensor]] = []
        start = 0
        for images in batches:
            found.append(self.seen(images, rows[start : start + len(images)]))
            start += len(images)
            yield images
        mine, others = (torch.cat(parts) for parts in zip(*found, strict=True))
        row["prompt_agreement"] = mine.mean().item()
        if len(self.texts) > 1:
            row["prompt_margin"] = (mine - others).mean().item()


def _vector(found: Any) -> Tensor:
    """Return the embeddings [B, D] from an output of transformers: a tensor, or from version 5 on an object that holds one."""
    vector: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return vector.float()


def _folder(model: str) -> Path:
    """Return the folder of the CLIP model `model`, a folder or a Hub id. Raises UserError for anything else."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.exists() or not hub.is_model(model):
            raise UserError(f"--clip is {model!r}, which is no folder, and no Hub id (owner/name); give a CLIP model of transformers")
        folder = hub.fetched(f"--clip {model}", model, ["*.json", "*.txt", "model.safetensors", "model-*.safetensors"])
    try:
        kind = read_json(folder / "config.json").get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--clip is {model}, which holds no model ({first_line(error)}); give the folder of a CLIP model") from None
    if kind != "clip":
        raise UserError(f"--clip is {model}, a model of the type {kind!r}; only CLIP's form is known: give one of the type 'clip'")
    return folder
