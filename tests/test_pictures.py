"""The pictures of a run that was killed and gone on with."""

import shutil

import pytest

pytestmark = pytest.mark.usefixtures("drawn")
SMALL = ("network.widths=[16]", "network.bits=3", "network.latent=6", "batch_size=16", "steps=20", "trainer.accelerator=cpu")
CADENCE = ("trainer.log_every=4", "trainer.checkpoint_every=10", "trainer.sample_every=5")


def killed_at(run, step, undrawn):
    """What a kill leaves: checkpoints up to `step`, later lines and frames; of frames that were handed over some are not drawn."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    for frame in undrawn:
        (run / "dashboard" / "frames" / f"step_{frame:08d}.png").unlink()


def frames(run):
    return sorted(int(path.stem.removeprefix("step_")) for path in (run / "dashboard" / "frames").glob("*.png"))


def test_frames_of_an_undone_part_go_and_the_one_that_was_not_drawn_comes(done, tmp_path):
    run = tmp_path / "run"
    done("train", "drift/ring", *SMALL, *CADENCE, "--out", run)
    assert frames(run) == [5, 10, 15, 20]
    killed_at(run, 10, undrawn=[10])
    done("train", "drift/ring", *SMALL, *CADENCE[:2], "trainer.sample_every=10", "--out", run, "--resume")
    assert frames(run) == [5, 10, 20]  # 15 was of the part that was undone


def test_a_frame_between_two_lines_of_the_log_stays(done, tmp_path):
    """The last line of the log is of step 8, the checkpoint and the frame are of step 10."""
    run = tmp_path / "run"
    done("train", "drift/ring", *SMALL, *CADENCE, "--out", run)
    killed_at(run, 10, undrawn=[15, 20])
    before = (run / "dashboard" / "frames" / "step_00000010.png").read_bytes()
    done("train", "drift/ring", *SMALL, *CADENCE[:2], "trainer.sample_every=20", "--out", run, "--resume")
    assert frames(run) == [5, 10, 20]
    assert (run / "dashboard" / "frames" / "step_00000010.png").read_bytes() == before


def test_grids_of_an_undone_part_go_too(done, teacher_run, teacher_overrides, tmp_path):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    for path in (run / "checkpoints").iterdir():
        if path.name != "step_4":
            shutil.rmtree(path)
    (run / "samples" / "step_5.png").write_bytes(b"of the part that is undone")
    done("train", "teacher/digits", *teacher_overrides, "--out", run, "--resume")
    assert sorted(path.name for path in (run / "samples").iterdir()) == sorted(path.name for path in (teacher_run / "samples").iterdir())
