"""Training on prompts: the label of an item is the row of its prompt in a table (`PromptTable`).

To train a student of a text-to-image model without a discriminator, prompts are enough. The student's samples are compared with samples of
its teacher for any prompts, if there are some, or else with images whose captions are the prompts. A discriminator needs such images.
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
        table: the table of the encoded prompts.
        samples: samples of the model for which the prompts were encoded; None if none were drawn.
        images: the images whose captions are the prompts, as latents labelled by rows; None without images.
        pairs: further samples of the model, each with the noise it was made from, to train on; None if none were drawn.

    """

    table: PromptTable
    samples: TeacherSamples | None = None
    images: LatentData | None = None
    pairs: TeacherSamples | None = None

    labels_are_classes = False  # without images, an item of a batch belongs to any prompt, not to the one that its label names
    are_pixels = False
    class_names: tuple[str, ...] = ()
    mixture: None = None

    @property
    def compares(self) -> bool:
        """Whether a batch holds latents with which a student's samples can be compared."""
        return self.samples is not None or self.images is not None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.table.folder.resolve().name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, height, width) of the latents that the model makes for a prompt."""
        return self.table.manifest.latents

    @property
    def num_classes(self) -> int:
        """Number of prompts."""
        return len(self.table)

    @property
    def train(self) -> range:
        """A range as long as the training data: the number of images, or of rows without images."""
        return range(len(self.table) if self.images is None else len(self.images.train))

    @property
    def heldout(self) -> range:
        """A range as long as the held-out data: samples of the model, or else held-out images. Training uses neither."""
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
            train="images with their captions" if images else "the prompts alone, without images",
            heldout="samples of the model" if samples else "images" if images else "no samples of the model were drawn",
        )

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return latents float32 [B, C, h, w] and the rows of their captions [B], for `index` int64 [B] into the images.

        Without images, `index` holds rows, which are returned beside latents for any prompts: samples of the model drawn by `rng`, or zeros
        if there are no samples. Which sample stands beside a row does not depend on that row; otherwise, with few prompts, only the first
        samples would be used.
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
        """Return the latents [num, C, h, w] of `num` training images or samples of the model, or all if there are fewer, drawn with `seed`.

        Raises DataError if there are neither images nor samples.
        """
        if self.images is not None:
            return self.images.some(num, seed)
        samples = self._samples()
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:num]
        return samples.latents(order)

    def excerpt(self) -> ImageData:
        """Return the pixels of the model's samples in two halves, or else those of the images, labelled by rows.

        `fewstep.data.own.EXCERPT_BYTES` limits their number. Raises DataError if there are neither samples nor images, or if fewer than
        `EACH` samples fit.
        """
        if self.samples is None and self.images is not None:
            return self.images.excerpt()
        samples = self._samples()
        num = min(len(samples), EXCERPT_BYTES // samples.bytes_each) // EACH * EACH
        if len(samples) < EACH:
            raise DataError(f"{self.table.folder} holds {len(samples)} samples of the model; at least {EACH} are needed: draw more")
        if num < EACH:
            raise DataError(
                f"a sample of {self.table.folder} has {samples.bytes_each / 1e6:,.0f} MB, and {EACH} of them are more than the "
                f"{EXCERPT_BYTES / 1e6:,.0f} MB that are measured at most; encode prompts for a model with smaller images"
            )
        rows, half = samples.rows[:num], torch.arange(num) % EACH < EACH // 2
        pixels = samples.pixels(0, num)
        return ImageData(self.name, pixels[half], pixels[~half], rows[half], rows[~half], 127.5, ())

    def _samples(self) -> TeacherSamples:
        if self.samples is None:
            raise DataError(
                f"{self.table.folder} holds prompts and no samples of their model, which a run is measured against; draw some: "
                f"fewstep encode PROMPTS --model MODEL --out {self.table.folder} --samples 2000"
            )
        return self.samples


def prompt_table(path: str) -> PromptData:
    """Return the prompts that `fewstep encode` has written to the folder `path`, with any samples, pairs and images that lie beside them.

    Raises DataError if files are missing or damaged.
    """
    table = PromptTable(Path(path))
    samples, pairs = (
        TeacherSamples(table.folder, len(table), use) if (table.folder / use.manifest).is_file() else None for use in (COMPARED, PAIRS)
    )
    return PromptData(table, samples, latent_folder(path) if (table.folder / LATENTS).is_file() else None, pairs)
