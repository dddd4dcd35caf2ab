"""Each transform at its limits: dtypes, bounds, edges, and values that it refuses."""

import pickle
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.transforms import HALO, IN_ORDER, LAST, STEPWISE, TIMED

import streamseq as ss
from streamseq.etl.transforms import (
    Cast,
    Clip,
    Derivative,
    FillGaps,
    Filter,
    Normalise,
    OneHot,
    Rename,
    Resample,
    Scan,
    Select,
    Windowed,
    parse_transform,
)
from streamseq.etl.transforms_base import BadTimestepError
from streamseq.storage.statistics.gather import FieldStatistics

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def run(transform, **arrays):
    """A whole sequence through one transform."""
    arrays = {name: np.asarray(values) for name, values in arrays.items()}
    fields = {name: ss.Field(values.dtype, values.shape[1:]) for name, values in arrays.items()}
    made = transform.output_fields(fields)
    operator = transform.begin("a")
    blocks = [*operator.push(arrays), *operator.end()]
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in made}
    assert {name: ss.Field(values.dtype, values.shape[1:]) for name, values in joined.items()} == made
    return joined


@given(data=st.data())
def test_a_cast_of_integers_keeps_them_or_refuses_them(data):
    old, new = (np.iinfo(data.draw(st.sampled_from(INTEGERS))) for _ in range(2))
    limits = [old.min, old.max, *(limit for limit in (new.min, new.max, new.max + 1) if old.min <= limit <= old.max)]
    value = data.draw(st.sampled_from(limits) | st.integers(old.min, old.max))
    if new.min <= value <= new.max:
        assert run(Cast("x", new.dtype), x=np.array([value], old.dtype))["x"].tolist() == [value]
    else:
        with pytest.raises(BadTimestepError, match=f"{new.dtype} cannot hold {value}"):
            run(Cast("x", new.dtype), x=np.array([value], old.dtype))


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("uint8", [255.9, -0.9, 0.0], [256.0, -1.0, np.nan, np.inf]),
        ("int64", [2.0**62, -(2.0**63)], [2.0**63, -(2.0**64)]),
        ("uint64", [2.0**63, 0.5], [2.0**64, -1.0]),
        ("float16", [65504.0, np.inf, np.nan], [1e6, -1e6]),
    ],
)
def test_a_cast_of_reals_cuts_fractions_and_refuses_what_does_not_fit(dtype, good, bad):
    cast = run(Cast("x", dtype), x=np.array(good))["x"]
    np.testing.assert_array_equal(cast, np.array([np.trunc(value) for value in good]).astype(dtype))
    for value in bad:
        with pytest.raises(BadTimestepError, match="cannot hold"):
            run(Cast("x", dtype), x=np.array([0.0, value]))
    with pytest.raises(BadTimestepError) as caught:
        run(Cast("x", dtype), x=np.array([[0.0, 0.0], [0.0, bad[0]]]))
    assert caught.value.timestep == 1


def test_fields_are_selected_and_renamed_in_order():
    arrays = {"a": [1], "b": [2], "c": [3]}
    assert list(run(Select(["c", "a"]), **arrays)) == ["c", "a"]
    assert list(run(Rename("b", "z"), **arrays)) == ["a", "z", "c"]


def test_normalising_by_statistics_gives_mean_0_and_std_1():
    values = np.random.default_rng(0).normal(5, [1, 3], (500, 2)).astype(np.float32)
    values = np.concatenate([values, np.full((500, 1), 7, np.float32)], axis=1)
    statistics = FieldStatistics(ss.Field("float32", (3,)))
    statistics.add(values)
    made = run(Normalise.from_statistics("x", statistics.summary()), x=values)["x"]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(made.std(0), [1, 1, 0], atol=1e-5)
    assert run(Normalise.from_statistics("x", SimpleNamespace(mean=2.0, std=4.0)), x=[10.0])["x"].dtype == np.float64


def test_bounds_of_integers_lie_within_their_dtype():
    assert run(Clip("x", -5, 1.5), x=np.uint8([0, 1, 2]))["x"].tolist() == [0, 1, 1]
    assert run(Clip("x", 0.5, np.inf), x=np.int8([-1, 0, 1, 127]))["x"].tolist() == [1, 1, 1, 127]
    limit = 2**63 - 1
    assert run(Clip("x", high=limit), x=np.array([limit]))["x"].tolist() == [limit]
    assert run(Clip("x", low=[1, 3]), x=np.array([[0, 0], [9, 9]]))["x"].tolist() == [[1, 3], [9, 9]]
    got = run(Clip("x", 0, 1e300), x=np.float32([np.nan, 9, -1]))["x"]
    np.testing.assert_array_equal(got, np.float32([np.nan, 9, 0]))


def test_what_is_unknown_may_be_zeros():
    made = run(OneHot("x", 2, "float32", unknown="zeros"), x=np.int8([[1, -1], [2, 0]]))["x"]
    assert made.tolist() == [[[0, 1], [0, 0]], [[0, 0], [1, 0]]]


def test_a_filter_is_numpy_s_convolution():
    x = np.random.default_rng(0).normal(size=50)
    for taps in ([1.0, -2.0, 0.5], [0.1] * 8, [3.0]):
        same = np.convolve(x, taps)[: len(x)]
        np.testing.assert_allclose(run(Filter("x", taps, ahead=0, edges=0.0), x=x)["x"], same)
    centred = np.convolve(x, [1.0, -2.0, 0.5], "same")
    np.testing.assert_allclose(run(Filter("x", [1.0, -2.0, 0.5], edges=0), x=x)["x"], centred)
    beside = run(Filter("x", [2.0], into="y"), x=np.int16([3]))
    assert (beside["x"].dtype, beside["y"].dtype, beside["y"].tolist()) == (np.int16, np.float32, [6.0])


def test_derivatives_of_large_integers_are_exact():
    times = 1_700_000_000_000_000_000 + np.array([0, 1, 3, 4])
    assert run(Derivative("t", step=0.5), t=times)["t"].tolist() == [2.0, 3.0, 3.0, 2.0]
    made = run(Derivative("x", time="t", into="dx"), x=np.array([0.0, 2.0, 6.0, 8.0]), t=times)
    assert made["dx"].tolist() == [2.0] * 4
    assert np.isnan(run(Derivative("x"), x=[1.0])["x"]).all()


def test_windows_at_the_ends_hold_what_edges_says():
    seen = []

    def look(windows):
        seen.append(windows["x"].tolist())
        assert not windows["x"].flags.writeable
        return {"y": windows["x"][:, 0]}

    for edges, row in (("nearest", [5, 5, 6]), (0, [0, 5, 6])):
        seen.clear()
        run(Windowed(look, 1, 1, edges, {"y": ss.Field("int64")}), x=[5, 6])
        assert [row for rows in seen for row in rows] == [row, [5, 6, 6 if edges == "nearest" else 0]]


@pytest.mark.parametrize("method", ["linear", "mean", "nearest"])
def test_resampling_to_the_same_rate_changes_nothing(method):
    x = np.array([3.0, np.nan, -1.0, np.inf])
    np.testing.assert_array_equal(run(Resample(48_000, 48_000, method), x=x)["x"], x)


def test_resampling_keeps_time_over_long_sequences():
    x = np.arange(100_000, dtype=np.float64)
    made = run(Resample(44_100, 16_000), x=x)["x"]
    np.testing.assert_allclose(made, np.arange(len(made)) * 2.75625, rtol=1e-14)
    assert len(made) == 99_999 * 16_000 // 44_100 + 1


def test_integers_are_resampled_without_loss_of_digits():
    times = 2**62 + np.array([0, 10, 20])
    assert (run(Resample(1, 4), t=times)["t"] - 2**62).tolist() == [0, 2, 5, 8, 10, 12, 15, 18, 20]
    assert (run(Resample(3, 1, "mean"), t=times)["t"] - 2**62).tolist() == [10]
    assert run(Resample(2, 1, "mean"), x=np.uint8([250, 255, 1]))["x"].tolist() == [252, 1]


def test_gaps_are_filled_as_each_field_says():
    made = run(
        FillGaps("t", 60, {"x": np.nan, "n": "forward", "b": 0}, mask="there"),
        t=np.array([0, 61, 240, 300], np.int32),
        x=np.float32([1, 2, 3, 4]),
        n=np.array([[1], [2], [3], [4]]),
        b=np.array([True] * 4),
    )
    assert made["t"].tolist() == [0, 61, 121, 181, 240, 300]
    np.testing.assert_array_equal(made["x"], np.float32([1, 2, np.nan, np.nan, 3, 4]))
    assert made["n"].tolist() == [[1], [2], [2], [2], [3], [4]]
    assert made["b"].tolist() == made["there"].tolist() == [True, True, False, False, True, True]
    assert run(FillGaps("t", 0.5, mask=None), t=[0.0, 1.0, 1.0])["t"].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert run(FillGaps("t", 1, longest=2), t=[0, 4, 7])["t"].tolist() == [0, 4, 5, 6, 7]
    for times in ([0.0, np.nan], [np.nan]):
        with pytest.raises(BadTimestepError, match="a timestamp is finite"):
            run(FillGaps("t", 1), t=times)


def test_each_sequence_has_a_state_of_its_own():
    def note(state, arrays):
        state.extend(arrays["x"])
        return state, {"n": np.full(len(arrays["x"]), len(state))}

    scan = Scan(note, [], fields={"n": ss.Field("int64")})
    assert [run(scan, x=[1, 2])["n"].tolist() for _ in range(2)] == [[2, 2], [2, 2]]
    by_id = Scan(lambda state, arrays: (state, {"n": np.full(len(arrays["x"]), state)}), len)
    assert [made["n"].tolist() for made in by_id.begin("abc").push({"x": np.zeros(1)})] == [[3]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cast("x", "complex64"), "bool, an integer or a float"),
        (lambda: Select("x"), "a list of at least one"),
        (lambda: Normalise("x", np.nan, 1), r"the mean that Normalise\('x'\) takes off is finite"),
        (lambda: Normalise("x", 0, -1), "at least 0"),
        (lambda: Clip("x"), "at least one bound"),
        (lambda: Clip("x", np.nan), "are numbers"),
        (lambda: Clip("x", 2, 1), "low is at most high"),
        (lambda: OneHot("x", 0), "at least 1 class"),
        (lambda: OneHot("x", 1, unknown="x"), "'error' or 'zeros'"),
        (lambda: Filter("x", []), "at least one"),
        (lambda: Filter("x", [1, 2], ahead=2), "looks 0 to 1 timesteps ahead, got 2"),
        (lambda: Filter("x", [1], edges="wrap"), "edges is 'nearest' or a number"),
        (lambda: Derivative("x", step=0), "above 0"),
        (lambda: Derivative("x", step=2, time="t"), "give one"),
        (lambda: Windowed(len, before=-1), "0 or more timesteps"),
        (lambda: Resample(0, 1), "above 0"),
        (lambda: Resample(1, 1, "cubic"), "one of linear, nearest, mean"),
        (lambda: FillGaps("t", 0), "above 0"),
        (lambda: FillGaps("t", 1, "back"), "'forward' or a number"),
        (lambda: FillGaps("t", 1, longest=0), "at least 1 timestep"),
        (lambda: run(Clip("x", [0, 1]), x=[1.0]), r"fits the step shape \[\]"),
        (lambda: run(Clip("x", 0), x=[True]), "cast it first"),
        (lambda: run(OneHot("x", 2), x=[1.0]), "works on integers"),
        (lambda: run(Normalise("x", [0, 0], 1), x=[[1.0]]), "fits the step shape"),
        (lambda: run(Filter("x", [1], into="y"), x=[1.0], y=[1.0]), "choose another name"),
        (lambda: run(Derivative("x", time="t"), x=[1.0], t=[[1]]), "one number a timestep"),
        (lambda: run(Windowed(dict, 1, edges=-1), x=np.uint8([1])), "cast it first"),
        (lambda: run(Resample(1, 2), x=[True]), "goes by 'nearest'"),
        (lambda: run(Resample(1, 2, {"x": "mean"}), x=[1.0], y=[1.0]), "got none for y"),
        (lambda: run(FillGaps("t", 1.5), t=[1]), "so is the step"),
        (lambda: run(FillGaps("t", 1, np.nan), t=[1], x=[1]), "int64 cannot hold"),
        (lambda: run(FillGaps("t", 1, 300), t=[1], x=np.uint8([1])), "uint8 cannot hold"),
        (lambda: run(FillGaps("t", 1, {}), t=[1], x=[1]), "nothing is said of x"),
        (lambda: run(FillGaps("t", 1, mask="x"), t=[1], x=[1]), "choose another name"),
    ],
)
def test_wrong_settings_are_one_line(make, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_transforms_can_be_sent_to_workers():
    for transform, _ in [*HALO, *IN_ORDER, *LAST, *TIMED]:
        assert cloudpickle.loads(cloudpickle.dumps(transform)).fingerprint == transform.fingerprint
    for transform, _ in [*STEPWISE[1:], *LAST]:
        assert pickle.loads(pickle.dumps(transform)).fingerprint == transform.fingerprint


@pytest.mark.parametrize(
    ("text", "transform"),
    [
        ("cast:x,float16", Cast("x", "float16")),
        ("select:a,b", Select(["a", "b"])),
        ("rename:a,b", Rename("a", "b")),
        ("normalise:x,1,2.5", Normalise("x", 1, 2.5)),
        ("clip:x,,1", Clip("x", high=1)),
        ("onehot: x, 4", OneHot("x", 4)),
        ("resample:100,50,mean", Resample(100, 50, "mean")),
        ("resample:0.1,1", Resample(0.1, 1)),
        ("fill-gaps:t,60", FillGaps("t", 60)),
        ("fill-gaps:t,60,0.5", FillGaps("t", 60, 0.5)),
        ("filter:x,0.5,0.5", Filter("x", [0.5, 0.5])),
        ("derivative:x,60", Derivative("x", 60)),
    ],
)
def test_transforms_are_made_of_text(text, transform):
    made = parse_transform(text)
    assert type(made) is type(transform)
    assert made.fingerprint == transform.fingerprint


def test_functions_are_named_in_text():
    assert parse_transform("function:numpy.cumsum").function is np.cumsum


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sharpen:x", "a transform is one of cast, select"),
        ("", "a transform is one of"),
        ("clip", "clip:FIELD,LOW,HIGH is$"),
        ("clip:x,1", "clip:FIELD,LOW,HIGH is$"),
        ("clip:x,a,1", "'a' is no number"),
        ("clip:x,2,1", "low is at most high"),
        ("onehot:x,2.5", "'2.5' is no whole number"),
        ("fill-gaps:t,1,back", "'back' is no number"),
        ("cast:x,text", "numpy dtype"),
        ("function:numpy.nothing", "there is no function"),
        ("function:nothing", "there is no function"),
        ("function:numpy.pi", "is no function"),
    ],
)
def test_wrong_text_is_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_transform(text)
    assert "\n" not in str(caught.value)
