"""Which classes samples are asked for: as often as the data has them."""

import pytest
import torch

from fewstep.data import ImageData
from fewstep.measurement import Watch, labels_for, measure, protocol_record, suite_for, watched_elsewhere
from fewstep.metrics.asking import AS_IN_DATA, BALANCED, UNIFORM, asked_labels, how_asked, rarest_share

EVEN = torch.arange(1000) % 10
UNEVEN = torch.repeat_interleave(torch.arange(4), torch.tensor([600, 250, 149, 1]))


class Bright:
    """Draws images of one grey for each class, and keeps which classes it was asked for."""

    shape, num_classes, class_names, sampler, default_steps = (1, 8, 8), 2, ("dark", "bright"), {"name": "one"}, staticmethod(lambda: 1)
    guidance_scale, told, latents = 1.0, None, None

    def __init__(self):
        self.asked = []

    def evaluations(self, steps, sampler):
        return 1

    def sample(self, num, label=None, seed=0, steps=None, sampler=None):
        label = torch.zeros(num, dtype=torch.int64) if label is None else label
        self.asked.append(label)
        noise = torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(int(label.sum())))
        return (label.float()[:, None, None, None] - 0.5) + 0.1 * noise


def shades(dark, bright):
    rng = torch.Generator().manual_seed(3)
    label = torch.cat([torch.zeros(dark), torch.ones(bright)]).long()[torch.randperm(dark + bright, generator=rng)]
    pixels = (((label.float()[:, None, None, None] - 0.5) + 0.1 * torch.randn(len(label), 1, 8, 8, generator=rng) + 1) * 127.5).byte()
    return ImageData("shades", pixels[::2], pixels[1::2], label[::2], label[1::2], 127.5, ("dark", "bright"))


def test_classes_in_turn_where_they_are_about_as_frequent():
    assert how_asked(None) == how_asked(torch.empty(0, dtype=torch.int64)) == how_asked(EVEN) == BALANCED
    assert how_asked(EVEN[:-60]) == BALANCED
    assert how_asked(torch.cat([EVEN, torch.full((12,), 3)])) == AS_IN_DATA
    assert torch.equal(asked_labels(25, 10, 0, BALANCED), torch.arange(25) % 10)


def test_classes_at_random():
    label = asked_labels(10_000, 10, 3, UNIFORM)
    assert torch.equal(label, asked_labels(10_000, 10, 3, UNIFORM))
    assert not torch.equal(label, asked_labels(10_000, 10, 4, UNIFORM))
    assert (label.bincount(minlength=10) - 1000).abs().max() < 5 * 900**0.5


@pytest.mark.parametrize("num", [8, 100, 1000, 2500])
def test_classes_as_often_as_in_the_data_and_two_at_least(num):
    label = asked_labels(num, 4, 0, AS_IN_DATA, UNEVEN)
    assert len(label) == num
    assert torch.equal(label, asked_labels(num, 4, 0, AS_IN_DATA, UNEVEN))
    assert not torch.equal(label, asked_labels(num, 4, 1, AS_IN_DATA, UNEVEN))
    counts, shares = label.bincount(minlength=4), UNEVEN.bincount() / len(UNEVEN)
    assert counts.min() >= 2
    if num > 8:
        assert (counts - num * shares).abs().max() <= 4 * (num * 0.25) ** 0.5 * (num % 1000 > 0) + 2
    assert torch.equal(UNEVEN.bincount(), torch.tensor([600, 250, 149, 1]))  # what was given is as it was


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(ValueError, match="without real labels"):
        asked_labels(10, 4, 0, AS_IN_DATA)
    with pytest.raises(ValueError, match="'sorted' from real labels"):
        asked_labels(10, 4, 0, "sorted", UNEVEN)


def test_figures_of_the_rarest_class_need_enough_of_it():
    assert rarest_share(EVEN) == 0.1
    assert rarest_share(UNEVEN) == 0.001
    lacks = suite_for(shades(1000, 1000), num=200).lacks(200)
    assert "least_class_std" not in lacks
    assert "least_class_std" in suite_for(shades(1960, 40), num=200).lacks(200)


def test_a_perfect_generator_lies_at_the_floor_of_data_with_unequal_classes():
    """Asked for both classes alike, it would lie far above: the data is three quarters dark."""
    data, generator = shades(1500, 500), Bright()
    suite = suite_for(data, num=500)
    found = measure(suite, generator, 500, 0, speed=False)
    asked = torch.cat(generator.asked)
    assert torch.equal(asked, labels_for(generator, 500, 0, data.train_label))
    assert 0.2 < asked.double().mean() < 0.3
    alike = measure(suite, generator, 500, 0, speed=False, labels=BALANCED)
    assert found["frechet"] < 0.2 * alike["frechet"]
    assert protocol_record(suite, 500, True, (0,))["labels"] == AS_IN_DATA
    assert protocol_record(suite, 500, False, (0,))["labels"] == "none"
    assert protocol_record(suite_for(shades(500, 500), num=500), 500, True, (0,))["labels"] == BALANCED


def test_all_processes_of_a_run_ask_for_the_same():
    data, first, other = shades(1500, 500), Bright(), Bright()
    Watch(data, 500)(first)

    class Second:
        rank, world = 1, 2

        def share(self, work):
            for one in work:
                one()

    watched_elsewhere(500, data.train_label)(other, Second())
    assert torch.equal(torch.cat(first.asked), torch.cat(other.asked))
