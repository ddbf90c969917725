"""Exports for diffusers and what is shared by both forms: refusals, verification, the model card."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import CMStochasticIterativeScheduler
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.errors import UserError
from fewstep.generator import Generator, load
from fewstep.interop import export as exporting
from fewstep.interop import export_diffusers, export_onnx
from fewstep.interop.export import TOLERANCE, Format, export, verify
from fewstep.interop.export_diffusers import scheduler_settings
from fewstep.interop.model_card import model_card
from fewstep.interop.sampling_graph import drawn_inputs
from fewstep.maths.schedules import karras_sigmas, student_sigmas
from fewstep.metrics.least import NEEDS

UNET = {"name": "unet", "channels": [8, 16], "groups": 4, "head_dim": 8}
ONE_LEVEL = {"name": "unet", "channels": [8], "groups": 4, "head_dim": 8}

# draws from a folder with the stock library alone, and runs the code on its model card
STOCK = """
import json, os, sys
sys.modules["fewstep"] = None
import numpy as np, torch
from diffusers import ConsistencyModelPipeline
torch.set_num_threads(1)
arrays = {}
for name, folder, steps, seed, num, labels in json.loads(sys.argv[1]):
    pipeline = ConsistencyModelPipeline.from_pretrained(folder)
    options = dict(class_labels=labels, num_inference_steps=steps)
    images = pipeline(num, generator=torch.Generator().manual_seed(seed), output_type="np", **options).images
    arrays[name] = images.transpose(0, 3, 1, 2) * 2 - 1
    pictures = pipeline(num, generator=torch.Generator().manual_seed(seed), **options).images
    arrays[name + ".pil"] = np.stack([np.asarray(picture) for picture in pictures])
    arrays[name + ".mode"] = np.array(pictures[0].mode)
    os.chdir(folder)
    found = {}
    exec(open("README.md").read().split("```python")[1].split("```")[0], found)
    arrays[name + ".card"] = np.stack([np.asarray(picture) for picture in found["images"]])
    os.remove("sample.png")
np.savez(sys.argv[2], **arrays)
"""


def made(network=UNET, shape=(1, 8, 8), num_classes=None, sampler=None, info=None, **more) -> Generator:
    """A generator with random weights, none of them 0, whose samples leave [-1, 1] between its steps."""
    sampler = sampler or {"name": "few_step", "sigmas": [80.0]}
    torch.manual_seed(0)
    generator = Generator(shape, num_classes, 0.5, network, sampler, info, **more).eval()
    for weight in generator.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=(1.5 / weight[0].numel()) ** 0.5)
    return generator


def steps(num, sigma_max=80.0):
    return {"name": "few_step", "sigmas": student_sigmas(num, sigma_max).tolist()}


GENERATORS = {
    "rgb": {"shape": (3, 32, 32), "network": {**UNET, "channels": [4, 8]}},
    "classes2": {"num_classes": 3, "sampler": steps(2)},
    "steps3": {"network": ONE_LEVEL, "sampler": steps(3, 20.0)},
    "steps4": {"shape": (3, 8, 8), "num_classes": 10, "sampler": steps(4)},
    "karras4": {"sampler": {"name": "few_step", "sigmas": karras_sigmas(4).tolist()}},
    "custom3": {"network": ONE_LEVEL, "sampler": {"name": "few_step", "sigmas": [50.0, 8.0, 0.3]}},
}
SEED, NUM = 11, 6


@pytest.fixture(scope="module")
def exported(student_run, tmp_path_factory, done):
    """(generator, labels, stock): what each generator is, was asked for, and what the stock pipeline made of its export."""
    root = tmp_path_factory.mktemp("exported")
    done("export", student_run, "--format", "diffusers", "--out", root / "digits")
    generators = {"digits": load(student_run)}
    for name, arguments in GENERATORS.items():
        generators[name] = made(**arguments)
        generators[name].save_pretrained(root / f"{name}.model")
        done("export", root / f"{name}.model", "--format", "diffusers", "--out", root / name)
    asked, labels = [], {}
    for name, generator in generators.items():
        classes = generator.num_classes
        labels[name] = None if classes is None else [(classes - 1 - 2 * i) % classes for i in range(NUM)]
        asked.append((name, str(root / name), len(generator.sampler["sigmas"]), SEED, NUM, labels[name]))
    command = [sys.executable, "-c", STOCK, json.dumps(asked), str(root / "stock.npz")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return root, generators, labels, np.load(root / "stock.npz")


@pytest.mark.parametrize("name", ["digits", *GENERATORS])
def test_the_stock_pipeline_makes_the_same_pixels(exported, name):
    _, generators, labels, stock = exported
    expected = generators[name].sample(NUM, labels[name], SEED)
    if name != "digits":
        assert 0.1 < expected.std() < 0.95  # neither empty nor all clamped
    torch.testing.assert_close(torch.from_numpy(stock[name]), expected, rtol=0, atol=1e-4)
    grey = expected.shape[1] == 1
    assert stock[f"{name}.mode"] == ("L" if grey else "RGB")
    pictures = torch.from_numpy(stock[f"{name}.pil"]).float()
    pictures = pictures[:, None] if grey else pictures.permute(0, 3, 1, 2)
    assert (pictures - (expected + 1) * 127.5).abs().max() < 0.51  # rounded to 8 bits


@pytest.mark.parametrize("name", ["digits", *GENERATORS])
def test_the_code_on_the_card_runs(exported, name):
    _, generators, _, stock = exported
    classes = generators[name].num_classes
    expected = generators[name].sample(4, None if classes is None else [i % classes for i in range(4)], seed=0)
    pictures = torch.from_numpy(stock[f"{name}.card"]).float()
    pictures = pictures[:, None] if pictures.ndim == 3 else pictures.permute(0, 3, 1, 2)
    assert (pictures - (expected + 1) * 127.5).abs().max() < 0.51


def test_the_null_class_is_left_out(exported):
    root, generators, _, _ = exported
    written = load_file(root / "digits" / "unet" / "diffusion_pytorch_model.safetensors")["class_embedding.weight"]
    ours = generators["digits"].denoiser.network.unet.class_embedding.weight
    assert len(ours) == 11
    assert torch.equal(written, ours[:10])
    assert json.loads((root / "digits" / "unet" / "config.json").read_text())["num_class_embeds"] == 10


def test_what_is_written_is_safetensors_and_text(exported):
    root, *_ = exported
    files = {str(path.relative_to(root / "digits")) for path in (root / "digits").rglob("*") if path.is_file()}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert files == {"README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", weights}


# the levels that the stock scheduler visits


def visited(settings, k):
    """``sigma_j = (a + j r_T (b - a))^rho`` in float64, as read from the scheduler's source."""
    num, rho = settings["num_train_timesteps"], settings["rho"]
    a, b = (settings[f"sigma_{end}"] ** (1 / rho) for end in ("max", "min"))
    return [(a + j * (num // k) / (num - 1) * (b - a)) ** rho for j in range(k)]


@pytest.mark.parametrize("num", [1, 2, 3, 4, 8, 16])
def test_default_levels_are_a_scheduler_of_rho_7_that_ends_at_0(num):
    settings = scheduler_settings(student_sigmas(num, 80.0).tolist())
    timesteps = {1: 2, 2: 3}.get(num, num + 2)
    assert settings == {"num_train_timesteps": timesteps, "rho": pytest.approx(7.0, abs=1e-9), "sigma_min": 0.0, "sigma_max": 80.0}


@pytest.mark.parametrize(
    "sigmas",
    [
        [80.0, 20.0],
        [80.0, 0.01],
        [80.0, 20.0, 2.0],
        karras_sigmas(4).tolist(),
        karras_sigmas(8).tolist(),
        karras_sigmas(4, 0.05, 40.0, 5.0).tolist(),
        [9.0 * (1 - j * 4 / 15.5) ** 3.3 for j in range(4)],
    ],
)
def test_levels_that_lie_on_a_bent_ramp_are_met(sigmas):
    settings = scheduler_settings(sigmas)
    assert visited(settings, len(sigmas)) == pytest.approx(sigmas, rel=1e-6)
    assert settings["sigma_min"] <= 1e-6 * sigmas[-1]
    assert torch.tensor(settings["sigma_min"]).item() == settings["sigma_min"]  # else the scheduler may take the root of less than 0
    scheduler = CMStochasticIterativeScheduler(**settings)
    scheduler.set_timesteps(len(sigmas))
    assert scheduler.sigmas[:-1].tolist() == pytest.approx(sigmas, rel=1e-6)


@pytest.mark.parametrize(
    "sigmas",
    [
        [80.0, 20.0, 5.0],  # a geometric grid, which is rho without end
        [80.0, 30.0, 12.0],  # falls slower still
        [80.0, 24.4, 5.84, 0.661],  # three ratios, two numbers to fit
        [14.6, 4.2, 1.6, 0.7],
        [14.6, 3.0, 0.15],  # met with a sigma_min of 3e-5, which would move c_skip and c_out
        [80.0, 79.99],  # overflows in the scheduler
        [80.0, 80.0],
        [1.0, 2.0],
        [math.inf],
    ],
)
def test_other_levels_are_not(sigmas):
    assert scheduler_settings(sigmas) is None


def test_no_level_is_off_by_more_than_a_millionth():
    sigmas = student_sigmas(4, 80.0).tolist()
    assert scheduler_settings([*sigmas[:2], sigmas[2] * (1 + 5e-6), sigmas[3]]) is None


# refusals


def saved(tmp_path, **arguments):
    made(**arguments).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


PUSH = {"network": {"name": "latent_mlp", "widths": [16]}, "sampler": {"name": "push_forward"}, "denoiser": {"name": "push_forward"}}
BETAS = torch.linspace(1e-4, 0.02, 100).tolist()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (PUSH, "maps a latent to data at once"),
        ({"network": {"name": "dit", "patch": 4, "width": 8, "depth": 1, "heads": 1}}, "network is dit"),
        ({"network": {"name": "mlp", "widths": [8]}, "shape": (2,)}, "points of shape"),
        ({"network": ONE_LEVEL, "shape": (1, 8, 4)}, "images of 8x4"),
        ({"network": {**ONE_LEVEL, "patch": 2}}, "patches of 2x2 pixels"),
        ({"network": {**ONE_LEVEL, "time_scale": 50.0}}, "takes the timestep 50 ln(sigma)/4 (network.time_scale)"),
        ({"network": ONE_LEVEL, "sampler": {"name": "few_step", "sigmas": [80.0, 20.0, 5.0]}}, "noise levels 80, 20, 5"),
        ({"network": ONE_LEVEL, "denoiser": {"name": "ddpm", "prediction": "epsilon", "betas": BETAS}}, "ForeignDenoiser"),
    ],
)
def test_what_the_stock_pipeline_cannot_hold_is_refused_with_the_other_form(mistake, tmp_path, arguments, said):
    message = mistake("export", saved(tmp_path, **arguments), "--format", "diffusers", "--out", tmp_path / "out")
    assert said in message
    assert "--format onnx" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["diffusers", "onnx", "page"])
def test_a_teacher_is_not_exported(mistake, teacher_run, tmp_path, form):
    said = mistake("export", teacher_run, "--format", form, "--out", tmp_path / "out")
    assert "sampled with heun" in said
    assert "distil it first: give it to a recipe as method.teacher" in said
    assert list(tmp_path.iterdir()) == []


def test_a_generator_of_any_number_of_steps_is_exported_for_the_one_that_is_asked_for(done, mistake, dddm_run, tmp_path):
    pytest.importorskip("onnxruntime")
    assert "use --format onnx" in mistake("export", dddm_run, "--format", "diffusers", "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    done("export", dddm_run, "--format", "onnx", "--steps", 2, "--out", tmp_path / "out")
    generator = load(dddm_run)
    assert generator.default_steps() != 2
    inputs = drawn_inputs(generator.derive({**generator.sampler, "steps": 2}, {}), 7, 3)
    got = _run(tmp_path / "out", inputs | {"labels": torch.arange(7) % 10})
    torch.testing.assert_close(got, generator.sample(7, list(range(7)), seed=3, steps=2), rtol=0, atol=1e-4)
    said = (tmp_path / "out" / "README.md").read_text()
    assert "draws from noise in 2 steps" in said


def _run(folder, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def test_a_sampler_of_ones_own_is_no_graph(mistake, student_run, monkeypatch, tmp_path):
    pytest.importorskip("onnx")
    monkeypatch.setattr(export_onnx, "SAMPLED", ("push_forward",))
    said = mistake("export", student_run, "--format", "onnx", "--out", tmp_path / "out")
    assert "sampled with few_step, and an ONNX file holds the steps of push_forward only; draw from it with fewstep sample" in said
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_and_a_full_folder_are_refused(mistake, student_run, tmp_path):
    assert "allowed: diffusers, onnx" in mistake("export", student_run, "--format", "gguf", "--out", tmp_path / "out")
    (tmp_path / "file").write_text("kept")
    assert "holds something already" in mistake("export", student_run, "--format", "diffusers", "--out", tmp_path)
    assert "is a file" in mistake("export", student_run, "--format", "diffusers", "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    assert "is not a folder" in mistake("export", tmp_path / "none", "--format", "diffusers", "--out", tmp_path / "out")


# verification


def test_a_weight_that_changed_in_writing_fails_and_leaves_nothing(monkeypatch, mistake, student_run, tmp_path):
    write = export_diffusers.write_pipeline

    def damaged(generator, folder):
        write(generator, folder)
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        weights["conv_out.bias"] += 1e-3
        save_file(weights, file)

    monkeypatch.setattr(export_diffusers, "write_pipeline", damaged)
    said = mistake("export", student_run, "--format", "diffusers", "--out", tmp_path / "out")
    assert "differs from Generator.sample by" in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_run_fails_and_leaves_nothing(monkeypatch, student_run, tmp_path):
    write = export_diffusers.write_pipeline

    def damaged(generator, folder):
        write(generator, folder)
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"num_train_timesteps": 0}))

    monkeypatch.setattr(export_diffusers, "write_pipeline", damaged)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"cannot be (run|read)"):
        export(student_run, "diffusers", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("wrong", [2 * TOLERANCE, math.nan])
def test_one_pixel_of_the_last_class_is_enough(wrong):
    generator = made(ONE_LEVEL, num_classes=10)

    def draw(num, labels, seed):
        samples = generator.sample(num, labels, seed)
        samples[[label == 9 for label in labels], 0, 3, 3] += wrong
        return samples

    with pytest.raises(UserError, match="differs"):
        verify(generator, draw)
    assert verify(generator, generator.sample) == 0.0


@pytest.mark.parametrize(
    ("location", "scale", "off", "told"),
    [
        ([1e5, 0.0], [3e4, 1.0], [1.0, 0.0], None),  # 3e-5 of a standard deviation, which the samples' own digits hardly show
        ([1e5, 0.0], [3e4, 1.0], [30.0, 0.0], "by 1.0e-03 of a standard deviation, where 1e-04 is allowed"),
        ([0.0, 0.0], [1.0, 1e-3], [0.0, 1e-5], "by 1.0e-02 of a standard deviation"),  # which was less than 1e-4
        ([2000.0, 0.0], [1.0, 1.0], [2**-13, 0.0], None),  # one place of float32
        ([1e6, 0.0], [1.0, 1.0], [1e-3, 0.0], "by 1.0e-03 of a standard deviation"),  # of which float64 is full
        (None, None, [1e-3, 0.0], "by 1.0e-03 in a coordinate"),
    ],
)
def test_points_agree_in_standard_deviations_of_the_data(location, scale, off, told):
    """An absolute difference says nothing of points in units of the user's own: no data of a large scale could be exported."""
    units = None if scale is None else {"location": location, "scale": scale}
    network, push = {"name": "coded_mlp", "widths": [16], "latent": 6, "bits": 3}, {"name": "push_forward"}
    generator = Generator((2,), None, 1.0, network, push, None, push, units=units).eval()

    def draw(num, labels, seed):
        samples = generator.sample(num, labels, seed)
        return (samples.double() + torch.tensor(off, dtype=torch.float64)).to(samples.dtype)

    if told is None:
        assert verify(generator, draw) < 1e-4
    else:
        with pytest.raises(UserError, match=told):
            verify(generator, draw)


def test_samples_of_another_shape_are_no_agreement():
    generator = made(ONE_LEVEL)
    with pytest.raises(UserError, match="differs"):
        verify(generator, lambda num, labels, seed: generator.sample(num, labels, seed)[:, :, :1])


# the model card


def card(folder) -> ModelCard:
    text = (folder / "README.md").read_text()
    assert isinstance(yaml.safe_load(text.split("---\n")[1]), dict)
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize(
    ("own", "given", "fields"),
    [
        (None, None, {"license": "unknown"}),
        (None, "MIT", {"license": "mit"}),
        ("CC BY-NC-SA 4.0", None, {"license": "cc-by-nc-sa-4.0"}),
        ("CC BY-NC-SA 4.0", "CC BY-NC-SA 4.0", {"license": "cc-by-nc-sa-4.0"}),
        ("CC BY-NC-SA 4.0 (of the official EDM checkpoints)", "cc-by-nc-sa-4.0", {"license": "cc-by-nc-sa-4.0"}),
        (None, "House Licence", {"license": "other", "license_name": "house-licence"}),
    ],
)
def test_the_licence_is_the_weights_own_or_the_one_given(done, tmp_path, own, given, fields):
    model = saved(tmp_path, network=ONE_LEVEL, info={} if own is None else {"licence": own})
    done("export", model, "--format", "diffusers", "--out", tmp_path / "out", *([] if given is None else ["--licence", given]))
    data = card(tmp_path / "out").data.to_dict()
    assert {key: data[key] for key in data if key.startswith("license")} == fields
    text = (tmp_path / "out" / "README.md").read_text()
    assert (own or given or "was not stated") in text.split("## Licence")[1]


def test_the_fields_that_the_hub_reads():
    """Written out by hand; what is not known is no field, and a row's costs and errors are no metrics."""
    points = made({"name": "mlp", "widths": [8]}, (2,), sampler=steps(2), info={"method": "dmd2"})
    row = {"steps": 2, "evaluations": 2, "energy": 0.25, "energy_error": 0.1, "variance": math.nan, "images_per_second": 9.0}
    results = {"rows": {"floor": {"energy": 0.0}, "dmd2": row}, "floor_of": "floor", "data": "ring", "n": 40}
    results |= {"seed": 0, "reference": "r", "features": "f"}
    tags = ["fewstep", "few-step-generation", "onnx", "dmd2"]
    fields = {"license": "mit", "library_name": "onnx", "tags": tags}
    written = model_card(points, "onnx", "ring", "MIT", 0.0)
    assert yaml.safe_load(str(written).split("---\n")[1]) == fields
    task, metric = {"type": "unconditional-image-generation"}, {"type": "energy", "value": 0.25, "name": "energy (40 samples, f)"}
    index = {"task": task, "dataset": {"type": "ring", "name": "ring"}, "metrics": [metric]}
    written = model_card(points, "onnx", "ring", "MIT", 0.0, results=results)
    assert yaml.safe_load(str(written).split("---\n")[1]) == {
        **fields,
        "metrics": ["energy"],
        "model-index": [{"name": "ring", "results": [index]}],
    }
    assert "| dmd2 | 0.25 |" in written.text


def rows_of(*, told, **energies):
    """Rows of results.json by title, at two steps; with roles, or as version 0.1.0 wrote them."""
    roles = {"floor": "floor", "teacher, 2 evaluations": "teacher", "student, 2 evaluations": "own", "student, 1 evaluation": "own"}
    rows = {}
    for title, role in roles.items():
        rows[title] = {"energy": energies[role], "steps": 1 if "1 eval" in title else 2} | ({"role": role} if told else {})
    rows["student, 1 evaluation"]["energy"] = energies["once"]
    beside = {"energy": 9.0, "steps": 2, "run": "/home/me/other"} | ({"role": "beside"} if told else {})
    return {"rows": {**rows, "/home/me/other: student, 2 evaluations": beside}, "floor_of": "floor", "data": "ring", "n": 40}


@pytest.mark.parametrize("told", [True, False], ids=["with roles", "of 0.1.0"])
@pytest.mark.parametrize(("count", "energy"), [(2, 0.25), (1, 0.5), (3, None)])
def test_the_card_has_the_figures_of_its_own_generator_at_its_own_steps(count, energy, told):
    points = made({"name": "mlp", "widths": [8]}, (2,), sampler=steps(count), info={"method": "dmd2"})
    results = rows_of(told=told, floor=0.0, teacher=0.1, own=0.25, once=0.5) | {"seed": 0, "reference": "r", "features": "f"}
    found = model_card(points, "onnx", "ring", "MIT", 0.0, results=results)
    assert [result.metric_value for result in found.data.eval_results or []] == ([] if energy is None else [energy])
    assert "other" not in str(found)  # another run's folder is nobody's business
    assert ("| student, 2 evaluations | 0.25 |" in str(found)) == (energy is not None)
    assert ("Not measured at 3 steps" in str(found)) == (energy is None)


def test_the_card_has_no_figures_of_another_churn_and_tells_the_guidance_of_a_row():
    points = made({"name": "mlp", "widths": [8]}, (2,), sampler=steps(2), info={"method": "dmd2"})
    results = rows_of(told=True, floor=0.0, teacher=0.1, own=0.25, once=0.5) | {"seed": 0, "reference": "r", "features": "f"}
    results["rows"]["teacher, 2 evaluations"]["guidance_scale"] = 3.0
    results["rows"]["/home/me/other: student, 2 evaluations"]["guidance_scale"] = 7.0
    told = str(model_card(points, "onnx", "ring", "MIT", 0.0, results=results))
    assert "Teacher, 2 evaluations: with guidance scale 3" in told
    assert "scale 7" not in told
    results["rows"]["student, 2 evaluations"]["churn"] = 0.5
    found = model_card(points, "onnx", "ring", "MIT", 0.0, results=results)
    assert found.data.eval_results is None
    assert "Not measured at 2 steps with its own churn when this was exported" in str(found)


@pytest.mark.parametrize(("measured", "energy"), [(None, None), (3.0, None), (2.0, 0.25)])
def test_the_card_has_the_figures_of_its_own_guidance_alone(measured, energy):
    sampler = {"name": "distributional", "steps": 2, "churn": 0.5, "guidance_scale": 2.0}
    info = {"method": "dddm", "label_dropout": 0.1}
    network, denoiser = {"name": "mlp", "widths": [8], "xi_channels": 1}, {"name": "distributional", "output": "x0"}
    points = made(network, (2,), sampler=sampler, info=info, denoiser=denoiser)
    results = rows_of(told=True, floor=0.0, teacher=0.1, own=0.25, once=0.5) | {"seed": 0, "reference": "r", "features": "f"}
    results["rows"]["floor"]["too_few"] = {"kernel": f"9 training images; KID{NEEDS}150"}  # hides no figure of this card
    results["rows"]["student, 2 evaluations"] |= {} if measured is None else {"guidance_scale": measured}
    found = model_card(points, "onnx", "ring", "MIT", 0.0, results=results)
    assert [result.metric_value for result in found.data.eval_results or []] == ([] if energy is None else [energy])
    assert ("Not measured at 2 steps with its own guidance when this was exported" in str(found)) == (energy is None)
    assert "- guidance scale: 2, so that a sample takes 4 evaluations" in str(found)


def test_a_number_of_steps_changes_nothing_else_of_a_sampler(monkeypatch, tmp_path):
    sampler = {"name": "few_step", "levels": [[2.0], [2.0, 0.5]], "steps": 2, "start": 3.0}
    model, written = saved(tmp_path, network=ONE_LEVEL, sampler=sampler), []
    form = Format(written.append, lambda generator, folder: None, lambda folder, generator: generator.sample)
    monkeypatch.setattr(exporting, "formats", lambda: {"onnx": form})
    export(model, "onnx", tmp_path / "out", steps=1)
    assert written[0].sampler == sampler | {"steps": 1}
    assert torch.equal(written[0].sample(2, seed=0), load(model).sample(2, seed=0, steps=1))


@pytest.mark.parametrize(("form", "count", "told"), [("onnx", 9, True), ("onnx", 8, False), ("diffusers", 9, False)])
def test_it_is_told_beforehand_that_many_evaluations_take_minutes(form, count, told, monkeypatch, tmp_path):
    model, said = saved(tmp_path, network=ONE_LEVEL, sampler=steps(count)), []
    way = Format(lambda generator: None, lambda generator, folder: said.append("written"), lambda folder, generator: generator.sample)
    monkeypatch.setattr(exporting, "formats", lambda: {form: way})
    export(model, form, tmp_path / "out", say=said.append)
    note = "note: 9 evaluations of the network are written into one file, which can take minutes"
    assert said == [note, "written"] if told else said == ["written"]


def test_a_licence_cannot_be_taken_off_weights(mistake, tmp_path):
    model = saved(tmp_path, network=ONE_LEVEL, info={"licence": "CC BY-NC-SA 4.0"})
    said = mistake("export", model, "--format", "diffusers", "--out", tmp_path / "out", "--licence", "mit")
    assert "'CC BY-NC-SA 4.0'" in said
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_was_trained_and_measured(done, student_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(student_run, run, ignore=shutil.ignore_patterns("checkpoints"))
    done("evaluate", run, "-n", "150")
    other = shutil.copytree(run, tmp_path / "other")
    done("evaluate", run, "-n", "150", "--beside", other)
    results = json.loads((run / "results.json").read_text())
    done("export", run, "--format", "diffusers", "--out", tmp_path / "out")
    made_card = card(tmp_path / "out")
    data = made_card.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert {"fewstep", "diffusers", "one-step-generation", "dmd2"} <= set(data["tags"])
    row = results["rows"]["student, 1 evaluation"]
    values = {result.metric_type: result.metric_value for result in made_card.data.eval_results}
    assert set(values) == set(data["metrics"])
    assert {"frechet", "precision", "recall"} <= set(values)
    assert not {"steps", "evaluations", "images_per_second", "sampler"} & set(values)
    assert values == {key: pytest.approx(row[key]) for key in values}
    assert made_card.data.eval_results[0].dataset_name == "digits"
    recipe = yaml.safe_load(made_card.text.split("```yaml")[1].split("```")[0])
    whole = yaml.safe_load((run / "recipe.yaml").read_text())
    teacher = Path(whole["method"].pop("teacher"))
    assert teacher.is_absolute()  # its folders are nobody's business
    assert recipe["method"].pop("teacher") == teacher.name
    del whole["made_by"]["data_audit"]
    assert recipe == whole
    assert "150 samples (seed 0) against 360 held-out images" in made_card.text
    lines = [line.split("|")[1:-1] for line in made_card.text.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {len(values) + 1}
    assert [line[0].strip() for line in lines[2:]] == [title for title, row in results["rows"].items() if row["role"] != "beside"]
    assert str(other) not in str(made_card)

    # its best model is made by the same recipe, and measured by itself
    shutil.copytree(run / "model", run / "best")
    (run / "best" / "results.json").write_text(json.dumps(results))
    done("export", run / "best", "--format", "diffusers", "--out", tmp_path / "best")
    best = card(tmp_path / "best")
    assert yaml.safe_load(best.text.split("```yaml")[1].split("```")[0]) == yaml.safe_load(
        made_card.text.split("```yaml")[1].split("```")[0]
    )
    assert "Not measured" not in best.text

    # a run that was trained on since: its figures are another generator's
    (run / "results.json").write_text(json.dumps(results | {"step": 3}))
    done("export", run, "--format", "diffusers", "--out", tmp_path / "later")
    assert "metrics" not in card(tmp_path / "later").data.to_dict()
    assert "Not measured" in card(tmp_path / "later").text


BESIDE = '"n": 1, "seed": 0, "data": "", "features": "", "reference": ""'  # what stands beside the rows of all results


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"rows": {"student',
        "[1]",
        '{"rows": {"a": {"frechet": 1.0}}}',
        f"{{{BESIDE}}}",
        f'{{{BESIDE}, "rows": {{}}}}',
        f'{{{BESIDE}, "rows": {{"a": 1}}}}',
        f'{{{BESIDE}, "rows": {{"a": {{"frechet": "x"}}}}}}',
    ],
)
def test_results_that_cannot_be_read_are_one_sentence(content, command, student_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(student_run, run, ignore=shutil.ignore_patterns("checkpoints"))
    (run / "results.json").write_text(content)
    outcome = command("export", run, "--format", "diffusers", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert outcome.err.count("error: ") == 1
    assert f"run `fewstep evaluate {run}` again" in outcome.err
    assert not (tmp_path / "out").exists()
