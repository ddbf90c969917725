"""What a stranger's method, network and data set must be for a run to be saved, loaded and resumed as what it was."""

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from fewstep import pictures, registry
from fewstep.cli_models import next_after
from fewstep.errors import UserError
from fewstep.recipe import load_recipe

ROOMS = '''
import enum
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from fewstep.data import ImageData, PointData
from fewstep.methods import LossOutput, Method, MethodSettings, Optimizer, Turn, normal


class Kind(enum.Enum):
    PLAIN = "plain"


class Net(nn.Module):
    items = ("points",)

    def __init__(self, shape, num_classes, widths: tuple[int, ...] = (8,), kind: Kind = Kind.PLAIN):
        super().__init__()
        assert isinstance(widths, tuple) and kind is Kind.PLAIN
        self.enter, self.leave = nn.Linear(shape[0] + 1, widths[0]), nn.Linear(widths[0], shape[0])
        # MADE

    def forward(self, x, c_noise, label=None):
        return self.leave(torch.tanh(self.enter(torch.cat([x * self.unit(), c_noise[:, None]], 1))))

    def unit(self):
        return 1.0

    def zero_output(self):
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)


class Settings(MethodSettings):
    optimizer: Optimizer = Field(default_factory=lambda: Optimizer(lr=1e-2))
    levels: tuple[float, float] = (0.5, 2.0)


class Two(Method):
    """A denoiser at two noise levels, and a critic that nothing needs, with what it keeps of its samples."""

    Settings = Settings
    ships = "denoiser"
    shown = ("squares",)

    def __init__(self, settings, generator):
        self.settings, self.generator, self.mean, self.count = settings, generator, None, 0
        self.networks = {"denoiser": generator.denoiser, "critic": nn.Linear(2, 1)}
        self.turns = (Turn("critic", ("critic",), settings.optimizer), Turn("denoiser", ("denoiser",), settings.optimizer, every=2))

    @classmethod
    def make(cls, settings, given):
        return cls(settings, given.make_generator({"name": "few_step", "sigmas": [2.0]}))

    def loss(self, turn, networks, batch, rng, scratch):
        self.count += 1
        if turn == "critic":
            loss = networks["critic"](batch.x).square().mean()
            return LossOutput(loss, {"squares": loss.detach()})
        sigma = torch.full((len(batch.x),), self.settings.levels[self.count % 2])
        x = networks["denoiser"](batch.x + sigma[:, None] * normal(batch.x.shape, rng), sigma, batch.label)
        self.mean = x.detach().mean(0)
        loss = (x - batch.x).square().mean()
        return LossOutput(loss, {"squares": loss.detach()})

    def ship(self, network, step):
        return self.generator.derive(self.generator.sampler, self.generator.info, network)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    def tensors(self):
        return {} if self.mean is None else {"mean": self.mean, "first": self.mean[:1]}

    def load_tensors(self, tensors):
        self.mean = tensors["mean"]


def points(scale: float = 1.0) -> PointData:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    return PointData("points", x[:120], x[120:])


def images(times: float = 1.0, classes: int = 2, dtype: str = "int64") -> ImageData:
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    label = (torch.arange(60) % 2).to(getattr(torch, dtype))
    names = tuple("abc"[:classes])
    return ImageData("images", times * x[:40], times * x[40:], label[:40], label[40:], None, names)
'''
FEW = {
    "trainer.checkpoint_every": 2,
    "trainer.sample_every": 100,
    "trainer.log_every": 2,
    "trainer.accelerator": "cpu",
    "trainer.threads": 1,
}


class NoDashboard:
    """Draws nothing."""

    def __init__(self, *arguments) -> None:
        pass

    def __getattr__(self, name):
        return lambda *arguments: None


class Stranger:
    """A file that somebody wrote beside a recipe, and edits."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(
            f"method: {{name: '{name}:Two'}}\ndata: {{name: '{name}:points'}}\nnetwork: {{name: '{name}:Net'}}\nsteps: 4\nbatch_size: 8\n"
        )
        self.write()

    def write(self, *changes: tuple[str, str], more: str = "") -> None:
        source = ROOMS
        for old, new in changes:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        (self.folder / f"{self.name}.py").write_text(source + textwrap.dedent(more))
        sys.modules.pop(self.name, None)

    def train(self, out: str = "run", resume: bool = False, **overrides) -> Path:
        return fewstep.train(self.recipe, self.folder / out, resume, **{**FEW, **overrides})

    def refused(self, out: str = "run", resume: bool = False, **overrides) -> str:
        with pytest.raises(UserError) as caught:
            self.train(out, resume, **overrides)
        return str(caught.value)


@pytest.fixture
def stranger(registry_apart, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "Dashboard", NoDashboard)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Stranger(tmp_path, f"rooms_{abs(hash(request.node.name))}")
    yield made
    sys.modules.pop(made.name, None)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept", ["self.random = torch.randn(2)", "self.register_buffer('random', torch.randn(2), persistent=False)"], ids=["plain", "buffer"]
)
def test_random_numbers_that_a_model_folder_does_not_hold_are_refused(stranger, kept):
    """A loaded model would have others. That a network gives zero at first hides it from its output alone."""
    unit = ("return 1.0", "return self.random")
    stranger.write(("# MADE", kept), unit)
    said = stranger.refused()
    assert f"the network '{stranger.name}:Net' gives other samples when it is made once more and given the same weights" in said
    assert not (stranger.folder / "run").exists()
    stranger.write(("# MADE", "self.register_buffer('random', torch.randn(2))"), unit)
    stranger.train(seed=3)
    saved = load_file(stranger.folder / "run/model/model.safetensors")
    assert torch.equal(fewstep.load(stranger.folder / "run").denoiser.network.random, saved["denoiser.network.random"])


def test_weights_with_two_names_are_saved_and_loaded(stranger):
    stranger.write(("# MADE", "self.other = self.leave"))
    stranger.train(steps=2)
    run = stranger.train(resume=True)
    network = fewstep.load(run).denoiser.network
    assert network.other is network.leave
    assert network.leave.weight.abs().max() > 0
    whole = stranger.train("whole")
    assert (whole / "model/model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()


def test_layers_without_a_size_are_refused(stranger):
    stranger.write(("self.enter, self.leave = nn.Linear(shape[0] + 1, widths[0])", "self.enter, self.leave = nn.LazyLinear(widths[0])"))
    assert "has layers without a size (torch's lazy layers)" in stranger.refused()


def test_a_tuple_and_an_enumeration_are_settings_that_a_run_keeps(stranger):
    """The classes assert their types when they are made, also from a model folder."""
    run = stranger.train(network={"name": f"{stranger.name}:Net", "widths": [4, 5], "kind": "plain"}, **{"method.levels": [1.0, 3.0]})
    generator = fewstep.load(run)
    assert generator.denoiser.network.enter.out_features == 4
    assert generator.network_config["widths"] == [4, 5]
    recipe = load_recipe(str(run / "recipe.yaml"))
    assert recipe.method.levels == (1.0, 3.0)
    said = stranger.refused("never", network={"name": f"{stranger.name}:Net", "widths": [4, "five"]})
    assert "network.widths[1] is 'five'; allowed: an integer" in said


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("width: int = None", "network.width is None; allowed: an integer"),
        ("width: float = float('inf')", "network.width is inf; allowed: a finite number"),
        ("width: type = nn.ReLU", "Unable to serialize unknown type"),
    ],
)
def test_a_setting_that_could_not_be_read_again_is_refused_before_training(stranger, argument, why):
    stranger.write(("widths: tuple[int, ...] = (8,), kind", f"{argument}, widths: tuple[int, ...] = (8,), kind"))
    said = stranger.refused()
    assert "a run of it could not be read again" in said
    assert why in said


# --- methods ----------------------------------------------------------------------------------------------------------

STATES = {
    "a tensor": ('{"count": self.count}', '{"count": torch.tensor(self.count)}', "state_dict()['count'] is a tensor of shape []"),
    "a number as a key": ('{"count": self.count}', '{"count": {3: self.count}}', "state_dict()['count'] has the key 3"),
    "a set": ('{"count": self.count}', '{"count": [{self.count}]}', "state_dict()['count'][0] is a set"),
    "no dict": ('{"count": self.count}', "self.count", "state_dict() is a int"),
    "no tensor": ('{"mean": self.mean, "first": self.mean[:1]}', '{"mean": 3.0}', "tensors() returned {'mean': 'a float'}"),
}


@pytest.mark.parametrize("case", STATES)
def test_what_a_checkpoint_cannot_hold_is_told_after_the_first_step(stranger, case):
    old, new, said = STATES[case]
    stranger.write((old, new))
    assert said in stranger.refused(steps=1_000, **{"trainer.checkpoint_every": 1_000})
    assert not (stranger.folder / "run/checkpoints").exists()


def test_a_state_that_a_checkpoint_cannot_hold_later_is_told_too(stranger):
    stranger.write(('{"count": self.count}', '{"count": self.count if self.count < 5 else {self.count}}'))
    assert "state_dict()['count'] is a set" in stranger.refused()


def test_killed_and_resumed_it_ends_with_the_same_numbers(stranger):
    """Its state, its tensors (two of which share memory) and its two optimizers included; `info` need not name the step."""
    whole = stranger.train("whole", steps=6)
    stranger.train(steps=2)
    run = stranger.train(resume=True, steps=6)
    for file in ("model/model.safetensors", "checkpoints/step_6/critic.safetensors", "checkpoints/step_6/remembered.safetensors"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    assert fewstep.load(run).info["step"] == 6


def test_all_that_a_method_makes_depends_on_the_seed_alone(stranger):
    """As its critic, which no maker of networks has made."""
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        run = stranger.train(f"run{number}", seed=seed, steps=1, **{"method.optimizer.lr": 1e-30})
        weights.append(load_file(run / "checkpoints/step_1/critic.safetensors")["weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


SHIPS = {
    "nothing": ("return None", "ship returned None; it must return the fewstep.Generator to save"),
    "a network": ("return network", "ship returned a PreconditionedDenoiser; it must return the fewstep.Generator to save"),
    "its own": (
        "return self.generator.derive(self.generator.sampler, self.generator.info)",
        "ship returned a generator with the weights of self.networks['denoiser']; it must have those of the network that ship is given",
    ),
    "no JSON": (
        "return self.generator.derive(self.generator.sampler, {'mean': torch.ones(2)}, network)",
        "cannot be saved (Object of type Tensor is not JSON serializable); give plain values in its info",
    ),
}


@pytest.mark.parametrize("case", SHIPS)
def test_what_ships_is_tried_before_training(stranger, case):
    line, said = SHIPS[case]
    stranger.write(("return self.generator.derive(self.generator.sampler, self.generator.info, network)", line))
    assert said in stranger.refused()
    assert not (stranger.folder / "run").exists()


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("settings.optimizer, every=0", "its turn 'denoiser' is taken every 0 steps"),
        ("settings.optimizer, begins=0.5, ends=0.5", "from the share 0.5 of the run to 0.5"),
        ("1e-3", "the optimizer of its turn 'denoiser' is a float; give a fewstep.methods.Optimizer"),
    ],
)
def test_a_turn_that_cannot_be_taken(stranger, turn, said):
    stranger.write(("settings.optimizer, every=2", turn))
    assert said in stranger.refused()


@pytest.mark.parametrize("name", ["grad_norm", "lr"])
def test_a_term_may_not_have_the_name_of_a_figure_of_the_loop(stranger, name):
    """Both would be averaged into one."""
    line = "loss = networks['critic'](batch.x).square().mean()".replace("'", '"')
    stranger.write((line, f"{line}; return LossOutput(loss, {{'{name}': loss.detach()}})"))
    assert f"returned a term '{name}', which is what the training loop calls a figure of its own" in stranger.refused()


def test_an_alarm_whose_message_cannot_be_filled_in(stranger):
    head = (
        'shown = ("squares",)',
        'shown = ("squares",)\n    alarms = (Alarm("odd", "critic.squares", "it is {valu:.2f}", "mend", high=0.0),)',
    )
    stranger.write(("LossOutput, Method, MethodSettings", "Alarm, LossOutput, Method, MethodSettings"), head)
    assert "the message of its alarm 'odd' cannot be filled in (KeyError: 'valu'); it may hold {value}" in stranger.refused()


EDITS = {
    "another shape": ('"critic": nn.Linear(2, 1)', '"critic": nn.Linear(2, 3)', "weight of its network 'critic' had shape [1, 2], and has"),
    "one more": (
        "# MADE",
        "self.more = nn.Linear(2, 2)",
        "network.more.weight of its network 'denoiser' had nothing, and has shape [2, 2]",
    ),
    "another turn": (
        'Turn("critic", ("critic",), settings.optimizer)',
        'Turn("judge", ("critic",), settings.optimizer)',
        "its turns were critic, denoiser, and are denoiser, judge",
    ),
    "another network in a turn": (
        'Turn("critic", ("critic",), settings.optimizer)',
        'Turn("critic", ("critic", "denoiser"), settings.optimizer)',
        "its turn 'critic' trained 2 tensors in 1 group(s), and trains 6 in 1",
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_code_that_was_edited_between_a_kill_and_its_resumption(stranger, case):
    """One sentence says what has changed; put back as it was, the run goes on."""
    stranger.train(steps=2)
    old, new, said = EDITS[case]
    stranger.write((old, new))
    told = stranger.refused(resume=True)
    assert "the checkpoint step_2 in " in told
    assert said in told
    if case == "another turn":
        stranger.write()
        assert (stranger.train(resume=True) / "checkpoints/step_4").is_dir()


def test_advice_names_the_learning_rates_that_there_are(stranger):
    more = """
    class Pair(Settings):
        judge: Optimizer = Field(default_factory=Optimizer)
        optimizer: None = None
        maker: Optimizer = Field(default_factory=Optimizer)

    class Other(Two):
        Settings = Pair

    class Named(Two):
        Settings, rate = Pair, "method.maker.lr"
    """
    stranger.write(more=more)
    registry.trust(f"{stranger.name}:Two")
    rooms = [registry.room("methods", f"{stranger.name}:{name}") for name in ("Two", "Other", "Named")]
    assert [room.rate for room in rooms] == ["method.optimizer.lr", "method.judge.lr or method.maker.lr", "method.maker.lr"]


def test_a_file_in_place_of_a_module_is_told(stranger):
    said = stranger.refused(**{"method.name": f"./{stranger.name}.py:Two"})
    assert f"'./{stranger.name}.py:Two' names a file; give its module, {stranger.name}:Two, which is looked for in" in said


@pytest.mark.parametrize("package", [False, True])
def test_the_commands_after_a_run_find_a_module_that_lies_beside_the_recipe(stranger, monkeypatch, package):
    """The working folder is another, and the module is nowhere else."""
    if package:
        (stranger.folder / stranger.name).mkdir()
        (stranger.folder / f"{stranger.name}.py").rename(stranger.folder / stranger.name / "__init__.py")
    (stranger.folder / "elsewhere").mkdir()
    monkeypatch.chdir(stranger.folder / "elsewhere")
    run = stranger.train("elsewhere/run", steps=1)
    place = f"{run} --allow {stranger.name}"
    said = f"next: PYTHONPATH=.. fewstep evaluate {place}   or   PYTHONPATH=.. fewstep sample {place} -n 100 --out samples.png"
    assert next_after(run) == said
    monkeypatch.chdir(stranger.folder)
    assert next_after(run).startswith("next: fewstep evaluate ")


# --- data sets in memory ----------------------------------------------------------------------------------------------

IMAGES = {"method.name": "teacher", "network": {"name": "dit", "width": 16, "depth": 1, "heads": 1, "patch": 4}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"times": 255.0}, "whose images lie in [-255, 255], where images lie in [-1, 1]; scale them"),
        ({"classes": 1}, "with 1 class names, and train_label has numbers from 0 to 1; they must be 0 to 0"),
        ({"classes": 0}, "with 0 class name(s), and train_label is not the class of each item; give torch.int64 [40]"),
        ({"dtype": "int32"}, "with 2 class name(s), and train_label is not the class of each item; give torch.int64 [40]"),
    ],
)
def test_images_that_are_not_what_they_should_be(stranger, settings, said):
    told = stranger.refused(data={"name": f"{stranger.name}:images", **settings}, **IMAGES)
    assert f"the data set {stranger.name}:images gives ImageData" in told
    assert said in told


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("x[:120].double(), x[120:].double()", "whose points are torch.float64 and torch.float64; give torch.float32 in both parts"),
        ("x[:120], x[120:, :1]", "whose heldout is of shape [80, 1]; give a tensor [N, D] with items, of one shape in both parts"),
        ("x[:120], x[120:], torch.zeros(120)", "whose density is a Tensor; give None (points have no labels)"),
    ],
)
def test_points_that_are_not_what_they_should_be(stranger, made, said):
    stranger.write(("x[:120], x[120:]", made))
    assert said in stranger.refused()
