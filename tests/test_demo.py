import functools
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fewstep import comparison, demo, evaluation, load
from fewstep.data import load_digits
from fewstep.errors import RESUME, Interrupted
from fewstep.training.checkpoint import checkpoints
from fewstep.viz.plots import image_grid

# of keys that both recipes have: the networks are the shipped ones
CADENCE = ("trainer.log_every=2", "trainer.checkpoint_every=2", "trainer.sample_every=2")
OVERRIDES = ("steps=4", "batch_size=16", "trainer.accelerator=cpu", *CADENCE)


@pytest.fixture(scope="module", autouse=True)
def calls():
    """What the demonstration starts, in order; it measures 50 samples instead of 2,000."""
    made: list[str] = []

    def spy(name, work):
        def call(*arguments, **options):
            made.append(name)
            return work(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "train_recipe", spy("train", demo.train_recipe))
        patch.setattr(demo, "evaluate", spy("evaluate", functools.partial(evaluation.evaluate, num=50)))
        yield made


@pytest.fixture(scope="module")
def first(done, calls, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    outcome = done("demo", "--out", out, *OVERRIDES)
    return out, outcome, list(calls)


@pytest.fixture
def again(first, tmp_path, calls, done):
    """``again(*overrides)``: the command once more in a copy of the first demonstration; what it printed, and what it started."""
    out = first[0]  # in its own place: the student's recipe names the teacher by its path
    saved = shutil.copytree(out, tmp_path / "saved")

    def call(*overrides):
        calls.clear()
        outcome = done("demo", "--out", out, *(overrides or OVERRIDES))
        return outcome, list(calls)

    yield call
    shutil.rmtree(out)
    shutil.copytree(saved, out)


def snapshot(run) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and p.name != "report.html"}


def test_it_trains_both_measures_and_says_so(first):
    out, outcome, calls = first
    assert calls == ["train", "train", "evaluate"]
    assert re.search(r"1/3 .*\(teacher/digits, 4 steps\)", outcome.err)
    assert re.search(r"2/3 .*\(dmd2/digits, 4 steps\)", outcome.err)
    assert re.search(r"3/3 measuring", outcome.err)
    for name in ("teacher", "student"):
        assert checkpoints(out / name / "checkpoints")[0].name == "step_4"
    assert (load(out / "teacher").evaluations(), load(out / "student").evaluations()) == (35, 1)
    for name in ("teacher", "student"):
        assert (out / name / "report.html").stat().st_size > 1000


def test_the_table_shows_what_a_first_look_needs(first):
    out, outcome, _ = first
    results = json.loads((out / "student" / "results.json").read_text())
    lines = outcome.out.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["FD", "FD / floor", "FD to train", "class asked for", "samples/s"]
    assert [re.split(r"\s{2,}", line)[0] for line in lines[1:5]] == [
        "real train split",
        "teacher, 35 evaluations",
        "teacher, 1 evaluation",
        "student, 1 evaluation",
    ]
    for line, row in zip(lines[1:5], results["rows"].values(), strict=True):
        cells = re.split(r"\s{2,}", line)[1:]
        assert cells[:4] == [
            f"{row['frechet']:.3f}",
            f"{row['frechet_over_floor']:.2f}",
            f"{row['frechet_train']:.3f}",
            f"{row['class_accuracy']:.1%}",
        ]
    assert str(out / "demo.png") in outcome.out
    assert f"fewstep.load('{out / 'student'}')" in outcome.out


def test_the_contact_sheet_shows_real_digits_and_three_ways_to_sample(first):
    out, _, _ = first
    rows, columns, side, caption, head = 2, 20, 42, 46, 36
    block = caption + rows * side + 2
    with Image.open(out / "demo.png") as picture:
        assert picture.size == (columns * side + 2, head + 4 * block)
        pixels = np.asarray(picture.convert("L")).astype(float)
    assert (pixels[:head] < 200).sum() > 500  # the line that says what is seen
    pixels = pixels[head:]
    labels = [k for k in range(10) for _ in range(2)] * 2
    data = load_digits()
    taken = {k: iter((data.heldout_label == k).nonzero().flatten().tolist()) for k in range(10)}
    real = data.images("heldout")[[next(taken[k]) for k in labels]]
    teacher, student = load(out / "teacher"), load(out / "student")
    expected = [real, teacher.sample(40, labels, seed=0), teacher.sample(40, labels, seed=0, steps=1), student.sample(40, labels, seed=0)]
    for number, images in enumerate(expected):
        shown = pixels[number * block + caption : (number + 1) * block]
        wanted = np.asarray(image_grid(images, columns, 40).convert("L")).astype(float)
        assert np.array_equal(shown, wanted), number
        assert (pixels[number * block : number * block + caption] < 100).sum() > 200  # a title and its figures


def test_a_run_beside_is_no_part_of_the_picture(first, tmp_path):
    """Its row may be of another shape and number of steps: of this demo's generators none draws it."""
    out = shutil.copytree(first[0], tmp_path / "demo")
    results = json.loads((out / "student" / "results.json").read_text())
    before = (out / "demo.png").read_bytes()
    beside = {**results["rows"]["student, 1 evaluation"], "role": "beside", "run": "other", "steps": 7}
    demo.draw(out, {**results, "rows": {**results["rows"], "other: student, 7 evaluations": beside}})
    assert (out / "demo.png").read_bytes() == before


@pytest.mark.parametrize(
    ("module", "words"), [(demo, ("demo", *OVERRIDES)), (comparison, ("compare", "toys/ring"))], ids=["demo", "compare"]
)
def test_what_is_stopped_says_that_the_same_command_goes_on(module, words, command, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted(f"stopped at step 2 of 4, all saved; {RESUME}")

    monkeypatch.setattr(module, "train_recipe", stopped)
    outcome = command(*words, "--out", tmp_path / "out")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "stopped at step 2 of 4, all saved; the same command goes on from there"


def test_a_second_call_only_shows_it(again, first):
    before = snapshot(first[0])
    outcome, calls = again()
    assert calls == []
    assert outcome.out == first[1].out
    assert snapshot(first[0]) == before


def test_without_its_results_it_only_measures(again, first):
    before = snapshot(first[0] / "student")
    (first[0] / "student" / "results.json").unlink()
    outcome, calls = again()
    assert calls == ["evaluate"]
    after = snapshot(first[0] / "student")
    assert {name for name in before if before[name] != after[name]} <= {"results.json"}  # its images a second
    frechet = [json.loads(files["results.json"])["rows"]["student, 1 evaluation"]["frechet"] for files in (before, after)]
    assert frechet[0] == frechet[1]
    assert "3/3" in outcome.err
    assert "1/3" not in outcome.err


@pytest.mark.usefixtures("again")  # which puts the results back
def test_results_that_cannot_be_read_are_one_sentence(command, calls, first):
    results = first[0] / "student" / "results.json"
    results.write_text(results.read_text()[:100])
    calls.clear()
    outcome = command("demo", "--out", first[0], *OVERRIDES)
    assert calls == []
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(f"error: {results} cannot be read (")
    assert outcome.err.count("error: ") == 1


def test_without_its_picture_it_only_draws(again, first):
    (first[0] / "demo.png").unlink()
    _, calls = again()
    assert "train" not in calls
    assert (first[0] / "demo.png").exists()


def test_a_killed_student_goes_on_and_is_measured_again(again, first):
    student = first[0] / "student"
    before = snapshot(student)
    shutil.rmtree(student / "checkpoints" / "step_4")
    (student / "results.json").write_text('{"of": "an older one"}')
    outcome, calls = again()
    assert calls == ["train", "evaluate"]
    assert "going on from step 2" in outcome.err
    assert checkpoints(student / "checkpoints")[0].name == "step_4"
    after = snapshot(student)
    assert after["model/model.safetensors"] == before["model/model.safetensors"]
    assert json.loads(after["results.json"])["step"] == 4


@pytest.mark.parametrize("change", ["steps=6", "batch_size=8"])
def test_another_recipe_in_the_same_place_is_refused(change, mistake, first):
    before = snapshot(first[0])
    message = mistake("demo", "--out", first[0], *OVERRIDES, change)
    key, value = change.split("=")
    assert f"{key} was " in message
    assert f"now {value}" in message
    assert snapshot(first[0]) == before


def test_a_file_in_the_place_of_the_folder(mistake, tmp_path):
    (tmp_path / "demo").touch()
    assert "which is a file" in mistake("demo", "--out", tmp_path / "demo")


def test_a_place_with_signs_that_yaml_knows(tmp_path, monkeypatch):
    """The student's recipe names the teacher by its path."""
    recipes = []
    monkeypatch.setattr(demo, "train_recipe", lambda recipe, *arguments, **options: recipes.append(recipe))
    monkeypatch.setattr(demo, "evaluate", lambda path: {})
    monkeypatch.setattr(demo, "draw", lambda out, results: None)
    out = tmp_path / "a: b #1"
    demo.demo(out, OVERRIDES, say=lambda text: None)
    assert [recipe.method.name for recipe in recipes] == ["teacher", "dmd2"]
    assert recipes[1].method.teacher == str(out / "teacher")
