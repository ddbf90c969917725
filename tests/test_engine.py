"""What a run computes with: given, by rule, or measured; said in a line, recorded, and kept when the run goes on."""

import copy
import json
import sys

import pytest
import torch
import yaml

from every_method import CASES, made
from fewstep import engine, run
from fewstep.engine import Chosen, choose, has_bf16, make_fabric, settle
from fewstep.errors import UserError
from fewstep.recipe import Trainer, load_recipe
from fewstep.training.precision import InPrecision, in_precision

CPU = torch.device("cpu")
BIG = ("network.channels=[32,64]", "network.groups=8", "network.head_dim=32")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(engine, "SECOND", 0.01)
    monkeypatch.setattr(engine, "ROUNDS", 1)
    monkeypatch.setattr(engine, "MIXED_FROM", 0)


@pytest.fixture
def able(monkeypatch):
    """A CPU that has bfloat16, whether this one has it or not."""
    monkeypatch.setattr(engine, "has_bf16", lambda: True)


def taking(monkeypatch, seconds):
    """Passes take what `seconds(precision, threads)` says."""
    monkeypatch.setattr(engine._Probe, "_pass", lambda self, twin, precision, items: seconds(precision, torch.get_num_threads()))


def chosen(recipe, **options):
    data, method = made(recipe)
    return choose(recipe, method, data.shape, data.num_classes, CPU, **options)


def digits(*more):
    return load_recipe("teacher/digits", ("trainer.accelerator=cpu", *BIG, *more))


@pytest.mark.parametrize(
    ("ratio", "precision", "line"),
    [
        (2.1, "bf16-mixed", "precision: bf16, 2.1x as fast as fp32 here; CPU threads: 1"),
        (1.16, "bf16-mixed", "precision: bf16, 1.2x as fast as fp32 here; CPU threads: 1"),
        (1.14, "32-true", "precision: fp32, because bf16 is 1.1x as fast on this CPU; CPU threads: 1"),
        (0.4, "32-true", "precision: fp32, because bf16 is 0.4x as fast on this CPU; CPU threads: 1"),
    ],
)
def test_bfloat16_is_taken_where_it_pays(ratio, precision, line, quick, able, monkeypatch):
    taking(monkeypatch, lambda precision, threads: 1.0 if precision == "bf16-mixed" else ratio)
    found = chosen(digits())
    assert (found.precision, found.line) == (precision, line)


def test_nothing_is_measured_on_a_cpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(engine, "has_bf16", lambda: False)
    taking(monkeypatch, lambda *_: pytest.fail("it was measured"))
    assert chosen(digits()) == Chosen("32-true", 1, "precision: fp32, because this CPU has no bf16 arithmetic; CPU threads: 1")


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (load_recipe("teacher/ring", ()), "precision: fp32, because the data are points; CPU threads: 1"),
        (
            digits("network.channels=[8,32]", "network.groups=4", "batch_size=8"),
            "precision: fp32, because the network is small; CPU threads: 1",
        ),
        (digits("trainer.precision=bf16-mixed"), "precision: bf16, as given; CPU threads: 1"),
        (digits("trainer.precision=32-true", "trainer.threads=2"), "precision: fp32, as given; CPU threads: 2, as given"),
    ],
)
def test_what_is_given_or_has_a_rule_is_not_measured(recipe, line, able, monkeypatch):
    taking(monkeypatch, lambda *_: pytest.fail("it was measured"))
    assert chosen(recipe).line == line


@pytest.mark.parametrize(
    ("capability", "precision", "line"),
    [
        ((9, 0), "bf16-mixed", "precision: bf16, which this GPU is made for; fp32 matrix products in TF32"),
        ((8, 0), "bf16-mixed", "precision: bf16, which this GPU is made for; fp32 matrix products in TF32"),
        ((7, 5), "32-true", "precision: fp32, because this GPU has no bf16 arithmetic; fp32 matrix products in TF32"),
    ],
)
def test_a_gpu_says_what_it_has(capability, precision, line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    recipe = digits()
    data, method = made(recipe)
    found = choose(recipe, method, data.shape, data.num_classes, torch.device("cuda"))
    assert (found.precision, found.line) == (precision, line)


def test_elsewhere_it_is_float32(able):
    recipe = digits()
    data, method = made(recipe)
    assert choose(recipe, method, data.shape, data.num_classes, torch.device("mps")).precision == "32-true"


@pytest.mark.parametrize(
    ("cores", "fastest", "threads", "words"),
    [
        (2, 2, 2, "2.0x as fast as with 1"),
        (2, 1, 1, "2.0x as fast as with 2"),
        (8, 4, 4, "2.0x as fast as with 2"),
        (6, 6, 6, "1.5x as fast as with 4"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_threads_are_as_many_as_bring_something(cores, fastest, threads, words, processes, quick, monkeypatch):
    """A pass takes half as long with twice as many threads up to `fastest`, and twice as long with twice as many beyond."""
    monkeypatch.setattr(engine, "cores", lambda: cores * processes)
    monkeypatch.setattr(engine, "THREADS_FROM", 0)
    taking(monkeypatch, lambda precision, number: 1 / number if number <= fastest else number / fastest**2)
    found = chosen(digits("trainer.precision=32-true"), processes=processes)
    assert found.threads == threads * processes
    against = int(words.split()[-1]) * processes
    assert found.line.endswith(f"CPU threads: {threads * processes}, {words.rsplit(' ', 1)[0]} {against} here")


@pytest.mark.parametrize("name", CASES)
def test_measuring_leaves_every_method_as_it_was(name, still_teacher, quick, able, monkeypatch):
    recipe = CASES[name].read(still_teacher, "steps=20", batch_size=24)
    data, method = made(recipe)
    if len(data.shape) == 1:
        probe = engine._Probe(recipe, method, data.shape, data.num_classes, 1)
        measure = probe.speedup
    else:
        measure = lambda: choose(recipe, method, data.shape, data.num_classes, CPU).line  # noqa: E731
    weights = {key: p.clone() for network in method.networks.values() for key, p in network.state_dict().items()}
    flags = [p.requires_grad for network in method.networks.values() for p in network.parameters()]
    state, chance, threads = copy.deepcopy(method.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    found = measure()
    assert found is not None
    assert "could not" not in str(found)
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.get_num_threads() == threads
    assert method.state_dict() == state
    assert [p.requires_grad for network in method.networks.values() for p in network.parameters()] == flags
    assert all(p.grad is None for network in method.networks.values() for p in network.parameters())
    for key, p in ((key, p) for network in method.networks.values() for key, p in network.state_dict().items()):
        assert p.equal(weights[key]) or len(method.networks) > 1  # several networks have the same keys
    again = made(recipe)[1]
    for name, network in method.networks.items():
        for key, p in network.state_dict().items():
            assert torch.equal(p, again.networks[name].state_dict()[key]), (name, key)


def test_a_method_that_cannot_be_tried_learns_in_float32(quick, able, monkeypatch):
    def broken(self, *_):
        raise RuntimeError("no such kernel\nand more")

    recipe = digits()
    data, method = made(recipe)
    monkeypatch.setattr(type(method), "loss", broken)
    found = choose(recipe, method, data.shape, data.num_classes, CPU)
    assert found.precision == "32-true"
    assert "because bf16 could not be tried (RuntimeError: no such kernel)" in found.line


@pytest.mark.parametrize(("patience", "passes"), [(3.0, None), (0.0, 3)], ids=["patient", "impatient"])
def test_where_one_pass_takes_long_it_is_left_at_that(patience, passes, quick, able, monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE", patience)
    monkeypatch.setattr(engine, "cores", lambda: 2)
    monkeypatch.setattr(engine, "THREADS_FROM", 0)
    made_passes = []
    taking(monkeypatch, lambda precision, threads: made_passes.append(precision) or 1.0)
    found = chosen(digits())
    if passes is None:
        assert len(made_passes) > 4
        assert "could not" not in found.line
    else:  # one by which bfloat16 is tried, one for the threads, and one in which their pool settles
        assert len(made_passes) == passes
        assert found.precision == "32-true"
        assert "because bf16 could not be tried (TimeoutError: even 2 items take too long here)" in found.line
        assert found.line.endswith("CPU threads: 2")  # the rule's


@pytest.mark.parametrize(
    ("isa", "flags", "has"),
    [
        (None, "fpu avx2 fma", False),
        (None, "fpu avx512f avx512_vnni", False),
        (None, "fpu avx512f avx512_bf16", True),
        (None, "fpu amx_bf16 amx_tile", True),
        (None, "fp asimd sve bf16", True),
        ("AVX512_CORE", "fpu avx512_bf16", False),
        ("AVX512_CORE_BF16", "fpu avx512_bf16", True),
        ("default", "fpu amx_bf16", True),
    ],
)
def test_whether_a_cpu_has_bfloat16_is_read_from_its_flags(isa, flags, has, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if isa:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    monkeypatch.setattr(engine.Path, "read_text", lambda self: f"processor : 0\nflags : {flags}\n")
    assert has_bf16() is has


def test_without_such_a_list_torch_is_asked(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(engine.Path, "read_text", missing)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not has_bf16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert has_bf16()


def test_the_engine_works_in_what_was_chosen():
    module = torch.nn.Linear(2, 2)
    fabric = make_fabric(Trainer(accelerator="cpu"))
    assert in_precision(module, fabric.strategy.precision) is module
    assert fabric.setup_module(module)(torch.ones(1, 2)).dtype == torch.float32
    settle(fabric, "bf16-mixed")
    assert isinstance(in_precision(module, fabric.strategy.precision), InPrecision)
    seen = []
    module.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    assert fabric.setup_module(module)(torch.ones(1, 2)).dtype == torch.float32
    assert seen == [torch.bfloat16]


# --- in a run --------------------------------------------------------------------------------------------------------

SHORT = ("steps=4", "batch_size=8", "trainer.accelerator=cpu", "network.channels=[8,32]", "network.groups=4", "network.head_dim=8")


@pytest.fixture
def paying(quick, able, monkeypatch):
    taking(monkeypatch, lambda precision, threads: 1.0 if precision == "bf16-mixed" else 2.0)


def recorded(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_a_run_says_records_and_keeps_what_it_chose(paying, done, tmp_path, monkeypatch):
    line = "precision: bf16, 2.0x as fast as fp32 here; CPU threads: 1"
    dry = done("train", "teacher/digits", *SHORT, "--dry-run").out
    assert f"# {line}\n" in dry
    assert "precision: auto" in dry
    outcome = done("train", "teacher/digits", *SHORT, "--out", tmp_path / "run")
    assert outcome.err.count(line + "\n") == 1
    assert recorded(tmp_path / "run")["trainer"]["precision"] == "bf16-mixed"
    made_by = recorded(tmp_path / "run")["made_by"]
    assert (made_by["engine"], made_by["threads"]) == (line, 1)

    taking(monkeypatch, lambda *_: pytest.fail("it was measured again"))
    going = done("train", "teacher/digits", *SHORT, "steps=6", "--out", tmp_path / "run", "--resume").err
    assert "precision: bf16, as when the run began; CPU threads: 1, as when the run began" in going
    assert recorded(tmp_path / "run")["trainer"]["precision"] == "bf16-mixed"
    given = done("train", "teacher/digits", *SHORT, "steps=8", "trainer.precision=32-true", "--out", tmp_path / "run", "--resume").err
    assert "precision: fp32, as given" in given


def test_a_run_goes_on_bit_for_bit_though_it_would_choose_otherwise_now(paying, done, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cadence = ("trainer.log_every=1", "trainer.checkpoint_every=2", "method.optimizer.warmup=0", "method.optimizer.decay_from=1")
    done("train", "teacher/digits", *SHORT, *cadence, "--out", whole)
    done("train", "teacher/digits", *SHORT, *cadence, "steps=2", "--out", parts)
    monkeypatch.setattr(engine, "has_bf16", lambda: False)
    done("train", "teacher/digits", *SHORT, *cadence, "--out", parts, "--resume")
    losses = [[json.loads(one)["denoiser.denoising"] for one in (p / "metrics.jsonl").read_text().splitlines()] for p in (whole, parts)]
    assert losses[0] == losses[1]


def test_a_report_does_not_call_it_a_change(paying, done, tmp_path):
    done("train", "teacher/digits", *SHORT, "--out", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "trainer.precision</" not in page.split("recipe.yaml")[0]


def test_the_first_of_several_processes_decides_and_tells(paying, monkeypatch):
    """One that is not the first measures nothing, and takes what it is told: also that the user made a mistake."""

    class Other:
        is_global_zero, world_size, device = False, 2, CPU

        def __init__(self, told) -> None:
            self.told = told

        def broadcast(self, mine):
            assert mine is None
            return self.told

    recipe = digits()
    data, method = made(recipe)
    taking(monkeypatch, lambda *_: pytest.fail("it was measured"))
    told = Chosen("bf16-mixed", 2, "as it was told")
    assert run._chosen_together(recipe, method, data, Other(told), None) is told
    with pytest.raises(UserError, match="too many"):
        run._chosen_together(recipe, method, data, Other(UserError("too many")), None)


@pytest.mark.skipif(sys.platform == "win32", reason="no affinity")
def test_recorded_threads_that_this_machine_does_not_have_are_chosen_anew(monkeypatch):
    begun = {"trainer": {"precision": "32-true"}, "made_by": {"threads": 64}}
    monkeypatch.setattr(engine, "cores", lambda: 2)
    assert chosen(digits(), begun=begun).threads == 1
    monkeypatch.setattr(engine, "cores", lambda: 64)
    assert chosen(digits(), begun=begun).threads == 64
