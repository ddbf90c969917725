import json
import shutil
import struct
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from fewstep.errors import UserError
from fewstep.training.run_folder import RunFolder
from fewstep.training.tracking import NoTracker, WandbTracker, make_tracker
from linear_method import Linear, run_loop


def scalars(records) -> dict[int, dict[str, float]]:
    """What a tracker should have been given: the numbers of metrics.jsonl by step."""
    return {r["step"]: {k: v for k, v in r.items() if k != "step" and isinstance(v, int | float)} for r in records}


def wandb_history(file) -> dict[int, dict[str, object]]:
    """The rows that an offline run holds: protobuf records in LevelDB's log format (blocks of 32 KiB, 7 bytes of header)."""
    from wandb.proto import wandb_internal_pb2

    content, position, record = file.read_bytes(), 7, b""
    rows: dict[int, dict[str, object]] = {}
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            record = b""
            if message.HasField("history"):
                items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in message.history.item}
                rows.setdefault(message.history.step.num, {}).update(items)
    return rows


def test_wandb_offline_holds_every_record_and_picture(done, teacher_overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    run = tmp_path / "run"
    done("train", "teacher/digits", *teacher_overrides, "trainer.tracker=wandb", "--out", run)
    (folder,) = (run / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    assert (run / "wandb_id").read_text() in file.name  # one id a run folder: a resumed run goes on with its own curves
    rows = wandb_history(file)
    expected = scalars(RunFolder(run).metrics())
    assert sorted(expected) == [2, 4, 6]
    for step, values in expected.items():
        assert {name: rows[step][name] for name in values} == pytest.approx(values)
    assert rows[3]["samples._type"] == "image-file"
    for step in (3, 6):
        picture = folder / "files" / rows[step]["samples.path"]
        with Image.open(picture) as one, Image.open(run / "samples" / f"step_{step}.png") as other:
            assert one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


def test_tensorboard_holds_every_record_and_picture(done, teacher_overrides, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    done("train", "teacher/digits", *teacher_overrides, "trainer.tracker=tensorboard", "--out", run)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    expected = scalars(RunFolder(run).metrics())
    names = set().union(*expected.values())  # some figures come only in some records
    assert set(events.Tags()["scalars"]) == {name.replace(".", "/", 1) for name in names}  # a turn's curves in one group
    for name in names:
        found = {event.step: event.value for event in events.Scalars(name.replace(".", "/", 1))}
        assert found == pytest.approx(
            {step: values[name] for step, values in expected.items() if name in values}, rel=1e-6
        )  # kept as float32
    assert [event.step for event in events.Images("samples")] == [3, 6]
    with Image.open(run / "samples" / "step_3.png") as picture:
        assert (events.Images("samples")[0].width, events.Images("samples")[0].height) == picture.size


def test_what_was_logged_after_the_checkpoint_stands_once_in_tensorboard(tmp_path):
    """A run that was killed at step 6 and goes on from its checkpoint of step 4, as one that was never stopped."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def tracked(name):
        return make_tracker("tensorboard", tmp_path / name, {})

    run = run_loop(tmp_path / "run", Linear(), steps=6, tracker=tracked("run"))
    shutil.rmtree(run.checkpoint_folder / "step_6")
    run_loop(tmp_path / "run", Linear(), steps=8, resume=True, tracker=tracked("run"))
    run_loop(tmp_path / "whole", Linear(), steps=8, tracker=tracked("whole"))
    found, whole = (EventAccumulator(str(tmp_path / name / "tensorboard")).Reload() for name in ("run", "whole"))
    assert [event.step for event in found.Scalars("images_seen")] == [2, 4, 6, 8]
    for tag in ("second/error", "first/grad_norm"):
        assert [(e.step, e.value) for e in found.Scalars(tag)] == [(e.step, e.value) for e in whole.Scalars(tag)]


@pytest.mark.parametrize(
    ("step", "resumed", "logged"),
    [(0, False, [2, 4, 6, 8]), (4, True, [8]), (0, True, [8]), (4, False, [2, 4, 6, 8])],
)
def test_a_resumed_wandb_run_is_not_sent_the_steps_that_it_has(step, resumed, logged, tmp_path):
    sent = []
    tracker = WandbTracker.__new__(WandbTracker)
    tracker.run = SimpleNamespace(step=7, resumed=resumed, log=lambda row, step: sent.append(step), alert=lambda **alert: None)
    tracker.begin(step)
    for at in (2, 4, 6, 8):
        tracker.log({"step": at, "loss": 1.0})
    assert sent == logged
    for at in (6, 8):
        tracker.alarm("noise", "too much", at)
    assert sent == [*logged, *([8] if resumed else [6, 8])]


def test_a_run_that_is_tracked_learns_the_same(done, teacher_run, teacher_overrides, tmp_path):
    done("train", "teacher/digits", *teacher_overrides, "trainer.tracker=tensorboard", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == (teacher_run / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_tracker_that_is_not_installed_names_what_to_install(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    with pytest.raises(UserError, match=rf"trainer.tracker is '{name}', which is not installed: pip install 'fewstep\[{name}\]'"):
        make_tracker(name, tmp_path, {})


def test_after_installing_the_tracker_the_same_command_works(mistake, done, teacher_overrides, tmp_path, monkeypatch):
    arguments = ["train", "teacher/digits", *teacher_overrides, "steps=1", "trainer.tracker=tensorboard", "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        assert "fewstep[tensorboard]" in mistake(*arguments)
    done(*arguments)


def test_no_tracker_imports_nothing_and_takes_everything(tmp_path):
    tracker = make_tracker("none", tmp_path, {})
    assert isinstance(tracker, NoTracker)
    tracker.log({"step": 1, "loss": 2.0})
    tracker.image(tmp_path / "none.png", 1)
    tracker.alarm("collapse", "less and less", 1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_wandb_without_a_key_is_told_before_the_folder_is_made(mistake, done, teacher_overrides, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    arguments = ["train", "teacher/digits", *teacher_overrides, "steps=1", "trainer.tracker=wandb", "--out", tmp_path / "run"]
    told = mistake(*arguments)
    assert "there is no key of an account; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline" in told
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    done(*arguments)  # the same command


def test_project_tags_alarms_and_parts_of_an_offline_run(done, teacher_overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    places = ("trainer.wandb.project=mine", "trainer.wandb.tags=[first, small]")
    arguments = ["train", "teacher/digits", *teacher_overrides, *places, "trainer.tracker=wandb", "--out", run]
    assert "--append" not in done(*arguments).err
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"mine" in content
    assert b"small" in content
    alarms = [record["alarms"] for record in RunFolder(run).metrics()]
    raised = {name for names in alarms for name in names}
    assert raised  # a network that knows nothing yet
    rows = wandb_history(file)
    assert {key.removeprefix("alarm/") for row in rows.values() for key in row if key.startswith("alarm/")} == raised
    (run / "checkpoints" / "step_6" / "manifest.json").unlink()
    told = done(*arguments, "--resume").err
    assert f"`wandb sync --append {run}/wandb/offline-run-*` puts the parts into one" in told


def test_wandb_that_cannot_begin_is_a_sentence(tmp_path, monkeypatch):
    import wandb

    def fails(**options):
        raise wandb.errors.CommError("no such host\nand more")

    monkeypatch.setattr(wandb, "init", fails)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match=r"cannot begin \(no such host\); nothing is lost: go on with --resume"):
        make_tracker("wandb", tmp_path, {})


def test_what_is_set_for_a_tracker_and_a_measurement_that_are_off_is_noted(done, teacher_overrides, tmp_path):
    words = ["train", "teacher/digits", *teacher_overrides, "steps=1"]
    off = done(*words, "trainer.wandb.project=mine", "trainer.evaluate_samples=60", "--out", tmp_path / "off").err
    assert "note: trainer.wandb.project is 'mine', which has no effect, as trainer.tracker is 'none'" in off
    assert (
        "trainer.evaluate_samples is 60, which has no effect, as nothing is measured while training without trainer.evaluate_every" in off
    )
    plain = done(*words, "--out", tmp_path / "plain").err
    assert "no effect" not in plain
    assert "evaluate_every" not in plain
