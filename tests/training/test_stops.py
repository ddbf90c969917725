"""Asked to stop while a run measures or draws: it ends at once, loses nothing, and does later what it had not done."""

import json
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from copies import in_a_child, in_two
from fewstep import measurement
from fewstep.data.images import load_digits
from fewstep.engine import own_buffers
from fewstep.errors import Interrupted
from fewstep.generator import load
from fewstep.measurement import Watch, watched_elsewhere
from fewstep.training.measuring import Measuring
from fewstep.training.run_folder import RunFolder
from fewstep.training.signals import SIGNALS, StopNow, StopRequest
from linear_method import Linear, run_loop
from same_run import assert_same_run
from test_resume import stubborn

CADENCES = {"steps": 8, "log_every": 3, "sample_every": 4, "checkpoint_every": 3, "evaluate_every": 5}


def norm(generator, measuring=None) -> dict[str, float]:
    return {"eval.norm": generator.weight.norm().item()}


def picture(folder):
    """Draws a file of the step into the run in `folder`."""

    def draw(generator, step):
        path = RunFolder(folder).sample_folder / f"step_{step}.png"
        path.write_bytes(norm(generator)["eval.norm"].hex().encode())
        return path

    return draw


def missing(folder):
    return lambda step: step > 0 and not (RunFolder(folder).sample_folder / f"step_{step}.png").exists()


def run(folder, resume=False, measure=norm, draw=None):
    return run_loop(
        folder, stubborn(), resume, on_evaluate=measure, on_sample=draw or picture(folder), on_begin=missing(folder), **CADENCES
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture(autouse=True)
def _no_nohup():
    """Under nohup SIGHUP is ignored, and stays so in a run, as it should; but here it is to be heeded."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def asked_and_busy(number, do, when):
    """What `do` does, but on call `when` a request to stop comes, and it would go on for ever."""
    calls = []

    def busy(*arguments):
        calls.append(1)
        if len(calls) == when:
            os.kill(os.getpid(), number)
            while True:
                time.sleep(0.01)
        return do(*arguments)

    return busy


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("what", "when", "step"), [("measuring", 1, 5), ("measuring", 2, 8), ("drawing", 1, 4), ("drawing", 2, 8)])
def test_what_takes_long_is_given_up_at_once_and_done_later(number, what, when, step, whole, tmp_path):
    folder = tmp_path / "run"
    stops = (
        {"measure": asked_and_busy(number, norm, when)} if what == "measuring" else {"draw": asked_and_busy(number, picture(folder), when)}
    )
    with pytest.raises(Interrupted, match=f"stopped while {what} step {step} of 8, all saved; go on with --resume"):
        run(folder, **stops)
    assert RunFolder(folder).latest_checkpoint()[0].state["step"] == step
    torch.manual_seed(99)
    run(folder, resume=True)
    assert_same_run(folder, whole)


@pytest.mark.parametrize(("what", "when", "step"), [("measure", 1, 5), ("measure", 2, 8), ("draw", 1, 3), ("draw", 2, 8)])
def test_killed_while_it_measures_or_draws_it_loses_nothing_that_was_saved(what, when, step, whole, tmp_path):
    folder = tmp_path / "run"
    do = {"measure": norm, "draw": picture(folder)}[what]
    assert in_a_child(lambda: run(folder, **{what: asked_and_busy(signal.SIGKILL, do, when)})) == -signal.SIGKILL
    assert RunFolder(folder).latest_checkpoint()[0].state["step"] == step
    run(folder, resume=True)
    assert_same_run(folder, whole)


def test_what_was_measured_is_not_measured_again(whole, tmp_path):
    """Killed after the record was written: the record stays, with what was measured."""
    folder, measured = tmp_path / "run", []
    with pytest.raises(Interrupted):
        run(folder, draw=asked_and_busy(signal.SIGTERM, picture(folder), 2))

    def again(generator, measuring):
        measured.append(generator.config["step"])
        return norm(generator)

    run(folder, resume=True, measure=again)
    assert not measured
    assert_same_run(folder, whole)


def test_a_request_to_stop_is_heeded_at_the_command_line_while_it_measures(command, teacher_overrides, tmp_path, monkeypatch):
    """A number of samples that would take a day."""
    drawn = measurement.sample_seeds

    def signalled(seed, first, num):
        if first == 2 * measurement.BATCH:
            os.kill(os.getpid(), signal.SIGTERM)
        return drawn(seed, first, num)

    monkeypatch.setattr(measurement, "sample_seeds", signalled)
    watched = ("trainer.evaluate_every=2", "trainer.evaluate_samples=100_000_000")
    began = time.monotonic()
    outcome = command("train", "teacher/digits", *teacher_overrides, *watched, "--out", tmp_path / "run")
    assert outcome.code == 130
    assert time.monotonic() - began < 60
    assert outcome.err.splitlines()[-1] == "stopped while measuring step 2 of 6, all saved; go on with --resume, which measures it again"
    assert "Traceback" not in outcome.err


def test_a_second_signal_of_any_kind_stops_at_once_but_one_that_is_passed_on_is_the_same(monkeypatch):
    monkeypatch.setattr("fewstep.training.signals.PASSED_ON", 0.2)
    for first in SIGNALS:
        for second in SIGNALS:
            stop = StopRequest(lambda line: None)
            with stop.listening():
                os.kill(os.getpid(), first)
                assert stop.asked
                if first != second:  # a launcher got the first one too, and says so in its way
                    os.kill(os.getpid(), second)
                    time.sleep(0.25)
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), second)


def test_a_run_under_nohup_does_not_hear_that_its_terminal_is_gone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest(lambda line: None)
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_takes_a_request_to_stop_for_a_fault():
    assert not issubclass(StopNow, Exception)


# --- two processes ---------------------------------------------------------------------------------------------------


def two(folder, teacher) -> None:
    """Measuring that takes longer than the engine's limit; a real measurement; and a request that one of the two gets while they draw."""
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(**own_buffers()))
    fabric.launch()
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=6), None)  # not of the launch, which may take a busy machine long
    first = fabric.is_global_zero

    def slow(generator, measuring):
        time.sleep(8 * first)
        return {"eval.made": 1.0}

    run_loop(folder / "slow", Linear(), fabric=fabric, on_evaluate=slow, steps=2, evaluate_every=2)

    made, generator = [], load(teacher)
    sample = generator.sample
    generator.sample = lambda num, *rest: made.append(num) or sample(num, *rest)
    watch = Watch(load_digits(), 600) if first else watched_elsewhere(600, load_digits().train_label)
    figures = watch(generator, Measuring(fabric))
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps([made, figures]))

    def signalled(generator, measuring):
        def part():
            if not first:
                os.kill(os.getpid(), signal.SIGTERM)
            return torch.zeros(1)

        for _ in range(1000):
            measuring.share([part, part])
        return {}

    try:
        run_loop(folder / "stopped", Linear(), fabric=fabric, on_evaluate=signalled, steps=8, evaluate_every=5)
    except Interrupted as stopped:
        (folder / f"{fabric.global_rank}.txt").write_text(str(stopped))


def test_two_processes_measure_together_wait_as_long_as_it_takes_and_stop_together(teacher_run, tmp_path):
    ended = in_two(lambda: two(tmp_path, teacher_run), tmp_path / "said")
    assert ended.code == 0, ended.err
    assert [record["step"] for record in RunFolder(tmp_path / "slow").metrics() if "eval.made" in record] == [2]
    (first, figures), (second, nothing) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first, second) == ([256, 88], [256])
    assert nothing == {}
    torch.set_num_threads(1)
    assert figures == Watch(load_digits(), 600)(load(teacher_run))  # to the last bit
    for rank in (0, 1):
        assert "stopped while measuring step 5 of 8" in (tmp_path / f"{rank}.txt").read_text()
    assert RunFolder(tmp_path / "stopped").latest_checkpoint()[0].state["step"] == 5
