"""A network that learns a part of what it holds and shares the rest: everything that trains and keeps it goes by that part."""

import copy
import json
import os
import signal

import pytest
import torch
from torch import nn

from fewstep.errors import Interrupted
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.ema import EMA
from fewstep.training.learned import average_of, learned, learned_state, load_learned, set_learning
from fewstep.training.resume import LOOKS
from linear_method import WIDTH, Linear, run_loop
from same_run import assert_same_run


class Adapted(nn.Module):
    """``base(x) + scale * adapter(x)``: the adapter is its own, the base somebody else's, the scale a buffer."""

    def __init__(self, base: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.base = base
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.adapter = nn.Linear(WIDTH, WIDTH).double()
        self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64))

    def learned_parameters(self):
        return [(f"adapter.{name}", parameter) for name, parameter in self.adapter.named_parameters()]

    def forward(self, x):
        return self.base(x) + self.scale * self.adapter(x)


OWN = ["adapter.bias", "adapter.weight"]


def made(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(9)
        base = nn.Linear(WIDTH, WIDTH).double().requires_grad_(False)
    return Adapted(base, seed)


def plain():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))


def test_a_module_that_says_nothing_learns_all():
    module = plain()
    assert learned(module) == dict(module.named_parameters())
    assert learned_state(module).keys() == module.state_dict().keys()
    average = average_of(module)
    assert not {id(p) for p in average.parameters()} & {id(p) for p in module.parameters()}


def test_a_module_inside_is_asked_and_a_shared_parameter_counts_once():
    around = nn.ModuleDict({"inner": made(), "head": nn.Linear(2, 2)})
    around["twice"] = around["head"]
    assert sorted(learned(around)) == ["head.bias", "head.weight", *(f"inner.{name}" for name in OWN)]
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    assert learned(tied) == dict(tied.named_parameters())
    assert list(learned(tied)) == [name for name, _ in tied.named_parameters()]


def test_what_it_says_is_what_it_learns():
    module = made()
    assert sorted(learned(module)) == OWN
    assert learned(module)["adapter.weight"] is module.adapter.weight


@pytest.mark.parametrize("flag", [False, True])
def test_learning_is_turned_on_and_off_where_it_is_learned(flag):
    module = made()
    module.base.requires_grad_(flag)
    for on in (True, False, True):
        set_learning(module, on)
        assert [p.requires_grad for p in module.adapter.parameters()] == [on, on]
        assert [p.requires_grad for p in module.base.parameters()] == [flag, flag]  # somebody else's


def test_the_state_of_what_is_learned_goes_round():
    module, other = made(1), made(2)
    module.scale.fill_(0.25)
    state = learned_state(module)
    assert sorted(state) == [*OWN, "scale"]  # a buffer is its own
    other.base.weight.fill_(7.0)
    load_learned(other, {name: tensor.clone() for name, tensor in state.items()})
    for name, tensor in state.items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert (other.base.weight == 7).all()  # what it does not learn stays


@pytest.mark.parametrize("module", [made(), plain()], ids=["adapted", "plain"])
def test_a_state_that_does_not_fit_is_refused(module):
    state = learned_state(module)
    name = next(iter(learned(module)))
    for wrong in (
        {key: tensor for key, tensor in state.items() if key != name},
        {**state, "another": torch.zeros(1)},
        {**state, name: torch.zeros(1)},
    ):
        with pytest.raises(RuntimeError, match=f"{name}|another"):
            load_learned(module, wrong)


def test_an_average_has_its_own_of_what_is_learned_and_shares_the_rest():
    module = made().train()
    average = average_of(module)
    assert average.base.weight is module.base.weight
    assert average.base.bias is module.base.bias
    assert average.adapter.weight is not module.adapter.weight
    assert average.scale is not module.scale
    assert torch.equal(average(torch.ones(1, WIDTH).double()), module(torch.ones(1, WIDTH).double()))
    assert not average.training
    assert not any(p.requires_grad for p in average.adapter.parameters())
    assert module.training
    assert all(p.requires_grad for p in module.adapter.parameters())


def test_the_average_follows_what_is_learned():
    module = made()
    ema = EMA(module, decay=0.75, warmup=0.0)
    start, base = module.adapter.weight.detach().clone(), module.base.weight.clone()
    with torch.no_grad():
        module.adapter.weight.add_(1.0)
        module.scale.fill_(3.0)
    ema.update(module)
    torch.testing.assert_close(ema.module.adapter.weight, start + 0.25)
    assert ema.module.scale == 3  # a buffer is copied
    assert torch.equal(ema.module.base.weight, base)
    with torch.no_grad():
        module.base.weight.add_(1.0)  # whoever owns it
    assert torch.equal(ema.module.base.weight, base + 1)


# --- through the loop


class Adapters(Linear):
    """``model`` and ``critic`` are two adapters on one base."""

    def __init__(self, **options):
        super().__init__(**options)
        self.base = made().base
        self.networks |= {"model": Adapted(self.base, 1), "critic": Adapted(self.base, 2)}

    def ship(self, network, step):
        shipped = nn.Module()
        shipped.adapter = copy.deepcopy(network.adapter)
        shipped.config = {"info": {"step": step}}
        shipped.saved_tensors = lambda: dict(shipped.state_dict())
        return shipped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    method = Adapters(noise=0.3)
    return method, run_loop(tmp_path_factory.mktemp("adapters") / "run", method, steps=8)


def test_the_loop_trains_and_keeps_what_is_learned(whole):
    method, run = whole
    fresh = Adapters()
    assert all(torch.equal(a, b) for a, b in zip(method.base.parameters(), fresh.base.parameters(), strict=True))
    assert not any(p.requires_grad for p in method.base.parameters())
    for name in ("model", "critic"):
        pairs = zip(method.networks[name].adapter.parameters(), fresh.networks[name].adapter.parameters(), strict=True)
        assert not any(torch.equal(learnt, drawn) for learnt, drawn in pairs)
    checkpoint = load_checkpoint(run.checkpoint_folder / "step_8")
    assert sorted(checkpoint.networks) == ["critic", "ema", LOOKS, "model"]
    assert all(sorted(tensors) == [*OWN, "scale"] for name, tensors in checkpoint.networks.items() if name != LOOKS)
    for turn in ("first", "second"):  # moments of two tensors, and no more
        (group,) = checkpoint.optimizers[turn]["param_groups"]
        assert len(group["params"]) == len(checkpoint.optimizers[turn]["state"]) == 2
    average = checkpoint.networks["ema"]
    assert not torch.equal(average["adapter.weight"], method.networks["model"].adapter.weight)
    assert json.loads((run.model_folder / "config.json").read_text())["info"]["step"] == 8


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_run_of_adapters_that_was_stopped_goes_on_in_the_same_bits(step, whole, tmp_path):
    method = Adapters(noise=0.3)
    method.before = lambda turn, call: os.kill(os.getpid(), signal.SIGTERM) if (turn, call) == ("second", step) else None
    with pytest.raises(Interrupted):
        run_loop(tmp_path / "run", method, steps=8)
    resumed = Adapters(noise=0.3)
    with torch.no_grad():  # all that is learned comes from the checkpoint
        for name in ("model", "critic"):
            for parameter in resumed.networks[name].adapter.parameters():
                parameter.fill_(99.0)
            resumed.networks[name].scale.fill_(99.0)
    run_loop(tmp_path / "run", resumed, resume=True, steps=8)
    assert_same_run(tmp_path / "run", whole[1].path)
    for name in ("model", "critic"):
        for mine, other in zip(resumed.networks[name].parameters(), whole[0].networks[name].parameters(), strict=True):
            assert torch.equal(mine, other)
