"""Plans of several parts, of classes and of buckets: what is emitted how often, and that it is one stream."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamseq.core.balance import Classes, balanced_draws
from streamseq.core.boundaries import Boundaries
from streamseq.core.errors import PlanError
from streamseq.core.mixing import Mix, allot_lanes
from streamseq.core.plan import Plan
from streamseq.core.selection import select_all
from streamseq.core.settings import PlanSettings
from streamseq.core.splits import AsIs, Domain, Naive

lists = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum)


@st.composite
def mixed(draw, until=None, classes=None):
    """A plan of one to three parts, with any split, layout and tail."""
    parts = draw(st.lists(lists, min_size=1, max_size=3))
    lengths = np.array([n for part in parts for n in part], np.int64)
    lanes = [draw(st.integers(1, 3)) for _ in parts]
    split = draw(st.sampled_from([Naive(), AsIs(), AsIs(buckets=draw(st.integers(1, 3))), Domain({})]))
    layout = "sequences" if split == AsIs(buckets=1) else draw(st.sampled_from(["sequences", "even"]))
    if isinstance(split, AsIs):
        layout = "sequences"
    tails = ["pad", "pack"] if isinstance(split, Naive) else ["pad"]
    boundaries = None
    if isinstance(split, Domain):
        rows = [row for row, n in enumerate(lengths.tolist()) if n > 3 and draw(st.booleans())]
        cuts = [sorted(draw(st.sets(st.integers(1, int(lengths[row]) - 1), min_size=1, max_size=3))) for row in rows]
        position = np.array([at for each in cuts for at in each], np.int64)
        breaks = np.array([draw(st.booleans()) for _ in position], np.bool_)
        boundaries = Boundaries(np.array(rows, np.int64), np.array([len(c) for c in cuts], np.int64), position, breaks)
    longest = draw(st.sampled_from([None, 5])) if isinstance(split, Naive) and layout == "sequences" else None
    options = PlanSettings(
        lanes=sum(lanes),
        window=None if isinstance(split, AsIs) else draw(st.integers(1, 12)),
        split=split,
        layout=layout,
        tail=draw(st.sampled_from(tails)),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
        run=draw(st.integers(1, 60)),
        longest=longest,
    )
    mix = Mix(
        rows=np.concatenate([[0], np.cumsum([len(part) for part in parts])]),
        lanes=tuple(lanes),
        until=draw(st.sampled_from(["all", "first", "repeat"])) if until is None else until,
    )
    of = None
    if classes if classes is not None else draw(st.booleans()):
        number = np.array([draw(st.integers(0, 2)) for _ in lengths], np.int64)
        of = Classes(number=number, weights=np.array([1.0, 2.0, 1.0]))
    return Plan(
        select_all(lengths),
        options,
        contents="c",
        epoch=draw(st.integers(0, 2)),
        boundaries=boundaries,
        mix=mix,
        classes=of,
    )


def emitted(plan, lanes=None):
    """(sequence, timestep), how often each is emitted, checking on the way that lanes are contiguous."""
    count = Counter()
    for lane in range(plan.settings.lanes) if lanes is None else lanes:
        runs, at = [], None
        cells = plan.cells(0, plan.num_windows, lane, lane + 1)
        for t in range(plan.num_windows):
            sequence, start, stop = (int(getattr(cells, name)[t, 0]) for name in ("sequence", "start", "stop"))
            segments = cells.segments_of(t)
            held = [(sequence, start, stop, cells.reset[t, 0])] if sequence >= 0 else []
            if segments is not None:
                held = [(int(s["sequence"]), int(s["start"]), int(s["stop"]), bool(s["reset"])) for s in segments]
            for sequence, start, stop, reset in held:
                assert reset or (sequence, start) == at
                at = (sequence, stop)
                runs += [(sequence, position) for position in range(start, stop)]
            if held and cells.final[t, 0]:
                at = None
        assert at is None
        count.update(runs)
    return count


def part_of(plan, sequence):
    return int(np.searchsorted(plan.mix.rows, sequence, "right")) - 1


slow = settings(max_examples=60, deadline=None)


@slow
@given(mixed())
def test_lanes_hold_what_their_part_has_and_uses_count_it(plan):
    count = emitted(plan)
    borders = np.concatenate([[0], np.cumsum(plan.mix.lanes)])
    for part in range(len(plan.mix.lanes)):
        lanes = range(borders[part], borders[part + 1])
        assert all(part_of(plan, sequence) == part for sequence, _ in emitted(plan, lanes))
    assert count.total() == plan.num_timesteps
    lengths = plan.selection.lengths
    for row in range(len(lengths)):
        each = [count[row, position] for position in range(lengths[row])]
        assert plan.uses.timesteps[row] == sum(each)
        assert plan.uses.distinct[row] == sum(n > 0 for n in each)
    assert plan.left_out == lengths.sum() - len(count)
    assert plan.repeated == count.total() - len(count)


@slow
@given(mixed(until="all", classes=False))
def test_until_all_emits_every_timestep_exactly_once(plan):
    lengths = plan.selection.lengths
    assert emitted(plan) == Counter((row, at) for row in range(len(lengths)) for at in range(lengths[row]))
    assert plan.left_out == plan.repeated == 0


def lane_ends(plan):
    """What each lane emits: timesteps, or with the as-is split sequences."""
    cells = plan.cells(0, plan.num_windows, 0, plan.settings.lanes)
    held = (cells.sequence >= 0) if plan.settings.window is None else cells.stop - cells.start
    if cells.segments is not None:
        lane = cells.segments["lane"]
        return np.bincount(lane, cells.segments["stop"] - cells.segments["start"], plan.settings.lanes)
    return held.sum(0)


@slow
@given(mixed(until="first", classes=False), st.integers(1, 12))
def test_until_first_ends_where_the_first_part_does_and_repeats_nothing(plan, window):
    assert plan.repeated == 0
    ends = lane_ends(plan)
    borders = np.concatenate([[0], np.cumsum(plan.mix.lanes)])
    fullest = [ends[low:high].max() for low, high in pairwise(borders)]
    whole = Plan(
        plan.selection,
        plan.settings,
        contents="c",
        epoch=plan.epoch,
        boundaries=plan.boundaries,
        mix=replace(plan.mix, until="all"),
    )
    wanted = lane_ends(whole)
    first = min(wanted[low:high].max() for low, high in pairwise(borders))
    assert max(fullest) == min(fullest) == first
    assert ends.tolist() == np.minimum(wanted, first).tolist()
    if plan.settings.window is not None:
        other = replace(plan.settings, window=window)
        again = Plan(plan.selection, other, contents="c", epoch=plan.epoch, boundaries=plan.boundaries, mix=plan.mix)
        assert emitted(again) == emitted(plan)
        assert again.fingerprint == plan.fingerprint


@slow
@given(mixed(until="repeat", classes=False))
def test_until_repeat_fills_the_lanes_of_shorter_parts_and_emits_the_longest_once(plan):
    assert plan.left_out == 0
    ends = lane_ends(plan)
    borders = np.concatenate([[0], np.cumsum(plan.mix.lanes)])
    count = emitted(plan)
    for part, (low, high) in enumerate(pairwise(borders)):
        times = {n for (sequence, _), n in count.items() if part_of(plan, sequence) == part}
        assert times == {1} or (ends[low:high] == ends.max()).all()
        assert ends[low:high].max() == ends.max()
    assert any({n for (s, _), n in count.items() if part_of(plan, s) == p} == {1} for p in range(len(plan.mix.lanes)))


@slow
@given(mixed())
def test_any_window_and_lane_is_found_alone(plan):
    whole = plan.cells(0, plan.num_windows, 0, plan.settings.lanes)
    for t in {0, plan.num_windows // 2, plan.num_windows - 1}:
        for lane in range(plan.settings.lanes):
            alone = plan.cells(t, t + 1, lane, lane + 1)
            for name in ("sequence", "start", "stop", "reset", "final"):
                assert getattr(alone, name)[0, 0] == getattr(whole, name)[t, lane]


@slow
@given(mixed(), st.integers(1, 12), st.data())
def test_a_change_of_the_window_goes_on_with_what_is_left(plan, window, data):
    if plan.settings.window is None:
        return
    step = data.draw(st.integers(0, plan.num_windows))
    rest = plan.rewindowed(window, step=step)
    seen = Counter()
    for each, first, last in ((plan, 0, step), (rest, 0, rest.num_windows)):
        if first < last:
            cells = each.cells(first, last, 0, plan.settings.lanes)
            spans = [(cells.sequence, cells.start, cells.stop)]
            if cells.segments is not None:
                held = cells.segments[cells.borders[0] : cells.borders[-1]]
                spans = [(held["sequence"], held["start"], held["stop"])]
            for sequence, start, stop in spans:
                for s, a, b in zip(sequence.ravel(), start.ravel(), stop.ravel(), strict=True):
                    seen.update((int(s), at) for at in range(a, b))
    assert seen == emitted(plan)
    assert (rest.left_out, rest.repeated) == (plan.left_out, plan.repeated)
    # The settings alone make the rest again.
    made = Plan(
        plan.selection,
        rest.settings,
        contents="c",
        epoch=plan.epoch,
        boundaries=plan.boundaries,
        mix=plan.mix,
        classes=plan.classes,
    )
    assert emitted_without_chain(made) == emitted_without_chain(rest)


def emitted_without_chain(plan):
    if not plan.num_windows:
        return []
    cells = plan.cells(0, plan.num_windows, 0, plan.settings.lanes)
    return [getattr(cells, name).tolist() for name in ("sequence", "start", "stop", "reset", "final")]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), st.integers(0, 60))
def test_lanes_are_shared_by_weight_and_every_part_has_one(weights, more):
    lanes = len(weights) + more
    allotted = allot_lanes(weights, lanes)
    assert sum(allotted) == lanes
    assert min(allotted) >= 1
    assert allotted == allot_lanes([2 * weight for weight in weights], lanes)
    for i, a in enumerate(weights):
        for j, b in enumerate(weights):
            # A heavier part never has fewer lanes.
            assert a <= b or allotted[i] >= allotted[j]
    if min(weights) * lanes >= sum(weights) * (1 + 1e-9):
        share = np.array(weights) / sum(weights) * lanes
        assert (np.abs(np.array(allotted) - share) < 1 + 1e-9).all()


def test_wrong_weights_are_refused():
    with pytest.raises(PlanError, match="lanes=1 for 2"):
        allot_lanes([1, 1], 1)
    for wrong, error in (([0, 1], ValueError), ([float("nan")], ValueError), (["1"], TypeError), ([True], TypeError)):
        with pytest.raises(error, match="weight"):
            allot_lanes(wrong, 4)
    with pytest.raises(ValueError, match="until"):
        Mix(rows=np.array([0, 1]), lanes=(1,), until="last")


def test_parts_are_shuffled_independently_and_passes_differ():
    mix = Mix(rows=np.array([0, 50, 100, 600]), lanes=(1, 1, 1), until="repeat")
    options = PlanSettings(lanes=3, window=4, shuffle=True, run=1)
    plan = Plan(select_all(np.full(600, 4)), options, contents="", epoch=0, mix=mix)
    sequence = plan.cells(0, plan.num_windows, 0, 3).sequence
    assert sequence.shape == (500, 3)
    passes = sequence[:, 0].reshape(10, 50)
    assert all(sorted(each) == list(range(50)) for each in passes.tolist())
    assert len({tuple(each) for each in passes.tolist()}) == 10
    assert (sequence[:50, 0] != sequence[:50, 1] - 50).any()


# --- buckets ---------------------------------------------------------------------------------------------------------


def test_buckets_leave_less_padding_and_emit_every_sequence_once():
    lengths = np.maximum(1, np.random.default_rng(0).lognormal(4, 1, 5003)).astype(np.int64)
    filled = {}
    for buckets in (None, 1, 10, 50):
        options = PlanSettings(lanes=16, window=None, split=AsIs(buckets=buckets), shuffle=True)
        plan = Plan(select_all(lengths), options, contents="", epoch=1)
        sequence = plan.cells(0, plan.num_windows, 0, 16).sequence
        assert sorted(sequence[sequence >= 0].tolist()) == list(range(5003))
        assert plan.num_windows == -(-5003 // 16)
        filled[buckets] = plan.occupancy.filled
    assert filled[None] < 0.3
    assert filled[1] == pytest.approx(filled[None], abs=0.03)
    assert filled[10] > 0.6
    assert filled[50] > 0.85


def test_buckets_come_in_another_order_in_each_epoch_and_lengths_in_no_order():
    lengths = np.arange(1, 1025)
    orders = []
    for epoch in (0, 1):
        options = PlanSettings(lanes=8, window=None, split=AsIs(buckets=128), shuffle=True)
        plan = Plan(select_all(lengths), options, contents="", epoch=epoch)
        sequence = plan.cells(0, 128, 0, 8).sequence
        # All of the epoch is sorted at once: a window holds eight lengths that follow each other, in any order.
        assert (np.ptp(sequence, 1) == 7).all()
        assert not (np.diff(sequence, axis=1) > 0).all()
        assert abs(np.corrcoef(sequence[:, 0], np.arange(128))[0, 1]) < 0.3
        orders.append(sequence.tolist())
    assert orders[0] != orders[1]
    plain = replace(options, shuffle=False)
    sequence = Plan(select_all(lengths[::-1].copy()), plain, contents="", epoch=0).cells(0, 128, 0, 8).sequence
    assert sequence.ravel().tolist() == list(range(1023, -1, -1))


def test_a_window_that_is_not_full_comes_last_with_the_shortest_sequences_of_its_pool():
    options = PlanSettings(lanes=4, window=None, split=AsIs(buckets=100), shuffle=True)
    plan = Plan(select_all(np.arange(10, 0, -1)), options, contents="", epoch=0)
    cells = plan.cells(0, 3, 0, 4)
    assert sorted((cells.stop - cells.start)[2].tolist()) == [0, 0, 1, 2]


def test_buckets_of_mixed_parts_have_similar_ranks():
    lengths = np.concatenate([np.arange(1, 401), np.arange(1, 401)])
    mix = Mix(rows=np.array([0, 400, 800]), lanes=(4, 4))
    options = PlanSettings(lanes=8, window=None, split=AsIs(buckets=100), shuffle=True)
    plan = Plan(select_all(lengths), options, contents="", epoch=0, mix=mix)
    sequence = plan.cells(0, plan.num_windows, 0, 8).sequence
    held = lengths[sequence]
    assert np.ptp(held, 1).max() <= 4
    assert plan.occupancy.filled > 0.95


def test_the_fingerprint_covers_buckets_mixes_and_classes():
    lengths = np.array([5, 6, 7, 8])

    def fingerprint(mix=None, classes=None, **change):
        options = PlanSettings(**{"lanes": 2, "window": None, "split": AsIs(), **change})
        return Plan(select_all(lengths), options, contents="", epoch=0, mix=mix, classes=classes).fingerprint

    def of(number, weights=(1.0, 1.0)):
        return Classes(number=np.array(number), weights=np.array(weights))

    every = [
        fingerprint(),
        fingerprint(split=AsIs(buckets=2)),
        fingerprint(split=AsIs(buckets=3)),
        *(fingerprint(mix=Mix(rows=np.array([0, 2, 4]), lanes=(1, 1), until=u)) for u in ("all", "first", "repeat")),
        fingerprint(mix=Mix(rows=np.array([0, 1, 4]), lanes=(1, 1))),
        fingerprint(classes=of([0, 0, 1, 1])),
        fingerprint(classes=of([0, 1, 1, 1])),
        fingerprint(classes=of([0, 0, 1, 1], (1.0, 2.0))),
        fingerprint(classes=of([0, 0, 1, 1]), seed=1),
    ]
    assert len(set(every)) == len(every)


def test_buckets_that_do_not_go_are_refused():
    for wrong, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="buckets"):
            AsIs(buckets=wrong)
    with pytest.raises(ValueError, match="buckets"):
        PlanSettings(lanes=2, window=None, split=AsIs(buckets=3), layout="even")


# --- balance ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=60).filter(
        lambda r: any(n for n, _ in r)
    ),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_classes_come_in_their_ratios_and_sequences_of_a_class_equally_often(rows, seed, epoch):
    lengths, number = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    classes = Classes(number=number, weights=np.array([1.0, 1.0, 2.0, 0.0]))
    if not (lengths[number < 3]).any():
        return
    draws = [balanced_draws(lengths, classes, 20, seed, e) for e in range(epoch + 1)]
    total = int(np.count_nonzero(lengths))
    there = [c for c in range(3) if lengths[number == c].any()]
    weights = classes.weights[there] / classes.weights[there].sum()
    assert all(len(each) == total and lengths[each].all() for each in draws)
    for c, share in zip(there, weights, strict=True):
        assert abs(np.count_nonzero(number[draws[epoch]] == c) - total * share) < 1
    # Over all epochs so far: within a class one more at most.
    times = np.bincount(np.concatenate(draws), minlength=len(lengths))
    for c in there:
        assert np.ptp(times[(number == c) & (lengths > 0)]) <= 1
    assert not times[(number == 3) | (lengths == 0)].any()


def test_any_stretch_of_an_epoch_is_balanced_also_where_the_store_is_sorted_by_class():
    number = np.repeat([0, 1, 2], [9000, 900, 100])
    classes = Classes(number=number, weights=np.ones(3))
    draws = balanced_draws(np.full(10_000, 50), classes, 5000, 3, 2)
    for first in range(0, 9000, 300):
        held = np.bincount(number[draws[first : first + 300]], minlength=3)
        assert (np.abs(held - 100) <= 4).all()
    assert not np.array_equal(draws, balanced_draws(np.full(10_000, 50), classes, 5000, 3, 3))
    assert np.array_equal(draws, balanced_draws(np.full(10_000, 50), classes, 5000, 3, 2))
