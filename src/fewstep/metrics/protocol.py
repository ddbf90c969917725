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

from fewstep.errors import UserError
from fewstep.metrics.inception import INCEPTION, INCEPTION_SHA256

POINTS = "points"  # what the reference of points is called
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


def check_same_protocol(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str] = ("one", "the other")) -> None:
    """Raise UserError unless the contents `a` and `b` of two results.json, called `names` in the message, were measured in the same way.

    The number of samples, features, reference, quantisation and choice of labels must be the same; seeds may differ. The record has the
    checksum of images that are the reference; points must be measured against those of the same data and power (``data``, ``reference``).
    """
    for results, name in zip((a, b), names, strict=True):
        if not isinstance(results.get("protocol"), Mapping):
            raise UserError(f"{name} does not say by which protocol it was measured; run `fewstep evaluate` on it again")
    wrong = differences(a["protocol"], b["protocol"])
    if not wrong and a["protocol"]["reference"]["what"] == POINTS:
        wrong = [f"{key} {a.get(key)} and {b.get(key)}" for key in ("data", "reference") if _plain(a.get(key)) != _plain(b.get(key))]
    if wrong:
        raise UserError(
            f"{names[0]} and {names[1]} were measured by different protocols and do not compare: {'; '.join(wrong)}. "
            "Evaluate both with the same options"
        )


def _plain(told: Any) -> str:
    """Return a text without the separators of thousands, which older versions did not write."""
    return str(told).replace(",", "")


def _short(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return " ".join(str(part)[:12] if key == "sha256" else str(part) for key, part in value.items() if part is not None)
