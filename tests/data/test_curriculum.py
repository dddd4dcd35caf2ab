"""Curricula: windows change where the schedule says, no timestep is lost, and any position resumes the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import streamseq as ss


def make_store(lengths):
    return ss.from_arrays({f"s{i}": {"x": 1000 * i + np.arange(n)} for i, n in enumerate(lengths)})


def contents(window):
    return window["x"].tolist(), window.mask.tolist(), window.token


@pytest.mark.filterwarnings("ignore:fewer sequences than lanes")
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.dictionaries(
        st.one_of(st.integers(1, 12), st.tuples(st.integers(1, 2), st.integers(0, 6))), st.integers(1, 9), max_size=4
    ),
    st.sampled_from(["pad", "pack"]),
    st.booleans(),
)
def test_every_timestep_comes_once_and_every_position_resumes_the_same(lengths, later, tail, threads):
    store, schedule = make_store(lengths), {0: 3, **later}

    def make():
        stream = ss.StreamDataset(store, 2, 1, shuffle=True, tail=tail)
        return ss.Curriculum(ss.StreamLoader(stream) if threads else stream, schedule)

    growing, wanted, states = make(), {}, {}
    for epoch in range(3):
        growing.set_epoch(epoch)
        seen, before = [], None
        wanted[epoch], states[epoch] = [], []
        for number, window in enumerate(growing):
            assert window.num_steps == growing.window_at(epoch, number)
            assert before is None or window.token.follows(before)
            before = window.token
            wanted[epoch].append(contents(window))
            states[epoch].append(growing.state_dict())
            assert window.token.state_dict() == states[epoch][-1]
            seen += [v for row, n in zip(window["x"].tolist(), window.lengths, strict=True) for v in row[:n]]
        assert sorted(seen) == sorted(v for i, n in enumerate(lengths) for v in range(1000 * i, 1000 * i + n))
        # The same epoch once more is the same.
        assert [contents(window) for window in growing] == wanted[epoch]
    for epoch, saved in states.items():
        for number, state in enumerate(saved):
            again = make()
            again.load_state_dict(state)
            assert [contents(window) for window in again] == wanted[epoch][number + 1 :]


def test_updates_over_a_schedule_by_epochs_are_the_same_after_a_resume():
    store = ss.from_arrays(
        {f"s{i}": {"x": np.random.default_rng(i).normal(size=(n, 2))} for i, n in enumerate([40, 33, 21])}
    )
    schedule = {0: 4, (1, 0): 8, (2, 0): 16}

    def run(stop=None, start=None):
        torch.manual_seed(0)
        cell = torch.nn.GRU(2, 3, batch_first=True).double()
        optimizer = torch.optim.SGD(cell.parameters(), 0.1)
        tbptt = ss.TBPTT(lambda x, s: cell(x, s), lambda y, w: y.square().sum(-1), k1=4, k2=12, inputs="x")
        growing = ss.Curriculum(ss.StreamDataset(store, 2, 4), schedule)
        first = 0
        if start is not None:
            cell.load_state_dict(start[0])
            tbptt.load_state_dict(start[1])
            growing.load_state_dict(start[2])
            first = growing.stream.epoch
        losses = []
        for epoch in range(first, 3):
            growing.set_epoch(epoch)
            for update in tbptt.updates(growing):
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(update.loss))
                if stop is not None and update.at_window_end and len(losses) >= stop:
                    return losses, (cell.state_dict(), tbptt.state_dict(), update.token.state_dict())
        return losses, None

    whole, _ = run()
    for stop in (3, 14, 18):
        begun, saved = run(stop=stop)
        rest, _ = run(start=saved)
        assert begun + rest == whole


def test_wrong_schedules_are_refused():
    stream = ss.StreamDataset(make_store([9, 9]), 2, 2)
    for wrong in ({}, {1: 3}, {0: 0}, {0: 2, (0, -1): 3}, {0: 2, (0, 1, 2): 3}):
        with pytest.raises(ValueError, match="window"):
            ss.Curriculum(stream, wrong)
    with pytest.raises(TypeError, match="integer"):
        ss.Curriculum(stream, {0: 2.5})
    with pytest.raises(TypeError, match="list"):
        ss.Curriculum([], {0: 2})
    for options in ({"window": None, "split": ss.splits.AsIs()}, {"window": 2, "tail": "drop"}):
        with pytest.raises(ValueError, match="within an epoch"):
            ss.Curriculum(ss.StreamDataset(make_store([9, 9]), 2, **options), {0: 2})
    growing = ss.Curriculum(stream, {0: 2, 2: 3})
    state = [window.token.state_dict() for window in growing][2]
    with pytest.raises(ss.ResumeError, match="window 2 of epoch 0 has 3 timesteps there and 2 here"):
        ss.Curriculum(stream, {0: 2}).load_state_dict(state)
