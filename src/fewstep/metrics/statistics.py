"""What is kept of a set of features: the Gaussian fitted to all of them, and so many rows; and the files that hold it.

A file of statistics is a ``.npz`` with arrays ``mu`` [D] and ``sigma`` [D, D], as EDM's and other published ones are; ours hold besides
``rows`` [K, D] (float32), ``num``, and ``key``, the JSON of what was measured, in which features.
"""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.arrays import load_npz
from fewstep.files import sha256_of, whole_file
from fewstep.limits import TooLarge
from fewstep.metrics.features import FeatureNetwork
from fewstep.metrics.frechet import Gaussian, Moments, add_up
from fewstep.metrics.inception import FeatureError
from fewstep.text import parse_json

KEPT = 10_000  # rows, for the measures that compare pairs
BATCH = 500  # images at a time
ROUNDING = 1e-5  # of a published covariance, over its largest entry
ADVICE = "give the covariance of the features, as numpy.cov makes it"
VERSION = 1  # of the files; a higher one is another way to make them

Track = Callable[[Iterable[Tensor], int, str], Iterable[Tensor]]


def untracked(batches: Iterable[Tensor], total: int, title: str) -> Iterable[Tensor]:
    """`batches` as they are; a `Track` shows how many of `total` have come, under `title`."""
    return batches


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of images.

    Attributes:
        gaussian: fitted to all of them.
        num: how many; None where a file does not say.
        rows: float32 [K, D], the first or a random `KEPT` of them; None where a file has none.
        halves: Gaussians of either half, where they were asked for.
        sha256: of the pixels or the file that they are from, where one is known.

    """

    gaussian: Gaussian
    num: int | None
    rows: Tensor | None
    halves: tuple[Gaussian, Gaussian] | None = None
    sha256: str | None = None


class Gathering:
    """A set of features while it comes, a batch at a time.

    The rows kept are the first. The halves are the first and the second half of each batch, which hold equal shares of every class
    where the labels run in turn.

    Args:
        name: what the features are called where they are not finite.

    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.halves: tuple[list[Moments], list[Moments]] = ([], [])
        self.rows: list[Tensor] = []
        self.kept = 0

    def add(self, features: Tensor) -> None:
        """Take in a batch of features [n, D]. Raises FeatureError where one is not finite."""
        features = features.cpu()
        bad = int((~features.isfinite().flatten(1).all(1)).sum())
        if bad:
            raise FeatureError(
                f"the features {self.name} of {bad} of {len(features)} images are not finite; take other features, or look at the "
                "images: a generator whose training ran away makes such"
            )
        if self.kept < KEPT:
            self.rows.append(features[: KEPT - self.kept].float())
            self.kept += len(self.rows[-1])
        for half, part in zip(self.halves, features.chunk(2), strict=False):
            half[:] = [add_up([*half, Moments.of(part)])]

    def whole(self) -> FeatureSet:
        """All that was added. Raises ValueError for fewer than 2 images."""
        parts = [half[0] for half in self.halves if half]
        num = sum(part.num for part in parts)
        if num < 2:
            raise ValueError(f"there are {num} images; give at least 2")
        halves = (parts[0].gaussian(), parts[1].gaussian()) if len(parts) == 2 and min(part.num for part in parts) > 1 else None
        return FeatureSet(add_up(parts).gaussian(), num, torch.cat(self.rows), halves)


def describe(network: FeatureNetwork, batches: Iterable[Tensor], look: Callable[[Tensor, Tensor], None] | None = None) -> FeatureSet:
    """The features of the images [n, C, H, W] in [-1, 1] in `batches`, a batch at a time; `look` sees each batch and its features.

    Raises FeatureError where a feature is not finite, and ValueError for fewer than 2 images.
    """
    gathering = Gathering(network.name)
    with torch.no_grad():
        for images in batches:
            features = network(images)
            if look is not None:
                look(images, features)
            gathering.add(features)
    return gathering.whole()


def in_random_order(num: int, limit: int = KEPT) -> Tensor:
    """Indices of `num` items: all in their own order up to `limit`, else in one random order, always the same.

    Data sets are often sorted by class, and their first rows are then no sample of them.
    """
    return torch.arange(num) if num <= limit else torch.randperm(num, generator=torch.Generator().manual_seed(0))


def scaled(pixels: Tensor, half: float | None) -> Tensor:
    """Images in [-1, 1]: `pixels` themselves, or bytes of which `half` means 0."""
    return pixels if half is None else pixels.float() / half - 1


def pixel_sha256(pixels: Tensor, half: float | None) -> str:
    """What tells one set of images from another: SHA-256 of their shape, their scale and their values."""
    digest = hashlib.sha256(json.dumps([list(pixels.shape), str(pixels.dtype), half]).encode())
    for part in pixels.split(BATCH):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def real_features(
    network: FeatureNetwork,
    pixels: Tensor,
    half: float | None,
    cache: Path | None = None,
    track: Track = untracked,
    title: str = "features of real images",
) -> FeatureSet:
    """The features of a data set's `pixels` [N, C, H, W] (see `scaled`); with `cache`, from the file there if this was done before.

    A file is taken only if the key inside it names the same pixels, size and network; any other, and a damaged one, is made again.
    """
    sha256 = pixel_sha256(pixels, half)
    order = in_random_order(len(pixels))
    batches = (scaled(pixels[index], half) for index in order.split(BATCH))
    if cache is None:
        found = describe(network, track(batches, -(-len(order) // BATCH), title))
        return FeatureSet(found.gaussian, found.num, found.rows, found.halves, sha256)
    key = {"version": VERSION, "pixels": sha256, "shape": list(pixels.shape), "features": network_id(network)}
    path = cache / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:40]}.npz"
    try:
        kept, found_key = load_statistics(path)
        if found_key == key and kept.rows is not None:
            return FeatureSet(kept.gaussian, kept.num, kept.rows, None, sha256)
    except FeatureError:
        pass  # not there, or damaged
    found = describe(network, track(batches, -(-len(order) // BATCH), title))
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        save_statistics(path, found, key)
    return FeatureSet(found.gaussian, found.num, found.rows, found.halves, sha256)


def kept_array(cache: Path | None, key: Mapping[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """What `make` makes, float64; with `cache`, from the file there if this was done before for the same `key`.

    A damaged file, and one of another key, is made again; a cache that cannot be written is none.
    """
    if cache is None:
        return make()
    told = json.dumps({"version": VERSION, **key}, sort_keys=True)
    path = cache / f"{hashlib.sha256(told.encode()).hexdigest()[:40]}.npz"
    try:
        arrays = load_npz(path, ("values", "key"))
        if str(arrays["key"]) == told and arrays["values"].dtype == np.float64 and np.isfinite(arrays["values"]).all():
            return torch.from_numpy(arrays["values"])
    except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile):
        pass  # not there, or damaged
    made = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(file, values=made.numpy(), key=np.array(told))
    return made


def network_id(network: FeatureNetwork) -> dict[str, str | None]:
    """``name`` and ``sha256`` of a feature network; the latter is None for those that come with the package."""
    return {"name": network.name, "sha256": getattr(network, "sha256", None)}


def save_statistics(path: Path, features: FeatureSet, key: dict[str, Any]) -> None:
    """Write `features` to `path`, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"mu": features.gaussian.mean, "sigma": features.gaussian.covariance, "rows": features.rows, "num": features.num}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in values.items() if value is not None}
    with whole_file(path) as file:
        np.savez(file, key=np.array(json.dumps(key)), **arrays)


def load_statistics(path: Path) -> tuple[FeatureSet, dict[str, Any] | None]:
    """What a file of statistics holds, and its key; of a published one, which has only `mu` and `sigma`, None.

    Nothing in the file is executed. Raises FeatureError for a file that is not there, damaged, or of something else.
    """
    if not path.is_file():
        raise FeatureError(f"there is no file {path}; give a .npz with arrays mu [D] and sigma [D, D]")
    try:
        arrays = load_npz(path, ("mu", "sigma", "rows", "num", "key"))
        key = parse_json(str(arrays["key"])) if "key" in arrays else None
    except TooLarge as error:
        raise FeatureError(str(error)) from None
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise FeatureError(f"{path} is not a whole .npz of plain arrays ({str(error)[:100]}); take another copy") from error
    missing = {"mu", "sigma"} - arrays.keys()
    if missing:
        raise FeatureError(f"{path} has no array {' and no '.join(sorted(missing))}; statistics are arrays mu [D] and sigma [D, D]")
    if any(np.iscomplexobj(arrays[name]) for name in ("mu", "sigma")):
        raise FeatureError(f"{path} has complex numbers in mu or sigma; statistics are real: take the real part where the rest is rounding")
    mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not (mean.isfinite().all() and covariance.isfinite().all()):
        raise FeatureError(f"{path} has mu {list(mean.shape)} and sigma {list(covariance.shape)}; give finite arrays [D] and [D, D]")
    _check_covariance(covariance, path)
    rows = torch.from_numpy(arrays["rows"]) if "rows" in arrays else None
    num = int(arrays["num"]) if "num" in arrays else None
    return FeatureSet(Gaussian(mean, covariance), num, rows, None, sha256_of(path)), key


def _check_covariance(covariance: Tensor, path: Path) -> None:
    """Raise FeatureError where `covariance` [D, D] is not symmetric, or has directions of negative variance, beyond float32's rounding."""
    size = covariance.abs().max().clamp_min(1e-300)
    skew = ((covariance - covariance.T).abs().max() / size).item()
    if skew > ROUNDING:
        raise FeatureError(f"sigma of {path} is not symmetric (two of its halves differ by {skew:.1e} of its largest entry); {ADVICE}")
    least = (torch.linalg.eigvalsh(covariance)[0] / size).item() if len(covariance) else 0.0
    if least < -ROUNDING * len(covariance):
        raise FeatureError(
            f"sigma of {path} is no covariance: in some direction its variance is {least:.1e} of its largest entry; {ADVICE}"
        )
