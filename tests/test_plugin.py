"""examples/plugin, a package of somebody's own, from outside: installed, on the path, beside the recipe, or registered."""

import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

import fewstep
from copies import in_a_copy
from fewstep import comparison, measurement, pictures
from fewstep.errors import UserError
from fewstep.recipe import load_recipe
from fewstep.training.checkpoint import checkpoints
from fewstep.training.run_folder import RunFolder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
SOURCE = PLUGIN / "src"
PACKAGE = SOURCE / "fewstep_rectified"
CIRCLES, RING = (PACKAGE / "recipes" / f"{name}.yaml" for name in ("circles", "ring"))
CADENCE = ("trainer.accelerator=cpu", "trainer.log_every=3", "trainer.checkpoint_every=4", "trainer.sample_every=6")
SMALL = ("steps=12", "batch_size=16", "network.width=8", "network.blocks=1", *CADENCE)
ROOMS = {"method": "method:Rectified", "network": "network:ResidualMLP", "data": "data:circles"}
TIMES = ("seconds", "images_per_second")


def by_import_path(package):
    return tuple(f"{section}.name={package}.{room}" for section, room in ROOMS.items())


def records(run):
    return [{key: value for key, value in record.items() if key not in TIMES} for record in RunFolder(run).metrics()]


@pytest.fixture(scope="session")
def distribution(tmp_path_factory):
    """A folder that makes the package installed, as pip would: with the entry points of its pyproject.toml."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    folder = tmp_path_factory.mktemp("site")
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line for group, points in project["entry-points"].items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def installed(registry_apart, monkeypatch, distribution, tmp_path):
    """The package is installed; the working folder is elsewhere."""
    monkeypatch.syspath_prepend(str(SOURCE))
    monkeypatch.syspath_prepend(str(distribution))
    monkeypatch.chdir(tmp_path)
    registry_apart._installed.cache_clear()
    return registry_apart


@pytest.fixture
def copy(tmp_path, request):
    """A copy of the package that no other test has imported: its folder and its name."""
    name = f"rectified_{request.node.name.replace('[', '_').rstrip(']')}"
    shutil.copytree(PACKAGE, tmp_path / "theirs" / name)
    yield tmp_path / "theirs", name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_installed_it_trains_samples_and_is_evaluated(installed, done, tmp_path):
    run = tmp_path / "run"
    out = done("train", CIRCLES, *SMALL, "--out", run).out
    assert out.startswith(f"trained: {run}\n")
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["network"]["name"] == "residual_mlp"  # the entry point's name, not where the class is
    assert "rectified" in repr(fewstep.load(run))
    done("sample", run, "-n", 50, "--out", tmp_path / "samples.png")  # nothing has to be allowed
    results = done("evaluate", run, "-n", 80).out
    assert "rectified, 23 evaluations" in results
    assert "rectified, 1 evaluation " in results
    report = (run / "report.html").read_text()
    assert "<h3>Losses</h3>" in report  # the family of curves that the method names
    assert "rectified, 23 evaluations" in report


def test_killed_and_resumed_it_ends_with_the_same_numbers(installed, done, command, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done("train", CIRCLES, *SMALL, "--out", whole)

    def work() -> None:
        """The command line, killed in the ninth loss as by a machine that goes down."""
        from fewstep_rectified.method import Rectified

        calls = []

        def loss(self, *arguments, whole=Rectified.loss):
            calls.append(1)
            if len(calls) == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(self, *arguments)

        Rectified.loss = loss
        raise AssertionError(command("train", CIRCLES, *SMALL, "--out", cut))

    killed = in_a_copy(work, tmp_path / "killed")
    assert killed.code == -signal.SIGKILL, killed.err
    assert [folder.name for folder in checkpoints(cut / "checkpoints")] == ["step_8", "step_4"]
    assert "going on from step 8" in done("train", CIRCLES, *SMALL, "--out", cut, "--resume").err
    assert records(cut) == records(whole)
    assert (cut / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


def test_a_dry_run_shows_parameters_and_costs(installed, done, tmp_path):
    out = done("train", CIRCLES, "network.width=8", "network.blocks=1", "--dry-run").out
    settings = yaml.safe_load(out)
    assert settings["network"] == {"name": "residual_mlp", "sigma_data": None, "width": 8, "blocks": 1, "waves": 3}
    assert settings["method"]["optimizer"]["lr"] == 2e-3
    # enter 14 x 8, the levels 1 x 8 and 8 x 8, a block of two 8 x 8, leave 8 x 2, with their biases
    parameters = (15 * 8) + (2 * 8 + 9 * 8) + 2 * 9 * 8 + 9 * 2
    assert f"# network denoiser: {parameters:,} parameters, learns every step" in out
    flops = 2 * (14 * 8 + 8 + 3 * 64 + 16)
    assert f"# FLOPs per point: {flops} FLOP an evaluation" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method.sampler_stps=3", "method.sampler_stps is not a key; did you mean 'sampler_steps'?"),
        ("method.sampler_steps=0", "method.sampler_steps is 0; allowed: greater than 0"),
        ("method.time=late", "method.time is 'late'; allowed: 'uniform' or 'logit_normal'"),
        ("method.optimizer.lr=fast", "method.optimizer.lr is 'fast'; allowed: a number"),
        ("network.widht=3", "network.widht is not a key; did you mean 'width'?"),
        ("network.width=wide", "network.width is 'wide'; allowed: an integer"),
        ("data.nois=0.1", "data.nois is not a key; did you mean 'noise'?"),
        ("data.noise=-1.0", "data is circles of size 20000, noise -1.0 and inner 0.5; give"),
        ("network.name=residual_mpl", "network.name is 'residual_mpl'; did you mean 'residual_mlp'?"),
    ],
)
def test_mistakes_have_their_path_and_the_nearest_key(installed, mistake, override, said):
    assert said in mistake("train", CIRCLES, override, "--out", "run")


@pytest.mark.parametrize("where", ["path", "folder", "recipe"])
def test_by_import_path(where, copy, registry_apart, monkeypatch, tmp_path, done):
    """On the path of Python, in the working folder, or beside the recipe."""
    folder, package = copy
    monkeypatch.chdir(folder if where == "folder" else tmp_path)
    if where == "path":
        monkeypatch.syspath_prepend(str(folder))
    recipe = folder / "own.yaml" if where == "recipe" else tmp_path / "own.yaml"
    tree = yaml.safe_load(CIRCLES.read_text())
    for section, room in ROOMS.items():
        tree[section]["name"] = f"{package}.{room}"
    recipe.write_text(yaml.safe_dump(tree))
    done("train", recipe, *SMALL, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["network"]["name"] == f"{package}.network:ResidualMLP"
    assert fewstep.load(tmp_path / "run").sample(3, seed=0).shape == (3, 2)


def test_registered(copy, registry_apart, monkeypatch, tmp_path):
    folder, package = copy
    monkeypatch.syspath_prepend(str(folder))
    import importlib

    for section, room in ROOMS.items():
        module, _, name = room.partition(":")
        fewstep.register(section, f"own_{section}", getattr(importlib.import_module(f"{package}.{module}"), name))
    settings = {"steps": 2, "batch_size": 8, "trainer.accelerator": "cpu", **{f"{section}.name": f"own_{section}" for section in ROOMS}}
    run = fewstep.train(CIRCLES, tmp_path / "run", **settings)
    assert fewstep.load(run).network_config["name"] == "own_network"
    results = fewstep.evaluate(str(run), num=80)
    assert "own_method, 23 evaluations" in results["rows"]


def test_in_two_processes(fewstep_cli, tmp_path):
    """Each of which has to find the package, and draw noise of its own."""
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    overrides = (*by_import_path("fewstep_rectified"), *SMALL, "trainer.devices=2")
    ended = fewstep_cli("train", CIRCLES, *overrides, "--out", "two", cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("trained: two\n") == 1
    run = RunFolder(tmp_path / "two")
    assert [(record["step"], record["images_seen"]) for record in run.metrics()] == [(3, 48), (6, 96), (9, 144), (12, 192)]
    checkpoint, _ = run.latest_checkpoint()
    assert not torch.equal(*checkpoint.rng["loop"])


def test_it_stands_in_a_comparison(installed, monkeypatch, tmp_path, done):
    """`fewstep compare toys/ring --with RECIPE`, without the methods that are built in, which other tests compare."""
    entries = comparison.entries_for(points=True, mixture=True, gamma=1.0, recipes=[str(RING)])
    assert [entry.title for entry in entries][-1] == "rectified flow"
    assert len(entries) > 1
    assert [entry.title for entry in comparison.entries_for(True, True, 2.0, [str(RING)])].count("rectified flow") == 0  # it only draws p

    monkeypatch.setattr(comparison, "shipped_recipes", dict)
    monkeypatch.setattr(
        comparison, "load_recipe", lambda source, overrides=(): load_recipe(source, [*SMALL[1:], "data.size=200", *overrides])
    )
    monkeypatch.setattr(comparison, "COUNTS", (1, 2))
    monkeypatch.setattr(comparison, "SHOWN", 50)
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 400)
    monkeypatch.setattr(pictures, "Dashboard", NoDashboard)
    out = done("compare", "toys/ring", "--with", RING, "--scale", 1e-3, "--out", tmp_path / "compared").out
    rows = json.loads((tmp_path / "compared" / "compare.json").read_text())["rows"]
    assert list(rows) == ["exact samples", *(f"rectified flow, {n} evaluation{'s' * (n > 1)}" for n in (1, 3, 23))]
    assert "rectified flow" in out
    assert (tmp_path / "compared" / "rectified_flow" / "recipe.yaml").exists()


class NoDashboard:
    """Draws nothing."""

    def __init__(self, *arguments) -> None:
        pass

    def __getattr__(self, name):
        return lambda *arguments: None


def test_its_loss_is_the_posterior_variance_where_the_denoiser_is_exact(installed):
    """Of data N(0, s^2): E (v - (n - x0))^2 = Var[x0 | x_t] / t^2, averaged over t, with sigma = t / (1 - t)."""
    from fewstep_rectified.method import Rectified, RectifiedSettings

    from fewstep.methods import Batch

    s, num = 0.7, 200_000
    settings = RectifiedSettings(name="rectified", time="uniform", sigma_min=1e-3, sigma_max=1e3)
    method = object.__new__(Rectified)
    method.settings = settings
    rng = torch.Generator().manual_seed(0)
    batch = Batch(s * torch.randn(num, 1, generator=rng))
    exact = {"denoiser": lambda x, sigma, label: x * (s**2 / (s**2 + sigma**2)).view(-1, 1)}
    found = method.loss("denoiser", exact, batch, rng, {}).loss.item()
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    sigma = t / (1 - t)
    expected = (s**2 * sigma**2 / (s**2 + sigma**2) / t**2).mean().item()
    # the integrand is chi-squared with one degree of freedom times at most 1 + s^2: standard error below sqrt(2) (1 + s^2) / sqrt(num)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(2) * (1 + s**2) / math.sqrt(num))


def test_it_learns(installed, tmp_path):
    """Half of a Gaussian like the data lies on the circles, which is what the denoiser is at first; and nearly all of the data."""
    from fewstep_rectified.data import circles

    def on_circles(x):
        radius = x.norm(dim=1)
        return (((radius - 1.0).abs() < 0.15) | ((radius - 0.5).abs() < 0.15)).float().mean().item()

    data = circles(4000).heldout
    gaussian = data.std(0) * torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    assert on_circles(data) > 0.99
    assert on_circles(gaussian) == pytest.approx(0.5, abs=0.03)
    settings = {"steps": 400, "batch_size": 256, "network.width": 64, "trainer.accelerator": "cpu", "method.ema_decay": 0.98}
    run = fewstep.train(CIRCLES, tmp_path / "run", **settings, **{"trainer.sample_every": 400})
    assert on_circles(fewstep.load(run).sample(4000, seed=0)) > 0.6


def test_the_folder_of_a_package_that_is_not_there_says_so(installed, distribution, tmp_path, done):
    """Made where the package was installed, opened where it is not."""
    done("train", CIRCLES, *SMALL, "--out", tmp_path / "run")
    sys.path.remove(str(distribution))
    installed._installed.cache_clear()
    with pytest.raises(UserError, match="'residual_mlp' is no network"):
        fewstep.load(tmp_path / "run")
