import pytest
import torch
from diffusers import UNet2DModel

from fewstep.denoisers import PushForward
from fewstep.errors import UserError
from fewstep.generator import Generator, load
from fewstep.networks import make_network, num_parameters
from fewstep.networks.heads import feature_shapes
from fewstep.networks.unet import LatentUNet, UNet
from fewstep.recipe import load_recipe
from fewstep.recipe.reading import shipped_recipes

CASES = [
    ((1, 8, 8), None, [False, False]),
    ((1, 8, 8), 3, [False, True]),
    ((3, 8, 16), 3, [True, False]),
]


def made(shape, num_classes, attention):
    """Ours and a stock UNet2DModel with the same weights, and inputs for both."""
    torch.manual_seed(0)
    ours = UNet(shape, num_classes, [8, 16], attention, groups=4, head_dim=8)
    stock = UNet2DModel(
        sample_size=shape[1:],
        in_channels=shape[0],
        out_channels=shape[0],
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]],
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=None if num_classes is None else num_classes + 1,
    )
    stock.load_state_dict(ours.unet.state_dict())
    label = None if num_classes is None else torch.tensor([0, num_classes, 1])  # the second is the null class
    return ours, stock, torch.randn(3, *shape), torch.tensor([-1.5, 0.1, 1.1]), label


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_forward_is_the_stock_model_s_at_a_thousand_times_c_noise(case):
    ours, stock, x, c_noise, label = made(*case)
    assert torch.equal(ours(x, c_noise, label), stock(x, 1000 * c_noise, class_labels=label).sample)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_features_are_what_leaves_the_stock_model_s_middle_and_its_levels(case):
    ours, stock, x, c_noise, label = made(*case)
    seen = []
    stock.mid_block.register_forward_hook(lambda module, args, output: seen.append(output))
    for block in reversed(stock.down_blocks[:-1]):
        block.downsamplers[0].register_forward_pre_hook(lambda module, args: seen.insert(0, args[0]))
    stock(x, 1000 * c_noise, class_labels=label)
    seen = [seen[-1], *seen[:-1]]
    levels = len(stock.down_blocks)
    features = ours.features(x, c_noise, label, levels)
    assert len(features) == len(seen) == levels
    assert all(map(torch.equal, features, seen))
    assert [(f.shape[1], tuple(f.shape[2:])) for f in features] == feature_shapes(ours, levels)
    assert torch.equal(ours.features(x, c_noise, label, 1)[0], features[0])
    with pytest.raises(ValueError, match=rf"method\.gan_levels is {levels + 1}, but the network has {levels}"):
        feature_shapes(ours, levels + 1)


def test_features_do_not_pay_for_the_decoder():
    ours, _, x, c_noise, label = made(*CASES[0])
    ours.unet.up_blocks.register_forward_pre_hook(lambda *_: pytest.fail("the decoder ran"))
    ours.features(x, c_noise, label, 1)[0].sum().backward()
    without = {name.split(".")[1] for name, p in ours.named_parameters() if p.grad is None}
    assert without == {"up_blocks", "conv_norm_out", "conv_out"}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"attention": [True]}, "network.attention has 1 entries, network.channels 2"),
        ({"shape": (1, 8, 9)}, "8x9 .* network.channels"),
        ({"shape": (1, 9, 8)}, "9x8 .* network.channels"),
        ({"groups": 3}, "network.groups 3"),
        ({"groups": 16}, "network.groups 16"),
        ({"head_dim": 12}, "network.head_dim 12"),
        ({"head_dim": 16, "attention": [True, False]}, "network.head_dim 16"),
    ],
)
def test_arguments_that_do_not_fit_name_their_key(change, key):
    with pytest.raises(ValueError, match=key):
        UNet(**{"shape": (1, 8, 8), "channels": [8, 16], "groups": 4, "head_dim": 8, **change})


def test_a_head_wider_than_a_level_without_attention_is_fine():
    assert UNet((1, 8, 8), channels=[8, 16], groups=4, head_dim=16).unet.config.attention_head_dim == 16


def test_unknown_network_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"'unett' is no network; did you mean 'unet'\?; known are unet, "):
        make_network({"name": "unett"}, (1, 8, 8), None)


def test_make_network_passes_everything_on():
    arguments = {"channels": [8, 16], "groups": 4, "head_dim": 8, "dropout": 0.25, "layers_per_block": 2}
    config = make_network({"name": "unet", **arguments}, (3, 8, 8), 5).unet.config
    assert (config.in_channels, config.out_channels, config.num_class_embeds) == (3, 3, 6)
    assert (config.block_out_channels, config.norm_num_groups, config.attention_head_dim) == ((8, 16), 4, 8)
    assert (config.dropout, config.layers_per_block) == (0.25, 2)


def test_a_network_without_levels_has_no_shapes_of_them():
    with pytest.raises(ValueError, match=r"Linear, which has no resolution levels; method\.gan"):
        feature_shapes(torch.nn.Linear(2, 2), 1)


@torch.no_grad()
def test_zero_output_silences_the_network():
    ours, _, x, c_noise, label = made(*CASES[1])
    assert ours(x, c_noise, label).abs().max() > 0.01
    ours.zero_output()
    assert torch.equal(ours(x, c_noise, label), torch.zeros_like(x))


def test_num_parameters_counts_frozen_ones_too():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).requires_grad_(False))
    assert num_parameters(module) == 3 * 4 + 4 + 4 * 2 + 2


# --- a second noise


@pytest.mark.parametrize("num_classes", [None, 3])
@torch.no_grad()
def test_particles_are_separate_passes(num_classes):
    torch.manual_seed(0)
    network = UNet((1, 8, 16), num_classes, [8, 16], groups=4, head_dim=8, xi_channels=2).eval()
    x, xi, c_noise = torch.randn(3, 1, 8, 16), torch.randn(3, 4, 2, 8, 16), torch.tensor([0.1, 0.5, 0.9])
    label = None if num_classes is None else torch.tensor([0, 3, 1])
    together = network(x, c_noise, label, xi=xi)
    assert together.shape == (3, 4, 1, 8, 16)
    for i in range(3):
        for j in range(4):  # with the item's own level and label
            seen = torch.cat([x[i], xi[i, j]])[None]
            one = None if label is None else label[i : i + 1]
            expected = network.unet(seen, 1000 * c_noise[i : i + 1], class_labels=one).sample
            torch.testing.assert_close(together[i, j], expected[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(network(x, c_noise, label, xi=xi[:, j : j + 1])[i, 0], expected[0], rtol=1e-4, atol=1e-5)
    assert ((together[:, 0] - together[:, 1]).flatten(1).abs().amax(1) > 1e-3).all()


def test_xi_widens_the_first_convolution_and_nothing_else():
    with_xi, without = (UNet((3, 8, 8), 3, [8, 16], groups=4, head_dim=8, xi_channels=channels) for channels in (2, 0))
    shapes, plain = ({name: tuple(p.shape) for name, p in network.named_parameters()} for network in (with_xi, without))
    assert {name: shapes[name] for name in shapes if shapes[name] != plain[name]} == {"unet.conv_in.weight": (8, 5, 3, 3)}
    assert plain["unet.conv_in.weight"] == (8, 3, 3, 3)
    assert (with_xi.xi_shape, without.xi_shape) == ((2, 8, 8), (0, 8, 8))


@pytest.mark.parametrize("num_classes", [None, 3])
@torch.no_grad()
def test_as_a_map_from_noise_it_starts_as_the_noise_and_adds_what_the_u_net_says(num_classes):
    torch.manual_seed(0)
    arguments = {"channels": [8, 16], "groups": 4, "head_dim": 8}
    network = make_network({"name": "latent_unet", **arguments}, (3, 8, 8), num_classes)
    assert isinstance(network, LatentUNet)
    generator = PushForward(network, 0.6, num_classes)
    assert generator.latent_shape == (3, 8, 8)
    z, label = torch.randn(2, 3, 8, 8), None if num_classes is None else torch.tensor([2, 0])
    torch.testing.assert_close(generator(z, torch.inf, label), 0.6 * z)
    torch.nn.init.normal_(network.inner.unet.conv_out.weight)
    expected = 0.6 * (z + network.inner.unet(z, torch.zeros(2), class_labels=label).sample)
    torch.testing.assert_close(generator(z, torch.inf, label), expected)
    assert (expected - 0.6 * z).abs().mean() > 0.1


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_condition_adds_to_the_embedding_with_particles_and_in_features_too(num_classes):
    torch.manual_seed(0)
    network = UNet((1, 8, 8), num_classes, [8, 16], groups=4, head_dim=8, xi_channels=1, condition=2)
    x, c_noise, xi = torch.randn(2, 1, 8, 8), torch.tensor([-1.0, 0.5]), torch.randn(2, 3, 1, 8, 8)
    label = None if num_classes is None else torch.tensor([1, 3])
    condition = torch.randn(2, 2)
    at_first = network(x, c_noise, label, xi)
    torch.testing.assert_close(network(x, c_noise, label, xi, condition), at_first)  # its weight is 0
    torch.nn.init.normal_(network.unet.class_embedding.from_condition.weight)
    told = network(x, c_noise, label, xi, condition)
    assert not torch.allclose(told, at_first)
    for j in range(3):
        torch.testing.assert_close(network(x, c_noise, label, xi[:, j : j + 1], condition)[:, 0], told[:, j])
    torch.testing.assert_close(network(x, c_noise, label, xi), at_first)  # None stands for zeros
    plain = UNet((1, 8, 8), num_classes, [8, 16], groups=4, head_dim=8, condition=2)
    assert [tuple(level.shape[1:]) for level in plain.features(x, c_noise, label, 2)] == [(16, 4, 4), (8, 8, 8)]


# --- patches of pixels


@pytest.mark.parametrize("num_classes", [None, 3])
@torch.no_grad()
def test_patches_of_pixels_are_channels_of_one_place_inside(num_classes):
    torch.manual_seed(0)
    network = UNet((2, 8, 12), num_classes, [8, 16], groups=4, head_dim=8, xi_channels=1, patch=2).eval()
    assert (network.unet.config.in_channels, network.unet.config.out_channels) == (12, 8)
    assert network.feature_shapes == [(16, (2, 3)), (8, (4, 6))]
    x, xi, c_noise = torch.randn(3, 2, 8, 12), torch.randn(3, 2, 1, 8, 12), torch.tensor([-1.0, 0.1, 1.1])
    label = None if num_classes is None else torch.tensor([0, 3, 1])
    together = network(x, c_noise, label, xi=xi)
    assert together.shape == (3, 2, 2, 8, 12)
    for j in range(2):
        seen = torch.cat([x, xi[:, j]], 1)
        # [b, c 2^2, h/2, w/2]: channel 4 c + 2 i + k is row i and column k of a patch
        inside = seen.unflatten(2, (4, 2)).unflatten(4, (6, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        out = network.unet(inside, 1000 * c_noise, class_labels=label).sample
        expected = out.unflatten(1, (2, 2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
        torch.testing.assert_close(together[:, j], expected, rtol=1e-4, atol=1e-5)
    plain = UNet((2, 8, 12), num_classes, [8, 16], groups=4, head_dim=8, patch=2)
    assert plain(x, c_noise, label).shape == x.shape
    assert [tuple(level.shape[1:]) for level in plain.features(x, c_noise, label, 2)] == [(16, 2, 3), (8, 4, 6)]
    plain.zero_output()
    assert torch.equal(plain(x, c_noise, label), torch.zeros_like(x))


def test_a_patch_that_does_not_divide_the_image_is_named():
    with pytest.raises(ValueError, match=r"images of 28x28 cannot be cut into patches of 4 and halved 1 times; .* divisible by 8"):
        UNet((1, 28, 28), channels=[8, 16], groups=4, head_dim=8, patch=4)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_logits_of_the_bottleneck_do_not_grow_with_its_features_where_they_are_normalised(normalised, monkeypatch):
    """Without a norm logits go with the square of the features; in a long run of MNIST they came to 1e9, and the gradient overflowed."""
    torch.manual_seed(0)
    net = UNet((1, 8, 8), channels=(16, 32), groups=8, head_dim=16, attention_norm=normalised)
    attention = net.unet.mid_block.attentions[0]
    seen = []

    def noted(query, key, value, **rest):
        seen.append((query @ key.transpose(-1, -2)).abs().max().item())
        return value

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    features = torch.randn(2, 32, 4, 4)
    for scale in (1, 100):
        attention(scale * features)
    assert seen[1] / seen[0] == pytest.approx(1 if normalised else 1e4, rel=0.5)
    assert (attention.group_norm is not None) is normalised


def test_a_model_made_before_the_norm_is_opened_without_it(tmp_path):
    """Its config.json does not name it; that of a new one does, and so its copies and its student have the norm, too."""
    torch.manual_seed(0)
    network = {"name": "unet", "channels": [8], "groups": 4, "head_dim": 8}
    sampler = {"name": "few_step", "sigmas": [5.0]}
    for told in ({}, {"attention_norm": True}):
        generator = Generator((1, 8, 8), None, 0.5, {**network, **told}, sampler).eval()
        generator.save_pretrained(tmp_path / str(len(told)))
        found = load(tmp_path / str(len(told)))
        assert ("denoiser.network.unet.mid_block.attentions.0.group_norm.weight" in found.state_dict()) is bool(told)
        assert torch.equal(found.sample(2, seed=0), generator.sample(2, seed=0))


def test_recipes_of_images_have_the_norm_but_those_of_digits_which_were_measured_without():
    found = {name: load_recipe(name).network for name in shipped_recipes()}
    found = {name: network for name, network in found.items() if network.name == "unet"}
    without = {name for name, network in found.items() if not network.attention_norm}
    assert without == {"teacher/digits", "dddm/digits", "consistency/digits_scratch", "flow_map/digits_scratch"}
