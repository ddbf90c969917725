"""The one table of figures: all that is measured is in it, and all that shows figures shows these."""

import json
import subprocess
import sys

import pytest
import torch

from fewstep.evaluation_text import table
from fewstep.metrics import frechet_distance, kernel_distance, precision_recall
from fewstep.metrics.features import PooledPixels
from fewstep.metrics.figures import BY_KEY, FIGURES, choices
from fewstep.metrics.point_suite import PointSuite
from fewstep.metrics.suite import Suite


def keys(family):
    return {figure.key for figure in FIGURES if figure.family == family}


def seeded(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_is_read_without_torch():
    code = "import sys, json, fewstep.metrics.figures; print(json.dumps(list(sys.modules)))"
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert "fewstep.metrics.figures" in found
    assert not {"torch", "numpy", "fewstep.metrics.frechet"} & set(found)


def test_the_package_still_gives_its_measures():
    import fewstep.metrics

    assert [f.__name__ for f in (frechet_distance, kernel_distance, precision_recall)] == fewstep.metrics.__all__
    assert set(fewstep.metrics.__all__) <= set(dir(fewstep.metrics))
    with pytest.raises(AttributeError, match="has no attribute 'frechet_distence'"):
        fewstep.metrics.frechet_distence  # noqa: B018


class Classifier(PooledPixels):
    def classify(self, features):
        return features[:, :2]


def test_all_that_is_measured_of_images_is_in_it_and_the_other_way_round():
    train, heldout, made = (seeded(1000, 1, 8, 8, seed=seed) for seed in range(3))
    label = torch.arange(1000) % 2
    suite = Suite(train, heldout, label, label, Classifier())
    watched, slow = (set(suite.measure(made, label, slow)) for slow in (False, True))
    whose = {"least_class_accuracy_of", "least_class_std_of"}
    assert whose < watched
    assert watched - whose == {figure.key for figure in FIGURES if figure.family == "images" and figure.is_watched}
    assert watched - whose == set(choices("images"))
    # a protocol of several blocks adds the first, a second network the next, and a CLIP model the rest
    assert slow - whose | {"frechet_mean", "frechet_second_over_floor", "prompt_agreement", "prompt_margin"} == keys("images")
    assert set(suite.floor_row()) - whose <= keys("images")


def test_all_that_is_measured_of_points_is_in_it_and_the_other_way_round():
    means, stds, weights = torch.tensor([[-0.5, 0.0], [0.5, 0.0]]), torch.tensor([0.3, 0.3]), torch.tensor([0.5, 0.5])
    suite = PointSuite(seeded(200, 2), seeded(200, 2, seed=1), (means, stds, weights))
    found = suite.measure(seeded(200, 2, seed=2))
    assert {key.removesuffix("_error") for key in found} == keys("points") == set(choices("points"))


def test_each_is_told_in_full():
    assert len(BY_KEY) == len(FIGURES)
    assert len({figure.heading for figure in FIGURES}) == len(FIGURES)
    for figure in FIGURES:
        assert figure.form.format(0.5)
        assert figure.what.endswith(".")
        assert figure.what[0].isupper()
        assert len(figure.what.split()) >= 7
    assert BY_KEY["frechet_over_floor"].words == "frechet over floor"
    assert {figure.key for figure in FIGURES if not figure.is_quality} == {"training_seconds", "images_per_second"}


def test_which_way_is_better():
    """Worse than real: further off, less of the real, and on either side of 1."""
    assert {key for key, best in choices("images").items() if best == "greatest"} == {
        "precision",
        "recall",
        "class_accuracy",
        "least_class_accuracy",
    }
    assert {key for key, best in choices("images").items() if best == "nearest 1"} == {
        "within_class_std",
        "least_class_std",
        "spacing",
        "train_distance",
    }
    assert {key for key, best in choices("points").items() if best == "greatest"} == {"modes", "inside"}
    assert {key for key, best in choices("points").items() if best == "nearest 1"} == {"variance", "median_radius"}
    assert choices("cost") == {}


def test_a_table_of_all_there_is():
    """The columns, their order and how they are written, by hand."""
    row = dict.fromkeys(BY_KEY, 1.23456789) | {"steps": 3, "energy_error": 0.1, "unheard_of": 2.0, "sampler": "heun"}
    row |= {"least_class_std_of": "cat"}
    head, line = table({"rows": {"all": row}})
    assert " | ".join(head) == (
        " | FD | FD / floor | 2nd judge | mean of blocks | FD to train | KID | +- | class asked for | worst class | CLIP | over another | "
        "precision | recall | "
        "class std | least class std | spacing | to train | copies | "
        "energy distance | MMD^2 | SW2 | modes | weights, TV | inside | variance | radius | trained, s | samples/s"
    )
    assert " | ".join(line) == (
        "all | 1.235 | 1.23 | 1.23 | 1.235 | 1.235 | 1.23457 | 1.23457 | 123.5% | 123% | 1.235 | +1.235 | "
        "1.23 | 1.23 | 123% | 123% (cat) | 123% | 123% | 123.5% | "
        "1.23457 | 1.23457 | 1.235 | 1 | 1.2346 | 1.235 | 1.23 | 1.23 | 1 | 1"
    )
    assert table({"rows": {"a": {"frechet": 2.0}, "b": {"inside": 0.5}}}) == [["", "FD", "inside"], ["a", "2.000", ""], ["b", "", "0.500"]]


def test_the_curves_of_a_report():
    assert {figure.key for figure in FIGURES if figure.is_curve} == {"frechet_over_floor", "kernel", "energy"}
