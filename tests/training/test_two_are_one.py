"""Two processes learn what one does, and several parts what one does: every method, to rounding. Both go on after a stop, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from copies import in_two
from every_method import CASES, made
from fewstep.errors import UserError
from fewstep.methods.base import Method
from fewstep.recipe import Trainer
from fewstep.run import check_parts, make_fabric
from fewstep.training.faults import reduced
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder
from same_run import TIMES, assert_same_run

ITEMS = 24


def steps_of(name: str) -> int:
    """How many steps are compared: of second derivatives' rounding Adam makes more than 1e-5 in a third."""
    return 2 if name == "dmd2, exact r1" else 3


def stirred(method: Method) -> None:
    """A student that is its teacher has no gradient but rounding, of which Adam makes steps of full length: it starts beside it."""
    with torch.no_grad():
        for name, network in method.networks.items():
            rng = torch.Generator().manual_seed(7)
            for parameter in network.parameters():
                if name != "teacher":
                    parameter += 0.02 * torch.randn(parameter.shape, generator=rng)


def learned(name: str, teacher: Path, folder: Path, fabric, accumulate: int = 1) -> dict[str, torch.Tensor]:
    """What a few steps make: every weight that learns, and every figure of the last of them, averaged over processes."""
    steps = steps_of(name)
    recipe = CASES[name].read(teacher, f"steps={steps}", batch_size=ITEMS)
    data, method = made(recipe)
    stirred(method)
    settings = LoopSettings(steps=steps, batch_size=ITEMS, accumulate=accumulate, log_every=1)
    loop = Loop(method, data, fabric, RunFolder(folder), settings)
    for _ in range(steps):
        loop.state.window.sums.clear()
        loop.state.window.counts.clear()
        loop.advance()
    if fabric.world_size > 1:
        loop.state.window.average(lambda sums: reduced(fabric, sums, "mean"))
    found = {f"term {term}": torch.tensor(value, dtype=torch.float64) for term, value in loop.state.window.means().items()}
    for network in loop.state.trained:
        for key, value in method.networks[network].state_dict().items():
            found[f"{network} {key}"] = value.detach().clone().contiguous()
    return found


def trained(name: str, teacher: Path, run: RunFolder, fabric, resume: bool, accumulate: int) -> dict[str, torch.Tensor]:
    """What a run of four steps, with a checkpoint at two, has at its end."""
    recipe = CASES[name].read(teacher, "steps=4", batch_size=ITEMS)
    data, method = made(recipe)
    settings = LoopSettings(4, ITEMS, accumulate=accumulate, log_every=3, sample_every=9, checkpoint_every=2, ema_warmup=1.0)
    loop = Loop(method, data, fabric, run, settings)
    loop.train(resume)
    found = {f"{network} {key}": x for network in loop.state.trained for key, x in method.networks[network].state_dict().items()}
    return {**found, **{f"ema {key}": x for key, x in loop.state.ema.module.state_dict().items()}, "rng": loop.state.rng.get_state()}


def goes_on(name: str, teacher: Path, folder: Path, fabric, accumulate: int = 1) -> str:
    """What differs, to the last bit, between a run that was stopped half way and gone on with and one that was not; "" for nothing."""
    run = RunFolder(folder)
    if fabric.is_global_zero:
        run.open({"method": {"name": name}}, {})
    fabric.barrier()
    whole = {key: x.clone() for key, x in trained(name, teacher, run, fabric, False, accumulate).items()}
    lines = [{k: v for k, v in record.items() if k not in TIMES} for record in run.metrics()]
    fabric.barrier()
    if fabric.is_global_zero:
        shutil.rmtree(run.checkpoint_folder / "step_4")
    fabric.barrier()
    again = trained(name, teacher, run, fabric, True, accumulate)
    differing = [key for key, x in whole.items() if not torch.equal(x, again[key])]
    if lines != [{k: v for k, v in record.items() if k not in TIMES} for record in run.metrics()]:
        differing.append("metrics.jsonl")
    return ", ".join(differing)


def both(out: Path, teacher: Path) -> None:
    """What each of two processes does with every case."""
    torch.set_num_threads(1)
    fabric = make_fabric(Trainer(accelerator="cpu", devices=2))
    fabric.launch()
    for number, name in enumerate(CASES):
        found = learned(name, teacher, out / "run", fabric)
        differing = goes_on(name, teacher, out / f"run_{number}", fabric)
        if fabric.is_global_zero:
            save_file(found, out / f"{number}.safetensors")
            (out / f"{number}.txt").write_text(differing)
        fabric.barrier()


@pytest.fixture(scope="module")
def two(still_teacher, tmp_path_factory):
    """What two processes have learned of each case, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    ended = in_two(lambda: both(folder, still_teacher), folder / "said", seconds=400)
    return folder, f"{ended.code}: {ended.out}{ended.err}"


@pytest.fixture(scope="module")
def one(still_teacher, tmp_path_factory):
    """``one(case, accumulate)``: the same in this process."""
    fabric, folder, known = make_fabric(Trainer(accelerator="cpu")), tmp_path_factory.mktemp("one"), {}

    def call(name, accumulate=1):
        if (name, accumulate) not in known:
            known[name, accumulate] = learned(name, still_teacher, folder, fabric, accumulate)
        return known[name, accumulate]

    return call


def distances(found, expected) -> dict[str, float]:
    """How far each figure, and each network as a whole, is from what it should be, over its own size.

    Of a network as a whole, for of a gradient that is 0 but for rounding (an attention's bias of keys has one) Adam makes a full step.
    """
    assert found.keys() == expected.keys()
    far: dict[str, list[torch.Tensor]] = {}
    for key, value in expected.items():
        name = key if key.startswith("term") else key.split()[0]
        far.setdefault(name, []).append(torch.stack([(found[key] - value).double().square().sum(), value.double().square().sum()]))
    sums = {name: torch.stack(parts).sum(0) for name, parts in far.items()}
    return {name: (apart.sqrt() / size.sqrt().clamp_min(1e-3)).item() for name, (apart, size) in sums.items()}


def assert_same(found, expected, most=1e-5):
    wrong = {key: distance for key, distance in distances(found, expected).items() if not distance <= most}
    assert not wrong


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(name, two, one):
    folder, said = two
    file = folder / f"{list(CASES).index(name)}.safetensors"
    assert file.exists(), said
    assert_same(load_file(file), one(name))


@pytest.mark.parametrize("name", CASES)
def test_several_parts_teach_what_one_does_or_are_refused(name, one, still_teacher):
    recipe = CASES[name].read(still_teacher, f"steps={steps_of(name)}", "trainer.accumulate=3", batch_size=ITEMS)
    _, method = made(recipe)
    if method.needs_whole_batch:
        with pytest.raises(UserError, match=r"trainer\.accumulate is 3, but method .* learns from a batch as a whole: .* Set it to 1"):
            check_parts(recipe, method, 1)
        return
    check_parts(recipe, method, 1)
    assert_same(one(name, 3), one(name))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_go_on_where_they_were_stopped(name, two):
    folder, said = two
    file = folder / f"{list(CASES).index(name)}.txt"
    assert file.exists(), said
    assert file.read_text() == ""


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_one_process_goes_on_where_it_was_stopped(name, accumulate, still_teacher, tmp_path):
    recipe = CASES[name].read(still_teacher, batch_size=ITEMS)
    if accumulate == 1 or not made(recipe)[1].needs_whole_batch:
        assert goes_on(name, still_teacher, tmp_path / "run", make_fabric(Trainer(accelerator="cpu")), accumulate) == ""


def test_two_processes_that_were_killed_go_on(command, tmp_path):
    """From the command line, as a user does it: SIGKILL for both, and the run ends as one that nobody touched."""
    settings = ("network.widths=[16]", "network.bits=3", "network.latent=6", "batch_size=24", "steps=90", "trainer.accelerator=cpu")
    cadences = ("trainer.devices=2", "trainer.log_every=7", "trainer.checkpoint_every=30", "trainer.sample_every=45")
    arguments = ["train", "drift/ring", *settings, *cadences]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def trained(*more: object) -> None:
        assert command(*arguments, *more).code == 0

    ended = in_two(lambda: trained("--out", whole), tmp_path / "one")
    assert ended.code == 0, ended.err
    running = subprocess.Popen(
        [sys.executable, "-m", "fewstep", *arguments, "--out", str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (killed / "checkpoints" / "step_30").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (killed / "checkpoints" / "step_90").exists()
    ended = in_two(lambda: trained("--out", killed, "--resume"), tmp_path / "again")
    assert ended.code == 0, ended.err
    assert_same_run(whole, killed)
