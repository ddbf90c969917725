"""Prompts to be learned from without any image: the label of an item is the row of its prompt in a table (`PromptTable`).

A student of a text-to-image model that has no discriminator needs nothing else. What it makes is held beside samples of its teacher
where there are some, of whatever prompts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.origin import Origin
from fewstep.data.parts import InMemory
from fewstep.data.prompt_table import PromptTable


@dataclass(frozen=True)
class PromptData(InMemory):
    """The encoded prompts in a folder, as training data.

    Attributes:
        table: of the prompts.

    """

    table: PromptTable

    compares = False  # a batch holds no items that samples could be held beside
    class_names: tuple[str, ...] = ()
    mixture: None = None

    @property
    def name(self) -> str:
        """The folder's."""
        return self.table.folder.resolve().name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latents that the model makes of a prompt: (C, height, width)."""
        return self.table.manifest.latents

    @property
    def num_classes(self) -> int:
        """How many prompts there are."""
        return len(self.table)

    @property
    def train(self) -> range:
        """The rows."""
        return range(len(self.table))

    @property
    def heldout(self) -> range:
        """None are held out: nothing is learned by heart without images."""
        return range(0)

    @property
    def origin(self) -> Origin:
        """Where the prompts come from."""
        told = self.table.manifest
        place = f"{self.table.folder}, encoded by {told.model}"
        return Origin(
            place,
            "prompt",
            len(self.table),
            classes="a label is the row of a prompt",
            train="their text alone",
            heldout="without images there are none",
        )

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Zeros of the shape of `index` int64 [B] latents, float32 [B, C, h, w], and the rows themselves, on `device`."""
        return torch.zeros(len(index), *self.shape, device=device), index.to(device)

    def some(self, num: int, seed: int) -> Tensor:
        """Nothing: raises DataError."""
        raise DataError(_no_images(self))

    def excerpt(self) -> Any:
        """Nothing: raises DataError."""
        raise DataError(_no_images(self))


def _no_images(data: PromptData) -> str:
    return f"{data.table.folder} holds prompts and no images, and nothing can be measured against them"


def prompt_table(path: str) -> PromptData:
    """The prompts that `fewstep encode` has written to the folder `path`. Raises DataError."""
    return PromptData(PromptTable(Path(path)))
