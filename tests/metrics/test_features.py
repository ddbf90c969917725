import torch

from fewstep.data import load_digits
from fewstep.metrics.features import DigitClassifier, PooledPixels, extract, feature_network

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
