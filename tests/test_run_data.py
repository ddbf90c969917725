"""The data of a run: told of, kept, and never numbered otherwise than what the run goes on or learns from."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from fewstep.build import training_data
from fewstep.data.class_order import natural_order
from fewstep.errors import UserError
from fewstep.evaluation import _changed, run_recipe
from fewstep.generator import load
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.run_data import as_recorded, kept, recorded_names
from fewstep.training.run_folder import RunFolder
from picture_folders import encoded, numbered, put

LABELS = range(1, 12)
NATURAL = tuple(map(str, LABELS))
WORDS = tuple(sorted(NATURAL))  # 1, 10, 11, 2, ...: the order of version 0.1.0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eleven classes of six images, whose bytes tell the class."""
    numbered(tmp_path_factory.mktemp("pictures") / "n", LABELS)
    return tmp_path_factory.getbasetemp() / "pictures0" / "n"


@pytest.fixture(scope="module")
def overrides(pictures, teacher_overrides):
    return [*teacher_overrides, f"data={{name: images, path: '{pictures}', size: 8, channels: 1, holdout: 0.25}}"]


@pytest.fixture(scope="module")
def run(overrides, done, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    done("train", "teacher/digits", *overrides, "--out", path)
    return path


def renamed(run, path, names, keep=False):
    """A copy of `run` as a version would have left it that numbered the classes as `names`."""
    shutil.copytree(run, path)
    config = json.loads((path / "model" / "config.json").read_text())
    config["info"]["class_names"] = list(names)
    (path / "model" / "config.json").write_text(json.dumps(config))
    if not keep:
        (path / "data.json").unlink()
    return path


def of_student(overrides):
    """Without what is the teacher's own."""
    return [word for word in overrides if not word.startswith(("network.", "method."))]


def meaning(data):
    """The class that each training image's bytes tell, against the name that its label has."""
    told = [str(int(value) // 6) for value in data.train[:, 0, 0, 0]]
    return told == [data.class_names[label] for label in data.train_label.tolist()]


# --- told and kept ------------------------------------------------------------------------------------------------------------------


def test_a_run_says_and_keeps_what_was_found(overrides, run, done, tmp_path, pictures):
    out = done("train", "teacher/digits", *overrides, "--out", tmp_path / "again")
    told = [line for line in out.err.splitlines() if line.startswith("data: ")]
    assert told[0] == f"data: n: 66 files found in {pictures}, all used, none left out."
    assert told[1].startswith("data: 11 classes by the sub-folder, number = name (items trained on + held out): 0 = 1 (4 + 2), 1 = 2 (")
    assert told[2].startswith("data: trained on: 49; held out: 17 (the fraction 0.25")
    recorded = yaml.safe_load((run / "recipe.yaml").read_text())["made_by"]["data_audit"]
    assert [f"data: {line}" for line in recorded] == told
    found = json.loads((run / "data.json").read_text())
    assert [entry["name"] for entry in found["classes"]] == list(NATURAL)
    assert (found["origin"]["found"], found["used"]) == (66, 66)
    page = (run / "report.html").read_text()
    for line in recorded:
        assert line in page


def test_a_dry_run_says_the_same(overrides, run, done):
    out = done("train", "teacher/digits", *overrides, "--dry-run").out
    for line in yaml.safe_load((run / "recipe.yaml").read_text())["made_by"]["data_audit"]:
        assert f"# {line}\n" in out


def test_what_was_said_as_a_note_is_not_said_twice(teacher_overrides, done, tmp_path):
    for k in range(12):
        put(tmp_path / "d" / "train" / ("cat", "dog")[k % 2] / f"{k}.png", encoded(seed=k))
        put(tmp_path / "d" / "test" / f"{k}.png", encoded(seed=50 + k))
    section = f"data={{name: images, path: '{tmp_path / 'd'}', size: 8, channels: 1, holdout: 0.25}}"
    out = done("train", "teacher/digits", *teacher_overrides, section, "--out", tmp_path / "run")
    assert out.err.count("the images of test/ lie in no class sub-folders and have no labels") == 1
    assert "data: left out: 12 images of test/, without class sub-folders" in out.err
    assert "the images of test/ lie in no class sub-folders" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"classes": 3}', '{"classes": [1], "parts": []}', "\xff"])
def test_a_damaged_record_is_as_none(content, tmp_path):
    (tmp_path / "data.json").write_text(content, encoding="latin-1")
    assert kept(RunFolder(tmp_path)) == {}


# --- the numbers of classes ------------------------------------------------------------------------------------------------------------


def test_a_run_is_gone_on_with_as_its_classes_were_numbered(overrides, run, done, tmp_path):
    path = renamed(run, tmp_path / "old", WORDS)
    recipe = load_recipe("teacher/digits", [*overrides, "steps=8"])
    data = as_recorded(recipe, training_data(recipe), RunFolder(path))
    assert data.class_names == WORDS
    assert meaning(data)
    done("train", "teacher/digits", *overrides, "steps=8", "--out", path, "--resume")
    assert load(path).class_names == WORDS
    assert [entry["name"] for entry in json.loads((path / "data.json").read_text())["classes"]] == list(WORDS)


def test_the_report_of_an_older_run_that_went_on_shows_the_data_as_well(overrides, run, done, tmp_path):
    path = renamed(run, tmp_path / "old", NATURAL)
    tree = yaml.safe_load((path / "recipe.yaml").read_text())
    del tree["made_by"]["data_audit"]
    (path / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    done("train", "teacher/digits", *overrides, "steps=8", "--out", path, "--resume")
    assert "11 classes by the sub-folder, number = name" in (path / "report.html").read_text()


def test_the_classes_of_a_new_run_are_numbered_as_numbers(overrides, run):
    recipe = load_recipe("teacher/digits", overrides)
    data = as_recorded(recipe, training_data(recipe), RunFolder(run))
    assert (data.class_names, load(run).class_names, natural_order(WORDS)) == (NATURAL, NATURAL, NATURAL)
    assert meaning(data)


def test_a_run_whose_classes_are_gone_is_refused(overrides, run, mistake, tmp_path):
    path = renamed(run, tmp_path / "other", [f"c{k}" for k in range(11)])
    told = mistake("train", "teacher/digits", *overrides, "steps=8", "--out", path, "--resume")
    assert f"the run in {path} was trained with the classes c0, c1, c2, c3, ... (11), and the data n now has 1, 2, 3, 4, ... (11)" in told
    assert load(path).class_names[0] == "c0"


def test_a_run_without_classes_is_not_gone_on_with_on_data_that_has_some(teacher_overrides, done, mistake, tmp_path):
    """Its network would lack the weights of the classes: that was a traceback."""
    for k in range(24):
        put(tmp_path / "flat" / f"{k}.png", encoded(seed=k))
    words = [*teacher_overrides, f"data={{name: images, path: '{tmp_path / 'flat'}', size: 8, channels: 1, holdout: 0.25}}"]
    done("train", "teacher/digits", *words, "steps=2", "--out", tmp_path / "run")
    for k in range(24):
        (tmp_path / "flat" / "ab"[k % 2]).mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{k}.png").rename(tmp_path / "flat" / "ab"[k % 2] / f"{k}.png")
    told = " ".join(mistake("train", "teacher/digits", *words, "steps=3", "--out", tmp_path / "run", "--resume").split())
    assert f"the run in {tmp_path / 'run'} was trained without classes, and the data flat now has a, b; give it back as it was" in told


def test_a_run_whose_data_has_grown_says_so(overrides, run, done, pictures, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    more = pictures / "1" / "more.png"
    try:
        put(more, encoded(seed=9))
        err = done("train", "teacher/digits", *overrides, "steps=8", "--out", path, "--resume").err
    finally:
        more.unlink()
    assert "note: the data has changed since the run began: 49 images were trained on, now 50" in err


def test_an_evaluation_warns_of_data_that_has_changed(run, pictures):
    recipe = run_recipe(run)
    data = as_recorded(recipe, training_data(recipe), RunFolder(run))
    assert _changed(RunFolder(run), recipe, data) == []
    other = replace(data, train=data.train.flip(0), train_label=data.train_label.flip(0))  # as many, of the same classes
    warning = _changed(RunFolder(run), recipe, other)[0]
    assert "the 49 images trained on are not those of then" in warning
    assert "held out" not in warning.split(")")[0]


def test_a_student_is_taught_with_its_teacher_s_numbers(overrides, run, done, tmp_path):
    teacher = renamed(run, tmp_path / "teacher", WORDS)
    few = [*of_student(overrides), f"method.teacher={teacher}", "steps=2"]
    out = done("train", "dmd2/digits", *few, "--out", tmp_path / "student")
    assert "the classes of n are numbered as the teacher (method.teacher) numbers them: 1, 10, 11, 2, ... (11)" in out.err
    assert load(tmp_path / "student").class_names == WORDS
    # and so when it goes on from the copy of its teacher
    shutil.rmtree(teacher)
    (tmp_path / "student" / "data.json").unlink()
    recipe = load_recipe("dmd2/digits", few)
    data = as_recorded(recipe, training_data(recipe), RunFolder(tmp_path / "student"))
    assert data.class_names == WORDS
    assert meaning(data)


def test_weights_that_are_begun_with_keep_their_numbers(overrides, run, tmp_path):
    recipe = load_recipe("teacher/digits", [*overrides, f"trainer.init={renamed(run, tmp_path / 'first', WORDS)}"])
    data = as_recorded(recipe, training_data(recipe), RunFolder(tmp_path / "new"))
    assert data.class_names == WORDS
    assert meaning(data)


def test_a_teacher_and_weights_that_disagree_are_refused(overrides, run, tmp_path):
    first, teacher = renamed(run, tmp_path / "first", NATURAL[::-1]), renamed(run, tmp_path / "teacher", WORDS)
    recipe = load_recipe("dmd2/digits", [*of_student(overrides), f"trainer.init={first}", f"method.teacher={teacher}"])
    with pytest.raises(UserError, match=r"the teacher \(method\.teacher\) and the initial model \(trainer\.init\) number the same"):
        train_recipe(recipe, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_teacher_of_other_names_is_told(overrides, run, capsys, tmp_path):
    teacher = renamed(run, tmp_path / "teacher", [f"c{k}" for k in range(11)])
    recipe = load_recipe("dmd2/digits", [*of_student(overrides), f"method.teacher={teacher}"])
    assert as_recorded(recipe, training_data(recipe)).class_names == NATURAL
    said = "has classes of other names, and they are matched by number: c0, c1, c2, c3, ... there, 1, 2, 3, 4, ... in the data n"
    assert said in capsys.readouterr().err


def test_evaluation_numbers_the_data_as_the_run(overrides, run, monkeypatch, tmp_path):
    from fewstep import evaluation

    seen = []

    def stop(data, *given, **named):
        seen.append(data)
        raise UserError("enough")

    monkeypatch.setattr(evaluation, "suite_for", stop)
    with pytest.raises(UserError, match="enough"):
        evaluation.evaluate(renamed(run, tmp_path / "old", WORDS, keep=True))
    assert seen[0].class_names == WORDS
    assert meaning(seen[0])


def test_where_nothing_is_recorded_there_are_no_names(tmp_path):
    assert recorded_names(None) == recorded_names(tmp_path) == recorded_names("nobody/nothing-of-the-kind") == ()
    (tmp_path / "config.json").write_text('{"info": {"class_names": "cat"}}')
    assert recorded_names(tmp_path) == ()


# --- sampled -------------------------------------------------------------------------------------------------------------------------


def test_samples_are_asked_for_by_name_and_told_with_their_numbers(run, done, mistake, tmp_path):
    import numpy as np

    named = renamed(run, tmp_path / "named", [f"kind {k}" for k in range(11)])
    out = done("sample", named, "--labels", "kind 10,3", "-n", "4", "--seed", "0", "--out", tmp_path / "a.npz").out
    assert "classes: 10 = kind 10, 3 = kind 3" in out
    assert np.load(tmp_path / "a.npz")["labels"].tolist() == [10, 3, 10, 3]
    assert torch.equal(load(named).sample(4, ["kind 10", 3], seed=0), load(named).sample(4, [10, 3], seed=0))
    assert "classes: 2 = 3\n" in done("sample", run, "--labels", "2", "-n", "2", "--out", tmp_path / "b.png").out
    told = mistake("sample", run, "--labels", "11", "-n", "2", "--out", tmp_path / "b.png")
    assert "the class that is called 11 has the number 10" in told
    assert "classes: 0 = 1, 1 = 2, 2 = 3\n" in done("sample", run, "-n", "3", "--out", tmp_path / "b.png").out
