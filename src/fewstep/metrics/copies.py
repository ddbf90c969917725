"""Find samples that are copies of training images: exact copies, byte for byte, and near copies."""

from collections import Counter

from torch import Tensor

from fewstep.data.images import digests
from fewstep.metrics.manifold import nearest_distances

HALF = 127.5  # the byte value that stands for 0 where images are given as floats
# A sample is a near copy where its nearest training image is at most a third as far as the second nearest: a third is the ratio of Yoon et
# al. 2023 ("Diffusion probabilistic models generalize when they fail to memorize") and of Gu et al. 2023 (arXiv 2310.02664). The criterion
# has no unit, and hardly any held-out real image meets it: in many dimensions the two distances of a new image are nearly equal
RATIO = 1 / 3


def as_bytes(images: Tensor, half: float) -> Tensor:
    """Return images in [-1, 1] as bytes, rounded to the nearest, in which `half` stands for 0."""
    return ((images + 1) * half).round().clamp(0, 2 * half).byte()


class Known:
    """Checksums of the training images `train` [N, ...], bytes in which `half` stands for 0, or floats in [-1, 1], to find exact copies."""

    def __init__(self, train: Tensor, half: float | None) -> None:
        self.half = HALF if half is None else half
        self.digests = set(digests(as_bytes(train, HALF) if half is None else train))

    def count(self, images: Tensor) -> int:
        """Return how many of `images` [n, ...] in [-1, 1] equal a training image in every byte."""
        return sum(digest in self.digests for digest in digests(as_bytes(images.cpu(), self.half)))


def are_repeated(images: Tensor) -> bool:
    """Return whether each of `images` [n, ...] is there at least twice, byte for byte."""
    return all(count > 1 for count in Counter(digests(images)).values())


def nearest_two(rows: Tensor, train: Tensor) -> Tensor:
    """Return the distances from each row [n, D] to the two nearest rows of `train` [N, D]: float64 [n, 2], or [n, 1] where N is 1."""
    return nearest_distances(rows, train, min(2, len(train)))


def near_copies(nearest: Tensor) -> float:
    """Return the share of samples that are near copies, by their distances `nearest` [n, 2] to the two nearest training images."""
    return (nearest[:, 0] <= RATIO * nearest[:, -1]).double().mean().item() if nearest.shape[1] > 1 else 0.0
