"""Feature networks in files: what is written comes back, and what is no such file is one sentence."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import untrained
from fewstep.files import sha256_of
from fewstep.metrics.classifiers import METADATA, ResidualClassifier, load_classifier, save_classifier
from fewstep.metrics.inception import FeatureError

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def metadata(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[METADATA])


@pytest.mark.parametrize("form", [{"residual": True}, {"residual": False}, {"pooled": True}, {"mirrored": True}])
@pytest.mark.parametrize(("channels", "size", "widths"), [(1, 8, (6, 8)), (3, 16, (5, 6, 7)), (1, 28, (4, 5, 6, 7))])
def test_a_network_comes_back_from_its_file_alone(channels, size, widths, form, tmp_path):
    made = untrained.network(channels, size, 4, widths, **form)
    save_classifier(made, tmp_path / "mine.safetensors", {"data": "x", "accuracy": 0.25, "command": "c"})
    found = load_classifier(tmp_path / "mine.safetensors")
    images = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(found(images), made(images), rtol=0.02, atol=0.02)  # half precision
    assert found(images).shape == (3, widths[-1])
    assert (found.name, found.sha256) == ("mine", sha256_of(tmp_path / "mine.safetensors"))
    assert (found.shape, found.num_classes, found.class_names) == ((channels, size, size), 4, ("0", "1", "2", "3"))
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    told = metadata(tmp_path / "mine.safetensors")
    assert (told["data"], told["accuracy"], told["classes"], told["command"]) == ("x", 0.25, ["0", "1", "2", "3"], "c")
    dtypes = {value.ndim > 1: value.dtype for value in load_file(tmp_path / "mine.safetensors").values()}
    assert dtypes == {True: torch.float16, False: torch.float32}


def test_features_are_the_last_activations_in_standard_units_and_classes_are_told_from_them():
    made = untrained.network()
    last = made.activations(IMAGES)
    torch.testing.assert_close(made(IMAGES), (last - made.mean) / made.std)
    torch.testing.assert_close(made.classify(made(IMAGES)), made.output(last))
    with pytest.raises(ValueError, match=r"the images are \[3, 8, 8\], and these features are for \[1, 8, 8\]"):
        made(torch.zeros(2, 3, 8, 8))


def test_mirrored_features_are_the_averages_over_both_sides():
    made = untrained.network(mirrored=True)
    torch.testing.assert_close(made(IMAGES), made(IMAGES.flip(3)))
    sides = (made.activations(IMAGES) + made.activations(IMAGES.flip(3))) / 2
    assert not torch.allclose(made.activations(IMAGES), sides, atol=1e-3)
    torch.testing.assert_close(made(IMAGES), (sides - made.mean) / made.std)
    torch.testing.assert_close(made.classify(made(IMAGES)), made.output(sides))


def test_whitened_patches_are_white():
    noise = torch.randn(50, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    images = 0.5 * noise[..., 1:] + 0.3 * noise[..., :-1] + 0.4 * noise[:, :1, :, 1:]  # neighbours and colours are alike
    made = untrained.network(3, 8, 4, (5, 6), pooled=True)
    made.whiten(images)
    out = made.stem(images)
    assert torch.equal(out[:, :12], -out[:, 12:])
    values = out[:, :12].transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(values), torch.eye(12), atol=0.02, rtol=0)  # less than 1 by what is added to the variances
    assert not made.stem.weight.requires_grad


def test_a_file_from_before_there_was_a_choice_of_forms_is_opened(tmp_path):
    made = untrained.network()
    del made.architecture["pooled"], made.architecture["mirrored"]
    save_classifier(made, tmp_path / "old.safetensors", {"data": "x"})
    torch.testing.assert_close(load_classifier(tmp_path / "old.safetensors")(IMAGES), made(IMAGES), rtol=0.02, atol=0.02)


def test_classes_get_the_numbers_that_the_data_has():
    made = untrained.network(classes=3)
    before = made.classify(made(IMAGES))
    assert made.number_as(("2", "0", "1"))
    torch.testing.assert_close(made.classify(made(IMAGES)), before[:, [2, 0, 1]])
    assert made.class_names == ("2", "0", "1")
    assert not made.number_as(("2", "0", "3"))
    assert not made.number_as(("2", "0", "0"))
    torch.testing.assert_close(made.classify(made(IMAGES)), before[:, [2, 0, 1]])


def test_images_of_half_the_size_are_enlarged():
    made = untrained.network(size=16)
    twice = torch.nn.functional.interpolate(IMAGES, scale_factor=2, mode="bilinear")
    expected = made(twice)
    made.take_half_size()
    torch.testing.assert_close(made(IMAGES), expected)
    assert (made.name, made.shape) == ("untrained at 2x", (1, 8, 8))


def changed(path, out, about=None, weights=None):
    """The file with another story in its metadata, or other weights."""
    told = json.dumps({**metadata(path), **(about or {})})
    save_file({**load_file(path), **(weights or {})}, out, {METADATA: told})
    return out


ARCHITECTURE = untrained.network().architecture


@pytest.mark.parametrize(
    ("about", "weights", "says"),
    [
        ({"architecture": {**ARCHITECTURE, "widths": [6, 9]}}, {}, "its metadata asks for"),
        ({"architecture": {**ARCHITECTURE, "widths": [6, 5000]}}, {}, "widths is [6, 5000], allowed are"),
        ({"architecture": {**ARCHITECTURE, "widths": [6]}}, {}, "widths is [6], allowed are"),
        ({"architecture": {**ARCHITECTURE, "widths": "many"}}, {}, "widths is many"),
        ({"architecture": {**ARCHITECTURE, "size": 7}}, {}, "size is 7, which is odd"),
        ({"architecture": {**ARCHITECTURE, "num_classes": 10**9}}, {}, "num_classes is 1000000000, allowed are 1 to"),
        ({"architecture": {**ARCHITECTURE, "channels": True}}, {}, "channels is True"),
        ({"architecture": {**ARCHITECTURE, "depth": 3}}, {}, "its metadata has the arguments"),
        ({"architecture": None}, {}, "is not a feature network"),
        ({"classes": ["a"]}, {}, "it names 1 classes of 10"),
        ({}, {"mean": torch.full((8,), torch.nan)}, "mean holds values that are not finite"),
        ({}, {"more": torch.zeros(3)}, "more has shape (3,), and its metadata asks for None"),
    ],
)
def test_what_is_no_such_network_is_one_sentence(about, weights, says, tmp_path):
    path = changed(untrained.write(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", about, weights)
    with pytest.raises(FeatureError) as error:
        load_classifier(path)
    assert says in str(error.value)
    assert "b.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_such_file_is_one_sentence(tmp_path):
    whole = untrained.write(tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, says in (
        ("cut", "is not a feature network"),
        ("text", "is not a feature network"),
        ("other", "does not describe a feature network"),
        ("none", "there is no file"),
    ):
        with pytest.raises(FeatureError, match=says) as error:
            load_classifier(tmp_path / f"{name}.safetensors")
        assert f"{name}.safetensors" in str(error.value)


def test_the_networks_of_the_package_and_their_seconds_are_less_than_3_mb():
    from fewstep.metrics import features

    least = {"mnist": 0.993, "mnist-second": 0.993, "cifar10": 0.9, "cifar10-second": 0.84}
    assert set(features.CLASSIFIERS) == set(least)
    files = {name: features.files("fewstep.metrics") / features._file(name) for name in least}
    assert sum(path.stat().st_size for path in files.values()) < 3e6
    for name, path in files.items():
        found = features.named_features(name)
        assert isinstance(found, ResidualClassifier)
        assert (found.name, found.num_classes) == (name, 10)
        assert metadata(path)["accuracy"] >= least[name]
