"""What a method holds goes where it is sent; what a student takes over of its teacher."""

import json
import shutil

import pytest
import torch
from torch import Tensor, nn

from every_method import CASES, made
from fewstep.methods.devices import move


def tensors(thing, seen):
    """All tensors that can be reached from `thing`, by another way than `move`: what Python's garbage collector knows."""
    import gc

    if id(thing) in seen or isinstance(thing, type) or (callable(thing) and not hasattr(thing, "__dict__")):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
        yield from thing.buffers()
    elif isinstance(thing, dict | list | tuple) or type(thing).__module__.startswith("fewstep"):
        for inner in gc.get_referents(thing):
            yield from tensors(inner, seen)


@pytest.mark.parametrize("name", CASES)
def test_all_that_a_method_holds_moves(name, still_teacher):
    _, method = made(CASES[name].read(still_teacher, "steps=3"))
    before = list(tensors(method, set()))
    assert {x.device.type for x in before} == {"cpu"}
    move(method, "meta")
    after = list(tensors(method, set()))
    assert len(after) == len(before)
    assert {x.device.type for x in after} == {"meta"}


class Odd:
    def __init__(self):
        self.inside, self.far = {"list": [torch.zeros(2), {"deep": torch.zeros(1)}]}, Farther()
        self.network, self.kept, self.itself = nn.Linear(1, 1), None, self


class Farther:
    def __init__(self):
        self.levels, self.number = torch.ones(3), 3


def test_tensors_in_lists_dicts_and_objects_move_and_what_cannot_is_said():
    odd = Odd()
    move(odd, "meta")
    assert {x.device.type for x in (*odd.inside["list"][:1], odd.inside["list"][1]["deep"], odd.far.levels, odd.network.weight)} == {"meta"}
    odd.kept = (torch.zeros(1),)
    with pytest.raises(TypeError, match="held in a tuple"):
        move(odd, "meta")


POISON = {"best": {"step": 1, "metric": "frechet", "value": 0.1}, "sha256": "0" * 64, "imported_from": "theirs.pkl", "assumed": "much"}


@pytest.mark.parametrize("licence", ["mit", None])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if any("{teacher}" in text for text in case.overrides)])
def test_a_student_takes_over_what_both_are_of_and_no_more(name, licence, still_teacher, tmp_path):
    teacher = shutil.copytree(still_teacher / "model", tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    own = {"data": "digits", "class_names": config["info"]["class_names"]}
    config["info"] |= POISON | ({"licence": licence} if licence else {})
    (teacher / "config.json").write_text(json.dumps(config))
    _, method = made(CASES[name].read(teacher, "steps=3"))
    info = method.ship(method.networks[method.ships], 3).info
    assert not set(info) & set(POISON)
    assert info["licence"] == licence  # of weights whose licence is not known none is
    assert {key: info[key] for key in own} == own
    assert info["step"] == 3
