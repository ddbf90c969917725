import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import fewstep
from copies import in_a_copy
from fewstep.data import load_digits
from fewstep.measurement import suite_for
from fewstep.recipe import load_recipe, shipped_recipes
from fewstep.training.looks import WORTH

COMMANDS = ("train", "sample", "evaluate", "compare", "demo", "recipes")


def test_help_is_quick_and_names_every_command(fewstep_cli):
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        outcome = fewstep_cli("--help")
        seconds.append(time.perf_counter() - began)
        assert outcome.returncode == 0
    assert statistics.median(seconds) < 0.5
    for name in COMMANDS:
        assert re.search(rf"^ +{name} ", outcome.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "code",
    [
        "import fewstep, fewstep.cli, fewstep.recipe",
        "from fewstep.recipe import load_recipe, shipped_recipes; [load_recipe(name) for name in shipped_recipes()]",
        "from fewstep.recipe.reading import schema; schema()",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    code += "; import sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    roots = {name.split(".")[0] for name in modules}
    assert "fewstep" in roots
    heavy = "torch diffusers lightning_fabric numpy datasets matplotlib sklearn huggingface_hub safetensors wandb"
    assert not roots & set(heavy.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name, done):
    assert "--help" in done(name, "--help").out


@pytest.mark.parametrize(
    "arguments",
    [("nosuch",), ("train",), ("train", "teacher/digits", "--nosuch"), ("sample", "run"), ("sample", "run", "--out", "a.png", "-n", "x")],
)
def test_a_wrong_command_line_is_the_users_mistake(arguments, command):
    outcome = command(*arguments)
    assert outcome.code == 2
    assert "Usage" in outcome.err
    assert "Traceback" not in outcome.err


def test_exit_codes_of_the_process_itself(fewstep_cli, tmp_path):
    outcome = fewstep_cli("train", "teacher/digit", "--out", tmp_path / "run")
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: there is no recipe 'teacher/digit'")
    assert outcome.stderr.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback_and_exits_1(command, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("fewstep.run.describe", broken)
    outcome = command("train", "teacher/digits", "--dry-run")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_a_second_interrupt_exits_130(command, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.run.train_recipe", interrupted)
    outcome = command("train", "teacher/digits", "--out", tmp_path / "run")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_lists_each_with_what_it_is(done):
    lines = done("recipes").out.splitlines()
    assert lines[0] == "Start here:"
    assert [line.split()[0] for line in lines[1:] if line[2:3].strip()][:3] == ["teacher/digits", "dmd2/digits", "drift/ring"]
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith("  ") and line[2] != " ":
            name, about = line.split(maxsplit=1)
            found[name] = about
        elif line.startswith("   "):
            found[name] += " " + line.strip()
    assert sorted(found) == sorted(shipped_recipes())  # each once
    for name, about in found.items():  # and whole
        assert shipped_recipes()[name].read_text().startswith(f"about: {about}\n")


@pytest.mark.parametrize("columns", [60, 80, 200, 0])
def test_recipes_fit_into_the_terminal(columns, done, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = done("recipes").out.splitlines()
    assert max(map(len, lines)) <= (columns or 110)


def test_recipes_show_prints_what_can_be_trained(done, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(done("recipes", "show", "dmd2/digits").out)
    assert load_recipe(str(path)) == load_recipe("dmd2/digits")


def test_recipes_show_of_another_name(mistake, tmp_path):
    assert "did you mean 'dmd2/digits'?" in mistake("recipes", "show", "dmd/digits")
    path = tmp_path / "mine.yaml"  # a file is a recipe, but not a shipped one
    path.write_text(shipped_recipes()["teacher/digits"].read_text())
    outcome = mistake("recipes", "show", path)
    assert str(path) in outcome


def test_recipes_schema_knows_the_keys_and_their_limits(done):
    schema = json.loads(done("recipes", "schema").out)
    assert set(schema["properties"]) == {"method", "data", "network", "trainer", "seed", "steps", "batch_size", "finds"}
    assert schema["additionalProperties"] is False
    method = schema["$defs"]["TeacherSettings"]["properties"]
    assert method["sigma_sampling"]["enum"] == ["lognormal", "karras"]
    optimizer = method["optimizer"]
    assert optimizer.get("allOf", [optimizer])[0]["$ref"] == "#/$defs/DenoiserOptimizer"  # pydantic below 2.9 wraps it
    assert schema["$defs"]["DenoiserOptimizer"]["properties"]["lr"]["exclusiveMinimum"] == 0
    kinds = {section: set(schema["properties"][section]["discriminator"]["mapping"]) for section in ("method", "data", "network")}
    for recipe in map(load_recipe, shipped_recipes()):
        assert {section: getattr(recipe, section).name for section in kinds}.items() <= {
            (section, name) for section, names in kinds.items() for name in names
        }


# --- train -----------------------------------------------------------------------------------------------------------


def test_dry_run_shows_the_resolved_recipe_and_writes_nothing(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    out = done("train", "teacher/digits", "steps=7", "batch_size=32", "method.optimizer.lr=1e-4", "--dry-run", "--out", run).out
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "shown.yaml").write_text(out)  # what is not the recipe is a comment
    assert load_recipe(str(tmp_path / "shown.yaml")) == load_recipe(
        "teacher/digits", ["steps=7", "batch_size=32", "method.optimizer.lr=1e-4"]
    )
    notes = [line for line in out.splitlines() if line.startswith("#")]
    assert "# images to be seen: 224 in 7 steps of 32" in notes
    assert any("1,437 training images, 360 held out, shape [1, 8, 8], 10 classes" in line for line in notes)
    assert any(re.search(r"network denoiser: 70\d,\d{3} parameters, learns every step", line) for line in notes)
    assert any(
        re.search(r"time: about \S+ m?s a step, \S+ (ms|s|min) for 7 steps \(\d+ steps? tried; cpu, 1 thread\)", line) for line in notes
    )


def test_dry_run_of_a_student_names_who_learns_when(done, teacher_run):
    overrides = [f"method.teacher={teacher_run}", "method.gan=true", "method.dfake_gen_update_ratio=3"]
    out = done("train", "dmd2/digits", *overrides, "--dry-run").out
    assert re.search(r"# network teacher: [\d,]+ parameters, frozen", out)
    assert re.search(r"# network generator: [\d,]+ parameters, learns every 3 steps", out)
    assert re.search(r"# network fake: [\d,]+ parameters, learns every step", out)
    assert re.search(r"# network head: [\d,]+ parameters, learns every step", out)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["batch_size=15", "trainer.accumulate=2"], ["batch_size is 15", "multiple of 2"]),
        (["network.groups=5"], ["network.groups 5", "[32, 64]"]),
        (["network.channels=[8,8,8,8,8]", "network.groups=8", "network.head_dim=8"], ["8x8", "halved 4 times"]),
        (["network.attention=[true]"], ["network.attention has 1 entries"]),
        (["network.head_dim=48"], ["network.head_dim 48"]),
        (["data.name=images", "data.path=/nowhere/at/all"], ["/nowhere/at/all", "not a folder"]),
    ],
)
def test_dry_run_refuses_what_the_run_would(overrides, words, mistake):
    message = mistake("train", "teacher/digits", *overrides, "--dry-run")
    for word in words:
        assert word in message


def test_a_run_without_a_folder(mistake):
    assert "--out is missing" in mistake("train", "teacher/digits")


@pytest.mark.parametrize("options", [["--dry-run"], ["--out", "run"]])
def test_a_student_without_a_teacher_is_told_how_to_make_one(options, mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = mistake("train", "dmd2/digits", *options)
    assert "method.teacher is missing" in message
    assert "fewstep train teacher/digits --out runs/teacher" in message
    assert "method.teacher=runs/teacher" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["nothing", "empty", "file"])
def test_a_teacher_that_is_not_there(kind, mistake, tmp_path):
    place = tmp_path / "teacher"
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.touch()
    message = mistake("train", "dmd2/digits", f"method.teacher={place}", "--out", tmp_path / "run")
    assert message.startswith(f"error: method.teacher: {place} ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("accelerator", ["cuda", "abacus"])
def test_an_accelerator_that_is_not_there(accelerator, mistake, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    message = mistake("train", "teacher/digits", f"trainer.accelerator={accelerator}", "--out", tmp_path / "run")
    assert f"cannot run {accelerator} " in message
    assert "cpu" in message  # what there is
    assert not (tmp_path / "run").exists()


def test_a_mistake_found_late_does_not_block_the_folder(mistake, done, teacher_overrides, tmp_path):
    run = tmp_path / "run"
    mistake("train", "teacher/digits", *teacher_overrides, "batch_size=15", "trainer.accumulate=2", "--out", run)
    done("train", "teacher/digits", *teacher_overrides, "steps=1", "trainer.accumulate=2", "--out", run)


@pytest.mark.parametrize("option", [[], ["--resume"]])
def test_an_output_folder_with_other_files_is_left_alone(option, mistake, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    message = mistake("train", "teacher/digits", "--out", tmp_path, *option)
    assert str(tmp_path) in message
    assert "other files" in message
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("thesis.tex", "years of work")]


def test_an_output_folder_that_is_a_file(mistake, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "which is a file" in mistake("train", "teacher/digits", "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(mistake, tmp_path):
    tmp_path.chmod(0o500)
    assert "Give a folder that you may write to" in mistake("train", "teacher/digits", "--out", tmp_path / "run")


def test_a_folder_that_may_not_be_written_to_simulated(mistake, monkeypatch, tmp_path):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(tmp_path / "run"))

    monkeypatch.setattr("fewstep.run.train_recipe", denied)
    message = mistake("train", "teacher/digits", "--out", tmp_path / "run")
    assert message == f"error: Permission denied: {tmp_path / 'run'}. Give a folder that you may write to\n"


def test_a_run_folder_holds_all_there_is_to_it(student_run, teacher_run):
    names = {path.name for path in teacher_run.iterdir()}
    assert names == {"recipe.yaml", "metrics.jsonl", "checkpoints", "samples", "model", "data.json", "report.html"}
    assert {path.name for path in student_run.iterdir()} == names | {"teacher"}
    for run in (teacher_run, student_run):
        assert {path.name for path in (run / "model").iterdir()} == {"config.json", "model.safetensors"}
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_4", "step_6"}  # the newest two
        assert {path.name for path in (run / "samples").iterdir()} == {"step_3.png", "step_6.png"}
    made_by = re.search(r"made_by:\n(  .*\n)+", (teacher_run / "recipe.yaml").read_text()).group()
    assert re.search(r"fewstep: \d+\.\d+\.\d+", made_by)
    assert "torch: " in made_by
    assert "commit: " in made_by


def test_metrics_hold_what_the_design_promises(student_run):
    records = [json.loads(line) for line in (student_run / "metrics.jsonl").read_text().splitlines()]
    assert [(record["step"], record["images_seen"]) for record in records] == [(2, 32), (4, 64), (6, 96)]
    for record in records:
        expected = "seconds images_per_second generator.dm generator.disagreement generator.gan generator.gan_weight generator.grad_norm"
        expected += " generator.lr guidance.fake guidance.gan guidance.grad_norm guidance.lr alarms"
        assert set(expected.split()) <= set(record)
        healths = {key for key in record if key.startswith("health.") and not key.endswith("_error")}
        for key in healths & {"health.spread", "health.shift", "health.saturation"}:  # each once it is worth something
            assert record[f"{key}_error"] <= WORTH * max(1, record[key])
        assert all(np.isfinite(value) for value in record.values() if isinstance(value, float))
    assert {"health.spread", "health.shift", "health.saturation"} <= set().union(*records)
    assert records[0]["seconds"] < records[1]["seconds"] < records[2]["seconds"]


def test_the_report_is_one_file_that_needs_no_network(student_run):
    html = (student_run / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", html)
    pictures = [source for source in sources if source.startswith("data:image/png;base64,")]
    assert len(pictures) == 2
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"https?://|url\((?!#)|@import|<script", html)
    assert html.count("<svg") >= 3
    for text in ("Step 3", "step 6", "Health", "Losses", "name: dmd2", "<dt>items seen</dt><dd>96</dd>"):
        assert text in html


# --- sample ----------------------------------------------------------------------------------------------------------


def arrays(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_sample_to_arrays(done, student_run, tmp_path):
    out = done("sample", student_run, "-n", "23", "--seed", "5", "--out", tmp_path / "a.npz").out
    assert "23 samples, 1 evaluation(s) each" in out
    found = arrays(tmp_path / "a.npz")
    assert set(found) == {"samples", "labels"}
    assert found["samples"].shape == (23, 1, 8, 8)
    assert found["samples"].dtype == np.float32
    assert np.abs(found["samples"]).max() <= 1
    assert found["labels"].tolist() == [k % 10 for k in range(23)]  # all classes in turn


def test_sample_honours_seed_labels_and_steps(done, teacher_run, tmp_path):
    def draw(name, *options):
        outcome = done("sample", teacher_run, "-n", "6", "--out", tmp_path / name, *options)
        return arrays(tmp_path / name), outcome.out

    first, out = draw("a.npz", "--seed", "5", "--labels", "3,1", "--steps", "4")
    assert "7 evaluation(s) each" in out  # Heun's method at 4 levels
    assert first["labels"].tolist() == [3, 1, 3, 1, 3, 1]
    again, _ = draw("b.npz", "--seed", "5", "--labels", "3,1", "--steps", "4")
    np.testing.assert_array_equal(first["samples"], again["samples"])
    for name, options in {
        "seed": ["--seed", "6", "--labels", "3,1", "--steps", "4"],
        "labels": ["--seed", "5", "--labels", "2", "--steps", "4"],
        "steps": ["--seed", "5", "--labels", "3,1", "--steps", "3"],
        "guidance": ["--seed", "5", "--labels", "3,1", "--steps", "4", "--guidance-scale", "3"],
    }.items():
        other, told = draw(f"{name}.npz", *options)
        assert f"{ {'guidance': 14, 'steps': 5}.get(name, 7) } evaluation(s) each" in told
        assert np.abs(other["samples"] - first["samples"]).max() > 1e-5, name


def test_sample_of_a_distributional_run_honours_churn(done, dddm_run, tmp_path):
    def draw(*options):
        done("sample", dddm_run, "-n", "6", "--seed", "5", "--out", tmp_path / "a.npz", *options)
        return arrays(tmp_path / "a.npz")["samples"]

    own = draw()
    np.testing.assert_array_equal(draw("--churn", "1"), own)  # what the recipe says
    np.testing.assert_array_equal(draw("--churn", "0"), draw("--churn", "0"))
    for churn in ("0", "0.5"):
        assert np.abs(draw("--churn", churn) - own).max() > 1e-3, churn
    one = draw("--steps", "1")
    np.testing.assert_array_equal(draw("--steps", "1", "--churn", "0"), one)  # one draw has no bridge to churn on
    assert np.abs(one - own).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "churn", "words"),
    [
        ("dddm", "2", ["churn is 2.0", "from 0 to 1"]),
        ("dddm", "-0.5", ["churn is -0.5", "from 0 to 1"]),
        ("dddm", "nan", ["churn is nan", "from 0 to 1"]),
        ("teacher", "0.5", ["churn is 0.5", "sampler heun of this generator has no churn", "leave it out"]),
        ("teacher", "2", ["churn is 2.0", "sampler heun of this generator has no churn"]),
        ("student", "1", ["churn is 1.0", "sampler few_step of this generator has no churn"]),
    ],
)
def test_churn_that_cannot_be_is_refused(kind, churn, words, mistake, request, tmp_path):
    message = mistake("sample", request.getfixturevalue(f"{kind}_run"), "--churn", churn, "--out", tmp_path / "a.npz")
    for word in words:
        assert word in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_sample_to_a_picture(done, student_run, tmp_path):
    done("sample", student_run, "-n", "25", "--seed", "5", "--out", tmp_path / "a.png")
    done("sample", student_run, "-n", "25", "--seed", "5", "--out", tmp_path / "a.npz")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        side, gap = 48, 2  # 8 pixels, six times enlarged
        assert picture.size == (10 * (side + gap) + gap, 3 * (side + gap) + gap)
        pixels = np.asarray(picture.convert("L"))
    samples = arrays(tmp_path / "a.npz")["samples"]
    for i in (0, 9, 10, 24):
        top, left = gap + i // 10 * (side + gap), gap + i % 10 * (side + gap)
        middle = pixels[top + 3 : top + side : 6, left + 3 : left + side : 6]
        np.testing.assert_allclose(middle, (samples[i, 0] + 1) * 127.5, atol=0.51)
    assert (pixels[gap + 2 * (side + gap) :, gap + 5 * (side + gap) :] == 255).all()  # no 26th


def test_a_model_folder_samples_like_its_run(done, student_run, tmp_path):
    shutil.copytree(student_run / "model", tmp_path / "alone")
    done("sample", student_run, "-n", "3", "--seed", "1", "--out", tmp_path / "a.npz")
    done("sample", tmp_path / "alone", "-n", "3", "--seed", "1", "--out", tmp_path / "b.npz")
    np.testing.assert_array_equal(arrays(tmp_path / "a.npz")["samples"], arrays(tmp_path / "b.npz")["samples"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--labels", "10"], ["labels are [10]", "from 0 to 9"]),
        (["--labels", "-1"], ["labels are [-1]", "from 0 to 9"]),
        (["--labels", "3,x"], ["labels name 'x', which is no class", "from 0 to 9", "0 = 0, 1 = 1"]),
        (["--labels", ""], ["--labels is ''", "such as 0,1,2"]),
        (["-n", "0"], ["num is 0", "at least 1"]),
        (["--steps", "3"], ["steps is 3", "give 1"]),
        (["--seed", "99999999999999999999"], ["seed"]),
        (["-n", "-5"], ["num is -5", "at least 1"]),
        (["-n", f"1{'0' * 30}"], ["so many samples take 264 QB", "free; give at most"]),
        (["--seed", f"-{'9' * 30}"], ["seed is -999", "at most 64 bits"]),
        (["--guidance-scale", "2"], ["guidance_scale is 2.0", "label dropout"]),
        (["--guidance-scale", "nan"], ["guidance_scale is nan", "float32 can hold"]),
        (["--guidance-scale", "-inf"], ["guidance_scale is -inf", "float32 can hold"]),
        (["--guidance-scale", "1e300"], ["guidance_scale is 1e+300", "float32 can hold"]),
        (["--churn", "inf"], ["churn is inf", "leave it out"]),
        (["--threads", "0"], ["--threads is '0'", "allowed: auto"]),
        (["--threads", "many"], ["--threads is 'many'", "allowed: auto"]),
    ],
)
def test_sample_refuses(options, words, mistake, student_run, tmp_path):
    message = mistake("sample", student_run, "--out", tmp_path / "a.npz", *options)
    for word in words:
        assert word in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.PNGx"])
def test_sample_to_a_file_of_another_kind(name, mistake, student_run, tmp_path):
    message = mistake("sample", student_run, "--out", tmp_path / name)
    assert f"--out is {tmp_path / name}" in message
    assert ".png" in message
    assert ".npz" in message


def test_sample_into_a_folder_that_is_not_there(mistake, student_run, tmp_path):
    assert f"there is no folder {tmp_path / 'no'}" in mistake("sample", student_run, "--out", tmp_path / "no" / "a.png")


@pytest.mark.parametrize("kind", ["nothing", "empty", "file", "hub"])
@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_place_without_a_model(kind, name, mistake, tmp_path):
    place = "owner/no-such-model" if kind == "hub" else tmp_path / "run"
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.touch()
    message = mistake(name, place, *(["--out", tmp_path / "a.png"] if name == "sample" else []))
    assert str(place) in message
    assert "give" in message or "Hub" in message


def test_a_run_that_has_no_model_yet(mistake, teacher_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(teacher_run / "recipe.yaml", run)
    for arguments in (["evaluate", run], ["sample", run, "--out", tmp_path / "a.png"]):
        message = mistake(*arguments)
        assert "config.json and model.safetensors not found" in message
        assert "checkpoint" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_that_is_damaged(name, mistake, student_run, tmp_path):
    shutil.copytree(student_run / "model", tmp_path / "model")
    content = (tmp_path / "model" / name).read_bytes()
    (tmp_path / "model" / name).write_bytes(content[: len(content) // 2])
    message = mistake("sample", tmp_path / "model", "--out", tmp_path / "a.png")
    assert f"the generator in {tmp_path / 'model'} cannot be read" in message


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(done, student_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(student_run, run)
    outcome = done("evaluate", run, "-n", "150", "--seed", "3")
    return run, outcome, json.loads((run / "results.json").read_text())


def test_evaluate_writes_what_was_measured_and_how(evaluated, student_run):
    _, _, results = evaluated
    assert not (student_run / "results.json").exists()  # it was a copy that was measured
    assert (results["n"], results["seed"], results["data"], results["recipe"], results["step"]) == (150, 3, "digits", "dmd2/digits", 6)
    assert results["training_seed"] == 0
    assert results["reference"] == "360 held-out images"
    assert {"cpu", "threads", "torch", "python", "accelerator"} <= set(results["machine"])
    rows = results["rows"]
    assert list(rows) == ["real train split", "teacher, 5 evaluations", "teacher, 1 evaluation", "student, 1 evaluation"]
    assert [row.get("evaluations") for row in rows.values()] == [None, 5, 1, 1]
    expected = "frechet frechet_over_floor frechet_train kernel precision recall class_accuracy within_class_std spacing train_distance "
    expected += "copies near_copies"
    for name, row in rows.items():
        assert set(expected.split()) <= set(row)
        assert row["frechet_over_floor"] == pytest.approx(row["frechet"] / results["floor"])
        assert name == "real train split" or row["images_per_second"] > 0
    assert rows["real train split"]["frechet"] == results["floor"] > 0
    # six steps teach nothing, and the figures must say so: in units of the whole train split's floor, for that of as few images is larger
    whole = suite_for(load_digits()).floor
    assert all(row["frechet"] > 20 * whole for name, row in rows.items() if name != "real train split")


def test_evaluate_prints_the_table_and_where_it_went(evaluated):
    run, outcome, results = evaluated
    lines = outcome.out.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip())[:4] == ["FD", "FD / floor", "FD to train", "class asked for"]
    for line, (name, row) in zip(lines[1:5], results["rows"].items(), strict=True):
        assert line.startswith(name)
        assert f"{row['frechet']:.3f}" in line.split()
    assert "n = 150 samples (seed 3)" in outcome.out
    assert f"{results['floor']:.3f}" in lines[5]
    assert str(run / "results.json") in outcome.out


def test_evaluate_puts_the_table_into_the_report(evaluated):
    run, _, results = evaluated
    html = (run / "report.html").read_text()
    assert '<th scope="row">student, 1 evaluation</th>' in html
    assert "This is dmd2/digits, as fewstep" in html  # the run records what it came from
    assert f"<td>{results['rows']['student, 1 evaluation']['frechet']:.3f}</td>" in html


def test_evaluate_again_gives_the_same_figures(evaluated, done):
    run, _, results = evaluated
    done("evaluate", run, "-n", "150", "--seed", "3")
    again = json.loads((run / "results.json").read_text())
    for rows in (again["rows"], results["rows"]):
        for row in rows.values():
            row.pop("images_per_second", None)
    assert again["rows"] == results["rows"]


@pytest.mark.parametrize("number", ["9", "0", "-5"])
def test_evaluate_with_too_few_samples(number, mistake, student_run):
    assert f"-n is {number}; give at least 20" in mistake("evaluate", student_run, "-n", number)


def test_agreement_with_prompts_where_there_are_none(mistake, student_run):
    assert "--clip is nowhere, which measures agreement with prompts, and this run has no prompts" in mistake(
        "evaluate", student_run, "--clip", "nowhere"
    )


def test_evaluate_with_the_fewest_samples_that_it_says_it_takes(mistake, command, student_run, tmp_path):
    fewest = re.search(r"at least (\d+)", mistake("evaluate", student_run, "-n", "1")).group(1)
    shutil.copytree(student_run, tmp_path / "run")
    outcome = command("evaluate", tmp_path / "run", "-n", fewest)
    assert (outcome.code, outcome.err.count("Traceback")) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "steps", "rows"),
    [
        ("teacher", "1,2,4", ["teacher, 1 evaluation", "teacher, 3 evaluations", "teacher, 7 evaluations"]),
        ("dddm", "1,2,4", ["dddm, 1 evaluation", "dddm, 2 evaluations", "dddm, 4 evaluations"]),
        ("dddm", "4, 1,4", ["dddm, 4 evaluations", "dddm, 1 evaluation"]),  # as asked, each once
        ("dddm", "5", ["dddm, 5 evaluations"]),  # and its own 3 only where nothing is asked
        ("dddm", None, ["dddm, 3 evaluations", "dddm, 4 evaluations", "dddm, 1 evaluation"]),
        ("student", "2", ["teacher, 3 evaluations", "student, 1 evaluation"]),  # the teacher has a choice
    ],
)
def test_evaluate_at_the_steps_asked_for(kind, steps, rows, done, request, tmp_path):
    run = shutil.copytree(request.getfixturevalue(f"{kind}_run"), tmp_path / "run")
    outcome = done("evaluate", run, "-n", "50", "--seed", "3", *([] if steps is None else ["--steps", steps]))
    results = json.loads((run / "results.json").read_text())
    assert list(results["rows"]) == ["real train split", *rows]
    assert [line.split("  ")[0] for line in outcome.out.splitlines()[2 : 2 + len(rows)]] == rows
    asked = [] if steps is None else list(dict.fromkeys(int(part) for part in steps.split(",")))
    for name, count in zip(rows, asked, strict=False):
        assert results["rows"][name]["steps"] == count or name.startswith("student")
    figures = [row["frechet"] for row in results["rows"].values()]
    assert len(set(figures)) == len(figures)  # each was drawn in another number of steps


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("0", ["steps is 0", "at least 1"]),
        ("1,0", ["steps is 0", "at least 1"]),
        ("-2", ["steps is -2", "at least 1"]),
        ("two", ["--steps is 'two'", "whole numbers with commas between"]),
        ("1.5", ["--steps is '1.5'", "whole numbers"]),
        ("1,,2", ["--steps is '1,,2'", "whole numbers"]),
        ("", ["--steps is ''", "whole numbers"]),
    ],
)
@pytest.mark.parametrize("kind", ["teacher", "dddm"])
def test_evaluate_at_steps_that_cannot_be(kind, steps, words, mistake, request):
    run = request.getfixturevalue(f"{kind}_run")
    message = mistake("evaluate", run, "-n", "50", "--steps", steps)
    for word in words:
        assert word in message
    assert not (run / "results.json").exists()


def test_the_version_is_told(done, fewstep_cli):
    assert done("--version").out == f"fewstep {fewstep.__version__}\n"


def test_home_is_found_in_every_path(done, mistake, tmp_path, monkeypatch):
    """The shell leaves ``~`` in ``--out=~/x``, in ``key=~/x`` and inside a recipe."""
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((500, 2)))
    small = ("network.widths=[8]", "steps=2", "batch_size=8", "trainer.accelerator=cpu")
    done("train", "teacher/ring", *small, "data={name: points, path: ~/x.npy}", "--out=~/my runs/teacher")
    run = tmp_path / "my runs" / "teacher"
    assert (run / "model" / "config.json").is_file()
    assert str(tmp_path / "x.npy") in (run / "recipe.yaml").read_text()
    done("evaluate", "~/my runs/teacher", "-n", 80, "--steps", 1)
    assert (run / "results.json").is_file()
    done("sample", "~/my runs/teacher", "-n", 4, "--out=~/a.npz")
    assert (tmp_path / "a.npz").is_file()
    more = ("network={name: coded_mlp, widths: [8], bits: 2, latent: 4}", "data={name: points, path: ~/x.npy}", *small[1:])
    out = done("train", "dmd2/ring", "method.teacher='~/my runs/teacher'", *more, "--out", "~/my runs/student").out
    assert f"next: fewstep evaluate '{tmp_path / 'my runs' / 'student'}'   or" in out  # which can be pasted
    assert fewstep.load("~/my runs/student").sample(2).shape == (2, 2)


def test_a_limit_on_the_size_of_files_is_a_sentence(tmp_path, command):
    small = ("network.widths=[64]", "steps=2", "batch_size=8", "trainer.accelerator=cpu")

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        outcome = command("train", "teacher/ring", *small, "--out", tmp_path / "run")
        sys.stderr.write(outcome.err[-2000:])
        sys.exit(outcome.code)

    ended = in_a_copy(limited, tmp_path / "said")
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert "File too large" in ended.err


@pytest.mark.parametrize("out", ["a.npz", "a.png"])
def test_more_samples_than_can_be_held_are_refused_at_once(out, mistake, teacher_run, tmp_path):
    began = time.monotonic()
    told = mistake("sample", teacher_run, "-n", 10**11, "--out", tmp_path / out)
    assert time.monotonic() - began < 20
    assert ("a grid holds at most 1,250,000" if out == "a.png" else "so many samples take 26.4 TB, and the disk of") in told
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("labels", [str(2**70), f"-{2**70}", "0,99999999999999999999"])
def test_labels_beyond_all_numbers_are_refused(labels, mistake, teacher_run, tmp_path):
    told = mistake("sample", teacher_run, f"--labels={labels}", "--out", tmp_path / "a.npz")
    assert "allowed are whole numbers from 0 to 9" in told


def test_more_threads_than_a_machine_can_run_are_refused(mistake, teacher_run, tmp_path):
    for arguments in (
        ("sample", teacher_run, "--out", tmp_path / "a.npz", "--threads", 100_000),
        ("train", "teacher/ring", "trainer.threads=100000", "--out", tmp_path / "run"),
    ):
        assert "threads is 100000; this machine has" in mistake(*arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: " + "[" * 1000 + "]" * 1000, "is nested too deep"),
        ("steps: " + "9" * 5000, "5000 digits"),
        ("steps: 2024-99-99", "month must be in"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_a_sentence(text, said, mistake, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    told = mistake("train", tmp_path / "r.yaml", "--dry-run")
    assert said in told
    assert len(told) < 600


def test_merge_keys_are_yaml(done, tmp_path):
    text = shipped_recipes()["teacher/ring"].read_text()
    (tmp_path / "r.yaml").write_text(
        "about: &shared {name: mlp}\n" + re.sub(r"(?m)^about:.*\n", "", text).replace("  name: mlp\n", "  <<: *shared\n")
    )
    assert "name: mlp" in done("train", tmp_path / "r.yaml", "--dry-run").out
