import itertools
import math

import pytest
import torch
from torch import nn

from fewstep.denoisers import PreconditionedDenoiser
from fewstep.networks import tables_of
from fewstep.networks.heads import feature_shapes
from fewstep.networks.mlp.network import GAINS, MLP, CodedMLP, LatentMLP

BITS, LATENT = 3, 7
NUM = 64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def make(kind, *args, seed=0, **options):
    torch.manual_seed(seed)
    return kind(*args, **options)


def coded(num_classes=None, **options):
    return make(CodedMLP, (2,), num_classes, [32], latent=LATENT, bits=BITS, **{"embedding": 4, **options})


# --- shapes and labels


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("kind", [LatentMLP, CodedMLP])
def test_items_have_their_shape_and_their_label_matters(kind, num_classes, shape):
    network = make(kind, shape, num_classes, [16, 16], latent=9)
    z = normal(NUM, network.latent)
    if num_classes is None:
        assert network(z).shape == (NUM, *shape)
        return
    first, second = (network(z, torch.full((NUM,), k)) for k in (0, 2))
    assert first.shape == (NUM, *shape)
    assert ((first - second).flatten(1).abs().sum(1) > 0).all()
    mixed = network(z, torch.arange(NUM) % 2 * 2)  # each row by its own label
    torch.testing.assert_close(mixed[::2], first[::2])
    torch.testing.assert_close(mixed[1::2], second[1::2])


def test_raw_network_takes_a_second_noise_and_a_condition_together():
    network = make(MLP, (2,), None, [32, 32], xi_channels=3, condition=5)
    nn.init.normal_(network.from_condition.weight)
    x, c_noise, xi, condition = normal(NUM, 2), normal(NUM, seed=1), normal(NUM, 4, 3, seed=2), normal(NUM, 5, seed=3)
    out = network(x, c_noise, xi=xi, condition=condition)
    assert out.shape == (NUM, 4, 2)
    for other in (network(x, c_noise, xi=xi), network(x, c_noise, xi=xi.flip(1), condition=condition)):
        assert ((out - other).abs().amax((1, 2)) > 0).all()
    alone = network(x[:1], c_noise[:1], xi=xi[:1, :1], condition=condition[:1])
    torch.testing.assert_close(alone[0, 0], out[0, 0])


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_raw_network_sees_input_noise_level_and_label(activation):
    network = make(MLP, (1, 4, 4), 3, [32, 32], activation=activation)
    x, c_noise, label = normal(NUM, 1, 4, 4), normal(NUM, seed=1), torch.arange(NUM) % 3
    out = network(x, c_noise, label)
    assert out.shape == x.shape
    for other in (network(x + 0.1, c_noise, label), network(x, c_noise + 0.1, label), network(x, c_noise, (label + 1) % 3)):
        assert ((other - out).flatten(1).abs().sum(1) > 1e-4).all()
    null = network(x, c_noise, torch.full((NUM,), 3))  # the null class has a row of its own
    assert (null - out).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no resolution levels"):
        feature_shapes(PreconditionedDenoiser(network, 0.5, 3), 1)


def test_noise_level_enters_by_sine_and_cosine_of_octaves():
    network = make(MLP, (2,), None, [8], frequencies=6)
    seen = []
    network.layers.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, c_noise = normal(5, 2), normal(5, seed=1)
    network(x, c_noise)
    angles = math.pi * c_noise[:, None] * torch.tensor([0.25, 0.5, 1, 2, 4, 8])
    torch.testing.assert_close(seen[0], torch.cat([x, angles.sin(), angles.cos()], 1))


def test_what_an_image_network_answers_does_not_depend_on_its_neighbours():
    network, x, c_noise = make(MLP, (1, 4, 4), None, [16]), normal(6, 1, 4, 4), normal(6, seed=1)
    torch.testing.assert_close(network(x, c_noise)[2:3], network(x[2:3], c_noise[2:3]))


# --- codes


def test_code_is_the_number_whose_bits_are_the_signs():
    network = coded(num_classes=3)
    z = normal(NUM, LATENT)
    expected = [sum(2**i for i in range(BITS) if row[i] > 0) for row in z.tolist()]
    assert network.code(z).tolist() == expected
    label = torch.arange(NUM) % 3
    assert network.code(z, label).tolist() == [k + 8 * int(c) for k, c in zip(expected, label, strict=True)]


def test_every_code_is_reached_equally_often():
    # 8,000 draws into 8 codes: chi^2 of 7 degrees of freedom, mean 7, deviation 3.7
    count = coded().code(normal(8000, LATENT)).bincount(minlength=8)
    assert len(count) == 8
    assert ((count - 1000.0).square() / 1000).sum() < 7 + 4 * 3.7
    classes = coded(num_classes=3)
    k = classes.code(normal(2400, LATENT), torch.arange(2400) % 3)
    assert sorted(k.unique().tolist()) == list(range(len(classes.centres))) == list(range(24))


def test_item_is_its_centre_and_what_the_layers_add():
    network = coded(gain=1.0)
    z = normal(NUM, LATENT)
    k = network.code(z)
    with torch.no_grad():
        moved = network.layers(torch.cat([network.embeddings[k], z[:, BITS:]], 1))
        torch.testing.assert_close(network(z), network.centres[k] + moved)
        before = network(z)
        network.centres[5] += 1.0
    torch.testing.assert_close(network(z).detach() - before, (k == 5).float()[:, None].expand(NUM, 2))


def test_within_a_code_only_the_other_coordinates_move_x_and_without_jumps():
    network = coded(gain=1.0)
    z = normal(NUM, LATENT)
    scaled = torch.cat([z[:, :BITS] * 3, z[:, BITS:]], 1)  # the signs stay
    assert torch.equal(network(scaled), network(z))
    direction = torch.cat([torch.zeros(NUM, BITS), normal(NUM, LATENT - BITS, seed=1)], 1)
    steps = [(network(z + h * direction) - network(z)).norm(dim=1) for h in (1e-1, 1e-2, 1e-3)]
    assert (steps[0] > 1e-4).all()
    for coarse, fine in itertools.pairwise(steps):
        torch.testing.assert_close(fine / coarse, torch.full((NUM,), 0.1), rtol=0.5, atol=0.01)  # x follows in proportion


def test_x_jumps_on_the_hyperplanes_of_coded_coordinates_and_on_no_others():
    network = coded(gain=1.0)
    for axis in range(LATENT):
        z = normal(NUM, LATENT)
        below, above = z.clone(), z.clone()
        below[:, axis], above[:, axis] = -1e-6, 1e-6
        jump = (network(above) - network(below)).norm(dim=1)
        assert (jump > 1e-2).all() if axis < BITS else (jump < 1e-4).all(), axis


def test_each_class_learns_its_own_tables():
    network = coded(num_classes=3)
    network(normal(200, LATENT), torch.ones(200, dtype=torch.long)).square().sum().backward()
    for table in tables_of(coded()):
        gradient = dict(network.named_parameters())[table].grad.abs().sum(1).view(3, 8)
        assert (gradient[1] > 0).all()
        assert gradient[0].sum() == gradient[2].sum() == 0


def test_centres_begin_with_the_spread_asked_for():
    centres = coded(num_classes=64, spread=3.0).centres
    # 64 * 8 rows of 2: the relative error of a standard deviation is 1 / sqrt(2 * 1024)
    assert centres.std().item() == pytest.approx(3, rel=4 / math.sqrt(2048))


@pytest.mark.parametrize(("bits", "latent"), [(0, 4), (4, 4), (5, 4)])
def test_bits_must_leave_something_of_z(bits, latent):
    with pytest.raises(ValueError, match=rf"network.bits is {bits} with network.latent {latent}; .* below latent"):
        CodedMLP((2,), None, [8], latent=latent, bits=bits)


# --- initial weights


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_gain_makes_up_for_the_second_moment_of_the_activation(activation):
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    moment = torch.trapezoid(density * getattr(nn.functional, activation)(z) ** 2, z).item()
    assert GAINS[activation] == pytest.approx(moment**-0.5, rel=0.003)


@pytest.mark.parametrize("options", [{"activation": "silu"}, {"activation": "relu", "he": True}])
def test_layers_begin_with_unit_variance_at_every_depth(options):
    moments = []
    for seed in range(10):
        network = make(LatentMLP, (64,), None, [256] * 4, seed=seed, latent=64, **options)
        x, found = normal(500, 64, seed=100 + seed), []
        for layer in network.layers:
            x = layer(x)
            if isinstance(layer, nn.Linear):
                assert not layer.bias.any()
                found.append(x.square().mean().item())
        moments.append(found)
    # a layer's moment fluctuates by sqrt(2 / 256) = 9 % with its weights, 5 layers by 20 % and more (SiLU is convex), 10 networks by 8 %;
    # with torch's own weights the last of these is below 0.02
    assert torch.tensor(moments).mean(0).tolist() == pytest.approx([1] * 5, abs=3 * 0.08)


@pytest.mark.parametrize("kind", [LatentMLP, CodedMLP])
def test_gain_scales_the_last_layer_alone(kind):
    plain, scaled = (make(kind, (2,), None, [16, 16], gain=gain) for gain in (1.0, 0.25))
    for (name, a), b in zip(plain.layers.named_parameters(), scaled.layers.parameters(), strict=True):
        torch.testing.assert_close(b, a * (0.25 if name == "4.weight" else 1))
    assert not scaled.layers[-1].bias.any()


@pytest.mark.parametrize("kind", [LatentMLP, CodedMLP, MLP])
def test_unknown_activation(kind):
    with pytest.raises(ValueError, match=r"network.activation is 'tanh'; allowed: relu, silu"):
        kind((2,), None, [8], activation="tanh")


def test_without_hidden_layers_the_push_forward_is_affine():
    network = make(LatentMLP, (2,), None, [], latent=3)
    a, b = normal(5, 3), normal(5, 3, seed=1)
    torch.testing.assert_close(network(0.3 * a + 0.7 * b), 0.3 * network(a) + 0.7 * network(b))


def test_an_embedding_s_width_is_beside_z():
    network = make(LatentMLP, (2,), 4, [8], latent=3, embedding=5)
    assert network.layers[0].in_features == 8
    assert network.embedding.weight.shape == (4, 5)


# --- a second noise


def raw(num_classes=3, shape=(1, 4, 4), **options):
    return make(MLP, shape, num_classes, [16, 8], activation="silu", **options)


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_particles_are_separate_passes(shape, num_classes):
    network = raw(num_classes, shape, xi_channels=5)
    x, c_noise, xi = normal(6, *shape), normal(6, seed=1), normal(6, 4, 5, seed=2)
    label = None if num_classes is None else torch.tensor([0, 1, 2, 3, 0, 1])
    together = network(x, c_noise, label, xi=xi)
    assert together.shape == (6, 4, *shape)
    for j in range(4):
        torch.testing.assert_close(together[:, j : j + 1], network(x, c_noise, label, xi=xi[:, j : j + 1]))
    assert ((together[:, 0] - together[:, 1]).flatten(1).abs().amax(1) > 1e-3).all()
    alone = network(x[3:4], c_noise[3:4], None if label is None else label[3:4], xi=xi[3:4])
    torch.testing.assert_close(together[3:4], alone)


def test_what_the_first_layer_makes_of_x_is_worked_out_once_an_item():
    network, seen = raw(xi_channels=5), []
    network.layers[0].register_forward_hook(lambda module, args, output: seen.append((tuple(args[0].shape), output)))
    x, c_noise, label, xi = normal(6, 1, 4, 4), normal(6, seed=1), torch.arange(6) % 3, normal(6, 4, 5, seed=2)
    found = network(x, c_noise, label, xi=xi)
    ((shape, hidden),) = seen
    assert shape == (6, 16 + 2 * 8)
    for i in range(6):
        for j in range(4):
            expected = network.layers[1:](hidden[i] + network.from_xi.weight @ xi[i, j])
            torch.testing.assert_close(found[i, j].flatten(), expected)


def test_without_xi_a_network_is_as_it_was():
    without, with_xi = raw(), raw(xi_channels=5)
    x, c_noise, label = normal(6, 1, 4, 4), normal(6, seed=1), torch.arange(6) % 3
    assert without(x, c_noise, label).shape == x.shape
    expected = {"embedding.weight": (4, 32), "layers.0.weight": (16, 32), "layers.0.bias": (16,), "layers.2.weight": (8, 16)}
    expected |= {"layers.2.bias": (8,), "layers.4.weight": (16, 8), "layers.4.bias": (16,)}
    assert {name: tuple(p.shape) for name, p in without.named_parameters()} == expected
    assert {name: tuple(p.shape) for name, p in with_xi.named_parameters()} == expected | {"from_xi.weight": (16, 5)}
    without.load_state_dict({name: p for name, p in with_xi.state_dict().items() if name != "from_xi.weight"})
    torch.testing.assert_close(with_xi(x, c_noise, label, xi=torch.zeros(6, 2, 5))[:, 1], without(x, c_noise, label))
    assert (without.xi_shape, with_xi.xi_shape) == ((0,), (5,))


def test_a_network_says_which_of_its_parameters_are_tables():
    assert tables_of(coded(num_classes=3)) == ("centres", "embeddings")
    assert tables_of(nn.Sequential(nn.Linear(2, 2), coded())) == ("centres", "embeddings")
    assert tables_of(nn.Linear(2, 2)) == ()
    rows = {name: getattr(coded(num_classes=3), name).shape[0] for name in tables_of(coded())}
    assert rows == {"centres": 3 * 2**BITS, "embeddings": 3 * 2**BITS}
