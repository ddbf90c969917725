"""What is published with a model: names of what it was made from, in place of the folders of the machine on which it was made."""

import copy
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from fewstep import hub
from fewstep.licences import on_card

CACHED = re.compile(r"models--(.+?)--(.+?)[/\\]snapshots[/\\]([^/\\]+)")  # a model's folder in the cache of the Hub


def public_name(model: str) -> str:
    """Return the name of `model`, a folder or a Hub id, without the folders of this machine.

    A Hub id stays as it is; of a folder in the Hub's cache it is the id with its commit, ``owner/name@commit``, and of another folder the
    last part of its path.
    """
    if found := CACHED.search(model):
        return f"{found[1]}/{found[2]}@{found[3]}"
    is_local = model.startswith(("/", ".", "~")) or Path(model).exists()
    return Path(model).name if is_local else model


def published(generator: Any) -> Any:
    """Return the `fewstep.generator.Generator` `generator` with the same weights, and with `public_name` for each folder in its config.

    The folder of its encoded prompts, which is nobody else's, is left out. Such a generator is for writing: it may not find its pipeline.
    """
    other = copy.copy(generator)
    if other.base is not None:
        other.base = dataclasses.replace(other.base, model=public_name(other.base.model))
    if other.latents is not None:
        other.latents = {**other.latents, "model": public_name(str(other.latents["model"]))}
    other.info = {key: value for key, value in other.info.items() if key != "prompts"}
    if "imported_from" in other.info:
        other.info["imported_from"] = public_name(str(other.info["imported_from"]))
    return other


def card_fields(generator: Any, licence: str | None, fused: bool = False) -> dict[str, Any]:
    """Return what the Hub reads of the card of `generator`, under `licence`, any name: ``license``, ``license_name`` and ``tags``.

    A text-to-image generator also has a ``pipeline_tag`` and, where its pipeline has a Hub id, that id as ``base_model``. The latter's
    ``base_model_relation`` is "adapter" for low-rank adapters (LoRA) alone, and "finetune" for weights of its own, or for adapters that
    are `fused` into the pipeline's weights (https://huggingface.co/docs/hub/model-cards#specifying-a-base-model).
    """
    fields: dict[str, Any] = {**on_card(licence), "tags": []}
    if generator.told is None or generator.latents is None:
        return fields
    adapter = generator.base is not None and generator.base.rank is not None and not fused
    fields |= {"pipeline_tag": "text-to-image", "tags": ["lora"] * adapter}
    name, _ = hub.parted(public_name(str(generator.latents["model"])))
    if not hub.is_id(name):
        return fields
    refers = generator.base is not None and generator.base.rank is None  # the pipeline itself, of which this is no change
    return fields | {"base_model": name} | ({} if refers else {"base_model_relation": "adapter" if adapter else "finetune"})


def filled(card: ModelCard, fields: Mapping[str, Any]) -> ModelCard:
    """Return `card` with the metadata `fields` in place of its own; ``tags`` are added to those that it has."""
    data = vars(card.data)
    data.update({**fields, "tags": [*(data.get("tags") or ()), *fields.get("tags", ())]})
    return card
