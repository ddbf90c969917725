import re

import numpy as np
import pytest
import torch

from fewstep import registry
from fewstep.methods.consistency import Consistency
from fewstep.methods.dddm import DDDM
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.drift import Drift
from fewstep.methods.flow_map import FlowMap
from fewstep.methods.teacher import Teacher
from fewstep.recipe import Recipe, Trainer
from fewstep.sections import Section
from fewstep.training.health import COMMON, alarms, sample_figures
from fewstep.training.run_folder import RunFolder

METHODS = [registry.room("methods", name) for name in registry.names("methods")]
EVERY = [rule for method in METHODS for rule in method.alarms]


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
    "denoiser.calibration": 0.9,
    "denoiser.denoising": 0.4,
    "student.consistency": 0.3,
    "student.flow": 0.3,
}
ILL = [
    (DMD2, "collapse", "health.spread", 0.5, r"50%.*diversity.*dfake_gen_update_ratio.*guidance_optimizer\.lr"),
    (DMD2, "noise", "health.spread", 1.6, r"160%.*noise.*generator_optimizer\.lr"),
    (DMD2, "drift", "health.shift", 0.4, "0.40 standard deviations.*sigma_data.*guidance_scale"),
    (DMD2, "saturation", "health.saturation", 0.2, "20% of the pixels.*guidance_scale.*gamma"),
    (DMD2, "disagreement", "generator.gap", 2.5, r"2.5 times.*guidance_optimizer\.lr.*dfake_gen_update_ratio"),
    (Drift, "escape", "generator.escaped", 0.7, "70% of the samples.*temperature_start"),
    (DDDM, "overconfident", "denoiser.calibration", 0.2, "20% as far .*xi is being ignored.*method.lam.*method.m"),
    (Teacher, "untrained", "denoiser.denoising", 0.97, r"0.97.*sigma_data.*method\.optimizer\.lr"),
    (Consistency, "unlearned", "student.consistency", 1.6, r"1.60.*knows nothing.*sigma_data.*method\.optimizer\.lr"),
    (FlowMap, "unlearned", "student.flow", 1.6, r"1.60.*knows nothing.*sigma_data.*method\.optimizer\.lr"),
]


@pytest.mark.parametrize(("method", "name", "figure", "value", "says"), ILL, ids=[row[2] for row in ILL])
def test_each_illness_raises_its_alarm_alone_and_names_its_cause(method, name, figure, value, says):
    raised = alarms({**HEALTHY, figure: value}, 0.5, method.alarms, method.advice)
    assert [alarm.name for alarm in raised] == [name]
    assert re.search(says, raised[0].message)
    assert [alarm.name for alarm in alarms({**HEALTHY, figure: value}, 0.5, EVERY)] == [name]  # nor any other method's
    assert [alarm.name for alarm in alarms({figure: value}, 0.5, EVERY)] == [name]  # figures that are not there raise nothing


def test_health_raises_nothing_and_a_figure_that_is_no_number_does():
    assert alarms(HEALTHY, 1.0, EVERY) == []
    assert {alarm.name for alarm in alarms({"health.shift": float("nan")}, 1.0)} == {"drift"}
    assert {alarm.name for alarm in alarms({"generator.gap": float("nan")}, 1.0, DMD2.alarms)} == {"disagreement"}


def test_an_alarm_of_one_method_is_not_another_s():
    assert alarms({"generator.gap": 2.5, "denoiser.calibration": 0.2}, 1.0) == []
    assert alarms({"denoiser.calibration": 0.2}, 1.0, DMD2.alarms, DMD2.advice) == []
    assert alarms({"generator.gap": 2.5}, 1.0, DDDM.alarms, DDDM.advice) == []


def test_the_first_fifth_of_a_run_is_left_alone():
    ill = {"health.spread": 0.1, "health.shift": 3.0, "generator.gap": 2.5}
    assert alarms(ill, 0.19, DMD2.alarms) == []
    assert len(alarms(ill, 0.2, DMD2.alarms)) == 3
    assert len(alarms(ill, 0.2)) == 2


@pytest.mark.parametrize(("calibration", "names"), [(0.499, ["overconfident"]), (0.5, []), (1.0, []), (1.3, [])])
def test_particles_are_overconfident_below_half_of_the_spread_of_the_posterior(calibration, names):
    figures = {"denoiser.calibration": calibration}
    assert [alarm.name for alarm in alarms(figures, 0.2, DDDM.alarms)] == names
    assert alarms(figures, 0.199, DDDM.alarms) == []
    assert alarms({"denoiser.apart": calibration}, 1.0, DDDM.alarms) == []  # of particles that nothing asks to spread


@pytest.mark.parametrize("lam", [0, 1])
def test_a_run_that_asks_for_no_spread_is_never_overconfident(lam, done, tmp_path):
    """A U-Net starts silent, whatever xi is, and at this rate stays so: told of lambda 1, and of lambda 0 nothing."""
    overrides = ["network.channels=[8]", "network.groups=4", "network.head_dim=8", "batch_size=8", "steps=10", "method.optimizer.lr=1e-9"]
    overrides += ["method.m=2", f"method.lam={lam}", "method.sampler_steps=1", "trainer.accelerator=cpu", "trainer.log_every=1"]
    overrides += ["trainer.sample_every=10", "trainer.checkpoint_every=10"]
    outcome = done("train", "dddm/digits", *overrides, "--out", tmp_path / "run")
    records = RunFolder(tmp_path / "run").metrics()
    name = "denoiser.calibration" if lam else "denoiser.apart"
    assert all(record[name] < 0.5 for record in records)
    assert [record["step"] for record in records if "overconfident" in record["alarms"]] == (list(range(2, 11)) if lam else [])
    assert outcome.err.count("xi is being ignored") == lam  # said once


@pytest.mark.parametrize(
    ("method", "name", "figures", "usual_words", "own_words"),
    [
        (DMD2, "collapse", {"health.spread": 0.5}, "train longer", "dfake_gen_update_ratio"),
        (DMD2, "noise", {"health.spread": 1.5}, "lower the learning rate", "lower method.generator_optimizer.lr"),
        (DMD2, "drift", {"health.shift": 0.5}, "train longer", "method.guidance_scale"),
        (DMD2, "saturation", {"health.saturation": 0.5}, "or the guidance", "method.gamma"),
        (Drift, "collapse", {"health.spread": 0.5}, "train longer", "temperature_start"),
        (DDDM, "collapse", {"health.spread": 0.5}, "lower the learning rate", "method.lam"),
        (DDDM, "noise", {"health.spread": 1.5}, "lower the learning rate", "lower method.optimizer.lr"),
    ],
)
def test_a_method_gives_advice_of_its_own(method, name, figures, usual_words, own_words):
    usual, own = (alarms(figures, 0.5, (), advice) for advice in (None, method.advice))
    assert [alarm.name for alarm in usual] == [alarm.name for alarm in own] == [name]
    usual, own = usual[0].message, own[0].message
    assert usual.split(":")[0].split(". ")[0] == own.split(":")[0].split(". ")[0]  # what is seen is the same
    assert usual_words in usual
    assert own_words in own
    assert usual_words not in own
    assert set(method.advice) <= {rule.name for rule in COMMON}


def test_what_has_no_guidance_in_training_is_not_told_of_it():
    message = alarms({"health.shift": 0.5}, 0.5, DDDM.alarms, DDDM.advice)[0].message
    assert "network.sigma_data" in message
    assert "guidance_scale" not in message


def test_what_is_only_distributional_advises_its_own_settings():
    """The rule of calibration is for one method, whose keys its usual advice may name."""
    message = alarms({"denoiser.calibration": 0.1}, 0.5, DDDM.alarms, DDDM.advice)[0].message
    named = re.findall(r"method\.(\w+)", message)
    assert {"lam", "m"} <= set(named) <= set(DDDM.Settings.model_fields)


def has(section, keys):
    """Whether a section of this class has the setting at ``keys``, such as ("optimizer", "lr")."""
    if keys[0] not in section.model_fields:
        return False
    inner = section.model_fields[keys[0]].annotation
    return len(keys) == 1 or (isinstance(inner, type) and issubclass(inner, Section) and has(inner, keys[1:]))


def test_every_key_that_an_alarm_recommends_exists():
    networks, data = ([registry.settings(kind, name) for name in registry.names(kind)] for kind in ("networks", "data"))
    assert {Teacher, DMD2, Drift, DDDM, Consistency, FlowMap} <= set(METHODS)
    for method in METHODS:  # a method advises what it has itself
        kinds = {"method": [method.Settings], "network": networks, "data": data, "trainer": [Trainer]}
        told = [method.advice.get(rule.name, rule.advice) for rule in COMMON] + [rule.advice for rule in method.alarms]
        for advice in told:
            for section, keys in re.findall(r"\b(method|network|data|trainer)((?:\.\w+)+)", advice):
                assert any(has(kind, keys.split(".")[1:]) for kind in kinds[section]), f"{method.__name__}: {section}{keys}"
    assert not has(DMD2.Settings, ["optimizer", "lr"])
    assert not has(Teacher.Settings, ["optimizer", "rate"])  # or nothing has been proved
    assert "batch_size" in Recipe.model_fields
    assert {rule.name for rule in (*COMMON, *EVERY)} == {name for _, name, *_ in ILL}
    for method in METHODS:  # an alarm of a method's own has a name that no common one has
        assert not {rule.name for rule in method.alarms} & {rule.name for rule in COMMON}
