"""A finished run that becomes longer, and one that starts from another's weights."""

import math

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fewstep import load
from fewstep.training.run_folder import RunFolder

SMALL = (
    "data.density=mixture8d",
    "network.widths=[8]",
    "batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.checkpoint_every=4",
    "trainer.log_every=1",
    "trainer.sample_every=4",
)
RATES = ("method.optimizer.lr=1e-3", "method.optimizer.warmup=0", "method.optimizer.decay_from=0.0", "method.optimizer.decay=cosine")


def rates(run):
    return [record["denoiser.lr"] for record in RunFolder(run).metrics()]


@pytest.fixture
def eight(done, tmp_path):
    done("train", "teacher/ring", *SMALL, *RATES, "method.optimizer.final=0.1", "steps=8", "--out", tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_goes_on_as_if_it_had_been_meant_to_be_longer(eight, done, tmp_path):
    told = done("train", "teacher/ring", *SMALL, *RATES, "method.optimizer.final=0.1", "steps=16", "--out", eight, "--resume").err
    assert told.count("the run of 8 steps becomes one of 16") == 1
    assert "going on from step 8" in told
    assert yaml.safe_load((eight / "recipe.yaml").read_text())["steps"] == 16
    assert [record["step"] for record in RunFolder(eight).metrics()] == list(range(1, 17))
    assert load(eight).info["step"] == 16
    done("train", "teacher/ring", *SMALL, *RATES, "method.optimizer.final=0.1", "steps=16", "--out", tmp_path / "meant")
    assert rates(eight)[8:] == rates(tmp_path / "meant")[8:]
    assert rates(eight)[:8] != rates(tmp_path / "meant")[:8]


def test_the_reach_of_a_longer_run_is_that_of_all_its_updates(done, tmp_path):
    low = (*SMALL, "method.optimizer.lr=1e-5", "method.optimizer.warmup=0", "method.optimizer.decay_from=1.0", "trainer.log_every=100")
    low = (*low, "method.optimizer.weight_decay=0.0", "trainer.checkpoint_every=100", "trainer.sample_every=1000")
    for steps in (100, 1000):
        done("train", "teacher/ring", *low, f"steps={steps}", "--out", tmp_path / "run", *(["--resume"] * (steps > 100)))
    first, *later = RunFolder(tmp_path / "run").metrics()
    assert "still" in first["alarms"]
    for record in later:
        assert record["health.reach"] == pytest.approx(10 * first["health.reach"], rel=0.02)  # the weights have moved by 1e-3
        assert "still" not in record["alarms"]


def test_it_never_becomes_shorter_nor_another(eight, mistake, done):
    same = (*SMALL, *RATES, "method.optimizer.final=0.1")
    before = (eight / "recipe.yaml").read_bytes()
    assert "steps was 8, now 4" in mistake("train", "teacher/ring", *same, "steps=4", "--out", eight, "--resume")
    told = mistake("train", "teacher/ring", *same, "seed=3", "steps=16", "--out", eight, "--resume")
    assert "seed was 0, now 3" in told
    assert "steps was" not in told
    assert (eight / "recipe.yaml").read_bytes() == before
    assert "nothing left to do after step 8" in done("train", "teacher/ring", *same, "steps=8", "--out", eight, "--resume").err


def test_a_run_of_two_parts_is_not_made_longer(done, mistake, tmp_path):
    own = ("method.teacher=null", "method.solver=none", "method.own_teacher=.5")
    done("train", "consistency/ring", *SMALL, *own, "steps=8", "--out", tmp_path / "run")
    told = mistake("train", "consistency/ring", *SMALL, *own, "steps=16", "--out", tmp_path / "run", "--resume")
    assert "divides a run into parts" in told
    assert f"trainer.init={tmp_path / 'run'}" in told


def test_a_run_starts_from_the_weights_of_another(eight, done, tmp_path):
    run = tmp_path / "next"
    still = (*SMALL, "method.optimizer.lr=1e-12", "method.optimizer.weight_decay=0")
    done("train", "teacher/ring", *still, "steps=4", f"trainer.init={eight}", "--out", run)
    for name, x in load_file(run / "model" / "model.safetensors").items():
        torch.testing.assert_close(x, load_file(eight / "model" / "model.safetensors")[name], atol=1e-6, rtol=0)
    first = RunFolder(run).metrics()[0]["denoiser.denoising"]
    assert math.isfinite(first)
    # where it goes on it has weights of its own, and the other run may be gone
    done("train", "teacher/ring", *still, "steps=8", f"trainer.init={tmp_path / 'gone'}", "--out", run, "--resume")
    assert load(run).info["step"] == 8


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("network.widths=[16]",), "whose network is another"),
        (("data.density=ring",), "which has items of shape [8], and this run has [2]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(overrides, said, eight, mistake, tmp_path):
    told = mistake("train", "teacher/ring", *SMALL, *overrides, "steps=4", f"trainer.init={eight}", "--out", tmp_path / "next")
    assert said in told
    assert not (tmp_path / "next").exists()


def test_weights_of_another_kind_are_refused(eight, mistake, tmp_path):
    told = mistake("train", "dddm/ring", *SMALL, "method.m=2", "steps=4", f"trainer.init={eight}", "--out", tmp_path / "next")
    assert "which has the denoiser preconditioned, and this run has distributional" in told
    assert "trainer.init: " in mistake("train", "teacher/ring", *SMALL, "trainer.init=nowhere/at/all", "--out", tmp_path / "next")


def test_weights_that_are_another_model_under_other_settings_are_told(eight, done, tmp_path):
    init = ("steps=1", f"trainer.init={eight}")
    assert "trainer.init" not in done("train", "teacher/ring", *SMALL, *init, "--out", tmp_path / "same").err
    other = ("network.sigma_data=9.5", "network.activation=silu")
    told = " ".join(done("train", "teacher/ring", *SMALL, *init, *other, "--out", tmp_path / "other").err.split())
    was = load(eight)
    assert f"network.sigma_data is {was.sigma_data} and network.activation is {was.network_config['activation']}, and here" in told
    assert "network.sigma_data is 9.5 and network.activation is silu: with other settings its weights are another model" in told
