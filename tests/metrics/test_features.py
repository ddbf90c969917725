import shutil

import pytest
import torch

import untrained
from fewstep.data import load_digits
from fewstep.metrics import features
from fewstep.metrics.features import DigitClassifier, PooledPixels, extract, feature_network, fitted, named_features, second_judge
from fewstep.metrics.inception import FeatureError

DIGITS = load_digits()


@torch.no_grad()
def test_shipped_classifier_knows_held_out_digits():
    network = DigitClassifier.load()
    answers = network.classify(extract(network, DIGITS.images("heldout"))).argmax(1)
    assert (answers == DIGITS.labels("heldout")).double().mean() >= 0.98


def test_shipped_classifier_is_frozen_and_the_same_each_time():
    first, second = DigitClassifier.load(), DigitClassifier.load()
    images = DIGITS.images("heldout")
    assert torch.equal(first(images), second(images))
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())


def test_features_are_what_the_last_layer_reads():
    network, images = DigitClassifier.load(), DIGITS.images("heldout")[:50]
    seen = []
    network.output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    features = network(images)
    network.classify(features)
    assert torch.equal(seen[0], features)
    assert torch.linalg.matrix_rank(features) > 20  # they tell images apart


def test_pooled_pixels_are_means_of_blocks():
    images = torch.rand(3, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    features = PooledPixels()(images).reshape(3, 2, 8, 8)
    for i in range(8):
        for j in range(8):
            torch.testing.assert_close(features[:, :, i, j], images[:, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean((2, 3)))


def test_extract_keeps_the_order_whatever_the_batch():
    network, images = PooledPixels(), torch.rand(7, 1, 8, 8)
    assert torch.equal(extract(network, images, 3), images.flatten(1))


def test_digits_have_a_network_of_their_own():
    assert feature_network("digits").name == "digits-v1"
    assert feature_network("photos").name == "pixels-8x8"


# --- the classifiers of the package ----------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose classifiers are untrained; gives the folder that they lie in."""
    shutil.copy(features.files("fewstep.metrics") / "digit_features.safetensors", tmp_path)
    monkeypatch.setattr(features, "files", lambda name: tmp_path)
    for name, shape in (("mnist", (1, 28)), ("mnist_second", (1, 28)), ("cifar10", (3, 32))):
        path = tmp_path / f"{name}_features.safetensors"
        untrained.write(path, channels=shape[0], size=shape[1], residual="second" not in name, seed=len(name))
    return tmp_path


def test_data_have_the_network_that_was_trained_on_them(package):
    for data, shape, name in (
        ("mnist", (1, 28, 28), "mnist"),
        ("cifar10", (3, 32, 32), "cifar10"),
        ("cifar10", (3, 16, 16), "cifar10 at 2x"),
        ("mnist", (1, 32, 32), "pixels-8x8"),  # something else, whatever it is called
        ("digits", (1, 8, 8), "digits-v1"),
        ("digits", (3, 8, 8), "pixels-8x8"),
        ("birds", (1, 28, 28), "pixels-8x8"),
    ):
        network = feature_network(data, shape, 10)
        assert network.name == name
        assert network(torch.zeros(2, *shape)).shape[0] == 2
    assert feature_network("mnist", (1, 28, 28), 26).name == "pixels-8x8"
    assert feature_network("mnist", (1, 28, 28)).name == "mnist"  # learned without classes
    assert (feature_network("mnist").name, feature_network("mnist").sha256) == ("mnist", named_features("mnist").sha256)


def test_the_second_judge_is_another_network_for_the_same_data(package):
    for name, other in (("mnist", "mnist-second"), ("mnist-second", "mnist")):
        found = second_judge(named_features(name), (1, 28, 28), 10)
        assert found.name == other
        assert found.sha256 != named_features(name).sha256
    assert second_judge(named_features("cifar10"), (3, 32, 32), 10) is None  # which is not there
    assert second_judge(DigitClassifier.load(), (1, 8, 8), 10) is None
    assert second_judge(PooledPixels(), (1, 28, 28), 10) is None


def test_what_does_not_fit_is_one_sentence(package, tmp_path):
    for shape, classes, says in (
        (
            (1, 32, 32),
            10,
            r"features mnist cannot be computed from images of shape \[1, 32, 32\], only from \[1, 28, 28\]",
        ),
        ((3, 28, 28), 10, r"of shape \[3, 28, 28\]"),
        ((1, 28, 28), 26, r"features mnist distinguish 10 classes, and the data has 26; give others"),
    ):
        with pytest.raises(FeatureError, match=says):
            fitted(named_features("mnist"), shape, classes)
    (package / "mnist_features.safetensors").unlink()
    with pytest.raises(FeatureError, match=r"has no mnist_features\.safetensors"):
        named_features("mnist")
    assert feature_network("mnist", (1, 28, 28), 10).name == "pixels-8x8"


def test_a_file_of_one_s_own_is_taken_by_its_path_and_its_classes_by_name(tmp_path):
    path, said = untrained.write(tmp_path / "mine.safetensors", classes=3), []
    network = fitted(named_features(str(path)), (1, 8, 8), 3, ("2", "1", "0"), said.append)
    assert (network.name, network.class_names, said) == ("mine", ("2", "1", "0"), [])
    fitted(network, (1, 8, 8), 3, ("a", "b", "c"), said.append)
    assert said == ["the features mine were trained on classes of other names, and are matched by number"]
