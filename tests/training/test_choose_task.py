"""What is learnt goes with the fields of a store, and what cannot be learnt says what to do."""

import json

import numpy as np
import pytest
from corpus import make_settings

import streamseq as ss
from streamseq.training.choose_task import find_task, task_of_saved

N = 60
RNG = np.random.default_rng(0)
FIELDS = {
    "bytes": RNG.integers(0, 256, N).astype(np.uint8),
    "tokens": np.append(RNG.integers(0, 30, N - 1), 29).astype(np.int32),
    "long": RNG.integers(0, 100_000, N),
    "negative": RNG.integers(-5, 5, N),
    "time": 1_700_000_000 + 3600 * np.arange(N),
    "days": np.arange(N) // 7,
    "flag": RNG.random(N) < 0.5,
    "wind": RNG.standard_normal(N),
    "load": RNG.standard_normal((N, 3)).astype(np.float32),
}


def store_of(**names):
    """A store with fields of these names."""
    return ss.from_arrays({f"s{i}": {name: FIELDS[kind] for name, kind in names.items()} for i in range(3)})


def found(store, **settings):
    return find_task(store, make_settings(**settings)).describe()


def test_bytes_and_tokens_are_learnt_by_a_language_model():
    assert found(store_of(x="bytes", wind="wind")) == "learning the next byte of x; left out: wind"
    assert found(store_of(x="tokens", time="time")) == "learning the next of 30 tokens of x; left out: time"
    assert found(store_of(word="tokens", wind="wind"), field="word") == "learning the next of 30 tokens of word" + (
        "; left out: wind"
    )


def test_numbers_are_forecast_and_times_are_not():
    assert found(store_of(time="time", x="load")) == "forecasting 3 channels of x one timestep ahead; left out: time"
    assert found(store_of(x="load", y="wind"), targets=["y"], horizon=4) == (
        "forecasting 1 channel of y from x, y 4 timesteps ahead"
    )
    assert found(store_of(x="bytes", y="wind"), task="forecast").startswith("forecasting 1 channel of y ")
    assert found(store_of(x="bytes", y="wind"), inputs=["x", "y"]).startswith("forecasting 2 channels of x, y ")
    # A number that only rises is a time or a counter, however small it is.
    assert found(store_of(x="days", y="negative")) == "forecasting 1 channel of y one timestep ahead; left out: x"
    assert found(store_of(x="time", y="long")).startswith("forecasting 1 channel of y ")


def test_tokens_are_those_of_every_sequence():
    some = {"a": {"x": np.array([0, 3, 1, 2] * 5)}, "b": {"x": np.array([7, 0] * 5)}}
    task = find_task(ss.from_arrays(some), make_settings())
    assert task.vocabulary == 8
    # The first sequences only rise, a later one falls.
    some = {f"s{i}": {"x": np.arange(9)} for i in range(4)} | {"last": {"x": np.array([3, 1])}}
    assert find_task(ss.from_arrays(some), make_settings()).kind == "language"


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ({"a": "flag"}, {}, r"learns bytes, tokens or numbers, and memory has a bool: name fields as inputs"),
        ({"a": "time"}, {}, r"learns bytes, tokens or numbers, and memory has a int64"),
        ({"a": "wind"}, {"field": "a"}, r"'a' of memory is float64 with step shape \(\): .* inputs=a"),
        ({"a": "wind"}, {"field": "b"}, "reads the field 'b', memory has a float64: name one"),
        ({"a": "wind"}, {"inputs": ["b"]}, "reads the field 'b', memory has a float64: name one"),
        ({"a": "wind", "b": "flag"}, {"targets": ["b"]}, "numbers are forecast, and 'b' of memory is bool"),
        ({"x": "long"}, {"task": "language"}, "one whole number from 0 to 65,535"),
    ],
)
def test_what_cannot_be_learnt_says_what_to_do(names, settings, message):
    with pytest.raises(ValueError, match=message):
        find_task(store_of(**names), make_settings(**settings))


def test_channels_that_teach_nothing_are_told_and_not_forecast():
    values = np.stack([FIELDS["wind"], np.full(N, 3.0), np.full(N, np.nan)], 1)
    task = find_task(ss.from_arrays({"a": {"x": values}}), make_settings())
    assert task.varying == (True, False, False)
    assert task.describe() == (
        "forecasting 1 channel of x one timestep ahead (1 never change and 1 have no value: not forecast)"
    )
    assert task.channels["x"].scale[1:] == (1.0, 1.0)
    with pytest.raises(ValueError, match="nothing to forecast, as no channel of x of memory has values that differ"):
        find_task(ss.from_arrays({"a": {"x": values[:, 1:]}}), make_settings())
    with pytest.raises(ValueError, match="'x' are too large to be normalised"):
        find_task(ss.from_arrays({"a": {"x": np.array([1e308, 1e308, -1.0])}}), make_settings())


@pytest.mark.parametrize("names", [{"x": "bytes"}, {"x": "tokens"}, {"x": "load", "time": "time", "y": "wind"}])
def test_a_task_comes_back_from_what_is_saved(names):
    store = store_of(**names)
    task = find_task(store, make_settings())
    plain = json.loads(json.dumps(task.as_dict()))
    assert task_of_saved(plain, make_settings()) == task
    assert find_task(store, make_settings(**task.as_settings())) == task
    assert task_of_saved(None, make_settings()).describe() == "learning the next byte of x"


def test_a_model_is_not_given_tokens_that_it_does_not_know(tmp_path):
    for name, most in (("few", 5), ("many", 9)):
        with ss.create(tmp_path / f"{name}.zarr", {"x": ss.Field("int32")}) as writer:
            writer.write("a", x=np.array([0, most, 1], np.int32))
    task = find_task(ss.open(tmp_path / "few.zarr"), make_settings())
    task.check(ss.open(tmp_path / "few.zarr"))
    with pytest.raises(ValueError, match=r"tokens from 0 to 5, 'x' of .* has 0 to 9: train one on a store with all"):
        task.check(ss.open(tmp_path / "many.zarr"))


def test_another_store_must_have_the_fields_of_the_task():
    for names, other in (
        ({"x": "bytes"}, {"x": "load"}),
        ({"x": "load"}, {"x": "wind"}),
        ({"x": "wind"}, {"y": "wind"}),
    ):
        task = find_task(store_of(**names), make_settings())
        task.check(store_of(**names))
        with pytest.raises(ValueError, match=r"the model reads the field 'x' of .* pass a store with such a field"):
            task.check(store_of(**other))
