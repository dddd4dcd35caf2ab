import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamseq.core.errors import PlanError
from streamseq.core.layout import GROUP, cut_evenly, fill_lanes
from streamseq.core.plan import Plan, PlanSettings, lanes_of_rank
from streamseq.core.selection import select_all, select_spans
from streamseq.core.shuffle import shuffled_order
from streamseq.core.splits import AsIs, Naive


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
            for name in whole.__slots__:
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


@given(st.lists(st.integers(0, 100), min_size=1, max_size=300), st.integers(1, 9))
def test_lanes_fill_to_within_one_longest_sequence(lengths, lanes):
    lengths = np.array(lengths)
    load = np.bincount(fill_lanes(lengths, lanes), lengths, lanes)
    assert load.max() - load.min() <= lengths.max()


def test_many_sequences_are_dealt_in_groups_as_evenly_as_one_by_one():
    rng = np.random.default_rng(0)
    for lanes in (1, 3, 32):
        lengths = np.minimum(rng.lognormal(7, 1, 20 * GROUP), 1e6).astype(np.int64)
        lane = fill_lanes(lengths, lanes)
        load = np.bincount(lane, lengths, lanes)
        assert load.max() - load.min() <= lengths.max()
        # Neighbours are read at about the same time: a lane never runs ahead of the others by more than a group.
        place = np.array([np.flatnonzero(lane == b)[len(lengths) // lanes // 2] for b in range(lanes)])
        assert np.ptp(place) < 4 * GROUP


def test_one_sequence_longer_than_all_others_together_is_alone_on_its_lane():
    lengths = np.ones(10 * GROUP, np.int64)
    lengths[5] = 10**12
    lane = fill_lanes(lengths, 4)
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


def test_shuffling_keeps_a_bounded_number_of_chunks_in_use():
    lengths = np.full(100_000, 100)
    order = shuffled_order(lengths, run=10_000, seed=1, epoch=0)  # 100 sequences a run, 1,000 runs
    chunk = order // 100
    for part in chunk[: 62 * 1600].reshape(62, 1600):
        assert len(set(part.tolist())) <= 16
    assert np.mean(np.abs(np.diff(chunk)) > 32) > 0.5


def test_the_shuffled_order_is_the_same_in_every_version():
    assert shuffled_order(np.full(8, 3), run=6, seed=7, epoch=1).tolist() == PINNED


PINNED = [2, 3, 0, 7, 4, 6, 1, 5]


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
        fingerprint(shuffle=True),
        fingerprint(shuffle=True, seed=1),
        fingerprint(split=AsIs(), window=None),
        fingerprint(selection=select_spans(lengths, [(0, 0, 5), (1, 0, 6)])),
        fingerprint(selection=select_spans(lengths, [(0, 0, 5), (2, 0, 7), (1, 0, 6)])),
    ]
    assert len({first, *others}) == 10
