"""Two judges of the same rows."""

import subprocess
import sys

import pytest

from fewstep.metrics.judging import BOTH, disagreement, not_shared


def rows(*pairs):
    found = {"real": {"frechet_over_floor": 1.0, "frechet_second_over_floor": 1.0, "role": "floor"}}
    for name, (first, second) in zip("abc", pairs, strict=False):
        found[name] = {"frechet_over_floor": first, "frechet_second_over_floor": second, "role": "own"}
    return found


@pytest.mark.parametrize("pairs", [[(1.0, 2.0), (1.5, 2.5)], [(1.0, 2.0)], [], [(1.0, 2.0), (1.02, 1.5)], [(1.0, 1.5), (1.5, 1.48)]])
def test_judges_that_agree_or_see_no_difference_say_nothing(pairs):
    assert disagreement(rows(*pairs)) is None


def test_judges_that_do_not_agree_are_told_of_with_their_figures():
    said = disagreement(rows((1.2, 1.5), (1.4, 1.3)), ("mnist", "mnist-second"))
    assert said == (
        "the judges rank the two rows differently: FD / floor of a and b is 1.20 and 1.40 to mnist, and 1.50 and 1.30 to mnist-second; "
        "which is better is not settled"
    )
    assert disagreement(rows((1.4, 1.3), (1.2, 1.5))).startswith("the judges rank the two rows differently: FD / floor of b and a is 1.20")
    assert disagreement(rows((1.2, 1.5), (1.4, 1.3), (9.0, 9.0))).startswith("the judges rank 1 of 3 pairs of rows differently")


def test_a_row_that_one_judge_has_not_seen_is_left_out():
    found = rows((1.2, 1.5), (1.4, 1.3))
    del found["b"]["frechet_second_over_floor"]
    assert disagreement(found) is None


def test_it_needs_no_torch():
    code = "import sys, fewstep.metrics.judging; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_other_judges_took_does_not_compare():
    """Precision of one judge, as earlier versions gave it, is not that of two."""
    row = {"frechet_over_floor": 1.2, "frechet_second_over_floor": 1.3, "precision": 0.9, "recall": 0.8}
    one, both = {"second": {"name": "b"}}, {"second": {"name": "b"}, "manifold": BOTH}
    assert not_shared(row, both, both) == []
    assert not_shared(row, one, both) == ["precision", "recall"]
    assert not_shared(row, {}, both) == ["frechet_second_over_floor", "precision", "recall"]
    assert not_shared({"frechet_over_floor": 1.2}, {}, both) == []
