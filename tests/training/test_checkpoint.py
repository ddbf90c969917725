import errno
import hashlib
import json
import os
import pickle

import pytest
import torch

from fewstep import files
from fewstep.errors import UserError
from fewstep.training.checkpoint import Checkpoint, Damaged, checkpoints, load_checkpoint, save_checkpoint
from fewstep.training.run_folder import RunFolder
from same_run import snapshot


def make(step: int) -> Checkpoint:
    rng = torch.Generator().manual_seed(step)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    networks = {"net": {"weight": torch.randn(4, 3, generator=rng)}, "ema": {"weight": torch.full((4, 3), float(step))}}
    states = torch.stack([rng.get_state(), rng.get_state() ^ 1])
    state = {"step": step, "updates": {"turn": step}, "seconds": 0.1}
    return Checkpoint(networks, {"turn": optimizer.state_dict()}, {"loop": states}, state)


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path / "step_2", make(2))
    return tmp_path / "step_2"


def test_what_is_saved_comes_back(saved):
    before, after = make(2), load_checkpoint(saved)
    assert set(after.networks) == {"net", "ema"}
    for name, tensors in before.networks.items():
        torch.testing.assert_close(dict(after.networks[name]), dict(tensors), rtol=0, atol=0)
    torch.testing.assert_close(after.rng["loop"], before.rng["loop"], rtol=0, atol=0)
    assert after.state == before.state
    state = after.optimizers["turn"]["state"]
    assert state[0]["step"] == 1
    torch.testing.assert_close(state[0]["exp_avg"], torch.full((2, 3), 0.1))


def test_the_manifest_holds_the_digest_of_each_file(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert set(manifest) == {path.name for path in saved.iterdir()} - {"manifest.json"}
    for name, digest in manifest.items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == digest


# --- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", range(1, 7))  # net, ema, optimizers, rng, state, manifest
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_no_trace(failing, error, saved, monkeypatch):
    old, written = snapshot(saved), []
    write_file = files.write_file

    def full(path, content):
        written.append(path.name)
        if len(written) == failing:
            path.write_bytes(content[: len(content) // 2])  # a disk that fills up takes a part
            raise error
        return write_file(path, content)

    monkeypatch.setattr(files, "write_file", full)
    with pytest.raises(type(error)):
        save_checkpoint(saved.with_name("step_4"), make(4))
    assert len(written) == failing
    assert [path.name for path in saved.parent.iterdir()] == ["step_2"]
    assert snapshot(saved) == old
    assert load_checkpoint(saved).state["step"] == 2


def test_a_failure_while_writing_again_keeps_what_was_there(saved, monkeypatch):
    old = snapshot(saved)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, make(3))
    assert snapshot(saved) == old


def test_what_a_kill_left_behind_is_no_checkpoint_and_is_in_nobodys_way(saved):
    partial = saved.with_name(".step_4.partial")
    partial.mkdir()
    (partial / "net.safetensors").write_bytes(b"half")
    (partial / "stale.safetensors").write_bytes(b"of an older version")
    assert checkpoints(saved.parent) == [saved]
    save_checkpoint(saved.with_name("step_4"), make(4))
    assert not partial.exists()
    assert load_checkpoint(saved.with_name("step_4")).state["step"] == 4
    assert not (saved.with_name("step_4") / "stale.safetensors").exists()


def test_a_checkpoint_is_moved_into_place_only_when_all_of_it_is_written(tmp_path, monkeypatch):
    seen = []
    write_file = files.write_file

    def spy(path, content):
        seen.append((tmp_path / "step_2").exists())
        return write_file(path, content)

    monkeypatch.setattr(files, "write_file", spy)
    save_checkpoint(tmp_path / "step_2", make(2))
    assert seen == [False] * 6
    assert (tmp_path / "step_2").exists()


# --- damage ----------------------------------------------------------------------------------------------------------

NAMES = ("net.safetensors", "ema.safetensors", "optimizers.pt", "rng.safetensors", "state.json", "manifest.json")


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [flip, lambda content: content[:-1], lambda content: b"", lambda content: content + b"x", None])
def test_damage_to_any_file_is_detected(name, damage, saved):
    path = saved / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Damaged, match="step_2"):
        load_checkpoint(saved)


@pytest.mark.parametrize("manifest", ["{}", "[]", "null", "3", '"net.safetensors"', '{"net.safetensors": 1}'])
def test_a_manifest_that_is_no_manifest_is_damage(manifest, saved):
    (saved / "manifest.json").write_text(manifest)
    with pytest.raises(Damaged, match="step_2"):
        load_checkpoint(saved)


class Bomb:
    """A pickle that leaves a file behind when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_optimizers_that_hold_code_are_damage_and_are_not_executed(form, saved, tmp_path):
    target = saved / "optimizers.pt"
    if form == "pickle":
        target.write_bytes(pickle.dumps({"turn": Bomb(tmp_path / "executed")}))
    else:
        torch.save({"turn": Bomb(tmp_path / "executed")}, target)
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["optimizers.pt"] = hashlib.sha256(target.read_bytes()).hexdigest()  # whoever made it could do this too
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception) as error:  # noqa: PT011 - of which kind is the second question
        load_checkpoint(saved)
    assert not (tmp_path / "executed").exists()
    assert isinstance(error.value, Damaged)


# --- the run folder's choice -----------------------------------------------------------------------------------------


def test_only_the_newest_are_kept_and_sorted_by_number(tmp_path):
    run = RunFolder(tmp_path)
    for step in (8, 9, 10, 100):
        run.save_checkpoint(step, make(step), keep=3)
    (run.checkpoint_folder / "step_notes").mkdir()
    (run.checkpoint_folder / ".step_200.partial").mkdir()
    assert [path.name for path in checkpoints(run.checkpoint_folder)] == ["step_100", "step_10", "step_9"]
    assert run.latest_checkpoint()[0].state["step"] == 100


def test_an_older_checkpoint_is_removed_only_after_the_new_one_is_whole(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.save_checkpoint(2, make(2), keep=1)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        run.save_checkpoint(4, make(4), keep=1)
    assert run.latest_checkpoint()[0].state["step"] == 2


def test_damaged_checkpoints_are_passed_over_and_named(tmp_path):
    run = RunFolder(tmp_path)
    for step in (2, 4, 6):
        run.save_checkpoint(step, make(step), keep=3)
    (run.checkpoint_folder / "step_6" / "manifest.json").unlink()
    (run.checkpoint_folder / "step_4" / "state.json").write_text("{}")
    found, wrong = run.latest_checkpoint()
    assert found.state["step"] == 2
    assert len(wrong) == 2
    assert "step_6" in wrong[0]
    assert "step_4" in wrong[1]
    assert "state.json" in wrong[1]


def test_no_checkpoint_and_only_damaged_ones_are_two_things(tmp_path):
    run = RunFolder(tmp_path)
    assert run.latest_checkpoint() == (None, [])
    for step in (2, 4):
        run.save_checkpoint(step, make(step), keep=2)
        (run.checkpoint_folder / f"step_{step}" / "net.safetensors").unlink()
    with pytest.raises(UserError, match=r"(?s)no checkpoint.*step_4.*step_2.*another folder"):
        run.latest_checkpoint()


# --- metrics.jsonl ---------------------------------------------------------------------------------------------------


def test_metrics_cut_short_by_a_kill_lose_only_the_last_line(tmp_path):
    run = RunFolder(tmp_path)
    assert run.metrics() == []
    for step in (2, 4, 6):
        run.log({"step": step, "loss": 0.1 * step})
    run.metrics_file.write_text(run.metrics_file.read_text()[:-9])
    assert run.metrics() == [{"step": 2, "loss": 0.2}, {"step": 4, "loss": 0.4}]


def test_a_resumed_run_forgets_what_it_will_log_again(tmp_path):
    run = RunFolder(tmp_path)
    for step in (2, 4, 6):
        run.log({"step": step, "loss": step / 3})
    before = run.metrics_file.read_text().splitlines()
    with run.metrics_file.open("a") as file:
        file.write('{"step": 8, "lo')
    run.forget_after(4)
    assert run.metrics_file.read_text().splitlines() == before[:2]  # to the last digit
    run.log({"step": 6, "loss": 2.0})
    assert [record["step"] for record in run.metrics()] == [2, 4, 6]
