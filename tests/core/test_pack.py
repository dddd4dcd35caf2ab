"""Packed windows: each lane's pieces end to end, cut wherever sequences end, and tokens that say where."""

import pickle
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamseq.core.errors import ResumeError
from streamseq.core.plan import Plan
from streamseq.core.segments import SEGMENT, from_table, to_table
from streamseq.core.selection import select_all, select_spans
from streamseq.core.settings import PlanSettings
from streamseq.core.splits import AsIs
from streamseq.core.tokens import StateToken

slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = ("sequence", "start", "stop", "reset", "final")


@st.composite
def packed(draw):
    lengths = np.array(draw(st.lists(st.integers(0, 30), min_size=1, max_size=14).filter(sum)), np.int64)
    spans = []
    for index, length in enumerate(lengths):
        start = draw(st.integers(0, int(length)))
        spans.append((index, start, draw(st.integers(start, int(length)))))
    chosen = draw(st.booleans()) and sum(stop - start for _, start, stop in spans)
    layout = draw(st.sampled_from(["sequences", "even"]))
    options = PlanSettings(
        lanes=draw(st.integers(1, 5)),
        window=draw(st.integers(1, 20)),
        layout=layout,
        tail="pack",
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(-5, 5)),
        run=draw(st.integers(1, 100)),
        longest=draw(st.integers(1, 40)) if layout == "sequences" and draw(st.booleans()) else None,
    )
    selection = select_spans(lengths, spans) if chosen else select_all(lengths)
    return Plan(selection, options, contents="c", epoch=draw(st.integers(0, 3)))


def lanes_of(plan):
    """For each lane its timesteps, end to end: (sequence, position, is a reset, is final), by the pieces alone."""
    whole = Plan(plan.selection, replace(plan.settings, tail="pad", window=1000), contents="c", epoch=plan.epoch)
    cells = whole.cells(0, whole.num_windows, 0, whole.settings.lanes)
    lanes = [[] for _ in range(plan.settings.lanes)]
    for lane, steps in enumerate(lanes):
        for sequence, start, stop in zip(*(getattr(cells, name)[:, lane] for name in NAMES[:3]), strict=True):
            steps += [(int(sequence), t, t == start, t == stop - 1) for t in range(start, stop)]
    return lanes


def token_of(plan, step):
    """The token of a window, all lanes."""
    cells = plan.cells(step, step + 1, 0, plan.settings.lanes)
    return StateToken(
        **{name: getattr(cells, name)[0] for name in NAMES},
        lane=np.arange(plan.settings.lanes),
        epoch=plan.epoch,
        step=step,
        fingerprint=plan.fingerprint,
        version=1,
        window=plan.settings.window,
        num_steps=plan.window_length(step),
        switches=plan.settings.switches,
        segments=cells.segments_of(0),
    )


def steps_of(segments, lanes):
    """For each lane the (sequence, position, is a reset) of its timesteps, by the segments; without gaps."""
    steps = [[] for _ in range(lanes)]
    for lane, offset, sequence, start, stop, reset in segments:
        assert offset == len(steps[lane])
        assert start < stop
        steps[lane] += [(int(sequence), t, bool(reset) and t == start) for t in range(start, stop)]
    order = [(int(segment["lane"]), int(segment["offset"])) for segment in segments]
    assert order == sorted(order)
    return steps


def assert_holds(token, lanes):
    """A token says of each lane what its timesteps, (sequence, position, is a reset, is final), are."""
    assert [[step[:3] for step in steps] for steps in lanes] == steps_of(token.segments, len(lanes))
    assert token.lengths.tolist() == [len(steps) for steps in lanes]
    resets = np.zeros((len(lanes), token.num_steps), bool)
    borders = {len(lanes) * token.num_steps}
    for lane, steps in enumerate(lanes):
        borders |= {lane * token.num_steps, lane * token.num_steps + len(steps)}
        for offset, (_, _, reset, _) in enumerate(steps):
            resets[lane, offset] = reset
            if reset:
                borders.add(lane * token.num_steps + offset)
        if steps:
            assert (token.sequence[lane], token.start[lane], token.reset[lane]) == steps[0][:3]
            assert (token.last_sequence[lane], token.stop[lane] - 1) == steps[-1][:2]
            assert token.final[lane] == steps[-1][3]
    assert token.resets.dtype == np.bool_
    assert np.array_equal(token.resets, resets)
    assert token.cu_seqlens.dtype == np.int32
    assert token.cu_seqlens.tolist() == sorted(borders)


@slow
@given(packed())
def test_lanes_are_their_pieces_end_to_end_cut_into_windows(plan):
    lanes, window = lanes_of(plan), plan.settings.window
    assert plan.num_windows == -(-max(map(len, lanes)) // window)
    assert plan.num_timesteps == sum(map(len, lanes))
    assert plan.left_out == 0
    for step in range(plan.num_windows):
        held = [steps[step * window : (step + 1) * window] for steps in lanes]
        token = token_of(plan, step)
        assert_holds(token, held)
        for lane, steps in enumerate(held):
            if not steps:
                assert [getattr(token, name)[lane] for name in NAMES] == [-1, 0, 0, False, False]


@slow
@given(packed())
def test_only_the_last_window_of_a_lane_has_padding(plan):
    lanes, window = lanes_of(plan), plan.settings.window
    used = sum(-(-len(steps) // window) for steps in lanes)
    found = plan.occupancy
    assert found.timesteps == plan.num_timesteps
    assert found.padding_timesteps == used * window - plan.num_timesteps
    assert found.padding_timesteps <= (window - 1) * len(lanes)
    assert found.lane_windows == plan.num_windows * len(lanes)
    assert found.idle_lane_windows == found.lane_windows - used


@slow
@given(packed())
def test_any_lanes_and_steps_are_found_alone(plan):
    whole = plan.cells(0, plan.num_windows, 0, plan.settings.lanes)
    for t in range(plan.num_windows):
        for lane in range(plan.settings.lanes):
            alone = plan.cells(t, t + 1, lane, lane + 1)
            for name in NAMES:
                assert getattr(alone, name)[0, 0] == getattr(whole, name)[t, lane]
            segments = whole.segments_of(t)
            segments = segments[segments["lane"] == lane]
            segments["lane"] = 0
            assert np.array_equal(alone.segments_of(0), segments)
    assert len(whole.segments) == whole.borders[-1]


@slow
@given(packed())
def test_each_window_follows_the_one_before_and_no_other(plan):
    tokens = [token_of(plan, step) for step in range(plan.num_windows)]
    assert all(later.follows(earlier) for earlier, later in pairwise(tokens))
    for earlier, later in zip(tokens, tokens[2:], strict=False):
        assert later.follows(earlier) == later.starts_anew.all()
    for step, token in enumerate(tokens):
        assert plan.step_after(token) == step + 1


def test_a_window_goes_on_in_the_last_sequence_of_the_window_before():
    plan = Plan(select_all(np.array([3, 7])), PlanSettings(lanes=1, window=5, tail="pack"), contents="c", epoch=0)
    first, second = token_of(plan, 0), token_of(plan, 1)
    assert first.segments.tolist() == [(0, 0, 0, 0, 3, True), (0, 3, 1, 0, 2, True)]
    assert second.segments.tolist() == [(0, 0, 1, 2, 7, False)]
    assert first.last_sequence.tolist() == [1]
    assert second.follows(first)
    other = first.segments.copy()
    other["sequence"][1] = 2
    assert not second.follows(replace(first, segments=other))
    with pytest.raises(ResumeError, match="stop 2 in the plan, got 1"):
        plan.step_after(first.cut(0, 4))


@slow
@given(packed(), st.data())
def test_a_token_can_be_cut_anywhere(plan, data):
    lanes, window = lanes_of(plan), plan.settings.window
    step = data.draw(st.integers(0, plan.num_windows - 1))
    token = token_of(plan, step)
    begin = data.draw(st.integers(0, window - 1))
    end = data.draw(st.integers(begin + 1, window))
    cut = token.cut(begin, end)
    at = step * window
    held = [steps[at + begin : at + end] for steps in lanes]
    assert cut.num_steps == end - begin
    assert_holds(cut, held)
    for lane, steps in enumerate(held):
        if not steps and token.sequence[lane] >= 0:
            assert cut.start[lane] == cut.stop[lane] == token.stop[lane]
            assert cut.last_sequence[lane] == token.last_sequence[lane]
            assert not cut.reset[lane]
    if end < window and all(steps[at + end : at + window] or not steps[at:] for steps in lanes):
        assert token.cut(end, window).follows(cut)
    inner = data.draw(st.integers(0, end - begin - 1))
    assert cut.cut(inner, end - begin) == token.cut(begin + inner, end)
    assert token.cut(0, window) == token


@slow
@given(packed(), st.data())
def test_windows_of_another_length_go_on_where_each_lane_stopped(plan, data):
    lanes = lanes_of(plan)
    here, done = plan, 0
    emitted = [[] for _ in lanes]
    for last in (False, False, True):
        step = here.num_windows if last else data.draw(st.integers(0, here.num_windows))
        for t in range(step):
            token = token_of(here, t)
            for lane, steps in enumerate(steps_of(token.segments, len(lanes))):
                emitted[lane] += steps
        done += step * here.settings.window
        assert emitted == [[each[:3] for each in steps[:done]] for steps in lanes]
        if not last:
            here = here.rewindowed(data.draw(st.integers(1, 25)), step=step)
            assert here.num_timesteps == plan.num_timesteps - sum(map(len, emitted))
            assert here.longest == plan.longest
            assert here.fingerprint == plan.fingerprint
            again = Plan(plan.selection, here.settings, contents="c", epoch=plan.epoch)
            assert (again.num_windows, again.occupancy) == (here.num_windows, here.occupancy)
            assert all(token_of(again, t) == token_of(here, t) for t in range(here.num_windows))
    assert emitted == [[each[:3] for each in steps] for steps in lanes]


@slow
@given(packed(), st.data())
def test_tokens_and_segments_survive_being_saved(plan, data):
    token = token_of(plan, data.draw(st.integers(0, plan.num_windows - 1)))
    again = pickle.loads(pickle.dumps(token))
    assert again == token
    assert again.segments.dtype == SEGMENT
    table = to_table(token.segments)
    assert table.dtype == np.int64
    assert table.shape == (len(token.segments), 6)
    assert np.array_equal(from_table(table), token.segments)
    if len(token.segments):
        other = token.segments.copy()
        other["stop"][-1] += 1
        assert token != replace(token, segments=other)
    assert token != replace(token, segments=None)


@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_resets_and_borders_are_said_of_windows_that_are_not_packed(tail):
    plan = Plan(select_all(np.array([6, 4, 3])), PlanSettings(lanes=2, window=4, tail=tail), contents="c", epoch=0)
    tokens = [token_of(plan, step) for step in range(plan.num_windows)]
    assert all(token.segments is None for token in tokens)
    assert tokens[0].resets.tolist() == [[True, False, False, False]] * 2
    assert tokens[0].cu_seqlens.tolist() == [0, 4, 8]
    assert tokens[0].cut(1, 4).resets.tolist() == [[False] * 3] * 2
    if tail == "pad":
        assert tokens[1].resets.tolist() == [[False] * 4, [True, False, False, False]]
        assert tokens[1].cu_seqlens.tolist() == [0, 2, 4, 7, 8]
        assert tokens[1].lengths.tolist() == [2, 3]
        assert tokens[1].cut(1, 4).cu_seqlens.tolist() == [0, 1, 3, 5, 6]
        assert tokens[1].cut(1, 4).num_steps == 3


def test_windows_that_are_whole_sequences_say_how_long_they_are():
    options = PlanSettings(lanes=2, window=None, split=AsIs())
    plan = Plan(select_all(np.array([6, 4, 3])), options, contents="c", epoch=0)
    assert [token_of(plan, step).resets.astype(int).sum(1).tolist() for step in range(2)] == [[1, 1], [1, 0]]
    assert [token_of(plan, step).cu_seqlens.tolist() for step in range(2)] == [[0, 6, 10, 12], [0, 3, 6]]


def test_borders_that_32_bits_cannot_count_are_refused():
    plan = Plan(select_all(np.array([2**31])), PlanSettings(lanes=1, window=2**31, tail="pack"), contents="", epoch=0)
    with pytest.raises(ValueError, match="32 bits, got 1 lanes of 2147483648 timesteps"):
        _ = token_of(plan, 0).cu_seqlens
    assert token_of(plan, 0).cut(0, 10).cu_seqlens.tolist() == [0, 10]


def test_whole_sequences_as_windows_are_not_packed():
    with pytest.raises(ValueError, match=r'tail="pack" .* got split=AsIs\(\).*: use Naive\(\)'):
        PlanSettings(lanes=2, window=None, split=AsIs(), tail="pack")


def test_sequences_of_a_trillion_timesteps_are_packed_at_once():
    lengths = np.array([10**12 + 1, 0, 5, 10**12])
    plan = Plan(select_all(lengths), PlanSettings(lanes=1, window=512, tail="pack"), contents="", epoch=0)
    assert plan.num_windows == -(-int(lengths.sum()) // 512)
    border = (10**12 + 1) // 512
    inside = (10**12 + 1) % 512
    assert plan.cells(border, border + 1, 0, 1).segments.tolist() == [
        (0, 0, 0, border * 512, 10**12 + 1, False),
        (0, inside, 2, 0, 5, True),
        (0, inside + 5, 3, 0, 512 - inside - 5, True),
    ]


@pytest.mark.parametrize("change", [{}, {"shuffle": True}, {"layout": "even"}])
def test_planning_takes_no_more_than_16_bytes_a_sequence_beside_the_lengths(change):
    lengths = np.random.default_rng(0).integers(1, 40_000, 500_000)
    options = PlanSettings(**{"lanes": 8, "window": 512, "run": 1 << 19, "tail": "pack", **change})
    Plan(select_all(lengths[:20_000]), options, contents="", epoch=0)
    selection = select_all(lengths)
    tracemalloc.start()
    try:
        plan = Plan(selection, options, contents="", epoch=0)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # So many timesteps that 32 bits are too few.
    assert plan._keys.dtype == np.int64
    assert held <= 12 * len(lengths) + (1 << 16)
    if "layout" not in change:
        assert peak < 16 * len(lengths) + (2 << 20)
