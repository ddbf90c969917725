import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.maths.schedules import karras_sigmas, level_sigmas, lognormal_sigmas

GOLDEN = Path(__file__).parents[1] / "golden"


def test_karras_grid_is_the_reference_s():
    reference = load_file(GOLDEN / "dmd2_edm.safetensors")["np64.karras_sigmas"]  # ascending there
    torch.testing.assert_close(karras_sigmas(1000).flip(0), reference, rtol=1e-12, atol=0)


def test_karras_grid_by_hand():
    # rho 2 from 1 to 9: roots 3, 2.5, 2, 1.5, 1
    expected = torch.tensor([9, 6.25, 4, 2.25, 1], dtype=torch.float64)
    torch.testing.assert_close(karras_sigmas(5, 1.0, 9.0, 2.0), expected, rtol=1e-14, atol=0)


def test_a_grid_of_one_level_is_the_largest():
    torch.testing.assert_close(karras_sigmas(1, 0.1, 7.0), torch.tensor([7.0], dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((0,), "num is 0"), ((3, 2.0, 1.0), "sigma_min 2.0"), ((3, 0.0, 1.0), "sigma_min 0.0"), ((3, -1.0), "sigma_min -1")],
)
def test_impossible_grids_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        karras_sigmas(*arguments)


def test_lognormal_moments():
    num, mean, std = 40_000, -0.4, 1.3
    logs = lognormal_sigmas(num, mean, std, torch.Generator().manual_seed(0)).double().log()
    # standard errors: std / sqrt(N) of the mean, std / sqrt(2 N) of the standard deviation; four of each
    assert abs(logs.mean().item() - mean) < 4 * std / math.sqrt(num)
    assert abs(logs.std().item() - std) < 4 * std / math.sqrt(2 * num)


def test_levels_are_uniform_between_first_and_last_inclusive():
    num, grid = 40_000, torch.arange(10, dtype=torch.float64) * 0.5
    drawn = level_sigmas(grid, num, 2, 5, torch.Generator().manual_seed(0))
    counts = torch.stack([(drawn == level).sum() for level in grid]).tolist()
    tolerance = 4 * math.sqrt(num * 0.25 * 0.75)  # four standard deviations of a binomial count
    assert counts[:2] == [0, 0]
    assert counts[6:] == [0, 0, 0, 0]
    assert all(abs(count - num / 4) < tolerance for count in counts[2:6])


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (0, 10), (4, 3)])
def test_levels_outside_the_grid_are_refused(first, last):
    with pytest.raises(ValueError, match=f"levels {first} to {last} .* grid of 10"):
        level_sigmas(torch.arange(10.0), 5, first, last)


def test_only_the_generator_is_drawn_from():
    before = torch.get_rng_state()
    first, second = (
        [lognormal_sigmas(5, generator=rng), level_sigmas(karras_sigmas(9), 5, 0, 8, rng)]
        for rng in (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
