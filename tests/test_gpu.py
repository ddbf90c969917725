"""What a CUDA device has to show, marked gpu; the same tests run on the CPU everywhere, so that nothing but the device is new there."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from every_method import CASES, made
from fewstep import streams
from fewstep.denoisers import PreconditionedDenoiser
from fewstep.maths.energy import generalized_energy_score
from fewstep.networks.edm_unet import EDMUNet
from fewstep.recipe import Trainer
from fewstep.run import make_fabric
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder
from test_two_are_one import stirred

GOLDEN = Path(__file__).parent / "golden"
NETWORK = ["network.channels=[16,32]", "network.groups=8", "network.head_dim=16"]
DIT = "network={name: dit, sigma_data: 0.75, patch: 2, width: 64, depth: 2, heads: 2}"
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SEVERAL = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")]

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
# a CPU without AVX512-BF16 takes a minute for what it trains in bf16; `test_every_method_takes_steps_in_bf16` takes two steps there
in_both = pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "32-true"),
        pytest.param("cpu", "bf16-mixed", marks=pytest.mark.slow),
        *(pytest.param("cuda", precision, marks=GPU) for precision in ("32-true", "bf16-mixed")),
    ],
)


@pytest.fixture
def exact_products():
    """Convolutions and products of 32 bits are taken in 32 bits, as on the CPU, and not in TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def options(device, precision="32-true"):
    # a picture at the end alone: each costs as much as many steps here
    return ["batch_size=32", f"trainer.accelerator={device}", f"trainer.precision={precision}", "trainer.sample_every=1000"]


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def near(ours, theirs):
    """Two devices' samples of one seed: their sums are taken in another order, at each of several evaluations."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)


@in_both
def test_teacher_and_student_learn(tmp_path, done, device, precision):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    logged = "trainer.log_every=10"
    done("train", "teacher/digits", "--out", teacher, "steps=60", logged, *options(device, precision), *NETWORK)
    losses = [record["denoiser.denoising"] for record in records(teacher)]
    assert losses[-1] < 0.8 * losses[0]
    gan = ["method.gan=true", "method.gan_weight_generator=auto", f"method.teacher={teacher}"]
    done("train", "dmd2/digits", "--out", student, "steps=20", logged, *options(device, precision), *gan)
    assert fewstep.load(student, device).sample(20, seed=0).isfinite().all()


@on_both
def test_the_same_seed_draws_the_same_samples_as_on_the_cpu(still_teacher, device, exact_products):
    near(fewstep.load(still_teacher, device).sample(20, seed=3, steps=5).cpu(), fewstep.load(still_teacher).sample(20, seed=3, steps=5))


@pytest.fixture
def drawn_on_the_cpu(monkeypatch):
    """Whatever device the loop draws on, its numbers are the CPU's: two devices then learn from the same noise. Call it to begin anew."""
    source = torch.Generator()

    def rows(draw, shape, rng):
        return draw(tuple(shape), source).to(rng.device)

    monkeypatch.setattr(streams, "_rows", rows)
    return lambda: source.manual_seed(0)


def steps_of(name, device, precision, teacher, folder, steps):
    """Terms and gradient norms of each step, and the loop."""
    recipe = CASES[name].read(teacher, f"steps={steps}", batch_size=24)
    data, method = made(recipe)
    stirred(method)
    fabric = make_fabric(Trainer(accelerator=device, precision=precision))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loop = Loop(method, data, fabric, RunFolder(folder), LoopSettings(steps=steps, batch_size=24, log_every=1))
        found = []
        for _ in range(steps):
            loop.advance()
            loop.faults.tell(loop.state.window)
            found.append(loop.state.window.means())
    return found, loop


@on_both
@pytest.mark.parametrize("name", CASES)
def test_every_method_takes_the_steps_that_it_takes_on_the_cpu(name, device, still_teacher, tmp_path, drawn_on_the_cpu, exact_products):
    found = {}
    for where in ("cpu", device):
        drawn_on_the_cpu()
        found[where], loop = steps_of(name, where, "32-true", still_teacher, tmp_path, steps=2)
        assert {p.device.type for network in loop.method.networks.values() for p in network.parameters()} <= {where}
        assert loop.state.shipped().sample(8, seed=0).isfinite().all()
    for step, (ours, theirs) in enumerate(zip(found[device], found["cpu"], strict=True)):
        assert ours.keys() == theirs.keys()
        for term, value in theirs.items():
            # AdamW's first update has the size of the rate wherever a gradient is not 0, also where it is rounding alone
            tolerance = 1e-3 if step == 0 else 2e-2
            assert math.isclose(ours[term], value, rel_tol=tolerance, abs_tol=1e-4), (step, term, ours[term], value)


@on_both
@pytest.mark.parametrize("name", CASES)
def test_every_method_takes_steps_in_bf16(name, device, still_teacher, tmp_path):
    found, loop = steps_of(name, device, "bf16-mixed", still_teacher, tmp_path, steps=2)
    assert all(math.isfinite(value) for means in found for value in means.values())
    assert {p.dtype for network in loop.method.networks.values() for p in network.parameters()} <= {torch.float32}
    assert loop.state.shipped().sample(8, seed=0).isfinite().all()


PLACES = [("cpu", "cpu"), *(pytest.param(*pair, marks=GPU) for pair in (("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")))]


@pytest.mark.parametrize(("first", "then"), PLACES)
@pytest.mark.parametrize("name", ["teacher", "dmd2, gan and r1", "flow map"])
def test_a_checkpoint_goes_on_on_another_device(tmp_path, done, still_teacher, name, first, then):
    run, case = tmp_path / "run", CASES[name]
    given = [override.replace("{teacher}", str(still_teacher)) for override in case.overrides]
    given += ["batch_size=16", "trainer.log_every=1", "trainer.checkpoint_every=2", "trainer.sample_every=1000", "steps=6"]
    done("train", case.recipe, "--out", run, *given, f"trainer.accelerator={first}")
    for folder in (run / "checkpoints").iterdir():  # as if it had been stopped at step 4
        if folder.name == "step_6":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    before = {record["step"]: record for record in records(run)}
    said = done("train", case.recipe, "--out", run, "--resume", *given, f"trainer.accelerator={then}").err
    assert "going on from step 4" in said
    assert ("other random numbers" in said) == (first != then)
    after = {record["step"]: record for record in records(run)}
    assert list(after) == list(range(1, 7))
    terms = [key for key in after[6] if "." in key and not key.startswith(("health.", "eval."))]
    assert terms
    if first == then == "cpu":
        assert [after[step][key] for step in (5, 6) for key in terms] == [before[step][key] for step in (5, 6) for key in terms]
    assert all(math.isfinite(after[step][key]) for step in (5, 6) for key in terms if key in after[step])
    near(fewstep.load(run, then).sample(8, seed=0).cpu(), fewstep.load(run).sample(8, seed=0))


def test_a_state_of_another_kind_of_generator_is_not_forced_upon_this_one(tmp_path, done, monkeypatch, teacher_overrides):
    """What a checkpoint of a GPU brings to the CPU, on a machine without one: a generator's state of 16 bytes."""
    run, state = tmp_path / "run", torch.Generator.get_state
    with monkeypatch.context() as patch:
        patch.setattr(streams.Draws, "get_state", lambda self: torch.arange(16, dtype=torch.uint8), raising=False)
        done("train", "teacher/digits", *teacher_overrides, "steps=4", "--out", run)
    assert streams.Draws.get_state is state
    said = done("train", "teacher/digits", *teacher_overrides, "steps=6", "--resume", "--out", run).err
    assert "going on from step 4" in said
    assert "on another kind of device than cpu: going on with other random numbers" in said
    assert records(run)[-1]["step"] == 6


@in_both
@pytest.mark.parametrize("network", [NETWORK, [DIT]], ids=["unet", "dit"])
def test_distributional_diffusion_learns_and_samples_the_same_as_on_the_cpu(tmp_path, done, device, precision, network):
    run = tmp_path / "run"
    done("train", "dddm/digits", "--out", run, "steps=100", "method.m=4", "trainer.log_every=10", *options(device, precision), *network)
    scores = [record["denoiser.score"] for record in records(run)]
    assert scores[-1] < 0.9 * scores[0]
    near(fewstep.load(run, device).sample(20, seed=3, steps=4).cpu(), fewstep.load(run).sample(20, seed=3, steps=4))


@on_both
def test_distances_of_particles_are_those_of_the_cpu(device):
    rng = torch.Generator().manual_seed(0)
    x0, particles = torch.randn(4, 3, 32, 32, generator=rng), torch.randn(4, 8, 3, 32, 32, generator=rng)
    found = {}
    for where in ("cpu", device):
        samples = particles.to(where).requires_grad_()
        score = generalized_energy_score(x0.to(where), samples, 0.5, 1.0)
        (grad,) = torch.autograd.grad(score.sum(), samples)
        found[where] = score.detach().cpu(), grad.cpu()
    for ours, theirs in zip(found[device], found["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@on_both
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path, mistake, device):
    given = ["steps=40", "method.optimizer.lr=1e30", "method.optimizer.warmup=0", "method.optimizer.clip=null"]
    given += [*options(device), *NETWORK, "trainer.log_every=10", "trainer.checkpoint_every=10"]
    assert "Nothing was overwritten" in mistake("train", "teacher/digits", "--out", tmp_path / "run", *given)
    assert not list((tmp_path / "run").glob("checkpoints/step_*"))


@on_both
@pytest.mark.parametrize("form", ["ddpmpp", "ncsnpp"])
def test_edm_networks_give_the_released_numbers_in_float32_and_near_ones_in_bf16(form, device, exact_products):
    golden = load_file(GOLDEN / f"edm_{form}.safetensors")
    classes = 10 if "in.label" in golden else None
    network = EDMUNet((3, 32, 32), classes, form, channels=16, blocks=2)
    network.load_state_dict({key.removeprefix("sd."): value for key, value in golden.items() if key.startswith("sd.")})
    denoiser = PreconditionedDenoiser(network, 0.5, classes).to(device).eval()
    x, sigma = golden["in.x"].to(device).float(), golden["in.sigma"].to(device).float()
    label = None if classes is None else golden["in.label"].to(device)
    with torch.no_grad():
        plain = denoiser(x, sigma, label).cpu()
        with torch.autocast(device, torch.bfloat16):
            mixed = denoiser(x, sigma, label).cpu()
    expected = golden["out.D"].float()
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    assert (mixed - expected).norm() < 0.05 * expected.norm()


@in_both
@pytest.mark.parametrize(
    "parts",
    [
        ["method.sampler_steps=4"],
        ["method.loss=dmd", "method.gan=true", "method.gan_levels=2", "method.f_divergence=js", "method.r1_weight=1", "method.r1=exact"],
        ["method.gan=true", "method.gan_features=teacher", "method.r1_weight=1"],
    ],
    ids=["four steps", "divergence", "teacher's features"],
)
def test_every_part_of_dmd2_runs(tmp_path, done, still_teacher, device, precision, parts):
    student = tmp_path / "student"
    done("train", "dmd2/digits", "--out", student, "steps=10", *options(device, precision), f"method.teacher={still_teacher}", *parts)
    near(fewstep.load(student, device).sample(20, seed=0).cpu(), fewstep.load(student).sample(20, seed=0))


@on_both
def test_what_was_trained_there_is_measured_there_and_exports(tmp_path, done, still_teacher, device):
    student = tmp_path / "student"
    done("train", "dmd2/digits", "--out", student, "steps=10", *options(device), f"method.teacher={still_teacher}")
    done("evaluate", student, "-n", 60)
    assert math.isfinite(json.loads((student / "results.json").read_text())["rows"]["student, 1 evaluation"]["frechet"])
    done("export", student, "--format", "diffusers", "--out", tmp_path / "diffusers")  # which compares pixels itself


@pytest.mark.parametrize("devices", [pytest.param(2, marks=SEVERAL)])
def test_two_gpus_learn_what_one_learns(tmp_path, fewstep_cli, still_teacher, devices):
    """As `tests/training/test_two_are_one.py` shows of two processes on the CPU."""
    losses = {}
    for number in (1, devices):
        run = tmp_path / f"run_{number}"
        given = ["steps=4", "trainer.log_every=1", f"trainer.devices={number}", "batch_size=32", "trainer.accelerator=cuda"]
        fewstep_cli("train", "dmd2/digits", "--out", run, *given, f"method.teacher={still_teacher}", check=True)
        losses[number] = [record["guidance.fake"] for record in records(run)]
    assert losses[1] == pytest.approx(losses[devices], rel=2e-2)
