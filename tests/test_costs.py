import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewstep import build
from fewstep.costs import Costs, Memory, measure
from fewstep.generator import Generator
from fewstep.methods import Batch, LossOutput, Method, Optimizer, Turn
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.dmd2.settings import DMD2Settings
from fewstep.methods.drift import Drift
from fewstep.methods.drift.features import TeacherFeatures
from fewstep.methods.drift.settings import DriftSettings
from fewstep.methods.teacher import Teacher
from fewstep.methods.teacher.settings import TeacherSettings
from fewstep.networks import num_parameters
from fewstep.quantities import in_words, short
from fewstep.recipe import load_recipe
from peaks import step_bytes

ODE = {"name": "heun", "steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
UNET = {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8, "dropout": 0.1}
EDM = {"name": "edm_unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
DIT = {"name": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}
MLP = {"name": "mlp", "widths": [30, 20], "frequencies": 4}


def generator(network, shape=(1, 8, 8), classes=3, **kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(shape, classes, 0.5, network, info={"label_dropout": 0.1}, **(kind or {"sampler": ODE}))


def teacher(network=UNET, **options):
    return Teacher(TeacherSettings(name="teacher", label_dropout=0.0), generator(network, **options))


def distilled(**options):
    return DMD2(DMD2Settings(name="dmd2", loss="sid", **options), generator(UNET))


def pushed(features=None):
    latent = {"name": "latent_mlp", "widths": [32, 16], "latent": 4}
    push_forward = generator(latent, sampler={"name": "push_forward"}, denoiser={"name": "push_forward"})
    return Drift(DriftSettings(name="drift"), push_forward, features=features)


def spread():
    recipe = load_recipe("dddm/digits", ["method.m=3", "network.channels=[8,16]", "network.groups=4", "network.head_dim=8"])
    return build.make_method(recipe, build.load_data(recipe.data))


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def test_flops_of_linear_layers_by_hand():
    method = teacher(MLP, shape=(2,), classes=None)
    costs = measure(method, (2,), None, steps=10, batch_size=64)
    layers = [(2 + 8) * 30, 30 * 20, 20 * 2]
    assert costs.evaluation == 2 * sum(layers)
    assert costs.evaluations == 35
    # a layer's backward pass costs it twice, once for its weights and once for its input, which the first has no use for
    assert costs.step == 2 * (3 * sum(layers) - layers[0])


def counted(method, turns, classes, items, attention):
    """{turn: FLOPs an item} of a step of those `turns` with everything really computed, by torch's own counter."""
    flops, scratch, rng = {}, {}, torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(items, 1, 8, 8, generator=rng), torch.zeros(items, dtype=torch.long) if classes else None)
    for turn in turns:
        for name, network in method.networks.items():
            network.requires_grad_(name in turn.trains)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(attention):
            method.loss(turn.name, method.networks, batch, rng, scratch).loss.backward()
        flops[turn.name] = counter.get_total_flops() / items
    return flops


@pytest.mark.parametrize(
    "make",
    [lambda: distilled(dfake_gen_update_ratio=4), lambda: distilled(gan=True), lambda: teacher(EDM), pushed, spread],
    ids=["dmd2", "gan", "edm", "drift", "dddm"],
)
def test_a_step_costs_what_a_real_one_does(make):
    classes = 10 if make is spread else 3
    costs = measure(make(), (1, 8, 8), classes, 100, 16)
    method, walks = make(), []
    often = max(turn.every for turn in method.turns)
    for items in (2, 3):
        # of as many steps all turns are due in one: in the others the fake network's batch is drawn, which a generator's turn leaves it.
        # torch's counter knows nothing of the CPU's own attention
        kinds = [list(method.turns), *[[turn for turn in method.turns if turn.every == 1]] * (often - 1)]
        walks.append(sum(sum(counted(method, kind, classes, items, SDPBackend.MATH).values()) for kind in kinds) / often)
    expected = sum(walks) / len(walks)
    # backwards, that attention works out its weights anew, and is a little more expensive
    assert costs.step == pytest.approx(expected, rel=5e-3)
    assert costs.step >= expected


@pytest.mark.parametrize("network", [UNET, EDM, DIT], ids=["unet", "edm_unet", "dit"])
def test_an_evaluation_costs_what_a_real_one_does(network):
    method = teacher(network)
    costs = measure(method, (1, 8, 8), 3, 100, 16)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        method.networks["denoiser"].eval()(torch.randn(1, 1, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.long))
    assert costs.evaluation == counter.get_total_flops()


def test_what_only_the_first_updates_do_is_not_counted():
    first, always = (measure(distilled(gan=True, gan_weight_generator=weight), (1, 8, 8), 3, 1000, 16) for weight in ("auto", 0.01))
    assert first.step == always.step
    short = measure(distilled(gan=True, gan_weight_generator="auto"), (1, 8, 8), 3, 20, 16)  # 4 updates, all of which measure it
    assert short.step > 1.02 * always.step


def test_a_student_of_several_steps_costs_the_mean_of_what_it_draws():
    one, four = (measure(distilled(sampler_steps=steps, dfake_gen_update_ratio=1), (1, 8, 8), 3, 100, 16) for steps in (1, 4))
    assert (one.evaluations, four.evaluations) == (1, 4)
    # evaluations that lead to the step that learns: 0, 1, 2 or 3, each as often
    assert (four.step - one.step) / one.evaluation == pytest.approx(1.5, abs=0.01)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_weights_gradients_moments_and_average_by_hand():
    method = teacher(MLP, shape=(2,), classes=None)
    parameters, buffers = num_parameters(method.networks["denoiser"]), 4
    alone = measure(method, (2,), None, 10, 64)
    assert alone.memory.weights == 4 * (5 * parameters + 2 * buffers)  # itself, its gradient, two moments and the average
    several = measure(teacher(MLP, shape=(2,), classes=None), (2,), None, 10, 64, devices=2)
    assert several.memory.weights == alone.memory.weights + 4 * parameters


def test_frozen_networks_have_neither_gradients_nor_moments():
    method = distilled()
    size = num_parameters(method.networks["teacher"])
    costs = measure(method, (1, 8, 8), 3, 10, 16)
    # three networks; moments of two; the gradients of one at a time; one average
    assert costs.memory.weights == 4 * size * (3 + 2 * 2 + 1 + 1)


class Adapted(nn.Module):
    """A linear map of its own on one that it does not learn."""

    def __init__(self, base):
        super().__init__()
        self.base, self.own = base, nn.Linear(30, 30, bias=False)
        self.register_buffer("scale", torch.ones(1))

    def learned_parameters(self):
        return [("own.weight", self.own.weight)]

    def forward(self, x):
        return self.scale * self.own(self.base(x))


class Adapters(Method):
    """Two of them, on one base, of which each learns in a turn of its own; what ships is `teacher`'s generator, which is not looked at."""

    ships = "one"

    def __init__(self):
        base = nn.Linear(2, 30, bias=False).requires_grad_(False)
        self.networks = {"one": Adapted(base), "other": Adapted(base)}
        self.turns = tuple(Turn(name, (name,), Optimizer()) for name in self.networks)
        self.generator = teacher(MLP, shape=(2,), classes=None).generator

    @classmethod
    def make(cls, settings, given):
        raise NotImplementedError

    def loss(self, turn, networks, batch, rng, scratch):
        total = networks[turn](batch.x).square().mean()
        return LossOutput(total, {"total": total.detach()})

    def ship(self, network, step):
        return self.generator


def test_what_is_not_learned_costs_no_gradient_and_what_is_shared_is_there_once():
    method = Adapters()
    costs = measure(method, (2,), None, 10, 64)
    base, own, buffer = 2 * 30, 30 * 30, 1
    # the base, once; each adapter with its buffer and two moments; the gradient of one at a time; one average, which shares the base
    assert costs.memory.weights == 4 * (base + 2 * (own + buffer + 2 * own) + own + (own + buffer))
    # forwards through both maps, and backwards to the adapter's weights alone
    assert costs.step == 2 * 2 * (base + own + own)
    assert costs.memory.activations + costs.memory.gradients == pytest.approx(step_bytes(Adapters(), (2,), None, 64), rel=0.1)
    assert not any(p.requires_grad for p in method.networks["one"].base.parameters())
    assert measure(Adapters(), (2,), None, 10, 64, devices=2).memory.weights == costs.memory.weights + 4 * 2 * own


@pytest.mark.parametrize(
    "make",
    [
        lambda: teacher(UNET),
        lambda: teacher(DIT),
        distilled,
        lambda: distilled(gan=True),
        lambda: distilled(sampler_steps=3),
        pushed,
        spread,
    ],
    ids=["unet", "dit", "dmd2", "gan", "three steps", "drift", "dddm"],
)
def test_memory_is_what_is_really_taken(make):
    classes = 10 if make is spread else 3
    memory = measure(make(), (1, 8, 8), classes, 100, batch_size=48).memory
    assert memory.activations + memory.gradients == pytest.approx(step_bytes(make(), (1, 8, 8), classes, 48), rel=0.1)


def test_memory_is_that_of_the_devices_part_of_a_batch():
    whole, part = (measure(distilled(), (1, 8, 8), 3, 100, batch_size=48, devices=devices).memory for devices in (1, 2))
    assert part.activations < 0.6 * whole.activations
    parted = measure(distilled(), (1, 8, 8), 3, 100, batch_size=48, accumulate=2).memory
    # gradients of the first part are there while the second has its loss
    assert part.activations <= parted.activations <= part.activations + part.gradients


def test_memory_in_mixed_precision():
    memory = measure(distilled(), (1, 8, 8), 3, 100, batch_size=48, precision="bf16-mixed").memory
    assert memory.activations + memory.gradients == pytest.approx(step_bytes(distilled(), (1, 8, 8), 3, 48, mixed=True), rel=0.1)


def test_weights_of_feature_networks_are_kept_once_and_not_once_an_item():
    def method():
        return pushed(TeacherFeatures(generator(UNET).denoiser.requires_grad_(False).eval()))

    small, large = (measure(method(), (1, 8, 8), 3, 100, size).memory.activations for size in (16, 160))
    constant = (160 * small - 16 * large) / 144
    weights = 4 * num_parameters(generator(UNET).denoiser)
    assert 0 < constant <= weights
    assert small == pytest.approx(constant + 16 * (large - small) / 144, rel=1e-6)


# --- side effects, and words -----------------------------------------------------------------------------------------


def test_networks_and_chance_are_left_alone():
    method = distilled(gan=True)
    before = {name: {key: value.clone() for key, value in network.state_dict().items()} for name, network in method.networks.items()}
    flags = {name: [p.requires_grad for p in network.parameters()] for name, network in method.networks.items()}
    modes = {name: network.training for name, network in method.networks.items()}
    chance = torch.get_rng_state()
    measure(method, (1, 8, 8), 3, 100, 16)
    assert torch.equal(torch.get_rng_state(), chance)
    for name, network in method.networks.items():
        assert all(torch.equal(value, before[name][key]) for key, value in network.state_dict().items())
        assert [p.requires_grad for p in network.parameters()] == flags[name]
        assert network.training == modes[name]
        assert all(p.grad is None for p in network.parameters())


def test_the_lines_say_it_in_three_digits():
    memory = Memory(0, 1_000_000_000, 200_000_000, 252_000_000, 1_000_000_000, 999_900_000)
    first, second = Costs(42_383_000_000, 35, 186_600_000_000, memory).lines("image", 10**9)
    assert first == (
        "FLOPs per image: 42.4 gigaFLOP an evaluation, 1.48 teraFLOP a sample (35 evaluations); 187 gigaFLOP a training step, "
        "187 exaFLOP in the whole run"
    )
    assert second == (
        "memory per device: 3.45 GB: 1 GB weights, 200 MB moving average, 252 MB gradients, 1 GB AdamW's moments, 1 GB activations (about)"
    )
    assert str(replace(memory, base=10**9)).startswith("4.45 GB: 1 GB frozen network, 1 GB low-rank adapters, 200 MB moving average")
    assert Costs(30, 1, 999, Memory(0, 0, 0, 0, 0, 0)).lines("point", 1)[0] == (
        "FLOPs per point: 30 FLOP an evaluation; 999 FLOP a training step, 999 FLOP in the whole run"
    )
    assert short(0.0, "B") == "0 B"
    assert in_words(7.48e15, "FLOP") == "7.48 petaFLOP"
    assert [in_words(10.0 ** (3 * k), "FLOP") for k in (1, 4, 11)] == ["1 kiloFLOP", "1 teraFLOP", "1e+03 quettaFLOP"]
    assert short(999_900, "B") == "1 MB"


def test_a_dry_run_tells_what_the_run_costs(done, student_overrides):
    def figures(*overrides):
        parted = ("method.f_divergence=reverse_kl", "method.gan_weight_generator=.003")  # what can be learned from in parts
        out = done("train", "dmd2/digits", *student_overrides, *parted, "--dry-run", *overrides).out
        flops = re.search(
            r"# FLOPs per image: ([\d.]+) megaFLOP an evaluation; ([\d.]+) megaFLOP a training step, ([\d.]+) gigaFLOP in the whole run",
            out,
        )
        memory = re.search(r"# memory per device: .* ([\d.]+) k?M?B AdamW's moments, ([\d.]+) k?M?B activations \(about\)", out)
        return [float(found) for found in (*flops.groups(), *memory.groups())]

    whole, halves = figures(), figures("trainer.accumulate=2")
    assert whole[:4] == halves[:4]
    assert whole[2] == pytest.approx(whole[1] * 16 * 6 / 1000, rel=0.01)  # 6 steps of 16
    assert 0.5 <= halves[4] / whole[4] < 0.7
