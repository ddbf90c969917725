"""What only a CUDA device can show: run with `pytest -m gpu`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from every_method import CASES, made
from fewstep.denoisers import PreconditionedDenoiser
from fewstep.maths.energy import generalized_energy_score
from fewstep.networks.edm_unet import EDMUNet
from fewstep.recipe import Trainer
from fewstep.run import make_fabric
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GOLDEN = Path(__file__).parent / "golden"
TINY = ["network.channels=[16,32]", "network.groups=8", "network.head_dim=16", "batch_size=32", "trainer.accelerator=cuda"]


def fewstep_cli(*arguments):
    return subprocess.run([sys.executable, "-m", "fewstep", *map(str, arguments)], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_teacher_and_student_learn_on_the_gpu(tmp_path, precision):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    fewstep_cli("train", "teacher/digits", "--out", teacher, "steps=200", f"trainer.precision={precision}", *TINY)
    records = [json.loads(line) for line in (teacher / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["denoiser.denoising"] < 0.8 * records[0]["denoiser.denoising"]
    shared = [key for key in TINY if not key.startswith("network")]
    gan = ["method.gan=true", "method.gan_weight_generator=auto", f"method.teacher={teacher}"]
    fewstep_cli("train", "dmd2/digits", "--out", student, "steps=50", f"trainer.precision={precision}", *gan, *shared)
    assert fewstep.load(student, "cuda").sample(20, seed=0).isfinite().all()


def test_the_same_seed_draws_the_same_samples_on_both_devices(tmp_path):
    fewstep_cli("train", "teacher/digits", "--out", tmp_path / "run", "steps=20", *TINY)
    on_cpu = fewstep.load(tmp_path / "run").sample(20, seed=3, steps=5)
    on_gpu = fewstep.load(tmp_path / "run", "cuda").sample(20, seed=3, steps=5).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=2e-2)  # TF32-free convolutions still differ in the last bits, five steps deep


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", CASES)
def test_every_method_takes_steps_on_the_gpu(name, precision, still_teacher, tmp_path):
    recipe = CASES[name].read(still_teacher, "steps=3", batch_size=24)
    data, method = made(recipe)
    fabric = make_fabric(Trainer(accelerator="cuda", precision=precision))
    loop = Loop(method, data, fabric, RunFolder(tmp_path), LoopSettings(steps=3, batch_size=24, log_every=1))
    for _ in range(3):
        loop.advance()
    loop.faults.tell(loop.state.window)
    assert {p.device.type for network in method.networks.values() for p in network.parameters()} <= {"cuda"}
    assert loop.state.shipped().sample(8, seed=0).isfinite().all()


DIT = "network={name: dit, sigma_data: 0.75, patch: 2, width: 64, depth: 2, heads: 2}"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("network", [TINY[:3], [DIT]], ids=["unet", "dit"])
def test_distributional_diffusion_learns_on_the_gpu_and_samples_the_same_on_both_devices(tmp_path, precision, network):
    run = tmp_path / "run"
    fewstep_cli("train", "dddm/digits", "--out", run, "steps=300", f"trainer.precision={precision}", *TINY[3:], *network)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["denoiser.score"] < 0.9 * records[0]["denoiser.score"]
    assert 0.7 < records[-1]["denoiser.calibration"] < 1.3
    on_cpu = fewstep.load(run).sample(20, seed=3, steps=4)
    on_gpu = fewstep.load(run, "cuda").sample(20, seed=3, steps=4).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=2e-2)


def test_distances_of_particles_are_those_of_the_cpu():
    rng = torch.Generator().manual_seed(0)
    x0, particles = torch.randn(4, 3, 32, 32, generator=rng), torch.randn(4, 8, 3, 32, 32, generator=rng)
    found = {}
    for device in ("cpu", "cuda"):
        samples = particles.to(device).requires_grad_()
        score = generalized_energy_score(x0.to(device), samples, 0.5, 1.0)
        (grad,) = torch.autograd.grad(score.sum(), samples)
        found[device] = score.detach().cpu(), grad.cpu()
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fewstep",
        "train",
        "teacher/digits",
        "--out",
        str(tmp_path / "run"),
        "steps=40",
        "method.optimizer.lr=1e30",
        "method.optimizer.warmup=0",
    ]
    command += [*TINY, "method.optimizer.clip=null", "trainer.log_every=10", "trainer.checkpoint_every=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Nothing was overwritten" in done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/step_*"))


@pytest.mark.parametrize("form", ["ddpmpp", "ncsnpp"])
def test_edm_networks_give_the_released_numbers_in_float32_and_near_ones_in_bf16(form):
    golden = load_file(GOLDEN / f"edm_{form}.safetensors")
    classes = 10 if "in.label" in golden else None
    network = EDMUNet((3, 32, 32), classes, form, channels=16, blocks=2)
    network.load_state_dict({key.removeprefix("sd."): value for key, value in golden.items() if key.startswith("sd.")})
    denoiser = PreconditionedDenoiser(network, 0.5, classes).cuda().eval()
    x, sigma = golden["in.x"].cuda().float(), golden["in.sigma"].cuda().float()
    label = None if classes is None else golden["in.label"].cuda()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            plain = denoiser(x, sigma, label).cpu()
            with torch.autocast("cuda", torch.bfloat16):
                mixed = denoiser(x, sigma, label).cpu()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    expected = golden["out.D"].float()
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    assert (mixed - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "options",
    [
        ["method.sampler_steps=4"],
        ["method.loss=dmd", "method.gan=true", "method.gan_levels=2", "method.f_divergence=js", "method.r1_weight=1", "method.r1=exact"],
        ["method.gan=true", "method.gan_features=teacher", "method.r1_weight=1"],
    ],
    ids=["four steps", "divergence", "teacher's features"],
)
def test_every_part_of_dmd2_runs_on_the_gpu(tmp_path, precision, options):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    fewstep_cli("train", "teacher/digits", "--out", teacher, "steps=20", f"trainer.precision={precision}", *TINY)
    shared = [key for key in TINY if not key.startswith("network")]
    fewstep_cli(
        "train",
        "dmd2/digits",
        "--out",
        student,
        "steps=20",
        f"trainer.precision={precision}",
        f"method.teacher={teacher}",
        *options,
        *shared,
    )
    samples = [fewstep.load(student, device).sample(20, seed=0).cpu() for device in ("cuda", "cpu")]
    torch.testing.assert_close(*samples, rtol=0, atol=2e-2)


def test_what_was_trained_on_the_gpu_exports(tmp_path):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    fewstep_cli("train", "teacher/digits", "--out", teacher, "steps=20", *TINY)
    shared = [key for key in TINY if not key.startswith("network")]
    fewstep_cli("train", "dmd2/digits", "--out", student, "steps=20", f"method.teacher={teacher}", *shared)
    for form in ("diffusers", "onnx"):
        fewstep_cli("export", student, "--format", form, "--out", tmp_path / form)  # which compares pixels itself
