"""Points of any location and scale: learned alike, drawn in the units that they came in."""

import json

import numpy as np
import pytest
import torch

import own_sets
from every_method import made
from fewstep import load
from fewstep.data.errors import DataError
from fewstep.data.points import point_file
from fewstep.data.units import Units, units_of
from fewstep.recipe import load_recipe
from fewstep.registry import trust
from fewstep.run import make_fabric
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

trust("own_sets:any")
SHORT = ("steps=6", "batch_size=32", "trainer.accelerator=cpu", "trainer.log_every=3")
MLP = ("network.widths=[16]",)
CODED = (*MLP, "network.bits=3", "network.latent=6")
METHODS = {
    "teacher": ("teacher/ring", MLP),
    "drift": ("drift/ring", CODED),
    "drift, vanilla": ("drift/vanilla", MLP),
    "dddm": ("dddm/ring", (*MLP, "method.m=2")),
    "consistency": ("consistency/ring", (*MLP, "method.teacher=null", "method.solver=none")),
    "flow map": ("flow_map/ring", (*MLP, "method.teacher=null", "method.solver=euler")),
    "dmd2": ("dmd2/ring", (*CODED, "method.teacher={teacher}")),
}


def circle(num=400, seed=0):
    """Four Gaussians on a circle, float64 [N, 2]."""
    rng = np.random.default_rng(seed)
    angle = np.pi / 2 * rng.integers(4, size=num)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.standard_normal((num, 2))


def saved(path, x):
    np.save(path, x)
    return f"data={{name: points, path: {path}}}"


def learned(folder, name, data):
    """What `name` ships after six steps on `data`."""
    source, overrides = METHODS[name]
    if "method.teacher={teacher}" in overrides:
        learned(folder, "teacher", data).save_pretrained(folder / "teacher")
    given = [override.replace("{teacher}", str(folder / "teacher")) for override in overrides]
    recipe = load_recipe(source, (*given, *SHORT, data))
    points, method = made(recipe)
    loop = Loop(method, points, make_fabric(recipe.trainer), RunFolder(folder), LoopSettings(steps=6, batch_size=32, ema_warmup=1.0))
    for _ in range(6):
        loop.advance()
    return loop.state.shipped()


def trained(done, folder, name, data):
    """A run folder of the same, from the command line."""
    source, overrides = METHODS[name]
    done("train", source, *overrides, *SHORT, data, "--out", folder / "run")
    return folder / "run"


SCALES = [
    (1.0, (0.0, 0.0)),
    (1e-6, (0.0, 0.0)),
    (1e6, (0.0, 0.0)),
    (0.1, (52.0, 13.0)),
    (1e-6, (1e-3, -1.0)),
    (1e6, (-1e6, 3e6)),
    (1e-2, (1e6, 0.0)),
]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_same_of_points_of_any_location_and_scale(name, tmp_path):
    found = {}
    for number, (scale, offset) in enumerate(SCALES):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = saved(folder / "x.npy", scale * circle() + np.array(offset))
        samples = learned(folder, name, data).sample(200, seed=0)
        found[number] = (samples.double() - torch.tensor(offset, dtype=torch.float64)) / scale
    assert found[0].isfinite().all()
    assert found[0].std() > 0.1
    for number, samples in found.items():
        # a float32 of 1e6 holds hundredths in steps of six; what is drawn there is float64
        torch.testing.assert_close(samples, found[0], rtol=1e-2, atol=1e-2, msg=lambda text, n=number: f"{SCALES[n]}: {text}")


def own(kind, scale, offset, more=""):
    held = "heldout_items: 80, buffer: 50" if kind == "CircleFeed" else "holdout: .2"
    return f"data={{name: 'own_sets:{kind}', scale: {scale}, offset: [{', '.join(map(str, offset))}], {held}{more}}}"


@pytest.mark.parametrize("kind", ["Circle", "CircleFeed"])
@pytest.mark.parametrize("name", ["teacher", "dddm"])
def test_own_sets_of_points_of_any_location_and_scale_are_learned_alike(kind, name, tmp_path):
    found = {}
    for number, (scale, offset) in enumerate(SCALES):
        data = own(kind, scale, offset)
        (tmp_path / str(number)).mkdir()
        samples = learned(tmp_path / str(number), name, data).sample(200, seed=0)
        found[number] = (samples.double() - torch.tensor(offset, dtype=torch.float64)) / scale
    assert found[0].isfinite().all()
    assert found[0].std() > 0.1
    for number, samples in found.items():
        torch.testing.assert_close(samples, found[0], rtol=1e-2, atol=1e-2, msg=lambda text, n=number: f"{SCALES[n]}: {text}")


@pytest.mark.parametrize("kind", ["Circle", "CircleFeed"])
def test_a_run_of_own_points_is_measured_drawn_and_gone_on_with_in_its_units(kind, done, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(own_sets.__file__.rpartition("/")[0])
    run, data = tmp_path / "run", own(kind, 1e-3, (40.0, -2e2))
    done("train", "teacher/ring", *MLP, *SHORT, data, "--out", run)
    units = json.loads((run / "model" / "config.json").read_text())["units"]
    assert units["location"] == pytest.approx([40.0, -2e2], abs=1e-3)
    assert units["scale"] == pytest.approx([7e-4, 7e-4], rel=0.1)
    done("sample", run, "-n", 50, "--out", tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as drawn:
        assert drawn["samples"].mean(0) == pytest.approx([40.0, -2e2], abs=2e-3)
    done("evaluate", run, "-n", 100, "--steps", 1, "--allow", "own_sets")
    results = json.loads((run / "results.json").read_text())
    assert "in standard deviations" in results["reference"]
    done("train", "teacher/ring", *MLP, *SHORT, data, "--out", run, "--resume", "steps=9")
    assert json.loads((run / "model" / "config.json").read_text())["units"] == units


@pytest.mark.parametrize("kind", ["Circle", "CircleFeed"])
def test_a_run_of_own_points_from_before_goes_on_with_points_as_they_come(kind, done, tmp_path, monkeypatch):
    """Its recipe.yaml knows no key for it, and its model has no units."""
    monkeypatch.syspath_prepend(own_sets.__file__.rpartition("/")[0])
    runs, data = (tmp_path / "now", tmp_path / "before"), own(kind, 3, (5.0, 5.0))
    plain = own(kind, 3, (5.0, 5.0), ", standardize: false")
    for run in runs:
        done("train", "teacher/ring", *MLP, *SHORT, plain, "--out", run)
    done("train", "teacher/ring", *MLP, *SHORT, plain, "steps=9", "--out", runs[0], "--resume")
    text = (runs[1] / "recipe.yaml").read_text()
    assert "  standardize: false\n" in text
    (runs[1] / "recipe.yaml").write_text(text.replace("  standardize: false\n", ""))
    done("evaluate", runs[1], "-n", 100, "--steps", 1, "--allow", "own_sets")
    assert "in standard deviations" not in json.loads((runs[1] / "results.json").read_text())["reference"]
    done("train", "teacher/ring", *MLP, *SHORT, data, "steps=9", "--out", runs[1], "--resume")
    assert "units" not in json.loads((runs[1] / "model" / "config.json").read_text())
    a, b = (load(run).sample(100, seed=0) for run in runs)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_columns_of_different_units_are_learned_alike(tmp_path):
    x = circle()
    plain, other = (
        learned(tmp_path, "teacher", saved(tmp_path / "x.npy", each)).sample(200, seed=0).double()
        for each in (x, x * [1e-3, 1e4] + [40.0, -2e4])
    )
    torch.testing.assert_close((other - torch.tensor([40.0, -2e4])) / torch.tensor([1e-3, 1e4]), plain, rtol=1e-2, atol=1e-2)


def test_figures_are_of_standard_units_and_the_units_go_into_the_model_folder(done, tmp_path):
    rows = {}
    for scale, offset in ((1.0, 0.0), (1e-5, 7.0)):
        folder = tmp_path / f"{scale}"
        folder.mkdir()
        trained(done, folder, "teacher", saved(folder / "x.npy", scale * circle() + offset))
        done("evaluate", folder / "run", "-n", 100, "--steps", 1)
        results = json.loads((folder / "run" / "results.json").read_text())
        assert "in standard deviations" in results["reference"]
        rows[scale] = next(row for row in results["rows"].values() if row["role"] == "own")
        units = json.loads((folder / "run" / "model" / "config.json").read_text())["units"]
        x = scale * circle() + offset
        assert units["location"] == pytest.approx(x.mean(0), abs=1e-9 * max(1, offset))
        assert units["scale"] == pytest.approx(x.std(0), rel=1e-6)
    assert rows[1e-5]["energy"] == pytest.approx(rows[1.0]["energy"], rel=0.02, abs=1e-3)


def test_a_teacher_of_other_points_does_not_fit(done, mistake, tmp_path):
    here, there = saved(tmp_path / "a.npy", circle()), saved(tmp_path / "b.npy", 2 * circle() + 1)
    done("train", "teacher/ring", *MLP, *SHORT, here, "--out", tmp_path / "teacher")
    told = mistake("train", "dmd2/ring", *CODED, *SHORT, there, f"method.teacher={tmp_path / 'teacher'}", "--out", tmp_path / "run")
    assert "another location and scale than the data" in told


def test_a_run_from_before_goes_on_with_points_as_they_come(done, tmp_path):
    """recipe.yaml of the formats up to 2 has no key for it."""
    run, data = tmp_path / "run", saved(tmp_path / "x.npy", 3 * circle() + 5)
    plain = data.replace("}", ", standardize: false}")
    done("train", "teacher/ring", *MLP, *SHORT, plain, "--out", run)
    assert "units" not in json.loads((run / "model" / "config.json").read_text())
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("format: 3", "format: 2").replace("  standardize: false\n", ""))
    done("evaluate", run, "-n", 100, "--steps", 1)
    done("train", "teacher/ring", *MLP, *SHORT, plain, "--out", run, "--resume")


def test_an_export_draws_in_the_users_units(done, tmp_path):
    learned(tmp_path, "drift", saved(tmp_path / "x.npy", 1e-2 * circle() + 1e6)).save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").sample(3).dtype == torch.float64
    done("export", tmp_path / "model", "--format", "onnx", "--out", tmp_path / "onnx")  # which compares what both draw


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: np.stack([x[:, 0], 0 * x[:, 1] + 3], 1), "column 1 is 3 in every row"),
        (lambda x: np.stack([0 * x[:, 0], x[:, 1]], 1), "column 0 is 0 in every row"),
        (lambda x: x * [1, 1e39], r"column 1 holds 1.*e\+39, and float32 ends at 3.4e\+38"),
        (lambda x: x * [1e-44, 1], "column 0 varies by 7.*e-45, which float32 cannot hold"),
        (lambda x: (x * 1e-4 + [1e3, 0]).astype(np.float32), "column 0 lies at 1000 and varies by .*, which float32 cannot hold"),
        (lambda x: x * [1, 2e-10] + [0, 1e6], r"column 1 lies at 1e\+06 and varies by .*, which float64 cannot hold"),
        (lambda x: (x * 1e-6 + [1e3, 0]).astype(np.float32), "column 0 is 1000 in every row"),  # all that its type has left of it
        (lambda x: np.where(np.arange(400)[:, None] == 7, np.nan, x), "1 of 400 points hold NaN or infinity, the first in row 7"),
        (lambda x: np.where(np.arange(400)[:, None] > 397, np.inf, x), "2 of 400 points hold NaN or infinity, the first in row 398"),
    ],
)
def test_points_that_cannot_be_learned_get_a_sentence(change, said, tmp_path):
    np.save(tmp_path / "x.npy", change(circle()))
    with pytest.raises(DataError, match=said):
        point_file(str(tmp_path / "x.npy"), 0.2)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int32, np.uint8, np.int64])
def test_numbers_of_any_type_have_units(kind):
    x = (50 * circle() + 100).astype(kind)
    found = units_of(x, "x")
    standard = found.standard(torch.from_numpy(x.astype(np.float64)))
    torch.testing.assert_close(standard.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.back(standard).double(), torch.from_numpy(x.astype(np.float64)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "config", [{}, {"location": [0.0], "scale": [0.0]}, {"location": [0.0, 1.0], "scale": [1.0]}, {"location": "x", "scale": 1}]
)
def test_what_are_no_units_is_refused(config):
    with pytest.raises(ValueError, match="units are"):
        Units.of(config)
