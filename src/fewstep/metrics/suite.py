"""One evaluation for every method: quality beside the floor, diversity, and what would show memorising.

The **floor** is the Frechet distance of the real train split to the real held-out split in the same features: of as many random train
images as samples are measured, so that its bias is theirs. A generated set below it whose distance to the train split falls too has
learned the train split by heart.

Images go through a batch at a time, and real ones stay bytes: of a set of any size there are held at once a batch, the moments of
its features, `KEPT` rows of them, and `PIXELS` images for the measures that look at pixels.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.metrics.asking import rarest_share
from fewstep.metrics.classes import class_variances, root_of_mean, shares, within_class_std
from fewstep.metrics.copies import Known, near_copies, nearest_two
from fewstep.metrics.features import FeatureNetwork
from fewstep.metrics.figures import BY_KEY
from fewstep.metrics.frechet import Moments, expected_bias, frechet_distance, gaussian_distance
from fewstep.metrics.judging import BOTH
from fewstep.metrics.kernel_mmd import kernel_distance, kernel_distance_subsets
from fewstep.metrics.least import LEAST, WORDS, Lack, lack
from fewstep.metrics.manifold import nearest_distance, precision_recall
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
SUBSET = 1_000  # rows of a subset, of which KID takes many
TRAIN, HELDOUT = WORDS["train split"], WORDS["held-out split"]
FEWEST = 10_000  # samples below which the bias of a Frechet distance is no longer small beside the differences people report
IN_CLASS = "of each class"
LONG = 5.0  # seconds, beside which making memory and kernels ready is little
BY_DEFINITION = {"within_class_std": 1.0, "least_class_std": 1.0, "spacing": 1.0, "frechet_train": 0.0, "train_distance": 1.0}

Row = dict[str, Any]
__all__ = ["FEWEST", "Suite", "images_per_second", "within_class_std"]


class Judge(NamedTuple):
    """A feature network, and what it makes of the reference and of the floor's images; `floor` is the distance between these."""

    network: FeatureNetwork
    reference: FeatureSet
    floor_set: FeatureSet
    floor: float


class Suite:
    """Measures sets of images against one data set.

    Args:
        train, heldout: real images [N, C, H, W] and [M, C, H, W]: float in [-1, 1], or bytes of which `half` means 0.
        train_label, heldout_label: int64 [N] and [M], or None.
        network: features; one with a method ``classify`` also gives the class accuracy.
        half: the byte that means 0; None for float images.
        reference: what distances are to: the split "heldout" or "train", or statistics from elsewhere.
        cache: folder where the features of the real splits are kept, and beside it ``neighbours``; None for no keeping.
        track: shows how far a long extraction is.
        num: samples that are to be measured, and so of how many real images the floor is; None is all.
        class_names: one for each label.
        second: another network, which judges, too; not where the reference is from elsewhere.

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
        self.train_std = root_of_mean(self.train_variances)
        self.known = Known(train, half)
        some, neighbours = self._some(heldout), None if cache is None else cache.with_name("neighbours")
        key = {"what": "nearest training images of held-out ones", "of": [self.train_set.sha256, self.heldout_set.sha256, len(some)]}
        self.heldout_nearest = kept_array(neighbours, key, lambda: nearest_two(some, train.flatten(1)))
        self.heldout_distance = self.heldout_nearest[:, 0].mean().item()

    def _floor_split(self, train: Any, heldout: Any) -> Any:
        """Which of two things that belong to the splits belongs to the floor's."""
        return train if self.against == "heldout" else heldout

    def _floor_images(self, num: int | None) -> Tensor | None:
        """Which `num` images of the floor's split the floor is of: random ones, always the same; None for all, where it has no more."""
        size = len(self._floor_split(self.train, self.heldout))
        if num is None or num >= size:
            return None
        num, order = max(2, num), in_random_order(size)
        kept = order[: len(self._floor_split(self.train_features, self.heldout_features))]  # whose features are at hand
        some = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:num]
        return kept[some] if num <= len(kept) else order[:num]

    def _floor_set(self, num: int | None) -> tuple[FeatureSet, Tensor]:
        """The features of the images of the floor, and which images its rows are."""
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
        """What `network` makes of the reference, and of the images of the floor."""
        images, some = self._floor_split(self.train, self.heldout), self._floor_images(num)
        reference = self.heldout if self.against == "heldout" else self.train
        to, floor = (
            real_features(network, part, self.half, self.cache, self.track, f"second judge: {title}")
            for part, title in ((reference, "reference"), (images if some is None else images[some], "floor"))
        )
        return Judge(network, to, floor, gaussian_distance(floor.gaussian, to.gaussian))

    @property
    def heldout_features(self) -> Tensor:
        """Of the held-out split: float32 [K, D]."""
        return _rows(self.heldout_set)

    @property
    def train_features(self) -> Tensor:
        """Of the train split: float32 [K, D]."""
        return _rows(self.train_set)

    @property
    def floor_name(self) -> str:
        """What the floor is measured of."""
        return "real train split" if self.against == "heldout" else "real held-out split"

    def protocol(self) -> dict[str, Any]:
        """What numbers of this suite depend on besides the samples; see `fewstep.metrics.protocol`."""
        named = {"heldout": "held-out split", "train": "train split"}.get(self.against, "a file of statistics")
        whole = len(self._floor_split(self.train, self.heldout))
        return {
            "features": network_id(self.network),
            "reference": {"what": named, "num": self.reference.num, "sha256": self.reference.sha256},
            "quantisation": "bytes" if getattr(self.network, "rounds", False) else "none",
            # not where it is all of them, as it was before there was a choice
            **({"floor_n": self.floor_set.num} if self.floor_set.num != whole else {}),
            **({"second": network_id(self.second.network), "manifold": BOTH} if self.second is not None else {}),
        }

    @property
    def undefined(self) -> set[str]:
        """Keys of figures that these images can never have: those of classes, without labels or a network that tells classes."""
        if self.train_label is None:
            return {"class_accuracy", "least_class_accuracy", "least_class_std"}
        return set() if hasattr(self.network, "classify") else {"class_accuracy", "least_class_accuracy"}

    def lacks(self, generated: int) -> dict[str, Lack]:
        """What each figure lacks of `generated` samples that cannot be given of so few, or of so few real images."""
        return self._lacks(generated, "samples")

    def floor_lacks(self) -> dict[str, Lack]:
        """The same of the floor's row, where real images stand for the samples."""
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
        """Real images measured as if they were generated, against others: what no figure should beat."""
        images, label = self._floor_split((self.train, self.train_label), (self.heldout, self.heldout_label))
        row: Row = self._feature_figures(self.floor_set, None if self.second is None else self.second.floor_set)
        if self.against == "heldout":  # its distance to itself says nothing; the held-out split's stands for it
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
        return row

    def measure(self, samples: Tensor, label: Tensor | None, slow: bool = False) -> Row:
        """All figures of `samples` [n, C, H, W] in [-1, 1], made for `label` int64 [n] or None; see `measure_batches`."""
        return self.measure_batches(samples.split(BATCH), label, slow)

    def measure_batches(self, batches: Iterable[Tensor], label: Tensor | None, slow: bool = False) -> Row:
        """All figures of the samples in `batches`, [n, C, H, W] altogether in [-1, 1], made for `label` int64 [n] or None.

        ``frechet`` to the reference, ``frechet_over_floor``, ``frechet_train`` to the train split, ``kernel`` (KID, all pairs),
        ``precision``, ``recall`` (the last three of the first `KEPT` samples, and only where the reference has its features; of two
        judges the lesser, for noise may be to one network what real images are);
        ``class_accuracy``, the share that shows the class asked for, and ``least_class_accuracy``, that of the worst class; ``copies``
        of training images; as ratios to real images ``within_class_std``, ``least_class_std`` of the narrowest class, ``spacing`` (mean
        distance to the nearest other sample, equal numbers) and ``train_distance`` (mean distance to the nearest training image, over
        that of held-out images: below 1 is memorising), and the share of ``near_copies``, these five of the first `PIXELS` samples. What
        is the least over the classes comes with the class, as ``KEY_of``.

        With `slow` also what takes long or is of interest once: ``kernel_subsets`` and ``kernel_subsets_std``, KID as papers report
        it, from 1,000 samples up, and ``frechet_bias``, see `expected_bias`. A second judge gives ``frechet_second_over_floor``.
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
        return row

    def frechet_of(self, batches: Iterable[Tensor]) -> float:
        """The Frechet distance to the reference alone."""
        return gaussian_distance(describe(self.network, batches).gaussian, self.reference.gaussian)

    def self_test(self, splits: int = 4) -> dict[str, float]:
        """One random half of the train split's kept features against the other: what should come out as nothing, and what does.

        Means over so many `splits`: ``frechet`` of halves of ``num`` images; ``bias``, how much of it the finite number explains, the
        distance of quarters less that of halves (as in `expected_bias`); ``rest``, their difference, 0 but for chance; ``spread``, the
        standard deviation of the rest over the splits; ``kernel`` (KID, which has no bias). Raises ValueError for fewer than 8 images.
        """
        rows = self.train_features
        num = len(rows) // 4 * 2
        if num < 4:
            raise ValueError(f"there are {len(rows)} training images; a self-test needs 8")
        rng = torch.Generator().manual_seed(0)
        halves, quarters, kernels = [], [], []
        for _ in range(splits):
            order = torch.randperm(len(rows), generator=rng)
            a, b = rows[order[:num]], rows[order[num : 2 * num]]
            halves.append(frechet_distance(a, b))
            quarters.append(sum(frechet_distance(x, y) for x, y in zip(a.chunk(2), b.chunk(2), strict=True)) / 2)
            kernels.append(kernel_distance(a, b))
        rest = [2 * half - quarter for half, quarter in zip(halves, quarters, strict=True)]
        whole = statistics.mean(halves)
        return {
            "num": num,
            "frechet": whole,
            "bias": statistics.mean(quarters) - whole,
            "rest": statistics.mean(rest),
            "spread": statistics.stdev(rest),
            "kernel": statistics.mean(kernels),
        }

    def _feature_figures(self, features: FeatureSet, others: FeatureSet | None, slow: bool = False) -> dict[str, float]:
        """The figures of a set by its `features`, and by those in the second judge."""
        frechet = gaussian_distance(features.gaussian, self.reference.gaussian)
        row = {"frechet": frechet, "frechet_over_floor": frechet / self.floor}
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
            row["frechet_second_over_floor"] = gaussian_distance(others.gaussian, self.second.reference.gaussian) / self.second.floor
        if slow and features.halves is not None:
            row["frechet_bias"] = expected_bias(features.halves, features.gaussian, self.reference.gaussian)
        return row

    def _pixel_figures(self, samples: Tensor, label: Tensor | None) -> Row:
        ours = samples.flatten(1) if self.half is None else (samples.flatten(1) + 1) * self.half  # in the units of the real ones
        nearest, variances = nearest_two(ours, self.train.flatten(1)), class_variances(ours, label)
        ratios = {
            k: (variance / self.train_variances[k]).sqrt().item()
            for k, variance in variances.items()
            if k in self.train_variances and self.train_variances[k] > 0
        }
        spread = {"within_class_std": root_of_mean(variances) / self.train_std} if variances and self.train_variances else {}
        return {
            **spread,  # but where no class has two items, as prompts that were drawn once
            **(self._least("least_class_std", ratios) if label is not None else {}),
            "spacing": self._spacing(ours),
            "train_distance": nearest[:, 0].mean().item() / self.heldout_distance,
            "near_copies": near_copies(nearest),
        }

    def _least(self, key: str, values: dict[int, float]) -> Row:
        """The least of the `values` of classes as the figure `key`, and whose it is; nothing where there is none."""
        if not values:
            return {}
        k = min(values, key=lambda k: values[k])
        return {key: values[k], f"{key}_of": self.class_names[k] if k < len(self.class_names) else str(k)}

    def _spacing(self, samples: Tensor) -> float:
        real = self._some(self.train)
        num = min(len(samples), len(real))
        ours, theirs = (nearest_distance(x[:num], x[:num], same=True).mean() for x in (samples, real))
        return (ours / theirs).item()

    def _some(self, images: Tensor) -> Tensor:
        """A random `PIXELS` of `images`, or all in their own order, flat."""
        return images[in_random_order(len(images), PIXELS)[:PIXELS]].flatten(1)


def _rows(features: FeatureSet) -> Tensor:
    """Those that are kept, of features that were made here."""
    assert features.rows is not None
    return features.rows


def images_per_second(sample: Callable[[int], Any], num: int, repeats: int = 3) -> float:
    """Median speed of ``sample(num)`` after one call that is not counted; that of this one call where it takes longer than `LONG`."""
    times: list[float] = []
    while len(times) <= repeats:
        began = time.perf_counter()
        sample(num)
        times.append(time.perf_counter() - began)
        if times[0] > LONG:
            return num / times[0]
    return num / statistics.median(times[1:])
