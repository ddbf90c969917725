"""bf16-mixed: the networks' layers work in bfloat16, and nothing else ever sees it."""

import json

import pytest
import torch
import yaml
from torch import nn

from every_method import CASES, made
from fewstep.recipe import Trainer
from fewstep.run import make_fabric
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

LOW = (torch.bfloat16, torch.float16)


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(part)


class Watched:
    """What goes into every network of a method, what its layers make, what its losses get, and whether these are under autocast."""

    def __init__(self, method) -> None:
        self.method, self.loss = method, method.loss
        self.given, self.gave, self.layers, self.asked = {}, {}, {}, []
        for name, network in method.networks.items():
            network.register_forward_pre_hook(self.hook(self.given, name, 1, 2), with_kwargs=True)
            for part in network.modules():
                if isinstance(part, nn.Linear | nn.Conv2d):
                    part.register_forward_hook(self.hook(self.layers, name, 2))
        method.loss = self.spied

    def hook(self, where, name, *places):
        def hook(*told):
            self.note(where, name, [told[place] for place in places])

        return hook

    def note(self, where, name, tree):
        where.setdefault(name, set()).update(x.dtype for x in tensors(tree) if x.is_floating_point())

    def spied(self, turn, networks, *told):
        self.asked.append(torch.is_autocast_enabled("cpu"))
        return self.loss(turn, {name: Spied(self, name, network) for name, network in networks.items()}, *told)


class Spied:
    """A network as a loss sees it."""

    def __init__(self, watched, name, network) -> None:
        self.watched, self.name, self.network = watched, name, network

    def __call__(self, *told, **more):
        return self.seen(self.network(*told, **more))

    def features(self, *told, **more):
        return self.seen(self.network.features(*told, **more))

    def __getattr__(self, name):
        return getattr(self.network, name)

    def seen(self, found):
        self.watched.note(self.watched.gave, self.name, found)
        return found


def loop_of(recipe, folder, precision):
    data, method = made(recipe)
    fabric = make_fabric(Trainer(accelerator="cpu", precision=precision))
    return Loop(method, data, fabric, RunFolder(folder), LoopSettings(steps=recipe.steps, batch_size=recipe.batch_size))


@pytest.mark.parametrize("name", CASES)
def test_only_layers_see_bfloat16(name, still_teacher, tmp_path):
    recipe = CASES[name].read(still_teacher, "steps=4", batch_size=20)
    loop = loop_of(recipe, tmp_path, "bf16-mixed")
    watched = Watched(loop.method)
    for _ in range(3):
        loop.advance()
    assert loop.method.ships in watched.given
    for network, seen in watched.gave.items():
        assert not seen & set(LOW), network
        if network == "head":  # it is given inner features
            continue
        assert not watched.given.get(network, set()) & set(LOW), network
        if network in watched.layers:  # a closed form has none; all others work in bfloat16, whether they learn in this turn or not
            exact = {torch.float32} if name == "flow map, derivative" else set()  # which is taken through the network itself
            assert watched.layers[network] - exact == {torch.bfloat16}, network
    assert watched.asked
    assert not any(watched.asked)
    assert {p.dtype for network in loop.method.networks.values() for p in network.parameters()} <= {torch.float32, torch.float64}


@pytest.mark.parametrize("name", ["teacher", "dddm", "dmd2, gan and r1", "consistency", "flow map", "drift, drifting"])
def test_the_first_losses_are_nearly_those_of_full_precision(name, still_teacher, tmp_path):
    means = []
    for precision in ("32-true", "bf16-mixed"):
        loop = loop_of(CASES[name].read(still_teacher, "steps=4", batch_size=40), tmp_path / precision, precision)
        loop.advance()
        means.append(loop.state.window.means())
    assert means[0].keys() == means[1].keys()
    for term, value in means[0].items():
        if "grad_norm" not in term and not term.startswith("health"):
            assert means[1][term] == pytest.approx(value, rel=0.03, abs=0.03), term


def test_a_small_noise_level_stays_what_it_is(still_teacher, tmp_path):
    """At sigma = .002, which bfloat16 knows to three digits, what an exact denoiser's loss is worth is seen to six."""
    recipe = CASES["teacher"].read(still_teacher, "steps=4", "method.sigma_mean=-6.2", "method.sigma_std=1e-3", batch_size=64)
    found = []
    for precision in ("32-true", "bf16-mixed"):
        loop = loop_of(recipe, tmp_path / precision, precision)
        loop.advance()
        found.append(loop.state.window.means()["denoiser.denoising"])
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_what_is_recorded_is_what_was_used(done, tmp_path):
    run = tmp_path / "run"
    overrides = ("steps=2", "network.widths=[8]", "batch_size=8", "trainer.accelerator=cpu", "trainer.precision=bf16-mixed")
    done("train", "teacher/ring", *overrides, "--out", run)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"
    assert all(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def test_float16_which_had_a_scale_that_no_checkpoint_kept_is_brought_forward(done, tmp_path):
    run = tmp_path / "run"
    short = ("steps=2", "network.widths=[8]", "batch_size=8", "trainer.accelerator=cpu", "trainer.precision=16-mixed")
    assert "trainer.precision 16-mixed -> bf16-mixed" in done("train", "teacher/ring", *short, "--out", run).err
    text = (run / "recipe.yaml").read_text()
    assert "precision: bf16-mixed" in text
    (run / "recipe.yaml").write_text(text.replace("precision: bf16-mixed", "precision: 16-mixed"))
    done("evaluate", run, "-n", "100")
