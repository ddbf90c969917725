"""Samples of a text-to-image model for the prompts of a table, to compare students with, and pairs from which students learn first.

The samples lie in the table's folder: ``teacher-00000.safetensors`` and so on, `CHUNK` samples each, with ``latents`` float16 [n, C, h, w],
``pixels`` uint8 [n, 3, H, W] and ``row`` int64 [n]; and ``teacher.json``, which is written last: the checksum of the model's network, the
sampler's settings, the number of samples, and the SHA-256 checksum of each file. The pairs are further samples, each with its initial
noise: ``pairs-00000.safetensors`` and so on, with ``noise`` float16 [n, C, h, w] in place of pixels, and ``pairs.json``.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.text import read_json

CHUNK = 64
EACH = 4  # samples of each prompt, two for each half of the samples
VERSION = 1


@dataclass(frozen=True)
class Use:
    """The purpose for which samples are drawn.

    Attributes:
        what: what messages call the samples.
        stem: beginning of the names of the files, and name of the random stream of the noise.
        option: option of ``fewstep encode`` that draws the samples.
        each: number of samples of each prompt, which follow one another.
        beside: name of the tensor that is stored beside the latents.

    """

    what: str
    stem: str
    option: str
    each: int
    beside: str

    @property
    def manifest(self) -> str:
        """Name of the file that says how the samples were drawn."""
        return f"{self.stem}.json"

    @property
    def remedy(self) -> str:
        """What to do if files are damaged, for messages."""
        return f"draw them anew, with fewstep encode {self.option}"

    def rows(self, first: int, last: int, prompts: int) -> Tensor:
        """Return the rows of the prompts of samples `first` to `last`, the end excluded, int64; the table has `prompts` rows."""
        return torch.arange(first, last) // self.each % prompts

    def chunks(self, num: int) -> Iterator[tuple[str, int, int]]:
        """Yield (name, first sample, one past the last sample) of each file of `num` samples."""
        for number, start in enumerate(range(0, num, CHUNK)):
            yield f"{self.stem}-{number:05}.safetensors", start, min(start + CHUNK, num)


COMPARED = Use("samples", "teacher", "--samples", EACH, "pixels")  # several samples per prompt, to know their spread
PAIRS = Use("pairs", "pairs", "--pairs", 1, "noise")


@dataclass(frozen=True)
class Drawn:
    """How samples were drawn: the content of ``teacher.json`` or ``pairs.json``.

    Attributes:
        weights: checksum of the weights of the model's network.
        steps, guidance_scale: number of steps and scale of classifier-free guidance, for the model's own sampler.
        num: number of samples; `Use.rows` gives their prompts.
        prompts: number of prompts in the table.
        files: SHA-256 checksum of each file.
        version: version of this format.
        vae: checksum of the VAE that decoded the pixels; None for samples without pixels, and where it is not known.

    """

    weights: str
    steps: int
    guidance_scale: float
    num: int
    prompts: int
    files: Mapping[str, str]
    version: int = VERSION
    vae: str | None = None

    def json(self) -> bytes:
        """Return the content of the manifest, ``teacher.json`` or ``pairs.json``."""
        return json.dumps(asdict(self), indent=1).encode()


class TeacherSamples:
    """The samples that were drawn for one `use` into a table's `folder`.

    Raises DataError if files are damaged, or if the samples are of a table with another number of `prompts`.
    """

    def __init__(self, folder: Path, prompts: int, use: Use = COMPARED) -> None:
        self.folder, self.use = folder, use
        manifest = folder / use.manifest
        try:
            self.drawn = Drawn(**read_json(manifest))
            whole = all(type(value) is int and value > 0 for value in (self.drawn.num, self.drawn.steps, self.drawn.prompts))
            if not whole or self.drawn.version != VERSION:
                raise ValueError("its numbers are not whole, or it is of another version")
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{manifest} cannot be read ({error}); {use.remedy}") from None
        if self.drawn.prompts != prompts:
            raise DataError(f"{manifest} is of {self.drawn.prompts:,} prompts, and there are {prompts:,}; {use.remedy}")
        self._parts = [self._opened(name, last - first) for name, first, last in use.chunks(self.drawn.num)]

    def __len__(self) -> int:
        return self.drawn.num

    def __deepcopy__(self, memo: dict[int, Any]) -> "TeacherSamples":
        return self  # the samples never change

    @property
    def rows(self) -> Tensor:
        """Row of the prompt of each sample, int64 [N]."""
        return self.use.rows(0, self.drawn.num, self.drawn.prompts)

    def latents(self, index: Tensor) -> Tensor:
        """Return the latents of the samples `index` int64 [B]: float32 [B, C, h, w]."""
        return self._some("latents", index)

    def noise(self, index: Tensor) -> Tensor:
        """Return the initial noise of the pairs `index` int64 [B]: float32 [B, C, h, w]."""
        return self._some("noise", index)

    def _some(self, key: str, index: Tensor) -> Tensor:
        return torch.stack([self._parts[k // CHUNK][key][k % CHUNK].float() for k in index.tolist()])

    def pixels(self, first: int, last: int) -> Tensor:
        """Return the pixels of samples `first` to `last`, the end excluded: uint8 [n, 3, H, W]."""
        return torch.stack([self._parts[k // CHUNK]["pixels"][k % CHUNK] for k in range(first, last)])

    @property
    def bytes_each(self) -> int:
        """Number of bytes of the pixels of one sample."""
        return self._parts[0]["pixels"][0].numel()

    def _opened(self, name: str, num: int) -> dict[str, Tensor]:
        from safetensors import safe_open

        try:
            with safe_open(self.folder / name, "pt") as file:
                found = {key: file.get_tensor(key) for key in ("latents", self.use.beside)}
        except Exception as error:  # safetensors' own exceptions, and those of a disk
            raise DataError(f"{self.folder / name} cannot be read ({str(error).splitlines()[0]}); {self.use.remedy}") from None
        if any(len(tensor) != num for tensor in found.values()):
            raise DataError(f"{self.folder / name} does not hold the {num} samples that {self.use.manifest} names; {self.use.remedy}")
        return found
