"""What all tests share: one thread, no network, tiny finished runs made once, and two ways to call the command line."""

import contextlib
import functools
import io
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

# subprocesses inherit these; the Hub's is read when huggingface_hub is imported; without bfloat16 no run measures which it takes
os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}

import pytest
import torch

os.fsync = lambda descriptor: None  # tests go on before the disk has what they wrote: of a machine that loses power they learn nothing

CADENCE = ("trainer.log_every=2", "trainer.checkpoint_every=2", "trainer.sample_every=3")
COMMON = ("batch_size=16", "steps=6", "trainer.accelerator=cpu", *CADENCE)
NETWORK = ("network.channels=[8,32]", "network.groups=4", "network.head_dim=8", "network.dropout=0.1")
GAN = (
    "method.gan=true",
    "method.gan_weight_generator=auto",
    "method.generator_warmup=0",
    "method.gan_levels=2",
    "method.r1_weight=1.0",
    "method.loss=dmd",
    "method.f_divergence=js",
)

# files that take long, the longest first: they are begun first (with `--no-loadscope-reorder`), so that no worker is left with one at last
LONG = (
    "test_two_are_one",
    "test_battery",
    "test_gpu_pieces",
    "test_text_to_image",
    "test_fsdp",
    "test_comparison",
    "test_docs_pages",
    "test_export_onnx",
    "test_ddp",
    "test_bounds",
    "test_drift",
    "test_export",
    "test_export_page",
    "test_two_sample",
    "test_powers",
    "test_dashboard_processes",
    "test_demo",
    "test_packaging",
    "test_resume",
    "test_damage",
    "test_point_runs",
    "test_pictures",
    "test_plugin",
    "test_kernels",
    "test_samples",
    "test_two_processes",
)


def pytest_collection_modifyitems(items):
    """Long files first; the others as they lie."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _quick():
    """No other process draws the frames of a run's dashboard, nor are a report's curves drawn, and a dry run tries steps for a moment.

    Nor is the speed of drawing samples taken more than once. Each takes seconds, and few look at it. Digits are read once.
    """
    import sklearn.datasets

    from fewstep import engine, pictures, trial
    from fewstep.metrics import suite
    from fewstep.viz import report
    from fewstep.viz.dashboard.messages import pack

    class Undrawn(pictures.Dashboard):
        def _work(self) -> None:
            pack(self.scene)
            with self.ready:
                while self.waiting or not self.ending:
                    self.ready.wait_for(lambda: self.waiting or self.ending)
                    while self.waiting:
                        pack(self.waiting.popleft())
                self.finished = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "Dashboard", Undrawn)
        patch.setattr(report, "curves", lambda records, names, log=False: f"<svg><text>{' '.join(names)}</text></svg>")
        patch.setattr(trial, "ENOUGH", 0.05)
        patch.setattr(engine, "keep_freed_memory", lambda: False)  # it would stay for other tests, some of which measure memory
        patch.setattr(trial, "BATCH", 16)
        patch.setattr(suite, "LONG", 0.0)
        patch.setattr(sklearn.datasets, "load_digits", functools.cache(sklearn.datasets.load_digits))
        yield


@pytest.fixture
def drawn(_quick, monkeypatch):
    """Dashboards and the curves of reports are drawn in this test."""
    from fewstep import pictures
    from fewstep.viz import plots, report
    from fewstep.viz.dashboard import Dashboard

    monkeypatch.setattr(pictures, "Dashboard", Dashboard)
    monkeypatch.setattr(report, "curves", plots.curves)


@pytest.fixture(scope="session", autouse=True)
def _cache_apart(tmp_path_factory):
    """What evaluations keep is not the user's."""
    os.environ["FEWSTEP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def registry_apart(monkeypatch):
    """Nothing is registered, installed, trusted or allowed but what the test does, and nothing of it stays; gives the registry."""
    from fewstep import registry

    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.BUILT_IN})
    monkeypatch.setattr(registry, "_trusted", set())
    monkeypatch.setattr(registry, "_folders", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry._installed.cache_clear()
    yield registry
    registry._installed.cache_clear()


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def _run(*arguments: object) -> Outcome:
    from fewstep import cli

    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["fewstep", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except Exception:  # what the interpreter does with it
                traceback.print_exc()
                code = 1
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command():
    """``command(*arguments) -> Outcome``: the command line, in this process."""
    return _run


@pytest.fixture(scope="session")
def done(command):
    """Like `command`, for a command that must succeed."""

    def call(*arguments: object) -> Outcome:
        outcome = command(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome

    return call


@pytest.fixture(scope="session")
def mistake(command):
    """Like `command`, for a command that a user must mend: exit code 2 and one message, which is returned."""

    def call(*arguments: object) -> str:
        outcome = command(*arguments)
        assert outcome.code == 2, outcome
        assert "Traceback" not in outcome.err, outcome.err
        assert outcome.err.count("error: ") == 1, outcome.err
        return outcome.err

    return call


@pytest.fixture(scope="session")
def fewstep_cli():
    """The command line in a process of its own; keyword arguments go to `subprocess.run`."""

    def call(*arguments: object, **options) -> subprocess.CompletedProcess:
        whole = [sys.executable, "-m", "fewstep", *map(str, arguments)]
        return subprocess.run(whole, **{"capture_output": True, "text": True, "timeout": 300, **options})

    return call


@pytest.fixture(scope="session")
def teacher_overrides() -> tuple[str, ...]:
    """A teacher of six steps on a tiny network with dropout, drawn from in five evaluations."""
    return (*NETWORK, *COMMON, "method.sampler_steps=3")


@pytest.fixture(scope="session")
def teacher_run(done, teacher_overrides, tmp_path_factory) -> Path:
    """A finished tiny ``teacher/digits``. Read only."""
    path = tmp_path_factory.mktemp("runs") / "teacher"
    done("train", "teacher/digits", *teacher_overrides, "--out", path)
    return path


@pytest.fixture(scope="session")
def still_teacher(done, tmp_path_factory) -> Path:
    """A finished tiny ``teacher/digits`` without dropout, so that no chance is left but what the loop gives. Read only."""
    path = tmp_path_factory.mktemp("runs") / "still"
    done("train", "teacher/digits", *NETWORK, "network.dropout=0", *COMMON, "steps=2", "method.sampler_steps=3", "--out", path)
    return path


@pytest.fixture(scope="session")
def student_overrides(teacher_run) -> tuple[str, ...]:
    """A distillation of `teacher_run` in six steps, with two adversarial heads that measure the weight, the slope and the density ratio."""
    return (f"method.teacher={teacher_run}", *GAN, *COMMON)


@pytest.fixture(scope="session")
def student_run(done, student_overrides, tmp_path_factory) -> Path:
    """A finished tiny ``dmd2/digits``. Read only."""
    path = tmp_path_factory.mktemp("runs") / "student"
    done("train", "dmd2/digits", *student_overrides, "--out", path)
    return path


@pytest.fixture(scope="session")
def dddm_run(done, teacher_overrides, tmp_path_factory) -> Path:
    """A finished tiny ``dddm/digits`` of the teacher's shape, classes and sigma_data, drawn in three steps. Read only."""
    path = tmp_path_factory.mktemp("runs") / "dddm"
    done("train", "dddm/digits", *teacher_overrides, "method.m=2", "method.sampler_steps=3", "--out", path)
    return path
