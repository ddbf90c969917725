"""A table of encoded prompts on the disk: the conditioning of a text-to-image model, one row per prompt.

The folder of a table holds

* ``prompts.jsonl``: the prompts, one JSON string per line, in the order of the rows;
* ``rows-00000.safetensors`` and so on, `CHUNK` rows each or as many as `MOST` numbers allow, in half precision: ``hidden``
  [n, tokens, width] and, for models that take one, ``pooled`` [n, width];
* ``null.safetensors``: a single row with the same tensors, which stands for no prompt;
* ``manifest.json``, which is written last: the model, the checksum of its encoders, sizes, and the SHA-256 checksum of each file.

Rows are memory-mapped, and read from the disk when they are used.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.files import sha256_of
from fewstep.text import read_json, read_lines

MANIFEST, PROMPTS, NULL = "manifest.json", "prompts.jsonl", "null.safetensors"
CHUNK = 1024
MOST = 1 << 28  # numbers in the hidden states of one file, which is in memory while it is written: 196 rows of SD 3's 333 x 4,096
VERSION = 1
REMEDY = "encode the prompts anew, with fewstep encode"


@dataclass(frozen=True)
class Manifest:
    """The manifest of a table of encoded prompts, ``manifest.json``.

    Attributes:
        model: folder or Hub id of the model that encoded the prompts.
        revision: revision of the model on the Hub; None for a folder.
        pipeline: class of the model's pipeline, such as ``StableDiffusionXLPipeline``.
        encoders: checksum of the model's text encoders and tokenizers; "" if it is unknown.
        num: number of prompts.
        tokens, width: number of tokens of each row, and width of the hidden state of each token.
        pooled: width of the pooled vector; None for models without one.
        time_ids: the sizes on which SDXL is conditioned; None for other models.
        latents: (channels, height, width) of the latents that the model makes for a prompt.
        repeated, blank, cut: number of lines that repeated an earlier prompt, of lines without a prompt, and of prompts longer than the
            encoders read.
        files: SHA-256 checksum of each file.
        version: version of this format.

    """

    model: str
    revision: str | None
    pipeline: str
    encoders: str
    num: int
    tokens: int
    width: int
    pooled: int | None
    time_ids: tuple[int, ...] | None
    latents: tuple[int, ...]
    repeated: int
    blank: int
    cut: int
    files: Mapping[str, str]
    version: int = VERSION

    @classmethod
    def of(cls, tree: Any) -> "Manifest":
        """Return the manifest from its parsed JSON. Raises ValueError if that is incomplete, invalid or of another version."""
        if not isinstance(tree, dict) or tree.get("version") != VERSION:
            raise ValueError("it is of another version")
        if missing := {field.name for field in fields(cls)} - tree.keys():
            raise ValueError(f"it has no {sorted(missing)[0]}")
        known = {field.name: tree[field.name] for field in fields(cls)}
        whole = ("num", "tokens", "width")
        if not all(type(known[name]) is int and known[name] > 0 for name in whole) or not isinstance(known["files"], dict):
            raise ValueError(f"its {', '.join(whole)} or files are not what fewstep encode writes")
        sizes = known["latents"]
        if not isinstance(sizes, list) or len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"its latents are {sizes}, and not three whole numbers")
        times = known["time_ids"]
        return cls(**known | {"time_ids": None if times is None else tuple(times), "latents": tuple(sizes)})

    def fits(self, takes: tuple[int, int | None], encoders: str | None) -> bool:
        """Return whether a network can be conditioned on these prompts.

        `takes` are the widths of the hidden and the pooled vectors that the network takes, and `encoders` is the checksum of its text
        encoders, or None if that is unknown. Both must match the table, unless unknown.
        """
        return takes == (self.width, self.pooled) and encoders in (None, self.encoders)

    def json(self) -> bytes:
        """Return the content of ``manifest.json``."""
        return json.dumps(asdict(self), indent=1).encode()


def rows_of_a_file(tokens: int, width: int) -> int:
    """Return how many rows with hidden states [tokens, width] one file holds."""
    return max(1, min(CHUNK, MOST // (tokens * width)))


def chunk_files(num: int, tokens: int, width: int) -> Iterator[tuple[str, int, int]]:
    """Yield (name, first row, one past the last row) of each file of `num` rows with hidden states [tokens, width]."""
    most = rows_of_a_file(tokens, width)
    for number, start in enumerate(range(0, num, most)):
        yield f"rows-{number:05}.safetensors", start, min(start + most, num)


def here(folder: Path) -> str:
    """Return words on the current folder, in which a relative `folder` is looked for; empty for an absolute one."""
    return "" if folder.is_absolute() else f" in {Path.cwd()}"


class PromptTable:
    """The encoded prompts in `folder`.

    ``table.rows(label)`` returns the conditioning for the rows `label` int64 [B]; row `num` stands for no prompt.

    Args:
        folder: folder that `fewstep encode` has written.
        check: whether the SHA-256 checksum of every file is compared, for which all files are read.

    Raises:
        DataError: if the folder has no manifest, for instance because the encoding was stopped, or if files do not match the manifest.

    """

    def __init__(self, folder: Path, check: bool = False) -> None:
        self.folder = folder
        if folder.is_file():
            raise DataError(f"{folder} is a file, and prompts are encoded first: fewstep encode {folder} --model MODEL --out FOLDER")
        if not folder.is_dir():
            raise DataError(
                f"there is no folder {folder} of encoded prompts{here(folder)} (fewstep encode PROMPTS --model MODEL --out {folder})"
            )
        if not (folder / MANIFEST).is_file():
            state = "holds an encoding that was stopped; the same command goes on" if (folder / PROMPTS).is_file() else "holds none"
            raise DataError(f"{folder} is no folder of encoded prompts: it {state} (fewstep encode PROMPTS --model MODEL --out {folder})")
        try:
            self.manifest = Manifest.of(read_json(folder / MANIFEST))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder / MANIFEST} cannot be read ({error}); {REMEDY}") from None
        told = self.manifest
        self._each = rows_of_a_file(told.tokens, told.width)
        self._parts = {name: self._opened(name, stop - start) for name, start, stop in chunk_files(told.num, told.tokens, told.width)}
        self._null = self._opened(NULL, 1)
        for name in (PROMPTS, NULL, *self._parts) if check else (PROMPTS,):
            if self.manifest.files.get(name) != sha256_of(folder / name):
                raise DataError(f"{folder / name} is not the file that {MANIFEST} names; {REMEDY}")

    def __len__(self) -> int:
        return self.manifest.num

    def __deepcopy__(self, memo: dict[int, Any]) -> "PromptTable":
        return self  # a table never changes, and may be larger than memory

    @property
    def texts(self) -> list[str]:
        """The prompts, in the order of the rows."""
        return [json.loads(line) for line in read_lines(self.folder / PROMPTS) if line]

    def rows(self, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return hidden [B, tokens, width] and pooled [B, width] or None, float16, of the rows `label` int64 [B].

        Row `num` is the null row. Raises ValueError for a row that does not exist.
        """
        told = self.manifest
        # rows are copied one by one: torch.stack refuses float16 under a mixed precision of bfloat16 on the CPU
        hidden = torch.empty(len(label), told.tokens, told.width, dtype=torch.float16)
        pooled = torch.empty(len(label), told.pooled, dtype=torch.float16) if told.pooled else None
        for place, row in enumerate(label.tolist()):
            if not 0 <= row <= told.num:
                raise ValueError(f"there is no row {row}; there are {told.num}, and {told.num} itself stands for no prompt")
            part = self._null if row == told.num else self._parts[f"rows-{row // self._each:05}.safetensors"]
            number = 0 if row == told.num else row % self._each
            hidden[place] = part["hidden"][number]
            if pooled is not None:
                pooled[place] = part["pooled"][number]
        return hidden, pooled

    def _opened(self, name: str, num: int) -> dict[str, Tensor]:
        """Return the memory-mapped tensors of a file of `num` rows. Raises DataError if it is damaged or does not match the manifest."""
        from safetensors import safe_open

        told = self.manifest
        expected = {"hidden": (num, told.tokens, told.width), **({"pooled": (num, told.pooled)} if told.pooled else {})}
        try:
            with safe_open(self.folder / name, "pt") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except Exception as error:  # safetensors' own exceptions, and those of a disk
            raise DataError(f"{self.folder / name} cannot be read ({str(error).splitlines()[0]}); {REMEDY}") from None
        if {key: tuple(tensor.shape) for key, tensor in found.items()} != expected:
            raise DataError(f"{self.folder / name} does not hold the {num:,} rows that {MANIFEST} names; {REMEDY}")
        return found
