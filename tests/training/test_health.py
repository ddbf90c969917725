import re
from typing import get_args

import numpy as np
import pytest
import torch

from fewstep.config import DMD2Config, DriftConfig, LatentMLPConfig, Recipe, TeacherConfig, UNetConfig
from fewstep.methods import Drift
from fewstep.training.health import RULES, alarms, sample_figures


def data(num=64, classes=4, seed=0):
    """Images about different class means, and their labels."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(num) % classes
    means = torch.rand(classes, 1, 4, 4, generator=torch.Generator().manual_seed(9)) - 0.5
    return means[label] + 0.2 * torch.randn(num, 1, 4, 4, generator=rng), label, means


def test_spread_is_the_pooled_unbiased_deviation_over_the_real_one():
    x, label, _ = data(30, 4)
    real, real_label, _ = data(50, 5, seed=1)

    def pooled(x, label):
        pixels, label = x.flatten(1).double().numpy(), label.numpy()
        squares = sum(((pixels[label == k] - pixels[label == k].mean(0)) ** 2).sum(0) for k in np.unique(label))
        return np.sqrt((squares / (len(label) - len(np.unique(label)))).mean())

    spread = sample_figures(x, label * 2, real, real_label)["spread"]  # a class with no items counts for nothing
    assert spread.item() == pytest.approx(pooled(x, label) / pooled(real, real_label), rel=1e-4)
    without = sample_figures(x, None, real, None)["spread"]
    expected = np.sqrt(x.flatten(1).numpy().var(0, ddof=1).mean() / real.flatten(1).numpy().var(0, ddof=1).mean())
    assert without.item() == pytest.approx(expected, rel=1e-4)


def test_spread_does_not_depend_on_how_many_there_are_of_a_class():
    x, label, _ = data(4000, 2000)
    real, real_label, _ = data(4000, 2, seed=1)
    spread = sample_figures(x, label, real, real_label)["spread"].item()
    # 2,000 and 3,998 degrees of freedom in each of 16 elements: relative standard error sqrt(1/(2*16) (1/2000 + 1/3998))
    assert abs(spread - 1) < 4 * np.sqrt((1 / 2000 + 1 / 3998) / 32)


def test_a_collapsed_set_has_no_spread_and_half_the_noise_half_of_it():
    real, label, means = data()
    assert sample_figures(means[label], label, real, label)["spread"] < 1e-5
    halved = means[label] + (real - means[label]) / 2
    assert sample_figures(halved, label, real, label)["spread"].item() == pytest.approx(0.5, rel=1e-5)
    assert sample_figures(real, label, real, label)["spread"] == 1


def test_shift_and_saturation_by_hand():
    real = torch.tensor([-1.0, 1.0]).repeat(8).reshape(4, 1, 2, 2)
    std = (16 / 15) ** 0.5
    x = torch.tensor([0.5, 1.2, -1.2, -0.9]).repeat(4).reshape(4, 1, 2, 2)
    figures = sample_figures(x, None, real, None)
    assert figures["shift"].item() == pytest.approx(0.1 / std)
    assert figures["saturation"].item() == 0.5
    assert sample_figures(real, None, real, None)["shift"] == 0


HEALTHY = {
    "health.spread": 1.0,
    "health.shift": 0.05,
    "health.saturation": 0.0,
    "generator.gap": 0.5,
    "generator.escaped": 0.02,
    "denoiser.denoising": 0.4,
}
ILL = [
    ("collapse", "health.spread", 0.5, "50%.*diversity.*dfake_gen_update_ratio.*guidance_lr"),
    ("noise", "health.spread", 1.6, "160%.*noise.*generator_lr"),
    ("drift", "health.shift", 0.4, "0.40 standard deviations.*sigma_data.*guidance_scale"),
    ("saturation", "health.saturation", 0.2, "20% of the pixels.*guidance_scale.*gamma"),
    ("disagreement", "generator.gap", 2.5, "2.5 times.*guidance_lr.*dfake_gen_update_ratio"),
    ("escape", "generator.escaped", 0.7, "70% of the samples.*temperature_start"),
    ("untrained", "denoiser.denoising", 0.97, "0.97.*sigma_data.*method.lr"),
]


@pytest.mark.parametrize(("name", "figure", "value", "says"), ILL)
def test_each_illness_raises_its_alarm_alone_and_names_its_cause(name, figure, value, says):
    raised = alarms({**HEALTHY, figure: value}, 0.5)
    assert [alarm.name for alarm in raised] == [name]
    assert re.search(says, raised[0].message)
    assert [alarm.name for alarm in alarms({figure: value}, 0.5)] == [name]  # figures that are not there raise nothing


def test_health_raises_nothing_and_a_figure_that_is_no_number_does():
    assert alarms(HEALTHY, 1.0) == []
    assert {alarm.name for alarm in alarms({"health.shift": float("nan")}, 1.0)} == {"drift"}


def test_the_first_fifth_of_a_run_is_left_alone():
    ill = {"health.spread": 0.1, "health.shift": 3.0}
    assert alarms(ill, 0.19) == []
    assert len(alarms(ill, 0.2)) == 2


def test_a_method_gives_advice_of_its_own():
    usual, own = (alarms({"health.spread": 0.5}, 0.5, advice)[0].message for advice in (None, Drift.advice))
    assert usual.split(":")[0].split(". ")[0] == own.split(":")[0].split(". ")[0]  # what is seen is the same
    assert "dfake_gen_update_ratio" in usual
    assert "temperature_start" in own
    assert "dfake" not in own
    assert set(Drift.advice) <= {rule.name for rule in RULES}


def test_every_key_that_an_alarm_recommends_exists():
    kinds = {"method": (TeacherConfig, DMD2Config, DriftConfig), "network": (UNetConfig, LatentMLPConfig), "data": (), "trainer": ()}
    for advice in (*(rule.advice for rule in RULES), *Drift.advice.values()):
        for section, key in re.findall(r"\b(method|network|data|trainer)\.(\w+)", advice):
            assert any(key in kind.model_fields for kind in kinds[section]), f"{section}.{key}"
    assert "batch_size" in Recipe.model_fields
    assert {rule.name for rule in RULES} == {name for name, *_ in ILL}
    assert get_args(Recipe.model_fields["method"].annotation) == (TeacherConfig, DMD2Config, DriftConfig)
