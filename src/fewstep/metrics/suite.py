"""Evaluate images, alike for every method: quality beside the floor, diversity, and signs of memorisation.

The **floor** is the Frechet distance of the real train split to the real held-out split in the same features, of as many random train
images as samples are measured, so that both have the same bias. A generated set below the floor whose distance to the train split falls
too has memorised the train split.

Images are processed a batch at a time, and real ones stay bytes: whatever the size of a set, a batch, the moments of its features,
`KEPT` rows of features, and `PIXELS` images for the figures of pixels are in memory.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.metrics.asking import rarest_share
from fewstep.metrics.classes import class_variances, of_both, root_of_mean, shares, within_class_std
from fewstep.metrics.copies import Known, are_repeated, near_copies, nearest_two
from fewstep.metrics.features import FeatureNetwork
from fewstep.metrics.figures import BY_KEY
from fewstep.metrics.frechet import Moments, expected_bias, gaussian_distance
from fewstep.metrics.judging import BOTH
from fewstep.metrics.kernel_mmd import kernel_distance, kernel_distance_subsets
from fewstep.metrics.least import LEAST, WORDS, Lack, lack
from fewstep.metrics.manifold import nearest_distance, precision_recall
from fewstep.metrics.ratios import defined, over_floor, ratio
from fewstep.metrics.statistics import (
    BATCH,
    FeatureSet,
    Gathering,
    Track,
    describe,
    in_random_order,
    kept_array,
    network_id,
    real_features,
    scaled,
    untracked,
)

PIXELS = 2_000  # images whose pixels are compared
SUBSET = 1_000  # rows in each of the many subsets of KID
TRAIN, HELDOUT = WORDS["train split"], WORDS["held-out split"]
FEWEST = 10_000  # samples below which the bias of a Frechet distance is not small beside the differences that people report
IN_CLASS = "of each class"
LONG = 5.0  # seconds, beside which the warm-up of memory and kernels is short
BY_DEFINITION = {"within_class_std": 1.0, "least_class_std": 1.0, "spacing": 1.0, "frechet_train": 0.0, "train_distance": 1.0}

Row = dict[str, Any]
__all__ = ["FEWEST", "Suite", "images_per_second", "within_class_std"]


class Judge(NamedTuple):
    """A feature network with the features of the reference and of the floor's images; `floor` is the distance between the two."""

    network: FeatureNetwork
    reference: FeatureSet
    floor_set: FeatureSet
    floor: float


class Suite:
    """Measures sets of images against one data set.

    Args:
        train, heldout: real images [N, C, H, W] and [M, C, H, W]: float in [-1, 1], or bytes in which `half` stands for 0.
        train_label, heldout_label: int64 [N] and [M], or None.
        network: the feature network; one with a method ``classify`` also gives the class accuracy.
        half: the byte value that stands for 0; None for float images.
        reference: what distances are measured to: the split "heldout" or "train", or statistics from elsewhere.
        cache: folder of cached features of the real splits, beside which the folder ``neighbours`` lies; None for no cache.
        track: shows the progress of a long extraction.
        num: number of samples that are to be measured, and so of real images in the floor; None is all.
        class_names: name of each class, by its label.
        second: the second judge's feature network; not used where the reference is from elsewhere.

    Raises ValueError for a reference of other dimensions than the network's.

    """

    def __init__(
        self,
        train: Tensor,
        heldout: Tensor,
        train_label: Tensor | None,
        heldout_label: Tensor | None,
        network: FeatureNetwork,
        half: float | None = None,
        reference: str | FeatureSet = "heldout",
        cache: Path | None = None,
        track: Track = untracked,
        num: int | None = None,
        class_names: Sequence[str] = (),
        second: FeatureNetwork | None = None,
    ) -> None:
        self.train, self.heldout, self.train_label, self.heldout_label = train, heldout, train_label, heldout_label
        self.network, self.half, self.track, self.cache, self.class_names = network, half, track, cache, class_names
        self.num = num
        self.train_set, self.heldout_set = (
            real_features(network, split, half, cache, track, f"features of the {name} split")
            for split, name in ((train, "train"), (heldout, "held-out"))
        )
        self.against = reference if isinstance(reference, str) else "a file"
        sets = {"train": self.train_set, "heldout": self.heldout_set}
        self.reference = sets[reference] if isinstance(reference, str) else reference
        if len(self.reference.gaussian.mean) != len(self.train_set.gaussian.mean):
            raise ValueError(
                f"the reference has {len(self.reference.gaussian.mean)} dimensions, and {network.name} gives "
                f"{len(self.train_set.gaussian.mean)}; take statistics that were made with the same features"
            )
        # real images that are not in the reference, as many as there will be samples
        self.floor_set, self.floor_index = self._floor_set(num)
        self.floor = gaussian_distance(self.floor_set.gaussian, self.reference.gaussian)
        self.second = None if second is None or self.against == "a file" else self._judge(second, num)
        self.train_variances = class_variances(train, train_label)
        self.known = Known(train, half)
        some, neighbours = self._some(heldout), None if cache is None else cache.with_name("neighbours")
        key = {"what": "nearest training images of held-out ones", "of": [self.train_set.sha256, self.heldout_set.sha256, len(some)]}
        self.heldout_nearest = kept_array(neighbours, key, lambda: nearest_two(some, train.flatten(1)))
        self.heldout_distance = self.heldout_nearest[:, 0].mean().item()

    def _floor_split(self, train: Any, heldout: Any) -> Any:
        """Return the argument that belongs to the split from which the floor's images are."""
        return train if self.against == "heldout" else heldout

    def _floor_images(self, num: int | None) -> Tensor | None:
        """Return the indices of the floor's `num` images in its split, always the same random ones; None for all, if it has no more."""
        size = len(self._floor_split(self.train, self.heldout))
        if num is None or num >= size:
            return None
        num, order = max(2, num), in_random_order(size)
        kept = order[: len(self._floor_split(self.train_features, self.heldout_features))]  # images whose features are kept
        some = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:num]
        return kept[some] if num <= len(kept) else order[:num]

    def _floor_set(self, num: int | None) -> tuple[FeatureSet, Tensor]:
        """Return the features of the floor's images, and the index of the image of each row of features."""
        images, whole = self._floor_split((self.train, self.train_set), (self.heldout, self.heldout_set))
        rows, order, some = whole.rows, in_random_order(len(images)), self._floor_images(num)
        if some is None:
            return whole, order[: len(rows)]
        if len(some) <= len(rows):
            place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
            mine = rows[place[some]]
            return FeatureSet(Moments.of(mine).gaussian(), len(some), mine, None, whole.sha256), some
        found = real_features(self.network, images[some], self.half, self.cache, self.track, "features of the floor")
        assert found.rows is not None
        return found, some[in_random_order(len(some))[: len(found.rows)]]

    def _judge(self, network: FeatureNetwork, num: int | None) -> Judge:
        """Return the second judge: `network` with its features of the reference and of the floor's images."""
        images, some = self._floor_split(self.train, self.heldout), self._floor_images(num)
        reference = self.heldout if self.against == "heldout" else self.train
        to, floor = (
            real_features(network, part, self.half, self.cache, self.track, f"second judge: {title}")
            for part, title in ((reference, "reference"), (images if some is None else images[some], "floor"))
        )
        return Judge(network, to, floor, gaussian_distance(floor.gaussian, to.gaussian))

    @property
    def heldout_features(self) -> Tensor:
        """Features of the held-out split: float32 [K, D]."""
        return _rows(self.heldout_set)

    @property
    def train_features(self) -> Tensor:
        """Features of the train split: float32 [K, D]."""
        return _rows(self.train_set)

    @property
    def floor_name(self) -> str:
        """Name of the real images of which the floor is measured."""
        return "real train split" if self.against == "heldout" else "real held-out split"

    def protocol(self) -> dict[str, Any]:
        """Return what the figures of this suite depend on besides the samples; see `fewstep.metrics.protocol`."""
        named = {"heldout": "held-out split", "train": "train split"}.get(self.against, "a file of statistics")
        whole = len(self._floor_split(self.train, self.heldout))
        return {
            "features": network_id(self.network),
            "reference": {"what": named, "num": self.reference.num, "sha256": self.reference.sha256},
            "quantisation": "bytes" if getattr(self.network, "rounds", False) else "none",
            # left out where the floor is of all images, as in records of versions in which it always was
            **({"floor_n": self.floor_set.num} if self.floor_set.num != whole else {}),
            **({"second": network_id(self.second.network), "manifold": BOTH} if self.second is not None else {}),
        }

    @property
    def undefined(self) -> dict[str, str]:
        """Figures that cannot be measured on these images, each with the reason: those of classes, and ratios to a real figure of 0."""
        found = dict.fromkeys(("frechet_over_floor",), "the floor is 0") if math.isnan(self._over_floor(1.0)) else {}
        if are_repeated(self._apart(len(self.train) if self.num is None else self.num)):
            found["spacing"] = "every training image has a copy among the others"
        if not self.heldout_distance > 0:
            found["train_distance"] = "all held-out images are copies of training images"
        if not any(variance > 0 for variance in self.train_variances.values()):
            found |= dict.fromkeys(("within_class_std", "least_class_std"), "no class has two different training images")
        if self.train_label is None:
            found |= dict.fromkeys(("class_accuracy", "least_class_accuracy", "least_class_std"), "the images have no classes")
        elif not hasattr(self.network, "classify"):
            found |= dict.fromkeys(("class_accuracy", "least_class_accuracy"), f"the features {self.network.name} tell no classes")
        return found

    def lacks(self, generated: int) -> dict[str, Lack]:
        """Return by key what each figure lacks that cannot be given for so few `generated` samples, or so few real images."""
        return self._lacks(generated, "samples")

    def floor_lacks(self) -> dict[str, Lack]:
        """Return what `lacks` does, for the floor's row, in which real images take the place of samples."""
        found = self._lacks(self.floor_set.num or 0, self._floor_split(TRAIN, HELDOUT))
        by_definition = self._floor_split({*BY_DEFINITION, "copies", "near_copies"}, set())
        return {key: lack for key, lack in found.items() if key not in by_definition}

    def _lacks(self, generated: int, made: str) -> dict[str, Lack]:
        reference = {WORDS[self.protocol()["reference"]["what"]]: self.reference.num}
        floor = {TRAIN: len(self.train)} if self.against == "heldout" else {HELDOUT: len(self.heldout)}
        real: dict[str, dict[str, int | None]] = {
            "frechet_over_floor": {**reference, **floor},
            "frechet_train": {TRAIN: len(self.train)},
            "class_accuracy": {},
            "least_class_accuracy": {},
            "copies": {},
            "near_copies": {TRAIN: len(self.train)},
            "within_class_std": {TRAIN: len(self.train)},
            "least_class_std": {TRAIN: len(self.train)},
            "spacing": {TRAIN: len(self.train)},
            "train_distance": {TRAIN: len(self.train), HELDOUT: len(self.heldout)},
        }
        in_class = {"least_class_accuracy": generated, "least_class_std": min(generated, PIXELS)}
        found = {}
        for key in (key for key in LEAST if BY_KEY[key].family == "images"):
            each = in_class[key] * rarest_share(self.train_label) if key in in_class and self.train_label is not None else None
            found[key] = lack(key, real.get(key, reference), generated, made, each, IN_CLASS)
        return {key: few for key, few in found.items() if few is not None}

    def floor_row(self) -> Row:
        """Return the figures of the floor's real images, measured as if they were generated: no generated set should beat them."""
        images, label = self._floor_split((self.train, self.train_label), (self.heldout, self.heldout_label))
        row: Row = self._feature_figures(self.floor_set, None if self.second is None else self.second.floor_set)
        if self.against == "heldout":  # the train split's distance to itself says nothing; the held-out split's stands for it
            none = "class_std" if not self.train_variances else "least" if self.train_label is None else "-"
            by_definition = {key: value for key, value in BY_DEFINITION.items() if none not in key}
            row |= {**by_definition, "copies": self.known.count(scaled(self.heldout, self.half)) / len(self.heldout)}
            row["near_copies"] = near_copies(self.heldout_nearest)
        else:
            some = in_random_order(len(images), PIXELS)[:PIXELS]
            row |= self._pixel_figures(scaled(images[some], self.half), None if label is None else label[some])
            row["copies"] = self.known.count(scaled(images, self.half)) / len(images)
            row["frechet_train"] = gaussian_distance(self.floor_set.gaussian, self.train_set.gaussian)
        if (classify := getattr(self.network, "classify", None)) is not None and label is not None:
            hits = classify(_rows(self.floor_set)).argmax(1) == label[self.floor_index]
            row["class_accuracy"] = hits.double().mean().item()
            row |= self._least("least_class_accuracy", shares(hits, label[self.floor_index]))
        return defined(row)

    def measure(self, samples: Tensor, label: Tensor | None, slow: bool = False) -> Row:
        """Return all figures of `samples` [n, C, H, W] in [-1, 1], made for `label` int64 [n] or None; see `measure_batches`."""
        return self.measure_batches(samples.split(BATCH), label, slow)

    def measure_batches(self, batches: Iterable[Tensor], label: Tensor | None, slow: bool = False) -> Row:
        """Return all figures of the samples in `batches`, together [n, C, H, W] in [-1, 1], made for `label` int64 [n] or None.

        Of the features: ``frechet`` to the reference, ``frechet_over_floor``, ``frechet_train`` to the train split and, of the first `KEPT`
        samples where the reference has rows of features, ``kernel`` (KID, all pairs), ``precision`` and ``recall`` (of two judges the
        lesser, for to one network noise may look like real images). ``class_accuracy`` is the share of samples that show the class asked
        for, ``least_class_accuracy`` that of the worst class. Of the pixels: the share of ``copies`` of training images and, of the first
        `PIXELS` samples, the share of ``near_copies`` and, as ratios to real images, ``within_class_std``, ``least_class_std`` of the
        narrowest class, ``spacing`` (mean distance to the nearest other sample, equal numbers) and ``train_distance`` (mean distance to the
        nearest training image, below 1 for memorisation). For a figure that is the least over classes, ``KEY_of`` names the class.

        With `slow`, also figures that take long or matter once: ``kernel_subsets`` and ``kernel_subsets_std``, KID as papers report it,
        from 1,000 samples on, and ``frechet_bias``, see `expected_bias`. A second judge gives ``frechet_second_over_floor``.
        """
        classify, second = getattr(self.network, "classify", None), self.second
        pixels: list[Tensor] = []
        hits: list[Tensor] = []
        others = None if second is None else Gathering(second.network.name)
        seen, copied = 0, 0

        def look(images: Tensor, features: Tensor) -> None:
            nonlocal seen, copied
            if seen < PIXELS:
                pixels.append(images[: PIXELS - seen].cpu())
            if classify is not None and label is not None:
                hits.append(classify(features).argmax(1).cpu() == label[seen : seen + len(images)].cpu())
            if second is not None and others is not None:
                others.add(second.network(images))
            copied += self.known.count(images)
            seen += len(images)

        features = describe(self.network, batches, look)
        row: Row = self._feature_figures(features, None if others is None else others.whole(), slow)
        row |= self._pixel_figures(torch.cat(pixels), None if label is None else label[:PIXELS])
        row["copies"] = copied / seen
        if classify is not None and label is not None:
            hit = torch.cat(hits)
            row["class_accuracy"] = int(hit.sum()) / seen
            row |= self._least("least_class_accuracy", shares(hit, label[:seen].cpu()))
        row["frechet_train"] = gaussian_distance(features.gaussian, self.train_set.gaussian)
        return defined(row)

    def frechet_of(self, batches: Iterable[Tensor]) -> float:
        """Return the Frechet distance of the samples in `batches` to the reference, and no other figure."""
        return gaussian_distance(describe(self.network, batches).gaussian, self.reference.gaussian)

    def _feature_figures(self, features: FeatureSet, others: FeatureSet | None, slow: bool = False) -> dict[str, float]:
        """Return the figures of a set by its `features`, and by `others`, its features in the second judge's network."""
        frechet = gaussian_distance(features.gaussian, self.reference.gaussian)
        row = {"frechet": frechet, "frechet_over_floor": self._over_floor(frechet)}
        ours, real = features.rows, self.reference.rows
        if ours is not None and real is not None:
            row["kernel"] = kernel_distance(ours, real)
            row["precision"], row["recall"] = precision_recall(real, ours)
            if self.second is not None and others is not None:
                apart = precision_recall(_rows(self.second.reference), _rows(others))
                row["precision"], row["recall"] = min(row["precision"], apart[0]), min(row["recall"], apart[1])
            if slow and min(len(ours), len(real)) >= SUBSET:
                row["kernel_subsets"], row["kernel_subsets_std"] = kernel_distance_subsets(ours, real, size=SUBSET)
        if self.second is not None and others is not None:
            to = self.second.reference.gaussian
            row["frechet_second_over_floor"] = over_floor(gaussian_distance(others.gaussian, to), self.second.floor, to)
        if slow and features.halves is not None:
            row["frechet_bias"] = expected_bias(features.halves, features.gaussian, self.reference.gaussian)
        return row

    def _over_floor(self, distance: float) -> float:
        return over_floor(distance, self.floor, self.reference.gaussian)

    def _pixel_figures(self, samples: Tensor, label: Tensor | None) -> Row:
        ours = samples.flatten(1) if self.half is None else (samples.flatten(1) + 1) * self.half  # in the units of the real ones
        nearest, variances = nearest_two(ours, self.train.flatten(1)), class_variances(ours, label)
        ratios = {
            k: (variance / self.train_variances[k]).sqrt().item()
            for k, variance in variances.items()
            if k in self.train_variances and self.train_variances[k] > 0
        }
        mine, real = (variances, self.train_variances) if label is None else of_both(variances, self.train_variances)
        spread = {"within_class_std": ratio(root_of_mean(mine), root_of_mean(real))} if mine and real else {}
        return {
            **spread,  # empty where no class has two items, such as prompts that were drawn once
            **(self._least("least_class_std", ratios) if label is not None else {}),
            "spacing": self._spacing(ours),
            "train_distance": ratio(nearest[:, 0].mean().item(), self.heldout_distance),
            "near_copies": near_copies(nearest),
        }

    def _least(self, key: str, values: dict[int, float]) -> Row:
        """Return the least of the classes' `values` as the figure `key`, and its class as ``KEY_of``; an empty row for no class."""
        if not values:
            return {}
        k = min(values, key=lambda k: values[k])
        return {key: values[k], f"{key}_of": self.class_names[k] if k < len(self.class_names) else str(k)}

    def _spacing(self, samples: Tensor) -> float:
        real = self._apart(len(samples))
        return ratio(*(nearest_distance(x, x, same=True).mean().item() for x in (samples[: len(real)], real)))

    def _apart(self, num: int) -> Tensor:
        """Return `num` random training images, at most `PIXELS` and at most all, flattened to [n, D]; a set may be sorted by class."""
        num = min(num, PIXELS, len(self.train))
        return self.train[in_random_order(len(self.train), num)[:num]].flatten(1)

    def _some(self, images: Tensor) -> Tensor:
        """Return a random `PIXELS` of `images`, or all in their own order if there are no more, flattened to [n, D]."""
        return images[in_random_order(len(images), PIXELS)[:PIXELS]].flatten(1)


def _rows(features: FeatureSet) -> Tensor:
    """Return the kept rows of `features`, which features that were computed here always have."""
    assert features.rows is not None
    return features.rows


def images_per_second(sample: Callable[[int], Any], num: int, repeats: int = 3) -> float:
    """Return the median speed of ``sample(num)`` after a warm-up call, or the warm-up call's where that takes longer than `LONG`."""
    times: list[float] = []
    while len(times) <= repeats:
        began = time.perf_counter()
        sample(num)
        times.append(time.perf_counter() - began)
        if times[0] > LONG:
            return num / times[0]
    return num / statistics.median(times[1:])
