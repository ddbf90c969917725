"""Statistics of a set of features, which are the Gaussian fitted to all of them and a limited number of rows, and their files.

A file of statistics is a ``.npz`` with arrays ``mu`` [D] and ``sigma`` [D, D], as EDM's and other published ones are. Files of this package
also hold ``rows`` [K, D] (float32), ``num``, and ``key``, the JSON that names the images and the features.
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

KEPT = 10_000  # most rows that are kept, for figures that compare pairs
BATCH = 500  # images at a time
ROUNDING = 1e-5  # rounding error allowed in a published covariance, relative to its largest entry
ADVICE = "give the covariance of the features, as numpy.cov makes it"
VERSION = 1  # of the cached files; a change in how their contents are computed takes a higher number

Track = Callable[[Iterable[Tensor], int, str], Iterable[Tensor]]


def untracked(batches: Iterable[Tensor], total: int, title: str) -> Iterable[Tensor]:
    """Return `batches` as they are. Other functions of the type `Track` show, under `title`, how many of `total` batches are done."""
    return batches


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of images.

    Attributes:
        gaussian: the Gaussian fitted to the features of all images.
        num: number of images; None where a file does not say.
        rows: features of the first `KEPT` images, or of a random `KEPT`, float32 [K, D]; None where a file has none.
        halves: Gaussians of the two halves of the set, or None.
        sha256: SHA-256 of the pixels or the file that the features are from; None where it is not known.

    """

    gaussian: Gaussian
    num: int | None
    rows: Tensor | None
    halves: tuple[Gaussian, Gaussian] | None = None
    sha256: str | None = None


class Gathering:
    """A set of features that is gathered batch by batch.

    The first `KEPT` rows are kept. The two halves are made of the first and the second half of each batch, which hold equal shares of
    every class where the labels run in turn.

    Args:
        name: name of the features in error messages.

    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.halves: tuple[list[Moments], list[Moments]] = ([], [])
        self.rows: list[Tensor] = []
        self.kept = 0

    def add(self, features: Tensor) -> None:
        """Add a batch of features [n, D]. Raises FeatureError where a feature is not finite."""
        features = features.cpu()
        bad = int((~features.isfinite().flatten(1).all(1)).sum())
        if bad:
            raise FeatureError(
                f"the features {self.name} of {bad} of {len(features)} images are not finite; take other features, or look at the "
                "images, which may come from a generator whose training diverged"
            )
        if self.kept < KEPT:
            self.rows.append(features[: KEPT - self.kept].float())
            self.kept += len(self.rows[-1])
        for half, part in zip(self.halves, features.chunk(2), strict=False):
            half[:] = [add_up([*half, Moments.of(part)])]

    def whole(self) -> FeatureSet:
        """Return the feature set of all batches that were added. Raises ValueError for fewer than 2 images."""
        parts = [half[0] for half in self.halves if half]
        num = sum(part.num for part in parts)
        if num < 2:
            raise ValueError(f"there are {num} images; give at least 2")
        halves = (parts[0].gaussian(), parts[1].gaussian()) if len(parts) == 2 and min(part.num for part in parts) > 1 else None
        return FeatureSet(add_up(parts).gaussian(), num, torch.cat(self.rows), halves)


def describe(network: FeatureNetwork, batches: Iterable[Tensor], look: Callable[[Tensor, Tensor], None] | None = None) -> FeatureSet:
    """Return the features of images [n, C, H, W] in [-1, 1], given in `batches`; `look` is called with each batch and its features.

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
    """Return the indices of `num` items: in their own order up to `limit` items, else in a random order that is always the same.

    Data sets are often sorted by class, and their first rows are then not representative.
    """
    return torch.arange(num) if num <= limit else torch.randperm(num, generator=torch.Generator().manual_seed(0))


def scaled(pixels: Tensor, half: float | None) -> Tensor:
    """Return images in [-1, 1]: `pixels` themselves where `half` is None, else bytes in which `half` stands for 0, converted."""
    return pixels if half is None else pixels.float() / half - 1


def pixel_sha256(pixels: Tensor, half: float | None) -> str:
    """Return a checksum of a set of images: SHA-256 of their shape, their type and scale, and their values."""
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
    """Return the features of a data set's `pixels` [N, C, H, W] (see `scaled`), from a file in the folder `cache` if there is one.

    A file is used only if the key inside it names the same pixels, shape and network; otherwise, or if the file is damaged, the features
    are computed and the file is written again.
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
    with contextlib.suppress(OSError):  # a cache that cannot be written is not used
        save_statistics(path, found, key)
    return FeatureSet(found.gaussian, found.num, found.rows, found.halves, sha256)


def kept_array(cache: Path | None, key: Mapping[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """Return the float64 tensor that `make` computes, from a file in the folder `cache` if there is one for the same `key`.

    A file that is damaged or of another key is written again; a cache that cannot be written is not used.
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
    """Return ``name`` and ``sha256`` of a feature network; ``sha256`` is None for a network without this attribute."""
    return {"name": network.name, "sha256": getattr(network, "sha256", None)}


def save_statistics(path: Path, features: FeatureSet, key: dict[str, Any]) -> None:
    """Write `features` and their `key` to `path`, atomically. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"mu": features.gaussian.mean, "sigma": features.gaussian.covariance, "rows": features.rows, "num": features.num}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in values.items() if value is not None}
    with whole_file(path) as file:
        np.savez(file, key=np.array(json.dumps(key)), **arrays)


def load_statistics(path: Path) -> tuple[FeatureSet, dict[str, Any] | None]:
    """Return the feature set in a file of statistics, and its key; the key is None for a published file of `mu` and `sigma` alone.

    Nothing in the file is executed. Raises FeatureError for a file that is missing, damaged, or holds something else.
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


def statistics_for(network: FeatureNetwork, path: Path) -> FeatureSet:
    """Return the feature set in a file of statistics, for distances in the features of `network`.

    Raises FeatureError as `load_statistics` does, and where the file says that other features were measured: those of two networks may
    have equally many dimensions.
    """
    found, key = load_statistics(path)
    theirs, ours = key.get("features") if isinstance(key, Mapping) else None, network_id(network)
    by = "name" if ours["sha256"] is None else "sha256"  # a file of features may be renamed
    if isinstance(theirs, Mapping) and theirs.get(by) != ours[by]:
        raise FeatureError(
            f"{path} holds statistics in the features {theirs.get('name')}, whose {by} is {str(theirs.get(by))[:12]}, and samples are "
            f"measured in {network.name}, whose {by} is {str(ours[by])[:12]}; give --features and --reference of one network"
        )
    return found


def _check_covariance(covariance: Tensor, path: Path) -> None:
    """Raise FeatureError where `covariance` [D, D] is not symmetric, or has negative eigenvalues, beyond the rounding of float32."""
    size = covariance.abs().max().clamp_min(1e-300)
    skew = ((covariance - covariance.T).abs().max() / size).item()
    if skew > ROUNDING:
        raise FeatureError(f"sigma of {path} is not symmetric (it differs from its transpose by {skew:.1e} of its largest entry); {ADVICE}")
    least = (torch.linalg.eigvalsh(covariance)[0] / size).item() if len(covariance) else 0.0
    if least < -ROUNDING * len(covariance):
        raise FeatureError(f"sigma of {path} is not a covariance: an eigenvalue is negative, {least:.1e} of its largest entry; {ADVICE}")
