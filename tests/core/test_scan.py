"""Rules find their boundaries whatever pieces values come in, and none between sequences."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamseq.core.fields import Field
from streamseq.core.scan import MissingTimeError, make_scanner
from streamseq.core.splits import At, Calendar, Change, Domain, Gap, Marker, Silence, Where


def scan(rule, sequences, borders=()):
    """The positions found in each sequence, of values that come in pieces with these borders."""
    values = np.concatenate(sequences)
    ends = np.cumsum([len(each) for each in sequences])
    begins = np.unique(ends - [len(each) for each in sequences])
    begins = begins[begins < len(values)]
    scanner = make_scanner(rule, Field(values.dtype, values.shape[1:]))
    found = []
    cuts = sorted({0, len(values), *(b for b in borders if b < len(values))})
    for low, high in pairwise(cuts):
        inside = begins[(begins >= low) & (begins < high)] - low
        found += (low + scanner.feed(values[low:high], inside)).tolist()
    assert found == sorted(set(found))
    return [
        [place - int(end) + len(each) for place in found if end - len(each) <= place < end]
        for each, end in zip(sequences, ends, strict=True)
    ]


def gaps(rule, x):
    return [t for t in range(1, len(x)) if abs(int(x[t]) - int(x[t - 1])) > rule.longer_than]


def changes(rule, x):
    return [t for t in range(1, len(x)) if x[t] != x[t - 1]]


def marks(rule, x):
    at = [t for t in range(len(x)) if (x[t] in rule.value if rule.value else x[t] != 0)]
    return [t + rule.after for t in at if 0 < t + rule.after < len(x)]


def silences(rule, x):
    found, quiet = [], 0
    for t, value in enumerate(x):
        if abs(int(value)) < rule.below:
            quiet += 1
        else:
            if quiet >= rule.at_least:
                found.append(t)
            quiet = 0
    return found


RULES = [
    (Gap("x", longer_than=3), gaps),
    (Change("x"), changes),
    (Marker("x"), marks),
    (Marker("x", after=True), marks),
    (Marker("x", (2, -3)), marks),
    (Marker("x", (2,), after=True), marks),
    (Silence("x", below=2, at_least=1), silences),
    (Silence("x", below=2, at_least=3), silences),
]


@given(
    st.sampled_from(RULES),
    st.sampled_from(["int8", "int64", "float32", "uint16"]),
    st.lists(st.lists(st.integers(-4, 4), max_size=25), min_size=1, max_size=5).filter(any),
    st.sets(st.integers(1, 100), max_size=8),
)
def test_rules_find_what_a_loop_finds_in_pieces_of_any_lengths(rule, dtype, sequences, borders):
    rule, expected = rule
    if dtype == "uint16":
        sequences = [[abs(value) for value in each] for each in sequences]
    arrays = [np.array(each, dtype) for each in sequences]
    assert scan(rule, arrays, borders) == [expected(rule, each) for each in sequences]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 500])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule[0]))
def test_rules_remember_what_was_before_a_piece(rule, size):
    rule, expected = rule
    rng = np.random.default_rng(0)
    arrays = [rng.choice([-4, -1, 0, 0, 1, 2], n) for n in (40, 0, 1, 2, 60)]
    wanted = [expected(rule, each) for each in arrays]
    assert any(wanted)
    assert scan(rule, arrays, range(size, 103, size)) == wanted


def test_steps_of_several_entries():
    x = np.array([[0, 0], [0, 1], [0, 1], [2, 1], [0, 0], [9, 9]])
    assert scan(Marker("x"), [x]) == [[1, 2, 3, 5]]
    assert scan(Marker("x", 2), [x]) == [[3]]
    assert scan(Change("x"), [x]) == [[1, 3, 4, 5]]
    assert scan(Silence("x", below=2, at_least=1), [x]) == [[3, 5]]
    assert scan(Gap("x", longer_than=4), [x[:, :1]]) == [[5]]
    with pytest.raises(ValueError, match=r"Gap takes a timestamp.*int64\[2\]"):
        scan(Gap("x", longer_than=4), [x])
    with pytest.raises(ValueError, match=r"Calendar takes a timestamp.*bool"):
        make_scanner(Calendar("x", every="day"), Field("bool"))


def test_extreme_values():
    least, most = np.iinfo(np.int64).min + 1, np.iinfo(np.int64).max
    assert scan(Gap("x", longer_than=2**40), [np.array([least, most, most - 5, least])]) == [[1, 3]]
    assert scan(Gap("x", longer_than=5), [np.array([10, 0, 2**64 - 1, 2**64 - 5], np.uint64)]) == [[1, 2]]
    assert scan(Silence("x", below=2, at_least=1), [np.array([0, -128, 0, 127], np.int8)]) == [[1, 3]]
    assert scan(Silence("x", below=300, at_least=1), [np.array([0, -128], np.int8)]) == [[]]
    nan = np.array([0.0, np.nan, np.nan, 1.0, np.nan, 0.0], np.float32)
    assert scan(Change("x"), [nan]) == [[1, 3, 4, 5]]
    assert scan(Silence("x", below=2, at_least=1), [nan]) == [[1, 4]]


@pytest.mark.parametrize("rule", [Gap("x", longer_than=1), Calendar("x", every="day")])
def test_a_missing_timestamp_is_an_error(rule):
    for values in (np.array([0.0, 1.0, np.nan]), np.array([0, 1, np.iinfo(np.int64).min])):
        with pytest.raises(MissingTimeError) as caught:
            scan(rule, [values])
        assert caught.value.place == 2


def period_of(moment, every):
    iso = moment.isocalendar()
    return {
        "minute": moment.replace(second=0, microsecond=0, tzinfo=None),
        "hour": moment.replace(minute=0, second=0, microsecond=0, tzinfo=None),
        "day": moment.date(),
        "week": (iso.year, iso.week),
        "month": (moment.year, moment.month),
        "year": moment.year,
    }[every]


@given(
    st.sampled_from(["minute", "hour", "day", "week", "month", "year"]),
    st.sampled_from([None, "UTC", "Europe/Vienna", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.booleans(),
    # Also around the hours at which clocks are changed.
    st.lists(
        st.one_of(
            st.integers(-(10**9), 3 * 10**9),
            st.integers(1_711_846_700, 1_711_848_000),
            st.integers(1_729_989_000, 1_729_992_000),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sets(st.integers(1, 30), max_size=3),
)
def test_calendars_agree_with_datetime(every, timezone, unit, floats, seconds, borders):
    zone = UTC if timezone is None else ZoneInfo(timezone)
    moments = [(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=s)).astimezone(zone) for s in seconds]
    periods = [period_of(moment, every) for moment in moments]
    wanted = [t for t in range(1, len(periods)) if periods[t] != periods[t - 1]]
    values = np.array(seconds, np.int64) * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    rule = Calendar("x", every=every, unit=unit, timezone=timezone)
    assert scan(rule, [values], borders) == [wanted]
    if floats and unit != "ns":
        assert scan(rule, [values.astype(np.float64)], borders) == [wanted]


@pytest.mark.parametrize(("unit", "count"), [("D", 1), ("h", 24), ("m", 1440)])
def test_calendars_of_coarse_units(unit, count):
    days = np.array([0, 1, 1, 4, 5])  # Thursday, Friday, Friday, Monday, Tuesday
    for values in (days * count, (days * count).astype(np.float32)):
        assert scan(Calendar("x", every="day", unit=unit), [values]) == [[1, 3, 4]]
        assert scan(Calendar("x", every="week", unit=unit), [values]) == [[3]]
    assert scan(Calendar("x", every="hour", unit="h"), [np.array([0.0, 0.5, 1.25, 1.75, 2.0])]) == [[2, 4]]


def test_a_wrong_unit_is_found_where_there_is_a_time_zone():
    rule = Calendar("x", every="day", unit="s", timezone="Europe/Vienna")
    with pytest.raises(ValueError, match="unit of the calendar rule"):
        scan(rule, [np.array([1_700_000_000_000])])


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Calendar("t", every="fortnight"), ValueError, "minute, hour, day"),
        (lambda: Calendar("t", every="day", unit="seconds"), ValueError, "D, h, m, s"),
        (lambda: Calendar("t", every="day", timezone="Vienna"), ValueError, "'Vienna'.*available_timezones"),
        (lambda: Calendar("t", every="day", timezone="../etc"), ValueError, "available_timezones"),
        (lambda: Gap("t", longer_than=-1), ValueError, "at least 0, got -1"),
        (lambda: Gap("t", longer_than=float("nan")), ValueError, "nan"),
        (lambda: Gap("t", longer_than="1h"), TypeError, "'1h'"),
        (lambda: Silence("t", below=0, at_least=1), ValueError, "below=0"),
        (lambda: Silence("t", below=1, at_least=0), ValueError, "at_least"),
        (lambda: Marker(3), TypeError, "name of a field, got 3"),
        (lambda: At([3]), TypeError, "dict"),
        (lambda: Where("f"), TypeError, "'f'"),
        (lambda: Where(len, "x"), TypeError, r"\['x'\]"),
        (lambda: Domain([]), ValueError, "Naive"),
        (lambda: Domain(5), TypeError, "got 5"),
        (lambda: Domain(Gap), TypeError, "Gap"),
    ],
)
def test_wrong_rules_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_dict_and_a_function_are_rules_too():
    rules = Domain([{"a": [3]}, len, Gap("t", longer_than=3)]).rules
    assert [type(rule) for rule in rules] == [At, Where, Gap]
    assert [rule.reset for rule in rules] == [False, False, True]
