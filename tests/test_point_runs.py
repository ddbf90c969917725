"""Points from the command line: what is refused, what is warned of, and a user's own file from training to samples."""

import json
import os

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep.build import make_method
from fewstep.data import toy_data
from fewstep.methods import Ramp
from fewstep.recipe import load_recipe

SMALL = ("network.widths=[8]", "batch_size=16", "steps=6", "trainer.accelerator=cpu", "trainer.log_every=2")
SMALL += ("trainer.checkpoint_every=2", "trainer.sample_every=6")
POOL = "data.size=500"


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("drift/ring", ["method.temperatures=[0]"], ["method.temperatures[0] is 0;", "greater than 0"]),
        ("drift/ring", ["method.temperatures=[.1, -1]"], ["method.temperatures[1] is -1;", "greater than 0"]),
        ("drift/ring", ["method.temperatures=[]"], ["method.temperatures is []", "at least 1 entry"]),
        ("drift/ring", ["method.temperature_start=0"], ["method.temperature_start is 0;", "greater than 0"]),
        ("drift/ring", ["method.gamma=0"], ["method.gamma is 0;", "greater than 0"]),
        ("drift/ring", ["method.gamma_start=-1"], ["method.gamma_start is -1;", "greater than 0"]),
        (
            "drift/ring",
            ["method.field=strikt"],
            ["method.field is 'strikt'", "'strict', 'two_temperature', 'toy', 'drifting' or 'wasserstein'"],
        ),
        ("drift/ring", ["batch_size=1"], ["batch_size is 1;", "at least 2"]),
        ("drift/ring", ["data.density=rign"], ["'rign'", "did you mean 'ring'?", "moons"]),
        ("drift/ring", ["data.size=1"], ["data.size is 1;", "greater than or equal to 2"]),
        ("drift/ring", ["network={name: unet}"], ["network.name is 'unet'", "drift", "'latent_mlp' or 'coded_mlp'"]),
        ("drift/digits", ["network={name: unet}"], ["network.name is 'unet'", "drift on images", "'latent_mlp' or 'coded_mlp'"]),
        ("teacher/ring", ["network={name: unet}"], ["network.name is 'unet'", "on points", "'mlp'"]),
        ("teacher/digits", ["network={name: mlp}"], ["network.name is 'mlp'", "on images", "'unet'"]),
        ("dmd2/ring", ["network={name: teacher}"], ["network.name is 'teacher'", "'latent_mlp' or 'coded_mlp'"]),
        ("drift/ring", ["network.bits=16"], ["network.bits is 16 with network.latent 16", "below latent"]),
        ("drift/ring", ["method.gamma_by=data", "method.gamma=.inf"], ["method.gamma is inf", "finite"]),
        ("drift/digits", ["method.gamma_by=data"], ["method.gamma_by is 'data'", "points"]),
        ("drift/digits", ["method.guidance_scale=2"], ["method.guidance_scale is 2", "method.field=drifting"]),
        ("drift/ring", ["method.guidance_scale=2", "method.field=drifting"], ["method.guidance_scale is 2", "classes"]),
        ("drift/vanilla", ["method.field=drifting", "method.gamma=2"], ["method.gamma is 2", "'drifting'", "method.gamma_by=data"]),
        ("drift/vanilla", ["method.field=toy", "method.gamma_start=2"], ["method.gamma", "'toy'", "method.gamma_by=data"]),
        ("drift/ring", ["method.features=pooled"], ["method.features is 'pooled'", "points drift as they are"]),
        ("drift/digits", ["method.features=nonsense"], ["method.features is 'nonsense'", "random, pooled, evaluator", "nonsense"]),
        ("dmd2/ring", ["data.density=moons"], ["method.teacher is 'exact'", "moons", "no mixture"]),
        ("dmd2/digits", ["method.teacher=exact"], ["method.teacher is 'exact'", "only data toy"]),
        ("dmd2/ring", ["method.teacher=null"], ["method.teacher is missing", "fewstep train teacher/ring", "method.teacher=exact"]),
    ],
)
@pytest.mark.parametrize("options", [["--out", "run"], ["--dry-run"]])
def test_a_recipe_of_points_that_cannot_be_is_refused(options, recipe, overrides, words, mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pool = [POOL] if load_recipe(recipe).data.name == "toy" and "data.size=1" not in overrides else []
    message = mistake("train", recipe, *pool, *overrides, *options)
    for word in words:
        assert word in message
    assert len(message.splitlines()) <= 4  # a sentence, a heading, or the command that makes a teacher
    assert list(tmp_path.iterdir()) == []


def bad_file(kind: str, path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    if kind == "nan":
        x[[7, 9], 1] = np.nan, np.inf
        np.save(path, x)
    elif kind == "two":
        with path.open("wb") as file:
            np.savez(file, a=x, b=x)
    elif kind == "objects":
        np.save(path, np.array([{"a": 1}, [2]], dtype=object), allow_pickle=True)
    elif kind == "images":
        np.save(path, x.reshape(100, 2, 3))
    elif kind == "flat":
        np.save(path, x[:, 0])
    elif kind == "words":
        np.save(path, np.array([["a", "b"]] * 300))
    elif kind == "complex":
        np.save(path, x + 1j)
    elif kind == "small":
        np.save(path, x[:79])
    elif kind == "overflow":
        np.save(path, x * 1e300)
    elif kind == "no columns":
        np.save(path, np.zeros((300, 0)))
    elif kind == "text":
        path.write_text("1,2\n3,4\n")
    elif kind == "truncated":
        np.save(path, x)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["no readable .npy"]),
        ("folder", ["no readable .npy"]),
        ("empty", ["no readable .npy"]),
        ("text", ["no readable .npy"]),
        ("truncated", ["no readable .npy"]),
        ("two", ["several arrays"]),
        ("objects", ["no readable .npy"]),
        ("images", ["shape [100, 2, 3]", "[N, D]"]),
        ("flat", ["shape [300]", "[N, D]"]),
        ("words", ["type <U1", "numbers"]),
        ("complex", ["type complex128", "numbers"]),
        ("small", ["79 points", "each part needs 40"]),
        ("no columns", ["shape [300, 0]", "[N, D]"]),
        ("nan", ["2 of 300 points", "NaN or infinity", "row 7"]),
        ("overflow", ["holds ", "float32 ends at 3.4e+38"]),
    ],
)
def test_a_file_of_points_that_cannot_be_used(kind, words, mistake, tmp_path):
    path = tmp_path / "mine.npy"
    bad_file(kind, path)
    message = mistake("train", "drift/ring", f"data={{name: points, path: {path}, holdout: 0.5}}", "--out", tmp_path / "run")
    for word in [str(path), *words]:
        assert word in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


# --- the bound of the strict field -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "bound"),
    [
        (["method.gamma=1.5"], None),
        (["method.gamma=1.79"], None),
        (["method.gamma=1.81"], "1.8"),  # 1 + 2 0.2^2 / 0.1
        (["method.gamma=2"], "1.8"),
        (["method.gamma=2", "method.temperatures=[.05]"], None),  # 2.6
        (["method.gamma=2", "method.temperatures=[1.0, .04]"], None),  # of the coldest: 3
        (["method.gamma=2", "method.temperature_start=1.0"], "1.8"),  # of the end, where it stays
        (["method.gamma=2", "data.density=unequal"], "1.2"),  # its narrowest std is .1
        (["method.gamma=2", "data.density=moons"], None),  # nothing is known
        (["method.gamma=2", "method.field=two_temperature"], None),
        (["method.gamma=2", "method.gamma_by=data"], None),
    ],
)
def test_beyond_its_bound_the_strict_field_warns(overrides, bound, done):
    err = done("train", "drift/vanilla", "data.size=2000", *overrides, "--dry-run").err
    if bound is None:
        assert err == ""
        return
    assert err.startswith("warning: method.gamma is ")
    assert err.count("\n") == 1
    assert f" from gamma {bound} on " in err
    assert "drift/ring (method.gamma_by=data)" in err


# --- the recipe reaches the method -------------------------------------------------------------------------------------


def test_the_recipe_reaches_the_drift():
    overrides = "field=two_temperature gamma=2.0 gamma_start=.5 gamma_warmup=.25 gamma_by=field temperatures=[.1,.4] temperature_start=3.0"
    overrides += " temperature_warmup=30 temperature_schedule=log kernel=laplace plan=sinkhorn memory=64"
    optimizer = {"lr": 2e-3, "warmup": 3, "decay_from": 0.5, "final": 0.1, "decay": "cosine"}
    optimizer |= {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.03, "clip": 2.0}
    overrides += " table_scale=4." + "".join(f" optimizer.{key}={value}" for key, value in optimizer.items())
    recipe = load_recipe("drift/ring", ["steps=200", POOL, *(f"method.{o}" for o in overrides.split())])
    method = make_method(recipe, toy_data("ring", 500))
    assert (method.field_name, method.kernel, method.plan, method.memory) == ("two_temperature", "laplace", "sinkhorn", 64)
    assert (method.settings.guidance_scale, method.features) == (1.0, None)
    assert method.gamma == Ramp(2.0, 0.5, 50)
    assert method.temperatures == (Ramp(0.1, 3.0, 30, log=True), Ramp(0.4, 3.0, 30, log=True))
    (turn,) = method.turns
    assert turn.optimizer.model_dump() == optimizer
    assert turn.scales == {"centres": 4.0, "embeddings": 4.0}


def test_gamma_by_data_leaves_the_field_at_1():
    method = make_method(load_recipe("drift/ring", ["method.gamma=2", POOL]), toy_data("ring", 500))
    assert [method.gamma(update) for update in (0, 10**6)] == [1.0, 1.0]


def test_the_unit_of_points_is_measured_or_given():
    """The ring's total variance is 1 + 2 * 0.2^2, half of it on each axis; 500 points know it to 3%."""
    data = toy_data("ring", 500)
    measured = make_method(load_recipe("drift/ring", [POOL]), data).generator.sigma_data
    assert measured == pytest.approx(data.train.var(0).mean().sqrt().item(), abs=1e-4)
    assert make_method(load_recipe("drift/ring", [POOL, "network.sigma_data=3"]), data).generator.sigma_data == 3.0


# --- points of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("dims", "kind"), [(2, np.float64), (5, np.int32)])
def test_points_of_ones_own_from_training_to_samples(dims, kind, done, mistake, tmp_path, monkeypatch):
    path, run = tmp_path / "mine.npy", tmp_path / "run"
    points = 20 * np.random.default_rng(0).normal(size=(400, dims)) + 100
    np.save(path, points.astype(kind))
    overrides = [*SMALL, f"data={{name: points, path: {path}}}", "network.bits=3", "method.gamma=1"]
    dry = done("train", "drift/ring", *overrides, "--dry-run").out
    assert f"# data: 320 training points, 80 held out, shape [{dims}], no classes" in dry
    done("train", "drift/ring", *overrides, "--out", run)
    pictures = [run / "dashboard" / "dashboard.png"] if dims == 2 else [run / "samples" / "step_6.png"]
    for picture in pictures:
        Image.open(picture).verify()

    out = done("evaluate", run, "-n", "100").out
    results = json.loads((run / "results.json").read_text())
    assert (results["recipe"], results["data"], results["reference"]) == (
        "drift/mine",
        "mine",
        "40 held-out points, each column in standard deviations",
    )
    assert list(results["rows"]) == ["held-out half", "drift, 1 evaluation"]  # the other half of the held-out is the floor
    assert "held-out half" in out
    assert "the first row is the floor, the other half of the held-out points." in out
    assert "modes" not in results["rows"]["held-out half"]
    assert "-n is 39; give at least 40" in mistake("evaluate", run, "-n", "39")

    generator = fewstep.load(run)
    assert generator.shape == (dims,)
    assert generator.sigma_data == pytest.approx(1, rel=0.1)
    assert generator.units.scale.tolist() == pytest.approx([20] * dims, rel=0.1)
    samples = generator.sample(50, seed=1)
    assert samples.abs().max() > 1  # points are not clamped as images are
    done("sample", run, "-n", "50", "--seed", "1", "--out", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert list(arrays) == ["samples"]
        np.testing.assert_array_equal(arrays["samples"], samples.numpy())
    done("sample", run, "--out", tmp_path / "a.png")
    Image.open(tmp_path / "a.png").verify()
    assert "has no classes" in mistake("sample", run, "--labels", "0", "--out", tmp_path / "b.png")
    assert "steps is 3" in mistake("sample", run, "--steps", "3", "--out", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()

    # p^2 of these can be trained towards, but not measured: nobody knows it
    done("train", "drift/ring", *overrides, "method.gamma=2", "steps=2", "--out", tmp_path / "power")
    assert "only gamma 1 can be measured" in mistake("evaluate", tmp_path / "power")


# --- displays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("display", [None, ":987"])
def test_training_needs_no_display(display, fewstep_cli, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    environment = kept | ({} if display is None else {"DISPLAY": display})
    run = tmp_path / "run"
    outcome = fewstep_cli("train", "drift/ring", POOL, *SMALL, "--out", run, env=environment)
    assert outcome.returncode == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    Image.open(run / "dashboard" / "dashboard.png").verify()
