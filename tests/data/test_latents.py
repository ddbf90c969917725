"""Images encoded by a VAE once: what a folder of latents holds, what is trained on it, and what is said where it will not do."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.build import load_data
from fewstep.data.latents import MANIFEST
from fewstep.errors import UserError
from fewstep.generator import load
from fewstep.interop.latent_folder import encode_images
from fewstep.pipelines.vae import VAE
from fewstep.recipe import load_recipe
from text_models import make

SMALL = {"network.channels": [8, 16], "network.groups": 4, "network.head_dim": 8, "trainer.log_every": 1, "trainer.sample_every": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make(folder, "sd")
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three hundred of one class and twenty of another, of 20 x 18 pixels."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, num in (("dark", 300), ("light", 20)):
        (folder / name).mkdir()
        for number in range(num):
            pixels = rng.integers(0, 256, (18, 20, 3), dtype=np.uint8) // (3 if name == "dark" else 1)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def folder(model, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "out"
    encode_images(images, model, out, 16)
    return out


def settings(folder, *more):
    return load_recipe("teacher/latents", [f"data.path={folder}", *more])


def test_a_folder_holds_latents_pixels_and_labels(model, images, folder):
    data = load_data(settings(folder).data)
    pixels = load_data(load_recipe("teacher/images", [f"data.path={images}", "data.size=16"]).data)
    assert data.shape == (4, 8, 8)
    assert (data.class_names, data.num_classes) == (("dark", "light"), 2)
    assert torch.equal(data.train_label, pixels.train_label)
    vae = VAE(model)
    expected = vae.encoded(pixels.images("heldout"))
    torch.testing.assert_close(data.images("heldout"), expected, rtol=2e-3, atol=1e-3)
    some = data.excerpt()
    assert torch.equal(some.heldout, pixels.heldout)
    assert torch.equal(some.train, pixels.train)
    assert torch.equal(some.train_label, pixels.train_label)
    # by the VAE's own scale, as its pipeline has it
    with torch.no_grad():
        mean = vae.vae.encode(pixels.images("heldout")[:2]).latent_dist.mean
    torch.testing.assert_close(expected[:2], 0.18215 * mean)


def test_it_goes_on_where_it_was_stopped(model, images, folder, tmp_path, monkeypatch):
    out, encoded, calls = tmp_path / "out", VAE.encoded, []

    def stopped(vae, pixels):
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encoded(vae, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "encoded", stopped)
        with pytest.raises(KeyboardInterrupt):
            encode_images(images, model, out, 16)
    with pytest.raises(UserError, match="is no folder of latents"):
        load_data(settings(out).data)
    with monkeypatch.context() as patch:
        patch.setattr(VAE, "encoded", lambda vae, pixels: (calls.append(len(pixels)), encoded(vae, pixels))[1])
        encode_images(images, model, out, 16)
    assert calls[:2] == [256, 32]  # the second of which was not done
    assert calls[2:] == [32, 32]  # and the held-out ones
    for file in folder.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="holds other images, or those of another VAE"):
        encode_images(images, model, out, 8)


def test_a_teacher_and_a_student_of_latents(folder, images, tmp_path, done, mistake):
    done("train", "teacher/latents", *overrides(folder), "--out", tmp_path / "teacher")
    teacher = load(tmp_path / "teacher")
    assert teacher.latents is not None
    samples = teacher.sample(3, [0, 1, 0], seed=0, steps=2)
    assert samples.abs().max() > 1.1  # not cut off
    assert teacher.pixels(samples).shape == (3, 3, 16, 16)
    assert teacher.to_pil(samples)[0].size == (16, 16)
    student = ("method.sampler_steps=1", "batch_size=8", "steps=4", "trainer.accelerator=cpu", "trainer.log_every=1")
    mine = (f"data={{name: latents, path: {folder}}}", "network.sigma_data=1.0", f"method.teacher={tmp_path / 'teacher'}")
    done("train", "dmd2/digits", *student, *mine, "--out", tmp_path / "student")
    done("evaluate", tmp_path / "student", "-n", "60", "--no-teacher")
    results = json.loads((tmp_path / "student" / "results.json").read_text())
    assert results["reference"] == "32 held-out images"
    assert results["features"] == "pixels-8x8"
    lines = (tmp_path / "student" / "metrics.jsonl").read_text()
    assert "health.saturation" not in lines
    done("sample", tmp_path / "student", "-n", "4", "--out", tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width > 4 * 40
    told = mistake("train", "dmd2/digits", f"method.teacher={tmp_path / 'teacher'}", "--out", tmp_path / "b")
    assert "it makes latents, and the data digits has no latents" in told
    for form in ("onnx", "diffusers"):
        assert "makes latents" in mistake("export", tmp_path / "student", "--format", form, "--out", tmp_path / "c")


def overrides(folder):
    """Of a tiny teacher."""
    small = [f"{key}={value}" for key, value in SMALL.items()]
    return [f"data.path={folder}", "steps=4", "batch_size=8", "trainer.accelerator=cpu", "method.optimizer.warmup=0", *small]


def test_what_will_not_do(model, images, folder, tmp_path, mistake):
    assert "--size is 17; the VAE" in mistake("encode", images, "--images", "--model", model, "--size", "17", "--out", tmp_path / "a")
    said = mistake("encode", images, "--images", "--model", tmp_path / "none", "--size", "16", "--out", tmp_path / "a")
    assert f"the vae of the pipeline {tmp_path / 'none'} is needed, which is no folder, and no Hub id (owner/name); give one" in said
    assert "there is no vae in" in mistake("encode", images, "--images", "--model", tmp_path, "--size", "16", "--out", tmp_path / "a")
    assert "--column is for prompts" in mistake("encode", images, "--images", "--column", "x", "--model", model, "--out", tmp_path / "a")
    assert "--label-column is for images" in mistake("encode", images, "--label-column", "x", "--model", model, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    manifest = folder / MANIFEST
    text = manifest.read_text()
    try:
        manifest.write_text(text.replace('"train": 288', '"train": 289'))
        with pytest.raises(UserError, match=r"train-00001.safetensors does not hold the 33 items that latents.json names"):
            load_data(settings(folder).data)
        manifest.write_text(text[:50])
        with pytest.raises(UserError, match=r"latents\.json cannot be read"):
            load_data(settings(folder).data)
    finally:
        manifest.write_text(text)


def test_the_command_line(model, images, tmp_path, done):
    said = done("encode", images, "--images", "--model", model, "--size", "16", "--label-column", "none", "--out", tmp_path / "out").out
    assert "images: 288 to train on, 32 held out, no classes" in said
    assert "latents of 4x8x8" in said
    data = load_data(settings(tmp_path / "out").data)
    assert data.num_classes is None
    assert data.train_label is None
