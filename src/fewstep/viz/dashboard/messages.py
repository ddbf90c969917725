"""The messages that the training process writes to the drawing process's standard input: a scene, then frames and readings."""

import io
import struct
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, BinaryIO

import numpy as np

from fewstep.viz.dashboard.scene import Frame, Reading, Scene


def pack(item: Scene | Frame | Reading | None) -> bytes:
    """Return `item` as a message: its length in eight bytes, then an npz archive; the message of None says that the run ended normally."""
    arrays: dict[str, Any] = {"kind": type(item).__name__}
    if item is not None:
        arrays |= {field.name: getattr(item, field.name) for field in fields(item) if getattr(item, field.name) is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return struct.pack("<Q", buffer.tell()) + buffer.getvalue()


def unpack(content: bytes) -> Scene | Frame | Reading | None:
    """Return the item that `pack` packed into the npz archive `content`, which is the message without its length."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        values = {name: array if array.ndim else array.item() for name, array in archive.items()}
    kinds: dict[str, type[Scene] | type[Frame] | type[Reading]] = {"Scene": Scene, "Frame": Frame, "Reading": Reading}
    kind = kinds.get(values.pop("kind"))
    if kind is None:
        return None
    return kind(**{field.name: values.get(field.name) for field in fields(kind)})  # type: ignore[arg-type]


def messages(stream: BinaryIO) -> Iterator[Scene | Frame | Reading | None]:
    """Yield the items of the messages in `stream`, until it is closed or ends inside a message."""

    def read(size: int) -> bytes:
        content = b""
        while len(content) < size and (part := stream.read(size - len(content))):
            content += part
        return content

    while len(head := read(8)) == 8:
        (size,) = struct.unpack("<Q", head)
        if len(content := read(size)) < size:
            return
        yield unpack(content)
