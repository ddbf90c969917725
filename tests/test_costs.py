import re

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewstep import build
from fewstep.costs import ITEMS, Costs, measure
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


def counted(method, classes, items, attention):
    """{turn: FLOPs an item} with everything really computed, by torch's own counter, and {turn: bytes kept}."""
    flops, kept = {}, {}
    rng = torch.Generator().manual_seed(0)
    batch, scratch = Batch(torch.randn(items, 1, 8, 8, generator=rng), torch.zeros(items, dtype=torch.long) if classes else None), {}
    weights = {p.data_ptr() for network in method.networks.values() for p in (*network.parameters(), *network.buffers())}
    for turn in method.turns:
        for name, network in method.networks.items():
            network.requires_grad_(name in turn.trains)
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with FlopCounterMode(display=False) as counter, sdpa_kernel(attention):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = method.loss(turn.name, method.networks, batch, rng, scratch).loss
            loss.backward()
        flops[turn.name] = counter.get_total_flops() / items
        kept[turn.name] = sum(size for storage, size in storages.items() if storage not in weights)
    return flops, kept


@pytest.mark.parametrize(
    "make",
    [lambda: distilled(dfake_gen_update_ratio=4), lambda: distilled(gan=True), lambda: teacher(EDM), pushed, spread],
    ids=["dmd2", "gan", "edm", "drift", "dddm"],
)
def test_a_step_costs_what_a_real_one_does(make):
    classes = 10 if make is spread else 3
    costs = measure(make(), (1, 8, 8), classes, 100, 16)
    method, walks = make(), []
    for items in ITEMS:
        flops, _ = counted(method, classes, items, SDPBackend.MATH)  # torch's counter knows nothing of the CPU's own attention
        walks.append(sum(flops[turn.name] / turn.every for turn in method.turns))
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


def test_a_student_of_several_steps_is_averaged_over_what_it_draws():
    one, four = (measure(distilled(sampler_steps=steps, dfake_gen_update_ratio=1), (1, 8, 8), 3, 100, 16) for steps in (1, 4))
    assert (one.evaluations, four.evaluations) == (1, 4)
    more = (four.step - one.step) / one.evaluation  # evaluations that lead to the step that learns: 0, 1, 2 or 3, each as often
    assert 0.5 < more < 2.5
    assert 5 * more == pytest.approx(round(5 * more), abs=0.02)  # a mean of five draws, and not all of the same
    assert round(5 * more) % 5


# --- memory ----------------------------------------------------------------------------------------------------------


def test_weights_gradients_moments_and_average_by_hand():
    method = teacher(MLP, shape=(2,), classes=None)
    parameters, buffers = num_parameters(method.networks["denoiser"]), 4
    alone = measure(method, (2,), None, 10, 64)
    assert alone.weights == 4 * (5 * parameters + 2 * buffers)  # itself, its gradient, two moments and the average
    several = measure(teacher(MLP, shape=(2,), classes=None), (2,), None, 10, 64, devices=2)
    assert several.weights == alone.weights + 4 * parameters


def test_frozen_networks_have_neither_gradients_nor_moments():
    method = distilled()
    size = num_parameters(method.networks["teacher"])
    costs = measure(method, (1, 8, 8), 3, 10, 16)
    assert costs.weights == 4 * size * (3 + 2 * 2 + 1 + 1)  # three networks; moments of two; the gradients of one at a time; one average


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
    assert costs.weights == 4 * (base + 2 * (own + buffer + 2 * own) + own + (own + buffer))
    # forwards through both maps, and backwards to the adapter's weights alone
    assert costs.step == 2 * 2 * (base + own + own)
    assert costs.activations == 4 * 64 * (30 + 30)  # what enters the adapter and what leaves it; not what the base has seen
    assert not any(p.requires_grad for p in method.networks["one"].base.parameters())
    assert measure(Adapters(), (2,), None, 10, 64, devices=2).weights == costs.weights + 4 * 2 * own


@pytest.mark.parametrize(
    "make",
    [lambda: teacher(UNET), lambda: teacher(DIT), distilled, lambda: distilled(gan=True), pushed, spread],
    ids=["unet", "dit", "dmd2", "gan", "drift", "dddm"],
)
def test_activations_are_those_of_the_largest_turn_at_the_device_s_part_of_a_batch(make):
    classes = 10 if make is spread else 3
    costs = measure(make(), (1, 8, 8), classes, 100, batch_size=48, devices=2, accumulate=3)
    _, kept = counted(make(), classes, 8, [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])  # the attention that training has
    assert costs.activations == pytest.approx(max(kept.values()), rel=0.02)


def test_weights_of_feature_networks_are_kept_once_and_not_once_an_item():
    def method():
        return pushed(TeacherFeatures(generator(UNET).denoiser.requires_grad_(False).eval()))

    small, large = (measure(method(), (1, 8, 8), 3, 100, size).activations for size in (16, 160))
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
    first, second = Costs(42_383_000_000, 35, 186_600_000_000, 2_452_000_000, 999_900_000).lines("image", 10**9)
    assert first == (
        "FLOPs per image: 42.4 gigaFLOP an evaluation, 1.48 teraFLOP a sample of 35; 187 gigaFLOP a training step, "
        "187 exaFLOP in the whole run"
    )
    assert second.startswith("memory per device: 2.45 GB for weights, gradients, AdamW's moments and the average, and about 1 GB for activ")
    assert "(an estimate for 32-bit; bf16-mixed takes roughly half of that)" in second
    assert Costs(30, 1, 999, 0, 0).lines("point", 1)[0] == (
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
        memory = re.search(r"# memory per device: ([\d.]+) k?M?B for weights.* about ([\d.]+) k?M?B for activations", out)
        return [float(found) for found in (*flops.groups(), *memory.groups())]

    whole, halves = figures(), figures("trainer.accumulate=2")
    assert whole[:4] == halves[:4]
    assert whole[2] == pytest.approx(whole[1] * 16 * 6 / 1000, rel=0.01)  # 6 steps of 16
    assert halves[4] == pytest.approx(whole[4] / 2, rel=0.05)
