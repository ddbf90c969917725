"""One evaluation for every method: quality beside the floor, diversity, and what would show memorising.

The **floor** is the Frechet distance of the real train split to the real held-out split in the same features. A generated
set below it whose distance to the train split falls too has learned the train split by heart.

Images go through a batch at a time, and real ones stay bytes: of a set of any size there are held at once a batch, the moments of
its features, `KEPT` rows of them, and `PIXELS` images for the measures that look at pixels.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.metrics.features import FeatureNetwork
from fewstep.metrics.figures import BY_KEY
from fewstep.metrics.frechet import expected_bias, frechet_distance, gaussian_distance
from fewstep.metrics.kernel_mmd import kernel_distance, kernel_distance_subsets
from fewstep.metrics.least import LEAST, WORDS, Lack, lack
from fewstep.metrics.manifold import nearest_distance, precision_recall
from fewstep.metrics.statistics import BATCH, FeatureSet, Track, describe, in_random_order, network_id, real_features, scaled, untracked

PIXELS = 2_000  # images whose pixels are compared
SUBSET = 1_000  # rows of a subset, of which KID takes many
TRAIN, HELDOUT = WORDS["train split"], WORDS["held-out split"]
FEWEST = 10_000  # samples below which the bias of a Frechet distance is no longer small beside the differences people report


def within_class_std(x: Tensor, label: Tensor | None) -> float:
    """Root of the mean variance of an element about its class mean, classes weighing alike; x [N, ...], label [N] or None.

    NaN where no class has two items.
    """
    x = x.flatten(1)
    groups = [torch.arange(len(x))] if label is None else [(label == k).nonzero().flatten() for k in label.unique()]
    found = []
    for group in groups:
        if len(group) > 1:
            mean = torch.stack([x[part].double().sum(0) for part in group.split(BATCH)]).sum(0) / len(group)
            squares = [(x[part].double() - mean).square().sum(0) for part in group.split(BATCH)]
            found.append(torch.stack(squares).sum(0).mean() / (len(group) - 1))
    return torch.stack(found).mean().sqrt().item() if found else math.nan


class Suite:
    """Measures sets of images against one data set.

    Args:
        train, heldout: real images [N, C, H, W] and [M, C, H, W]: float in [-1, 1], or bytes of which `half` means 0.
        train_label, heldout_label: int64 [N] and [M], or None.
        network: features; one with a method ``classify`` also gives the class accuracy.
        half: the byte that means 0; None for float images.
        reference: what distances are to: the split "heldout" or "train", or statistics from elsewhere.
        cache: folder where the features of the real splits are kept; None for no keeping.
        track: shows how far a long extraction is.

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
    ) -> None:
        self.train, self.heldout, self.train_label, self.heldout_label = train, heldout, train_label, heldout_label
        self.network, self.half, self.track = network, half, track
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
        # real images that are not in the reference
        self.floor_set = self.train_set if self.against == "heldout" else self.heldout_set
        self.floor = gaussian_distance(self.floor_set.gaussian, self.reference.gaussian)
        self.train_std = within_class_std(train, train_label)
        self.heldout_distance = nearest_distance(self._some(heldout), train.flatten(1)).mean().item()

    @property
    def heldout_features(self) -> Tensor:
        """Of the held-out split: float32 [K, D]."""
        assert self.heldout_set.rows is not None
        return self.heldout_set.rows

    @property
    def train_features(self) -> Tensor:
        """Of the train split: float32 [K, D]."""
        assert self.train_set.rows is not None
        return self.train_set.rows

    @property
    def floor_name(self) -> str:
        """What the floor is measured of."""
        return "real train split" if self.against == "heldout" else "real held-out split"

    def protocol(self) -> dict[str, Any]:
        """What numbers of this suite depend on besides the samples; see `fewstep.metrics.protocol`."""
        named = {"heldout": "held-out split", "train": "train split"}.get(self.against, "a file of statistics")
        return {
            "features": network_id(self.network),
            "reference": {"what": named, "num": self.reference.num, "sha256": self.reference.sha256},
            "quantisation": "bytes" if hasattr(self.network, "sha256") else "none",
        }

    @property
    def undefined(self) -> set[str]:
        """Keys of figures that these images can never have: accuracy, without labels or a network that tells classes."""
        told = hasattr(self.network, "classify") and self.train_label is not None
        return set() if told else {"class_accuracy"}

    def lacks(self, generated: int) -> dict[str, Lack]:
        """What each figure lacks of `generated` samples that cannot be given of so few, or of so few real images."""
        return self._lacks(generated, "samples")

    def floor_lacks(self) -> dict[str, Lack]:
        """The same of the floor's row, where real images stand for the samples."""
        found = self._lacks(*((len(self.train), TRAIN) if self.against == "heldout" else (len(self.heldout), HELDOUT)))
        by_definition = ("within_class_std", "spacing", "train_distance", "frechet_train") if self.against == "heldout" else ()
        return {key: lack for key, lack in found.items() if key not in by_definition}

    def _lacks(self, generated: int, made: str) -> dict[str, Lack]:
        reference = {WORDS[self.protocol()["reference"]["what"]]: self.reference.num}
        floor = {TRAIN: len(self.train)} if self.against == "heldout" else {HELDOUT: len(self.heldout)}
        real: dict[str, dict[str, int | None]] = {
            "frechet_over_floor": {**reference, **floor},
            "frechet_train": {TRAIN: len(self.train)},
            "class_accuracy": {},
            "within_class_std": {TRAIN: len(self.train)},
            "spacing": {TRAIN: len(self.train)},
            "train_distance": {TRAIN: len(self.train), HELDOUT: len(self.heldout)},
        }
        found = {key: lack(key, real.get(key, reference), generated, made) for key in LEAST if BY_KEY[key].family == "images"}
        return {key: few for key, few in found.items() if few is not None}

    def floor_row(self) -> dict[str, float]:
        """Real images measured as if they were generated, against others: what no figure should beat."""
        images, label = (self.train, self.train_label) if self.against == "heldout" else (self.heldout, self.heldout_label)
        order = in_random_order(len(images))[: len(self.train_features if images is self.train else self.heldout_features)]
        row = self._feature_figures(self.floor_set)
        if images is self.train:  # its distance to itself says nothing; the held-out split's stands for it
            row |= {"within_class_std": 1.0, "spacing": 1.0, "frechet_train": 0.0, "train_distance": 1.0}
        else:
            some = in_random_order(len(images), PIXELS)[:PIXELS]
            row |= self._pixel_figures(scaled(images[some], self.half), None if label is None else label[some])
            row["frechet_train"] = gaussian_distance(self.heldout_set.gaussian, self.train_set.gaussian)
        classify = getattr(self.network, "classify", None)
        if classify is not None and label is not None:
            assert self.floor_set.rows is not None
            row["class_accuracy"] = (classify(self.floor_set.rows).argmax(1) == label[order]).double().mean().item()
        return row

    def measure(self, samples: Tensor, label: Tensor | None, slow: bool = False) -> dict[str, float]:
        """All figures of `samples` [n, C, H, W] in [-1, 1], made for `label` int64 [n] or None; see `measure_batches`."""
        return self.measure_batches(samples.split(BATCH), label, slow)

    def measure_batches(self, batches: Iterable[Tensor], label: Tensor | None, slow: bool = False) -> dict[str, float]:
        """All figures of the samples in `batches`, [n, C, H, W] altogether in [-1, 1], made for `label` int64 [n] or None.

        ``frechet`` to the reference, ``frechet_over_floor``, ``frechet_train`` to the train split, ``kernel`` (KID, all pairs),
        ``precision``, ``recall`` (the last three of the first `KEPT` samples, and only where the reference has its features);
        ``class_accuracy``, the share that shows the class asked for; as ratios to real images ``within_class_std``, ``spacing`` (mean
        distance to the nearest other sample, equal numbers) and ``train_distance`` (mean distance to the nearest training image, over
        that of held-out images: below 1 is memorising), these three of the first `PIXELS` samples.

        With `slow` also what takes long or is of interest once: ``kernel_subsets`` and ``kernel_subsets_std``, KID as papers report
        it, from 1,000 samples up, and ``frechet_bias``, see `expected_bias`.
        """
        classify = getattr(self.network, "classify", None)
        pixels: list[Tensor] = []
        seen, hits = 0, 0

        def look(images: Tensor, features: Tensor) -> None:
            nonlocal seen, hits
            if seen < PIXELS:
                pixels.append(images[: PIXELS - seen].cpu())
            if classify is not None and label is not None:
                hits += int((classify(features).argmax(1).cpu() == label[seen : seen + len(images)].cpu()).sum())
            seen += len(images)

        features = describe(self.network, batches, look)
        row = self._feature_figures(features, slow)
        row |= self._pixel_figures(torch.cat(pixels), None if label is None else label[:PIXELS])
        if classify is not None and label is not None:
            row["class_accuracy"] = hits / seen
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

    def _feature_figures(self, features: FeatureSet, slow: bool = False) -> dict[str, float]:
        frechet = gaussian_distance(features.gaussian, self.reference.gaussian)
        row = {"frechet": frechet, "frechet_over_floor": frechet / self.floor}
        ours, real = features.rows, self.reference.rows
        if ours is not None and real is not None:
            row["kernel"] = kernel_distance(ours, real)
            row["precision"], row["recall"] = precision_recall(real, ours)
            if slow and min(len(ours), len(real)) >= SUBSET:
                row["kernel_subsets"], row["kernel_subsets_std"] = kernel_distance_subsets(ours, real, size=SUBSET)
        if slow and features.halves is not None:
            row["frechet_bias"] = expected_bias(features.halves, features.gaussian, self.reference.gaussian)
        return row

    def _pixel_figures(self, samples: Tensor, label: Tensor | None) -> dict[str, float]:
        ours = samples.flatten(1) if self.half is None else (samples.flatten(1) + 1) * self.half  # in the units of the real ones
        return {
            "within_class_std": within_class_std(ours, label) / self.train_std,
            "spacing": self._spacing(ours),
            "train_distance": nearest_distance(ours, self.train.flatten(1)).mean().item() / self.heldout_distance,
        }

    def _spacing(self, samples: Tensor) -> float:
        real = self._some(self.train)
        num = min(len(samples), len(real))
        ours, theirs = (nearest_distance(x[:num], x[:num], same=True).mean() for x in (samples, real))
        return (ours / theirs).item()

    def _some(self, images: Tensor) -> Tensor:
        """A random `PIXELS` of `images`, or all in their own order, flat."""
        return images[in_random_order(len(images), PIXELS)[:PIXELS]].flatten(1)


def images_per_second(sample: Callable[[int], Any], num: int, repeats: int = 3) -> float:
    """Median speed of ``sample(num)`` after one call that is not counted."""
    sample(num)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        sample(num)
        times.append(time.perf_counter() - began)
    return num / statistics.median(times)
