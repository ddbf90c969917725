"""Read .npy and .npz files that the user names, and check from their headers how much memory an array takes before it is read.

Nothing in such a file is executed: arrays of Python objects, which are stored as pickles, are refused.
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

LONGEST_HEADER = 2**16  # bytes that are read as the header; numpy's own limit is 10,000


@dataclass(frozen=True)
class Header:
    """The header of a .npy file: the `shape` and `dtype` of its array, and `start`, the offset in bytes at which the numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def size(self) -> int:
        """Bytes that the array's numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: BinaryIO) -> Header:
    """Read the header of a .npy `file`, and leave its position at the first number.

    Raises ValueError where `file` has no such header, and for arrays of Python objects.
    """
    version = np.lib.format.read_magic(file)
    # version 3 of the format differs from version 2 only in the names of fields
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, and to read them is to run code; save plain numbers")
    if any(side < 0 for side in shape):
        raise ValueError(f"its header says shape {list(shape)}")
    return Header(shape, dtype, file.tell())


def load_npy(path: str | Path) -> NDArray[Any]:
    """Return the array in a .npy file.

    Raises OSError where the file cannot be read, ValueError where it is not a complete .npy file of numbers, and TooLarge where this
    machine has too little memory for its array.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError("it is no plain file")
    with path.open("rb") as file:
        header = read_header(io.BytesIO(file.read(LONGEST_HEADER)))
        there = path.stat().st_size - header.start
        if header.size > there:
            raise ValueError(
                f"its header claims {in_units(header.size)} of numbers, of shape {list(header.shape)}, and the file holds {in_units(there)}"
            )
        needed = math.prod(header.shape) * max(POINT_BYTES, header.dtype.itemsize)
        if needed > memory():
            raise TooLarge(
                f"{path} holds an array of shape {list(header.shape)}, which needs {in_units(needed)} of memory, and "
                f"{in_units(memory())} are available; save fewer rows of it"
            )
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def load_npz(path: Path, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    """Return those arrays of a .npz file whose names are in `wanted`, by name; no other array is read.

    Raises OSError, ValueError, zipfile.BadZipFile, and TooLarge where these arrays together take more than `ARRAY_BYTES` or more than a
    quarter of the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _members(archive, path, wanted)
    except MemoryError:
        raise TooLarge(f"{path} holds more than there is memory for; take another copy, or run on another machine") from None
    except (NotImplementedError, RuntimeError, KeyError, zlib.error) as error:  # encrypted, or compressed by another method
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
            raise ValueError(f"array {name} claims shape {list(header.shape)}, {in_units(header.size)}, more than the file holds")
        with archive.open(info) as member:
            found[name] = np.asarray(np.lib.format.read_array(member, allow_pickle=False))
    return found
