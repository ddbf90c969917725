"""A scan of a folder: which of its files are images, by name or else by content, and why each other file is not one.

Call ``scan(root, source)``. Of a file without one of the usual endings, only the first bytes are read; whether an image is sound is found
out when it is decoded. `fewstep.data.folders.is_of_images` decides what tables and archives beside images mean.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.data.checks import Kind
from fewstep.data.errors import DataError

Parts = tuple[str, ...]  # the parts of a file's path below the scanned folder

IMAGE_FILES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pnm",
    ".avif",
    ".jp2",
    ".tga",
)
TABLES = (".parquet", ".arrow")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # files that `datasets` reads for the labels of the images beside them
# files that begin like TIFF but are not ordinary pictures: raw data of a camera's sensor, or slides of a microscope
RAW_FILES = (".dng", ".cr2", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".pef", ".srw", ".3fr", ".iiq", ".erf", ".kdc", ".svs")
HEAD = 32  # first bytes of a file, from which its format is recognised

HIDDEN = Kind("hidden file{s} or folder{s}", "")
HEIC = Kind("HEIC image{s}", "save them as JPEG or PNG, as the package pillow-heif can, if they are to be used")
RAW = Kind("raw image{s} of a camera", "develop them into JPEG or PNG, if they are to be used")
EMPTY = Kind("empty file{s}", "fetch them again, if they were images")
LISTS = Kind("list{s} that nothing reads", "if labels are in there, make it metadata.csv with a column file_name")
NO_IMAGE = Kind("file{s} whose content is no image of a known kind", "")
NO_PLAIN_FILE = Kind("pipe{s}, device{s} or link{s} to nothing", "")
UNREADABLE = Kind("file{s} that must not be read", "change the permissions, if they are images")


@dataclass(frozen=True)
class Scan:
    """The files in a folder and its sub-folders, as the parts of their paths below the folder, in alphabetical order.

    Attributes:
        images: files with one of the endings `IMAGE_FILES`, and other files whose first bytes are those of an image.
        by_content: the images that were recognised by their first bytes.
        tables: parquet and Arrow files.
        archives: zip, tar and similar files.
        metadata: files with the names `METADATA`, which are in none of the other lists.
        left_out: paths of all other files, such as "cat/notes.txt", by the reason; of hidden folders, only the outermost.

    """

    images: list[Parts] = field(default_factory=list)
    by_content: list[Parts] = field(default_factory=list)
    tables: list[Parts] = field(default_factory=list)
    archives: list[Parts] = field(default_factory=list)
    metadata: list[Parts] = field(default_factory=list)
    left_out: dict[Kind, list[str]] = field(default_factory=dict)

    @property
    def found(self) -> int:
        """Number of all files; a hidden folder counts as one."""
        seen = len(self.images) + len(self.tables) + len(self.archives) + len(self.metadata)
        return seen + sum(map(len, self.left_out.values()))


def scan(root: Path, source: str | None = None) -> Scan:
    """Return the files in the folder `root`; messages call the data set `source`, or ``data.path is 'ROOT'`` for None.

    Links to folders are followed. Raises DataError for a folder that is reached twice, for a name that is not UTF-8, and for a folder that
    cannot be read.
    """
    found, source = Scan(), f"data.path is {str(root)!r}" if source is None else source
    for parts in _files(root, source, found):
        name = parts[-1].lower()
        if parts[-1] in METADATA:
            found.metadata.append(parts)
        elif name.endswith(TABLES):
            found.tables.append(parts)
        elif name.endswith(ARCHIVES):
            found.archives.append(parts)
        elif name.endswith(IMAGE_FILES):
            found.images.append(parts)
        elif (reason := _reason(os.path.join(root, *parts), name)) is None:
            found.images.append(parts)
            found.by_content.append(parts)
        else:
            found.left_out.setdefault(reason, []).append("/".join(parts))
    for files in (found.images, found.by_content, found.tables, found.archives, found.metadata):
        files.sort()
    for places in found.left_out.values():
        places.sort()
    return found


def _files(root: Path, source: str, found: Scan) -> Iterator[Parts]:
    """Yield all files below `root` that are not hidden; hidden ones are recorded in `found`. Raises DataError as `scan` does."""

    def closed(error: OSError) -> None:
        raise DataError(
            f"{source}, whose folder {error.filename} cannot be read ({error.strerror}); change its permissions, or move it away"
        )

    known: dict[str, str] = {}
    for folder, inner, names in os.walk(root, onerror=closed, followlinks=True):
        parts = Path(folder).relative_to(root).parts
        here, there = "/".join(parts) or ".", os.path.realpath(folder)
        if there in known:
            raise DataError(
                f"{source}, where {shown(here)} is a link to {shown(known[there])}, whose images are there already; take the link away, "
                "or the same pictures would be on both sides of the split"
            )
        known[there] = here
        hidden = [name + "/" * (name in inner) for name in (*inner, *names) if is_hidden(name)]
        if hidden:
            found.left_out.setdefault(HIDDEN, []).extend("/".join((*parts, shown(name))) for name in hidden)
        inner[:] = [name for name in inner if not is_hidden(name)]
        for name in (*inner, *names):
            if shown(name) != name and not is_hidden(name):
                raise DataError(f"{source}, where the name {shown(name)} in {shown(here)} is not UTF-8; rename it")
        yield from ((*parts, name) for name in names if not is_hidden(name))


def shown(name: str) -> str:
    """Return `name` in printable form: bytes that are not UTF-8 are written as Python escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder called `name` was made by the system or a program: its name begins with "." or "__"."""
    return name.startswith((".", "__"))


def _reason(file: str, name: str) -> Kind | None:
    """Return why `file`, whose name in lower case is `name`, is not an image; None if it is one."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            return NO_PLAIN_FILE
        with open(file, "rb") as content:
            head = content.read(HEAD)
    except PermissionError:
        return UNREADABLE
    except OSError:  # a link to nothing, or to itself
        return NO_PLAIN_FILE
    if not head:
        return EMPTY
    if name.endswith((".heic", ".heif")) or _is_heic(head):
        return HEIC
    if name.endswith(RAW_FILES):
        return RAW
    if image_kind(head) is not None:
        return None
    return LISTS if name.endswith((".csv", ".tsv", ".jsonl")) else NO_IMAGE


def image_kind(head: bytes) -> str | None:
    """Return Pillow's name for the format of an image that begins with the bytes `head`; None for an unknown format.

    Known are the formats of `fewstep.pil.FORMATS` that the first bytes of a file identify.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG2000"
    if head[4:8] == b"ftyp" and (head[8:12] in (b"avif", b"avis") or b"avif" in head[16:HEAD]):
        return "AVIF"
    # any text may begin with these two letters, so the length of BMP's header and a number in PPM's are checked as well
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() and (head[3:4].isdigit() or head[3:4] == b"#"):
        return "PPM"
    return None


def _is_heic(head: bytes) -> bool:
    brands = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
    return head[4:8] == b"ftyp" and head[8:12] in brands and image_kind(head) is None
