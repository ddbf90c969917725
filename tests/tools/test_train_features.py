"""The tool that trains feature networks, on a handful of images."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fewstep.data import ImageData, image_folder, load_digits
from fewstep.metrics.classifiers import METADATA, load_classifier

TOOL = Path(__file__).parents[2] / "tools" / "train_features.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("train_features", TOOL)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "train_features", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Images that are dark or light, 60 of each."""
    folder, rng = tmp_path_factory.mktemp("shades") / "shades", np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for i in range(60):
            Image.fromarray(rng.integers(120 * k, 120 * k + 100, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("second", [True, False])
def test_a_folder_of_images_becomes_a_file_of_features(second, tool, shades, tmp_path, capsys, monkeypatch):
    plan = tool.Plan((6, 8), 60 if second else 50, residual=not second, pooled=not second, grainy=0 if second else 10)
    monkeypatch.setitem(tool.PLANS, tool.OTHER if second else tool.FIRST, plan)
    out = tmp_path / "shades.safetensors"
    state = torch.get_rng_state()
    options = [str(shades), "--size", "16", "--out", str(out), *["--second"] * second]
    assert tool.main(options) == 0
    assert torch.equal(torch.get_rng_state(), state)
    printed = capsys.readouterr().out
    assert f"wrote {out}" in printed
    network, data = load_classifier(out), image_folder(str(shades), 16)
    assert (network.class_names, network.shape, network.architecture["residual"]) == (("dark", "light"), (3, 16, 16), not second)
    with torch.no_grad():
        features = network(data.images("train"))
        hits = network.classify(network(data.images("heldout"))).argmax(1) == data.heldout_label
    torch.testing.assert_close(features.mean(0), torch.zeros(8), atol=1e-3, rtol=0)
    varied = features.std(0) > 0.5
    torch.testing.assert_close(features.std(0)[varied], torch.ones(int(varied.sum())), atol=1e-2, rtol=0)
    with safe_open(out, "pt") as file:
        told = json.loads(file.metadata()[METADATA])
    assert told["accuracy"] == hits.double().mean() > 0.9
    assert told["command"].startswith("python tools/train_features.py ")
    assert f"--size 16 --out {out.name}" in told["command"]  # and not where it lies here
    assert (told["data"], told["epochs"], told["train"] + told["heldout"]) == ("shades", 60, 120)
    again = tmp_path / "again.safetensors"
    assert tool.main([*options, "--out", str(again)]) == 0
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), load_classifier(again).state_dict().values(), strict=True))


def test_weights_that_were_trained_elsewhere_become_the_same_file(tool, shades, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tool.PLANS, tool.FIRST, tool.Plan((6, 8), 1))
    network = tool.trained(image_folder(str(shades), 16), tool.PLANS[tool.FIRST])
    torch.save(network.state_dict(), tmp_path / "state.pt")
    common = [str(shades), "--size", "16"]
    assert tool.main([*common, "--out", str(tmp_path / "a.safetensors")]) == 0
    assert tool.main([*common, "--out", str(tmp_path / "b.safetensors"), "--weights", str(tmp_path / "state.pt")]) == 0
    a, b = (load_classifier(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    monkeypatch.setitem(tool.PLANS, tool.FIRST, tool.Plan((6, 9), 1))
    capsys.readouterr()
    options = ["--out", str(tmp_path / "c.safetensors"), "--weights", str(tmp_path / "state.pt")]
    assert tool.main([*common, *options]) == 2
    assert "which is no state of this network" in capsys.readouterr().err
    assert not (tmp_path / "c.safetensors").exists()


def test_what_will_not_do_is_one_sentence(tool, shades, tmp_path, capsys):
    for options, says in (
        ([str(tmp_path / "none")], "is not a folder"),
        ([str(shades / "dark")], "has 0 classes; a classifier needs images of two at least"),
        ([str(shades), "--size", "15"], "--size is 15; give an even number from 8"),
        ([str(shades), "--epochs", "-1"], "--epochs is -1.0; give a positive number"),
        ([str(shades), "--data", "x"], "--data is x, which is for mnist and cifar10"),
        ([str(shades), "--out", str(tmp_path / "no" / "a.safetensors")], "there is no folder"),
        (["mnist", "--data", str(tmp_path)], "which holds no MNIST; fetch"),
        (["digits", "--second"], "the digits have one network"),
    ):
        assert tool.main([*options, *([] if "--out" in options else ["--out", str(tmp_path / "a.safetensors")])]) == 2, options
        err = capsys.readouterr().err
        assert says in err
        assert err.count("error: ") == 1
    assert not (tmp_path / "a.safetensors").exists()


def test_images_are_faded_each_by_its_own_and_stay_in_range(tool):
    x = torch.cat([torch.full((500, 1, 2, 2), -1.0), torch.full((500, 1, 2, 2), 1.0)], 3)
    faded = tool.faded(x, torch.Generator().manual_seed(0))
    dark, bright = faded[:, 0, 0, 0], faded[:, 0, 0, -1]
    share = (bright - dark) / 2
    assert faded.abs().max() <= 1
    assert torch.equal(faded[..., :2], dark[:, None, None, None].expand(-1, 1, 2, 2))
    assert 1 - tool.FADED <= share.min() < 1 - 0.95 * tool.FADED
    assert 1 - 0.05 * tool.FADED < share.max() <= 1
    middle = (dark + bright) / 2 / (1 - share).clamp_min(1e-6)  # -1 where the darkest stays, 1 where the brightest does
    assert middle.min() < -0.95
    assert middle.max() > 0.95
    assert middle.mean().abs() < 0.1


def test_the_first_half_of_a_batch_gets_noise_each_image_of_its_own_strength(tool):
    x = torch.zeros(801, 1, 20, 20)
    grained = tool.grained(x, torch.Generator().manual_seed(0))
    strength = grained.flatten(1).std(1)
    assert torch.equal(grained[400:], x[400:])
    assert strength[:400].max() < 1.1 * tool.GRAIN
    assert 0.4 * tool.GRAIN < strength[:400].median() < 0.6 * tool.GRAIN
    assert grained.mean().abs() < 1e-3


def test_noise_comes_in_the_passes_after_the_others_alone_and_the_rate_falls_again(tool, monkeypatch):
    images = torch.randint(256, (tool.BATCH * 2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(images)) % 2
    data = ImageData("two", images, images[:2], labels, labels[:2], 127.5, ("a", "b"))
    told, rates = [], []
    shifted, grained, step = tool.shifted, tool.grained, torch.optim.SGD.step
    monkeypatch.setattr(tool, "shifted", lambda *given: told.append("step") or shifted(*given))
    monkeypatch.setattr(tool, "grained", lambda *given: told.append("noise") or grained(*given))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    tool.trained(data, tool.Plan((8, 8), 3, residual=False, faded=False, grainy=2))
    assert told == ["step"] * 6 + ["step", "noise"] * 4
    assert rates[:6] == pytest.approx([tool.PEAK * share for share in (0, 5 / 6, 5 / 6, 5 / 8, 5 / 12, 5 / 24)])
    assert rates[6:] == pytest.approx([tool.FINAL_PEAK * share for share in (1, 0.75, 0.5, 0.25)])


def test_each_image_is_mirrored_in_every_other_pass(tool, monkeypatch):
    """Marked at one side, every image is seen with the mark there in one pass and on the other side in the next."""
    seen = []
    images = torch.zeros(tool.BATCH * 2, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(images)) % 255 + 1
    labels = torch.arange(len(images)) % 2
    data = ImageData("marked", images, images[:2], labels, labels[:2], 127.5, ("a", "b"), flip=True)
    monkeypatch.setattr(tool, "shifted", lambda x, rng: x.clone())
    forward = tool.ResidualClassifier.activations

    def looking(network, x):
        seen.extend(x[:, 0, 0, 0] > -1)
        return forward(network, x)

    monkeypatch.setattr(tool.ResidualClassifier, "activations", looking)
    order = []
    permuted = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *given, **more: order.append(permuted(*given, **more)) or order[-1])
    tool.trained(data, tool.Plan((8, 8), 4, residual=False, faded=False))
    passes = [torch.empty(len(images), dtype=torch.bool) for _ in range(4)]
    places = [each for each in order if len(each) == len(images)]
    for number, place in enumerate(places[-4:]):
        passes[number][place] = torch.tensor(seen[number * len(images) : (number + 1) * len(images)])
    assert torch.equal(passes[0], passes[2])
    assert torch.equal(passes[1], passes[3])
    assert torch.equal(passes[0], ~passes[1])
    assert 0.3 < passes[0].float().mean() < 0.7


def test_images_are_shifted_each_by_its_own_and_their_edge_is_mirrored(tool):
    x = torch.arange(8 * 64.0).reshape(8, 1, 8, 8)
    moved = tool.shifted(x, torch.Generator().manual_seed(0), 2)
    padded = torch.nn.functional.pad(x, (2,) * 4, mode="reflect")
    places = {
        next((i, j) for i in range(5) for j in range(5) if torch.equal(moved[k], padded[k, :, i : i + 8, j : j + 8])) for k in range(8)
    }
    assert len(places) > 3


def test_the_digits_are_trained_as_ever(tool):
    """The first update by hand: what is drawn, in which order, and how it is stepped."""
    data = load_digits()
    images, labels = data.images("train")[:100], data.labels("train")[:100]
    network = tool.train_classifier(images, labels, epochs=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = tool.DigitClassifier()
        optimizer = torch.optim.AdamW(other.parameters(), 2e-3, weight_decay=0.01)
        index = torch.randperm(100)
        logits = other.classify(torch.nn.functional.dropout(other(images[index]), 0.2))
        torch.nn.functional.cross_entropy(logits, labels[index], label_smoothing=0.05).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))
