"""Prompts to be learned from: the label of an item is the row of its prompt in a table (`PromptTable`).

A student of a text-to-image model that has no discriminator needs nothing else. What it makes is held beside samples of its teacher
where there are some, of whatever prompts; or else beside images whose captions these prompts are, which a discriminator needs.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.images import ImageData
from fewstep.data.latents import MANIFEST as LATENTS
from fewstep.data.latents import LatentData, latent_folder
from fewstep.data.origin import Origin
from fewstep.data.own import EXCERPT_BYTES
from fewstep.data.parts import TwoParts
from fewstep.data.prompt_table import PromptTable
from fewstep.data.teacher_samples import COMPARED, EACH, PAIRS, TeacherSamples
from fewstep.streams import integers


@dataclass(frozen=True)
class PromptData(TwoParts):
    """The encoded prompts in a folder, as training data.

    Attributes:
        table: of the prompts.
        samples: of the model that they were encoded for; None where none were drawn.
        images: whose captions the prompts are, as latents labelled by rows; None where there are prompts alone.
        pairs: other samples of the model and the noise of each, to learn from; None where none were drawn.

    """

    table: PromptTable
    samples: TeacherSamples | None = None
    images: LatentData | None = None
    pairs: TeacherSamples | None = None

    labels_are_classes = False  # an item of a batch is of any prompt, whatever its label
    are_pixels = False
    class_names: tuple[str, ...] = ()
    mixture: None = None

    @property
    def compares(self) -> bool:
        """Whether a batch holds items that samples can be held beside."""
        return self.samples is not None or self.images is not None

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
        """The rows, or the images where there are some."""
        return range(len(self.table) if self.images is None else len(self.images.train))

    @property
    def heldout(self) -> range:
        """Samples of the model, or else held-out images: none are trained on."""
        beside = self.samples if self.samples is not None else self.images.heldout if self.images is not None else ()
        return range(len(beside))

    @property
    def origin(self) -> Origin:
        """Where the prompts come from."""
        told = self.table.manifest
        place = f"{self.table.folder}, encoded by {told.model}"
        samples, images = self.samples is not None, self.images is not None
        return Origin(
            place,
            "image" if images else "prompt",
            None if images else len(self.table),
            classes=f"a label is the row of one of {len(self.table):,} prompts" if images else "a label is the row of a prompt",
            train="images with their captions" if images else "their text alone",
            heldout="samples of the model" if samples else "images" if images else "no samples of the model were drawn",
        )

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images float32 [B, C, h, w] and the rows of their captions [B], for `index` into the images.

        Without images `index` are the rows, and with them stand samples of the model for any prompts, by `rng`, or zeros where there are
        none. Which sample stands beside an item does not depend on its row: of few prompts the first rows alone would be seen.
        """
        if self.images is not None:
            latents, rows = self.images.batch(index, rng, device)
            assert rows is not None
            return latents, rows
        if self.samples is None:
            return torch.zeros(len(index), *self.shape, device=device), index.to(device)
        any_of_them = integers(0, len(self.samples), (len(index),), rng).cpu()
        return self.samples.latents(any_of_them).to(device), index.to(device)

    def some(self, num: int, seed: int) -> Tensor:
        """`num` images or samples of the model [num, C, h, w], or all if there are fewer. Raises DataError where there are none."""
        if self.images is not None:
            return self.images.some(num, seed)
        samples = self._samples()
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:num]
        return samples.latents(order)

    def excerpt(self) -> ImageData:
        """The pixels of the model's samples in two halves, or else those of the images, labelled by rows; as many as fit.

        Raises DataError where there are neither.
        """
        if self.samples is None and self.images is not None:
            return self.images.excerpt()
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
    """The prompts that `fewstep encode` has written to the folder `path`, and what lies beside them, if anything does. Raises DataError."""
    table = PromptTable(Path(path))
    samples, pairs = (
        TeacherSamples(table.folder, len(table), use) if (table.folder / use.manifest).is_file() else None for use in (COMPARED, PAIRS)
    )
    return PromptData(table, samples, latent_folder(path) if (table.folder / LATENTS).is_file() else None, pairs)
