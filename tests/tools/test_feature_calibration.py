"""The check that features rank rightly what everybody can rank."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "feature_calibration.py"


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("feature_calibration", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def measured(calibration, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibration") / "found.json"
    out.write_text('{"ratios": [1.0], "tables": {"other": {}}}')
    code = calibration.main(["digits", "--num", "700", "--no-ratios", "--out", str(out)])
    return code, json.loads(out.read_text())


def test_the_digits_are_ranked_rightly(measured):
    code, content = measured
    table = content["tables"]["digits"]
    assert (code, table["mistakes"]) == (0, [])
    assert (content["ratios"], content["tables"]["other"]) == ([1.0], {})  # what was there stays
    assert table["judges"] == ["digits-v1"]
    assert table["rows"]["floor"]["frechet_over_floor"] == 1


def test_what_is_ranked_wrongly_is_told(calibration, measured):
    rows = measured[1]["tables"]["digits"]["rows"]
    wrong = {**rows, calibration.ONE: {**rows[calibration.ONE], "frechet_over_floor": 0.0}}
    assert calibration.mistakes(wrong) == [
        f"frechet_over_floor is {rows[calibration.HALF]['frechet_over_floor']:.3g} for half of the classes, and 0 for one class"
    ]
    wrong = {**rows, calibration.SHUFFLED: {**rows[calibration.SHUFFLED], "class_accuracy": 0.5}}
    assert calibration.mistakes(wrong) == ["class_accuracy is 0.5 for labels shuffled, and should lie between 0 and 0.1"]
    both = {title: {**row, "frechet_second_over_floor": row["frechet_over_floor"]} for title, row in rows.items()}
    both[calibration.NOISE]["frechet_second_over_floor"] = 0.0
    assert {text.split(" is ")[0] for text in calibration.mistakes(both)} == {"frechet_second_over_floor"}
