"""A device without memory left: what the run is told fits, by the costs that are counted, and goes on."""

import re

import pytest
import torch

from every_method import CASES, made
from fewstep import room
from fewstep.costs import measure
from fewstep.recipe import load_recipe
from fewstep.training.loop import Loop

SMALL = ("network.channels=[8,32]", "network.groups=4", "network.head_dim=8", "steps=4", "trainer.accelerator=cpu", "trainer.log_every=2")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB")


@pytest.fixture
def without_room(monkeypatch):
    """``without_room(memory)``: a device of so many bytes, which the first step finds full."""

    def call(memory):
        monkeypatch.setattr(room, "device_memory", lambda device: memory)

        def advance(self):
            raise FULL

        monkeypatch.setattr(Loop, "advance", advance)

    return call


def needed(parts, precision, batch=64):
    recipe = load_recipe("teacher/digits", (*SMALL, f"batch_size={batch}"))
    data, method = made(recipe)
    found = measure(method, data.shape, data.num_classes, 4, batch, 1, parts)
    return found.weights + found.activations * (0.5 if precision == "bf16-mixed" else 1.0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("parts", [2, 8])
def test_the_parts_that_would_fit_are_named_and_go_on(mistake, done, without_room, monkeypatch, tmp_path, parts, precision):
    # between what this number of parts takes and what half of it does
    memory = round((needed(parts, precision) + needed(parts // 2, precision)) / 2 / room.ROOM)
    run, given = tmp_path / "run", (*SMALL, "batch_size=64", f"trainer.precision={precision}")
    with monkeypatch.context():
        without_room(memory)
        said = mistake("train", "teacher/digits", "--out", run, *given)
        monkeypatch.undo()
    assert f"no memory left for a step: batch_size 64 in 1 part(s) takes about {needed(1, precision) / 1e6:.3g} MB" in said
    found = re.search(r"Give (trainer\.accumulate=(\d+)), which learns the same, and go on with --resume; or batch_size=(\d+)", said)
    assert int(found[2]) == parts
    assert int(found[3]) == 64 // parts
    done("train", "teacher/digits", "--out", run, "--resume", *given, found[1])


def test_where_nothing_fits_another_network_is_asked_for(mistake, without_room, tmp_path):
    without_room(1000)
    said = mistake("train", "teacher/digits", "--out", tmp_path / "run", *SMALL, "batch_size=8")
    assert re.search(r"no smaller part .* the weights alone take .*: take a smaller network, or a device with more memory", said)


def test_a_method_that_learns_from_a_whole_batch_is_told_a_smaller_one(still_teacher):
    recipe = CASES["drift, drifting"].read(still_teacher, "steps=4", batch_size=80)
    data, method = made(recipe)
    assert method.needs_whole_batch is not None
    said = room.advice(recipe, data, torch.device("cpu"), 1, None)
    assert re.search(r"Give batch_size=40, which is another run \(method drift learns from a batch as a whole: ", said)


@pytest.mark.parametrize("error", [RuntimeError("something else"), KeyError("memory")])
def test_other_errors_are_left_to_be_seen(still_teacher, error):
    recipe = CASES["teacher"].read(still_teacher)
    with pytest.raises(type(error)), room.told_without_room(recipe, made(recipe)[0], torch.device("cpu"), 1, None):
        raise error
