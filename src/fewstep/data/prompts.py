"""Prompts to be learned from without any image: the label of an item is the row of its prompt in a table (`PromptTable`).

A student of a text-to-image model that has no discriminator needs nothing else. What it makes is held beside samples of its teacher
where there are some, of whatever prompts.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.images import ImageData
from fewstep.data.origin import Origin
from fewstep.data.own import EXCERPT_BYTES
from fewstep.data.parts import TwoParts
from fewstep.data.prompt_table import PromptTable
from fewstep.data.teacher_samples import EACH, MANIFEST, TeacherSamples
from fewstep.streams import integers


@dataclass(frozen=True)
class PromptData(TwoParts):
    """The encoded prompts in a folder, as training data.

    Attributes:
        table: of the prompts.
        samples: of the model that they were encoded for; None where none were drawn.

    """

    table: PromptTable
    samples: TeacherSamples | None = None

    labels_are_classes = False  # an item of a batch is of any prompt, whatever its label
    are_pixels = False
    class_names: tuple[str, ...] = ()
    mixture: None = None

    @property
    def compares(self) -> bool:
        """Whether a batch holds items that samples can be held beside."""
        return self.samples is not None

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
        """Samples of the model: none are trained on."""
        return range(0 if self.samples is None else len(self.samples))

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
            heldout="samples of the model" if self.samples is not None else "no samples of the model were drawn",
        )

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Samples of the model for any prompts, by `rng`, or zeros where there are none, float32 [B, C, h, w]; and the rows `index`.

        Which sample stands beside an item does not depend on its row: of few prompts the first rows alone would be seen.
        """
        if self.samples is None:
            return torch.zeros(len(index), *self.shape, device=device), index.to(device)
        any_of_them = integers(0, len(self.samples), (len(index),), rng).cpu()
        return self.samples.latents(any_of_them).to(device), index.to(device)

    def some(self, num: int, seed: int) -> Tensor:
        """`num` samples of the model [num, C, h, w], or all if there are fewer. Raises DataError where there are none."""
        samples = self._samples()
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:num]
        return samples.latents(order)

    def excerpt(self) -> ImageData:
        """The pixels of the model's samples in two halves, labelled by rows; as many as fit. Raises DataError where there are none."""
        samples = self._samples()
        num = min(len(samples), EXCERPT_BYTES // samples.bytes_each) // EACH * EACH
        if num < EACH:
            raise DataError(f"an image of {self.table.folder} has {samples.bytes_each / 1e6:,.0f} MB, and two are more than is measured")
        rows, half = samples.rows[:num], torch.arange(num) % EACH < EACH // 2
        pixels = samples.pixels(0, num)
        return ImageData(self.name, pixels[half], pixels[~half], rows[half], rows[~half], 127.5, ())

    def _samples(self) -> TeacherSamples:
        if self.samples is None:
            raise DataError(
                f"{self.table.folder} holds prompts and no samples of their model, and nothing can be measured against them; draw some: "
                f"fewstep encode PROMPTS --model MODEL --out {self.table.folder} --samples 2000"
            )
        return self.samples


def prompt_table(path: str) -> PromptData:
    """The prompts that `fewstep encode` has written to the folder `path`, and the samples beside them, if any. Raises DataError."""
    table = PromptTable(Path(path))
    there = (table.folder / MANIFEST).is_file()
    return PromptData(table, TeacherSamples(table.folder, len(table)) if there else None)
