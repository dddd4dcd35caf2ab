"""What is held out follows from ids, seed and share alone, and is never trained on."""

import numpy as np
import pytest
from corpus import make_settings
from hypothesis import given
from hypothesis import strategies as st

import streamseq as ss
from streamseq.training.build import build_streams
from streamseq.training.holdout import hold_out


def store_of(lengths):
    return ss.from_arrays({f"s{i}": {"x": np.full(n, i % 251, np.uint8)} for i, n in enumerate(lengths)})


@given(
    lengths=st.lists(st.integers(0, 50), min_size=2, max_size=30).filter(lambda n: sum(m >= 2 for m in n) >= 2),
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 5),
    limit=st.integers(1, 400),
)
def test_both_sides_have_a_sequence_and_share_none(lengths, share, seed, limit):
    split = hold_out(store_of(lengths), share=share, seed=seed, limit=limit)
    train, held = ({span[0] for span in side} for side in (split.train, split.held_out))
    assert train
    assert held
    assert not train & held
    assert all(0 == start < 2 <= stop <= lengths[int(id[1:])] for id, start, stop in split.held_out)
    assert all((start, stop) == (0, lengths[int(id[1:])]) for id, start, stop in split.train)
    assert sum(stop for _, _, stop in split.held_out) <= max(2, limit)


def test_about_the_share_is_held_out_and_an_id_stays_on_its_side_when_others_come():
    few = hold_out(store_of([5] * 1000), share=0.2, seed=3, limit=1 << 30)
    more = hold_out(store_of([5] * 2000), share=0.2, seed=3, limit=1 << 30)
    assert 150 < len(few.held_out) < 250
    assert len(few.held_out) + len(few.train) == 1000
    assert set(few.train) < set(more.train)
    assert set(few.held_out) < set(more.held_out)
    other = hold_out(store_of([5] * 1000), share=0.2, seed=4, limit=1 << 30)
    assert other.held_out != few.held_out


def test_long_sequences_are_cut_so_that_lanes_end_together():
    split = hold_out(store_of([100_000, *[1_000] * 99] * 10), share=0.99, seed=0, limit=64_000)
    stops = [stop for _, _, stop in split.held_out]
    assert sum(stops) == 64_000
    assert max(stops) == 1_000


def test_of_a_single_sequence_the_end_is_held_out():
    split = hold_out(store_of([1000]), share=0.1, seed=0, limit=50)
    assert split.train == [("s0", 0, 900)]
    assert split.held_out == [("s0", 900, 950)]
    # Sequences that have nothing to predict do not make it two.
    assert hold_out(store_of([1, 1000, 0]), share=0.1, seed=0, limit=50).train == [("s1", 0, 900)]


def test_nothing_is_held_out_on_demand():
    split = hold_out(store_of([5, 1, 6]), share=0, seed=0, limit=50)
    assert split.train == [("s0", 0, 5), ("s2", 0, 6)]
    assert split.held_out == []


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 1, 0], "a sequence of at least 2, the longest of memory has 1"),
        ([3], "a single sequence is cut .* got 3 timesteps of 's0' and held_out=0.5"),
    ],
)
def test_too_little_for_two_parts_is_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        hold_out(store_of(lengths), share=0.5, seed=0, limit=50)


def shown(stream):
    """(sequence, position) of every timestep with a target."""
    places = []
    for window in stream:
        for lane, position in window.mask.nonzero().tolist():
            places.append((int(window.token.sequence[lane]), int(window.token.start[lane]) + position))
    return places


@pytest.mark.parametrize("lengths", [[40, 9, 25, 30, 12, 8], [400]])
def test_the_streams_of_a_run_show_each_timestep_once_and_none_on_both_sides(lengths):
    settings = make_settings(lanes=4, shuffle=True, held_out=0.4)
    streams = build_streams(store_of(lengths), settings)
    train, held = shown(streams.train), shown(streams.held_out)
    assert len(set(train)) == len(train)
    assert len(set(held)) == len(held)
    assert not set(train) & set(held)
    # The last timestep of each part has no target, and each cut between lanes of one sequence loses none.
    spans = [*streams.split.train, *streams.split.held_out]
    assert len(train) + len(held) == sum(stop - start - 1 for _, start, stop in spans)


def test_no_lane_stays_idle_where_there_are_fewer_sequences_than_lanes():
    streams = build_streams(store_of([4000]), make_settings(lanes=16, held_out=0.1))
    for stream in (streams.train, streams.held_out):
        assert (stream[0].token.sequence == 0).all()
    whole = build_streams(store_of([400]), make_settings(lanes=16, k1=None, k2=None))
    assert (whole.train[0].token.sequence == 0).sum() == 1


@pytest.mark.parametrize(
    ("array", "field", "message"),
    [
        (np.zeros((9, 2), np.uint8), "x", "'x' of memory is uint8 with step shape \\(2,\\)"),
        (np.zeros(9, np.float32), "x", "'x' of memory is float32 with step shape \\(\\)"),
        (np.zeros(9, np.uint8), "text", "training reads the field 'text', memory has x"),
    ],
)
def test_a_field_that_is_not_bytes_is_refused(array, field, message):
    store = ss.from_arrays({"a": {"x": array}, "b": {"x": array}})
    with pytest.raises(ValueError, match=message):
        build_streams(store, make_settings(task="language", field=field))
