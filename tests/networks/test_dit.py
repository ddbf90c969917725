import math
import os
import subprocess
import sys

import pytest
import torch

from fewstep.denoisers import PreconditionedDenoiser
from fewstep.networks import make_network, num_parameters
from fewstep.networks.dit.network import FREQUENCIES, Block, DiT, Sinusoids, position_code
from fewstep.networks.heads import feature_shapes

SHAPE, CLASSES, NUM = (2, 4, 6), 3, 5
SIZES = {"patch": 2, "width": 8, "depth": 3, "heads": 2}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def make(shape=SHAPE, num_classes=CLASSES, alive=True, **options):
    """A small DiT in float64; with `alive`, its weights are drawn anew, for as it starts it answers 0 to everything."""
    torch.manual_seed(0)
    network = DiT(shape, num_classes, **{**SIZES, **options}).double()
    if alive:
        with torch.no_grad():
            for p in network.parameters():
                p.normal_(std=0.3, generator=seeded(1))
    return network.eval()


def inputs(shape=SHAPE, classes=CLASSES):
    """x, c_noise and label of NUM items, each with its own."""
    label = None if classes is None else torch.arange(NUM) % (classes + 1)  # the last is the null class
    return normal(NUM, *shape), torch.linspace(0.1, 0.9, NUM, dtype=torch.float64), label


def moved(a, b):
    """The largest change of each item [B]."""
    return (a - b).abs().flatten(1).amax(1)


# --- shapes and patches


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 8, 8), (3, 6, 2)])
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_output_is_like_x_and_has_as_many_particles_as_xi(shape, classes):
    x, c_noise, label = inputs(shape, classes)
    plain = make(shape, classes)(x, c_noise, label)
    assert plain.shape == x.shape
    assert (plain.flatten(1).std(1) > 0.01).all()
    for m in (1, 5):
        assert make(shape, classes, xi_channels=2)(x, c_noise, label, xi=normal(NUM, m, 2, *shape[1:])).shape == (NUM, m, *shape)


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 8, 8), (3, 6, 2)])
def test_each_token_is_a_patch_and_the_patches_make_the_image_again(shape):
    network, p = make(shape), 2
    x = normal(NUM, 4, *shape)
    tokens = network._patches(x)
    assert torch.equal(network._image(tokens), x)
    assert torch.equal(network._patches(x[:, 0]), tokens[:, 0])
    columns = shape[2] // p
    for k in range(shape[1] // p * columns):
        row, column = divmod(k, columns)
        patch = x[..., p * row : p * row + p, p * column : p * column + p]
        assert torch.equal(tokens[..., k, :], patch.flatten(-3))


def test_a_patch_may_be_one_pixel_or_the_whole_image():
    x, c_noise, label = inputs((2, 4, 4))
    for patch, tokens in ((1, 16), (4, 1)):
        network = make((2, 4, 4), patch=patch)
        assert network.position.shape == (tokens, SIZES["width"])
        assert torch.equal(network._image(network._patches(x)), x)
        assert network(x, c_noise, label).shape == x.shape


# --- how it starts, and that it learns


@pytest.mark.parametrize("xi_block", [0, 2])
def test_it_starts_with_every_block_the_identity_and_output_zero(xi_block):
    network = make(alive=False, xi_channels=2, xi_block=xi_block)
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    x, c_noise, label = inputs()
    out = network(x, c_noise, label, xi=normal(NUM, 4, 2, 4, 6))
    assert torch.equal(out, out.new_zeros(NUM, 4, *SHAPE))
    assert len(seen) == 3
    for before, after in seen:
        assert before.abs().max() > 0.1
        assert torch.equal(before, after)


def test_initial_weights_are_xavier_s_and_those_of_the_conditioning_small():
    network = make(alive=False, width=64, num_classes=200)
    for layer in (network.embed, network.blocks[1].qkv, network.blocks[1].mlp[2]):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.95 * bound < layer.weight.abs().max() <= bound
    for weight in (network.level[0].weight, network.level[2].weight, network.label.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)  # of 4,096 numbers or more: 1 / sqrt(8192) is 1.1 %
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_initial_weights_depend_on_the_seed_alone():
    """And not on the process: the order of a set of words changes from one to the next."""
    code = "import torch; from fewstep.networks.dit import DiT; torch.manual_seed(0); "
    code += (
        "print(sum(p.double().sum().item() * k for k, p in enumerate(DiT((1, 4, 4), 3, patch=2, width=8, depth=1, heads=2).parameters())))"
    )
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("0", "1")]
    processes = [subprocess.Popen([sys.executable, "-c", code], env=e, stdout=subprocess.PIPE, text=True) for e in environments]
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert len(answers) == 1
    assert answers != {""}


def test_gradients_reach_every_parameter_after_two_steps():
    """The first step opens the output, the second the gates; from then on all of it learns."""
    network = make(alive=False, xi_channels=2, xi_block=1).train()
    x, c_noise, label = inputs()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x, c_noise, label, xi=normal(NUM, 2, 2, 4, 6, seed=1)) - x[:, None]).square().mean().backward()
        optimizer.step()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    rows = network.label.weight.grad.abs().sum(1)
    assert (rows > 0).all()  # each class that was seen, the null class among them


# --- what it answers depends on


def test_label_and_noise_level_matter_and_no_class_is_a_class_of_its_own():
    network = make()
    x, c_noise, _ = inputs()
    out = [network(x, c_noise, torch.full((NUM,), k)) for k in range(CLASSES + 1)]
    for k in range(CLASSES):
        assert (moved(out[k], out[CLASSES]) > 1e-2).all()
        assert (moved(out[k], out[k - 1]) > 1e-2).all()
    mixed = network(x, c_noise, torch.tensor([0, 1, 2, 3, 0]))  # each row by its own label
    for i, k in enumerate([0, 1, 2, 3, 0]):
        torch.testing.assert_close(mixed[i], out[k][i])
    assert (moved(network(x, c_noise + 0.05, torch.zeros(NUM, dtype=torch.long)), out[0]) > 1e-3).all()


def test_items_do_not_see_each_other():
    network, (x, c_noise, label) = make(xi_channels=2), inputs()
    xi = normal(NUM, 3, 2, 4, 6, seed=1)
    whole = network(x, c_noise, label, xi=xi)
    for i in range(NUM):
        torch.testing.assert_close(network(x[i : i + 1], c_noise[i : i + 1], label[i : i + 1], xi=xi[i : i + 1])[0], whole[i])


def test_where_a_patch_lies_matters_and_only_by_the_position_code():
    network, (x, c_noise, label) = make(), inputs()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    shuffled = network._image(network._patches(x)[:, order])
    expected = network._image(network._patches(network(x, c_noise, label))[:, order])
    assert (moved(network(shuffled, c_noise, label), expected) > 1e-2).all()
    network.position.zero_()  # without it, attention has no order
    expected = network._image(network._patches(network(x, c_noise, label))[:, order])
    torch.testing.assert_close(network(shuffled, c_noise, label), expected)


def test_every_patch_sees_every_other():
    network, (x, c_noise, label) = make(), inputs()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, c_noise, label)[0, 0, 0, 0], x)
    assert (gradient[0].abs() > 0).all()
    assert not gradient[1:].any()


# --- xi


@pytest.mark.parametrize("xi_block", [0, 2])
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_particles_are_separate_passes(xi_block, classes):
    network, (x, c_noise, label) = make(num_classes=classes, xi_channels=2, xi_block=xi_block), inputs(classes=classes)
    xi = normal(NUM, 4, 2, 4, 6, seed=1)
    together = network(x, c_noise, label, xi=xi)
    for j in range(4):
        torch.testing.assert_close(together[:, j : j + 1], network(x, c_noise, label, xi=xi[:, j : j + 1]))
    assert (moved(together[:, 0], together[:, 1]) > 1e-2).all()


@pytest.mark.parametrize(("xi_block", "particles"), [(0, [4, 4, 4]), (1, [1, 4, 4]), (2, [1, 1, 4])])
def test_what_lies_before_xi_runs_once_an_item(xi_block, particles):
    network, seen, conditions = make(xi_channels=2, xi_block=xi_block), [], []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
        block.modulate.register_forward_hook(lambda module, args, output: conditions.append(args[0].numel()))
    network.level.register_forward_hook(lambda module, args, output: conditions.append(output.numel()))
    x, c_noise, label = inputs()
    network(x, c_noise, label, xi=normal(NUM, 4, 2, 4, 6))
    assert seen == [(NUM, m, 6, SIZES["width"]) for m in particles]
    assert conditions == [NUM * SIZES["width"]] * 4  # and the conditioning too, in every block


def test_a_xi_of_zero_leaves_the_network_without_xi():
    """xi enters by a linear map without a bias, and the other weights are those of a network that has none."""
    network, (x, c_noise, label) = make(xi_channels=2, xi_block=1), inputs()
    without = make()
    missing, unexpected = without.load_state_dict(network.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["embed_xi.weight"])
    out = network(x, c_noise, label, xi=torch.zeros(NUM, 1, 2, 4, 6).double())
    torch.testing.assert_close(out[:, 0], without(x, c_noise, label))


def test_without_xi_there_is_nothing_to_learn_for_it():
    with_xi, without = make(xi_channels=3), make()
    assert num_parameters(with_xi) - num_parameters(without) == 3 * 2**2 * SIZES["width"]
    assert without.xi_shape == (0, 4, 6)
    assert with_xi.xi_shape == (3, 4, 6)


# --- its parts


def attention_by_hand(block, x, heads):
    """Softmax attention, one head of one item at a time; `x` [T, W]."""
    width = x.shape[1]
    size = width // heads
    q, k, v = (x @ w.T + b for w, b in zip(block.qkv.weight.split(width), block.qkv.bias.split(width), strict=True))
    out = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        rows = []
        for i in range(len(x)):
            logits = torch.stack([(q[i, part] * k[j, part]).sum() / math.sqrt(size) for j in range(len(x))])
            weights = logits.exp() / logits.exp().sum()
            rows.append(sum(weights[j] * v[j, part] for j in range(len(x))))
        out.append(torch.stack(rows))
    return torch.cat(out, 1) @ block.mix.weight.T + block.mix.bias


def norm_by_hand(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


@torch.no_grad()
def test_a_block_is_softmax_attention_and_two_layers_modulated():
    width, heads, tokens = 8, 2, 5
    block = Block(width, heads, 2.0).double()
    for p in block.parameters():
        p.normal_(std=0.4, generator=seeded(2))
    x, condition = normal(2, 3, tokens, width), normal(2, 1, 1, width, seed=1)
    attended, whole = block._attention(x), block(x, condition)
    for i in range(2):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (condition[i, 0, 0] @ block.modulate.weight.T + block.modulate.bias).split(
            width
        )
        for j in range(3):
            torch.testing.assert_close(attended[i, j], attention_by_hand(block, x[i, j], heads))
            hidden = x[i, j] + gate_1 * attention_by_hand(block, norm_by_hand(x[i, j]) * (1 + scale_1) + shift_1, heads)
            first, _, second = block.mlp
            z = (norm_by_hand(hidden) * (1 + scale_2) + shift_2) @ first.weight.T + first.bias
            assert z.shape == (tokens, 2 * width)
            z = 0.5 * z * (1 + (math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)).tanh())  # GELU by tanh
            torch.testing.assert_close(whole[i, j], hidden + gate_2 * (z @ second.weight.T + second.bias))


@torch.no_grad()
def test_what_comes_before_and_after_the_blocks():
    """Tokens are patches embedded where they lie; the last layer is modulated by the level and the class like a block's."""
    network, (x, c_noise, label) = make(), inputs()
    first, last = [], []
    network.blocks[0].register_forward_pre_hook(lambda module, args: first.append(args[0]))
    network.blocks[-1].register_forward_hook(lambda module, args, output: last.append((*args, output)))
    out = network(x, c_noise, label)
    ((_, condition, hidden),) = last
    for i in range(NUM):
        level = network.level(Sinusoids()(1000 * c_noise[i : i + 1]).double())[0] + network.label.weight[label[i]]
        c = level * level.sigmoid()  # SiLU
        torch.testing.assert_close(condition[i].flatten(), c)
        shift, scale = (network.modulate.weight @ c + network.modulate.bias).split(SIZES["width"])
        for k in range(6):
            row, column = 2 * (k // 3), 2 * (k % 3)
            patch = x[i, :, row : row + 2, column : column + 2].flatten()
            token = network.embed.weight @ patch + network.embed.bias + network.position[k]
            torch.testing.assert_close(first[0][i, 0, k], token)
            answer = network.out.weight @ (norm_by_hand(hidden[i, 0, k]) * (1 + scale) + shift) + network.out.bias
            torch.testing.assert_close(out[i, :, row : row + 2, column : column + 2].flatten(), answer)


def test_sinusoids_go_from_one_down_to_a_ten_thousandth():
    value = torch.tensor([0.0, 0.7, 250.0, 1000.0])
    found = Sinusoids(8)(value)
    for i, v in enumerate(value.tolist()):
        angles = [v * 10**-k for k in range(4)]  # 1e4^(-k / 4)
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert found[i].tolist() == pytest.approx(expected, abs=1e-4)  # float32's 250 and 1000 times a frequency
    assert Sinusoids()(value).shape == (4, FREQUENCIES)


def test_noise_level_enters_a_thousandfold():
    network, seen = make(), []
    network.level.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, c_noise, label = inputs()
    network(x, c_noise, label)
    torch.testing.assert_close(seen[0], Sinusoids()(1000 * c_noise).double())


def test_every_place_has_a_code_of_its_own_of_row_and_column():
    code = position_code(4, 6, 16).unflatten(0, (4, 6))
    assert torch.equal(code[:, :, :8], code[:, :1, :8].expand(4, 6, 8))  # one half knows the row,
    assert torch.equal(code[:, :, 8:], code[:1, :, 8:].expand(4, 6, 8))  # the other the column
    distances = torch.cdist(code.flatten(0, 1), code.flatten(0, 1)) + torch.eye(24)
    assert distances.min() > 0.1
    torch.testing.assert_close(code[2, 5], torch.cat([Sinusoids(8)(torch.tensor([2])), Sinusoids(8)(torch.tensor([5]))], 1)[0])


def test_under_autocast_it_answers_nearly_the_same():
    network, (x, c_noise, label) = make(xi_channels=2, xi_block=1).float(), inputs()
    x, c_noise, xi = x.float(), c_noise.float(), normal(NUM, 2, 2, 4, 6, seed=1).float()
    exact = network(x, c_noise, label, xi=xi)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, c_noise, label, xi=xi).float()
    assert (rough - exact).norm() < 0.05 * exact.norm()


# --- sizes


def test_the_published_size_for_cifar10_has_its_parameters():
    """Patch 4, width 384, depth 8, 6 heads on [3, 32, 32]: 48 numbers a patch."""
    with torch.device("meta"):
        network = DiT((3, 32, 32), 10, patch=4, width=384, depth=8, heads=6, xi_channels=3)
    embed, embed_xi = 48 * 384 + 384, 48 * 384
    level = (256 * 384 + 384) + (384 * 384 + 384)
    label = 11 * 384  # with the null class
    attention = (384 * 3 * 384 + 3 * 384) + (384 * 384 + 384)
    layers = (384 * 1536 + 1536) + (1536 * 384 + 384)
    modulate = 384 * 6 * 384 + 6 * 384
    out = (384 * 2 * 384 + 2 * 384) + (384 * 48 + 48)
    assert num_parameters(network) == embed + embed_xi + level + label + 8 * (attention + layers + modulate) + out == 21_881_904
    assert network.position.shape == (64, 384)
    with torch.device("meta"):
        default = DiT((3, 32, 32), 10, xi_channels=3)  # it is what one gets who asks for no size
    assert num_parameters(default) == num_parameters(network)
    assert (default.patch, len(default.blocks), default.blocks[0].heads) == (4, 8, 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch": 3, "shape": (1, 8, 8)}, r"network.patch is 3, .* 8x8; allowed: \[1, 2, 4, 8\]"),
        ({"patch": 4}, r"network.patch is 4, .* 4x6; allowed: \[1, 2\]"),
        ({"patch": 3}, r"network.patch is 3, .* 4x6; allowed: \[1, 2\]"),
        ({"width": 10, "heads": 4}, "network.width is 10; .* network.heads 4"),
        ({"width": 12, "heads": 5}, "network.width is 12; .* network.heads 5"),
        ({"width": 6, "heads": 3}, "network.width is 6; .* by 4"),
        ({"xi_block": 3, "xi_channels": 1}, "network.xi_block is 3; allowed: 0 to 2"),
        ({"xi_block": -1, "xi_channels": 1}, "network.xi_block is -1; allowed: 0 to 2"),
    ],
)
def test_sizes_that_do_not_fit_name_their_key(change, says):
    with pytest.raises(ValueError, match=says):
        make(**change)


def test_it_has_no_inner_features():
    with pytest.raises(ValueError, match=r"DiT, which has no resolution levels; .* U-Net"):
        feature_shapes(PreconditionedDenoiser(make(), 0.5, CLASSES), 1)


def test_make_network_passes_everything_on():
    arguments = {"patch": 1, "width": 12, "depth": 4, "heads": 3, "mlp_ratio": 1.5, "xi_channels": 5, "xi_block": 2}
    network = make_network({"name": "dit", **arguments}, (2, 4, 6), 7)
    assert isinstance(network, DiT)
    assert (network.patch, network.grid, network.xi_shape, network.xi_block) == (1, (4, 6), (5, 4, 6), 2)
    assert (len(network.blocks), network.blocks[0].heads, network.blocks[0].mlp[0].weight.shape) == (4, 3, (18, 12))
    assert (network.embed.weight.shape, network.label.weight.shape) == ((12, 2), (8, 12))
