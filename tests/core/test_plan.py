import json
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamseq.core.errors import PlanError, ResumeError
from streamseq.core.layout import BLOCK, GROUP, Occupancy, cut_evenly, fill_lanes
from streamseq.core.plan import Plan, lanes_of_rank
from streamseq.core.selection import Pieces, select_all, select_spans
from streamseq.core.settings import PlanSettings
from streamseq.core.shuffle import shuffled_order
from streamseq.core.splits import AsIs, Naive
from streamseq.core.tokens import Position, StateToken


@st.composite
def plans(draw, split=None):
    lengths = draw(st.lists(st.integers(0, 70), min_size=1, max_size=12).filter(sum))
    split = draw(st.sampled_from([Naive(), AsIs()])) if split is None else split
    window = None if isinstance(split, AsIs) else draw(st.integers(1, 20))
    options = PlanSettings(
        lanes=draw(st.integers(1, 6)),
        window=window,
        split=split,
        layout=draw(st.sampled_from(["sequences", "even"])),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(-5, 5)),
        run=draw(st.integers(1, 100)),
    )
    lengths = np.array(lengths, np.int64)
    selection = select_all(lengths)
    if draw(st.booleans()):
        spans = []
        for index, length in enumerate(lengths):
            start = draw(st.integers(0, int(length)))
            spans.append((index, start, draw(st.integers(start, int(length)))))
        if sum(stop - start for _, start, stop in spans):
            selection = select_spans(lengths, spans)
    return Plan(selection, options, contents="c", epoch=draw(st.integers(0, 3)))


def all_cells(plan):
    return plan.cells(0, plan.num_windows, 0, plan.settings.lanes)


def chosen_timesteps(plan):
    rows = np.arange(len(plan.selection))
    starts = plan.selection.starts_of(rows)
    sequences = plan.selection.sequences_of(rows)
    return sorted(
        (int(s), t) for s, a, n in zip(sequences, starts, plan.selection.lengths, strict=True) for t in range(a, a + n)
    )


@given(plans())
def test_every_chosen_timestep_is_emitted_exactly_once(plan):
    cells = all_cells(plan)
    emitted = []
    for s, a, b in zip(cells.sequence.ravel(), cells.start.ravel(), cells.stop.ravel(), strict=True):
        assert (s < 0) == (a == b)
        emitted += [(int(s), t) for t in range(a, b)]
    assert sorted(emitted) == chosen_timesteps(plan)
    assert plan.num_timesteps == len(emitted)
    assert plan.left_out == 0


@given(plans())
def test_a_lane_goes_on_where_it_stopped_unless_it_resets(plan):
    cells = all_cells(plan)
    for lane in range(plan.settings.lanes):
        final = True
        for t in range(plan.num_windows):
            if cells.sequence[t, lane] < 0:
                assert final
                assert (cells.sequence[t:, lane] < 0).all()
                assert not cells.reset[t:, lane].any()
                assert not cells.final[t:, lane].any()
                break
            assert cells.reset[t, lane] == final
            if not final:
                assert cells.sequence[t, lane] == cells.sequence[t - 1, lane]
                assert cells.start[t, lane] == cells.stop[t - 1, lane]
                assert cells.stop[t - 1, lane] - cells.start[t - 1, lane] == plan.settings.window
            final = cells.final[t, lane]
        else:
            assert final


@given(plans())
def test_any_lanes_and_steps_are_found_alone(plan):
    whole = all_cells(plan)
    for t in range(plan.num_windows):
        for lane in range(plan.settings.lanes):
            alone = plan.cells(t, t + 1, lane, lane + 1)
            for name in ("sequence", "start", "stop", "reset", "final"):
                assert getattr(alone, name)[0, 0] == getattr(whole, name)[t, lane]
    spans = whole.stop - whole.start
    assert [plan.window_length(t) for t in range(plan.num_windows)] == (
        [plan.settings.window] * plan.num_windows if plan.settings.window else spans.max(1).tolist()
    )
    assert plan.longest >= spans.max()


@given(plans(split=Naive()), st.integers(1, 40))
def test_the_window_length_does_not_decide_which_sequences_a_lane_gets(plan, window):
    other = PlanSettings(
        lanes=plan.settings.lanes,
        window=window,
        layout=plan.settings.layout,
        shuffle=plan.settings.shuffle,
        seed=plan.settings.seed,
        run=plan.settings.run,
    )
    other = Plan(plan.selection, other, contents="c", epoch=plan.epoch)
    assert other.fingerprint == plan.fingerprint
    for lane in range(plan.settings.lanes):
        timesteps = []
        for each in (plan, other):
            cells = each.cells(0, each.num_windows, lane, lane + 1)
            spans = zip(cells.sequence[:, 0], cells.start[:, 0], cells.stop[:, 0], strict=True)
            timesteps.append([(int(s), t) for s, a, b in spans for t in range(a, b)])
        assert timesteps[0] == timesteps[1]


@given(plans(split=Naive()))
def test_dropped_tails_are_counted_and_nothing_else_is_left_out(plan):
    settings_ = PlanSettings(
        lanes=plan.settings.lanes, window=plan.settings.window, layout=plan.settings.layout, tail="drop"
    )
    try:
        dropped = Plan(plan.selection, settings_, contents="c", epoch=0)
    except PlanError:
        return
    padded = Plan(
        plan.selection,
        PlanSettings(lanes=plan.settings.lanes, window=plan.settings.window, layout=plan.settings.layout),
        contents="c",
        epoch=0,
    )
    cells = all_cells(dropped)
    spans = cells.stop - cells.start
    assert set(spans[cells.sequence >= 0].tolist()) == {plan.settings.window}
    assert spans.sum() + dropped.left_out == plan.selection.lengths.sum()
    whole = all_cells(padded)
    full = (whole.stop - whole.start) == plan.settings.window
    key = lambda c, keep: sorted(zip(c.sequence[keep].tolist(), c.start[keep].tolist(), strict=True))  # noqa: E731
    assert key(cells, cells.sequence >= 0) == key(whole, full)
    # What comes after a dropped tail is a reset, and what comes before it is final.
    for lane in range(plan.settings.lanes):
        used = cells.sequence[:, lane] >= 0
        assert np.array_equal(cells.reset[used, lane][1:], cells.final[used, lane][:-1])


@given(plans())
def test_even_lanes_differ_by_one_timestep_at_most(plan):
    if plan.settings.layout != "even":
        return
    cells = all_cells(plan)
    held = (cells.stop - cells.start).sum(0)
    assert held.max() - held.min() <= 1
    assert (np.diff(held) <= 0).all()


def lane_of_each(lengths, lanes):
    layout = fill_lanes(lengths, lanes)
    lane = np.full(len(lengths), -1)
    lane[layout.pieces] = np.repeat(np.arange(lanes), np.diff(layout.first))
    assert lane.min() >= 0
    return lane


@given(st.lists(st.integers(0, 100), min_size=1, max_size=300), st.integers(1, 9))
def test_lanes_fill_to_within_one_longest_sequence(lengths, lanes):
    lengths = np.array(lengths)
    load = np.bincount(lane_of_each(lengths, lanes), lengths, lanes)
    assert load.max() - load.min() <= lengths.max()


def test_many_sequences_are_dealt_in_groups_as_evenly_as_one_by_one():
    rng = np.random.default_rng(0)
    for lanes in (1, 3, 32):
        lengths = np.minimum(rng.lognormal(7, 1, 20 * GROUP), 1e6).astype(np.int64)
        lane = lane_of_each(lengths, lanes)
        load = np.bincount(lane, lengths, lanes)
        assert load.max() - load.min() <= lengths.max()
        # Neighbours are read at about the same time: a lane never runs ahead of the others by more than a group.
        place = np.array([np.flatnonzero(lane == b)[len(lengths) // lanes // 2] for b in range(lanes)])
        assert np.ptp(place) < 4 * GROUP


def test_one_sequence_longer_than_all_others_together_is_alone_on_its_lane():
    lengths = np.ones(10 * GROUP, np.int64)
    lengths[5] = 10**12
    lane = lane_of_each(lengths, 4)
    assert np.count_nonzero(lane == lane[5]) < 2 * GROUP
    assert np.bincount(lane[6 * GROUP :], minlength=4)[lane[5]] == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=400), st.integers(1, 60), st.integers(0, 4))
@settings(max_examples=50)
def test_shuffling_permutes_differently_in_each_epoch_and_the_same_each_time(lengths, run, seed):
    lengths = np.array(lengths)
    order = shuffled_order(lengths, run, seed, 0)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert np.array_equal(order, shuffled_order(lengths, run, seed, 0))
    if len(lengths) > 30:
        assert not np.array_equal(order, shuffled_order(lengths, run, seed, 1))
        assert not np.array_equal(order, shuffled_order(lengths, run, seed + 1, 0))


@pytest.mark.parametrize(("count", "run"), [(3000, 10**6), (40_000, 10**6), (200_000, 900)])
def test_shuffled_sequences_lie_anywhere_in_their_group(count, run):
    order = shuffled_order(np.full(count, 3), run=run, seed=3, epoch=0)
    assert sorted(order.tolist()) == list(range(count))
    ascending = np.mean(np.diff(order) > 0)
    assert abs(ascending - 0.5) < 4 / np.sqrt(count)
    size = min(count, run // 3 * 4)
    first = order[: count // size * size].reshape(-1, size)
    assert (np.ptp(first, 1) > size // 2).all()
    if count == size:
        place = np.argsort(order)
        assert abs(np.corrcoef(place, np.arange(count))[0, 1]) < 4 / np.sqrt(count)
        assert abs(place[:100].mean() / count - 0.5) < 0.15


def test_shuffling_keeps_a_bounded_number_of_chunks_in_use():
    lengths = np.full(100_000, 100)
    order = shuffled_order(lengths, run=10_000, seed=1, epoch=0)  # 100 sequences a run, 1,000 runs
    chunk = order // 100
    for part in chunk[: 62 * 1600].reshape(62, 1600):
        assert len(set(part.tolist())) <= 16
    assert np.mean(np.abs(np.diff(chunk)) > 32) > 0.5


def test_the_shuffled_order_is_the_same_in_every_version():
    assert shuffled_order(np.full(8, 3), run=6, seed=7, epoch=1).tolist() == PINNED


PINNED = [2, 4, 5, 3, 1, 6, 0, 7]


def test_hundred_sequences_of_50000_are_100_windows_of_500():
    plan = Plan(select_all(np.full(100, 50_000)), PlanSettings(lanes=100, window=500), contents="", epoch=0)
    cells = all_cells(plan)
    assert cells.sequence.shape == (100, 100)
    assert cells.reset.sum(0).tolist() == [1] * 100
    assert (cells.sequence == np.arange(100)).all()


def test_one_sequence_of_a_trillion_timesteps_is_planned_at_once():
    plan = Plan(select_all(np.array([10**12])), PlanSettings(lanes=7, window=3, layout="even"), contents="", epoch=0)
    last = plan.cells(plan.num_windows - 2, plan.num_windows, 0, 7)
    assert last.stop.max() == 10**12
    assert plan.num_windows == -(-(10**12 // 7 + 1) // 3)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"window": 0}, ValueError),
        ({"window": None}, ValueError),
        ({"window": 2.5}, TypeError),
        ({"window": True}, TypeError),
        ({"lanes": 0}, ValueError),
        ({"lanes": "4"}, TypeError),
        ({"split": AsIs()}, ValueError),
        ({"split": "naive"}, TypeError),
        ({"layout": "rows"}, ValueError),
        ({"tail": "cut"}, ValueError),
        ({"seed": 1.5}, TypeError),
    ],
)
def test_wrong_settings_are_refused(change, error):
    with pytest.raises(error, match=r"window=4" if "split" in change and error is ValueError else next(iter(change))):
        PlanSettings(**{"lanes": 2, "window": 4, **change})


def test_nothing_to_emit_is_refused():
    for lengths, options in (([0, 0], {}), ([3, 2], {"tail": "drop"})):
        with pytest.raises(PlanError, match="timestep"):
            Plan(select_all(np.array(lengths)), PlanSettings(lanes=2, window=4, **options), contents="", epoch=0)
    with pytest.raises(PlanError, match="sequences=None"):
        select_spans(np.array([3]), [])
    with pytest.raises(ValueError, match=r"\[2, 9\)"):
        select_spans(np.array([3]), [(0, 2, 9)])


def test_ranks_own_contiguous_lanes_of_unequal_number():
    assert [lanes_of_rank(10, rank, 4) for rank in range(4)] == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert cut_evenly(2, 5).tolist() == [0, 1, 2, 2, 2, 2]
    with pytest.raises(PlanError, match="more lanes"):
        lanes_of_rank(2, 0, 3)
    with pytest.raises(ValueError, match="rank"):
        lanes_of_rank(2, 2, 2)


def test_the_fingerprint_covers_what_decides_the_order_and_not_the_epoch():
    lengths = np.array([5, 6, 7])
    base = {"lanes": 2, "window": 4}

    def fingerprint(selection=None, contents="c", epoch=0, **change):
        selection = select_all(lengths) if selection is None else selection
        return Plan(selection, PlanSettings(**{**base, **change}), contents=contents, epoch=epoch).fingerprint

    first = fingerprint()
    assert first == fingerprint(epoch=3) == fingerprint(window=3) == fingerprint(seed=9)
    assert first == fingerprint(selection=select_spans(lengths, [(0, 0, 5), (1, 0, None), (2, 0, 7)]))
    others = [
        fingerprint(contents="d"),
        fingerprint(lanes=3),
        fingerprint(layout="even"),
        fingerprint(tail="drop"),
        fingerprint(tail="pack"),
        fingerprint(shuffle=True),
        fingerprint(shuffle=True, seed=1),
        fingerprint(split=AsIs(), window=None),
        fingerprint(selection=select_spans(lengths, [(0, 0, 5), (1, 0, 6)])),
        fingerprint(selection=select_spans(lengths, [(0, 0, 5), (2, 0, 7), (1, 0, 6)])),
    ]
    assert len({first, *others}) == 11


@st.composite
def cut_plans(draw):
    """Plans with `longest`, which may be short or longer than everything."""
    lengths = np.array(draw(st.lists(st.integers(0, 70), min_size=1, max_size=12).filter(sum)))
    spans = [
        (index, start := draw(st.integers(0, int(n))), draw(st.integers(start, int(n))))
        for index, n in enumerate(lengths)
    ]
    chosen = draw(st.booleans()) and sum(stop - start for _, start, stop in spans)
    options = PlanSettings(
        lanes=draw(st.integers(1, 6)),
        window=draw(st.integers(1, 20)),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 5)),
        run=draw(st.integers(1, 100)),
        longest=draw(st.integers(1, 80)),
    )
    return Plan(select_spans(lengths, spans) if chosen else select_all(lengths), options, contents="c", epoch=1)


def runs_of(plan):
    """Each piece as (sequence, start, stop), by lane: from a reset to the final timestep, checked on the way."""
    cells = all_cells(plan)
    lanes = []
    for lane in range(plan.settings.lanes):
        pieces, begin, at = [], None, None
        for t in range(plan.num_windows):
            sequence, start, stop = (int(getattr(cells, name)[t, lane]) for name in ("sequence", "start", "stop"))
            if sequence < 0:
                break
            if cells.reset[t, lane]:
                assert begin is None
                begin = start
            else:
                assert (sequence, start) == at
            at = (sequence, stop)
            if cells.final[t, lane]:
                pieces.append((sequence, begin, stop))
                begin = None
        assert begin is None
        lanes.append(pieces)
    return lanes


@given(cut_plans(), st.integers(1, 20))
def test_long_sequences_are_cut_into_the_fewest_pieces_of_equal_length(plan, window):
    longest = plan.settings.longest
    lanes = runs_of(plan)
    assert plan.longest == max(stop - start for lane in lanes for _, start, stop in lane) <= longest
    found = {}
    for sequence, start, stop in sorted(piece for lane in lanes for piece in lane):
        found.setdefault(sequence, []).append((start, stop))
    rows = np.arange(len(plan.selection))
    for sequence, low, length in zip(
        plan.selection.sequences_of(rows), plan.selection.starts_of(rows), plan.selection.lengths, strict=True
    ):
        if length:
            pieces = found.pop(int(sequence))
            assert len(pieces) == -(-length // longest)
            assert (np.array(pieces) - low == np.stack([(b := cut_evenly(length, len(pieces)))[:-1], b[1:]], 1)).all()
    assert not found
    # The window length only decides the cuts of the pieces.
    assert runs_of(Plan(plan.selection, replace(plan.settings, window=window), contents="c", epoch=1)) == lanes


@given(cut_plans())
def test_a_lookahead_sees_beyond_a_piece_and_not_beyond_the_chosen_span(plan):
    runs = plan.runs(0, plan.num_windows, 0, plan.settings.lanes)
    held = runs.sequence >= 0
    rows = np.arange(len(plan.selection))
    starts, lengths = plan.selection.starts_of(rows), plan.selection.lengths
    spans = dict(
        zip(plan.selection.sequences_of(rows).tolist(), zip(starts, starts + lengths, strict=True), strict=True)
    )
    for sequence, low, high in zip(runs.sequence[held], runs.low[held], runs.high[held], strict=True):
        assert spans[int(sequence)] == (low, high)


@given(cut_plans())
def test_dropped_tails_of_pieces_are_counted(plan):
    try:
        dropped = Plan(plan.selection, replace(plan.settings, tail="drop"), contents="c", epoch=1)
    except PlanError:
        return
    window = plan.settings.window
    kept = [
        (sequence, start, start + (stop - start) // window * window)
        for lane in runs_of(plan)
        for sequence, start, stop in lane
        if stop - start >= window
    ]
    assert sorted(piece for lane in runs_of(dropped) for piece in lane) == sorted(kept)
    assert dropped.num_timesteps == sum(stop - start for _, start, stop in kept)
    assert dropped.left_out == plan.num_timesteps - dropped.num_timesteps


def test_pieces_of_many_spans_are_found_alone():
    rng = np.random.default_rng(0)
    count = BLOCK + 100
    for longest in (3, 7, 50, 10**6):
        lengths = np.minimum(rng.lognormal(3, 1, count), 5000).astype(np.int64)
        lengths[rng.integers(0, count, 100)] = 0
        pieces = Pieces(lengths, longest)
        expected = []
        for span, length in enumerate(lengths.tolist()):
            borders = cut_evenly(length, max(1, -(-length // longest)))
            expected += [(span, int(a), int(b - a)) for a, b in pairwise(borders)]
        numbers = np.arange(len(pieces))
        assert list(zip(*(column.tolist() for column in pieces.locate(numbers)), strict=True)) == expected
        assert pieces.lengths().tolist() == [length for _, _, length in expected]


def test_cutting_long_sequences_is_part_of_the_fingerprint():
    lengths = np.array([100, 5])
    made = [
        Plan(select_all(lengths), PlanSettings(lanes=2, window=4, longest=longest), contents="c", epoch=0)
        for longest in (None, 50, 60)
    ]
    assert len({plan.fingerprint for plan in made}) == 3
    # What a version without `longest` made of the same settings.
    assert made[0].fingerprint == "71f8128016acdbe024f28a637a0cc65b"


@pytest.mark.parametrize("change", [{"split": AsIs(), "window": None}, {"layout": "even"}])
def test_sequences_are_cut_only_where_whole_ones_fill_the_lanes(change):
    with pytest.raises(ValueError, match="longest=9"):
        PlanSettings(**{"lanes": 2, "window": 4, "longest": 9, **change})
    with pytest.raises(ValueError, match="longest is at least 1"):
        PlanSettings(lanes=2, window=4, longest=0)


@given(plans())
def test_occupancy_is_what_the_cells_say(plan):
    cells = all_cells(plan)
    idle = cells.sequence < 0
    lengths = np.array([plan.window_length(t) for t in range(plan.num_windows)])
    timesteps = int((cells.stop - cells.start).sum())
    assert plan.occupancy == Occupancy(
        lane_windows=idle.size,
        idle_lane_windows=int(idle.sum()),
        timesteps=timesteps,
        padding_timesteps=int((~idle).sum(1) @ lengths) - timesteps,
    )
    assert plan.occupancy.busy == pytest.approx(1 - idle.mean())


def test_ragged_sequences_keep_the_lanes_busy():
    rng = np.random.default_rng(7)
    lengths = np.maximum(1, rng.lognormal(np.log(2000) - 0.5, 1, 200_000).astype(np.int64))
    for shuffle in (False, True):
        options = PlanSettings(lanes=32, window=512, shuffle=shuffle)
        assert Plan(select_all(lengths), options, contents="", epoch=0).occupancy.busy >= 0.97
    few = [
        Plan(select_all(lengths[:100]), PlanSettings(lanes=32, window=512, longest=longest), contents="", epoch=0)
        for longest in (None, 2048)
    ]
    assert few[0].occupancy.busy < few[1].occupancy.busy


@st.composite
def switched(draw):
    """A plan and how its windows change: (window, step) pairs, the last step perhaps the end of the epoch."""
    plan = draw(st.one_of(plans(split=Naive()), cut_plans()))
    changes, here = [], plan
    for _ in range(draw(st.integers(1, 3))):
        change = (draw(st.integers(1, 25)), draw(st.integers(0, here.num_windows)))
        here = here.rewindowed(change[0], step=change[1])
        changes.append(change)
    return plan, changes


def spans_of(plan, stop):
    """(sequence, start, stop, reset, final) of each lane's windows `[0, stop)`, idle ones left out."""
    if not stop:
        return [[] for _ in range(plan.settings.lanes)]
    cells = plan.cells(0, stop, 0, plan.settings.lanes)
    names = ("sequence", "start", "stop", "reset", "final")
    columns = [getattr(cells, name) for name in names]
    lanes = [
        list(zip(*(each[:, lane].tolist() for each in columns), strict=True)) for lane in range(cells.sequence.shape[1])
    ]
    for lane in lanes:
        idle = [sequence < 0 for sequence, *_ in lane]
        assert idle == sorted(idle)  # a lane that is idle once is idle for good
    return [[span for span in lane if span[0] >= 0] for lane in lanes]


@given(switched())
def test_windows_of_another_length_go_on_where_each_lane_stopped(case):
    plan, changes = case
    emitted = [[] for _ in range(plan.settings.lanes)]
    here = plan
    for window, step in [*changes, (None, None)]:
        for lane, spans in zip(emitted, spans_of(here, here.num_windows if window is None else step), strict=True):
            lane += [(*span, here.settings.window) for span in spans]
        if window is not None:
            done = sum(stop - start for lane in emitted for _, start, stop, *_ in lane)
            here = here.rewindowed(window, step=step)
            assert here.num_timesteps == plan.num_timesteps - done
            assert here.fingerprint == plan.fingerprint
            assert here.longest == plan.longest
    for lane, whole in zip(emitted, runs_of(plan), strict=True):
        pieces, begin, at = [], None, None
        for sequence, start, stop, reset, final, window in lane:
            assert reset == (begin is None)
            assert reset or (sequence, start) == at
            assert stop - start == window or (final and stop - start < window)
            begin, at = (start if reset else begin), (sequence, stop)
            if final:
                pieces.append((sequence, begin, stop))
                begin = None
        assert pieces == whole


@given(switched())
def test_a_plan_with_switches_is_made_again_from_its_settings(case):
    plan, changes = case
    here = plan
    for window, step in changes:
        here = here.rewindowed(window, step=step)
        occupancy = here.occupancy
        again = Plan(plan.selection, here.settings, contents="c", epoch=plan.epoch)
        assert again.num_windows == here.num_windows
        assert again.occupancy == occupancy
        assert (again.num_timesteps, again.left_out, again.longest) == (here.num_timesteps, 0, plan.longest)
        assert spans_of(again, again.num_windows) == spans_of(here, here.num_windows)
        for t in range(here.num_windows):
            assert spans_of_window(again, t) == spans_of_window(all_cells(here), t)


def spans_of_window(source, t):
    cells, row = (source.cells(t, t + 1, 0, source.settings.lanes), 0) if isinstance(source, Plan) else (source, t)
    return [getattr(cells, name)[row].tolist() for name in ("sequence", "start", "stop", "reset", "final")]


@given(plans(split=Naive()), st.data())
def test_the_same_window_length_goes_on_as_if_nothing_had_changed(plan, data):
    step = data.draw(st.integers(0, plan.num_windows))
    rest = plan.rewindowed(plan.settings.window, step=step)
    assert rest.num_windows == plan.num_windows - step
    for t in range(rest.num_windows):
        assert spans_of_window(rest, t) == spans_of_window(plan, step + t)


def token_of(plan, step, lanes=slice(None), **change):
    cells = plan.cells(step, step + 1, 0, plan.settings.lanes)
    values = {name: getattr(cells, name)[0][lanes].copy() for name in ("sequence", "start", "stop", "reset", "final")}
    values |= {"lane": np.arange(plan.settings.lanes)[lanes], "epoch": plan.epoch, "step": step, "version": 1}
    values |= {"fingerprint": plan.fingerprint, "window": plan.settings.window, "switches": plan.settings.switches}
    values |= {"num_steps": plan.window_length(step), "segments": cells.segments_of(0)}
    return StateToken(**{**values, **change})


def test_a_token_says_where_its_plan_goes_on():
    plan = Plan(select_all(np.array([50, 9, 30])), PlanSettings(lanes=3, window=4), contents="c", epoch=0)
    rest = plan.rewindowed(7, step=3)
    for each in (plan, rest):
        for step in range(each.num_windows):
            assert each.step_after(token_of(each, step)) == step + 1
            assert each.step_after(token_of(each, step, slice(1, 3))) == step + 1
    assert rest.cells(0, 1, 0, 3).start.tolist() == [[12, 0, 12]]
    assert rest.cells(0, 1, 0, 3).stop.tolist() == [[19, 0, 19]]
    assert rest.cells(0, 1, 0, 3).sequence.tolist() == [[0, -1, 2]]
    token = token_of(plan, 3)
    for wrong, name in [
        (token_of(rest, 1), "window"),
        (token_of(rest.rewindowed(4, step=1), 1), "switches"),
        (replace(token, fingerprint="other"), "other"),
        (replace(token, epoch=1), "epoch"),
        (replace(token, step=13), "windows 0 to 12"),
        (replace(token, step=4), "lane 0 has start 16"),
        (token.cut(0, 2), "stop 16"),
    ]:
        with pytest.raises(ResumeError, match=name):
            plan.step_after(wrong)


def test_windows_change_only_where_that_has_a_meaning():
    lengths = select_all(np.array([50, 9]))
    plan = Plan(lengths, PlanSettings(lanes=2, window=4), contents="c", epoch=0)
    with pytest.raises(PlanError, match="13 of 4 timesteps, got a change after 14"):
        plan.rewindowed(3, step=14)
    with pytest.raises(PlanError, match="after 14"):
        Plan(lengths, PlanSettings(lanes=2, window=3, switches=((4, 14),)), contents="c", epoch=0)
    with pytest.raises(ValueError, match="step is at least 0"):
        plan.rewindowed(3, step=-1)
    with pytest.raises(ValueError, match="window is at least 1"):
        plan.rewindowed(0, step=1)
    assert plan.rewindowed(3, step=0).settings.switches == ()
    assert plan.rewindowed(3, step=13).num_windows == 0
    dropping = Plan(lengths, PlanSettings(lanes=2, window=4, tail="drop"), contents="c", epoch=0)
    with pytest.raises(ValueError, match='tail="drop"'):
        dropping.rewindowed(3, step=1)
    as_is = Plan(lengths, PlanSettings(lanes=2, window=None, split=AsIs()), contents="c", epoch=0)
    with pytest.raises(ValueError, match="AsIs"):
        as_is.rewindowed(3, step=1)
    with pytest.raises(ValueError, match="AsIs"):
        PlanSettings(lanes=2, window=None, split=AsIs(), switches=((4, 1),))


def test_a_position_keeps_the_switches_and_refuses_what_are_none():
    plain = Position(fingerprint="f", version=1, epoch=0, step=3, window=4)
    assert "switches" not in plain.state_dict()
    assert Position.from_state_dict(plain.state_dict()) == plain
    position = replace(plain, switches=((8, 2), (3, 5)))
    assert Position.from_state_dict(json.loads(json.dumps(position.state_dict()))) == position
    for wrong in (3, [3], [[3]], [[3, 0]], [[3, "4"]], [[3, 4, 5]], None):
        with pytest.raises(ResumeError, match="switches"):
            Position.from_state_dict({**plain.state_dict(), "switches": wrong})
    plan = Plan(select_all(np.array([50])), PlanSettings(lanes=1, window=4), contents="c", epoch=0)
    token = token_of(plan.rewindowed(7, step=3), 2)
    assert Position.from_state_dict(token.state_dict()).switches == ((4, 3),)


@given(st.one_of(plans(), cut_plans()))
def test_a_plan_takes_at_most_16_bytes_a_piece(plan):
    arrays = [plan._keys, plan._layout.pieces]
    assert all(len(each) == len(arrays[0]) for each in arrays)
    arrays += [plan._pieces._cut, plan._pieces._first]
    assert sum(each.nbytes for each in arrays) <= 16 * len(plan._keys)


@pytest.mark.parametrize("change", [{}, {"shuffle": True}, {"window": 1}])
def test_planning_takes_no_more_than_16_bytes_a_sequence_beside_the_lengths(change):
    lengths = np.random.default_rng(0).integers(1, 4000, 500_000)
    options = PlanSettings(**{"lanes": 8, "window": 512, "run": 1 << 19, **change})
    Plan(select_all(lengths[:20_000]), options, contents="", epoch=0)
    tracemalloc.start()
    try:
        plan = Plan(select_all(lengths), options, contents="", epoch=0)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan.num_windows
    assert held < 16 * len(lengths)
    assert peak < 16 * len(lengths) + (2 << 20)


def test_one_sequence_of_a_trillion_timesteps_is_cut_and_rewindowed():
    options = PlanSettings(lanes=3, window=512, longest=10**9)
    plan = Plan(select_all(np.array([10**12, 5])), options, contents="", epoch=0)
    assert plan.longest == 10**9
    step = plan.num_windows // 2 + 1000
    rest = plan.rewindowed(100, step=step)
    cells = rest.cells(0, 1, 0, 3)
    assert not cells.reset.any()
    before = plan.cells(step - 1, step, 0, 3)
    assert np.array_equal(before.stop, cells.start)
