"""A figure is given from its least numbers of real and of generated items on, and below them its reason, wherever it is shown."""

import json
from pathlib import Path

import pytest
import torch

from fewstep import measurement
from fewstep.metrics.features import PooledPixels
from fewstep.metrics.figures import BY_KEY
from fewstep.metrics.least import ALLOWED, BIASED, LEAST, SHARE, Least, carried, lack, summed_up, without
from fewstep.metrics.manifold import precision_recall
from fewstep.metrics.point_suite import OF_MODES, PointSuite
from fewstep.metrics.suite import Suite

MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "figure_errors.json").read_text())["rows"]
IMAGES = sorted(key for key in LEAST if BY_KEY[key].family == "images" and BY_KEY[key].is_watched)
POINTS = sorted(key for key in LEAST if BY_KEY[key].family == "points")
# not by how far they were off, but by a rule: shares of SHARE items, or of as many of each class; the second judge as the first
BY_RULE = {
    "copies": Least(0, SHARE),
    "near_copies": Least(5, SHARE),
    "least_class_accuracy": Least(0, 0, SHARE),
    "least_class_std": Least(50, 0, SHARE),
}
SHARES = {"class_accuracy": 1, "precision": 1, "recall": 0, "inside": 1}  # of which side each is a share
# the real items that each is held against, of those in `sizes`
AGAINST = {
    "frechet": ("heldout",),
    "frechet_over_floor": ("heldout", "train"),
    "frechet_train": ("train",),
    "kernel": ("heldout",),
    "precision": ("heldout",),
    "recall": ("heldout",),
    "class_accuracy": (),
    "within_class_std": ("train",),
    "spacing": ("train",),
    "train_distance": ("train", "heldout"),
    "copies": (),
    "near_copies": ("train",),
    "least_class_accuracy": (),
    "least_class_std": ("train",),
}


class Classes(PooledPixels):
    """Tells the class that `images` writes into the first pixel."""

    def classify(self, features):
        return torch.nn.functional.one_hot((features[:, 0] > 0).long(), 2).float()


def images(num, seed=0):
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(num) % 2
    x = torch.rand(num, 1, 8, 8, generator=rng) * 2 - 1
    x[:, 0, 0, 0] = label * 1.0 - 0.5
    return x, label


def suite(train=200, heldout=200):
    (a, a_label), (b, b_label) = images(train), images(heldout, 1)
    return Suite(a, b, a_label, b_label, Classes())


def smallest(key, side, study):
    """The smallest number measured from which on the error is small enough."""
    rows = sorted(
        (row["size"], row["figures"][key]["share"])
        for row in MEASURED
        if (row["study"], row["side"]) == (study, side) and key in row["figures"]
    )
    allowed = BIASED if key.startswith("frechet") else ALLOWED
    sizes = [size for i, (size, _) in enumerate(rows) if all(share <= allowed for _, share in rows[i:])]
    return sizes[0]


@pytest.mark.parametrize("key", [key for key in IMAGES if key not in ("frechet_over_floor", *BY_RULE)])
def test_the_least_numbers_of_images_are_those_measured(key):
    studies = ["digits-v1"] if key in ("kernel", "class_accuracy") else ["digits-v1", "pixels-8x8"]
    sides = AGAINST[key] or ("heldout",)
    reference, generated = (max(smallest(key, side, study) for study in studies for side in kinds) for kinds in (sides, ("generated",)))
    if key in SHARES:
        reference, generated = (max(SHARE, n) if SHARES[key] == side else n for side, n in enumerate((reference, generated)))
    assert LEAST[key][:2] == (reference if AGAINST[key] else 0, generated)


def test_the_least_numbers_by_rule():
    assert {key: LEAST[key] for key in BY_RULE} == BY_RULE
    assert LEAST["frechet_second_over_floor"] == LEAST["frechet_over_floor"]


@pytest.mark.parametrize("key", POINTS)
def test_the_least_numbers_of_points_are_those_measured(key):
    least = LEAST[key]
    at_mode = {"ring": 8, "grid25": 25}
    generated = {study: smallest(key, "generated", study) for study in at_mode}
    if least.at_mode:
        assert least.at_mode == max(size / at_mode[study] for study, size in generated.items() if size > 40)
    else:
        assert least.generated == max(generated.values())
    assert least.reference == (0 if key in OF_MODES else max(smallest(key, "heldout", study) for study in at_mode))


@pytest.mark.parametrize("key", IMAGES)
@pytest.mark.parametrize("short", [0, 1])
def test_each_figure_of_images_stands_at_its_least_numbers_and_not_below(key, short):
    reference, generated, in_class = LEAST[key]
    generated = max(generated, 2 * int(in_class))
    sides = {side: max(2, reference) for side in AGAINST[key]}
    for side in (*sides, "generated"):
        num = (generated if side == "generated" else reference) - short
        found = suite(**{**sides, **({} if side == "generated" else {side: num})})
        samples, label = images(num if side == "generated" else generated, 2)
        row = without(found.measure(samples, label), found.lacks(len(samples)))
        if not short:
            assert key in row
            assert key not in row.get("too_few", {})
        else:
            few, least = (num, num + 1) if side != "generated" or not in_class else (f"{num / 2:g}", int(in_class))
            name = {
                "generated": "samples of each class" if in_class else "samples",
                "train": "training images",
                "heldout": "held-out images",
            }[side]
            assert key not in row
            assert row["too_few"][key] == f"{few} {name}; {BY_KEY[key].heading} needs at least {least}"


@pytest.mark.parametrize("key", POINTS)
def test_each_figure_of_points_stands_at_its_least_numbers_and_not_below(key):
    least, rng = LEAST[key], torch.Generator().manual_seed(0)
    means, stds = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]]), torch.ones(4)
    for weights in (torch.full((4,), 0.25), torch.tensor([0.3, 0.3, 0.3, 0.1])):
        generated = max(least.generated, -(-least.at_mode // weights.min().item()))
        for real, made, stands in (
            (max(40, least.reference), generated, True),
            (max(40, least.reference), generated - 1, False),
            (least.reference - 1, generated, not least.reference),
        ):
            target = torch.randn(max(2, int(real)), 2, generator=rng)
            lacks = PointSuite.lacks(_of(target, (means, stds, weights)), int(made))
            assert (key not in lacks) == stands, (real, made)


def _of(target, modes):
    """A suite of few points, which could not be measured."""
    found = PointSuite.__new__(PointSuite)
    found.target, found.other, found.modes = target, target, modes
    return found


def test_noise_beside_few_held_out_images_has_no_precision_of_1():
    """It is what precision gives there: without the limit it would be published."""
    rng = torch.Generator().manual_seed(0)
    real, noise = torch.randn(12, 64, generator=rng) * torch.linspace(2, 0, 64), torch.randn(300, 64, generator=rng) * 0.7
    assert precision_recall(real, noise)[0] > 0.9
    assert lack("precision", {"held-out images": 12}, 300).reason("precision") == "12 held-out images; precision needs at least 75"


@pytest.mark.parametrize("against", ["heldout", "train"])
def test_the_floor_s_row_is_held_to_the_same(against):
    (a, a_label), (b, b_label) = images(300), images(12, 1)
    found = Suite(a, b, a_label, b_label, PooledPixels(), reference=against)
    row = measurement.floor_row(found)
    assert {"frechet", "frechet_over_floor", "precision", "kernel"} & row.keys() == set()
    assert all(reason.startswith(("12 held-out images; ", "6 held-out images of each class; ")) for reason in row["too_few"].values())
    assert ("spacing" in row) == (against == "heldout")  # there 1 by definition


def test_what_earlier_versions_wrote_is_held_to_the_same():
    figures = {"frechet": 1.0, "precision": 1.0, "class_accuracy": 0.9, "energy": 0.1}
    rows = {"real train split": dict(figures), "student, 1 evaluation": {**figures, "steps": 1}}
    for how in ({"reference": "12 held-out images"}, {"protocol": {"reference": {"what": "held-out split", "num": 12}}}):
        found = carried({"rows": rows, "n": 2000, **how})["rows"]
        for row in found.values():
            assert row.keys() - {"steps"} == {"class_accuracy", "energy", "too_few"}
            assert row["too_few"]["precision"] == "12 held-out images; precision needs at least 75"
        few = carried({"rows": rows, "n": 10, "protocol": {"reference": {"what": "held-out split", "num": 500}}})["rows"]
        assert few["real train split"] == figures
        assert few["student, 1 evaluation"]["too_few"]["class_accuracy"] == "10 samples; class asked for needs at least 25"
    assert carried({"rows": rows})["rows"] == rows
    assert carried({"n": 3}) == {"n": 3}


def test_reasons_are_summed_up_by_what_is_too_few():
    lacks = {key: lack(key, {"held-out images": 12}, 60) for key in ("frechet", "frechet_over_floor", "precision", "recall")}
    row = without(dict.fromkeys(lacks, 1.0), {key: few for key, few in lacks.items() if few})
    assert summed_up([row, row, {"frechet": 1.0}]) == [
        "12 held-out images, too few for FD, FD / floor (50 needed); precision (75 needed); recall (25 needed): not given"
    ]
