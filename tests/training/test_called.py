"""The networks as a loss calls them: which learn, what compiling leaves as it was, and what is said where it cannot be done."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from every_method import CASES, made
from fewstep.compiling import not_compiled
from fewstep.errors import UserError
from fewstep.recipe import Trainer
from fewstep.run import make_fabric
from fewstep.training.called import GRAPHS, Kept
from fewstep.training.learned import learned
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder


def loop_of(recipe, folder, **settings):
    data, method = made(recipe)
    fabric = make_fabric(Trainer(accelerator="cpu"))
    return Loop(method, data, fabric, RunFolder(folder), LoopSettings(steps=recipe.steps, batch_size=recipe.batch_size, **settings))


@pytest.mark.parametrize("name", CASES)
def test_what_a_turn_trains_learns_and_all_else_stands_still(name, still_teacher, tmp_path):
    loop = loop_of(CASES[name].read(still_teacher, "steps=4"), tmp_path)
    for turn in (*loop.method.turns, *reversed(loop.method.turns)):
        networks = loop.called.in_turn(turn)
        assert networks.keys() == loop.method.networks.keys()
        for name, network in loop.method.networks.items():
            assert {p.requires_grad for p in learned(network).values()} <= {name in turn.trains}
            assert {id(p) for p in loop.called.parameters[name]} == {id(p) for p in learned(network).values()}


def test_what_a_graph_makes_is_copied():
    made = torch.ones(2)
    kept = Kept(lambda x: (made, {"again": made}))
    first, more = kept(0)
    made.zero_()
    assert first.tolist() == more["again"].tolist() == [1, 1]


@pytest.fixture
def compiler():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    import torch._inductor.config

    with torch._inductor.config.patch(compile_threads=1):  # or else processes are started for it
        yield


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("teacher/ring", ("network.widths=[8]",)),
        # a frozen teacher, and a gradient through it: some minutes of a C++ compiler
        pytest.param("dmd2/digits", ("method.teacher={teacher}",), marks=pytest.mark.slow),
    ],
)
def test_a_compiled_run_learns_the_same_under_the_same_names(recipe, options, compiler, done, still_teacher, tmp_path):
    """It then goes on without compiling."""
    given = (option.replace("{teacher}", str(still_teacher)) for option in options)
    options = (*given, "steps=2", "batch_size=8", "trainer.accelerator=cpu", "trainer.checkpoint_every=1")
    for name, compiled in (("plain", False), ("compiled", True)):
        done("train", recipe, *options, f"trainer.compile={str(compiled).lower()}", "--out", tmp_path / name)
    plain, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == other.keys()
    for key, value in plain.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=2e-4)  # two steps of Adam, whose first are of sign alone
    for path in (tmp_path / "compiled").rglob("*.safetensors"):
        assert not any("_orig_mod" in key for key in load_file(path)), path
    assert b"_orig_mod" not in (tmp_path / "compiled" / "checkpoints" / "step_2" / "optimizers.pt").read_bytes()
    going = done("train", recipe, *options, "steps=3", "--out", tmp_path / "compiled", "--resume").err
    assert "going on from step 2" in going


def failing(monkeypatch, error):
    def compile(module, **_):
        def broken(*args, **kwargs):
            raise error

        class Broken(torch.nn.Module):
            def forward(self, *args, **kwargs):
                return broken()

        broken_module = Broken()
        broken_module.weight = next(module.parameters())
        return broken_module

    monkeypatch.setattr(torch, "compile", compile)


def no_compiler():
    import torch._inductor.exc

    return torch._inductor.exc.InvalidCxxCompiler()


def test_without_a_compiler_that_is_said_in_a_sentence(still_teacher, tmp_path, monkeypatch):
    failing(monkeypatch, no_compiler())
    loop = loop_of(CASES["teacher"].read(still_teacher, "steps=4"), tmp_path, compile=True)
    with pytest.raises(
        UserError, match=r"trainer.compile is true, and the networks of this run cannot be compiled here \(No working C\+\+"
    ):
        loop.advance()


def test_other_faults_of_a_compiled_run_stay_what_they_are(still_teacher, tmp_path, monkeypatch):
    failing(monkeypatch, RuntimeError("the method's own"))
    loop = loop_of(CASES["teacher"].read(still_teacher, "steps=4"), tmp_path, compile=True)
    with pytest.raises(RuntimeError, match="the method's own"):
        loop.advance()
    assert not_compiled(RuntimeError("torch.compile with aot_autograd does not currently support double backward")) is not None
    assert not_compiled(ValueError("anything")) is None


@pytest.mark.parametrize("value", [False, True, GRAPHS])
def test_the_setting_takes_three_values(value):
    assert Trainer(compile=value).compile == value


def test_products_are_tf32_in_a_step_on_a_gpu_alone(still_teacher, tmp_path, monkeypatch):
    loop = loop_of(CASES["teacher"].read(still_teacher, "steps=4"), tmp_path)
    flags = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)  # noqa: E731
    before = flags()
    with loop.called.at_work():
        assert flags() == before
    monkeypatch.setattr(loop.called, "fabric", type("OnGPU", (), {"device": torch.device("cuda"), "strategy": None})())
    seen = []

    def failing_step():
        with loop.called.at_work():
            seen.append(flags())
            raise KeyError

    with pytest.raises(KeyError):
        failing_step()
    assert seen == [(True, True)]
    assert flags() == before
