"""Whether samples show what their prompts say, as a CLIP model sees it (arXiv 2103.00020; as a figure, CLIPScore, 2104.08718)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fewstep import hub
from fewstep.errors import UserError, first_line
from fewstep.pipelines.encoders import quiet
from fewstep.pipelines.folder import files_id, usual_weights
from fewstep.text import read_json

BATCH = 64  # of images, and of prompts


class Agreement:
    """The cosine between images and prompts in the space that a CLIP model has for both.

    Args:
        model: folder of the model with its tokenizer and ``preprocessor_config.json``, or Hub id.
        texts: all prompts, by their rows.
        device: where the model computes.

    Attributes:
        id: what tells the model from any other.
        cut: how many of the prompts seen so far were longer than the model reads, and were cut.

    Raises:
        UserError: where transformers is not installed, and for a model that is not there, is no CLIP, or is not whole.

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
                clip: Any = CLIPModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
                self.tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
                self.prepare: Any = CLIPImageProcessor.from_pretrained(str(folder), local_files_only=True)
            files = [*usual_weights(folder), *sorted(folder.glob("*.json"))]
            self.id = {"name": Path(model).name, "sha256": files_id(folder, files)}
        except Exception as error:  # transformers, safetensors and json each have their own
            raise UserError(f"--clip is {model}, which cannot be read ({first_line(error)}); take a whole copy of the model") from error
        self.clip = clip.to(device).eval()
        self.texts, self.device, self.cut = list(texts), device, 0
        self.words: dict[int, Tensor] = {}  # by their rows: where prompts lie

    @torch.no_grad()
    def _prompts(self, rows: Sequence[int]) -> Tensor:
        """Where the prompts of `rows` lie: [B, D]."""
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
        """Where `pixels` [B, 3, H, W] in [-1, 1] lie: [B, D]. They are scaled and cut as the model's own configuration says."""
        parts = []
        for part in ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1).split(BATCH):
            given = self.prepare(list(part.numpy()), return_tensors="pt", input_data_format="channels_first")
            parts.append(_vector(self.clip.get_image_features(given.pixel_values.to(self.device))))
        return torch.cat(parts)

    def seen(self, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines [B] of images [B, 3, H, W] in [-1, 1] with their prompts, by `rows` int64 [B], and with those in the next rows."""
        images, own = self._images(pixels.cpu()), rows.tolist()
        found = (cosine_similarity(images, self._prompts(which)) for which in (own, [(row + 1) % len(self.texts) for row in own]))
        mine, others = (cosines.cpu() for cosines in found)
        return mine, others

    def listen(self, batches: Iterable[Tensor], rows: Tensor, row: dict[str, Any]) -> Iterator[Tensor]:
        """`batches` of images for the prompts `rows`, as they are; when they have all gone by, `row` has their figures.

        ``prompt_agreement`` is the mean cosine with the own prompt, and ``prompt_margin`` by how much it is above that with another.
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
    """What transformers gives for items [B, D]: from version 5 on beside other things."""
    vector: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return vector.float()


def _folder(model: str) -> Path:
    """Where the CLIP model is. Raises UserError."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.exists() or not hub.is_id(model):
            raise UserError(f"--clip is {model!r}, which is no folder, and no Hub id (owner/name); give a CLIP model of transformers")
        folder = hub.fetched(f"--clip {model}", model, ["*.json", "*.txt", "model.safetensors", "model-*.safetensors"])
    try:
        kind = read_json(folder / "config.json").get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--clip is {model}, which holds no model ({first_line(error)}); give the folder of a CLIP model") from None
    if kind != "clip":
        raise UserError(f"--clip is {model}, a model of the type {kind!r}; only CLIP's form is known: give one of the type 'clip'")
    return folder
