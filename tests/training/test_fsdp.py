"""Networks in shares (``trainer.strategy=fsdp``): two processes on the CPU learn what one does, and go on where any number has stopped."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from copies import in_a_copy, in_two
from every_method import CASES, made
from fewstep import load
from fewstep.costs import measure
from fewstep.denoisers.adapted import grounds
from fewstep.engine import make_fabric
from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.recipe import Recipe, Trainer, load_recipe
from fewstep.run import train
from fewstep.training import sharding, shards
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.faults import reduced
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder
from same_run import TIMES, assert_same_run
from test_text_to_image import place
from test_text_to_image import settings as text_recipe
from test_two_are_one import assert_same, stirred

STEPS, ITEMS = 3, 24
PIXELS = ("teacher", "dmd2, gan and r1", "dmd2, two steps", "drift, memory", "consistency", "flow map")
# one item for each of two processes, at a stage where only some have a lower noise level to be compared with
SINGLE = {
    f"{name}, single items": (name, "method.first_stage=1", "method.stages=1", "batch_size=2") for name in ("consistency", "flow map")
}
OWN = "consistency, from scratch"  # ships, until its student begins, the teacher that it trains
IN_PARTS = ("dmd2, two steps", "lora, whole fake")  # two for each of two processes
TEXT = {"lora": ("method.loss=dmd",), "lora, whole fake": ("method.lora.fake=full", "trainer.checkpointing=true")}
SLOW = ("method.generator_optimizer.lr=1e-4", "method.guidance_optimizer.lr=1e-4", "method.lora.rank=4", "method.lora.targets=[to_q, to_v]")
SHORT = ("steps=4", "trainer.checkpoint_every=2", "trainer.log_every=1", "trainer.sample_every=3")
TWO = ("trainer.devices=2", "trainer.strategy=fsdp")


class Place:
    """What all tests here learn from."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.teacher = folder, teacher
        self.text = place(folder / "text", "sdxl")

    def recipe(self, name: str, *more: str) -> Recipe:
        """The case of that name, tiny."""
        if name in TEXT:
            return text_recipe(self.text, "batch_size=8", *SLOW, *TEXT[name], *more)
        name, *few = SINGLE.get(name, (name,))
        return CASES[name].read(self.teacher, *few, *more, batch_size=ITEMS)


@pytest.fixture(scope="module")
def here(still_teacher, tmp_path_factory):
    return Place(tmp_path_factory.mktemp("fsdp"), still_teacher)


def begun(here: Place, name: str, fabric, folder: Path) -> Loop:
    """A loop about to train the case."""
    recipe = here.recipe(name, f"steps={STEPS}")
    data, method = made(recipe)
    for _ in range(5 if name in TEXT else 1):  # low-rank changes act by their product
        stirred(method)
    parts = 2 if name in IN_PARTS and fabric.world_size > 1 else 1
    return Loop(
        method, data, fabric, RunFolder(folder), LoopSettings(STEPS, recipe.batch_size, accumulate=parts, log_every=1, ema_warmup=1.0)
    )


def learned(loop: Loop) -> dict[str, torch.Tensor]:
    """What a few steps make: every weight that learns, the average, and every figure of the last step, averaged over processes."""
    for _ in range(STEPS):
        loop.state.window.sums.clear()
        loop.state.window.counts.clear()
        loop.advance()
    if loop.fabric.world_size > 1:
        loop.state.window.average(lambda sums: reduced(loop.fabric, sums, "mean"))
    found = {f"term {term}": torch.tensor(value, dtype=torch.float64) for term, value in loop.state.window.means().items()}
    networks = {name: loop.method.networks[name] for name in loop.state.trained} | {"average": loop.state.ema.module}
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            found[f"{name} {key}"] = sharding.whole_tensor(value).detach().clone().contiguous()
    return found


def kept(loop: Loop) -> dict[str, list[int]]:
    """Of each network, numbers that this process keeps and numbers in all; moments of a turn likewise."""

    def counted(tensors) -> list[int]:
        tensors = list(tensors)
        return [sum(sharding.share(x).numel() for x in tensors), sum(x.numel() for x in tensors)]

    found = {name: counted(network.parameters()) for name, network in loop.method.networks.items()}
    found |= {f"under {name}": counted(x.parameters()) for name, network in loop.method.networks.items() for x in grounds(network)}
    found["average"] = counted(loop.state.ema.module.parameters())
    for turn, optimizer in loop.state.optimizers.items():
        found[f"moments of {turn}"] = counted(state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    return found


def both(here: Place) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    fabric = make_fabric(Trainer(accelerator="cpu", devices=2, strategy="fsdp"))
    fabric.launch()
    for name in (*PIXELS, *SINGLE, *TEXT):
        loop = begun(here, name, fabric, here.folder / "loop")
        found = learned(loop)
        if fabric.is_global_zero:
            save_file(found, here.folder / f"{name}.safetensors")
            (here.folder / f"{name}.json").write_text(json.dumps(kept(loop)))
    train(here.recipe(OWN, *SHORT, *TWO), here.folder / f"two {OWN}")
    for name in ("dmd2", "lora"):
        train(here.recipe(name, *SHORT, *TWO), here.folder / f"two {name}")
        if fabric.is_global_zero:
            stopped(here.folder / f"two {name}", here.folder / f"two again {name}")
            stopped(here.folder / f"one {name}", here.folder / f"one then two {name}")
        fabric.barrier()
        for run in ("two again", "one then two"):
            train(here.recipe(name, *SHORT, *TWO), here.folder / f"{run} {name}", resume=True)


def stopped(run: Path, copy: Path) -> Path:
    """A copy of `run` as it would be had it been killed before its last checkpoint."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step_4")
    return copy


@pytest.fixture(scope="module")
def two(here):
    """What two processes have made, and what they said."""
    for name in ("dmd2", "lora"):
        train(here.recipe(name, *SHORT), here.folder / f"one {name}")
    ended = in_two(lambda: both(here), here.folder / "said", seconds=400)
    return f"{ended.code}: {ended.out}{ended.err}"


@pytest.mark.parametrize("name", [*PIXELS, *SINGLE, *TEXT])
def test_two_processes_in_shares_learn_what_one_does(name, here, two):
    file = here.folder / f"{name}.safetensors"
    assert file.exists(), two
    assert_same(load_file(file), learned(begun(here, name, make_fabric(Trainer(accelerator="cpu")), here.folder / "alone")))


@pytest.mark.parametrize("name", ["teacher", "dmd2, two steps", "lora, whole fake"])
def test_each_process_keeps_half_of_all_there_is(name, here, two):
    """Rows are dealt out: of an odd number of them one process has one more, and of the 1,000 noise levels none are parameters."""
    found = json.loads((here.folder / f"{name}.json").read_text())
    assert {
        "average",
        *(f"moments of {turn}" for turn in (("denoiser",) if name == "teacher" else ("generator", "guidance"))),
    } <= found.keys()
    assert ("under teacher" in found) == ("lora" in name)
    for what, (mine, whole) in found.items():
        assert mine == pytest.approx(whole / 2, rel=0.03), what
    assert any(whole > 1000 for _, whole in found.values())


@pytest.mark.parametrize("name", ["dmd2", "lora"])
def test_a_run_in_two_processes_ends_with_one_full_model(name, here, two):
    """And with the records of a run in one process; its checkpoints are shards."""
    runs = [here.folder / f"{number} {name}" for number in ("one", "two")]
    assert (runs[1] / "model" / "config.json").exists(), two
    files = [next((run / "model").glob("*.safetensors")) for run in runs]
    assert files[0].name == files[1].name
    assert_close(load_file(files[1]), load_file(files[0]))
    torch.testing.assert_close(load(runs[1]).sample(2, seed=0), load(runs[0]).sample(2, seed=0), rtol=1e-3, atol=1e-4)
    lines = [[{k: v for k, v in record.items() if k not in TIMES} for record in RunFolder(run).metrics()] for run in runs]
    for one, other in zip(*lines, strict=True):
        assert one == {k: pytest.approx(v, rel=1e-3, abs=1e-5) if isinstance(v, float) else v for k, v in other.items()}
    assert {path.name for path in (runs[1] / "samples").iterdir()} == {"step_3.png", "step_4.png"}
    parts = sorted((runs[1] / "checkpoints" / "step_4" / "shards").iterdir())
    assert len(parts) == 2
    sizes = [path.stat().st_size for path in parts]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    alone = load_checkpoint(runs[0] / "checkpoints" / "step_4")
    held = sum(x.numel() for tensors in alone.networks.values() for x in tensors.values()) * 4
    assert sum(sizes) > held  # moments are there, too


def assert_close(found, expected, most=1e-5):
    """As whole networks: a weight of no gradient but rounding goes where that takes it."""
    assert found.keys() == expected.keys()
    apart = sum((found[key] - x).double().square().sum() for key, x in expected.items())
    assert (apart / sum(x.double().square().sum() for x in expected.values())).sqrt() <= most


def test_a_run_that_trains_its_own_teacher_ships_it_whole(here, two, tmp_path):
    shared = here.folder / f"two {OWN}"
    assert (shared / "model").is_dir(), two
    train(here.recipe(OWN, *SHORT), tmp_path / "one")
    assert_same(*(load(run).state_dict() for run in (tmp_path / "one", shared)))


@pytest.mark.parametrize("name", ["dmd2", "lora"])
def test_two_processes_go_on_where_two_have_stopped_bit_for_bit(name, here, two):
    assert (here.folder / f"two again {name}").exists(), two
    assert_same_run(here.folder / f"two {name}", here.folder / f"two again {name}")


@pytest.mark.parametrize("name", ["dmd2", "lora"])
def test_two_processes_go_on_with_what_one_has_begun_without_shares(name, here, two):
    assert (here.folder / f"one then two {name}").exists(), two
    models = [load_file(next((here.folder / f"{run} {name}" / "model").glob("*.safetensors"))) for run in ("one", "one then two")]
    assert_close(*models)


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
@pytest.mark.parametrize("name", ["dmd2", "lora"])
def test_one_process_goes_on_with_what_two_have_begun(name, strategy, here, two, tmp_path):
    run = stopped(here.folder / f"two {name}", tmp_path / "run")
    ended = in_a_copy(lambda: train(here.recipe(name, *SHORT, f"trainer.strategy={strategy}"), run, resume=True), tmp_path / "said")
    assert ended.code == 0, ended.err
    assert "the number of processes has changed from 2 to 1" in ended.err
    assert ("nothing is sharded, and no memory is saved" in ended.err) == (strategy == "fsdp")
    assert "Warning" not in ended.err
    file = next((run / "model").glob("*.safetensors"))
    assert_close(load_file(file), load_file(here.folder / f"two {name}" / "model" / file.name))
    assert (run / "checkpoints" / "step_4" / "shards").exists() == (strategy == "fsdp")


def test_a_run_that_is_killed_while_it_writes_goes_on(tmp_path):
    """Of points, whose pictures ask all networks; SIGKILL for one process when the other has written its share, and the other ends, too."""
    given = ("network.widths=[16]", "network.bits=3", "network.latent=6", "batch_size=24", "trainer.accelerator=cpu", *SHORT, *TWO)
    recipe = load_recipe("dmd2/ring", [*given, "method.fake_widths=[16]"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = in_two(lambda: train(recipe, whole), tmp_path / "first")
    assert ended.code == 0, ended.err

    def dies() -> None:
        write, times = FileSystemWriter._write_data, [0]

        def once(self, *told):
            times[0] += 1
            if times[0] == 2 and os.environ["LOCAL_RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return write(self, *told)

        FileSystemWriter._write_data = once
        train(recipe, killed)

    ended = in_two(dies, tmp_path / "second")
    assert ended.code != 0
    assert {path.name for path in (killed / "checkpoints").iterdir()} == {"step_2"}
    ended = in_two(lambda: train(recipe, killed, resume=True), tmp_path / "third")
    assert ended.code == 0, ended.err
    assert_same_run(whole, killed)


def test_a_damaged_shard_is_found(here, two, tmp_path):
    run = shutil.copytree(here.folder / "two dmd2", tmp_path / "run")
    shard = sorted((run / "checkpoints" / "step_4" / "shards").iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    found, wrong = RunFolder(run).latest_checkpoint()
    assert found.state["step"] == 2
    assert wrong == [f"step_4 is damaged: shards/{shard.name} is not what was written"]
    shard.unlink()
    assert "step_4 is not whole" in RunFolder(run).latest_checkpoint()[1][0]


def test_shards_of_other_networks_are_told_of(here, two):
    checkpoint = load_checkpoint(here.folder / "two dmd2" / "checkpoints" / "step_4")
    with pytest.raises(UserError, match=r"shards cannot be read into the networks of this run: .*networks/generator/other"):
        shards.filled(checkpoint, {"generator": {"other": torch.zeros(2)}}, {})


# --- what is a block, and what it costs ------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two blocks of 100 numbers and one of 2; one of them is used outside, too."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [nn.Linear(10, 10, bias=False), nn.Sequential(nn.ModuleList([nn.Linear(10, 10, bias=False)])), nn.Linear(1, 1)]
        )
        self.rest = nn.Linear(10, 10, bias=False)
        if tied:
            self.rest.weight = self.parts[0].weight


def test_blocks_are_the_innermost_of_a_hundredth_that_share_nothing():
    network = Tied()
    inner = network.parts[1][0][0]
    assert sharding.blocks(network) == [inner, network.parts[0]]
    assert sharding.peak(network) == 4 * 4 * 102  # what is left: the small one and the rest
    tied = Tied(tied=True)
    assert sharding.blocks(tied) == [tied.parts[1][0][0]]


def test_costs_of_a_share(here):
    def costs(**more):
        _, method = made(here.recipe("dmd2"))
        return measure(method, (1, 8, 8), 10, 10, ITEMS, **more), method

    (alone, method), (two, _), (four, _) = costs(), costs(devices=2, sharded=True), costs(devices=4, sharded=True)
    assert two.memory.gathered == four.memory.gathered == max(map(sharding.peak, method.networks.values()))
    assert (alone.memory.gathered, alone.memory.total) == (0, alone.memory.weights + alone.memory.activations)
    # parameters, average, gradients and moments are divided each by itself
    assert two.memory.weights == pytest.approx(alone.memory.weights / 2, abs=4)
    assert four.memory.weights == pytest.approx(alone.memory.weights / 4, abs=4)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_settings_that_do_not_go_together(mistake, tmp_path):
    assert "strategy is fsdp, which gathers a network as it is called" in mistake(
        "train", "teacher/digits", "trainer.strategy=fsdp", "trainer.compile=true", "--out", tmp_path / "run"
    )
    assert "'auto', 'ddp' or 'fsdp'" in mistake("train", "teacher/digits", "trainer.strategy=fsdb", "--out", tmp_path / "run")
    with pytest.raises(UserError, match=r"trainer\.strategy is fsdp, and trainer\.accelerator is mps here; give cpu or cuda"):
        sharding.check_device("mps")
    assert not (tmp_path / "run").exists()


class Scaled(nn.Module):
    """A network of one's own with a parameter that has no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Peeking(nn.Module):
    """And one that reads the weights of a block without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(64, 64)])

    def forward(self, x, sigma, label):
        return nn.functional.linear(x.flatten(1), self.parts[0].weight).view_as(x)


@pytest.mark.parametrize(
    ("network", "said"),
    [(Scaled, "a Scaled cannot be sharded (fully_shard doesn't support scalar parameters"), (Peeking, "do not work sharded (")],
)
def test_networks_that_cannot_be_sharded(network, said, here, tmp_path):
    def work():
        fabric = make_fabric(Trainer(accelerator="cpu", strategy="fsdp"))
        fabric.launch()
        data, method = made(here.recipe("teacher"))
        method.networks["denoiser"] = network()
        Loop(method, data, fabric, RunFolder(tmp_path / "run"), LoopSettings(STEPS, ITEMS)).advance()

    ended = in_a_copy(work, tmp_path / "said")
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("fewstep.errors.UserError: trainer.strategy is fsdp, and "), ended.err
    assert said in last
    assert last.endswith("give trainer.strategy=ddp, which keeps all of every network in each process")


def test_a_gradient_of_a_gradient_is_refused(here, tmp_path):
    """FSDP2 has freed the weights by then, and torch ends without a word."""
    ended = in_a_copy(lambda: train(here.recipe("dmd2, exact r1", "trainer.strategy=fsdp"), tmp_path / "run"), tmp_path / "said")
    last = ended.err.strip().splitlines()[-1]
    assert "(a gradient is differentiated again, which FSDP does not support)" in last
    assert "give trainer.strategy=ddp" in last


def test_generators_beside_the_networks_are_sharded_too(here):
    _, method = made(here.recipe("dmd2"))
    assert isinstance(method.teacher, Generator)
    assert [id(x) for x in sharding.called_by(method)] == [id(x) for x in (*method.networks.values(), method.teacher.denoiser)]
