"""Named densities, and data sets of them."""

import pytest
import torch

from fewstep.data.errors import DataError
from fewstep.data.powers import Power
from fewstep.data.toys import DENSITIES, make_density, toy_data
from tabulated import OVERLAP, seeded


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all():
    with pytest.raises(DataError, match=r"no density 'moon'; did you mean 'moons'\? allowed are ring, grid25, .*, pinwheel$"):
        make_density("moon")
    with pytest.raises(DataError, match="did you mean"):
        make_density("")


@pytest.mark.parametrize("name", DENSITIES)
def test_a_data_set_of_a_density(name):
    data = toy_data(name, 100)
    assert (data.name, data.density.name, data.shape) == (name, name, (data.density.dim,))
    assert (data.num_classes, data.class_names, data.labels("train"), data.labels("heldout")) == (None, (), None, None)
    assert (data.images("train").shape, data.images("heldout").shape) == ((100, *data.shape), (10_000, *data.shape))
    assert data.train.dtype == data.heldout.dtype == torch.float32
    assert data.density.log_prob(data.heldout).isfinite().all()


def test_a_batch_is_the_points_asked_for():
    data, index = toy_data("ring", 50), torch.tensor([49, 0, 49])
    x, label = data.batch(index, seeded(), torch.device("cpu"))
    assert torch.equal(x, data.images("train")[[49, 0, 49]])
    assert label is None


def test_a_seed_fixes_both_splits_which_share_nothing():
    data = toy_data("moons")
    assert (len(data.train), len(data.heldout)) == (20_000, 10_000)
    assert torch.equal(toy_data("moons").train, data.train)
    assert torch.equal(toy_data("moons", 10).heldout, data.heldout)
    assert not torch.equal(toy_data("moons", seed=1).train, data.train)
    assert not torch.equal(toy_data("moons", seed=1).heldout, data.heldout)
    assert not torch.equal(toy_data("moons", 10_000).train, data.heldout)  # of one size: the same stream would give the same points
    assert not torch.equal(make_density("moons").sample(20_000, seeded(0)), data.train)  # nor anything with a loop seeded with 0
    assert len(toy_data("moons", 10, seed=-1).train) == 10


def test_a_data_set_of_a_density_of_one_s_own():
    data = toy_data(OVERLAP.power(2), 10)
    assert (data.name, data.density.gamma, isinstance(data.density, Power)) == ("overlap^2", 2.0, True)


def test_a_size_that_is_too_small_is_refused():
    with pytest.raises(DataError, match=r"data\.size is 1; at least 2 points are needed"):
        toy_data("ring", 1)
