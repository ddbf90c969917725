"""Exports that onnxruntime runs: pixels, batch sizes, metadata, the card's code."""

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn

import fewstep
from fewstep import __version__
from fewstep.generator import Generator, load
from fewstep.interop import export_onnx
from fewstep.interop.sampling_graph import ConstantFrequencies, SamplingGraph, drawn_inputs
from fewstep.maths.schedules import student_sigmas
from fewstep.networks.dit import DiT
from fewstep.networks.dit.network import Sinusoids

BETAS = torch.linspace(1e-4, 0.02, 1000).tolist()
DIT = {"name": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2}
FOREIGN = {
    "name": "unet2d",
    "sample_size": 8,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
PUSH = {"name": "push_forward"}  # the sampler, and the denoiser
FLOW = {"name": "two_time", "steps": 3, "sigma_max": 80.0, "middle": 0.5}
INFO = {"class_names": ["a", "b", "c"], "method": "dmd2", "data": "letters"}
# one of each kind of graph; `digits` is a trained U-Net of two levels
GENERATORS = {
    "dit3": ((1, 8, 8), 3, DIT, {"name": "few_step", "sigmas": student_sigmas(3, 5.0).tolist()}, INFO, None),
    "foreign": (
        (3, 8, 8),
        None,
        FOREIGN,
        {"name": "few_step", "sigmas": [30.0]},
        None,
        {"name": "ddpm", "prediction": "epsilon", "betas": BETAS},
    ),
    "flow": ((1, 8, 8), 3, DIT | {"condition": 8}, FLOW, INFO, {"name": "two_time", "gain": 3.0}),
    "flow with noise": ((1, 8, 8), 3, DIT | {"condition": 8}, FLOW | {"churn": 0.6}, INFO, {"name": "two_time"}),
    "posterior": (
        (3, 8, 8),
        3,
        DIT | {"xi_channels": 2},
        {"name": "distributional", "steps": 3, "churn": 0.7, "guidance_scale": 1.5},
        INFO | {"label_dropout": 0.1},
        {"name": "distributional"},
    ),
    "points": (
        (2,),
        None,
        {"name": "mlp", "widths": [16], "xi_channels": 3},
        {"name": "distributional", "steps": 2, "churn": 0.0},
        None,
        {"name": "distributional", "output": "edm"},
    ),
    "latent": ((1, 4, 4), 3, {"name": "latent_mlp", "widths": [16, 16], "latent": 5}, PUSH, None, PUSH),
    "coded": ((2,), None, {"name": "coded_mlp", "widths": [16], "latent": 6, "bits": 3}, PUSH, None, PUSH),
}


@pytest.fixture(scope="module")
def exported(student_run, done, tmp_path_factory):
    """(folder of the exports, the generators by name)."""
    root = tmp_path_factory.mktemp("exported")
    done("export", student_run, "--format", "onnx", "--out", root / "digits")
    generators = {"digits": load(student_run)}
    for name, (shape, classes, network, sampler, info, denoiser) in GENERATORS.items():
        torch.manual_seed(0)
        generator = Generator(shape, classes, 0.5, network, sampler, info, denoiser).eval()
        for weight in generator.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        generator.save_pretrained(root / f"{name}.model")
        generators[name] = generator
        done("export", root / f"{name}.model", "--format", "onnx", "--out", root / name)
    return root, generators


def session(folder):
    import onnxruntime

    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


# what a sample draws after its latents, in order, where it is not one noise between any two steps
ORDER = {"flow": [], "flow with noise": ["noise", "noise"], "posterior": ["xi", "noise", "xi", "noise", "xi"], "points": ["xi", "xi"]}


@pytest.mark.parametrize("name", ["digits", *GENERATORS])
def test_onnxruntime_makes_the_same_samples_at_any_batch_size(exported, name):
    root, generators = exported
    generator, runs = generators[name], session(root / name)
    levels = len(generator.sampler.get("sigmas", [0]))
    for num in (1, 4, 70):  # above 64 items diffusers' U-Net takes another branch
        rng = torch.Generator().manual_seed(num)
        inputs = {"latents": torch.randn(num, *generator.latent_shape, generator=rng).numpy()}
        labels = None
        if generator.num_classes is not None:
            labels = [(generator.num_classes - 1 - i) % generator.num_classes for i in range(num)]
            inputs["labels"] = np.array(labels, dtype=np.int64)
        drawn: dict[str, list] = {}
        for each in ORDER.get(name, ["noise"] * (levels - 1)):
            shape = generator.shape if each == "noise" else generator.denoiser.xi_shape
            drawn.setdefault(each, []).append(torch.randn(num, *shape, generator=rng).numpy())
        inputs |= {each: np.stack(noises) for each, noises in drawn.items()}
        assert {entry.name for entry in runs.get_inputs()} == set(inputs)
        (samples,) = runs.run(["samples"], inputs)
        expected = generator.sample(num, labels, seed=num)
        assert name == "digits" or num == 1 or expected.std() > 0.05
        torch.testing.assert_close(torch.from_numpy(samples), expected, rtol=0, atol=1e-4)


def test_a_graph_starts_from_the_noise_that_its_sampler_starts_from():
    """As of students at a diffusers teacher's own timesteps, whose first noise is larger than their first level."""
    shape, classes, network, _, _, denoiser = GENERATORS["foreign"]
    torch.manual_seed(0)
    sampler = {"name": "few_step", "sigmas": [2.0, 0.5], "start": 5**0.5}
    generator = Generator(shape, classes, 0.5, network, sampler, None, denoiser).eval()
    with torch.no_grad():
        found = SamplingGraph(generator).eval()(**drawn_inputs(generator, 3, 0))
    torch.testing.assert_close(found, generator.sample(3, seed=0), rtol=0, atol=1e-5)


def test_the_frequencies_of_a_time_embedding_are_those_of_torch(tmp_path):
    """Of 24 of them numpy, which the exporter folds constants with, makes 12 differ: a trained network of MNIST then missed 1e-4."""
    import onnx
    from onnx import numpy_helper

    torch.manual_seed(0)
    unet = {"name": "unet", "channels": [48], "groups": 8, "head_dim": 16}
    generator = Generator((1, 8, 8), None, 0.5, unet, {"name": "few_step", "sigmas": [80.0]}).eval()
    embedding = generator.denoiser.network.unet.time_proj
    for value in (0.0, 1.0, -37.3, 1095.5):
        timesteps = torch.tensor([value, value / 3])
        for module in (embedding, Sinusoids(30)):
            assert torch.equal(ConstantFrequencies.of(module)(timesteps), module(timesteps))
    export_onnx.write_onnx(generator, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    expected = ConstantFrequencies.of(embedding).frequencies
    constants = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    assert any(constant.size == 24 and np.array_equal(constant.ravel(), expected.numpy()) for constant in constants)
    assert generator.denoiser.network.unet.time_proj is embedding


@pytest.mark.parametrize("name", ["digits", "dit3", "latent"])
@pytest.mark.parametrize("wrong", ["classes", -1, 2**40, -(2**40)])
def test_a_label_that_is_no_class_draws_nothing(exported, name, wrong):
    """Neither the null class nor a class counted from the end: whoever runs the graph is told."""
    root, generators = exported
    generator = generators[name]
    wrong = generator.num_classes if wrong == "classes" else wrong
    inputs = {"latents": np.zeros((2, *generator.latent_shape), np.float32), "labels": np.array([0, wrong])}
    if (levels := len(generator.sampler.get("sigmas", [0]))) > 1:
        inputs["noise"] = np.zeros((levels - 1, 2, *generator.shape), np.float32)
    with pytest.raises(Exception, match=r"out of data bounds|out of range|out of bounds"):
        session(root / name).run(["samples"], inputs)


@pytest.mark.parametrize("name", ["digits", *GENERATORS])
def test_the_axis_of_the_items_is_called_batch(exported, name):
    root, _ = exported
    graph = session(root / name)
    for entry in (*graph.get_inputs(), *graph.get_outputs()):
        place = int(entry.name in ("noise", "xi"))
        assert entry.shape[place] == "batch"
        assert all(isinstance(size, int) for axis, size in enumerate(entry.shape) if axis != place)


def test_images_are_clamped_and_points_are_not(exported):
    root, _ = exported
    latents = 30 * np.random.default_rng(0).standard_normal((50, 5), dtype=np.float32)
    (images,) = session(root / "latent").run(None, {"latents": latents, "labels": np.zeros(50, dtype=np.int64)})
    assert np.abs(images).max() == 1
    latents = 300 * np.random.default_rng(0).standard_normal((50, 6), dtype=np.float32)
    (points,) = session(root / "coded").run(None, {"latents": latents})
    assert np.abs(points).max() > 1


def test_the_metadata_names_levels_and_classes_and_no_path_of_this_machine(exported):
    root, _ = exported
    found = session(root / "dit3").get_modelmeta().custom_metadata_map
    assert found["fewstep"] == __version__
    assert json.loads(found["sigmas"]) == student_sigmas(3, 5.0).tolist()
    assert json.loads(found["class_names"]) == ["a", "b", "c"]
    assert json.loads(session(root / "coded").get_modelmeta().custom_metadata_map["sigmas"]) == []
    content = (root / "dit3" / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    place = Path(inspect.getfile(DiT))
    for path in (place.name, place.parent, Path(fewstep.__file__).parent):
        assert str(path).encode() not in content
    assert sorted(path.name for path in (root / "dit3").iterdir()) == ["README.md", "model.onnx"]


@pytest.mark.parametrize("name", ["digits", "dit3", "coded", "flow with noise", "posterior"])
def test_the_code_on_the_card_runs(exported, name, monkeypatch):
    root, generators = exported
    monkeypatch.chdir(root / name)
    card = ModelCard.load(root / name / "README.md")
    assert card.data.library_name == "onnx"
    found: dict = {}
    exec(card.text.split("```python")[1].split("```")[0], found)  # noqa: S102
    assert found["samples"].shape == (4, *generators[name].shape)
    assert np.isfinite(found["samples"]).all()


def test_a_table_is_searched_as_torch_does(exported):
    # levels below, on, between and above the table's entries, through the denoiser that asks for a timestep
    from fewstep.denoisers import ForeignDenoiser

    root, generators = exported
    denoiser = generators["foreign"].denoiser
    assert isinstance(denoiser, ForeignDenoiser)

    class Timesteps(nn.Module):
        def forward(self, sigma):
            return denoiser.timestep(sigma)

    sigma = torch.cat([denoiser.sigmas[[0, 1, 7, 999]].float(), torch.tensor([1e-3, 0.5, 3.3, 1e4])])
    traced = torch.export.export(Timesteps(), (sigma,))
    table = {torch.ops.aten.searchsorted.Tensor: export_onnx._searchsorted}
    program = torch.onnx.export(traced, args=(sigma,), dynamo=True, verbose=False, custom_translation_table=table)
    program.save(root / "timesteps.onnx")
    import onnxruntime

    (got,) = onnxruntime.InferenceSession(root / "timesteps.onnx").run(None, {"sigma": sigma.numpy()})
    np.testing.assert_allclose(got, denoiser.timestep(sigma).numpy(), rtol=1e-6)
    np.testing.assert_allclose(got[[1, 2, 3, 4, 7]], [1, 7, 999, 0, 999], atol=1e-2)


def test_a_weight_that_changed_in_writing_fails_and_leaves_nothing(exported, monkeypatch, mistake, tmp_path):
    import onnx

    root, _ = exported
    write = export_onnx.write_onnx

    def damaged(generator, folder):
        write(generator, folder)
        model = onnx.load(folder / "model.onnx")
        weight = max(model.graph.initializer, key=lambda entry: np.prod(entry.dims))
        values = onnx.numpy_helper.to_array(weight).copy()
        weight.CopyFrom(onnx.numpy_helper.from_array(values + 0.01, weight.name))
        onnx.save(model, folder / "model.onnx")

    monkeypatch.setattr(export_onnx, "write_onnx", damaged)
    assert "differs" in mistake("export", root / "latent.model", "--format", "onnx", "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(exported, mistake, monkeypatch, tmp_path, package):
    root, _ = exported
    monkeypatch.setitem(sys.modules, package, None)
    said = mistake("export", root / "latent.model", "--format", "onnx", "--out", tmp_path / "out")
    assert f"needs the package {package}" in said
    assert 'pip install "fewstep[onnx]"' in said
    assert list(tmp_path.iterdir()) == []


def test_what_one_file_cannot_hold_is_refused(exported, monkeypatch, mistake, tmp_path):
    root, generators = exported
    size = sum(p.numel() for p in generators["latent"].parameters())
    monkeypatch.setattr(export_onnx, "MOST_BYTES", 4 * size)
    said = mistake("export", root / "latent.model", "--format", "onnx", "--out", tmp_path / "out")
    assert f"{size:,} parameters" in said
