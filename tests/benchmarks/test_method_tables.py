"""The tables over all methods: each measured study in its row, a teacher's time behind the plus."""

import math

import method_tables
from method_tables import Measured, method_lines

CONTENT = {
    "images_mnist": {
        "runs": {
            f"{title} {seed}": {
                "title": title,
                "training_seed": seed,
                "taught": taught,
                "cpu_seconds": minutes * 60,
                "rows": {
                    f"{title}, {count}": {"role": "own", "evaluations": count, "frechet_over_floor": over + seed} for count, over in rows
                },
            }
            for title, seed, taught, minutes, rows in (
                ("teacher", 0, None, 50, [(70, 1.5), (2, 90.0)]),
                ("teacher", 1, None, 60, [(70, 1.5), (2, 90.0)]),
                ("dmd2", 0, "teacher", 40, [(1, 2.0)]),
                ("flow map", 0, "teacher", 20, [(1, 3.0), (2, 2.5), (4, 1.25)]),
            )
        }
    }
}


def test_real_images_have_a_row_for_each_method_in_the_order_of_the_arms():
    heading, *lines = method_lines("mnist", CONTENT.__getitem__)
    assert heading[2:5] == ["FD / floor, 1 evaluation", "FD / floor, 2 evaluations", "FD / floor, 4 evaluations"]
    assert lines == [
        ["diffusion: the teacher", "none", "", "90.50 (90.00 to 91.00)", "", "2.00 (1.50 to 2.50) at 70", "55.0", "2"],
        ["DMD2", "trained", "2.00", "", "", "", "40.0 + 55.0", "1"],
        ["flow map", "trained", "3.00", "2.50", "1.25", "", "20.0 + 55.0", "1"],
    ]


def test_a_teacher_that_is_not_in_the_results_took_a_time_that_nobody_knows():
    assert Measured("DMD2", math.nan, {1: [2.0]}, [60.0]).cells("{:.1f}") == ["DMD2", "trained", "2.0", "", "", "", "1.0 + ?", "1"]


def test_every_study_that_the_tables_name_is_in_the_stored_results():
    for name in ("ring", "digits"):
        heading, *lines = method_lines(name)
        assert len(lines) >= 6
        assert {len(line) for line in lines} == {len(heading)}
        for line in lines:
            assert any(line[2:6]), line  # a figure at some number of evaluations
            assert int(line[-1]) >= 1, line
    assert method_tables.SETS.keys() == {"ring", "digits", "mnist"}
