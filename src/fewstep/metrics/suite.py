"""One evaluation for every method: quality beside the floor, diversity, and what would show memorising.

The **floor** is the Frechet distance of the real train split to the real held-out split in the same features. A generated
set below it whose distance to the train split falls too has learned the train split by heart.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.metrics.features import FeatureNetwork, extract
from fewstep.metrics.frechet import frechet_distance
from fewstep.metrics.kernel_mmd import kernel_distance
from fewstep.metrics.manifold import nearest_distance, precision_recall


def within_class_std(x: Tensor, label: Tensor | None) -> float:
    """Root of the mean variance of an element about its class mean, classes weighing alike; x [N, ...], label [N] or None."""
    x = x.flatten(1).double()
    groups = [x] if label is None else [x[label == k] for k in label.unique()]
    return torch.stack([group.var(0).mean() for group in groups if len(group) > 1]).mean().sqrt().item()


class Suite:
    """Measures sets of images against one data set.

    Args:
        train, heldout: real images [N, C, H, W] and [M, C, H, W] in [-1, 1].
        train_label, heldout_label: int64 [N] and [M], or None.
        network: features; one with a method ``classify`` also gives the class accuracy.

    """

    def __init__(
        self, train: Tensor, heldout: Tensor, train_label: Tensor | None, heldout_label: Tensor | None, network: FeatureNetwork
    ) -> None:
        self.train, self.heldout, self.train_label, self.heldout_label = train, heldout, train_label, heldout_label
        self.network = network
        self.train_features, self.heldout_features = extract(network, train), extract(network, heldout)
        self.floor = frechet_distance(self.train_features, self.heldout_features)
        self.train_std = within_class_std(train, train_label)
        self.heldout_distance = nearest_distance(heldout.flatten(1), train.flatten(1)).mean().item()

    def floor_row(self) -> dict[str, float]:
        """The real train split measured as if it were generated, against the held-out one: what no figure should beat."""
        row = self._row(self.train, self.train_label, self.train_features)
        # its distance to itself says nothing; the held-out split's stands for it
        return {**row, "frechet_train": 0.0, "train_distance": 1.0}

    def measure(self, samples: Tensor, label: Tensor | None) -> dict[str, float]:
        """All figures of `samples` [n, C, H, W] in [-1, 1], made for `label` int64 [n] or None.

        ``frechet`` to the held-out split, ``frechet_over_floor``, ``frechet_train`` to the train split, ``kernel`` (KID),
        ``precision``, ``recall``; ``class_accuracy``, the share that shows the class asked for; as ratios to real images
        ``within_class_std``, ``spacing`` (mean distance to the nearest other sample, equal numbers) and ``train_distance``
        (mean distance to the nearest training image, over that of held-out images: below 1 is memorising).
        """
        features = extract(self.network, samples)
        row = self._row(samples, label, features)
        row["frechet_train"] = frechet_distance(features, self.train_features)
        row["train_distance"] = nearest_distance(samples.flatten(1), self.train.flatten(1)).mean().item() / self.heldout_distance
        return row

    def _row(self, samples: Tensor, label: Tensor | None, features: Tensor) -> dict[str, float]:
        frechet = frechet_distance(features, self.heldout_features)
        precision, recall = precision_recall(self.heldout_features, features)
        row = {
            "frechet": frechet,
            "frechet_over_floor": frechet / self.floor,
            "kernel": kernel_distance(features, self.heldout_features),
            "precision": precision,
            "recall": recall,
            "within_class_std": within_class_std(samples, label) / self.train_std,
            "spacing": self._spacing(samples),
        }
        classify = getattr(self.network, "classify", None)
        if classify is not None and label is not None:
            row["class_accuracy"] = (classify(features).argmax(1) == label).double().mean().item()
        return row

    def _spacing(self, samples: Tensor) -> float:
        num = min(len(samples), len(self.train))
        ours, real = (nearest_distance(x[:num].flatten(1), x[:num].flatten(1), same=True).mean() for x in (samples, self.train))
        return (ours / real).item()


def images_per_second(sample: Callable[[int], Any], num: int, repeats: int = 3) -> float:
    """Median speed of ``sample(num)`` after one call that is not counted."""
    sample(num)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        sample(num)
        times.append(time.perf_counter() - began)
    return num / statistics.median(times)
