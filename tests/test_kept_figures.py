"""A teacher is measured once: its figures are kept, and used again where nothing that they depend on has changed."""

import json
import os
import shutil

import pytest

import untrained
from fewstep import evaluation, kept_figures
from fewstep.files import sha256_of
from fewstep.kept_figures import figures_folder, keep_row, kept_row

KEY = {"model": ["a", "b"], "protocol": {"n": 3, "seeds": [0]}, "steps": 1}
KEPT = "figures of an earlier evaluation of the same model by the same protocol, kept in"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(student_run, tmp_path):
    return shutil.copytree(student_run, tmp_path / "run")


def rows(run):
    return json.loads((run / "results.json").read_text())["rows"]


def test_rows_come_back_bit_for_bit_by_their_key_alone():
    row = {"frechet": 0.1 + 0.2, "too_few": {"kernel": "why"}, "least_class_std_of": "3"}
    assert kept_row(KEY) is None
    keep_row(KEY, row)
    assert kept_row(KEY) == row
    assert kept_row(json.loads(json.dumps(KEY))) == row
    for other in ({**KEY, "steps": 2}, {**KEY, "model": ["a", "c"]}, {**KEY, "protocol": {"n": 4, "seeds": [0]}}, {}):
        assert kept_row(other) is None


def test_figures_of_other_code_are_not_used(tmp_path, monkeypatch):
    keep_row(KEY, {"frechet": 1.0})
    package = tmp_path / "fewstep"
    (package / "metrics").mkdir(parents=True)
    monkeypatch.setattr(kept_figures, "__file__", str(package / "kept_figures.py"))
    found = set()
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("metrics/a.py", "x = 2"), ("metrics/a.safetensors", "weights")):
        (package / name).write_text(text)
        found.add(kept_figures.package_sha256.__wrapped__())
    assert len(found) == 4
    monkeypatch.setattr(kept_figures, "package_sha256", found.pop)
    assert kept_row(KEY) is None


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"key": 1', b"\xff\xfe", b"null"])
def test_a_damaged_file_is_as_good_as_none(content):
    keep_row(KEY, {"frechet": 1.0})
    (file,) = figures_folder().iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    assert kept_row(KEY) is None
    file.write_bytes(whole.replace(b"1.0", b"2.0"))
    assert kept_row(KEY) is None  # somebody has been there
    keep_row(KEY, {"frechet": 3.0})
    assert kept_row(KEY) == {"frechet": 3.0}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_cache_that_cannot_be_written_does_no_harm(kind, cache, monkeypatch):
    if kind == "file":
        cache.write_text("no folder")
    else:

        def refuse(path, content):
            raise PermissionError(13, "read-only", str(path))

        monkeypatch.setattr(kept_figures, "replace_file", refuse)
    keep_row(KEY, {"frechet": 1.0})
    assert kept_row(KEY) is None


def test_a_second_evaluation_measures_the_student_alone(done, run, student_run, tmp_path, monkeypatch):
    drawn, measure = [], evaluation.measure
    monkeypatch.setattr(evaluation, "measure", lambda *given, **options: drawn.append(given[4]) or measure(*given, **options))
    first = done("evaluate", run, "-n", 60)
    assert KEPT not in first.err
    assert len(drawn) == 3
    before = rows(run)
    second = done("evaluate", run, "-n", 60)
    assert second.err.count(KEPT) == 2
    assert f"teacher, 5 evaluations: {KEPT} {figures_folder()}" in second.err
    assert len(drawn) == 4
    after = rows(run)
    assert list(before) == list(after)
    assert [row["role"] for row in after.values()] == ["floor", "teacher", "teacher", "own"]
    for title in before:
        if title.startswith("teacher"):
            assert after[title] == before[title]
    other = shutil.copytree(student_run, tmp_path / "other")  # whose teacher is the same
    assert done("evaluate", other, "-n", 60).err.count(KEPT) == 2
    for options in (("-n", 70), ("-n", 60, "--seed", 1), ("-n", 60, "--features", "pixels-8x8")):
        assert KEPT not in done("evaluate", run, *options, "--steps", 1).err


def test_a_changed_model_and_a_damaged_file_are_measured_again(done, run):
    done("evaluate", run, "-n", 60, "--steps", 1)
    before = rows(run)["teacher, 1 evaluation"]
    (file,) = figures_folder().iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert KEPT not in done("evaluate", run, "-n", 60, "--steps", 1).err
    assert rows(run)["teacher, 1 evaluation"]["frechet"] == before["frechet"]
    assert KEPT in done("evaluate", run, "-n", 60, "--steps", 1).err
    config = run / "teacher" / "config.json"
    config.write_text(config.read_text().replace('"sigma_data"', ' "sigma_data"'))
    assert KEPT not in done("evaluate", run, "-n", 60, "--steps", 1).err


def test_a_teacher_of_somebody_s_own_code_is_measured_again(done, run):
    """That code may have changed, which no checksum of its weights says: here it is named as code of one's own is."""
    config = run / "teacher" / "config.json"
    tree = json.loads(config.read_text())
    assert tree["network"]["name"] == "unet"
    tree["network"]["name"] = "fewstep.networks.unet.network:UNet"
    config.write_text(json.dumps(tree))
    for _ in range(2):
        assert KEPT not in done("evaluate", run, "-n", 60, "--steps", 1).err


def test_the_teacher_is_left_out_where_nobody_asks_for_it(done, run):
    done("evaluate", run, "-n", 60, "--no-teacher")
    assert list(rows(run)) == ["real train split", "student, 1 evaluation"]
    assert not figures_folder().exists()


def test_features_in_a_file_of_one_s_own(done, mistake, run, tmp_path):
    path = untrained.write(tmp_path / "mine.safetensors")
    done("evaluate", run, "-n", 60, "--no-teacher", "--features", path)
    found = json.loads((run / "results.json").read_text())
    assert found["protocol"]["features"] == {"name": "mine", "sha256": sha256_of(path)}
    assert found["protocol"]["quantisation"] == "none"
    assert 0 <= found["rows"]["student, 1 evaluation"]["class_accuracy"] <= 1
    assert os.listdir(tmp_path / "cache" / "statistics")  # the real images' are kept
    for arguments, says in (
        ({"size": 28}, "cannot be computed from images of shape [1, 8, 8], only from [1, 28, 28]"),
        ({"classes": 3}, "distinguish 3 classes, and the data has 10"),
    ):
        other = untrained.write(tmp_path / "other.safetensors", **arguments)
        assert says in mistake("evaluate", run, "-n", 60, "--features", other)
    (tmp_path / "torn.safetensors").write_bytes(path.read_bytes()[:300])
    assert "torn.safetensors is not a feature network" in mistake("evaluate", run, "-n", 60, "--features", tmp_path / "torn.safetensors")
