"""The field of W-Flow in the method, and temperatures that count in distances."""

import pytest
import torch

from fewstep.build import make_method, training_data
from fewstep.generator import Generator
from fewstep.maths.matching import drift_field, toy_drift_field
from fewstep.maths.transport import wasserstein_field
from fewstep.methods import Batch
from fewstep.methods.drift import Drift
from fewstep.methods.drift.classes import Sets, mean_square_distance
from fewstep.methods.drift.settings import DriftSettings
from fewstep.recipe import load_recipe

NUM = 24
LABEL = torch.tensor([0, 0, 1, 1, 1, 3, 0, 1] * 3)  # of 4 classes, one of which is not there


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def make(num_classes=None, features=None, limits=None, **options):
    torch.manual_seed(0)
    network = {"name": "latent_mlp", "widths": [], "latent": 2, "embedding": 4}
    generator = Generator((2,), num_classes, 1.0, network, {"name": "push_forward"}, None, {"name": "push_forward"})
    return Drift(DriftSettings(name="drift", **{"field": "wasserstein", **options}), generator, 0, features, limits)


def gradient(method, x, y, second, label=None):
    """(output, the field at x by the loss alone); the generator makes `x` first, and then `second`."""
    x = x.clone().requires_grad_()
    made = iter((x, second))
    output = method.loss("generator", {"generator": lambda z, sigma, label: next(made)}, Batch(y, label), seeded(), {})
    assert next(made, None) is None
    (found,) = torch.autograd.grad(output.loss, x)
    return output, -found * x.numel() / 2


@pytest.mark.parametrize("temperatures", [[0.5], [0.3, 1.0, 4.0]])
@pytest.mark.parametrize("iterations", [5, 20])
def test_samples_follow_the_sum_of_the_fields_between_real_and_a_second_generated_batch(temperatures, iterations):
    x, y, second = normal(NUM, 2), normal(NUM, 2, seed=1) + 0.5, normal(NUM, 2, seed=2)
    output, found = gradient(make(temperatures=temperatures, sinkhorn_iterations=iterations), x, y, second)
    fields, errors = zip(*(wasserstein_field(x, y, second, t, iterations) for t in temperatures), strict=True)
    torch.testing.assert_close(found, sum(fields), rtol=1e-5, atol=1e-6)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(output.terms["drift"], sum(fields).square().mean().sqrt())
    torch.testing.assert_close(output.terms["plan_error"], max(errors))
    assert "escaped" in output.terms


@pytest.mark.parametrize("memory", [0, 2 * NUM])
def test_each_class_has_plans_of_its_own(memory):
    x, y, second = (normal(NUM, 2, seed=i) for i in range(3))
    method = make(4, temperatures=[0.5], memory=memory)
    kept, kept_label = y, LABEL
    if memory:
        before, before_label = normal(NUM, 2, seed=5) + 1, torch.arange(NUM) % 4  # with a class that the batch has not
        gradient(method, x, before, second, before_label)
        kept, kept_label = torch.cat([y, before]), torch.cat([LABEL, before_label])
    output, found = gradient(method, x, y, second, LABEL)
    expected, worst = torch.zeros_like(x), 0.0
    for k in (0, 1, 3):
        mine = k == LABEL
        expected[mine], error = wasserstein_field(x[mine], kept[kept_label == k], second[mine], 0.5)
        worst = max(worst, error.item())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert output.terms["plan_error"].item() == pytest.approx(worst, rel=1e-4)


def test_the_second_batch_is_of_other_noise_and_the_same_labels_and_gives_no_gradient():
    method, seen = make(4), []

    def generator(z, sigma, label):
        seen.append((z, label, torch.is_grad_enabled()))
        return z.clone().requires_grad_(torch.is_grad_enabled())

    method.loss("generator", {"generator": generator}, Batch(normal(NUM, 2), LABEL), seeded(7), {})
    (z, label, graph), (other, same, no_graph) = seen
    rng = seeded(7)
    assert torch.equal(z, torch.randn(NUM, 2, generator=rng))
    assert torch.equal(other, torch.randn(NUM, 2, generator=rng))
    assert label is same is LABEL
    assert (graph, no_graph) == (True, False)


def test_it_acts_on_features():
    def features(items):
        return torch.stack([items.square().sum(1), items[:, 0], items.sum(1).sin()], 1)

    x, y, second = (normal(NUM, 2, seed=i) for i in range(3))
    output, _ = gradient(make(temperatures=[0.8], features=features), x, y, second)
    field, _ = wasserstein_field(*(features(a) for a in (x, y, second)), 0.8)
    torch.testing.assert_close(output.terms["drift"], field.square().mean().sqrt())


def test_a_picture_shows_it_at_half_of_the_samples_beside_the_other_half():
    method, samples, real = make(temperatures=[0.7]), normal(NUM, 2), normal(40, 2, seed=1)
    where, field = method.field(samples, samples, real)
    assert torch.equal(where, samples[:12])
    torch.testing.assert_close(field, wasserstein_field(samples[:12], real, samples[12:], 0.7)[0])


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_a_gaussian_ends_at_the_data_s_own_variance(temperature):
    """Std 1 in one dimension. The mean over 60 steps of batches of 256, which know a variance to 9 %, moves by about 2 %."""
    method, rng = make(temperatures=[temperature], sinkhorn_iterations=10), seeded()
    generator = method.networks["generator"]
    with torch.no_grad():
        for p in generator.parameters():
            p.mul_(0.4)
    optimizer, variances = torch.optim.SGD(generator.parameters(), 1.0), []
    for _ in range(120):
        weight = generator.network.layers[0].weight.detach()
        variances.append((weight @ weight.T).diagonal().mean())
        output = method.loss("generator", method.networks, Batch(torch.randn(256, 2, generator=rng)), rng, {})
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_update("generator")
    assert variances[0] < 0.5
    assert torch.stack(variances[60:]).mean().item() == pytest.approx(1.0, rel=0.08)


# --- classes as sets, and distances


def test_sets_hold_the_items_of_each_class_and_give_them_back():
    items = normal(NUM, 3)
    sets = Sets(items, LABEL, torch.tensor([1, 3]))
    assert sets.items.shape == (2, 12, 3)
    for row, k in enumerate((1, 3)):
        count = (k == LABEL).sum()
        assert torch.equal(sets.items[row, :count], items[k == LABEL])
        torch.testing.assert_close(sets.log_weights[row].exp(), torch.cat([torch.full((count,), 1 / count), torch.zeros(12 - count)]))
    back = sets.back(2 * sets.items, items)
    assert torch.equal(back, torch.where(((LABEL == 1) | (LABEL == 3))[:, None], 2 * items, 0))


@pytest.mark.parametrize("label", [None, LABEL, torch.arange(NUM)])
def test_mean_square_distance_is_that_of_all_pairs_of_one_class(label):
    y = normal(NUM, 3) * 2 + 5
    same = torch.ones(NUM, NUM, dtype=torch.bool) if label is None else label[:, None] == label
    pairs = torch.cdist(y.double(), y.double()).square()[same & ~torch.eye(NUM, dtype=torch.bool)]
    assert mean_square_distance(y, label) == pytest.approx(pairs.mean().item() if len(pairs) else 0.0, rel=1e-5)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("field", ["strict", "two_temperature", "toy", "wasserstein"])
def test_temperatures_in_distances_do_not_depend_on_the_unit_of_the_features(field, labelled):
    label = LABEL if labelled else None
    method = make(4 if labelled else None, field=field, temperatures=[0.1, 0.6], temperature_unit="distance")

    def found(unit):
        x, y, second = (unit * normal(NUM, 2, seed=i) for i in range(3))
        made = iter((x.requires_grad_(), second))
        output = method.loss("generator", {"generator": lambda *_: next(made)}, Batch(y, label), seeded(), {})
        return -torch.autograd.grad(output.loss, x)[0] * x.numel() / 2 / unit

    assert found(1.0).abs().max() > 0.1
    for unit in (50.0, 0.02):
        torch.testing.assert_close(found(unit), found(1.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("field", "power"), [("strict", 1.0), ("toy", 0.5)])
def test_a_temperature_of_one_is_the_mean_square_distance_or_its_root(field, power):
    x, y = normal(NUM, 2), normal(NUM, 2, seed=1)
    _, found = gradient_of_one(make(field=field, temperatures=[0.25], temperature_unit="distance"), x, y)
    temperature = 0.25 * mean_square_distance(y) ** power
    expected = toy_drift_field(x, y, temperature) if field == "toy" else drift_field(x, y, x, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def gradient_of_one(method, x, y):
    x = x.clone().requires_grad_()
    output = method.loss("generator", {"generator": lambda *_: x}, Batch(y), seeded(), {})
    return output, -torch.autograd.grad(output.loss, x)[0] * x.numel() / 2


def test_a_batch_without_two_of_a_class_counts_in_distances_of_all_and_copies_in_none():
    x, y, second = (normal(NUM, 2, seed=i) for i in range(3))
    method = make(NUM, temperatures=[0.5], temperature_unit="distance")
    output, found = gradient(method, x, y, second, torch.arange(NUM))
    torch.testing.assert_close(found, y - second, rtol=1e-5, atol=1e-6)  # one of a class goes from one to the other
    output, _ = gradient(make(temperatures=[0.5], temperature_unit="distance"), x, torch.zeros(NUM, 2), second)
    assert output.loss.isfinite()


@pytest.mark.parametrize("iterations", [1, 30])
@pytest.mark.parametrize("field", ["strict", "drifting"])
def test_iterations_reach_the_other_plans(field, iterations):
    x, y = normal(NUM, 2), normal(NUM, 2, seed=1)
    options = {"field": field, "plan": "sinkhorn", "temperatures": [0.2]}
    found = gradient_of_one(make(sinkhorn_iterations=iterations, **options), x, y)[1]
    usual = gradient_of_one(make(**options), x, y)[1]
    assert (found - usual).abs().max() > 1e-3 * usual.abs().max()
    if field == "strict":
        torch.testing.assert_close(found, drift_field(x, y, x, 0.2, plan="sinkhorn", iterations=iterations), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", ["none", "evaluator", "random"])
def test_temperatures_left_to_the_data_are_those_of_the_features(features):
    recipe = load_recipe(
        "drift/digits", [f"method.features={features}", "method.temperatures=auto", "method.temperature_start=auto", "batch_size=64"]
    )
    data = training_data(recipe)
    method = make_method(recipe, data)
    phi = data.some(64, recipe.seed)
    phi = method.features(phi) if method.features else phi.flatten(1)
    (ramp,) = method.temperatures
    assert ramp.start == pytest.approx(2 * phi.double().var(0).sum().item())
    assert 0 < ramp.end < ramp.start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "method.gamma is 1.5, which the field 'wasserstein' does not know"),
        ({"kernel": "laplace"}, "method.kernel is 'laplace', but the field 'wasserstein' moves by squared distances"),
        ({"guidance_scale": 2.0}, "method.guidance_scale is 2.0; it needs method.field=drifting"),
        ({"field": "drifting", "temperature_unit": "distance"}, "temperatures of the field 'drifting' count in mean distances anyway"),
        ({"temperature_unit": "distance", "temperatures": "auto", "limits": (4.0, 0.2)}, "left to the data .* give numbers"),
        ({"temperature_unit": "distance", "temperature_start": "auto", "limits": (4.0, 0.2)}, "left to the data .* give numbers"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(("temperatures", "warned"), [([0.001], True), ([1.0], True), ([1e-5], False)])
def test_the_bound_on_gamma_is_told_of_in_the_data_s_own_distances(temperatures, warned, capsys):
    """The ring's points are 18 apart, squared: at .001 of that gamma 6 is beyond 1 + 2 (.2)^2 / .018 = 5.4, and far within at 1e-5."""
    settings = ["method.field=strict", "method.gamma_by=field", "method.gamma=6", "method.temperature_unit=distance", "batch_size=512"]
    recipe = load_recipe("drift/ring", [*settings, f"method.temperatures={temperatures}", "method.temperature_start=null"])
    make_method(recipe, training_data(recipe))
    assert ("becomes a point from gamma" in capsys.readouterr().err) == warned
