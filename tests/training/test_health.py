import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewstep import registry
from fewstep.build import load_data
from fewstep.methods.base import Batch
from fewstep.methods.consistency import Consistency
from fewstep.methods.dddm import DDDM
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.drift import Drift
from fewstep.methods.flow_map import FlowMap
from fewstep.methods.teacher import Teacher
from fewstep.recipe import Recipe, Trainer, load_recipe
from fewstep.sections import Section
from fewstep.training.ema import EMA
from fewstep.training.health import COMMON, Course, alarms, what_to_do
from fewstep.training.looks import BLOCKS, DataLooks, Looks
from fewstep.training.resume import State
from fewstep.training.run_folder import RunFolder
from fewstep.training.standing import peers, teacher_fit

METHODS = [registry.room("methods", name) for name in registry.names("methods")]
EVERY = [rule for method in METHODS for rule in method.alarms]


def data(num=64, classes=4, seed=0):
    """Images about different class means, and their labels."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(num) % classes
    means = torch.rand(classes, 1, 4, 4, generator=torch.Generator().manual_seed(9)) - 0.5
    return means[label] + 0.2 * torch.randn(num, 1, 4, 4, generator=rng), label, means


def figures_of(*looks):
    """What is given after looking at each (samples, label, real, its label)."""
    pooled = Looks()
    for look in looks:
        pooled.add(*look)
    return {key.removeprefix("health."): value for key, value in pooled.take().items()}


def test_spread_is_the_pooled_unbiased_deviation_over_the_real_one():
    x, label, _ = data(200, 4)
    real, real_label, _ = data(300, 5, seed=1)

    def pooled(x, label):
        pixels, label = x.flatten(1).double().numpy(), label.numpy()
        squares = sum(((pixels[label == k] - pixels[label == k].mean(0)) ** 2).sum(0) for k in np.unique(label))
        return np.sqrt((squares / (len(label) - len(np.unique(label)))).mean())

    spread = figures_of((x, label * 2, real, real_label))["spread"]  # a class with no items counts for nothing
    assert spread == pytest.approx(pooled(x, label) / pooled(real, real_label), rel=1e-4)
    without = figures_of((x, None, real, None))["spread"]
    expected = np.sqrt(x.flatten(1).numpy().var(0, ddof=1).mean() / real.flatten(1).numpy().var(0, ddof=1).mean())
    assert without == pytest.approx(expected, rel=1e-4)


def test_a_collapsed_set_has_no_spread_and_half_the_noise_half_of_it():
    real, label, means = data(400)
    assert figures_of((means[label], label, real, label))["spread"] < 1e-5
    halved = means[label] + (real - means[label]) / 2
    assert figures_of((halved, label, real, label))["spread"] == pytest.approx(0.5, rel=1e-5)
    assert figures_of((real, label, real, label))["spread"] == 1


@pytest.mark.parametrize(("batch", "classes"), [(1, None), (1, 3), (2, 10), (4, None), (16, 100), (16, 1), (64, 10)])
def test_batches_of_any_size_and_classes_are_judged_right(batch, classes):
    """Draws of the true law, and of one half as wide and moved by half of its width: the errors are those of repeated draws."""
    rng = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(classes or 1, 8, generator=rng)

    def draw(width=1.0, move=0.0):
        label = torch.randint(classes or 1, (batch,), generator=rng)
        x = centres[label] + width * torch.randn(batch, 8, generator=rng) + move
        return x, label if classes else None

    for width, move in ((1.0, 0.0), (0.5, 0.5)):
        found = {"spread": [], "shift": []}
        total = (1 + (centres.var(0, correction=0).mean().item() if classes else 0.0)) ** 0.5
        for _ in range(4):
            pooled, looks = Looks(), 0
            while looks < 500 // batch + 60:
                pooled.add(*draw(width, move), *draw())
                looks += 1
                given = pooled.take() if looks % 20 == 0 else {}
                assert all(np.isfinite(value) for value in given.values())
                for name, kept in found.items():
                    if f"health.{name}" in given:
                        kept.append((given[f"health.{name}"], given[f"health.{name}_error"]))
        for name, expected in (("spread", width), ("shift", move / total)):
            values, errors = np.array(found[name]).T
            assert len(values) >= 4, "never worth something"
            assert (errors <= 0.1 * values.clip(1)).all()
            low, high = (values.clip(0) + side * 2 * errors for side in (-1, 1))
            assert ((low <= expected + 0.02) & (expected - 0.02 <= high)).mean() > 0.7, (name, width, values, errors)  # of about 95%
            raised = [alarms({f"health.{name}": v, f"health.{name}_error": e}, 1.0) for v, e in zip(values, errors, strict=True)]
            if width == 1:
                assert not any(raised), (name, values, errors)
            elif name == "spread":
                assert np.mean([bool(found) for found in raised]) > 0.8, (values, errors)


def test_one_item_gives_no_figure():
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    assert figures_of((x, None, x, None)) == {}
    assert figures_of((x, torch.tensor([7]), x, torch.tensor([7]))) == {}
    assert figures_of((x.repeat(64, 1), None, x.repeat(64, 1), None)) == {}  # nor do real items that are all alike


@pytest.mark.parametrize("seed", range(4))
def test_a_shift_that_averages_to_nothing_is_seen(seed):
    rng = torch.Generator().manual_seed(seed)
    real, x = (torch.randn(2000, 2, generator=rng) for _ in range(2))
    moved = figures_of((x + torch.tensor([1.0, -1.0]), None, real, None))
    assert abs(moved["shift"] - 1) < 4 * moved["shift_error"]
    assert moved["shift_error"] < 4 * (2 / 2000) ** 0.5  # that of a mean of each side, four times at the most
    assert figures_of((x, None, real, None))["shift"] < 0.1


def test_saturation_by_hand_and_images_alone_have_it():
    x = torch.tensor([0.5, 1.2, -1.2, -0.9]).repeat(20).reshape(20, 1, 2, 2)
    real = 0.9 * torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    found = figures_of((x, None, real, None))
    assert (found["saturation"], found["saturation_error"]) == (0.5, 0.0)
    ink = torch.tensor([-1.0, 1.0, 0.0, 0.0]).repeat(20).reshape(20, 1, 2, 2)
    found = figures_of((x, None, ink, None))  # half of its elements lie at the ends of the range, and an error puts half of those beyond
    assert (found["saturation"], found["saturation_error"]) == (0.25, 0.0)
    noisy = ink + 0.5 * torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert figures_of((noisy.clamp(-1.4, 1.4), None, ink, None))["saturation"] < 0.15
    assert "saturation" not in figures_of((x.flatten(1), None, real.flatten(1), None))


def test_large_images_are_looked_at_in_part_and_few_classes_wait_in_little_memory():
    rng, pooled = torch.Generator().manual_seed(0), Looks()
    for step in range(6):
        x, real = (torch.randn(2, 3, 64, 64, generator=rng) for _ in range(2))
        pooled.add(x, torch.tensor([2 * step, 2 * step + 1]), real, torch.tensor([2 * step, 2 * step + 1]))
    tensors = pooled.tensors()
    assert tensors["sums"].shape == (2, BLOCKS, 4096)
    assert tensors["waiting real"].shape == (12, 4096)  # no two of a class so far
    pooled.data.add(real, torch.tensor([0, 999]))
    assert pooled.tensors()["data classes"].numel() < 300_000


def test_what_was_pooled_goes_on_to_the_last_bit_after_a_stop():
    rng = torch.Generator().manual_seed(0)
    looks = [(torch.randn(3, 4, generator=rng), torch.arange(3), torch.randn(3, 4, generator=rng), torch.arange(3)) for _ in range(60)]
    straight, stopped = Looks(), Looks()
    for number, look in enumerate(looks):
        for pooled in (straight, stopped):
            pooled.add(*look)
            pooled.data.add(*look[2:])
        if number in (7, 30):
            saved = {key: value.clone() for key, value in stopped.tensors().items()}
            stopped = Looks()
            stopped.load_tensors(saved, torch.device("cpu"))
    assert straight.data.figures(1.0) == stopped.data.figures(1.0)
    taken = straight.take()
    assert {"health.spread", "health.shift"} <= set(taken)
    assert taken == stopped.take()


def test_labels_that_tell_nothing_and_a_wrong_sigma_data_are_seen_and_right_ones_are_not():
    rng = torch.Generator().manual_seed(0)
    centres, right, wrong = torch.randn(10, 16, generator=rng), DataLooks(), DataLooks()
    for _ in range(40):
        label = torch.randint(10, (64,), generator=rng)
        x = 0.3 * centres[label] + torch.randn(64, 16, generator=rng)
        right.add(x, label)
        wrong.add(x, label[torch.randperm(64, generator=rng)])
    std = (1 + 0.09 * centres.square().mean().item()) ** 0.5
    figures = right.figures(std)
    assert figures["health.scale"] == pytest.approx(1, abs=0.02)
    between = 0.09 * centres.var(0, correction=0).mean().item()
    assert figures["health.classes"] == pytest.approx(between / (1 + between), abs=0.02)
    assert alarms(figures, 1.0) == []
    assert [alarm.name for alarm in alarms(wrong.figures(std), 1.0)] == ["labels"]
    assert [alarm.name for alarm in alarms(right.figures(10 * std), 1.0)] == ["scale"]
    assert "health.classes" not in DataLooks().figures(1.0)


@pytest.mark.parametrize("epochs", [1, 3, 9])
def test_labels_dealt_anew_tell_nothing_however_often_the_items_are_seen(epochs):
    """In several epochs the same items come again: chance does not become less, which once hid that labels were wrong."""
    rng = torch.Generator().manual_seed(0)
    centres, label = torch.randn(10, 16, generator=rng), torch.arange(1000) % 10
    x = centres[label] + torch.randn(1000, 16, generator=rng)
    dealt, looks = label[torch.randperm(1000, generator=rng)], {"right": DataLooks(), "dealt": DataLooks()}
    for _ in range(epochs):
        for part in torch.randperm(1000, generator=rng).split(50):
            looks["right"].add(x[part], label[part])
            looks["dealt"].add(x[part], dealt[part])
    figures = looks["dealt"].figures(1.0, 1000)
    assert figures["health.classes_error"] == pytest.approx(18**0.5 * (1 + (1000 * epochs - 1) / 1000) / (1000 * epochs))
    assert abs(figures["health.classes"]) < 2 * figures["health.classes_error"] < 0.02
    whole = x.var(0).sum() / x[label == 0].var(0).sum()  # about 2: half of the variance is between classes
    assert looks["right"].figures(1.0, 1000)["health.classes"] == pytest.approx(1 - 1 / whole.item(), abs=0.1)


def test_samples_that_fly_apart_have_a_spread_though_it_is_uncertain():
    """A few of a batch far out: the error of the spread is large, and so is the spread."""
    rng, pooled = torch.Generator().manual_seed(0), Looks()
    x, real = (torch.randn(256, 2, generator=rng) for _ in range(2))
    x[:8] *= 300
    pooled.add(x, None, real, None)
    figures = pooled.peek()
    assert figures == pooled.take()
    assert figures["health.spread_error"] > 0.1 * figures["health.spread"] > 1
    assert {"noise"} <= {alarm.name for alarm in alarms(figures, 1.0)}
    assert "health.spread" not in pooled.take()


def test_a_rate_that_is_far_too_high_is_no_student_that_has_not_moved(done, tmp_path):
    """By the first record the samples have flown apart: where they began was looked at before the first update."""
    small = ["network.widths=[16]", "network.bits=3", "batch_size=64", "steps=40", "trainer.log_every=10", "data.size=500"]
    said = done("train", "dmd2/ring", *small, "method.generator_optimizer.lr=3", "--out", tmp_path / "run").err
    first, *rest = RunFolder(tmp_path / "run").metrics()
    assert first["health.spread"] > 3
    assert first["health.spread_first"] < 2
    assert not any("health.spread_first" in record for record in rest)
    assert "raise method.generator_optimizer.lr" not in said
    assert re.search(r"noise: .*It was better before \(\d+%\)\. Lower method\.generator_optimizer\.lr", said)


class Known(torch.nn.Module):
    """The exact denoiser of a Gaussian about `mean`."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, s, label=None):
        s = s.view(-1, *[1] * (x.ndim - 1))
        return self.mean + (x - self.mean) * self.std**2 / (self.std**2 + s**2)


class Teaches:
    """What `teacher_fit` needs of a generator."""

    def __init__(self, mean, std, sigma_data):
        self.denoiser, self.sigma_data = Known(mean, std), sigma_data


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_the_fit_of_a_teacher(shape):
    """Of exact denoisers of a Gaussian: 1 for its own data, where a straight line is the best; more for any other."""
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(1))
    batches = [Batch(x[:100]), Batch(x[100:])]
    assert teacher_fit(Teaches(0.0, 1.0, 1.0), batches) == pytest.approx(1.0, abs=0.15)
    for mean, std in ((2.0, 0.3), (0.0, 0.1), (-3.0, 1.0)):
        assert teacher_fit(Teaches(mean, std, 1.0), batches) > 1.2
    split = [Batch(x[i : i + 20]) for i in range(0, 200, 20)]
    assert teacher_fit(Teaches(2.0, 0.3, 1.0), split) == pytest.approx(teacher_fit(Teaches(2.0, 0.3, 1.0), batches), rel=1e-6)


@pytest.mark.parametrize(("decay", "warmup", "behind"), [(0.9999, 20.0, 1 / 21), (0.0, 0.0, 0.0), (0.9, 0.0, 0.009), (0.99999, 0.0, 1.0)])
def test_the_age_of_the_average_is_that_of_its_weights(decay, warmup, behind):
    ema = EMA(torch.nn.Linear(1, 1, bias=False), decay, warmup)
    with torch.no_grad():
        ema.module.weight.fill_(0.0)
        for step in range(1, 1001):
            ema.update(torch.nn.Linear(1, 1, bias=False).requires_grad_(False).apply(lambda m, step=step: m.weight.fill_(step)))
    # the weights are the steps' numbers: the average is as far behind the last as its weights are old
    assert 1000 - ema.module.weight.item() == pytest.approx(ema.age, rel=1e-3, abs=1e-2)
    assert ema.age / 1000 == pytest.approx(behind, abs=0.01)
    again = EMA(torch.nn.Linear(1, 1), decay, warmup)
    again.go_on_from(1000)
    assert again.age == ema.age


def test_what_has_not_moved_wants_more_and_what_was_better_wants_less():
    def told(*values):
        course = Course()
        for value in values:
            figures = {"health.spread": value, "health.spread_error": 0.02}
            course.follow(figures)
        (alarm,) = alarms(figures, 0.5, DMD2.alarms, DMD2.advice, course, DMD2.rate)
        again = Course()
        again.load_state_dict(course.state_dict())
        assert alarms(figures, 0.5, DMD2.alarms, DMD2.advice, again, DMD2.rate) == [alarm]
        return alarm.name, alarm.message

    name, message = told(2.0, 1.95, 1.9)
    assert name == "noise"
    assert message.endswith("It has hardly moved since the start (200%). Train longer (steps), or raise method.generator_optimizer.lr")
    name, message = told(1.1, 1.05, 2.0)
    assert name == "noise"
    assert message.endswith("It was better before (105%). Lower method.generator_optimizer.lr")
    name, message = told(3.0, 1.5, 1.45)
    assert "It has improved from 300%: train longer" in message
    assert told(0.1, 0.15)[0] == "collapse"
    assert "hardly moved" in told(0.1, 0.15)[1]
    assert "better before (95%). The fake network lags" in told(0.1, 0.95, 0.4)[1]


@pytest.mark.parametrize("rule", [rule for rule in (*COMMON, *EVERY) if rule.sound is not None], ids=lambda rule: rule.name)
def test_a_figure_and_what_it_was_before_have_one_unit(rule):
    """A message in per cent has its history in per cent, one in numbers in numbers: "23% ... better before (0.95)" is two units."""
    course, bad = Course(), rule.sound + 5 if rule.high < 9 else rule.sound - 0.5
    for value in (rule.sound + 0.01, bad):
        course.follow({rule.figure: value}, (rule,))
    message = what_to_do(rule, rule.advice, bad, 0.0, course, "rate")
    assert re.search(r"better before \((\S+)\)", message)[1].endswith("%") == ("%" in rule.message.format(value=bad))


def test_an_alarm_waits_until_the_figure_is_certain():
    def raised(value, error):
        return [alarm.name for alarm in alarms({"health.spread": value, "health.spread_error": error}, 0.5)]

    assert raised(0.7, 0.06) == []
    assert raised(0.7, 0.04) == ["collapse"]
    assert raised(1.4, 0.06) == []
    assert raised(1.4, 0.04) == ["noise"]


@pytest.mark.parametrize(("share", "raised"), [(0.0, True), (0.003, False), (0.1, False)])
def test_labels_that_tell_little_tell_something(share, raised):
    """Cats and dogs of CIFAR-10: their classes explain 0.3% of the pixels' variance, which is 12 standard errors of 20,000 items."""
    rng = torch.Generator().manual_seed(0)
    x, label = torch.randn(20_000, 1, 4, 4, generator=rng), torch.arange(20_000) % 2
    x += (share / (1 - share)) ** 0.5 * (2.0 * label - 1)[:, None, None, None]  # the means of the classes lie this far from their middle
    looks = DataLooks()
    looks.add(x, label)
    figures = looks.figures(None)
    assert figures["health.classes"] == pytest.approx(share, abs=1e-3)
    assert figures["health.classes_error"] == pytest.approx(2**0.5 / 20_000)
    assert [alarm.name for alarm in alarms(figures, 0.5)] == ["labels"] * raised


HEALTHY = {
    "health.spread": 1.0,
    "health.shift": 0.05,
    "health.saturation": 0.0,
    "health.scale": 1.1,
    "health.classes": 0.3,
    "health.lag": 0.05,
    "health.averaged": 20.0,
    "health.teacher": 0.6,
    "health.batch": 256.0,
    "health.reach": 5.0,
    "guidance.reach": 5.0,
    "generator.disagreement": 0.5,
    "generator.gan_pull": 0.5,
    "generator.escaped": 0.02,
    "denoiser.calibration": 0.9,
    "denoiser.denoising": 0.4,
    "denoiser.levels": 0.5,
    "student.consistency": 0.3,
    "student.flow": 0.3,
}
ILL = [
    (DMD2, "collapse", "health.spread", 0.5, r"50%.*diversity.*dfake_gen_update_ratio.*guidance_optimizer\.lr"),
    (DMD2, "noise", "health.spread", 1.6, r"160%.*noise.*generator_optimizer\.lr"),
    (DMD2, "shift", "health.shift", 0.4, "0.40 standard deviations.*sigma_data.*guidance_scale"),
    (DMD2, "saturation", "health.saturation", 0.2, "20% of the pixels.*guidance_scale.*gamma"),
    (DMD2, "scale", "health.scale", 5.0, r"5 times network\.sigma_data.*Set network\.sigma_data"),
    (DMD2, "labels", "health.classes", 0.001, "labels tell nothing about the items.*data.label_column"),
    (DMD2, "lag", "health.lag", 0.5, r"50% of the run behind.*method\.ema_decay"),
    (DMD2, "unaveraged", "health.averaged", 0.0, r"average over 0 updates.*Set method\.ema_decay to 0\.99.*final beside the learning rate"),
    (DMD2, "still", "health.reach", 0.001, "add up to 0.001 of a weight.*Raise the learning rate by as much"),
    (DMD2, "teacher", "health.teacher", 3.0, r"3\.0 times as badly.*made for other data.*method\.teacher"),
    (Drift, "batch", "health.batch", 4.0, r"from 4 others.*Raise batch_size"),
    (DMD2, "disagreement", "generator.disagreement", 2.5, r"2.5 times.*guidance_optimizer\.lr.*dfake_gen_update_ratio"),
    (DMD2, "frozen", "guidance.reach", 1e-6, r"add up to 1e-06.*Raise method\.guidance_optimizer\.lr by as much"),
    (DMD2, "gan", "generator.gan_pull", 50.0, r"50 times as hard.*Set method\.gan_weight_generator to auto"),
    (Drift, "escape", "generator.escaped", 0.7, "70% of the samples.*temperature_start"),
    (Drift, "transport", "generator.plan_error", 0.3, r"30% of the mass to the wrong samples.*sinkhorn_iterations"),
    (DDDM, "overconfident", "denoiser.calibration", 0.2, "20% as far .*xi is being ignored.*method.lam.*method.m"),
    (Teacher, "untrained", "denoiser.denoising", 0.97, r"0.97.*method\.optimizer\.lr"),
    (Teacher, "levels", "denoiser.levels", -5.8, r"-5\.8 from ln\(sigma_data\) - 1.*Set method\.sigma_mean"),
    (Consistency, "unlearned", "student.consistency", 1.6, r"1.60.*knows nothing.*lower method\.optimizer\.lr.*sigma_data"),
    (FlowMap, "unlearned", "student.flow", 1.6, r"1.60.*knows nothing.*lower method\.optimizer\.lr.*sigma_data"),
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
    assert {alarm.name for alarm in alarms({"health.shift": float("nan")}, 1.0)} == {"shift"}
    assert {alarm.name for alarm in alarms({"generator.disagreement": float("nan")}, 1.0, DMD2.alarms)} == {"disagreement"}


def test_an_alarm_of_one_method_is_not_another_s():
    assert alarms({"generator.disagreement": 2.5, "denoiser.calibration": 0.2}, 1.0) == []
    assert alarms({"denoiser.calibration": 0.2}, 1.0, DMD2.alarms, DMD2.advice) == []
    assert alarms({"generator.disagreement": 2.5}, 1.0, DDDM.alarms, DDDM.advice) == []


def test_the_first_fifth_of_a_run_is_left_alone():
    ill = {"health.spread": 0.1, "health.shift": 3.0, "generator.disagreement": 2.5}
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
        (DMD2, "noise", {"health.spread": 1.5}, "Lower the learning rate", "Lower method.generator_optimizer.lr"),
        (DMD2, "shift", {"health.shift": 0.5}, "train longer", "method.guidance_scale"),
        (DMD2, "saturation", {"health.saturation": 0.5}, "or the guidance", "method.gamma"),
        (Drift, "collapse", {"health.spread": 0.5}, "train longer", "temperature_start"),
        (DDDM, "collapse", {"health.spread": 0.5}, "lower the learning rate", "method.lam"),
        (DDDM, "noise", {"health.spread": 1.5}, "Lower the learning rate", "Lower method.optimizer.lr"),
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
        told += [method.rate, *(words or "" for rule in (*COMMON, *method.alarms) for words in (rule.unmoved, rule.lost))]
        for advice in told:
            for section, keys in re.findall(r"\b(method|network|data|trainer)((?:\.\w+)+)", advice):
                assert any(has(kind, keys.split(".")[1:]) for kind in kinds[section]), f"{method.__name__}: {section}{keys}"
    assert not has(DMD2.Settings, ["optimizer", "lr"])
    assert not has(Teacher.Settings, ["optimizer", "rate"])  # or nothing has been proved
    assert "batch_size" in Recipe.model_fields
    assert {rule.name for rule in (*COMMON, *EVERY)} == {name for _, name, *_ in ILL}
    for method in METHODS:  # an alarm of a method's own has a name that no common one has
        assert not {rule.name for rule in method.alarms} & {rule.name for rule in COMMON}


def test_a_method_that_advises_on_an_alarm_by_its_older_name_is_heard():
    (raised,) = alarms({"health.shift": 0.5}, 1.0, advice={"drift": "Warm it up"})
    assert raised.name == "shift"
    assert "Warm it up" in raised.message


@pytest.mark.parametrize("items", [100, None])
def test_a_run_knows_how_often_its_items_come_again(items):
    """The size of the data reaches the figure of the classes; that of a stream is not known."""
    method = SimpleNamespace(ships="denoiser", turns=(), networks={"denoiser": object()})
    state = State(method, (), None, None, {}, {}, None, 0, 10, items=items)
    state.looks.data.add(*data(128)[:2])
    repeats = 127 / items if items else 0
    assert state.health()["health.classes_error"] == pytest.approx(6**0.5 * (1 + repeats) / 128)


def test_a_sample_is_compared_with_those_of_its_class():
    x = torch.zeros(3, 2)
    labels = torch.tensor([0, 0, 0]), torch.tensor([0, 1, 1])
    assert peers([Batch(x, label) for label in labels], 6) == pytest.approx((4 * 4 + 2 * 2) / 6)
    assert peers([Batch(x), Batch(x)], 6) == 6
    assert peers([], 6) == 6


def test_a_small_batch_of_many_classes_is_told(done, tmp_path):
    small = ("network.widths=[16]", "trainer.accelerator=cpu", "trainer.log_every=1", "steps=2", "batch_size=40")
    done("train", "drift/digits", *small, "--out", tmp_path / "run")
    record = RunFolder(tmp_path / "run").metrics()[-1]
    assert 4 <= record["health.batch"] < 8  # 40 items of 10 classes
    assert "batch" in record["alarms"]


def test_a_loop_tells_its_run_the_size_of_the_data(done, tmp_path, monkeypatch):
    sizes, health = set(), State.health
    monkeypatch.setattr(State, "health", lambda self: sizes.add(self.items) or health(self))
    done("train", "drift/ring", "steps=2", "trainer.log_every=1", "trainer.accelerator=cpu", "--out", tmp_path / "run")
    assert sizes == {load_data(load_recipe("drift/ring").data).train_size}


def test_an_alarm_lasts_until_its_figure_is_known_again():
    course = Course()
    seen = {"health.spread": 0.5}
    assert course.after(["collapse"], seen) == ["collapse"]
    assert course.after([], {"health.shift": 0.0}) == ["collapse"]  # no record of the spread
    again = Course()
    again.load_state_dict(course.state_dict())
    for one in (course, again):
        assert one.after(["shift"], {"health.shift": 0.5}) == ["shift", "collapse"]
        assert one.after([], {"health.spread": 1.0}) == ["shift"]
        assert one.after([], {"health.shift": 0.0, "health.spread": 1.0}) == []
    assert course.after(["forgotten"], seen) == ["forgotten"]  # of another version, which nothing here can know
    assert course.after([], {}) == []
