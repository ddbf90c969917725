"""What is measured of a generator, and the watch that measures while it trains."""

import json
import math

import numpy as np
import pytest
import torch

from fewstep import measurement
from fewstep.build import load_data
from fewstep.data import PointData, load_digits, toy_data
from fewstep.errors import UserError
from fewstep.generator import Generator, load
from fewstep.measurement import Watch, drawn, measure, sample_seeds, suite_for, usual_samples
from fewstep.metrics import frechet_distance
from fewstep.metrics.modes import mode_shares
from fewstep.metrics.two_sample import energy_distance
from fewstep.recipe import load_recipe
from fewstep.streams import stream, stream_seed
from fewstep.training.run_folder import RunFolder

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
POINTS = {"name": "mlp", "widths": [8]}
IMAGES = {"name": "unet", "channels": [8], "groups": 4, "head_dim": 4}
FIGURES_OF_POINTS = {"energy", "mmd", "sliced_wasserstein", "modes", "weight_tv", "inside", "variance", "median_radius"}
FIGURES_OF_IMAGES = {"frechet", "frechet_over_floor", "frechet_train", "kernel", "precision", "recall"}
FIGURES_OF_IMAGES |= {"class_accuracy", "within_class_std", "spacing", "train_distance", "copies", "near_copies"}


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 400)
    monkeypatch.setattr(measurement, "IMAGE_SAMPLES", 150)


def make(kind, seed=0):
    """An untrained generator of points of the plane, or of digits; the points drawn in three steps."""
    torch.manual_seed(seed)
    if kind == "points":
        sampler = {"name": "distributional", "steps": 3, "churn": 1.0}
        return Generator((2,), None, 2.0, {**POINTS, "xi_channels": 2}, sampler, denoiser={"name": "distributional"}).eval()
    return Generator((1, 8, 8), 10, 0.75, IMAGES, {"name": "heun", "steps": 2, **GRID}).eval()


def measured_seeds(kind, num, seed=0):
    """Of the samples that are measured under `seed`: points from one, images from one each."""
    return stream_seed(seed, "measured samples") if kind == "points" else sample_seeds(seed, 0, num)


def data_of(kind):
    return toy_data("ring", 500) if kind == "points" else load_digits()


# --- numbers of samples ----------------------------------------------------------------------------------------------


def test_usual_numbers_of_samples(monkeypatch):
    monkeypatch.undo()
    assert (usual_samples(points=True), usual_samples(points=False)) == (10_000, 2_000)
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 7)
    monkeypatch.setattr(measurement, "IMAGE_SAMPLES", 5)
    assert (usual_samples(points=True), usual_samples(points=False)) == (7, 5)


@pytest.mark.parametrize(("kind", "usual"), [("points", 400), ("images", 150)])
def test_a_watch_measures_as_many_as_it_is_told(kind, usual):
    data, asked = data_of(kind), []

    class Counting:
        num_classes, told, latents = None if kind == "points" else 10, None, None

        def sample(self, num, label, seed, steps=None, sampler=None):
            asked.append((num, seed))
            one = seed if kind == "points" else seed[0]
            return torch.randn(num, *data.shape, generator=torch.Generator().manual_seed(one)).clamp(-1, 1)

    for options, num, seed in (({}, usual, 0), ({"num": 50, "seed": 7}, 50, 7)):
        Watch(data, **options)(Counting())
        assert asked.pop() == (num, measured_seeds(kind, num, seed))
    assert not asked


# --- the watch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "names"), [("points", FIGURES_OF_POINTS), ("images", FIGURES_OF_IMAGES)])
def test_a_watch_gives_the_evaluation_s_figures_without_their_errors(kind, names):
    data, generator = data_of(kind), make(kind)
    watch = Watch(data, 150, seed=3)
    found = watch(generator)
    row = measure(suite_for(data, seed=3, num=150), generator, 150, 3, speed=False)
    assert found == {f"eval.{name}": row[name] for name in names & set(row)}
    assert {f"eval.{name}" for name in names - {"variance", "median_radius"}} <= set(found)  # which need a mode that is covered
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert not any("error" in name for name in found)
    if kind == "points":
        assert "energy_error" in row


@pytest.mark.parametrize("kind", ["points", "images"])
def test_the_same_generator_gets_the_same_figures_and_no_other_chance_is_touched(kind):
    """Between two measurements the process may have drawn anything, and may go on drawing as if there had been none."""
    data, generator = data_of(kind), make(kind)
    watch = Watch(data, 50)
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = watch(generator)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    torch.manual_seed(6)
    assert watch(generator) == first
    assert Watch(data, 50)(generator) == first
    assert watch(make(kind, seed=1)) != first
    assert Watch(data, 50, seed=1)(generator) != first


@pytest.mark.parametrize(
    "kind",
    [
        "points",
        "images",
    ],
)
def test_making_a_watch_touches_no_chance(kind):
    data, before = data_of(kind), torch.get_rng_state()
    Watch(data, 50)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_watch_leaves_the_generator_as_it_was():
    generator = make("images").train()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    Watch(load_digits(), 40)(generator)
    assert generator.training
    assert all(p.requires_grad and p.grad is None for p in generator.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


def test_what_is_measured_against_follows_gamma():
    """Modes of weights 1 : 2 : 4 and stds .1, .2, .4: of p^2 they are in proportion to w^2 / s^2, 4/64 : 4/64 : 1 times 16, all alike."""
    data = toy_data("unequal", 500)
    suites = {gamma: suite_for(data, gamma) for gamma in (1.0, 2.0)}
    means, stds, weights = suites[2.0].modes
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(stds, torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64) / 2**0.5)
    share = mode_shares(suites[2.0].target, means, stds, weights)
    assert (share - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / 400)
    usual = mode_shares(suites[1.0].target, *suites[1.0].modes)
    assert (usual - torch.tensor([1, 2, 4]) / 7).abs().max() < 4 * math.sqrt(0.25 / 400)
    distance = energy_distance(suites[1.0].target, suites[2.0].target)
    assert distance.value > 5 * distance.error
    # and the watch measures against it: exact samples of p^2 are near p^2 alone
    samples = data.density.power(2.0).sample(400, torch.Generator().manual_seed(1))

    class Exact:
        num_classes = told = None

        def sample(self, num, label, seed):
            return samples[:num]

    near, far = (Watch(data, 400, gamma)(Exact())["eval.energy"] for gamma in (2.0, 1.0))
    assert abs(near) < far / 5


def test_exact_samples_are_others_than_those_trained_on():
    data = toy_data("ring", 2000, seed=3)
    suite = suite_for(data, seed=3)
    rows = torch.cat([data.train, data.heldout, suite.target, suite.other])
    assert len(rows.unique(dim=0)) == len(rows)
    assert not torch.equal(suite_for(data, seed=4).target, suite.target)


def test_exact_samples_are_made_of_other_chance_than_what_is_measured():
    """A generator's latents are drawn with the same seed."""
    data = toy_data("ring", 2000, seed=3)
    suite = suite_for(data, seed=3)
    for rng in (torch.Generator().manual_seed(3), stream(3, "measured samples")):
        assert not torch.equal(suite.target, data.density.sample(400, rng))


def test_the_power_of_points_of_an_unknown_density_cannot_be_measured():
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    data = PointData("mine", points[:100], points[100:], None)
    assert len(suite_for(data).target) == 50
    with pytest.raises(UserError, match=r"method.gamma is 2.0.* p\^gamma of mine is not known"):
        Watch(data, gamma=2.0)


# --- one measurement -------------------------------------------------------------------------------------------------


def test_a_measurement_says_how_it_was_drawn():
    generator, suite = make("points"), suite_for(data_of("points"))
    own, one = measure(suite, generator, 60, 1), measure(suite, generator, 60, 1, steps=1, speed=False)
    assert (own["sampler"], own["steps"], own["evaluations"]) == ("distributional", 3, 3)
    assert (one["sampler"], one["steps"], one["evaluations"]) == ("distributional", 1, 1)
    assert own["images_per_second"] > 0
    assert "images_per_second" not in one
    assert one["energy"] == energy_distance(generator.sample(60, seed=measured_seeds("points", 60, 1), steps=1), suite.target).value
    assert one["energy"] != own["energy"]
    images = make("images")
    row = measure(suite_for(load_digits()), images, 40, 1, steps=3, sampler="euler", speed=False)
    assert (row["sampler"], row["steps"], row["evaluations"]) == ("euler", 3, 3)
    assert measure(suite_for(load_digits()), images, 40, 1, speed=False)["evaluations"] == 3  # two of Heun's


def test_each_measured_image_has_a_seed_of_its_own_however_they_are_drawn(monkeypatch):
    """A prefix is a prefix, and the batches that they are drawn in are nobody's affair."""
    seeds = sample_seeds(5, 0, 40)
    assert seeds[13:] == sample_seeds(5, 13, 27)
    assert len({*seeds, *sample_seeds(6, 0, 40)}) == 80
    assert all(0 <= seed < 2**64 for seed in seeds)
    generator = make("images")
    label = generator.labels(40)
    whole = torch.cat(list(drawn(generator, 40, label, 5)))
    torch.testing.assert_close(whole, generator.sample(40, label, seeds), rtol=0, atol=1e-3)
    monkeypatch.setattr(measurement, "CHUNK", 13)
    batches = list(drawn(generator, 40, label, 5))
    assert [len(batch) for batch in batches] == [13, 13, 13, 1]
    torch.testing.assert_close(torch.cat(batches), whole, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cat(list(drawn(generator, 20, label[:20], 5))), whole[:20], rtol=0, atol=1e-3)
    assert (torch.cat(list(drawn(generator, 40, label, 6))) - whole).abs().mean() > 0.05


# --- on a cadence ----------------------------------------------------------------------------------------------------

SMALL = ("data.size=500", "network.widths=[8]", "batch_size=16", "steps=8", "method.m=2", "method.sampler_steps=2")
CADENCE = ("trainer.accelerator=cpu", "trainer.log_every=2", "trainer.sample_every=8", "trainer.checkpoint_every=4")


def evaluated(records):
    """Steps of the records that hold figures of a measurement."""
    return [record["step"] for record in records if any(name.startswith("eval.") for name in record)]


@pytest.mark.parametrize(
    ("every", "steps", "due"),
    [(None, [2, 4, 6, 8], []), (3, [2, 3, 4, 6, 8], [3, 6, 8]), (4, [2, 4, 6, 8], [4, 8]), (100, [2, 4, 6, 8], [8])],
)
def test_a_run_writes_its_figures_into_the_records_that_are_due(every, steps, due, done, tmp_path):
    run = tmp_path / "run"
    options = [] if every is None else [f"trainer.evaluate_every={every}", "trainer.evaluate_samples=50"]
    done("train", "dddm/ring", *SMALL, *CADENCE, *options, "--out", run)
    records = [json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == steps
    assert evaluated(records) == due
    for record in records:
        figures = {name: value for name, value in record.items() if name.startswith("eval.")}
        assert all(math.isfinite(value) for value in figures.values())
        assert not any("error" in name for name in figures)
        assert ("eval.energy" in record) == (record["step"] in due)
        assert "denoiser.score" in record
        assert list(record)[-1] == "alarms"
    if due:  # the last is of what was shipped
        recipe = load_recipe("dddm/ring", SMALL)
        shipped = Watch(load_data(recipe.data, recipe.seed), 50)(load(run))
        assert {name: records[-1][name] for name in shipped} == pytest.approx(shipped, rel=1e-8)
        assert len({record["eval.energy"] for record in records if record["step"] in due}) == len(due)


def test_measuring_changes_nothing_that_is_learned(done, tmp_path):
    """Only where the means of the log begin and end."""
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    done("train", "dddm/ring", *SMALL, *CADENCE, "trainer.evaluate_every=3", "trainer.evaluate_samples=50", "--out", watched)
    done("train", "dddm/ring", *SMALL, *CADENCE, "--out", alone)
    for name in ("model.safetensors", "config.json"):
        assert (watched / "model" / name).read_bytes() == (alone / "model" / name).read_bytes()
    means = [{record["step"]: record["denoiser.score"] for record in RunFolder(run).metrics()} for run in (watched, alone)]
    assert means[0][2] == means[1][2]
    assert (means[0][3] + means[0][4]) / 2 == pytest.approx(means[1][4], rel=1e-6)  # 3 and 4 were apart, each of one step


def test_images_are_measured_in_the_number_and_against_the_data_of_the_recipe(done, tmp_path, monkeypatch):
    """Of a teacher too, and against the data as it is: p, and not what the method saw."""
    made = []

    class Spy(Watch):
        def __init__(self, data, num=None, gamma=1.0, seed=0, features=None, device="cpu", keep_best=None):
            made.append((data.name, num, gamma, seed, features))
            super().__init__(data, num, gamma, seed, features, device, keep_best)

    monkeypatch.setattr(measurement, "Watch", Spy)
    network = ["network.channels=[8]", "network.groups=4", "network.head_dim=4", "method.sampler_steps=1"]
    usual = ["batch_size=16", "steps=2", *CADENCE, "trainer.evaluate_every=1"]
    done("train", "teacher/digits", *network, *usual, "--out", tmp_path / "teacher")
    records = RunFolder(tmp_path / "teacher").metrics()
    assert evaluated(records) == [1, 2]
    assert all({f"eval.{name}" for name in FIGURES_OF_IMAGES} <= set(record) for record in records)
    small = ["data.size=500", "network.widths=[8]", "network.bits=3", "trainer.evaluate_samples=60"]
    done("train", "drift/ring", *usual, *small, "method.gamma=2", "--out", tmp_path / "drift")
    assert made == [("digits", None, 1.0, 0, None), ("ring", 60, 2.0, 0, None)]


def test_a_run_is_measured_in_the_features_that_it_names(done, mistake, tmp_path):
    network = ["network.channels=[8]", "network.groups=4", "network.head_dim=4", "method.sampler_steps=1"]
    usual = ["teacher/digits", *network, "batch_size=16", "steps=1", *CADENCE, "trainer.evaluate_every=1", "trainer.evaluate_samples=60"]
    done("train", *usual, "trainer.evaluate_features=pixels-8x8", "--out", tmp_path / "run")
    (record,) = RunFolder(tmp_path / "run").metrics()
    assert "eval.class_accuracy" not in record  # which pixels do not tell
    generator = load(tmp_path / "run")
    pixels = [x.flatten(1) for x in (generator.sample(60, seed=measured_seeds("images", 60)), load_digits().images("heldout"))]
    assert record["eval.frechet"] == pytest.approx(frechet_distance(*pixels), rel=1e-6)
    same = done("train", *usual, "steps=2", "trainer.evaluate_features=pixels-8x8", "--out", tmp_path / "run", "--resume").err
    other = done("train", *usual, "steps=3", "trainer.evaluate_features=digits-v1", "--out", tmp_path / "run", "--resume").err
    told = "trainer.evaluate_features was pixels-8x8 when the run began, and is digits-v1: figures of before and after do not compare"
    assert ("do not compare" in same, told in " ".join(other.split())) == (False, True)
    message = mistake("train", *usual, "trainer.evaluate_features=pixel", "--out", tmp_path / "other")
    assert "trainer.evaluate_features is 'pixel': there are no features 'pixel'" in message
    assert not (tmp_path / "other").exists()


def test_without_a_cadence_nothing_is_prepared(done, tmp_path, monkeypatch):
    def prepared(*arguments, **options):
        raise AssertionError("a watch was made")

    monkeypatch.setattr(measurement, "Watch", prepared)
    done("train", "dddm/ring", *SMALL, *CADENCE, "--out", tmp_path / "run")


def test_a_cadence_that_cannot_be_is_refused(mistake, tmp_path):
    for override, says in (("trainer.evaluate_every=0", "greater than 0"), ("trainer.evaluate_samples=39", "greater than or equal to 40")):
        message = mistake("train", "dddm/ring", *SMALL, override, "--out", tmp_path / "run")
        assert f"{override.replace('=', ' is ')};" in message
        assert says in message
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_measured_is_said_before_anything_is_written(mistake, tmp_path):
    """The power of an unknown density."""
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(400, 2)))
    options = [f"data={{name: points, path: {tmp_path / 'mine.npy'}}}", "network.widths=[8]", "network.bits=3", "method.gamma=2"]
    message = mistake("train", "drift/ring", *options, *CADENCE, "trainer.evaluate_every=1", "--out", tmp_path / "run")
    assert "only gamma 1 can be measured" in message
    assert not (tmp_path / "run").exists()
