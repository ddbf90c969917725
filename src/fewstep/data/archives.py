"""Checks of the archives and compressed files among a user's data, made before `datasets` unpacks them to a disk.

Zip and tar files state in their headers how large their contents are. Gzip, bzip2 and xz streams do not: they are decompressed here, up to
the limit, and the result is thrown away.
"""

import bz2
import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fewstep.data.errors import DataError
from fewstep.limits import ARCHIVE_BYTES, EXPANSION, TooLarge, check_expansion

STREAMS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
ZIP = b"PK\x03\x04"
UNKNOWN = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar"}
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
REMEDY = "take another copy, or unpack it yourself"
AT_ONCE = 2**20  # bytes decompressed per read
SHARD = 2**26  # bytes of a tar file, above which its headers are not read
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")


def check_archives(files: Iterable[Path], source: str) -> None:
    """Raise DataError if one of `files` would unpack to far more than its own size, or to more than fits on its disk.

    The first bytes of a file tell its format, as they do for `datasets`. Also refused are zstd, lz4, 7z and RAR files, whose unpacked size
    is not known. A damaged archive is passed over: `datasets` reports it. `source` names the data set in the message.
    """
    for file in files:
        try:
            with file.open("rb") as content:
                head = content.read(512)
        except OSError:
            continue
        kind = next((kind for magic, kind in UNKNOWN.items() if head.startswith(magic)), None)
        if kind is not None:
            raise DataError(f"{source}, where {file.name} is packed by {kind}, which does not say how much it becomes; unpack it yourself")
        try:
            size = file.stat().st_size
            check_expansion(file.name, size, expanded(file, head), REMEDY, shutil.disk_usage(file.parent).free)
        except TooLarge as error:
            raise DataError(f"{source}, where {error}") from None
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError):
            continue


def check_shards(files: Iterable[Path], source: str) -> None:
    """Raise DataError as `check_archives` does, and for a tar file with compressed members, which `datasets` would unpack as it reads them.

    Tar files of more than `SHARD` bytes are not checked, because reading the headers of all their members would take long.
    """
    small = []
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as content:
            is_tar = content.read(512)[TAR_MAGIC_AT:].startswith(TAR_MAGIC)
        if is_tar and size > SHARD:
            continue
        small.append(file)
        if not is_tar:
            continue
        try:
            with tarfile.open(file, "r:") as members:
                packed = next((member.name for member in members if member.name.lower().endswith(PACKED)), None)
        except (OSError, EOFError, ValueError, tarfile.TarError):
            continue
        if packed is not None:
            raise DataError(f"{source}, where {file.name} holds {packed}, which does not say how much it becomes; unpack it before")
    check_archives(small, source)


def expanded(file: Path, head: bytes) -> int:
    """Return the number of bytes that `file`, which begins with `head`, unpacks to; 0 if it is not a zip, tar, gzip, bzip2 or xz file.

    A compressed stream is decompressed only until its output exceeds the limit of `fewstep.limits.check_expansion`.
    """
    if head.startswith(ZIP):
        with zipfile.ZipFile(file) as archive:
            return sum(member.file_size for member in archive.infolist())
    opened = next((opened for magic, opened in STREAMS.items() if head.startswith(magic)), None)
    if opened is not None:
        most, found = max(ARCHIVE_BYTES, EXPANSION * file.stat().st_size), 0
        with opened(file, "rb") as content:
            while found <= most and (part := content.read(AT_ONCE)):
                found += len(part)
        return found
    if head[TAR_MAGIC_AT:].startswith(TAR_MAGIC):
        with tarfile.open(file, "r:") as members:
            return sum(member.size for member in members)
    return 0
