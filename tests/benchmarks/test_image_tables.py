"""The tables of real images: means over seeds, a teacher's time beside its student's, and how fast a curve still falls."""

import pytest

import image_tables
import images
from fewstep.recipe import shipped_recipes

ORDER = ["teacher", "dmd2", "flow map"]


def row(evaluations, over, role="own", **figures):
    return {"role": role, "evaluations": evaluations, "frechet": 0.5 * over, "frechet_over_floor": over, **figures}


def run(title, seed, rows, minutes, curve=(), taught=None):
    return {
        "title": title,
        "training_seed": seed,
        "taught": taught,
        "rows": {"real train split": row(0, 1.0, "floor"), **{f"{title}, {k}": found for k, found in enumerate(rows)}},
        "floor_of": "real train split",
        "cpu_seconds": 60 * minutes,
        "images_seen": 100_000,
        "n": 10_000,
        "seed": 0,
        "features": "mnist-v1",
        "curve": [{"images_seen": 10_000 * (k + 1), "eval.frechet_over_floor": value} for k, value in enumerate(curve)],
    }


CONTENT = {
    "runs": {
        "student 1": run("dmd2", 1, [row(1, 2.0, class_accuracy=0.99)], 30, taught="teacher"),
        "teacher": run("teacher", 0, [row(35, 1.2), row(1, 50.0)], 60),
        "student 0": run("dmd2", 0, [row(1, 1.0, class_accuracy=0.97)], 20, [64, 32, 16, 8, 4, 4, 4, 4, 2, 1], taught="teacher"),
    }
}


def test_each_arm_has_a_row_for_each_number_of_evaluations():
    lines = image_tables.figures_lines(CONTENT, ORDER)
    assert lines[0][:3] == ["", "evaluations", "FD / floor"]
    assert [line[:3] for line in lines[1:]] == [
        ["real train split", "", "1.00"],
        ["teacher", "35", "1.20"],
        ["teacher", "1", "50.00"],
        ["dmd2", "1", "1.50 (1.00 to 2.00)"],
    ]
    assert lines[4][lines[0].index("class asked for")] == "98.0% (97.0% to 99.0%)"
    assert lines[2][-2:] == ["100 k", "60"]
    assert lines[4][-1] == "25"  # the median
    assert {len(line) for line in lines} == {len(lines[0])}
    assert "teacher 1, dmd2 2;" in image_tables.figures_note(CONTENT, ORDER)


def test_a_row_of_an_earlier_form_of_its_recipe_says_so():
    runs = dict(CONTENT["runs"]) | {"flow": run("flow map", 0, [row(1, 3.0)], 20) | {"earlier": "of a shorter teacher"}}
    assert [line[0] for line in image_tables.figures_lines({"runs": runs}, ORDER)][-2:] == ["dmd2", "flow map (earlier)"]
    assert image_tables.figures_note({"runs": runs}, ORDER).startswith(" Rows with (earlier) are of a shorter teacher. n = 10,000")
    assert "earlier" not in image_tables.figures_note(CONTENT, ORDER)


def test_the_short_table_has_the_first_figures_alone():
    lines = image_tables.figures_lines(CONTENT, ["dmd2"], short=True)
    assert lines[0] == ["", "evaluations", *list(image_tables.COLUMNS)[:4], "images seen", "training, CPU min"]
    assert [line[0] for line in lines[1:]] == ["real train split", "dmd2"]


def test_a_curve_is_told_at_fifths_and_by_its_slope_at_the_end():
    ((_, *heading), (title, *cells)) = image_tables.curve_lines(CONTENT, ORDER)
    assert title == "dmd2"
    assert cells == ["100 k images", "32.00", "8.00", "4.00", "4.00", "1.00", "50%"]  # 4 at 80%, 2, 1: half of it each time
    assert len(heading) == len(cells)


def test_a_power_law_is_found_again_and_predicts_what_was_held_out():
    law, at_the_end = [100 * (k + 1) ** -0.5 for k in range(10)], [row(1, 26.0)]  # of more samples, in units of another floor
    student = run("dmd2", 0, at_the_end, 20, law, taught="teacher")
    content = {"runs": {"teacher": run("teacher", 0, [row(35, 10.0)], 60), "dmd2": student}}
    ((*_,), (title, *cells)) = image_tables.growth_lines(content, ORDER)
    assert title == "dmd2"
    assert cells[:4] == ["31.62", "31.62", "1.00", "29%"]  # 2^-.5
    assert cells[4] == "400 k, 4.0 x as many"  # from 26 to 13
    reached = {**content, "runs": {**content["runs"], "teacher": run("teacher", 0, [row(35, 30.0)], 60)}}
    assert image_tables.growth_lines(reached, ORDER)[1][-1] == "reached"
    rising = {"runs": {**content["runs"], "dmd2": run("dmd2", 0, at_the_end, 20, law[::-1], taught="teacher")}}
    assert image_tables.growth_lines(rising, ORDER)[1][-1] == "it does not fall"
    assert image_tables.power_law(content["runs"]["dmd2"]["curve"], 0.95, 1.0) is None


@pytest.mark.parametrize("error", [None, {"all": 0.1234}])
def test_a_sweep_is_told_from_the_best_on(error):
    def arm(title, over, overrides=(), seed=0):
        taken = {"asked_seconds": 60.0, "steps": 1500, "images_seen": 96_000}
        found = {"title": title, "overrides": list(overrides), "training_seed": seed, **taken}
        return {**found, "row": row(1, over, class_accuracy=0.5, recall=0.3, within_class_std=0.9), "denoising_error": error}

    lines = image_tables.sweep_lines({"runs": [arm("as it is", 3.0), arm("wide", 2.0, ["network.channels=[64,128]"])]})
    assert [line[0] for line in lines[1:]] == ["wide: `network.channels=[64,128]`", "as it is"]
    assert ("0.1234" in lines[1]) == (error is not None)
    assert {len(line) for line in lines} == {len(lines[0])}
    assert "seeds" not in lines[0]
    several = image_tables.sweep_lines({"runs": [arm("as it is", 1.0, seed=1), arm("as it is", 3.0), arm("wide", 2.5)]})
    assert [line[0] for line in several[1:]] == ["as it is", "wide"]
    assert "2.00 (1.00 to 3.00)" in several[1]
    assert [line[-1] for line in several] == ["seeds", "0, 1", "0"]


@pytest.mark.parametrize("name", images.ARMS)
def test_arms_are_of_recipes_that_are_shipped_and_taught_by_an_arm_before_them(name):
    before = set()
    for title, arm in images.ARMS[name].items():
        assert arm.recipe in shipped_recipes()
        assert arm.teacher is None or arm.teacher in before
        before.add(title)


def test_calibration_has_its_floor_first_and_then_what_is_nearest():
    rows = {
        "one class": row(0, 900.0, class_accuracy=1.0),
        "floor": row(0, 1.0, "floor", class_accuracy=0.998),
        "copies": row(0, 0.9, class_accuracy=0.99, precision=0.87),
    }
    lines = image_tables.calibration_lines({"rows": rows})
    assert lines[0] == ["", "FD / floor", "class asked for", "precision"]
    assert [line[0] for line in lines[1:]] == ["floor: random train images", "copies", "one class"]
    assert lines[2] == ["copies", "0.90", "99.0%", "0.87"]
    assert lines[3][3] == ""


def test_guidance_by_its_scale_with_the_evaluations_that_it_takes():
    strong = {"scale": 1.5, "n": 100, "steps": 10, **row(38, 2.4, class_accuracy=0.98)}
    none = {"scale": 1.0, "n": 100, "steps": 10, **row(19, 15.0, class_accuracy=0.9)}
    assert image_tables.guidance_lines({"rows": [strong, none]}) == [
        ["guidance", "n", "evaluations", "FD / floor", "class asked for"],
        ["1", "100", "19", "15.00", "90.0%"],
        ["1.5", "100", "38", "2.40", "98.0%"],
    ]


def test_guidance_at_several_numbers_of_steps_in_their_order():
    rows = [{"scale": w, "n": 100, "steps": k, **row(2 * k, w / k)} for k in (4, 1) for w in (2.0, 1.5)]
    lines = image_tables.guidance_lines({"rows": rows})
    assert [line[:4] for line in lines] == [
        ["guidance", "steps", "n", "evaluations"],
        ["1.5", "1", "100", "2"],
        ["2", "1", "100", "2"],
        ["1.5", "4", "100", "8"],
        ["2", "4", "100", "8"],
    ]
