"""Samples of a text-to-image model for prompts of a table: what its students are held beside, in training and in an evaluation.

In the table's folder, beside the prompts: ``teacher-00000.safetensors`` and so on, `CHUNK` samples each, with ``latents`` float16
[n, C, h, w], ``pixels`` uint8 [n, 3, H, W] and ``row`` int64 [n]; and ``teacher.json``, which is written last: the model, how it was
drawn from, how many, and the SHA-256 of each file.
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

MANIFEST = "teacher.json"
CHUNK = 64
EACH = 4  # samples of each prompt, two for either half
VERSION = 1
REMEDY = "draw them anew, with fewstep encode --samples"


@dataclass(frozen=True)
class Drawn:
    """How the samples were drawn.

    Attributes:
        weights: what tells the model's network from any other.
        steps, guidance_scale: of the model's own sampler.
        num: samples; sample number k is of row ``k // EACH % prompts``.
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


def sample_rows(first: int, last: int, prompts: int) -> Tensor:
    """The rows of samples `first` to `last`, without the latter, int64: `EACH` of each prompt, so that a spread within one is known."""
    return torch.arange(first, last) // EACH % prompts


def chunks(num: int) -> Iterator[tuple[str, int, int]]:
    """(name, first sample, one past the last) of each file of `num` samples."""
    for number, start in enumerate(range(0, num, CHUNK)):
        yield f"teacher-{number:05}.safetensors", start, min(start + CHUNK, num)


class TeacherSamples:
    """The samples in a table's `folder`. Raises DataError where what is there is damaged, or of another number of `prompts`."""

    def __init__(self, folder: Path, prompts: int) -> None:
        self.folder = folder
        try:
            tree = read_json(folder / MANIFEST)
            self.drawn = Drawn(**tree)
            whole = all(type(value) is int and value > 0 for value in (self.drawn.num, self.drawn.steps, self.drawn.prompts))
            if not whole or self.drawn.version != VERSION:
                raise ValueError("its numbers are none, or it is of another version")
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder / MANIFEST} cannot be read ({error}); {REMEDY}") from None
        if self.drawn.prompts != prompts:
            raise DataError(f"{folder / MANIFEST} is of {self.drawn.prompts:,} prompts, and there are {prompts:,}; {REMEDY}")
        self._parts = [self._opened(name, last - first) for name, first, last in chunks(self.drawn.num)]

    def __len__(self) -> int:
        return self.drawn.num

    def __deepcopy__(self, memo: dict[int, Any]) -> "TeacherSamples":
        return self  # nothing in it changes

    @property
    def rows(self) -> Tensor:
        """The row of each sample's prompt, int64 [N]."""
        return sample_rows(0, self.drawn.num, self.drawn.prompts)

    def latents(self, index: Tensor) -> Tensor:
        """Those of `index` int64 [B]: float32 [B, C, h, w]."""
        return torch.stack([self._parts[k // CHUNK]["latents"][k % CHUNK].float() for k in index.tolist()])

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
                found = {key: file.get_tensor(key) for key in ("latents", "pixels")}
        except Exception as error:  # the library's own, and those of a disk
            raise DataError(f"{self.folder / name} cannot be read ({str(error).splitlines()[0]}); {REMEDY}") from None
        if any(len(tensor) != num for tensor in found.values()):
            raise DataError(f"{self.folder / name} does not hold the {num} samples that {MANIFEST} names; {REMEDY}")
        return found
