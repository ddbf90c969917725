import math

import pytest
import torch

from fewstep.build import load_data, make_method
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.methods import Batch, Ratio
from fewstep.methods.base import hidden_labels
from fewstep.methods.dddm import DDDM
from fewstep.methods.dddm.settings import DDDMSettings
from fewstep.recipe import load_recipe
from fewstep.samplers import distributional
from fewstep.sections import DenoiserOptimizer
from fewstep.streams import Noise

SAMPLER = {"name": "distributional", "steps": 4, "churn": 1.0}
DENOISER = {"name": "distributional", "output": "x0"}
POINTS = {"name": "mlp", "widths": [16, 16], "activation": "silu"}
NETWORKS = {
    (2,): {**POINTS, "xi_channels": 3},
    (1, 4, 4): {"name": "dit", "patch": 2, "width": 8, "depth": 2, "heads": 2, "xi_channels": 2, "xi_block": 1},
}
NUM = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_generator(shape=(2,), num_classes=3, output="x0", seed=0, sigma_data=0.6):
    torch.manual_seed(seed)
    generator = Generator(shape, num_classes, sigma_data, NETWORKS[shape], SAMPLER, {"data": "none"}, {**DENOISER, "output": output})
    with torch.no_grad():  # a DiT starts at 0
        for p in generator.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=seeded(seed)))
    return generator


def dddm(generator, steps=0, label_dropout=0.0, **options):
    settings = DDDMSettings(name="dddm", **options)
    # 1 too, which no recipe may ask for
    return DDDM(settings.model_copy(update={"label_dropout": label_dropout}), generator, steps)


def make(shape=(2,), num_classes=3, **options):
    return dddm(make_generator(shape, num_classes), **options)


def batch(shape=(2,), num=NUM, classes=3):
    label = None if classes is None else torch.randint(0, classes, (num,), generator=seeded(2))
    return Batch(torch.randn(num, *shape, generator=seeded(1)), label)


def loss_of(method, data, seed=3, networks=None):
    return method.loss("denoiser", networks or method.networks, data, seeded(seed), {})


def recording(answer):
    """`answer` as the network, and a list of the arguments that it was called with."""
    calls = []

    def call(x, t, label, xi):
        calls.append((x, t, label, xi))
        return answer(x, t, label, xi)

    return {"denoiser": call}, calls


def ignoring(x, t, label, xi):
    """As many particles as xi, all of them x_t."""
    return x[:, None].expand(-1, xi.shape[1], *x.shape[1:])


def distance(a, b):
    return ((a - b).square().sum() + 1e-12).sqrt()


# --- the loss


@pytest.mark.parametrize("shape", NETWORKS)
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"m": 2},
        {"m": 5, "beta": 0.1, "bias": -2.0},
        {"m": 4, "beta": 1.7, "lam": 0.6, "bias": 1.5},
        {"m": 3, "beta": 2.0, "lam": 1.0},
        {"m": 3, "beta": 0.8, "lam": 0.0},
        {"m": 1, "beta": 1.0, "lam": 0.0},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_loss_is_the_weighted_score_with_the_same_chance(shape, classes, options):
    method, data = make(shape, classes, **options), batch(shape, classes=classes)
    found = loss_of(method, data)

    rng, m = seeded(3), options["m"]
    beta, lam, bias = options.get("beta", 1.0), options.get("lam", 1.0), options.get("bias", 0.0)
    t = torch.rand(NUM, generator=rng)
    eps = torch.randn(NUM, *shape, generator=rng)
    xi = torch.randn(NUM, m, *method.generator.denoiser.xi_shape, generator=rng)
    total, error, apart = 0.0, 0.0, 0.0
    for i in range(NUM):
        x_t = (1 - t[i]) * data.x[i] + t[i] * eps[i]
        label = None if data.label is None else data.label[i : i + 1]
        particles = [method.generator.denoiser(x_t[None], t[i], label, xi[i, j][None])[0] for j in range(m)]
        near = [distance(data.x[i], p) for p in particles]
        pairs = [distance(particles[j], particles[k]) for j in range(m) for k in range(m) if j != k]
        score = sum(d**beta for d in near) / m
        if lam:
            score = score - lam / (2 * m * (m - 1)) * sum(d**beta for d in pairs)
        weight = torch.sigmoid(((1 - t[i]) ** 2 / t[i] ** 2).log() - bias)
        total = total + weight * score / NUM
        error = error + sum(near).detach() / (m * NUM)
        apart = apart + sum(pairs).detach() / (max(1, m * (m - 1)) * NUM) if m > 1 else 0.0
    torch.testing.assert_close(found.loss, total, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.terms["score"], total.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.terms["error"], error / (0.6 * math.prod(shape) ** 0.5), rtol=1e-4, atol=1e-6)
    name = "calibration" if lam else "apart"
    assert set(found.terms) == {"score", "error"} | ({name} if m > 1 else set())
    if m > 1:
        torch.testing.assert_close(found.terms[name].value, apart / error, rtol=1e-4, atol=1e-6)
    parts = [part for value in found.terms.values() for part in (value if isinstance(value, Ratio) else [value])]
    assert not any(part.requires_grad for part in parts)
    parameters = list(method.generator.parameters())
    for mine, theirs in zip(torch.autograd.grad(found.loss, parameters), torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("output", ["x0", "edm"])
def test_beta_two_without_pairs_is_plain_diffusion(output):
    generator, data = make_generator(output=output), batch(num=50)
    found = loss_of(dddm(generator, m=1, beta=2.0, lam=0.0, bias=0.5), data)
    rng = seeded(3)
    t, eps = torch.rand(50, generator=rng), torch.randn(50, 2, generator=rng)
    xi = torch.randn(50, 1, 3, generator=rng)
    denoised = generator.denoiser((1 - t)[:, None] * data.x + t[:, None] * eps, t, data.label, xi[:, 0])
    weight = torch.sigmoid(2 * ((1 - t) / t).log() - 0.5)
    expected = (weight * (denoised - data.x).square().sum(1)).mean()
    torch.testing.assert_close(found.loss, expected)
    parameters = list(generator.parameters())
    for mine, theirs in zip(torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_network_is_asked_once_for_all_particles_of_points_on_the_path():
    networks, calls = recording(ignoring)
    data = batch(num=4000)
    loss_of(make(m=5), data, networks=networks)
    ((x_t, t, label, xi),) = calls
    assert xi.shape == (4000, 5, 3)
    assert label is data.label
    assert t.shape == (4000,)
    # uniform times: mean 1/2 and variance 1/12, within four standard errors
    assert abs(t.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / 4000)
    assert 0 <= t.min() < 0.01 < 0.99 < t.max() <= 1
    eps = (x_t - (1 - t)[:, None] * data.x) / t[:, None]  # what was added is standard normal, and not xi
    for noise in (eps[t > 0.1], xi.flatten(0, 1)):
        assert noise.mean().abs() < 4 / math.sqrt(noise.numel())
        assert abs(noise.var().item() - 1) < 4 * math.sqrt(2 / noise.numel())
    assert abs(torch.corrcoef(torch.stack([xi[:, 0, 0], xi[:, 1, 0]]))[0, 1].item()) < 4 / math.sqrt(4000)  # particles differ
    assert abs(torch.corrcoef(torch.stack([xi[:, 0, 0], eps[:, 0]]))[0, 1].item()) < 4 / math.sqrt(4000)


def test_gradient_reaches_every_parameter():
    for shape in NETWORKS:
        method = make(shape, m=3, label_dropout=0.5)
        loss_of(method, batch(shape, num=40)).loss.backward()
        without = [name for name, p in method.generator.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without
        assert all(p.grad.isfinite().all() for p in method.generator.parameters())


def test_gradient_is_finite_where_particles_coincide():
    particles = torch.zeros(NUM, 3, 2, requires_grad=True)
    data = Batch(torch.zeros(NUM, 2))  # and where they hit the truth
    loss_of(make(m=3, beta=0.1), data, networks={"denoiser": lambda x, t, label, xi: particles}).loss.backward()
    assert particles.grad.isfinite().all()


def test_loss_draws_on_its_generator_alone():
    method = make(label_dropout=0.5)
    before = torch.get_rng_state()
    losses = [loss_of(method, batch(), seed).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)


MU, S = 1.0, 0.5  # the data of what follows: N(MU, S^2), one number an item


def posterior(x_t, t):
    """(mean, std) of x0 given ``x_t = a x0 + t eps``, a = 1 - t: the precisions 1 / S^2 and a^2 / t^2 add up."""
    a = 1 - t
    variance = a**2 * S**2 + t**2  # of x_t
    return (a * x_t * S**2 + MU * t**2) / variance, S * t / variance**0.5


def test_draws_from_the_posterior_are_calibrated_and_score_best():
    """The closed form in place of the network: calibration 1 and the lowest score; half the spread shows as half."""
    num, m = 4000, 4
    data = Batch(MU + S * torch.randn(num, 1, generator=seeded(5)))
    method = dddm(Generator((1,), None, S, {**POINTS, "xi_channels": 1}, SAMPLER, None, DENOISER), m=m)

    def drawn(spread=1.0, shift=0.0):
        def call(x, t, label, xi):
            mean, std = posterior(x, t[:, None])
            return (mean + shift * std)[:, None] + spread * std[:, None] * xi

        return loss_of(method, data, networks={"denoiser": call})

    exact = drawn()
    # |x0 - xhat| and |xhat - xhat'| have a relative deviation of 0.76; 4,000 items with 4 errors and 6 pairs each, hardly independent
    assert exact.terms["calibration"].value.item() == pytest.approx(1, abs=4 * 0.76 * math.sqrt(2 / num))
    for worse in (drawn(0.6), drawn(1.5), drawn(1.0, 0.4), drawn(0.0)):
        assert worse.loss > exact.loss
    assert drawn(0.0).terms["calibration"].value.item() == pytest.approx(0, abs=1e-4)
    # with spread c the error's variance is 1 + c^2, the pairs' 2 c^2
    for c in (0.5, 2.0):
        assert drawn(c).terms["calibration"].value.item() == pytest.approx(c * math.sqrt(2 / (1 + c**2)), rel=0.08)


# --- labels


def test_label_dropout_hides_its_share_of_labels():
    data, num = batch(num=4000), 4000
    networks, calls = recording(ignoring)
    for dropout in (0.0, 0.3, 1.0):
        loss_of(make(label_dropout=dropout), data, networks=networks)
    kept, some, none = (label for _, _, label, _ in calls)
    assert torch.equal(kept, data.label)
    assert (none == 3).all()  # the null class
    assert torch.equal(some[some != 3], data.label[some != 3])
    share = (some == 3).double().mean().item()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / num)  # four standard deviations of a binomial share


def test_without_labels_none_are_made_up():
    networks, calls = recording(ignoring)
    for num_classes in (None, 3):
        loss_of(make(num_classes=num_classes, label_dropout=0.5), batch(classes=None), networks=networks)
    assert [label for _, _, label, _ in calls] == [None, None]


@pytest.mark.parametrize(("num_classes", "dropout"), [(None, 0.0), (3, 0.5)])
def test_what_has_no_classes_was_trained_without_label_dropout(num_classes, dropout):
    method = make(num_classes=num_classes, label_dropout=0.5)
    assert method.label_dropout == method.ship(method.generator.denoiser, 1).info["label_dropout"] == dropout


def test_labels_are_hidden_before_anything_else_is_drawn():
    networks, calls = recording(ignoring)
    data = batch()
    loss_of(make(label_dropout=0.5), data, networks=networks)
    rng = seeded(3)
    hidden = torch.rand(NUM, generator=rng) < 0.5
    assert torch.equal(calls[0][2], torch.where(hidden, 3, data.label))
    assert torch.equal(calls[0][1], torch.rand(NUM, generator=rng))


def test_labels_that_stay_cost_no_chance():
    label, rng = torch.arange(5), seeded()
    before = rng.get_state()
    assert hidden_labels(label, 0.0, 5, rng) is label
    assert hidden_labels(None, 0.5, 5, rng) is None
    assert torch.equal(rng.get_state(), before)
    assert hidden_labels(label, 1.0, 5, rng).tolist() == [5] * 5
    assert label.tolist() == [0, 1, 2, 3, 4]  # the batch's own are left alone


# --- lambda


def test_samples_are_shown_where_they_should_be_like_the_data():
    data = batch()
    networks, calls = recording(lambda x, t, label, xi: xi[..., :2] * torch.tensor([1.0, 2.0], requires_grad=True))
    output = loss_of(make(m=3), data, networks=networks)
    assert torch.equal(output.samples, calls[0][3][:, 0, :2] * torch.tensor([1.0, 2.0]))  # the first particle
    assert not output.samples.requires_grad
    assert output.label is data.label
    for lam in (0.0, 0.99):
        assert loss_of(make(m=3, lam=lam), data).samples is None
    assert loss_of(make(m=1, lam=0.0), data).samples is None


def test_lambda_rises_with_the_updates():
    method, data = make(m=3, lam_warmup=0.5, steps=8), batch()
    fixed = {lam: loss_of(make(m=3, lam=lam), data).loss.item() for lam in (0.0, 0.25, 0.5, 0.75, 1.0)}
    seen = []
    for _ in range(6):
        output = loss_of(method, data)
        seen.append((output.loss.item(), sorted(output.terms), output.samples is not None))
        method.after_update("denoiser")
        assert method.settings_now() == {"lam": min(1.0, 0.25 * (len(seen) - 1))}  # that of the update just made
    assert [loss for loss, _, _ in seen] == pytest.approx([fixed[lam] for lam in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)], rel=1e-6)
    assert len(set(fixed.values())) == 5
    rising, settled = ["apart", "error", "score"], ["calibration", "error", "score"]
    assert [terms for _, terms, _ in seen] == [rising] * 4 + [settled] * 2
    assert [shown for _, _, shown in seen] == [False] * 4 + [True] * 2


def test_a_resumed_ramp_goes_on_where_it_was():
    method, data = make(m=3, lam_warmup=0.5, steps=8), batch()
    method.after_update("denoiser")
    method.after_update("denoiser")
    resumed = make(m=3, lam_warmup=0.5, steps=8)
    resumed.load_state_dict(method.state_dict())
    assert resumed.state_dict() == method.state_dict() == {"updates": 2}
    assert loss_of(resumed, data).loss == loss_of(method, data).loss == loss_of(make(m=3, lam=0.5), data).loss
    assert resumed.settings_now() == method.settings_now() == {"lam": 0.25}


def test_a_lambda_that_stays_is_no_setting_to_show():
    assert make(lam=0.5).settings_now() == {}


# --- what it is made of


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": 0.0}, r"method\.beta is 0.0; allowed: greater than 0 and less than or equal to 2"),
        ({"beta": -1.0}, r"method\.beta is -1.0; .* greater than 0 and less than or equal to 2"),
        ({"beta": 2.5}, r"method\.beta is 2.5; .* greater than 0 and less than or equal to 2"),
        ({"beta": math.nan}, r"method\.beta is nan"),
        ({"lam": -0.1}, r"method\.lam is -0.1; .* 0 and less than or equal to 1"),
        ({"lam": 1.1}, r"method\.lam is 1.1; .* 0 and less than or equal to 1"),
        ({"lam": 1.1, "lam_warmup": 0.5}, r"method\.lam is 1.1; .* 0 and less than or equal to 1"),
        ({"m": 1}, r"method: m is 1 with lam 1.0; .* m of at least 2 \(or lam 0"),
        ({"m": 1, "lam_warmup": 0.5}, r"method: m is 1 with lam 1.0"),
        ({"m": 0, "lam": 0.0}, r"method\.m is 0; allowed: greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, says):
    overrides = [f"method.{key}={'.nan' if value != value else value}" for key, value in options.items()]
    with pytest.raises(UserError, match=says):
        load_recipe("dddm/ring", overrides)
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)


@pytest.mark.parametrize("options", [{"m": 1, "lam": 0.0}, {"m": 2, "lam": 1.0}, {"beta": 2.0}, {"beta": 1e-3}])
def test_settings_at_the_edge_are_allowed(options):
    assert loss_of(make(**options), batch()).loss.isfinite()


def test_a_generator_that_draws_nothing_is_refused(make_generator):
    with pytest.raises(ValueError, match="denoiser is 'preconditioned'; DDDM trains a 'distributional' one"):
        dddm(make_generator())


def test_what_ships_is_the_network_given_with_the_generator_s_sampler():
    generator = make_generator()
    adam = DenoiserOptimizer(lr=3e-4, beta2=0.9)
    method = dddm(generator, label_dropout=0.2, optimizer=adam)
    (turn,) = method.turns
    assert (turn.name, turn.trains, turn.every, turn.optimizer, turn.scales) == ("denoiser", ("denoiser",), 1, adam, {})
    assert method.networks[method.ships] is generator.denoiser
    average = make_generator(seed=1).denoiser
    shipped = method.ship(average, 17)
    assert shipped.sampler == generator.sampler
    assert (shipped.info["method"], shipped.info["step"], shipped.info["label_dropout"], shipped.info["data"]) == ("dddm", 17, 0.2, "none")
    assert all(torch.equal(a, b) for a, b in zip(shipped.denoiser.parameters(), average.parameters(), strict=True))
    rng = seeded(8)
    latents, times = torch.randn(5, 2, generator=rng), torch.tensor([1.0, 0.75, 0.5, 0.25])
    with torch.no_grad():
        expected = distributional(average, latents, times, torch.tensor([0, 1, 2, 0, 1]), Noise(rng))
    torch.testing.assert_close(shipped.sample(5, seed=8), expected)
    assert shipped.sample(2, guidance_scale=2.0).isfinite().all()  # it was trained with labels hidden


def test_the_guidance_that_it_is_sampled_with_goes_into_what_ships():
    recipe = load_recipe("dddm/digits", ["method.guidance_scale=1.5", "network.channels=[8]", "network.groups=4", "network.head_dim=4"])
    method = make_method(recipe, load_data(recipe.data))
    shipped = method.ship(method.networks["denoiser"], 3)
    assert (shipped.guidance_scale, shipped.evaluations(4)) == (1.5, 8)
    plain = shipped.derive({**shipped.sampler, "guidance_scale": 1.0}, shipped.info, shipped.denoiser)
    assert torch.equal(plain.sample(3, seed=0, steps=2, guidance_scale=1.5), shipped.sample(3, seed=0, steps=2))


# --- learning


def learned(steps, batch_size, **options):
    """The denoiser of N(MU, S^2) after `steps` of Adam; the bias makes times near 1 count as well."""
    torch.manual_seed(0)
    network = {"name": "mlp", "widths": [32, 32], "activation": "silu", "xi_channels": 1}
    generator = Generator((1,), None, S, network, SAMPLER, None, DENOISER)
    method = dddm(generator, bias=-4.0, **options)
    optimizer, rng = torch.optim.Adam(generator.parameters(), 1e-2), seeded()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        data = Batch(MU + S * torch.randn(batch_size, 1, generator=rng))
        optimizer.zero_grad()
        method.loss("denoiser", method.networks, data, rng, {}).loss.backward()
        optimizer.step()
        schedule.step()
    return generator.denoiser


@torch.no_grad()
def draws_and_truth(denoiser):
    """At each time and x_t: (error of the draws' mean, their standard deviation), both over the posterior's own."""
    for t in (0.3, 0.6, 0.9):
        for z in (-1.0, 0.0, 1.0):
            x_t = torch.tensor([[(1 - t) * MU + z * math.hypot((1 - t) * S, t)]])
            mean, std = posterior(x_t.item(), t)
            draws = denoiser(x_t, torch.tensor(t), None, torch.randn(1, 8000, 1, generator=seeded(9)))
            yield t, z, (draws.mean().item() - mean) / std, draws.std().item() / std


def test_it_learns_to_draw_from_the_posterior():
    # over three seeds the worst mean was off by 0.05 of a deviation and the worst spread by 5 %; 8,000 draws know both to 1 %
    for t, z, shift, spread in draws_and_truth(learned(800, 256, m=8)):
        assert abs(shift) < 0.12, (t, z)
        assert spread == pytest.approx(1, abs=0.12), (t, z)


def test_plain_diffusion_learns_the_mean_and_no_spread():
    # over three seeds the worst mean was off by 0.07 of a deviation, the widest spread 7 %
    for t, z, shift, spread in draws_and_truth(learned(600, 256, m=1, beta=2.0, lam=0.0)):
        assert abs(shift) < 0.15, (t, z)
        assert spread < 0.15, (t, z)


def test_the_picture_of_the_field_leads_from_half_way_to_the_draws():
    method = make(num_classes=None)
    points = torch.randn(5, 2, generator=seeded(4))
    method.networks = {"denoiser": lambda x, t, label, xi: 3.0 * x[:, None] + (t - 0.5) + 0 * xi[..., :2]}
    where, field = method.field(points, points, points)
    assert where is points
    torch.testing.assert_close(field, 0.5 * points)  # 3 (1 - 1/2) x - x, with nothing added at t = 1/2


def test_the_picture_of_the_field_is_the_same_each_time():
    method = make(num_classes=None)
    points = torch.randn(5, 2, generator=seeded(4))
    torch.testing.assert_close(method.field(points, points, points)[1], method.field(points, points, points)[1], rtol=0, atol=0)
