"""Two processes on the CPU; a teacher and its student as a user would launch them: one command, no torchrun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from copies import Ended, in_two
from fewstep import load
from fewstep.engine import own_buffers
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.run_folder import RunFolder
from linear_method import Linear, run_loop

TWO = ("trainer.devices=2", "trainer.accelerator=cpu")

# the command line twice, for importing everything costs more than the runs. The first process is slow to copy the teacher into the
# student's run, and the second waits for the moment at which half of the copy is there (or in vain, which is as well)
COMMANDS = """
import json, os, sys, time
from pathlib import Path
from fewstep import build, files
from fewstep.cli import app

copy = Path(sys.argv[2])

def late(config, seed, load_data=build.load_data):
    deadline = time.monotonic() + 4
    while second and os.environ["LOCAL_RANK"] == "1" and not (copy / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return load_data(config, seed)

def slow(path, content, replace_file=files.replace_file):
    time.sleep(2 if path == copy / "model.safetensors" else 0)
    replace_file(path, content)

build.load_data, files.replace_file = late, slow
for second, arguments in enumerate(json.load(open(sys.argv[1]))):
    app(args=arguments, standalone_mode=False)
"""


def launch(script: str, folder: Path, *arguments: Path, seconds: float) -> Ended:
    """Run `script`, which starts a second process of itself; both are killed after `seconds`."""
    file = folder / "two_processes.py"
    file.write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(file), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return Ended(None, *process.communicate())
    return Ended(process.returncode, out, err)


def two_linear(folder: Path) -> None:
    """First a loss without chance, measured between two records of the log; then one that is not a number in one of the processes."""
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(**own_buffers()))
    fabric.launch()
    method = Linear()

    def measure(generator, measuring):
        return {"eval.norm": generator.weight.norm().item(), "eval.rank": fabric.global_rank}

    run_loop(folder / "two", method, fabric=fabric, on_evaluate=measure, accumulate=2, checkpoint_every=3, evaluate_every=5)
    weights = torch.cat([p.detach().flatten() for name in sorted(method.networks) for p in method.networks[name].parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    torch.distributed.all_gather(both, weights)
    if fabric.is_global_zero:
        (folder / "both.json").write_text(json.dumps([[own.tolist() for own in both], weights.tolist()]))

    def bad(turn, call):
        return torch.tensor(float("nan") if (fabric.global_rank, turn, call) == (1, "second", 4) else 0.0)

    run_loop(folder / "bad", Linear(before=bad), fabric=fabric, checkpoint_every=3)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear")
    return folder, in_two(lambda: two_linear(folder), folder / "said")


def test_two_processes_learn_what_one_does(linear, tmp_path):
    """The same batches: half of each in each process, in two parts, and gradients averaged over both."""
    folder, ended = linear
    assert (folder / "both.json").exists(), ended.err
    gathered, mine = json.loads((folder / "both.json").read_text())
    assert gathered[0] == gathered[1] == mine  # in step with each other, to the last bit
    alone = Linear()
    norm = {"on_evaluate": lambda generator, measuring: {"eval.norm": generator.weight.norm().item()}, "evaluate_every": 5}
    one = run_loop(tmp_path / "one", alone, checkpoint_every=3, **norm)
    expected = torch.cat([p.detach().flatten() for name in sorted(alone.networks) for p in alone.networks[name].parameters()])
    torch.testing.assert_close(torch.tensor(mine, dtype=torch.float64), expected, rtol=1e-9, atol=1e-9)
    two = RunFolder(folder / "two")
    for record, other in zip(one.metrics(), two.metrics(), strict=True):
        for name in ("step", "images_seen"):
            assert record[name] == other[name]
        for name in ("second.error", "second.grad_norm", "first.lr"):
            assert other[name] == pytest.approx(record[name], rel=1e-6), name
        assert other.get("eval.norm", 0) == pytest.approx(record.get("eval.norm", 0), rel=1e-6)
    assert [record["step"] for record in two.metrics() if record.get("eval.rank") == 0] == [5, 8]  # one process measures for both
    checkpoint = two.latest_checkpoint()[0]
    assert checkpoint.rng["loop"].shape == checkpoint.rng["torch"].shape == (2, 5056)


def test_a_loss_that_is_bad_in_one_process_stops_both(linear):
    folder, ended = linear
    assert ended.code is not None, f"it hangs\n{ended.err}"
    assert ended.code != 0
    assert "step 4: second.added is nan" in ended.err
    assert "the last good checkpoint is step 3" in ended.err
    assert RunFolder(folder / "bad").latest_checkpoint()[0].state["step"] == 3


def test_a_teacher_and_its_student_in_two_processes(teacher_overrides, student_overrides, teacher_run, done, mistake, tmp_path):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    distilled = [override.replace(str(teacher_run), str(teacher)) for override in student_overrides]
    commands = [
        ["train", "teacher/digits", *teacher_overrides, *TWO, "--out", str(teacher)],
        ["train", "dmd2/digits", *distilled, "method.sampler_steps=2", *TWO, "--out", str(student)],
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    ended = launch(COMMANDS, tmp_path, tmp_path / "commands.json", student / "teacher", seconds=200)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    for run in (teacher, student):
        assert ended.out.count(f"trained: {run}\n") == 1
        assert [(r["step"], r["images_seen"]) for r in RunFolder(run).metrics()] == [(2, 32), (4, 64), (6, 96)]  # one process writes
        assert load(run).sample(4, seed=0).isfinite().all()
        rng = load_checkpoint(run / "checkpoints" / "step_6").rng
        assert not torch.equal(*rng["loop"])  # each process draws noise of its own
        assert not torch.equal(*rng["torch"])  # and dropout
    # other noise than in one process, but the same kind: 16 images a step, a loss near 1 while nothing is learned
    one, two = (RunFolder(path).metrics()[0]["denoiser.denoising"] for path in (teacher_run, teacher))
    assert two == pytest.approx(one, abs=0.4)
    assert RunFolder(student).metrics()[-1]["generator.gan_weight"] > 0
    kept = load_checkpoint(student / "checkpoints" / "step_6").state["method"]
    assert kept["batches_made"] > 0
    assert kept["ratio_means"] != [1.0] * 10
    assert "already holds a run" in mistake(*commands[1])
    # one process can go on with what two have begun, and says that the noise will be another
    (teacher / "checkpoints" / "step_6" / "manifest.json").unlink()
    err = done("train", "teacher/digits", *teacher_overrides, "--out", teacher, "--resume").err
    assert "the number of processes has changed" in err
    assert load(teacher).info["step"] == 6
