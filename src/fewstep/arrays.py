"""NumPy's files that the user names: their headers say how much memory their arrays would take, before it is taken.

Nothing in such a file is executed: arrays of objects, which are pickles, are refused.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fewstep.limits import ARRAY_BYTES, POINT_BYTES, TooLarge, in_units, memory

LONGEST_HEADER = 2**16  # bytes; numpy itself takes 10,000


@dataclass(frozen=True)
class Header:
    """What an array is said to be: its shape and type, and the bytes of the header itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: BinaryIO) -> Header:
    """The header of a .npy file, which is read up to its numbers. Raises ValueError for what is none, and for objects."""
    version = np.lib.format.read_magic(file)
    # version 3 differs from 2 in the names of fields alone
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are code that runs; save numbers")
    if any(side < 0 for side in shape):
        raise ValueError(f"its header says shape {list(shape)}")
    return Header(shape, dtype, file.tell())


def load_npy(path: str | Path) -> NDArray[Any]:
    """The one array in a .npy file.

    Raises OSError, ValueError for what is no whole such file, and TooLarge for one whose numbers this machine has not the memory for.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError("it is no plain file")
    with path.open("rb") as file:
        header = read_header(io.BytesIO(file.read(LONGEST_HEADER)))
        there = path.stat().st_size - header.start
        if header.size > there:
            raise ValueError(
                f"its header claims {in_units(header.size)} of numbers, of shape {list(header.shape)}, and {in_units(there)} are there"
            )
        needed = math.prod(header.shape) * max(POINT_BYTES, header.dtype.itemsize)
        if needed > memory():
            raise TooLarge(
                f"{path} holds an array of shape {list(header.shape)}, which takes {in_units(needed)} to be read, and this machine lets "
                f"{in_units(memory())} be taken; save fewer rows of it"
            )
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def load_npz(path: Path, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    """The arrays in a .npz that are called one of `wanted`; no other is read.

    Raises OSError, ValueError, zipfile.BadZipFile, and TooLarge where they claim more than `ARRAY_BYTES`, or a quarter of the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _members(archive, path, wanted)
    except MemoryError:
        raise TooLarge(f"{path} holds more than there is memory for; take another copy, or run on another machine") from None
    except (NotImplementedError, RuntimeError, KeyError, zlib.error) as error:  # an archive that is encrypted, or packed by other means
        raise ValueError(str(error)) from error


def _members(archive: zipfile.ZipFile, path: Path, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    most = min(ARRAY_BYTES, memory() // 4)
    found, left, names = {}, most, set(archive.namelist())
    for name in wanted:
        if f"{name}.npy" not in names:
            continue
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            header = read_header(io.BytesIO(member.read(LONGEST_HEADER)))
        left -= header.size
        if left < 0:
            raise TooLarge(
                f"{path} claims an array {name} of shape {list(header.shape)}, {in_units(header.size)}, where {in_units(most)} are allowed "
                "for all arrays; take another copy"
            )
        if header.start + header.size != info.file_size:
            raise ValueError(f"array {name} claims shape {list(header.shape)}, {in_units(header.size)}, which are not there")
        with archive.open(info) as member:
            found[name] = np.asarray(np.lib.format.read_array(member, allow_pickle=False))
    return found
