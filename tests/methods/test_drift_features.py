import pytest
import torch
from torch import nn

from fewstep.build import make_method, training_data
from fewstep.generator import Generator, frozen
from fewstep.methods.drift.classes import mean_square_distance
from fewstep.methods.drift.features import RandomFeatures, TeacherFeatures
from fewstep.metrics.features import DigitClassifier, PooledPixels
from fewstep.recipe import load_recipe


def teacher(channels=1):
    torch.manual_seed(0)
    network = {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8}
    sampler = {"name": "heun", "steps": 3, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    return frozen(Generator((channels, 8, 8), 3, 0.5, network, sampler).denoiser)


def images(num=5, channels=1, seed=0):
    return torch.rand(num, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_random_features_are_the_same_each_time_and_leave_chance_alone(channels):
    torch.manual_seed(123)
    before, first = torch.get_rng_state(), RandomFeatures((channels, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    second = RandomFeatures((channels, 8, 8))
    x = images(channels=channels)
    assert torch.equal(first(x), second(x))
    assert first(x).shape == (5, 2 * 64 + channels * 64)
    assert not any(p.requires_grad for p in first.parameters())
    assert RandomFeatures((channels, 8, 8), width=8)(x).shape == (5, 2 * 8 + channels * 64)


def test_random_features_are_means_of_two_layers_and_the_pixels():
    network, x = RandomFeatures((1, 8, 8)), images()
    first = nn.functional.silu(nn.functional.conv2d(x, network.first.weight, network.first.bias, padding=1))
    second = nn.functional.silu(nn.functional.conv2d(first, network.second.weight, network.second.bias, padding=1, stride=2))
    expected = torch.cat([first.mean((2, 3)), second.mean((2, 3)), x.flatten(1)], 1)
    torch.testing.assert_close(network(x), expected)
    assert expected[:, :128].std(0).min() > 1e-4  # all of them tell images apart


def test_teacher_features_are_its_bottleneck_at_one_level_and_the_pixels():
    denoiser, x = teacher(), images()
    hidden = denoiser.features(x, torch.tensor(0.7), None, 1)[0]
    found = TeacherFeatures(denoiser, 0.7)(x)
    torch.testing.assert_close(found, torch.cat([hidden.flatten(1), x.flatten(1)], 1))
    assert torch.equal(TeacherFeatures(denoiser, 0.7)(x), found)  # there is no noise
    assert (TeacherFeatures(denoiser)(x) - found).abs().max() > 1e-4  # and the level matters


@pytest.mark.parametrize("network", [RandomFeatures((1, 8, 8)), TeacherFeatures(teacher()), DigitClassifier.load(), PooledPixels()])
def test_a_gradient_passes_through_features_to_the_images_and_not_to_the_weights(network):
    x = images().requires_grad_()
    features = network(x)
    learned = features[:, : features.shape[1] - 64] if features.shape[1] > 64 else features  # without the pixels themselves
    (gradient,) = torch.autograd.grad(learned.square().sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    module = getattr(network, "denoiser", network)
    assert not any(p.requires_grad for p in (module.parameters() if isinstance(module, nn.Module) else []))


@pytest.mark.parametrize("network", [RandomFeatures((1, 8, 8)), TeacherFeatures(teacher())])
def test_parts_of_one_scale_count_alike(network):
    x = images(30)
    before = network.parts(x)
    assert max(mean_square_distance(part) for part in before) > 3 * min(mean_square_distance(part) for part in before)
    network.even(x)
    for scale, part in zip(network.scales, before, strict=True):
        assert mean_square_distance(scale * part) == pytest.approx(1.0, rel=1e-4)
    torch.testing.assert_close(network(x), torch.cat([s * p for s, p in zip(network.scales, before, strict=True)], 1))
    network.even(torch.zeros(4, 1, 8, 8))  # all one: nothing to go by
    assert network(x).isfinite().all()


@pytest.mark.parametrize("name", ["random", "teacher"])
def test_a_method_s_features_are_brought_to_one_scale_by_its_data(name, teacher_run):
    recipe = load_recipe("drift/digits", [f"method.features={teacher_run if name == 'teacher' else name}", "batch_size=32"])
    data = training_data(recipe)
    method = make_method(recipe, data)
    parts = method.features.parts(data.some(256, recipe.seed))
    assert [s**2 * mean_square_distance(p) for s, p in zip(method.features.scales, parts, strict=True)] == pytest.approx(
        [1.0] * len(parts), rel=1e-3
    )
