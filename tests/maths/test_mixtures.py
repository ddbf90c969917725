import math

import pytest
import torch

from fewstep.maths.mixtures import checked_mixture


@pytest.mark.parametrize(
    ("means", "stds", "weights", "said"),
    [
        ([1.0, 2.0], 1.0, None, r"means have shape \(2,\); give \[K, D\], one row a mode"),
        (torch.zeros(2, 3, 4), 1.0, None, r"means have shape \(2, 3, 4\)"),
        (torch.zeros(0, 2), 1.0, None, r"means have shape \(0, 2\)"),
        (torch.zeros(2, 0), 1.0, None, r"means have shape \(2, 0\)"),
        ([[1.0], [2.0]], [1.0, 1.0, 1.0], None, r"stds have shape \(3,\) for 2 means; give one number a mode, or one for all"),
        ([[1.0], [2.0]], [[1.0, 1.0]], None, r"stds have shape \(1, 2\) for 2 means"),
        ([[1.0], [2.0]], 1.0, [1.0], r"weights have shape \(1,\) for 2 means; give one weight a mode"),
        ([[1.0], [2.0]], 1.0, 1.0, r"weights have shape \(\) for 2 means; give one weight a mode"),
        ([[1.0], [2.0]], 0.0, None, r"stds are \[0.0, 0.0\]; all must be positive and finite"),
        ([[1.0], [2.0]], [1.0, -1.0], None, r"stds are \[1.0, -1.0\]; all must be positive and finite"),
        ([[1.0], [2.0]], [1.0, math.nan], None, r"stds are \[1.0, nan\]; all must be positive and finite"),
        ([[1.0], [2.0]], math.inf, None, r"stds are \[inf, inf\]; all must be positive and finite"),
        ([[1.0], [2.0]], 1.0, [1.0, 0.0], r"weights are \[1.0, 0.0\]; all must be positive and finite"),
        ([[1.0], [2.0]], 1.0, [1.0, math.inf], r"weights are \[1.0, inf\]; all must be positive and finite"),
        ([[1.0], [math.nan]], 1.0, None, r"means are \[\[1.0\], \[nan\]\]; all must be finite"),
        ([[1.0], [-math.inf]], 1.0, None, r"means are \[\[1.0\], \[-inf\]\]; all must be finite"),
    ],
)
def test_what_is_no_mixture_is_refused(means, stds, weights, said):
    with pytest.raises(ValueError, match=said):
        checked_mixture(means, stds, weights)


def test_one_std_serves_all_modes_and_weights_come_out_with_sum_1():
    means, stds, weights = checked_mixture([[1.0, 2.0], [3.0, 4.0]], 0.5, [1.0, 3.0])
    assert (means.tolist(), stds.tolist(), weights.tolist()) == ([[1, 2], [3, 4]], [0.5, 0.5], [0.25, 0.75])
    assert checked_mixture(torch.zeros(4, 1), torch.ones(4))[2].tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("given", "expected"), [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.int64, torch.float64)]
)
def test_the_means_say_which_type_all_have(given, expected):
    parts = checked_mixture(torch.tensor([[1, 2], [3, 4]], dtype=given), 0.1, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert [part.dtype for part in parts] == [expected] * 3
    assert parts[1][0] == torch.tensor(0.1, dtype=expected)  # not rounded to float32 on the way
