"""``fewstep compare``: every recipe for a data set, small, at every number of steps."""

import json
import math
import statistics
from pathlib import Path

import pytest
from PIL import Image

from fewstep import comparison, measurement, pictures
from fewstep.data import load_digits
from fewstep.errors import UserError
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

SCALE = 1e-3
EXACT_ROW, REAL_ROW = "exact samples", "real train split"
COUNTS = (1, 2, 4)
FOLDERS = {
    "drift": "drift",
    "DMD2, exact teacher": "dmd2_exact_teacher",
    "teacher": "teacher",
    "DMD2, trained teacher": "dmd2_trained_teacher",
    "DMD2": "dmd2",
    "DDDM": "dddm",
    "plain diffusion": "plain_diffusion",
    "consistency": "consistency",
    "flow map": "flow_map",
}
FLOWS = ("consistency", "flow map")
# evaluations of each method at COUNTS and its own number of steps, the own one last: one step, Heun's 2 k - 1, and k
EVALUATIONS = {**dict.fromkeys(FOLDERS, (1,)), "teacher": (1, 3, 7, 35), "DDDM": (1, 2, 4, 20), "plain diffusion": (1, 2, 4, 20)}
EVALUATIONS |= {"consistency": (2, 1), "flow map": (2, 4, 1)}


def heading(title, evaluations):
    return f"{title}, {evaluations} evaluation{'' if evaluations == 1 else 's'}"


def length(recipe, scale):
    """Of a recipe that is run times `scale`: a step at least."""
    return max(1, round(recipe.steps * scale))


class NoDashboard:
    """Draws nothing."""

    def __init__(self, *arguments) -> None:
        pass

    def __getattr__(self, name):
        return lambda *arguments: None


@pytest.fixture
def small(monkeypatch):
    """Runs and measures of a second; lengths, folders and order are left to the comparison. Gives the (recipe, folder) trained."""
    trained = []

    def load(source, overrides=()):
        sizes = ["batch_size=16", "trainer.sample_every=100", "trainer.accelerator=cpu"]
        if source.endswith("/ring"):
            sizes += ["network.widths=[16]", "data.size=500"] + ["method.fake_widths=[16]"] * source.startswith("dmd2")
        elif source.startswith("drift"):
            sizes += ["network.widths=[16]"]
        elif load_recipe(source).network.role != "copy":  # whose network is the teacher's
            sizes += ["network.channels=[8]", "network.groups=4", "network.head_dim=4"]
        return load_recipe(source, [*sizes, *overrides])

    def counted(recipe, path, *arguments, **options):
        trained.append((recipe, path))
        train_recipe(recipe, path, *arguments, **options)

    monkeypatch.setattr(pictures, "Dashboard", NoDashboard)  # the battery looks at these
    monkeypatch.setattr(comparison, "load_recipe", load)
    monkeypatch.setattr(comparison, "train_recipe", counted)
    monkeypatch.setattr(comparison, "SHOWN", 50)
    monkeypatch.setattr(comparison, "COUNTS", COUNTS)
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 400)
    monkeypatch.setattr(measurement, "IMAGE_SAMPLES", 60)
    return trained


def compared(done, out, *arguments):
    """What the command printed, and compare.json."""
    outcome = done("compare", *arguments, "--scale", str(SCALE), "--seed", "3", "--out", out)
    return outcome.out, json.loads((out / "compare.json").read_text(), parse_constant=pytest.fail)


def figures(results):
    """All rows but for what time makes of them."""
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in results["rows"].values()]


def assert_rows(results, floor, titles, out, taught=("DMD2, trained teacher",)):
    """Every method at every number of steps that it serves, in order, with its own marked and all seconds that it cost."""
    calls = [(title, count) for title in titles for count in sorted(EVALUATIONS[title])]
    assert list(results["rows"]) == [floor, *(heading(*call) for call in calls)]
    seconds = {title: RunFolder(out / FOLDERS[title]).metrics()[-1]["seconds"] for title in titles}
    seconds |= {"teacher": RunFolder(out / "teacher").metrics()[-1]["seconds"]}
    for title, count in calls:
        row = results["rows"][heading(title, count)]
        assert (row["method"], row["evaluations"]) == (title, count)
        assert row["steps"] == ((count + 1) // 2 if title == "teacher" else count)
        assert row["own_steps"] == (count == EVALUATIONS[title][-1])
        assert ("images_per_second" in row) == row["own_steps"]  # which is timed once a method
        whole = seconds[title] + (seconds["teacher"] if title in taught else 0)
        assert row["training_seconds"] == pytest.approx(whole)
    for row in results["rows"].values():
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, int | float))


def assert_trained(trained, titles, gamma, out):
    """Each recipe at its own length times the scale, in its own folder; plain diffusion m times as long."""
    assert [path for _, path in trained] == [out / FOLDERS[title] for title in titles]
    for (recipe, _), title in zip(trained, titles, strict=True):
        method = recipe.method
        name = f"{method.name}/{'digits' if recipe.data.name == 'digits' else 'ring'}"
        whole = load_recipe(name)
        if title == "plain diffusion":
            assert (method.lam, method.beta, method.m) == (0, 2, 1)
            assert recipe.steps == length(whole, SCALE) * whole.method.m
        else:
            assert recipe.steps == length(whole, SCALE)
        if title == "DDDM":
            assert method == whole.method
        if title in ("DMD2", "DMD2, exact teacher", "DMD2, trained teacher", *FLOWS):
            closed_form = title == "DMD2, exact teacher" or (
                title in FLOWS and getattr(recipe.data, "density", None) in ("ring", "bimodal")
            )
            assert method.teacher == ("exact" if closed_form else str(out / "teacher"))
        if hasattr(method, "gamma"):
            assert method.gamma == gamma
        assert recipe.seed == 3


def assert_tables(printed, results, floor):
    """The lines of both tables that belong to the rows."""
    by_steps, all_figures = printed.split("all figures")
    titles = list(dict.fromkeys(row["method"] for row in results["rows"].values() if "method" in row))
    lines = by_steps.splitlines()[1:]
    assert lines[0].split() == ["steps", *map(str, COUNTS if "DDDM" in titles else (1,))]
    assert [line for line in lines[1:] if line] == [line for line in lines[1:] if any(line.startswith(title) for title in titles)]
    assert len([line for line in lines[1:] if line]) == len(titles)
    owns = [name for name, row in results["rows"].items() if row.get("own_steps", True)]
    assert owns[0] == floor
    found = [line for line in all_figures.splitlines() if line.startswith(tuple(f"{name}  " for name in results["rows"]))]
    assert [line.split("  ")[0] for line in found] == owns


@pytest.mark.parametrize(
    ("density", "gamma", "titles"),
    [
        ("ring", 2.0, ["DMD2, exact teacher", "DMD2, trained teacher", "drift"]),  # the others draw p, and not p^2
        ("bimodal", 1.0, ["teacher", "DMD2, exact teacher", "DMD2, trained teacher", "drift", "DDDM", "plain diffusion", *FLOWS]),
    ],
)
def test_every_method_on_a_mixture(density, gamma, titles, small, done, tmp_path):
    out = tmp_path / "there"
    arguments = [f"toys/{density}", *(["--gamma", str(gamma)] if gamma != 1 else [])]
    printed, results = compared(done, out, *arguments)
    assert (results["data"], results["gamma"], results["scale"], results["seed"]) == (f"toys/{density}", gamma, SCALE, 3)
    assert results["reference"] == f"400 exact samples of {density}{'^2' if gamma == 2 else ''}"
    assert (results["n"], results["features"]) == (400, "the points themselves")
    assert_rows(results, EXACT_ROW, titles, out)
    for title, row in results["rows"].items():
        assert row["energy_error"] > 0
        assert "modes" in row
        assert title == EXACT_ROW or row["energy"] > 5 * row["energy_error"] > abs(results["floor"])  # nothing was learned in 3 steps
    assert results["floor"] == results["rows"][EXACT_ROW]["energy"]
    runs = ["teacher", "DMD2, exact teacher", "DMD2, trained teacher", "drift", "DDDM", "plain diffusion", *FLOWS]
    assert_trained(small, [title for title in runs if title in (*titles, "teacher")], gamma, out)
    assert {recipe.data.density for recipe, _ in small} == {density}
    assert_tables(printed, results, EXACT_ROW)
    assert printed.startswith("energy distance by number of steps")

    for name in ("compare.png", "steps.png", "compare.json"):
        assert str(out / name) in printed
    # the teacher at one step too, DDDM at 4 and 1, plain diffusion at 4, consistency at 2, the flow map at 2 and 4
    panels = 1 + len(titles) + 7 * ("DDDM" in titles)
    with Image.open(out / "compare.png") as picture:
        picture.load()
        across, down = min(6, panels), -(-panels // 6)
        assert picture.width == pytest.approx(across * 2.75 * 110, rel=0.05)
        assert picture.height == pytest.approx(down * 3.75 * 110, rel=0.15)
    with Image.open(out / "steps.png") as picture:
        picture.load()
        assert picture.size == (864, 552)

    # a second call measures again and trains nothing
    small.clear()
    _, again = compared(done, out, *arguments)
    assert small == []
    assert figures(again) == figures(results)


def test_a_comparison_that_was_stopped_goes_on_where_it_was(small, done, mistake, tmp_path, monkeypatch):
    """And a density that is no mixture has no exact teacher: those who would have it learn from the trained one."""
    out, arguments = tmp_path / "there", ("compare", "toys/moons", "--scale", str(SCALE), "--seed", "3")
    whole_train = comparison.train_recipe

    def stopped(recipe, path, *arguments, **options):
        if recipe.method.name == "drift":
            raise UserError("stopped here")
        whole_train(recipe, path, *arguments, **options)

    monkeypatch.setattr(comparison, "train_recipe", stopped)
    assert "stopped here" in mistake(*arguments, "--out", out)
    assert not (out / "compare.json").exists()
    titles = ["teacher", "DMD2, trained teacher", "drift", "DDDM", "plain diffusion", *FLOWS]
    assert_trained(small, titles[:2], 1.0, out)

    monkeypatch.setattr(comparison, "train_recipe", whole_train)
    done_already = ["teacher", "dmd2_trained_teacher"]
    kept = {path: path.read_bytes() for name in done_already for path in (out / name / "model").iterdir()}
    begun = len(small)
    _, results = compared(done, out, "toys/moons")
    assert_trained(small[begun:], titles[2:], 1.0, out)
    assert {path: path.read_bytes() for path in kept} == kept
    assert_rows(results, EXACT_ROW, titles, out, taught=("DMD2, trained teacher", *FLOWS))
    assert not any("modes" in row for row in results["rows"].values())
    assert not (out / "dmd2_exact_teacher").exists()


def test_runs_of_another_comparison_are_not_measured_as_this_one(small, done, command, tmp_path):
    """The folder is by default the same for every gamma and seed."""
    out = tmp_path / "there"
    done("compare", "toys/ring", "--scale", "1e-9", "--out", out)
    for change in (["toys/ring", "--gamma", "2"], ["toys/ring", "--seed", "4"], ["toys/gaussian"]):
        small.clear()
        outcome = command("compare", *change, "--scale", "1e-9", "--out", out)
        assert outcome.code == 2 or small, change  # told, or done
        assert outcome.code == 0 or str(out) in outcome.err


def test_every_method_on_digits(small, done, tmp_path):
    out = tmp_path / "there"
    titles = ["teacher", "DMD2", "drift", "DDDM", "plain diffusion", *FLOWS]
    printed, results = compared(done, out, "digits")
    assert (results["data"], results["gamma"], results["n"], results["features"]) == ("digits", 1, 60, "digits-v1")
    assert results["reference"] == "360 held-out images"
    assert_rows(results, REAL_ROW, titles, out, taught=("DMD2", *FLOWS))
    assert_trained(small, titles, 1.0, out)
    assert_tables(printed, results, REAL_ROW)
    assert printed.startswith("FD / floor by number of steps")
    assert results["rows"][REAL_ROW]["frechet_over_floor"] == 1
    whole = measurement.suite_for(load_digits()).floor  # that of as few images as were generated is larger
    assert all(row["frechet"] > 10 * whole for name, row in results["rows"].items() if name != REAL_ROW)
    with Image.open(out / "compare.png") as picture:
        pixels = picture.convert("L")
    # two of each class in a row of 20, five times enlarged, under a line of words: real ones, one row a method, and seven of other steps
    assert pixels.size == (20 * 42 + 2, (1 + 7 + 7) * (44 + 46))
    contrast = [statistics.pstdev(pixels.crop((0, top + 46, 842, top + 90)).tobytes()) for top in range(0, pixels.height, 90)]
    assert contrast[0] > 50  # digits
    assert min(contrast) > 5
    with Image.open(out / "steps.png") as picture:
        assert picture.size == (864, 552)

    small.clear()
    _, again = compared(done, out, "digits")
    assert small == []
    assert figures(again) == figures(results)


# --- what each trains ------------------------------------------------------------------------------------------------

TOYS, DIGITS = comparison.entries_for(True, True, 1.0), comparison.entries_for(False, False, 1.0)


def test_who_is_compared_on_what():
    on_toys = ["teacher", "DMD2, exact teacher", "DMD2, trained teacher", "drift", "DDDM", "plain diffusion", *FLOWS]
    assert [entry.title for entry in TOYS] == on_toys
    assert [entry.title for entry in DIGITS] == ["teacher", "DMD2", "drift", "DDDM", "plain diffusion", *FLOWS]
    no_mixture = comparison.entries_for(True, False, 1.0)
    assert [entry.title for entry in no_mixture] == [title for title in on_toys if title != "DMD2, exact teacher"]
    for entries, taught in (
        (TOYS, ["DMD2, trained teacher"]),
        (no_mixture, ["DMD2, trained teacher", *FLOWS]),  # which learn from a closed form where there is one
        (DIGITS, ["DMD2", *FLOWS]),
    ):
        assert [entry.title for entry in entries if entry.teacher] == taught
        assert {entry.teacher for entry in entries} == {None, "teacher"}
    for entries in (TOYS, DIGITS, no_mixture):  # one who is taught comes after the one who teaches
        folders = [entry.folder for entry in entries]
        assert all(entry.teacher is None or folders.index(entry.teacher) < folders.index(entry.folder) for entry in entries)
    # of a power only those that can aim at it, and who teaches them
    assert [entry.title for entry in comparison.entries_for(True, True, 2.0)] == on_toys[:4]
    assert all(entry.recipe == f"{entry.recipe.split('/')[0]}/ring" for entry in TOYS)
    assert all(entry.recipe == f"{entry.recipe.split('/')[0]}/digits" for entry in DIGITS)


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0123, 2.0, 1e-9])
def test_recipes_run_at_their_own_length_times_the_scale(scale, tmp_path):
    for entries, density in ((TOYS, "grid25"), (DIGITS, None)):
        recipes = {entry.title: comparison.recipe_of(entry, tmp_path, density, 1.0, scale, 5) for entry in entries}
        shipped = {entry.title: load_recipe(entry.recipe) for entry in entries}
        particles = {"plain diffusion": shipped["DDDM"].method.m}
        assert particles["plain diffusion"] > 1
        for title, whole in shipped.items():
            assert recipes[title].steps == length(whole, scale) * particles.get(title, 1)
        assert recipes["DDDM"].method == shipped["DDDM"].method
        assert {recipe.seed for recipe in recipes.values()} == {5}
        assert {getattr(recipe.data, "density", None) for recipe in recipes.values()} == {density}
        assert all(recipe.batch_size == shipped[title].batch_size for title, recipe in recipes.items())
    assert len({entry.folder for entry in TOYS}) == len(TOYS)


def test_plain_diffusion_is_the_distributional_recipe_in_all_but_its_score(tmp_path):
    for entries, density in ((TOYS, "ring"), (DIGITS, None)):
        recipes = {entry.title: comparison.recipe_of(entry, tmp_path, density, 1.0, 1.0, 0).model_dump() for entry in entries}
        plain, ours = recipes["plain diffusion"], recipes["DDDM"]
        methods = plain.pop("method"), ours.pop("method")
        assert {key: value for key, value in methods[0].items() if methods[1][key] != value} == {"lam": 0.0, "beta": 2.0, "m": 1}
        assert plain.pop("steps") == methods[1]["m"] * ours.pop("steps")  # as many network passes
        assert plain == ours


def test_gamma_reaches_those_that_can_aim_at_it(tmp_path):
    gammas = {entry.title: getattr(comparison.recipe_of(entry, tmp_path, "ring", 1.7, 1.0, 0).method, "gamma", None) for entry in TOYS}
    aims = {"drift": 1.7, "DMD2, exact teacher": 1.7, "DMD2, trained teacher": 1.7}
    assert gammas == {**dict.fromkeys(("teacher", "DDDM", "plain diffusion", *FLOWS)), **aims}
    assert {entry.title for entry in TOYS if entry.draws_power} == set(aims)


# --- tables ----------------------------------------------------------------------------------------------------------


def row(method, steps, evaluations=None, sampler="distributional", own=False, **figures):
    return {"method": method, "own_steps": own, "steps": steps, "evaluations": evaluations or steps, "sampler": sampler, **figures}


BY_HAND = {
    "rows": {
        "exact samples": {"energy": 0.0001, "energy_error": 0.0002},
        "drift, 1 evaluation": row("drift", 1, sampler="push_forward", own=True, energy=0.012344),
        "teacher, 1 evaluation": row("teacher", 1, sampler="heun", energy=4.0),
        "teacher, 7 evaluations": row("teacher", 4, 7, sampler="heun", energy=0.5),
        "teacher, 35 evaluations": row("teacher", 18, 35, sampler="heun", own=True, energy=0.001),
        "DDDM, 4 evaluations": row("DDDM", 4, energy=-0.0002),
        "DDDM, 20 evaluations": row("DDDM", 20, own=True, energy=0.0001),
    }
}


def test_the_table_by_steps_from_rows_by_hand():
    assert comparison.table_by_steps(BY_HAND) == [
        ["steps", "1", "4", "20"],  # 18 is the teacher's own affair
        ["drift", "0.0123", "", ""],
        ["teacher (Heun, 2 k - 1 evaluations)", "4.0000", "0.5000", ""],
        ["DDDM", "", "-0.0002", "0.0001"],
    ]


def test_the_table_by_steps_of_images_is_of_the_distance_over_its_floor():
    rows = {
        "real train split": {"frechet_over_floor": 1.0},
        "DMD2, 1 evaluation": row("DMD2", 1, sampler="few_step", frechet=7.0, frechet_over_floor=2.345),
        "teacher, 19 evaluations": row("teacher", 10, 19, sampler="euler", frechet=7.0, frechet_over_floor=1.5),
    }
    assert comparison.table_by_steps({"rows": rows}) == [["steps", "1", "10"], ["DMD2", "2.35", ""], ["teacher", "", "1.50"]]


def test_own_rows_are_the_floor_and_one_of_each_method():
    own = comparison.own_rows({**BY_HAND, "seed": 4})
    assert list(own["rows"]) == ["exact samples", "drift, 1 evaluation", "teacher, 35 evaluations", "DDDM, 20 evaluations"]
    assert own["seed"] == 4
    assert len(BY_HAND["rows"]) == 7


def test_curves_are_over_evaluations():
    assert comparison.curves(BY_HAND["rows"], "energy") == {
        "drift": ([1], [0.012344]),
        "teacher": ([1, 7, 35], [4.0, 0.5, 0.001]),
        "DDDM": ([4, 20], [-0.0002, 0.0001]),
    }


# --- what cannot be compared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["toys/rign"],
            ["'toys/rign' is no data set that methods are compared on", "did you mean 'toys/ring'?", "digits, or toys/NAME", "moons"],
        ),
        (["ring"], ["'ring' is no data set that methods are compared on", "toys/NAME", "ring, grid25"]),
        (["photos"], ["'photos' is no data set that methods are compared on", "give digits, or toys/NAME"]),
        (["toys/digits"], ["'toys/digits' is no data set that methods are compared on", "give digits"]),
        (["toys/ring", "--scale", "0"], ["--scale is 0", "must be positive", "1 runs each recipe at its full length"]),
        (["toys/ring", "--scale", "-1"], ["--scale is -1", "must be positive"]),
        (["digits", "--scale", "nan"], ["--scale is nan", "finite"]),
        (["digits", "--scale", "inf"], ["--scale is inf", "finite"]),
        (["toys/ring", "--gamma", "0"], ["--gamma is 0", "must be positive"]),
        (["toys/ring", "--gamma", "nan"], ["--gamma is nan"]),
        (["toys/ring", "--gamma", "inf"], ["--gamma is inf"]),
        (["digits", "--gamma", "2"], ["--gamma is 2", "toys/NAME", "leave --gamma out for digits"]),
        (["digits", "--gamma", "-1"], ["--gamma is -1", "must be positive"]),
        (["toys/ring", "--seed", "-1"], ["seed is -1"]),
        (["digits", "--seed", "-1"], ["seed is -1"]),
    ],
)
@pytest.mark.parametrize("place", [["--out", "there"], []])
def test_what_cannot_be_compared_is_said_before_anything_is_written(arguments, words, place, mistake, tmp_path, monkeypatch):
    def trained(*arguments, **options):
        raise AssertionError("it should have been refused")

    monkeypatch.setattr(comparison, "train_recipe", trained)
    monkeypatch.chdir(tmp_path)
    message = mistake("compare", *arguments, *place)
    for word in words:
        assert word in message
    assert list(Path.cwd().iterdir()) == []


def test_a_number_of_steps_is_none_of_its_options(command):
    """Which recipes have of their own."""
    outcome = command("compare", "toys/ring", "--steps", "100")
    assert outcome.code == 2
    assert "--steps" in outcome.err
    assert "Usage" in outcome.err


def test_further_recipes_of_one_method_stand_apart(tmp_path):
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "mine.yaml", tmp_path / "a" / "mine.yaml"]
    for path in paths:
        path.write_text("method: {name: drift}\ndata: {name: toy, density: ring}\nnetwork: {name: latent_mlp}\nsteps: 9\n")
    entries = comparison.entries_for(True, True, 1.0, [*map(str, paths), "drift/vanilla"])
    assert [entry.title for entry in entries if entry.title.startswith("drift")] == [
        "drift",
        "drift, mine",
        "drift, mine 2",
        "drift, vanilla",
    ]
    assert len({entry.folder for entry in entries}) == len(entries)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ([2.0, 1.0, 0.0005], "drift at one evaluation is as good as teacher at 35"),
        ([2.0, 1.0, 0.7], "drift at one evaluation is better than teacher at 35"),
    ],
)
def test_the_title_says_what_the_plot_shows(teacher, said):
    found = {"teacher": ([1, 3, 35], teacher), "drift": ([1], [0.0003]), "DMD2": ([1], [0.002])}
    assert comparison.claim(found, {"teacher"}, 0.0006) == said
    assert comparison.claim({"teacher": found["teacher"]}, {"teacher"}) == "quality by network evaluations"
