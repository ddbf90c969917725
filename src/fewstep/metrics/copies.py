"""Whether samples are training images again: exactly, byte for byte, or nearly."""

from torch import Tensor

from fewstep.data.images import digests
from fewstep.metrics.manifold import nearest_distances

HALF = 127.5  # the byte that means 0, of images that come as floats
# A sample is a near copy where its nearest training image is at most a third as far as the second nearest: a third is the ratio of Yoon et
# al. 2023 ("Diffusion probabilistic models generalize when they fail to memorize") and of Gu et al. 2023 (arXiv 2310.02664). It needs no
# unit, and of real images that are held out hardly one passes: in many dimensions the two distances of an image that is new are alike
RATIO = 1 / 3


def as_bytes(images: Tensor, half: float) -> Tensor:
    """Images in [-1, 1] as bytes of which `half` means 0, each rounded to the nearest."""
    return ((images + 1) * half).round().clamp(0, 2 * half).byte()


class Known:
    """The training images `train` [N, ...], bytes of which `half` means 0 or floats in [-1, 1], as they are looked for in samples."""

    def __init__(self, train: Tensor, half: float | None) -> None:
        self.half = HALF if half is None else half
        self.digests = set(digests(as_bytes(train, HALF) if half is None else train))

    def count(self, images: Tensor) -> int:
        """How many of `images` [n, ...] in [-1, 1] are one of them in every byte."""
        return sum(digest in self.digests for digest in digests(as_bytes(images.cpu(), self.half)))


def nearest_two(rows: Tensor, train: Tensor) -> Tensor:
    """Distances from each row [n, D] to the two nearest of `train` [N, D], which needs two: float64 [n, 2]."""
    return nearest_distances(rows, train, min(2, len(train)))


def near_copies(nearest: Tensor) -> float:
    """The share of samples that are near copies, by their distances `nearest` [n, 2] to the two nearest training images."""
    return (nearest[:, 0] <= RATIO * nearest[:, -1]).double().mean().item() if nearest.shape[1] > 1 else 0.0
