"""Settings refuse what cannot be run, and the learning rate rises and falls as they say."""

import pytest

from streamseq.training import TrainingSettings


def test_the_learning_rate_rises_in_a_line_and_falls_on_a_cosine():
    settings = TrainingSettings(learning_rate=2.0, final_learning_rate=0.1, warmup=4)
    rates = [settings.learning_rate_at(update, 100) for update in range(101)]
    assert rates[0] == pytest.approx(0.5, rel=1e-3)
    assert max(rates) == pytest.approx(2.0, rel=1e-2)
    assert rates[50] == pytest.approx((2.0 + 0.2) / 2)
    assert rates[100] == pytest.approx(0.2)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert settings.learning_rate_at(500, 100) == rates[100]


def test_without_warm_up_and_fall_it_is_constant():
    settings = TrainingSettings(learning_rate=0.5, final_learning_rate=1.0, warmup=0)
    assert {settings.learning_rate_at(update, 10) for update in range(11)} == {0.5}


def test_what_decides_the_parameters_is_bound_and_the_rest_is_free():
    one = TrainingSettings(threads=1, log_every=1, evaluate_every=1, checkpoint_every=1)
    other = TrainingSettings(threads=2, log_every=2, evaluate_every=2, checkpoint_every=2)
    assert one.bound() == other.bound()
    assert TrainingSettings(updates=3).bound() != TrainingSettings(updates=4).bound()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": 8, "k2": 4}, "k2 >= k1"),
        ({"lanes": 0}, "lanes is at least 1, got 0"),
        ({"device": "foo"}, "device is one that torch knows, such as cpu or cuda, got 'foo'"),
        ({"window": 0}, "window is at least 1"),
        ({"threads": 0}, "threads is at least 1"),
        ({"updates": -1}, "updates is at least 0"),
        ({"seconds": 0.0}, "seconds is a number above 0"),
        ({"split": "days"}, "split is naive, as-is or domain:NAME, got 'days'"),
        ({"split": "domain:"}, "split is naive"),
        ({"split": "as-is", "window": 8}, "split=as-is reads sequences whole, got window=8"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"held_out": 1.0}, r"held_out is a share in \[0, 1\)"),
        ({"learning_rate": 0.0}, "learning_rate is a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is a number above 0"),
        ({"final_learning_rate": 1.5}, "final_learning_rate is a share"),
        ({"clip": 0.0}, "clip is above 0"),
        ({"warmup": -1}, "warmup is at least 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is at least 1"),
        ({"burn_in": -1}, "burn_in is at least 0"),
        ({"memory": "1MB", "segment": 4}, "memory is given without segment"),
        ({"memory": "much"}, "a size is"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**options)
