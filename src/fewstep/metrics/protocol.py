"""Measurement protocols: the record that is stored with figures, and whether the figures of two records compare.

A record names what a Frechet distance depends on besides the images: ``n``, the number of samples, ``features`` (name and SHA-256 of the
network), ``reference`` (what it is, how many images, SHA-256 of its pixels or file), ``quantisation`` ("bytes", or "none"), ``labels``
("none", or how `fewstep.metrics.asking` chooses them) and ``floor_n``, the number of real images in the floor where these are not all.
``second`` is the network of the second judge, on which the first judge's distances do not depend. ``preset``, ``seeds`` and ``departures``
say how the measurement was asked for, and may differ between figures that compare.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.metrics.inception import INCEPTION, INCEPTION_SHA256

COMPARED = ("n", "features", "reference", "quantisation", "labels", "floor_n")


@dataclass(frozen=True)
class Preset:
    """A named protocol.

    Attributes:
        num: number of samples in each block.
        seeds: first seed of each block of samples; the least distance over the blocks is reported, and the mean.
        features: name of the feature network.
        features_option: the feature network's name in `fewstep.metrics.features.named_features`.
        sha256: SHA-256 of the feature network's file.
        labels: how classes are chosen, see `fewstep.metrics.asking`.
        reference: the split to which distances are measured, where no statistics are given.

    """

    num: int
    seeds: tuple[int, ...]
    features: str
    features_option: str
    sha256: str
    labels: str
    reference: str


# EDM (arXiv 2206.00364, Sec. 5 and App. F.3): "we generated three times 50,000 images each and report the minimum". There every image
# has a seed of its own, 0 to 149,999, and draws its class with it; here a batch has the seed of its first image: the blocks are
# equally independent, but the images differ from EDM's
PRESETS = {"edm": Preset(50_000, (0, 50_000, 100_000), INCEPTION, "inception", INCEPTION_SHA256, "uniform", "train")}


def departures(preset: Preset, record: Mapping[str, Any]) -> list[str]:
    """Return in what a measurement with `record` departs from `preset`, one phrase for each departure."""
    found = []
    if record["n"] != preset.num:
        found.append(f"{record['n']:,} samples a block, not {preset.num:,}")
    if record["features"]["sha256"] != preset.sha256:
        found.append(f"features {record['features']['name']}, not {preset.features}")
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the differences of two records for which their figures do not compare, one phrase for each difference."""
    return [f"{key} {_short(a.get(key))} and {_short(b.get(key))}" for key in COMPARED if a.get(key) != b.get(key)]


def _short(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return " ".join(str(part)[:12] if key == "sha256" else str(part) for key, part in value.items() if part is not None)
