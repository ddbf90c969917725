"""Measure sets of images whose quality is known, to show how multiples of the floor are to be read.

    python benchmarks/feature_calibration.py digits                                     3 minutes on one core
    python benchmarks/feature_calibration.py digits mnist cifar10 --data ../shared/data      half an hour
    python benchmarks/feature_calibration.py mnist --data ../shared/data --num 500 --train 2000 --out /tmp/small.json

Each set is measured as an evaluation measures samples, in both judges where there are two: copies of training images, training images
with all classes equally often, real images that are neither in the reference nor seen by the networks (one half of the held-out split
against the other), training images with noise, with less contrast and blurred, class means, one image repeated for each class, one class,
half of the classes, and noise alone. `mistakes` lists where the figures rank the sets wrongly; it must be empty.

A classifier tells copies of the images that it was trained on from new ones. On digits this effect is measured separately, by classifiers
of the same kind that are trained on 720 digits (A): the Frechet distance to 357 others (C) is taken from A itself, whose ratio is 1 by
definition, and from 720 digits that the classifier has never seen (B).

Writes results/feature_calibration.json, in which data sets that are not named on the command line keep their results.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from fewstep.data import ImageData, cifar10, load_digits, mnist
from fewstep.machine import machine
from fewstep.measurement import suite_for
from fewstep.metrics.features import extract
from fewstep.metrics.frechet import frechet_distance
from fewstep.metrics.judging import FIRST, SECOND, disagreement
from fewstep.metrics.suite import Suite
from fewstep.training.progress import reading_bar

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from train_features import EPOCHS, train_classifier

RESULTS = Path(__file__).parent / "results" / "feature_calibration.json"
SEEDS = range(5)
NOISES = (0.1, 0.2, 0.4)  # standard deviations of the noise, where pixels are in [-1, 1]
SHARES = (0.97, 0.9)  # of the contrast, that are left
COPIES, UNSEEN, MEANS, BLURRED = "copies of the train split", "unseen real images", "class means", "blurred class means"
REPEATED, ONE, HALF, NOISE, SHUFFLED = "one image a class", "one class", "half of the classes", "Gaussian noise", "labels shuffled"
ALIKE = "train images, all classes alike"
FAINT = tuple(f"train images at {share:.0%} of their contrast" for share in SHARES)
SOFT = "train images, half blurred"
NOISY = tuple(f"train images with noise {noise}" for noise in NOISES)
# (better, worse): the better set has to have the lower Frechet distance in both judges. Copies are not compared with the weakest noise:
# a little noise may bring training images nearer to new ones, which a classifier trained on the former tells from them
BETTER = (
    (COPIES, NOISY[-1]),
    *itertools.pairwise(NOISY),
    (NOISY[-1], NOISE),
    (COPIES, FAINT[-1]),
    FAINT,
    (FAINT[0], NOISY[-1]),  # a loss of contrast that nobody sees, and noise that everybody sees
    (FAINT[0], HALF),
    (COPIES, SOFT),
    (SOFT, HALF),
    (COPIES, HALF),
    (ALIKE, HALF),
    (HALF, ONE),
    (COPIES, REPEATED),
    (REPEATED, MEANS),
    (REPEATED, BLURRED),
    (UNSEEN, HALF),
    (UNSEEN, NOISY[-1]),
    (UNSEEN, REPEATED),
)


def sets_of(data: ImageData, num: int, seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by title, `num` images [n, C, H, W] in [-1, 1] and their classes [n] for each set that is made from the train split."""
    rng = torch.Generator().manual_seed(seed)
    label = data.train_label
    assert label is not None
    order = torch.randperm(len(data.train), generator=rng)[:num]
    images, asked = _scaled(data, data.train[order]), label[order]
    classes = len(data.class_names)
    members = [(label == k).nonzero().flatten() for k in range(classes)]
    balanced = torch.arange(num) % classes
    means = torch.stack([_scaled(data, data.train[group]).mean(0) for group in members])
    blurred = torch.nn.functional.avg_pool2d(means, 3, 1, 1, count_include_pad=False)
    some = torch.cat([group[torch.randperm(len(group), generator=rng)] for group in members[: classes // 2]])
    some = some[torch.randperm(len(some), generator=rng)[:num]]
    first = members[0][torch.randperm(len(members[0]), generator=rng)[:num]]
    repeated = _scaled(data, data.train[torch.stack([group[0] for group in members])])
    mean, std = images.mean(0), images.std(0)
    found = {COPIES: (images, asked)}
    for noise, title in zip(NOISES, NOISY, strict=True):
        found[title] = (images + noise * torch.randn(images.shape, generator=rng), asked)
    for share, title in zip(SHARES, FAINT, strict=True):
        found[title] = (share * images, asked)
    found[SOFT] = ((images + torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)) / 2, asked)
    alike = torch.cat([group[torch.randperm(len(group), generator=rng)[: num // classes]] for group in members])
    return found | {
        ALIKE: (_scaled(data, data.train[alike]), label[alike]),
        HALF: (_scaled(data, data.train[some]), label[some]),
        ONE: (_scaled(data, data.train[first]), label[first]),
        REPEATED: (repeated[balanced], balanced),
        MEANS: (means[balanced], balanced),
        BLURRED: (blurred[balanced], balanced),
        NOISE: (mean + std * torch.randn(images.shape, generator=rng), balanced[: len(images)]),
        SHUFFLED: (images, (asked + 1 + torch.arange(len(images)) % (classes - 1)) % classes),
    }


def _scaled(data: ImageData, pixels: Tensor) -> Tensor:
    assert data.half is not None
    return pixels.float() / data.half - 1


def unseen(data: ImageData) -> dict[str, Any]:
    """Return the figures of one half of the held-out split, measured against the other half."""
    order = torch.randperm(len(data.heldout), generator=torch.Generator().manual_seed(0))
    mine, theirs = order.chunk(2)
    label = data.heldout_label
    assert label is not None
    half = ImageData(data.name, data.train, data.heldout[theirs], data.train_label, label[theirs], data.half, data.class_names)
    suite = suite_for(half, num=len(mine), judges=2)
    assert isinstance(suite, Suite)
    return suite.measure(_scaled(data, data.heldout[mine]), label[mine], slow=True)


def table(data: ImageData, num: int) -> dict[str, Any]:
    """Return the figures of each set and of the floor, and where they rank the sets wrongly."""
    suite = suite_for(data, num=num, judges=2)
    assert isinstance(suite, Suite)
    rows: dict[str, Any] = {"floor": {"role": "floor", **suite.floor_row()}}
    for title, (images, label) in sets_of(data, num).items():
        rows[title] = {"n": len(images), **suite.measure_batches(images.split(500), label, slow=True)}
        _tell(title, rows[title])
    rows[UNSEEN] = {"n": len(data.heldout) // 2, **unseen(data)}
    _tell(UNSEEN, rows[UNSEEN])
    names = [suite.network.name, *([suite.second.network.name] if suite.second is not None else [])]
    found = {"judges": names, "protocol": suite.protocol(), "n": num, "rows": rows}
    return {**found, "mistakes": mistakes(rows), "disagreement": disagreement(rows)}


def _tell(title: str, row: Mapping[str, Any]) -> None:
    keys = (FIRST, SECOND, "class_accuracy", "precision", "recall", "within_class_std", "least_class_std", "copies", "near_copies")
    print(f"  {title:<32}", "  ".join(f"{key} {row[key]:.3g}" for key in keys if key in row), flush=True)


def mistakes(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each figure in `rows` that contradicts what is known of the sets."""
    found = []
    for key in (key for key in (FIRST, SECOND) if key in rows[COPIES]):
        for better, worse in BETTER:
            if not rows[better][key] < rows[worse][key]:
                found.append(f"{key} is {rows[better][key]:.3g} for {better}, and {rows[worse][key]:.3g} for {worse}")
        if not 0.6 < rows[COPIES][key] < 1.6:
            found.append(f"{key} is {rows[COPIES][key]:.3g} for {COPIES}, of which the floor is a sample")
    for better, worse in (*itertools.pairwise((COPIES, *NOISY[1:])), (COPIES, NOISE)):
        if not rows[better]["precision"] > rows[worse]["precision"]:
            found.append(f"precision is {rows[better]['precision']:.3g} for {better}, and {rows[worse]['precision']:.3g} for {worse}")
    bounds = (
        ("class_accuracy", COPIES, 0.9, 1.0),
        ("class_accuracy", SHUFFLED, 0.0, 0.1),
        ("class_accuracy", NOISE, 0.0, 0.3),
        ("recall", REPEATED, 0.0, 0.1),
        ("recall", ONE, 0.0, 0.35),
        ("recall", COPIES, 0.5, 1.0),
        ("precision", COPIES, 0.5, 1.0),
        ("least_class_std", REPEATED, 0.0, 0.01),
        ("least_class_std", COPIES, 0.8, 1.1),
        ("within_class_std", COPIES, 0.9, 1.1),
        ("spacing", REPEATED, 0.0, 0.01),
        ("copies", COPIES, 1.0, 1.0),
        ("copies", UNSEEN, 0.0, 0.01),
        ("copies", NOISE, 0.0, 0.0),
        ("near_copies", NOISY[0], 0.2, 1.0),
        ("near_copies", UNSEEN, 0.0, 0.02),
        ("train_distance", COPIES, 0.0, 1e-6),
    )
    for key, title, least, most in bounds:
        if key in rows[title] and not least <= rows[title][key] <= most:
            found.append(f"{key} is {rows[title][key]:.3g} for {title}, and should lie between {least:g} and {most:g}")
    return found


def ratios() -> list[float]:
    """Return, for each split, the Frechet distance of unseen real digits over that of digits that the classifier was trained on."""
    data = load_digits()
    images, labels = (torch.cat([get("train"), get("heldout")]) for get in (data.images, data.labels))  # type: ignore[arg-type,list-item]
    found = []
    for seed in SEEDS:
        seen, rest = train_test_split(torch.arange(len(images)).numpy(), train_size=720, stratify=labels.numpy(), random_state=seed)
        others, heldout = train_test_split(rest, train_size=720, stratify=labels[rest].numpy(), random_state=seed)
        # half the images, so twice the epochs: as many updates as the shipped classifier had
        network = train_classifier(images[seen], labels[seen], epochs=2 * EPOCHS, seed=seed)
        a, b, c = (extract(network, images[part]) for part in (seen, others, heldout))
        found.append(frechet_distance(b, c) / frechet_distance(a, c))
        print(f"split {seed}: unseen real digits lie at {found[-1]:.2f} x the floor")
    print(f"median {statistics.median(found):.2f}, from {min(found):.2f} to {max(found):.2f}")
    return found


def opened(name: str, folder: Path | None, most: int | None) -> ImageData:
    """Return the data set `name`, from `folder` or the Hugging Face Hub, with at most `most` training images."""
    place = None if folder is None else str(folder / name)
    data = load_digits() if name == "digits" else mnist(place, bar=reading_bar) if name == "mnist" else cifar10(place, bar=reading_bar)
    if most is None or most >= len(data.train):
        return data
    assert data.train_label is not None
    some = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:most]
    return replace(data, train=data.train[some], train_label=data.train_label[some])


def main(given: Sequence[str] | None = None) -> int:
    """Measure the data sets that are named, print and write the results; return 1 if a set is ranked wrongly, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["digits"], choices=["digits", "mnist", "cifar10"])
    parser.add_argument("--data", type=Path, help="folder with sub-folders mnist and cifar10; without it they come from the Hub")
    parser.add_argument("--num", type=int, help="images of each set; default 10,000, of digits 1,437")
    parser.add_argument("--train", type=int, help="training images that are used; default all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-ratios", action="store_true", help="do not train the classifiers that measure unseen digits")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    content["command"] = "python benchmarks/feature_calibration.py digits mnist cifar10 --data ../shared/data"
    content["machine"] = machine()
    wrong = 0
    for name in arguments.names:
        print(name)
        data = opened(name, arguments.data, arguments.train)
        found = table(data, min(arguments.num or 10_000, len(data.train)))
        content.setdefault("tables", {})[name] = found
        wrong += len(found["mistakes"])
        print("\n".join(f"  wrong: {text}" for text in found["mistakes"]) or "  every set is where it belongs")
        if found["disagreement"]:
            print(f"  {found['disagreement']}")
        if name == "digits" and not arguments.no_ratios:
            content["ratios"] = ratios()
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
