"""How long a run would take: every method is tried, nothing is left behind, and what is said of it is right."""

import time

import pytest
import torch

from every_method import CASES, made
from fewstep import trial
from fewstep.recipe import Trainer
from fewstep.run import make_fabric


@pytest.mark.parametrize("name", CASES)
def test_every_method_can_be_tried(name, still_teacher):
    recipe = CASES[name].read(still_teacher, "steps=40", batch_size=24)
    data, method = made(recipe)
    chance = torch.get_rng_state()
    found = trial.tried(recipe, data, method, 0, make_fabric(Trainer(accelerator="cpu")), 1)
    assert 0 < found.step < 10
    assert found.sample > 0
    assert found.batch == 24
    assert found.made >= max(turn.every for turn in method.turns)
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize(("needed", "batch"), [(0, 64), (2**60, 8)])
def test_the_time_is_that_of_a_step_and_what_does_not_fit_is_tried_in_part(needed, batch, still_teacher, monkeypatch):
    recipe = CASES["teacher"].read(still_teacher, "steps=20", batch_size=64)
    data, method = made(recipe)
    loss = type(method).loss

    def slow(self, turn, networks, items, rng, scratch):
        time.sleep(len(items.x) / 1000)
        return loss(self, turn, networks, items, rng, scratch)

    monkeypatch.setattr(type(method), "loss", slow)
    found = trial.tried(recipe, data, method, needed, make_fabric(Trainer(accelerator="cpu")), 1)
    assert found.batch == batch
    assert 0.064 < found.step < 1.0
    assert f"on {batch} items each" in trial.lines(recipe, found, False, 35)[0] if batch < 64 else True


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.00123, "1.2 ms"),
        (0.0456, "46 ms"),
        (0.3, "300 ms"),
        (3.44, "3.4 s"),
        (89, "89 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
        (1e6, "12 days"),
    ],
)
def test_times_in_words(seconds, words):
    assert trial.in_words(seconds) == words
