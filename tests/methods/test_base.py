import pytest

from fewstep.methods import OptimizerSettings


def test_learning_rate_rises_holds_and_falls():
    settings = OptimizerSettings(2.0, warmup=4, decay_from=0.5, final=0.1)
    rates = [settings.lr_at(update, 20) for update in (0, 1, 3, 10, 15, 20, 25)]
    # a quarter of the way up each update; held to update 10; half way to 0.2 at 15; 0.2 at 20 and after
    assert rates == pytest.approx([0.5, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2])


def test_learning_rate_is_constant_by_default():
    settings = OptimizerSettings(3.0)
    assert [settings.lr_at(update, 10) for update in (0, 5, 9)] == [3.0] * 3


@pytest.mark.parametrize("decay_from", [0.5, 1.0])
def test_learning_rate_stays_at_its_last_value_after_the_last_update(decay_from):
    settings = OptimizerSettings(1.0, decay_from=decay_from, final=0.1)
    assert settings.lr_at(200, 100) == pytest.approx(0.1)
