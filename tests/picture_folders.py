"""Folders of small pictures, and what is found in them."""

import io

import numpy as np
import pytest
from PIL import Image

from fewstep.data.audit import audit
from fewstep.data.errors import DataError
from fewstep.data.image_sets import image_folder


def encoded(kind="PNG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return saved(pixels, kind)


def plain(value):
    """An image all of whose bytes are `value`."""
    return saved(np.full((8, 8, 3), value, np.uint8))


def saved(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def put(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def two_classes(root, num=12, name="{}.png"):
    for number, label in enumerate(("cat", "dog")):
        for k in range(num):
            put(root / label / name.format(k), encoded(seed=num * number + k))


def numbered(root, labels, num=6):
    """`num` images of each class, whose name is one of the numbers `labels`: that of number k is plain `num` * label + k."""
    for label in labels:
        for k in range(num):
            put(root / str(label) / f"{k}.png", plain(num * int(label) + k))


def opened(root, **options):
    return image_folder(str(root), 8, **{"holdout": 0.25, **options})


def lines(data):
    """What the audit says, whose numbers add up."""
    found = audit(data)
    assert found.origin.found == found.used + sum(entry.count for entry in found.origin.left_out)
    for entry in found.origin.left_out:
        assert len(entry.names) in (0, min(3, entry.count))
    if found.classes and found.classes[0].train is not None:
        assert [sum(getattr(one, part) for one in found.classes) for part in ("train", "heldout")] == [part.count for part in found.parts]
    return "\n".join(found.lines())


def refusal(root, **options):
    with pytest.raises(DataError) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
