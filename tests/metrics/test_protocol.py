import pytest

from fewstep.errors import UserError
from fewstep.metrics.inception import INCEPTION, INCEPTION_SHA256
from fewstep.metrics.protocol import PRESETS, check_same_protocol, departures, differences

RECORD = {
    "n": 50_000,
    "features": {"name": INCEPTION, "sha256": INCEPTION_SHA256},
    "reference": {"what": "train split", "num": 50_000, "sha256": "12"},
    "quantisation": "bytes",
    "labels": "uniform",
    "seeds": [0],
}
OTHERS = {
    "n": 10_000,
    "features": {"name": INCEPTION, "sha256": "00"},
    "reference": {"what": "train split", "num": 50_000, "sha256": "34"},
    "quantisation": "none",
    "labels": "balanced",
}


def test_results_of_one_protocol_compare_whatever_their_seeds():
    check_same_protocol({"protocol": RECORD}, {"protocol": {**RECORD, "seeds": [1], "preset": "edm"}})
    assert differences(RECORD, {**RECORD, "seeds": [7]}) == []


@pytest.mark.parametrize("key", OTHERS)
def test_each_part_of_a_protocol_counts(key):
    other = {**RECORD, key: OTHERS[key]}
    assert len(differences(RECORD, other)) == 1
    with pytest.raises(UserError, match=f"mine and runs/b were measured by different protocols and do not compare: {key} "):
        check_same_protocol({"protocol": RECORD}, {"protocol": other}, ("mine", "runs/b"))


POINTS = {**RECORD, "features": {"name": "the points themselves", "sha256": None}}
POINTS |= {"reference": {"what": "points", "num": 10_000, "sha256": None}, "labels": "none", "quantisation": "none"}


@pytest.mark.parametrize(
    ("data", "reference", "told"),
    [
        ("moons", "10,000 exact samples of moons", "data ring and moons; reference 10,000 exact samples of ring and 10,000 exact"),
        ("ring", "10,000 exact samples of ring^2", r"compare: reference 10,000 exact samples of ring and 10,000 exact samples of ring\^2"),
    ],
)
def test_points_of_other_data_or_another_power_do_not_compare(data, reference, told):
    """The distance to ring^2 or to moons is another figure than that to ring, and the record of points has no checksum of them."""
    mine = {"protocol": POINTS, "data": "ring", "reference": "10,000 exact samples of ring"}
    with pytest.raises(UserError, match=told):
        check_same_protocol(mine, {"protocol": POINTS, "data": data, "reference": reference})


def test_points_of_one_density_compare_in_the_words_of_every_version():
    mine = {"protocol": POINTS, "data": "ring", "reference": "10,000 exact samples of ring"}
    check_same_protocol(mine, {**mine, "reference": "10000 exact samples of ring"})


def test_results_that_say_nothing_do_not_compare():
    with pytest.raises(UserError, match="runs/b does not say by which protocol"):
        check_same_protocol({"protocol": RECORD}, {"n": 50_000}, ("mine", "runs/b"))


def test_what_is_not_edm_s_protocol():
    assert departures(PRESETS["edm"], RECORD) == []
    wrong = departures(PRESETS["edm"], {**RECORD, "n": 500, "features": {"name": "mine", "sha256": None}})
    assert wrong == ["500 samples a block, not 50,000", f"features mine, not {INCEPTION}"]
    assert PRESETS["edm"].seeds == (0, 50_000, 100_000)
