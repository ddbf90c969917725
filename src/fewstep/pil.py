"""Samples as Pillow's images, one each, and a row of them as a PNG."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from torch import Tensor

from fewstep.errors import UserError


def to_pil(samples: Tensor) -> list[Any]:
    """One `PIL.Image.Image` for each of `samples` [N, C, H, W] in [-1, 1], of one channel or three. Raises UserError for points."""
    from PIL import Image

    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise UserError(f"samples have shape {list(samples.shape)}; pictures are [N, C, H, W] of 1 or 3 channels")
    pixels = ((samples.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def row_png(images: Sequence[Any]) -> bytes:
    """A PNG of `images` of one size side by side, enlarged without smoothing to about 64 pixels."""
    from PIL import Image

    scale = max(1, 64 // max(images[0].size))
    width, height = (side * scale for side in images[0].size)
    row = Image.new(images[0].mode, (width * len(images), height))
    for place, image in enumerate(images):
        row.paste(image.resize((width, height), Image.Resampling.NEAREST), (place * width, 0))
    buffer = BytesIO()
    row.save(buffer, format="png")
    return buffer.getvalue()
