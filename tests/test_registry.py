"""What a folder may ask to be imported, and what is said of parts of one's own that will not do."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

import fewstep
from fewstep import Generator, pictures
from fewstep.errors import UserError
from fewstep.maths.schedules import karras_sigmas
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.samplers import GRID, SamplerKind, euler
from fewstep.training.checkpoint import checkpoints
from fewstep.training.run_folder import RunFolder

# a module of somebody's: that it ran shows in a file
THEIRS = '''
import os, pathlib
import torch
from torch import nn
from fewstep.data import PointData
from fewstep.methods import Batch, LossOutput, Method, MethodSettings, Optimizer, Turn
from pydantic import Field

pathlib.Path(__file__).with_suffix(".ran").touch()


class Settings(MethodSettings):
    optimizer: Optimizer = Field(default_factory=Optimizer)
    teaches = True


class Plain(Method):
    """The shortest method: one denoiser at one noise level."""

    Settings = Settings
    ships = "denoiser"
    shown = ("squares",)

    def __init__(self, settings, generator):
        self.generator = generator
        self.networks = {"denoiser": generator.denoiser}
        self.turns = (Turn("denoiser", ("denoiser",), settings.optimizer),)

    @classmethod
    def make(cls, settings, given):
        return cls(settings, given.make_generator({"name": "heun", "steps": 2, "sigma_min": 0.1, "sigma_max": 10.0, "rho": 7.0}))

    def loss(self, turn, networks, batch, rng, scratch):
        n = torch.randn(batch.x.shape, generator=rng)
        squares = (networks["denoiser"](batch.x + n, torch.ones(()), batch.label) - batch.x).square().mean()
        return LossOutput(squares, {"squares": squares.detach()})

    def ship(self, network, step):
        return self.generator.derive(self.generator.sampler, {**self.generator.info, "step": step}, network)


class Net(nn.Module):
    items = ("points",)

    def __init__(self, shape, num_classes, width: int = 4):
        super().__init__()
        self.body = nn.Linear(shape[0] + 1, shape[0])

    def forward(self, x, c_noise, label=None):
        return self.body(torch.cat([x, c_noise[:, None]], 1))


def square(size: int = 200) -> PointData:
    rng = torch.Generator().manual_seed(0)
    return PointData("square", torch.rand(size, 2, generator=rng), torch.rand(size, 2, generator=rng))
'''
TREE = {
    "method": {"name": "teacher", "label_dropout": 0.0},
    "data": {"name": "toy", "density": "ring", "size": 200},
    "network": {"name": "mlp", "widths": [8]},
    "steps": 10,
    "batch_size": 8,
    "trainer": {"accelerator": "cpu", "checkpoint_every": 4, "sample_every": 100, "log_every": 2},
}


class Theirs:
    """A module that somebody wrote, in the working folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def write(self, source: str = THEIRS, more: str = "") -> None:
        (self.folder / f"{self.name}.py").write_text(source + textwrap.dedent(more))
        self.forget()

    def recipe(self, **names: str) -> Path:
        """A recipe that names parts of it by section: ``method="Plain"``."""
        tree = json.loads(json.dumps(TREE))
        for section, name in names.items():
            tree[section] = {"name": f"{self.name}:{name}"}
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def forget(self) -> None:
        """As if it had never been imported."""
        sys.modules.pop(self.name, None)
        (self.folder / f"{self.name}.ran").unlink(missing_ok=True)

    @property
    def ran(self) -> bool:
        return (self.folder / f"{self.name}.ran").exists()


class NoDashboard:
    """Draws nothing."""

    def __init__(self, *arguments) -> None:
        pass

    def __getattr__(self, name):
        return lambda *arguments: None


@pytest.fixture
def theirs(registry_apart, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "Dashboard", NoDashboard)  # a process of its own, which nothing here looks at
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that is written twice within a second looks the same to the cache
    module = Theirs(tmp_path, f"theirs_{abs(hash(request.node.name))}")
    module.write()
    yield module
    module.forget()


@pytest.fixture
def run(theirs, registry_apart, monkeypatch):
    """A finished run of their method, network and data, in a process that has never heard of them."""
    path = fewstep.train(theirs.recipe(method="Plain", network="Net", data="square"), theirs.folder / "run")
    theirs.forget()
    registry_apart._trusted.clear()
    registry_apart._folders.clear()
    return path


# --- what a folder may ask for --------------------------------------------------------------------------------------------


def test_opening_a_folder_runs_nothing_of_it(run, theirs, mistake):
    teacher = ("train", "dmd2/ring", f"method.teacher={run}", "trainer.accelerator=cpu", "--out", "student")
    commands = [
        ("sample", run, "-n", 4, "--out", "samples.npz"),
        ("sample", run / "model", "-n", 4, "--out", "samples.npz"),
        ("evaluate", run, "-n", 80),
        ("export", run, "--format", "onnx", "--out", "exported"),
        teacher,
        (*teacher[:-2], "--dry-run"),
    ]
    for command in commands:
        err = mistake(*command)
        assert f"would run the module {theirs.name}, " in err, command
        assert f"allow it: --allow {theirs.name} on the command line, or allow=['{theirs.name}'] in Python" in err
    for call in (fewstep.load, Generator.from_pretrained, lambda path: fewstep.sample(path, 2)):
        with pytest.raises(UserError, match=f"would run the module {theirs.name}, "):
            call(run / "model")
    with pytest.raises(UserError, match=f"allow it: --allow {theirs.name}"):
        fewstep.evaluate(run, num=80)
    assert not theirs.ran
    assert theirs.name not in sys.modules


def test_what_is_allowed_is_imported_and_only_there(run, theirs, done, mistake):
    samples = fewstep.load(run, allow=[theirs.name]).sample(2, seed=0)
    assert theirs.ran
    assert torch.equal(Generator.from_pretrained(str(run / "model"), allow=[theirs.name]).sample(2, seed=0), samples)
    assert torch.equal(fewstep.sample(run, 2, allow=[theirs.name], seed=0), samples)
    allowed = ("--allow", theirs.name)
    done("sample", run, "-n", 4, "--out", "samples.npz", *allowed)
    assert f"{theirs.name}:Plain, 3 evaluations" in done("evaluate", run, "-n", 80, *allowed).out
    assert fewstep.evaluate(run, num=80, allow=[theirs.name])["rows"]
    with pytest.raises(UserError, match="may not ask for"):  # the permission was for those calls, though the module is in memory by now
        fewstep.load(run)
    assert "may not ask for" in mistake("evaluate", run, "-n", 80)


def test_the_commands_that_follow_a_run_allow_what_it_names(theirs, registry_apart, done):
    recipe = theirs.recipe(method="Plain", network="Net")
    told = done("train", recipe, "steps=2", "--out", "ours").out.splitlines()[1]
    assert told == "next: fewstep evaluate {0}   or   fewstep sample {0} -n 100 --out samples.png".format(f"ours --allow {theirs.name}")
    theirs.forget()
    registry_apart._trusted.clear()
    done(*told.removeprefix("next: fewstep ").split("   or")[0].split(), "-n", 80)  # as it was pasted


def test_a_teacher_of_theirs_is_allowed(run, theirs, done):
    """Where the recipe names none of it: only the teacher's folder does."""
    tree = {**TREE, "method": {"name": "dmd2", "teacher": str(run), "fake_widths": [8]}, "steps": 2}
    tree["network"] = {"name": "teacher", "sigma_data": fewstep.load(run, allow=[theirs.name]).sigma_data}
    theirs.forget()
    Path("student.yaml").write_text(yaml.safe_dump(tree))
    out = done("train", "student.yaml", "--dry-run", "--allow", theirs.name).out
    assert theirs.ran
    assert "network generator: 8 parameters, learns every" in out


def test_allowing_a_package_does_not_allow_one_that_begins_like_it(run, theirs):
    with pytest.raises(UserError, match="may not ask for"):
        fewstep.load(run, allow=[theirs.name[:-1], f"{theirs.name}.inner", f"{theirs.name}x"])
    assert not theirs.ran


def test_a_registered_room_needs_no_permission(run, theirs, registry_apart):
    module = __import__(theirs.name)
    fewstep.register("network", "anything", module.Net)
    assert fewstep.load(run).sample(2, seed=0).shape == (2, 2)


def test_an_installed_room_needs_no_permission(run, theirs, registry_apart, tmp_path, monkeypatch):
    info = tmp_path / "site" / "theirs-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[fewstep.networks]\ntheir_net = {theirs.name}:Net\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry_apart._installed.cache_clear()
    assert "their_net" in registry_apart.names("networks")
    assert not theirs.ran  # to list it is not to import it
    assert fewstep.load(run).sample(2, seed=0).shape == (2, 2)
    config = run / "model" / "config.json"
    config.write_text(config.read_text().replace(f"{theirs.name}:Net", "their_net"))
    assert fewstep.load(run).sample(2, seed=0).shape == (2, 2)


@pytest.mark.parametrize(
    "name", ["fewstep.run:train", "fewstep.generator:load", "fewstep.run:subprocess.run", "fewstep.files:replace_file"]
)
def test_a_run_folder_cannot_call_a_function_of_ours(run, theirs, name, tmp_path):
    """Each of these would run what the folder brings, or write what it likes."""
    recipe = RunFolder(run).recipe()
    recipe["data"] = {"name": name, "recipe": str(tmp_path / "recipe.yaml"), "out": "out", "path": str(run)}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=f"'{name}' is asked for as a data set"):
        fewstep.evaluate(run, num=80)
    assert not theirs.ran


@pytest.mark.parametrize("name", ["os.system", "nn.Linear", "pathlib.Path"])
@pytest.mark.parametrize("kind", ["network", "denoiser"])
def test_what_an_allowed_module_has_imported_is_no_room_of_it(run, theirs, name, kind):
    config = json.loads((run / "model" / "config.json").read_text())
    config[kind] = {"name": f"{theirs.name}:{name}"}
    (run / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"'{theirs.name}:{name}' is not defined in {theirs.name}, but in "):
        fewstep.load(run, allow=[theirs.name])


def test_a_broken_package_that_is_installed_spoils_no_other_message(registry_apart, tmp_path, monkeypatch, mistake):
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[fewstep.networks]\nbroken = not_there_at_all:Net\n[fewstep.methods]\nbad = not_there_at_all:M\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry_apart._installed.cache_clear()
    err = mistake("train", "teacher/ring", "network.name=dit", "network.widths=null", "--out", tmp_path / "run")
    assert "network.widths is not a key" in err
    assert "method.teacher is missing" in mistake("train", "dmd2/digits", "--out", tmp_path / "run")
    assert "the network 'broken' cannot be imported (ModuleNotFoundError: No module named 'not_there_at_all')" in mistake(
        "train", "teacher/ring", "network={name: broken}", "--out", tmp_path / "run"
    )


# --- what is said of a part that will not do ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "name", "more", "said"),
    [
        ("network", "Nett", "", "method|network.name: '{module}:Nett': the module {module} has no 'Nett'; did you mean 'Net'?"),
        ("method", "Net", "", "method.name: '{module}:Net' is the class Net; a method is a class derived from fewstep.methods.Method"),
        ("network", "Plain", "", "network.name: '{module}:Plain' is the class Plain; a network is a class derived from torch.nn.Module"),
        ("network", "square", "", "network.name: '{module}:square' is a function; a network is a class derived from torch.nn.Module"),
        ("data", "THREE", "THREE = 3", "data.name: '{module}:THREE' is a int; a data set is a class or a function"),
        (
            "method",
            "Half",
            """
            class Half(Method):
                ships = "denoiser"
                def loss(self, turn, networks, batch, rng, scratch): ...
                def ship(self, network, step): ...
            """,
            "method.name: the method '{module}:Half' does not define make; define what is named",
        ),
        (
            "method",
            "Odd",
            "from pydantic import BaseModel\nclass Odd(Plain):\n    class Settings(BaseModel): ...",
            "method.name: '{module}:Odd': its Settings is the class Settings; derive it from fewstep.sections.MethodSettings",
        ),
        (
            "network",
            "Untyped",
            "class Untyped(Net):\n    def __init__(self, shape, num_classes, width=3): super().__init__(shape, num_classes)",
            "network.name: '{module}:Untyped': its argument 'width' has no type; annotate it",
        ),
        (
            "network",
            "Strange",
            "class Strange(Net):\n    def __init__(self, shape, num_classes, of: nn.Module = None): super().__init__(shape, num_classes)",
            "network.name: '{module}:Strange': its arguments make no settings",
        ),
        (
            "network",
            "Net",
            "raise RuntimeError('no licence')",
            "network.name: the network '{module}:Net' cannot be imported (RuntimeError: no licence)",
        ),
        ("network", "Net", "import not_there", "cannot be imported (ModuleNotFoundError: No module named 'not_there'); mend its module"),
    ],
)
def test_a_recipe_that_names_what_is_no_room(theirs, mistake, section, name, more, said):
    theirs.write(more=more)
    err = mistake("train", theirs.recipe(**{section: name}), "--out", "run")
    assert said.split("|")[-1].format(module=theirs.name) in err
    assert "has 1 mistake:" in err
    assert not Path("run").exists()


def test_a_module_that_is_not_there(registry_apart, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    said = mistake("train", "teacher/ring", "network={name: 'not_there.at_all:Net'}", "--out", "run")
    assert (
        "network.name: there is no module 'not_there', which 'not_there.at_all:Net' asks for (searched beside the installed packages: "
        in said
    )
    assert str(tmp_path) in said


NETWORKS = {
    "shape": ("return self.body(torch.cat([x, c_noise[:, None]], 1))[:, :1]", "gives shape [2, 1] for 2 items; it must give [2, 2]"),
    "sums": ("return self.body(torch.cat([x, c_noise[:, None]], 1)).sum(0)", "gives shape [2] for 2 items; it must give [2, 2]"),
    "dtype": ("return self.body(torch.cat([x, c_noise[:, None]], 1)).double()", "gives torch.float64 for an input of torch.float32"),
    "none": ("return None", "gives None; it must give a tensor"),
    "pair": ("return x, x", "gives a tuple; it must give a tensor"),
    "raises": (
        "return self.bodi(x)",
        "line {line} when it was tried (AttributeError: 'Odd' object has no attribute 'bodi'); it is called with",
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("dry", [True, False])
def test_a_network_whose_output_will_not_do_is_told_of_before_training(theirs, mistake, case, dry):
    body, said = NETWORKS[case]
    theirs.write(more=f"\nclass Odd(Net):\n    def forward(self, x, c_noise, label=None):\n        {body}\n")
    line = len((theirs.folder / f"{theirs.name}.py").read_text().splitlines())
    err = mistake("train", theirs.recipe(network="Odd"), *(["--dry-run"] if dry else ["--out", "run"]))
    assert f"the network '{theirs.name}:Odd' " in err
    assert said.format(line=line) in err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("def __init__(self, shape, num_classes): super().__init__(shape)", "failed in {file}, line "),
        ("def __init__(self, size: int = 3): super().__init__((2,), None)", "cannot be made as Odd(shape, num_classes, name, size=...)"),
        (
            "def forward(self, x): return x",
            "failed when it was tried (TypeError: Odd.forward() takes 2 positional arguments but 4 were given)",
        ),
        ("def parameters(self, recurse=True): return iter(())", "has no parameters; there is nothing to train"),
    ],
)
def test_a_network_that_cannot_be_made_or_called(theirs, mistake, more, said):
    theirs.write(more=f"\nclass Odd(Net):\n    {more}\n")
    err = mistake("train", theirs.recipe(network="Odd"), "--out", "run")
    assert f"the network '{theirs.name}:Odd' " in err
    assert said.replace("name, size", "size").format(file=f"{theirs.name}.py") in err


def test_to_try_a_network_leaves_no_trace(theirs, registry_apart):
    """Neither in the global random state, nor in its buffers and mode: the weights are those that the seed says."""
    more = """
    class Normed(Net):
        def __init__(self, shape, num_classes):
            super().__init__(shape, num_classes)
            self.norm, self.drop = nn.BatchNorm1d(shape[0]), nn.Dropout(0.5)
        def forward(self, x, c_noise, label=None):
            return self.drop(self.norm(super().forward(x, c_noise, label))) + 0 * torch.rand(())  # chance that a loop would fork, too
    """
    theirs.write(more=more)
    from fewstep.build import load_data, make_generator

    recipe = load_recipe(str(theirs.recipe(network="Normed")))
    before = torch.get_rng_state()
    generator = make_generator(
        recipe, load_data(recipe.data), {"name": "euler", "steps": 2, "sigma_min": 0.1, "sigma_max": 9.0, "rho": 7.0}
    )
    assert torch.equal(torch.get_rng_state(), before)
    network = generator.denoiser.network
    assert network.norm.num_batches_tracked == 0
    assert torch.equal(network.norm.running_mean, torch.zeros(2))
    assert network.training
    assert network.drop.training
    assert not network._forward_hooks
    assert all(p.grad is None for p in network.parameters())


METHODS = {
    "raises": ("if batch.x.sum(): {}['a']", "failed in {file}, line {line} (KeyError: 'a')"),
    "the engine": (
        "x = batch.x.requires_grad_(); y = x * 1; z = (y * y).sum(); y.add_(1); squares = z",
        "failed in the gradients of its loss",
    ),
    "no output": ("return squares", "returned a tensor of shape []; it must return a fewstep.methods.LossOutput(loss, terms)"),
    "nothing": ("return None", "returned None; it must return a fewstep.methods.LossOutput(loss, terms)"),
    "a number": ("return LossOutput(3.0, {})", "returned a float; it must be a tensor of one number"),
    "no scalar": ("return LossOutput(batch.x * squares, {})", "returned a tensor of shape [8, 2]; it must be a tensor of one number"),
    "no gradient": ("squares = squares.detach()", "has no gradient; it must depend on what the turn trains (denoiser)"),
    "a bare term": ("return LossOutput(squares, {'size': 3})", "returned the term 'size' as a int; terms must be tensors of one number"),
}


@pytest.mark.parametrize("case", METHODS)
def test_a_method_that_fails_in_the_middle_loses_nothing(theirs, mistake, done, case):
    """At step 7, after a checkpoint at 4; mended, it goes on to the same end as a run that never failed."""
    body, said = METHODS[case]
    good = THEIRS.replace("        return LossOutput(", "        if True:\n            pass\n        return LossOutput(")
    bad = THEIRS.replace("        return LossOutput(", f"        if calls(self) == 7:\n            {body}\n        return LossOutput(")
    bad += "\ndef calls(method):\n    method.calls = getattr(method, 'calls', 0) + 1\n    return method.calls\n"
    recipe = theirs.recipe(method="Plain", network="Net")
    theirs.write(bad)
    err = mistake("train", recipe, "--out", "run")
    line = next(number for number, text in enumerate(bad.splitlines(), start=1) if "{}['a']" in text) if case == "raises" else 0
    assert said.format(file=f"{theirs.name}.py", line=line) if case == "raises" else said in err
    assert f"{theirs.name}:Plain" in err
    assert [folder.name for folder in checkpoints(Path("run/checkpoints"))] == ["step_4"]
    if case in ("raises", "the engine"):
        assert "that was at step 7, and the checkpoint step_4 is untouched: mend it, and go on with --resume" in err
        assert "Traceback (most recent call last)" in Path("run/traceback.txt").read_text()
    theirs.write(good)
    done("train", recipe, "--out", "run", "--resume")
    if case == "raises":
        done("train", recipe, "--out", "whole")
        assert Path("run/model/model.safetensors").read_bytes() == Path("whole/model/model.safetensors").read_bytes()


def test_a_network_that_fails_in_the_middle_is_named(theirs, mistake):
    more = """
    class Odd(Net):
        def forward(self, x, c_noise, label=None):
            self.calls = getattr(self, "calls", 0) + self.training
            if self.calls == 6:
                raise ArithmeticError("full\\nof things")
            return super().forward(x, c_noise, label)
    """
    theirs.write(more=more)
    err = mistake("train", theirs.recipe(network="Odd"), "--out", "run")  # with a method of ours
    assert f"the network '{theirs.name}:Odd' failed in {theirs.name}.py, line " in err
    assert "(ArithmeticError: full); that was at step 6" in err


def test_a_data_set_that_fails_is_named(theirs, mistake):
    theirs.write(more="\ndef odd() -> PointData:\n    return 1 / 0\n")
    err = mistake("train", theirs.recipe(data="odd"), "--out", "run")
    assert f"{theirs.name}:odd" in err
    assert "ZeroDivisionError: division by zero" in err
    assert not Path("run").exists()


def test_a_fault_of_ours_stays_one(theirs, command, monkeypatch):
    """Beside parts of one's own, too: what no line of theirs has called is told with a traceback."""
    from fewstep.training import loop

    def fault(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr(loop.Window, "add", fault)
    outcome = command("train", theirs.recipe(method="Plain", network="Net"), "--out", "run")
    assert outcome.code == 1
    assert "RuntimeError: ours" in outcome.err
    assert "Traceback" in outcome.err
    assert not Path("run/traceback.txt").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("self.networks = {'other': generator.denoiser}", "ships is 'denoiser'; it must name one of its networks: other"),
        ("self.networks = [generator.denoiser]", "networks is a list; it must be a dict of torch.nn.Module by name"),
        ("self.turns = ()", "turns is a tuple; it must be a tuple of fewstep.methods.Turn, at least one"),
        (
            "self.turns = (Turn('denoiser', ('fake',), settings.optimizer),)",
            "its turn 'denoiser' trains ('fake',); its networks are denoiser",
        ),
        ("self.turns = self.turns * 2", "its turns are called denoiser, denoiser; give each a name of its own"),
        ("self.least = 1 / 0", "failed in {file}, line "),
    ],
)
def test_a_method_that_is_not_what_it_promises(theirs, mistake, line, said):
    head = "class Odd(Plain):\n    def __init__(self, settings, generator):\n        super().__init__(settings, generator)"
    more = f"\n{head}\n        {line}\n"
    theirs.write(more=more)
    err = mistake("train", theirs.recipe(method="Odd", network="Net"), "--out", "run")
    assert f"the method '{theirs.name}:Odd'" in err
    assert said.format(file=f"{theirs.name}.py") in err
    assert not Path("run").exists()


def test_make_must_return_the_method(theirs, mistake):
    theirs.write(more="\nclass Odd(Plain):\n    @classmethod\n    def make(cls, settings, given): ...\n")
    err = mistake("train", theirs.recipe(method="Odd", network="Net"), "--out", "run")
    assert f"the method '{theirs.name}:Odd': make returned None; it must return the method" in err


# --- register -------------------------------------------------------------------------------------------------------------


def test_registering(registry_apart):
    class Net(torch.nn.Module):
        pass

    fewstep.register("networks", "mine", Net)
    assert registry_apart.room("networks", "mine") is Net
    assert registry_apart.names("networks")[-1] == "mine"
    for kind, name, said in (
        ("thing", "mine", "kind is 'thing'; allowed: methods, networks, data"),
        ("network", "mlp", "name is 'mlp'; give a word without a colon that is no built-in network"),
        ("network", "a:b", "name is 'a:b'; give a word without a colon"),
    ):
        with pytest.raises(UserError, match=said):
            fewstep.register(kind, name, Net)
    fewstep.register("data set", "three", 3)
    with pytest.raises(UserError, match="'three' is a int; a data set is a class or a function"):
        registry_apart.room("data", "three")


def test_a_denoiser_and_a_sampler_of_ones_own(theirs, registry_apart, monkeypatch):
    """By name where they are registered, and by import path where that may be followed; a folder of them loads again."""
    more = """
    from fewstep.denoisers import PreconditionedDenoiser
    from fewstep.samplers import SamplerKind

    class Halved(PreconditionedDenoiser):
        def forward(self, x, sigma, label=None):
            return super().forward(x, sigma, label) / 2

    once = SamplerKind(lambda denoiser, latents, sigmas, label=None, noise=None: denoiser(latents, sigmas[0], label), ("sigma",),
        lambda config, steps: torch.tensor([config["sigma"]]), counts=lambda config: [1])
    """
    theirs.write(more=more)
    monkeypatch.syspath_prepend(str(theirs.folder))
    module = __import__(theirs.name)
    fewstep.register("denoiser", "halved", module.Halved)
    fewstep.register("sampler", "once", module.once)
    made = Generator((2,), None, 0.5, {"name": "mlp", "widths": [4]}, {"name": "once", "sigma": 2.0}, denoiser={"name": "halved"})
    made.save_pretrained("saved")
    again = fewstep.load("saved")
    assert type(again.denoiser) is module.Halved
    assert torch.equal(again.sample(3, seed=0), made.sample(3, seed=0))
    config = json.loads(Path("saved/config.json").read_text())
    config |= {"denoiser": {"name": f"{theirs.name}:Halved"}, "sampler": {"name": f"{theirs.name}:once", "sigma": 2.0}}
    Path("saved/config.json").write_text(json.dumps(config))
    registry_apart._registered["denoisers"].clear()
    with pytest.raises(UserError, match="may not ask for"):
        fewstep.load("saved")
    config["sampler"] = {"name": f"{theirs.name}:Halved", "sigma": 2.0}
    Path("saved/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is the class Halved; a sampler is a fewstep\.samplers\.SamplerKind"):
        fewstep.load("saved", allow=[theirs.name])


def test_a_sampler_of_ones_own_draws_from_what_denoises_at_every_level(registry_apart):
    """By its own steps, and by those of the built-in samplers where it has their grid; it is counted, too."""
    grid = {"steps": 3, "sigma_min": 0.01, "sigma_max": 10.0, "rho": 7.0}

    def later(denoiser, latents, sigmas, label=None, noise=None, more=0.0):
        return euler(denoiser, latents, sigmas, label) + more

    needs = {"later": GRID, "last": ("steps",)}
    for name, keys in needs.items():
        told = {"evaluations": lambda steps: 2 * steps, "options": ("more",), "every_level": True}
        fewstep.register("sampler", name, SamplerKind(later, keys, lambda config, steps: karras_sigmas(steps, 0.01, 10.0, 7.0), **told))

    def made(sampler):
        torch.manual_seed(0)
        return Generator((2,), None, 0.5, {"name": "mlp", "widths": [4]}, sampler)

    usual = made({"name": "euler", **grid})
    for name in needs:
        mine = made({"name": name, **grid, "more": 1.0})
        assert torch.equal(mine.sample(3, seed=0), usual.sample(3, seed=0) + 1)
        assert torch.equal(mine.sample(3, seed=0, sampler=name), mine.sample(3, seed=0))
        assert (mine.evaluations(), mine.evaluations(sampler=name), mine.evaluations(sampler="heun")) == (6, 6, 5)
    assert torch.equal(
        made({"name": "later", **grid, "more": 1.0}).sample(3, seed=0, sampler="heun"), usual.sample(3, seed=0, sampler="heun")
    )
    with pytest.raises(UserError, match="sampler is 'heun'; allowed for this generator: last"):
        made({"name": "last", **grid}).sample(3, sampler="heun")


@pytest.mark.parametrize(("kind", "name"), [("sampler", "euler"), ("denoiser", "flow")])
def test_a_built_in_sampler_or_denoiser_is_not_hidden(kind, name, registry_apart):
    with pytest.raises(UserError, match=f"name is '{name}'; give a word without a colon that is no built-in {kind} \\(.*{name}"):
        fewstep.register(kind, name, None)


def test_the_recipe_that_is_trained_is_the_users_own_choice(theirs, tmp_path):
    """From Python, too; and what it names is in the run folder as it was named."""
    recipe = load_recipe(str(theirs.recipe(method="Plain", network="Net", data="square")))
    train_recipe(recipe, tmp_path / "run")
    assert theirs.ran
    assert RunFolder(tmp_path / "run").recipe()["data"].items() >= {"name": f"{theirs.name}:square", "size": 200}.items()
