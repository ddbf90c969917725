"""Samples of a text-to-image model for prompts of a table: what its students are held beside, and what they may learn from at first.

In the table's folder, beside the prompts: ``teacher-00000.safetensors`` and so on, `CHUNK` samples each, with ``latents`` float16
[n, C, h, w], ``pixels`` uint8 [n, 3, H, W] and ``row`` int64 [n]; and ``teacher.json``, which is written last: the model, how it was
drawn from, how many, and the SHA-256 of each file. Pairs to learn from are ``pairs-00000.safetensors`` and ``pairs.json``: other samples,
with the ``noise`` float16 [n, C, h, w] that each was made of, and no pixels.
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
EACH = 4  # samples of each prompt, two for either half
VERSION = 1


@dataclass(frozen=True)
class Use:
    """What samples are drawn for.

    Attributes:
        what: they are called.
        stem: of the names of their files, and of the stream that their noise comes from.
        option: of ``fewstep encode``.
        each: samples of each prompt, one after the other.
        beside: what is kept with the latents.

    """

    what: str
    stem: str
    option: str
    each: int
    beside: str

    @property
    def manifest(self) -> str:
        """The file that says how they were drawn."""
        return f"{self.stem}.json"

    @property
    def remedy(self) -> str:
        """What to do about damaged ones."""
        return f"draw them anew, with fewstep encode {self.option}"

    def rows(self, first: int, last: int, prompts: int) -> Tensor:
        """The rows of samples `first` to `last`, without the latter, int64."""
        return torch.arange(first, last) // self.each % prompts

    def chunks(self, num: int) -> Iterator[tuple[str, int, int]]:
        """(name, first sample, one past the last) of each file of `num` samples."""
        for number, start in enumerate(range(0, num, CHUNK)):
            yield f"{self.stem}-{number:05}.safetensors", start, min(start + CHUNK, num)


COMPARED = Use("samples", "teacher", "--samples", EACH, "pixels")  # several of a prompt, so that a spread within one is known
PAIRS = Use("pairs", "pairs", "--pairs", 1, "noise")


@dataclass(frozen=True)
class Drawn:
    """How the samples were drawn.

    Attributes:
        weights: what tells the model's network from any other.
        steps, guidance_scale: of the model's own sampler.
        num: samples; their rows are as `Use` has them.
        prompts: how many there are in the table.
        files: SHA-256 of each file.
        version: of this format.

    """

    weights: str
    steps: int
    guidance_scale: float
    num: int
    prompts: int
    files: Mapping[str, str]
    version: int = VERSION

    def json(self) -> bytes:
        """What ``teacher.json`` holds."""
        return json.dumps(asdict(self), indent=1).encode()


class TeacherSamples:
    """The samples in a table's `folder` for one `use`.

    Raises DataError where what is there is damaged, or of another number of `prompts`.
    """

    def __init__(self, folder: Path, prompts: int, use: Use = COMPARED) -> None:
        self.folder, self.use = folder, use
        manifest = folder / use.manifest
        try:
            self.drawn = Drawn(**read_json(manifest))
            whole = all(type(value) is int and value > 0 for value in (self.drawn.num, self.drawn.steps, self.drawn.prompts))
            if not whole or self.drawn.version != VERSION:
                raise ValueError("its numbers are none, or it is of another version")
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{manifest} cannot be read ({error}); {use.remedy}") from None
        if self.drawn.prompts != prompts:
            raise DataError(f"{manifest} is of {self.drawn.prompts:,} prompts, and there are {prompts:,}; {use.remedy}")
        self._parts = [self._opened(name, last - first) for name, first, last in use.chunks(self.drawn.num)]

    def __len__(self) -> int:
        return self.drawn.num

    def __deepcopy__(self, memo: dict[int, Any]) -> "TeacherSamples":
        return self  # nothing in it changes

    @property
    def rows(self) -> Tensor:
        """The row of each sample's prompt, int64 [N]."""
        return self.use.rows(0, self.drawn.num, self.drawn.prompts)

    def latents(self, index: Tensor) -> Tensor:
        """Those of `index` int64 [B]: float32 [B, C, h, w]."""
        return self._some("latents", index)

    def noise(self, index: Tensor) -> Tensor:
        """What each of the pairs `index` int64 [B] was made of: float32 [B, C, h, w]."""
        return self._some("noise", index)

    def _some(self, key: str, index: Tensor) -> Tensor:
        return torch.stack([self._parts[k // CHUNK][key][k % CHUNK].float() for k in index.tolist()])

    def pixels(self, first: int, last: int) -> Tensor:
        """Those of samples `first` to `last`, without the latter: uint8 [n, 3, H, W]."""
        return torch.stack([self._parts[k // CHUNK]["pixels"][k % CHUNK] for k in range(first, last)])

    @property
    def bytes_each(self) -> int:
        """Of the pixels of a sample."""
        return self._parts[0]["pixels"][0].numel()

    def _opened(self, name: str, num: int) -> dict[str, Tensor]:
        from safetensors import safe_open

        try:
            with safe_open(self.folder / name, "pt") as file:
                found = {key: file.get_tensor(key) for key in ("latents", self.use.beside)}
        except Exception as error:  # the library's own, and those of a disk
            raise DataError(f"{self.folder / name} cannot be read ({str(error).splitlines()[0]}); {self.use.remedy}") from None
        if any(len(tensor) != num for tensor in found.values()):
            raise DataError(f"{self.folder / name} does not hold the {num} samples that {self.use.manifest} names; {self.use.remedy}")
        return found
