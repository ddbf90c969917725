"""`fewstep evaluate` with other features, references and protocols, on a finished tiny run."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import untrained
from fewstep import measurement
from fewstep.data import load_digits
from fewstep.evaluation import _warnings, run_recipe
from fewstep.files import sha256_of
from fewstep.generator import load
from fewstep.measurement import drawn, labels_for, sample_seeds, suite_for
from fewstep.metrics import frechet_distance
from fewstep.metrics.classifiers import load_classifier
from fewstep.metrics.features import DigitClassifier, extract
from fewstep.metrics.inception import ScriptedFeatures
from fewstep.metrics.statistics import pixel_sha256

DIGITS = load_digits()


class Means(nn.Module):
    """Bytes of any size to the means over a 2 x 2 grid, and their squares: 8 features of a grey image."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(img[:, :1].float() / 255, 2).flatten(1)
        return torch.cat([x, x * x], 1)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(teacher_run, tmp_path):
    return shutil.copytree(teacher_run, tmp_path / "run")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def samples_of(run, num, seed, steps, how=None):
    generator = load(run)
    return generator.sample(num, labels_for(generator, num, seed, None, how), sample_seeds(seed, 0, num), steps)


def test_the_record_of_how_it_was_measured(done, run):
    out = done("evaluate", run, "-n", 60, "--steps", 1).out
    found = results(run)
    assert found["protocol"] == {
        "n": 60,
        "features": {"name": "digits-v1", "sha256": None},
        "reference": {"what": "held-out split", "num": 360, "sha256": pixel_sha256(DIGITS.heldout, 8.0)},
        "quantisation": "none",
        "labels": "balanced",
        "seeds": [0],
        "floor_n": 60,
    }
    bias = found["rows"]["teacher, 1 evaluation"]["frechet_bias"]
    assert f"n = 60 is below 10,000: FD is too large by about {bias:.3g} (FD of half as many minus FD" in out
    assert found["best"] is None
    assert "self-test" not in out


def test_features_of_a_script(done, run, scripted, cache):
    done("evaluate", run, "-n", 60, "--steps", 1, "--features", scripted)
    found = results(run)
    assert found["features"] == "means"
    assert found["protocol"]["features"] == {"name": "means", "sha256": sha256_of(scripted)}
    assert found["protocol"]["quantisation"] == "bytes"
    network = ScriptedFeatures(scripted)
    a, b = network(samples_of(run, 60, 0, 1)), network(DIGITS.images("heldout"))
    assert found["rows"]["teacher, 1 evaluation"]["frechet"] == pytest.approx(frechet_distance(a, b), rel=1e-6)
    kept = sorted(path.name for path in (cache / "statistics").iterdir())
    assert len(kept) == 2  # of the train split and the held-out one
    done("evaluate", run, "-n", 60, "--steps", 1, "--features", scripted)
    assert results(run)["rows"]["teacher, 1 evaluation"]["frechet"] == found["rows"]["teacher, 1 evaluation"]["frechet"]
    assert sorted(path.name for path in (cache / "statistics").iterdir()) == kept


def test_statistics_from_elsewhere(done, run, tmp_path):
    features = extract(DigitClassifier.load(), DIGITS.images("train")[:500]).double().numpy()
    np.savez(tmp_path / "ref.npz", mu=features.mean(0), sigma=np.cov(features.T))
    out = done("evaluate", run, "-n", 60, "--steps", 1, "--reference", tmp_path / "ref.npz").out
    found, row = results(run), results(run)["rows"]["teacher, 1 evaluation"]
    samples = extract(DigitClassifier.load(), samples_of(run, 60, 0, 1))
    assert row["frechet"] == pytest.approx(frechet_distance(samples, torch.from_numpy(features)), rel=1e-6)
    assert "precision" not in row
    assert found["protocol"]["reference"] == {"what": "a file of statistics", "num": None, "sha256": sha256_of(tmp_path / "ref.npz")}
    assert "to the statistics ref.npz in the features digits-v1; floor: FD of the real held-out split" in out
    assert next(iter(found["rows"])) == found["floor_of"] == "real held-out split"


def test_our_own_statistics_have_all_figures(done, run, scripted, cache):
    done("evaluate", run, "-n", 150, "--steps", 1, "--features", scripted)
    usual = results(run)["rows"]["teacher, 1 evaluation"]
    heldout = next(path for path in (cache / "statistics").iterdir() if np.load(path)["num"] == 360)
    done("evaluate", run, "-n", 150, "--steps", 1, "--features", scripted, "--reference", heldout)
    row = results(run)["rows"]["teacher, 1 evaluation"]
    for name in ("frechet", "kernel", "precision", "recall", "frechet_bias"):
        assert row[name] == pytest.approx(usual[name], rel=1e-9), name


@pytest.mark.parametrize("chunk", [2500, 40])
def test_the_edm_protocol(chunk, done, run, scripted, monkeypatch):
    """Three blocks with seeds of their own, classes at random, to the train split: the least, and the mean."""
    monkeypatch.setattr(measurement, "CHUNK", chunk)
    out = done("evaluate", run, "--protocol", "edm", "-n", 100, "--steps", 1, "--features", scripted).out
    found, row = results(run), results(run)["rows"]["teacher, 1 evaluation"]
    network, generator = ScriptedFeatures(scripted), load(run)
    real, blocks = network(DIGITS.images("train")), []
    for seed in (0, 50_000, 100_000):
        label = labels_for(generator, 100, seed, None, "uniform")
        seeds = sample_seeds(seed, 0, 100)
        parts = [generator.sample(min(chunk, 100 - i), label[i : i + chunk], seeds[i : i + chunk], 1) for i in range(0, 100, chunk)]
        blocks.append(frechet_distance(network(torch.cat(parts)), real))
    assert row["frechet_blocks"] == pytest.approx(blocks, rel=1e-6)
    assert row["frechet"] == min(row["frechet_blocks"])
    assert row["frechet_mean"] == pytest.approx(sum(blocks) / 3, rel=1e-6)
    assert row["frechet_over_floor"] == pytest.approx(row["frechet"] / found["floor"])
    assert len({f"{value:.9f}" for value in blocks}) == 3
    assert "the least of 3 blocks, from seeds 0, 50000, 100000) to 1,437 training images" in out
    assert "this evaluation departs from the protocol edm: 100 samples a block, not 50,000; features means, not inception-2015-12-05" in out
    assert found["protocol"]["labels"] == "uniform"
    assert found["protocol"]["reference"]["sha256"] == pixel_sha256(DIGITS.train, 8.0)


def test_images_are_drawn_in_chunks_with_a_seed_each(run, monkeypatch):
    monkeypatch.setattr(measurement, "CHUNK", 30)
    generator = load(run)
    label = labels_for(generator, 70, 5, None)
    batches = list(drawn(generator, 70, label, 5, 1))
    assert [len(batch) for batch in batches] == [30, 30, 10]
    assert torch.equal(batches[1], generator.sample(30, label[30:60], sample_seeds(5, 30, 30), 1))


def test_real_images_against_real_ones(done, run):
    out = done("evaluate", run, "-n", 60, "--steps", 1, "--self-test").out
    found = results(run)["self_test"]
    assert found["num"] == 718
    assert f"self-test: FD of two halves of the real train split, 718 images each: {found['frechet']:.3g}" in out


def test_a_teacher_is_measured_with_guidance(done, mistake, run, tmp_path):
    """Asked for, or its own; every step then takes two evaluations, and a line says so."""
    plain = done("evaluate", run, "-n", 60, "--steps", 1).out
    before = results(run)["rows"]["teacher, 1 evaluation"]
    assert "guidance" not in plain
    asked = done("evaluate", run, "-n", 60, "--steps", 1, "--guidance-scale", 3).out
    row = results(run)["rows"]["teacher, 2 evaluations"]
    assert "teacher, 2 evaluations: with guidance scale 3, which doubles the evaluations of every step" in asked
    assert (row["guidance_scale"], row["frechet"] != before["frechet"]) == (3.0, True)
    config = json.loads((run / "model" / "config.json").read_text())
    config["sampler"]["guidance_scale"] = 3.0
    (run / "model" / "config.json").write_text(json.dumps(config))
    done("evaluate", run, "-n", 60, "--steps", 1)
    own = results(run)["rows"]["teacher, 2 evaluations"]
    assert own["frechet"] == row["frechet"]
    done("evaluate", run, "-n", 60, "--steps", 1, "--guidance-scale", 1)
    assert results(run)["rows"]["teacher, 1 evaluation"]["frechet"] == before["frechet"]
    assert "--guidance-scale is nan; give a finite number" in mistake("evaluate", run, "-n", 60, "--guidance-scale", "nan")
    config["info"]["label_dropout"] = 0.0
    del config["sampler"]["guidance_scale"]
    (run / "model" / "config.json").write_text(json.dumps(config))
    said = mistake("evaluate", run, "-n", 60, "--guidance-scale", 2)
    assert "--guidance-scale is 2.0; no model here but students was trained with label dropout: leave it out" in said


def test_a_model_of_posterior_draws_is_measured_with_guidance(done, dddm_run, tmp_path):
    """As a teacher is: it learns the data by itself, with labels and without."""
    run = shutil.copytree(dddm_run, tmp_path / "run")
    done("evaluate", run, "-n", 60, "--steps", 2)
    plain = results(run)["rows"]["dddm, 2 evaluations"]
    asked = done("evaluate", run, "-n", 60, "--steps", 2, "--guidance-scale", 3).out
    row = results(run)["rows"]["dddm, 4 evaluations"]
    assert "dddm, 4 evaluations: with guidance scale 3, which doubles the evaluations of every step" in asked
    assert (row["guidance_scale"], row["frechet"] != plain["frechet"]) == (3.0, True)


def test_a_churn_that_is_asked_for_is_that_of_sampling_and_is_told(done, mistake, dddm_run, teacher_run, tmp_path):
    run = shutil.copytree(dddm_run, tmp_path / "dddm")
    plain = done("evaluate", run, "-n", 60, "--steps", "1,3")
    before = results(run)["rows"]
    asked = done("evaluate", run, "-n", 60, "--steps", "1,3", "--churn", 0)
    rows = results(run)["rows"]
    several, once = "dddm, 3 evaluations", "dddm, 1 evaluation"
    assert rows[once]["frechet_train"] == before[once]["frechet_train"]  # the only step ends in the sample, and adds no noise
    assert rows[several]["frechet_train"] != before[several]["frechet_train"]
    assert (rows[several]["churn"], "churn" in before[several]) == (0.0, False)
    suite = suite_for(DIGITS, num=60)
    label = labels_for(load(run), 60, 0, DIGITS.labels("train"))
    samples = load(run).sample(60, label, sample_seeds(0, 0, 60), 3, churn=0.0)
    assert rows[several]["frechet_train"] == pytest.approx(suite.measure(samples, label)["frechet_train"], rel=1e-6)
    told = f"{several}: with churn 0, new noise in each step, in place of the generator's own"
    assert (told in asked.out, "with churn" in plain.out) == (True, False)
    assert "with churn 0, new noise in each step" in (run / "report.html").read_text()
    assert "--churn is 2.0; give a number from 0, for no new noise, to 1" in mistake("evaluate", run, "-n", 60, "--churn", 2)
    assert "--churn is 0.5; no sampler here can add noise in its steps" in mistake("evaluate", teacher_run, "-n", 60, "--churn", 0.5)


def test_results_of_one_protocol_stand_in_one_table(done, mistake, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    done("evaluate", other, "-n", 60, "--steps", 1, "--seed", 3)
    out = done("evaluate", run, "-n", 60, "--steps", 1, "--beside", other).out
    rows = results(run)["rows"]
    assert list(rows) == ["real train split", "teacher, 1 evaluation", f"{other}: teacher, 1 evaluation"]
    assert rows[f"{other}: teacher, 1 evaluation"] == {
        **results(other)["rows"]["teacher, 1 evaluation"],
        "role": "beside",
        "run": str(other),
        "seed": 3,
    }
    assert f"{other}: teacher, 1 evaluation: drawn with seed 3" in out
    assert "the floor of" not in out
    theirs = results(other)
    (other / "results.json").write_text(json.dumps(theirs | {"floor": 2 * theirs["floor"]}))
    assert f"the floor of {other} is " in done("evaluate", run, "-n", 60, "--steps", 1, "--beside", other).out
    assert [row["role"] for row in rows.values()] == ["floor", "own", "beside"]
    assert f"{other}: teacher, 1 evaluation" in out
    before = (run / "results.json").read_bytes()
    message = mistake("evaluate", run, "-n", 70, "--steps", 1, "--beside", other)
    assert f"this evaluation and {other} were measured by different protocols and do not compare: n 70 and 60" in message
    (other / "results.json").unlink()
    assert f"run `fewstep evaluate {other}` first" in mistake("evaluate", run, "-n", 60, "--beside", other)
    (other / "results.json").write_text("[")
    assert "cannot be read" in mistake("evaluate", run, "-n", 60, "--beside", other)
    assert (run / "results.json").read_bytes() == before


def test_a_second_judge_has_a_column_and_is_heard_where_it_disagrees(done, run, tmp_path, monkeypatch):
    network = load_classifier(untrained.write(tmp_path / "other.safetensors"))
    monkeypatch.setattr(measurement, "second_judge", lambda *given: network)
    out = done("evaluate", run, "-n", 60, "--steps", "1,2").out
    found = results(run)
    assert found["protocol"]["second"] == {"name": "other", "sha256": network.sha256}
    assert found["rows"]["real train split"]["frechet_second_over_floor"] == 1
    real = DIGITS.images("train")[suite_for(DIGITS, num=60).floor_index]
    to = extract(network, DIGITS.images("heldout"))
    for steps, row in zip((1, 2), list(found["rows"].values())[1:], strict=True):
        samples = extract(network, samples_of(run, 60, 0, steps))
        expected = frechet_distance(samples, to) / frechet_distance(extract(network, real), to)
        assert row["frechet_second_over_floor"] == pytest.approx(expected, rel=1e-4)
    assert "2nd judge" in out.splitlines()[0]
    assert "2nd judge: FD / floor in the features other, of a separately trained network" in out
    assert ("the judges rank the two rows differently" in out) == any("rank the two rows" in text for text in found["warnings"])
    rows = {title: dict(row) for title, row in found["rows"].items()}
    for row, first, second in zip(list(rows.values())[1:], (2.0, 3.0), (5.0, 4.0), strict=True):
        row |= {"frechet_over_floor": first, "frechet_second_over_floor": second, "near_copies": 0.5, "copies": 0.25}
    said = _warnings(found["protocol"], rows, run_recipe(run))
    assert any(
        text.startswith("the judges rank the two rows differently") and "to digits-v1, and 5.00 and 4.00 to other" in text for text in said
    )
    assert sum("50.0% of the inspected samples of teacher, " in text and "25.0% exact copies" in text for text in said) == 2


def test_a_teacher_that_was_measured_otherwise_is_named(done, student_run, teacher_run, tmp_path):
    student = shutil.copytree(student_run, tmp_path / "student")
    assert "does not compare" not in done("evaluate", student, "-n", 60, "--steps", 1).out  # the teacher has no results
    teacher = shutil.copytree(teacher_run, tmp_path / "teacher")
    recipe = student / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(teacher_run), str(teacher)))
    done("evaluate", teacher, "-n", 70, "--steps", 1)
    assert f"the results.json of the teacher {teacher} was measured by another protocol and does not compare: n 60 and 70" in (
        done("evaluate", student, "-n", 60, "--steps", 1).out
    )


def test_what_cannot_be_is_one_sentence(mistake, run, scripted, tmp_path):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(5), sigma=np.eye(5))
    for options, says in (
        (["--protocol", "fid"], "--protocol is 'fid'; allowed: edm"),
        (["--protocol", "edm", "--seed", 2], "--seed is 2; protocol edm has the seeds 0, 50000, 100000: leave --seed out"),
        (["--features", "nothing"], "there are no features 'nothing'"),
        (["--features", tmp_path / "none.pt"], "there is no file"),
        (["--reference", tmp_path / "none.npz"], "there is no file"),
        (["--reference", tmp_path / "ref.npz"], "ref.npz: the reference has 5 dimensions, and digits-v1 gives 64"),
    ):
        assert says in mistake("evaluate", run, "-n", 60, *options)


def test_points_are_measured_as_they_are(done, mistake, tmp_path):
    small = ("data.size=500", "network.widths=[8]", "batch_size=16", "steps=1", "method.m=2", "trainer.accelerator=cpu")
    done("train", "dddm/ring", *small, "--out", tmp_path / "ring")
    for options, says in (
        (["--features", "digits-v1"], "features and statistics are for images"),
        (["--protocol", "edm"], "--protocol is for images"),
        (["--self-test"], "--self-test is for images"),
    ):
        assert says in mistake("evaluate", tmp_path / "ring", "-n", 60, *options)


def test_features_that_do_not_fit_the_images(mistake, done, tmp_path):
    network = ("network.channels=[8]", "network.groups=4", "network.head_dim=4", "data={name: photos, size: 16}", "batch_size=4")
    options = ("steps=1", "trainer.accelerator=cpu", "method.sampler_steps=1")
    done("train", "teacher/digits", *network, *options, "--out", tmp_path / "photos")
    message = mistake("evaluate", tmp_path / "photos", "-n", 20, "--features", "digits-v1")
    assert "features digits-v1 cannot be computed from images of shape [3, 16, 16]" in message
