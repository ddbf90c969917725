"""What makes a GPU fast, and what only a CUDA device can show of it: run with `pytest -m gpu`."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from every_method import CASES, made
from fewstep.recipe import Trainer
from fewstep.run import make_fabric
from fewstep.training.loading import Dealt, make_batches
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
TINY = ["network.channels=[16,32]", "network.groups=8", "network.head_dim=16", "batch_size=32", "trainer.accelerator=cuda"]


def fewstep_cli(*arguments):
    return subprocess.run([sys.executable, "-m", "fewstep", *map(str, arguments)], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("compiled", ["true", "reduce-overhead"])
def test_compiled_students_learn_and_go_on_without_compiling(tmp_path, compiled):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    fewstep_cli("train", "teacher/digits", "--out", teacher, "steps=20", f"trainer.compile={compiled}", *TINY)
    shared = [f"method.teacher={teacher}", *(key for key in TINY if not key.startswith("network"))]
    for loss in ("sid", "dmd"):
        out = student / loss
        fewstep_cli("train", "dmd2/digits", "--out", out, "steps=20", f"method.loss={loss}", f"trainer.compile={compiled}", *shared)
        assert not any("_orig_mod" in key for key in load_file(out / "model" / "model.safetensors"))
        fewstep_cli("train", "dmd2/digits", "--out", out, "steps=30", f"method.loss={loss}", "--resume", *shared)
        assert fewstep.load(out, "cuda").sample(20, seed=0).isfinite().all()


@pytest.mark.parametrize("name", ["teacher", "dmd2", "dmd2, two steps", "consistency", "flow map", "dddm", "drift, features"])
def test_compiled_losses_are_those_of_the_networks_as_they_are(name, still_teacher, tmp_path):
    found = []
    for compiled in (False, True, "reduce-overhead"):
        recipe = CASES[name].read(still_teacher, "steps=4", batch_size=24)
        data, method = made(recipe)
        fabric = make_fabric(Trainer(accelerator="cuda", precision="32-true"))
        loop = Loop(method, data, fabric, RunFolder(tmp_path / str(compiled)), LoopSettings(steps=4, batch_size=24, compile=compiled))
        loop.advance()
        found.append(loop.state.window.means())
        loop.advance()
    for other in found[1:]:
        for term, value in found[0].items():
            assert other[term] == pytest.approx(value, rel=0.02, abs=0.02), term


def test_images_that_stay_on_the_gpu_give_the_same_batches(still_teacher):
    data, _ = made(CASES["teacher"].read(still_teacher))
    device, found = torch.device("cuda", 0), []
    for on_device in (True, False):
        rng = torch.Generator(device).manual_seed(0)
        batches = make_batches(data, Dealt(16, 0), rng, device, on_device)
        assert batches.data.train.is_cuda is on_device
        found.append([batches(step)[0] for step in (0, 1, 200)])
    for mine, theirs in zip(*found, strict=True):
        assert mine.x.equal(theirs.x)
        assert mine.label.equal(theirs.label)


def test_a_batch_that_does_not_fit_says_which_parts_do_and_the_run_goes_on_with_them(tmp_path):
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    held = torch.empty(max(1, free - 3 * 2**30), dtype=torch.uint8, device="cuda")  # what is left is about 3 GiB
    options = ["teacher/digits", "--out", str(tmp_path / "run"), "steps=2", *TINY[:3], "network.channels=[64,128]", "batch_size=65536"]
    command = [sys.executable, "-m", "fewstep", "train", *options, "trainer.accelerator=cuda"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "out of memory on" in ended.stderr
    parts = next(word for word in ended.stderr.split() if word.startswith("trainer.accumulate="))
    subprocess.run([*command, "--resume", parts], capture_output=True, text=True, check=True)
    del held


def test_a_gpu_with_bfloat16_takes_it_and_says_so(tmp_path):
    command = [sys.executable, "-m", "fewstep", "train", "teacher/digits", "--out", str(tmp_path / "run"), "steps=2"]
    done = subprocess.run([*command, "trainer.accelerator=cuda"], capture_output=True, text=True, check=True)
    able = torch.cuda.get_device_capability() >= (8, 0)
    assert ("precision: bf16, which this GPU is made for" in done.stderr) is able


def test_fp32_products_are_tf32_in_a_step_and_exact_outside(still_teacher, tmp_path):
    recipe = CASES["teacher"].read(still_teacher, "steps=4", batch_size=24)
    data, method = made(recipe)
    seen, loss = [], type(method).loss

    def watched(turn, *told):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return loss(method, turn, *told)

    method.loss = watched
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    fabric = make_fabric(Trainer(accelerator="cuda", precision="32-true"))
    Loop(method, data, fabric, RunFolder(tmp_path), LoopSettings(steps=4, batch_size=24)).advance()
    assert seen == [(True, True)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
