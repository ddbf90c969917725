import math

import pytest
import torch

from fewstep.build import load_data, make_method
from fewstep.methods import Batch
from fewstep.methods.teacher import Teacher
from fewstep.methods.teacher.settings import TeacherSettings
from fewstep.recipe import load_recipe


def teacher(generator, label_dropout=0.0, **options):
    settings = TeacherSettings(name="teacher", **options)
    return Teacher(settings.model_copy(update={"label_dropout": label_dropout}), generator)  # 1 too, which no recipe may ask for


def batch(num=6, classes=3):
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.rand(num, 1, 8, 8, generator=rng) * 2 - 1, torch.randint(0, classes, (num,), generator=rng))


def recording(denoiser):
    """`denoiser`, and a list of the arguments that it was called with."""
    calls = []

    def call(x, sigma, label):
        calls.append((x, sigma, label))
        return denoiser(x, sigma, label)

    return {"denoiser": call}, calls


@pytest.mark.parametrize("sampling", ["lognormal", "karras"])
def test_loss_is_edm_s_with_the_same_chance(make_generator, sampling):
    generator, data = make_generator(), batch()
    levels = {"num_train_timesteps": 40, "sigma_min": 0.01, "sigma_max": 20.0, "rho": 5.0}
    method = teacher(generator, sigma_sampling=sampling, sigma_mean=-0.5, sigma_std=0.8, **levels)
    found = method.loss("denoiser", method.networks, data, torch.Generator().manual_seed(2), {})

    rng = torch.Generator().manual_seed(2)
    if sampling == "lognormal":
        sigma = torch.exp(-0.5 + 0.8 * torch.randn(6, generator=rng))
    else:
        k = torch.randint(0, 40, (6,), generator=rng)
        sigma = ((20.0**0.2 + k.double() / 39 * (0.01**0.2 - 20.0**0.2)) ** 5).float()
    n = torch.randn(6, 1, 8, 8, generator=rng)
    total = 0.0
    for i in range(6):
        s = sigma[i]
        denoised = generator.denoiser(data.x[i : i + 1] + s * n[i : i + 1], s, data.label[i : i + 1])
        total = total + (s**2 + 0.25) / (0.5 * s) ** 2 * ((denoised - data.x[i : i + 1]) ** 2).mean() / 6
    torch.testing.assert_close(found.loss, total)
    torch.testing.assert_close(found.terms["denoising"], total.detach())
    parameters = list(generator.parameters())
    for mine, theirs in zip(torch.autograd.grad(found.loss, parameters), torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_every_level_of_the_karras_grid_is_drawn(make_generator):
    method = teacher(make_generator(), sigma_sampling="karras", num_train_timesteps=5)
    networks, calls = recording(lambda x, sigma, label: x)
    method.loss("denoiser", networks, batch(400), torch.Generator().manual_seed(0), {})
    assert set(calls[0][1].tolist()) == set(method.levels.float().tolist())  # (4/5)^400: none is missed by chance


def test_an_untrained_network_loses_one(make_generator):
    """Its residual is Gaussian of unit variance for Gaussian data of standard deviation sigma_data, at every noise level."""
    generator, num = make_generator(), 512
    generator.denoiser.network.zero_output()
    x = 0.5 * torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    method = teacher(generator)
    with torch.no_grad():
        loss = method.loss("denoiser", method.networks, Batch(x), torch.Generator().manual_seed(0), {}).loss.item()
    assert abs(loss - 1) < 4 * math.sqrt(2 / (num * 64))  # four standard errors of a mean of squared normals


def test_label_dropout_hides_its_share_of_labels(make_generator):
    data, num = batch(4000), 4000
    networks, calls = recording(lambda x, sigma, label: x)
    for dropout in (0.0, 0.3, 1.0):
        teacher(make_generator(), label_dropout=dropout).loss("denoiser", networks, data, torch.Generator().manual_seed(0), {})
    kept, some, none = (label for _, _, label in calls)
    assert torch.equal(kept, data.label)
    assert (none == 3).all()  # the null class
    assert torch.equal(some[some != 3], data.label[some != 3])
    share = (some == 3).double().mean().item()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / num)  # four standard deviations of a binomial share


def test_without_labels_none_are_made_up(make_generator):
    networks, calls = recording(lambda x, sigma, label: x)
    for num_classes in (None, 3):
        teacher(make_generator(num_classes), label_dropout=0.5).loss("denoiser", networks, Batch(batch().x), torch.Generator(), {})
    assert [label for _, _, label in calls] == [None, None]


@pytest.mark.parametrize(("num_classes", "dropout"), [(None, 0.0), (3, 0.5)])
def test_what_has_no_classes_was_trained_without_label_dropout(make_generator, num_classes, dropout):
    method = teacher(make_generator(num_classes), label_dropout=0.5)
    assert method.label_dropout == method.ship(method.generator.denoiser, 1).info["label_dropout"] == dropout


def test_loss_draws_on_its_generator_alone(make_generator):
    method = teacher(make_generator(), label_dropout=0.5)
    before = torch.get_rng_state()
    losses = [method.loss("denoiser", method.networks, batch(), torch.Generator().manual_seed(seed), {}).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_ships_is_the_network_given_with_the_ode_sampler(make_generator):
    generator = make_generator()
    method = teacher(generator, label_dropout=0.2)
    average = make_generator().denoiser
    with torch.no_grad():
        for p in average.parameters():
            p.mul_(0.9)
    shipped = method.ship(average, 17)
    assert shipped.sampler == generator.sampler
    assert (shipped.info["method"], shipped.info["step"], shipped.info["label_dropout"]) == ("teacher", 17, 0.2)
    assert all(torch.equal(a, b) for a, b in zip(shipped.denoiser.parameters(), average.parameters(), strict=True))
    assert method.networks[method.ships] is generator.denoiser


def test_the_guidance_that_it_is_sampled_with_goes_into_what_ships():
    recipe = load_recipe("teacher/digits", ["method.guidance_scale=1.5", "network.channels=[8]", "network.groups=4", "network.head_dim=4"])
    method = make_method(recipe, load_data(recipe.data))
    shipped = method.ship(method.networks["denoiser"], 3)
    assert (shipped.guidance_scale, shipped.evaluations()) == (1.5, 70)
    plain = load_recipe("teacher/digits", ["network.channels=[8]", "network.groups=4", "network.head_dim=4"])
    assert "guidance_scale" not in make_method(plain, load_data(plain.data)).generator.sampler
