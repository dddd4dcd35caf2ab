"""Plans with the domain split: windows end at boundaries, and states begin anew at breaks and nowhere else."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamseq.core.boundaries import Boundaries
from streamseq.core.domain import DomainPieces
from streamseq.core.layout import Occupancy
from streamseq.core.plan import Plan
from streamseq.core.selection import select_all, select_spans
from streamseq.core.settings import PlanSettings
from streamseq.core.splits import AsIs, Domain, Naive

SPLIT = Domain({})
NAMES = ("sequence", "start", "stop", "reset", "final")


def made(positions, breaks):
    """Boundaries of {sequence: positions}, of which some are breaks: {sequence: positions}."""
    held = [(s, sorted(p)) for s, p in sorted(positions.items()) if p]
    flags = [p in breaks.get(s, ()) for s, each in held for p in each]
    return Boundaries(
        np.array([s for s, _ in held], np.int64),
        np.array([len(p) for _, p in held], np.int64),
        np.array([p for _, each in held for p in each], np.int64),
        np.array(flags, np.bool_),
    )


@st.composite
def cases(draw):
    """A plan, its boundaries and breaks by sequence, and what was chosen of each."""
    lengths = draw(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(sum))
    positions, breaks = {}, {}
    for index, n in enumerate(lengths):
        if n > 1 and draw(st.integers(0, 3)):
            positions[index] = draw(st.sets(st.integers(1, n - 1), max_size=12))
            breaks[index] = draw(st.sets(st.sampled_from(sorted(positions[index])))) if positions[index] else set()
    lengths = np.array(lengths, np.int64)
    chosen = [(index, 0, int(n)) for index, n in enumerate(lengths)]
    selection = select_all(lengths)
    if draw(st.booleans()):
        spans = []
        for index, _, n in draw(st.permutations(chosen)):
            start = draw(st.integers(0, n))
            spans.append((index, start, draw(st.integers(start, n))))
        if sum(stop - start for _, start, stop in spans):
            chosen, selection = spans, select_spans(lengths, spans)
    options = PlanSettings(
        lanes=draw(st.integers(1, 6)),
        window=draw(st.integers(1, 20)),
        split=SPLIT,
        layout=draw(st.sampled_from(["sequences", "even"])),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 5)),
        run=draw(st.integers(1, 100)),
    )
    plan = Plan(selection, options, contents="c", epoch=draw(st.integers(0, 2)), boundaries=made(positions, breaks))
    return plan, positions, breaks, chosen


def cells_of(plan, lane):
    """(sequence, start, stop, reset, final) of a lane's windows, idle ones left out."""
    cells = plan.cells(0, plan.num_windows, lane, lane + 1)
    rows = list(zip(*(getattr(cells, name)[:, 0].tolist() for name in NAMES), strict=True))
    idle = [row[0] < 0 for row in rows]
    assert idle == sorted(idle)
    return [row for row in rows if row[0] >= 0]


def lanes_of(plan):
    return [cells_of(plan, lane) for lane in range(plan.settings.lanes)]


@given(cases())
def test_every_timestep_is_emitted_once_and_lanes_go_on_or_reset(case):
    plan, _, breaks, chosen = case
    emitted, begins = [], set()
    for rows in lanes_of(plan):
        at = None
        for sequence, start, stop, reset, final in rows:
            assert 0 < stop - start <= plan.settings.window
            assert reset == (at is None)
            if reset:
                begins.add((sequence, start))
            else:
                assert at == (sequence, start)
            at = None if final else (sequence, stop)
            emitted += [(sequence, t) for t in range(start, stop)]
        assert at is None
    assert sorted(emitted) == sorted((s, t) for s, start, stop in chosen for t in range(start, stop))
    assert plan.num_timesteps == len(emitted)
    assert plan.left_out == 0
    # States begin anew at the start of what was chosen and at breaks, and nowhere else.
    wanted = {(s, start) for s, start, stop in chosen if stop > start}
    wanted |= {(s, p) for s, start, stop in chosen for p in breaks.get(s, ()) if start < p < stop}
    if plan.settings.layout == "sequences":
        assert begins == wanted
    else:
        assert wanted <= begins
        assert len(begins - wanted) < plan.settings.lanes


@given(cases())
def test_windows_end_at_every_boundary_and_elsewhere_only_when_they_are_full(case):
    plan, positions, _, chosen = case
    spans = {s: (start, stop) for s, start, stop in chosen}
    starts, stops = set(), set()
    for rows in lanes_of(plan):
        for index, (sequence, start, stop, *_) in enumerate(rows):
            assert not any(start < p < stop for p in positions.get(sequence, ()))
            starts.add((sequence, start))
            stops.add((sequence, stop))
            border = stop == spans[sequence][1] or stop in positions.get(sequence, ())
            # In the even layout a lane ends anywhere.
            last = plan.settings.layout == "even" and index == len(rows) - 1
            assert border or last or stop - start == plan.settings.window
    for sequence, (low, high) in spans.items():
        for p in positions.get(sequence, ()):
            if low < p < high:
                assert (sequence, p) in starts
                assert (sequence, p) in stops


@given(cases())
def test_any_lanes_and_steps_are_found_alone(case):
    plan, *_ = case
    whole = plan.cells(0, plan.num_windows, 0, plan.settings.lanes)
    for t in range(plan.num_windows):
        for lane in range(plan.settings.lanes):
            alone = plan.cells(t, t + 1, lane, lane + 1)
            assert all(getattr(alone, name)[0, 0] == getattr(whole, name)[t, lane] for name in NAMES)
    busy = whole.sequence >= 0
    timesteps = int((whole.stop - whole.start).sum())
    assert plan.occupancy == Occupancy(
        lane_windows=busy.size,
        idle_lane_windows=int((~busy).sum()),
        timesteps=timesteps,
        padding_timesteps=int(busy.sum()) * plan.settings.window - timesteps,
    )


@given(cases())
def test_the_longest_group_and_their_number_are_those_that_are_emitted(case):
    plan, *_ = case
    groups = []
    for rows in lanes_of(plan):
        for _, start, stop, reset, _ in rows:
            if reset:
                groups.append(0)
            groups[-1] += stop - start
    assert plan.longest == max(groups)
    if plan.settings.layout == "sequences":
        assert plan.num_groups == len(groups)


@given(cases(), st.integers(1, 25))
def test_the_window_length_does_not_decide_what_a_lane_gets(case, window):
    plan, *_ = case
    other = Plan(
        plan.selection,
        replace(plan.settings, window=window),
        contents="c",
        epoch=plan.epoch,
        boundaries=plan.boundaries,
    )
    assert other.fingerprint == plan.fingerprint
    for left, right in zip(lanes_of(plan), lanes_of(other), strict=True):
        timesteps = [[(s, t) for s, a, b, *_ in rows for t in range(a, b)] for rows in (left, right)]
        assert timesteps[0] == timesteps[1]
        assert [row[:2] for row in left if row[3]] == [row[:2] for row in right if row[3]]


@given(cases())
def test_without_boundaries_windows_are_those_of_the_naive_split(case):
    plan, *_ = case
    settings = replace(plan.settings, split=Naive())
    naive = Plan(plan.selection, settings, contents="c", epoch=plan.epoch)
    empty = Plan(plan.selection, plan.settings, contents="c", epoch=plan.epoch, boundaries=made({}, {}))
    assert lanes_of(naive) == lanes_of(empty)
    assert (naive.num_windows, naive.longest, naive.num_groups) == (empty.num_windows, empty.longest, empty.num_groups)
    assert naive.fingerprint != empty.fingerprint
    left, right = (each.runs(0, each.num_windows, 0, settings.lanes) for each in (naive, empty))
    assert np.array_equal(left.low, right.low)
    assert np.array_equal(left.high, right.high)


@given(cases(), st.lists(st.tuples(st.integers(1, 25), st.floats(0, 1)), min_size=1, max_size=3))
def test_windows_of_another_length_go_on_where_each_lane_stopped(case, changes):
    plan, positions, *_ = case
    wanted = lanes_of(plan)
    emitted, here, done = [[] for _ in wanted], plan, 0
    for window, share in [*changes, (None, 1.0)]:
        step = round(share * here.num_windows)
        if step:
            cells = here.cells(0, step, 0, plan.settings.lanes)
            for lane, rows in enumerate(emitted):
                each = zip(*(getattr(cells, name)[:, lane].tolist() for name in NAMES), strict=True)
                rows += [(*row, here.settings.window) for row in each if row[0] >= 0]
        if window is None:
            break
        done = sum(b - a for rows in emitted for _, a, b, *_ in rows)
        here = here.rewindowed(window, step=step)
        assert (here.num_timesteps, here.longest) == (plan.num_timesteps - done, plan.longest)
        assert here.fingerprint == plan.fingerprint
        again = Plan(plan.selection, here.settings, contents="c", epoch=plan.epoch, boundaries=plan.boundaries)
        assert again.num_windows == here.num_windows
        if here.num_windows:
            assert lanes_of(again) == lanes_of(here)
    for rows, whole in zip(emitted, wanted, strict=True):
        assert [(s, t) for s, a, b, *_ in rows for t in range(a, b)] == [
            (s, t) for s, a, b, *_ in whole for t in range(a, b)
        ]
        assert [row[:2] for row in rows if row[3]] == [row[:2] for row in whole if row[3]]
        ends = [(row[0], row[2]) for row in whole if row[4]]
        assert [(row[0], row[2]) for row in rows if row[4]] == ends
        for sequence, a, b, _, final, window in rows:
            assert not any(a < p < b for p in positions.get(sequence, ()))
            assert b - a == window or final or b in positions.get(sequence, ())


@given(cases())
def test_a_lookahead_sees_beyond_a_boundary_and_not_beyond_a_break(case):
    plan, _, breaks, chosen = case
    spans = {s: (start, stop) for s, start, stop in chosen}
    runs = plan.runs(0, plan.num_windows, 0, plan.settings.lanes)
    for sequence, start, stop, low, high in zip(
        *(getattr(runs, name).tolist() for name in ("sequence", "start", "stop", "low", "high")), strict=True
    ):
        if sequence >= 0:
            first, last = spans[sequence]
            borders = [first, *sorted(p for p in breaks.get(sequence, ()) if first < p < last), last]
            assert low == max(p for p in borders if p <= start)
            assert high == min(p for p in borders if p >= stop)


def test_shuffling_permutes_groups_and_keeps_each_in_order():
    lengths = np.full(50, 40)
    every = {s: {7, 20, 33} for s in range(50)}
    boundaries = made(every, {s: {20} for s in range(50)})
    options = PlanSettings(lanes=1, window=64, split=SPLIT, shuffle=True, run=40)
    orders = []
    for epoch in range(2):
        plan = Plan(select_all(lengths), options, contents="", epoch=epoch, boundaries=boundaries)
        rows = cells_of(plan, 0)
        groups = [(sequence, start) for sequence, start, _, reset, _ in rows if reset]
        assert sorted(groups) == [(s, p) for s in range(50) for p in (0, 20)]
        assert groups != sorted(groups)
        orders.append(groups)
    assert orders[0] != orders[1]


def test_the_fingerprint_covers_positions_and_breaks():
    lengths = np.array([10, 10])

    def fingerprint(positions, breaks, **change):
        options = PlanSettings(**{"lanes": 2, "window": 4, "split": SPLIT, **change})
        plan = Plan(select_all(lengths), options, contents="c", epoch=0, boundaries=made(positions, breaks))
        return plan.fingerprint

    first = fingerprint({0: {5}}, {})
    others = [
        fingerprint({0: {6}}, {}),
        fingerprint({1: {5}}, {}),
        fingerprint({0: {5}}, {0: {5}}),
        fingerprint({0: {5}, 1: {5}}, {}),
        fingerprint({}, {}),
        fingerprint({0: {5}}, {}, layout="even"),
    ]
    assert first == fingerprint({0: {5}}, {}, window=7)
    assert len({first, *others}) == 7


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tail": "drop"}, 'tail="drop".*tail="pad", or Naive'),
        ({"tail": "pack"}, 'tail="pack".*tail="pad", or Naive'),
        ({"longest": 9}, "longest=9.*reset=True"),
        ({"window": None}, "window=256"),
    ],
)
def test_what_does_not_go_with_boundaries_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        PlanSettings(**{"lanes": 2, "window": 4, "split": SPLIT, **change})


def test_boundaries_come_with_the_domain_split_and_only_with_it():
    lengths = select_all(np.array([10]))
    for split, boundaries in ((SPLIT, None), (Naive(), made({}, {}))):
        with pytest.raises(ValueError, match="has boundaries"):
            Plan(lengths, PlanSettings(lanes=1, window=4, split=split), contents="", epoch=0, boundaries=boundaries)
    assert not isinstance(SPLIT, AsIs)


def test_a_plan_takes_no_more_than_16_bytes_a_piece_beside_its_boundaries():
    rng = np.random.default_rng(0)
    lengths = rng.integers(500, 4000, 2_000)
    counts = rng.integers(1, 400, len(lengths))
    position = np.concatenate(
        [np.sort(rng.choice(n - 1, k, replace=False)) + 1 for n, k in zip(lengths, counts, strict=True)]
    )
    boundaries = Boundaries(np.arange(len(lengths)), counts, position, rng.random(len(position)) < 0.1)
    options = PlanSettings(lanes=8, window=64, split=SPLIT)
    tracemalloc.start()
    try:
        plan = Plan(select_all(lengths), options, contents="", epoch=0, boundaries=boundaries)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(plan._pieces, DomainPieces)
    assert held < 16 * len(plan._pieces)
    assert len(plan._pieces) == len(lengths) + len(position)


def test_one_long_sequence_with_a_million_boundaries_on_even_lanes():
    position = np.arange(1, 1_000_000) * 1_000_003
    boundaries = Boundaries(np.array([0]), np.array([len(position)]), position, position % 7 == 0)
    options = PlanSettings(lanes=32, window=512, split=SPLIT, layout="even")
    plan = Plan(select_all(np.array([10**12])), options, contents="", epoch=0, boundaries=boundaries)
    step = plan.num_windows - 1
    cells = plan.cells(step, step + 1, 0, 32)
    assert cells.final[cells.sequence >= 0].all()
    assert cells.stop.max() <= 10**12
    assert plan.num_timesteps == 10**12
