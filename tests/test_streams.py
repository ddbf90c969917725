import math

import numpy as np
import pytest
import torch

from fewstep.denoisers import MixtureDenoiser, MixturePosterior
from fewstep.errors import UserError
from fewstep.maths.schedules import uniform_times
from fewstep.samplers import distributional, few_step
from fewstep.streams import Noise, seeded, stream, stream_seed

LIKE = torch.empty((), dtype=torch.float64)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_stream_is_a_function_of_the_seed_the_purpose_and_the_numbers():
    assert stream_seed(3, "pictures", 4) == stream_seed(3, "pictures", 4)
    ways = [(3, "pictures"), (4, "pictures"), (3, "samples"), (3, "pictures", 4), (3, "pictures", 5), (3, "pictures", 4, 5)]
    ways += [(34, "pictures"), (3, "pictures4"), (3, "pictures", 45)]  # what would run together without a mark between them
    seeds = [stream_seed(*way) for way in ways]
    assert len(set(seeds)) == len(ways)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**40  # all 64 bits are used
    assert torch.equal(torch.randn(5, generator=stream(3, "pictures", 4)), torch.randn(5, generator=stream(3, "pictures", 4)))
    numbers = [torch.randn(1000, generator=stream(*way)) for way in ways]
    correlations = torch.corrcoef(torch.stack(numbers)).tril(-1)
    assert correlations.abs().max() < 5 / math.sqrt(1000)  # five standard deviations: there are 36 pairs


def test_noise_of_one_generator_is_what_it_draws_in_turn():
    noise, rng = Noise(torch.Generator().manual_seed(5)), torch.Generator().manual_seed(5)
    for shape in ((3, 2), (7, 1, 4, 4)):
        found = noise(shape, LIKE)
        assert found.dtype == torch.float64
        assert torch.equal(found, torch.randn(shape, generator=rng).double())  # drawn as float32, like training's


def test_an_item_s_noise_depends_on_its_own_generator_alone():
    """In which batch it is, at which place, and what the others ask for are no matter."""
    seeds = [11, 5, 8, 5]
    whole = Noise(generators(*seeds))
    first, second = whole((4, 3), LIKE), whole((4, 2, 2), LIKE)
    assert (first.shape, second.shape, first.dtype) == ((4, 3), (4, 2, 2), torch.float64)
    assert torch.equal(first[1], first[3])  # of the same seed
    assert len({tuple(row) for row in first.tolist()}) == 3
    for place, seed in enumerate(seeds):
        alone = Noise(generators(seed))
        assert torch.equal(alone((1, 3), LIKE)[0], first[place])
        assert torch.equal(alone((1, 2, 2), LIKE)[0], second[place])
    halves = [Noise(generators(*seeds[:1])), Noise(generators(*seeds[1:]))]
    assert torch.equal(torch.cat([half((n, 3), LIKE) for half, n in zip(halves, (1, 3), strict=True)]), first)


def test_noise_of_each_item_is_standard_normal_and_no_other_s():
    num = 4000
    rows = Noise(generators(*range(num)))((num, 8), LIKE)
    assert abs(rows.mean().item()) < 4 / math.sqrt(rows.numel())
    assert abs(rows.var().item() - 1) < 4 * math.sqrt(2 / rows.numel())
    assert (torch.corrcoef(rows.T).tril(-1).abs().max() < 5 / math.sqrt(num)).item()
    neighbours = torch.corrcoef(torch.stack([rows[:-1, 0], rows[1:, 0]]))[0, 1]
    assert abs(neighbours.item()) < 4 / math.sqrt(num)  # seeds that follow each other


@pytest.mark.parametrize("sampler", ["few_step", "distributional"])
def test_samples_of_a_seed_each_are_the_same_in_any_batch(sampler):
    means, seeds = torch.tensor([[-2.0, 0.0], [2.0, 1.0]], dtype=torch.float64), [3, 1, 4, 1, 5]

    def draw(*seeds):
        noise = Noise(generators(*seeds))
        latents = noise((len(seeds), 2), LIKE)
        if sampler == "few_step":
            return few_step(MixtureDenoiser(means, 0.3), latents, torch.tensor([80.0, 5.0, 0.5]), noise=noise)
        return distributional(MixturePosterior(means, 0.3), latents, uniform_times(3), noise=noise)

    whole = draw(*seeds)
    assert torch.equal(torch.cat([draw(seed) for seed in seeds]), whole)
    assert torch.equal(torch.cat([draw(*seeds[:2]), draw(*seeds[2:])]), whole)
    assert torch.equal(whole[1], whole[3])
    assert not torch.equal(whole[0], whole[1])


def test_noise_without_a_generator_is_new_each_time_and_not_the_process_s():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert not torch.equal(Noise()((2, 3), LIKE), Noise()((2, 3), LIKE))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_become_one_generator_or_one_for_each_sample():
    assert seeded(4, 3).initial_seed() == 4
    assert [one.initial_seed() for one in seeded([7, 2**64 - 1, 0], 3)] == [7, 2**64 - 1, 0]
    assert seeded(None, 3).initial_seed() != seeded(None, 3).initial_seed()
    for seed, says in (
        ([1, 2], "there are 2 seeds for 3 samples; give one seed, or one for each sample"),
        (2**64, r"seed is 18446744073709551616; allowed are whole numbers of at most 64 bits"),
        ([1, 2.5, 3], r"seed is 2.5; allowed are whole numbers"),
    ):
        with pytest.raises(UserError, match=says):
            seeded(seed, 3)


def test_whole_numbers_of_numpy_and_torch_are_seeds():
    def drawn(seed, num=2):
        return Noise(seeded(seed, num))((num, 3), torch.zeros(()))

    for one in (np.int64(7), np.uint8(7), torch.tensor(7)):
        assert torch.equal(drawn(one), drawn(7))
    for several in (np.array([7, 8]), torch.tensor([7, 8]), [np.int64(7), torch.tensor(8)], range(7, 9), (7, 8)):
        assert torch.equal(drawn(several), drawn([7, 8]))


@pytest.mark.parametrize("seed", [True, 1.0, "7", [7, False], [7, 8.0], torch.tensor([7.0, 8.0]), np.array([0.5, 1]), 2**64, {"a": 1}])
def test_what_is_no_seed_is_named(seed):
    with pytest.raises(UserError, match="allowed are whole numbers of at most 64 bits"):
        seeded(seed, 2)
