"""The carry: the right state for each lane, and a broken chain is an error."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import streamseq as ss


def make_stream(lengths, lanes, window, **options):
    arrays = {f"s{i}": {"x": np.arange(n, dtype=np.float64) + 100 * i} for i, n in enumerate(lengths)}
    return ss.StreamDataset(ss.from_arrays(arrays), lanes=lanes, window=window, **options)


def running_sums(stream, carry, windows=None):
    """Carries {"sum": [B]}: at a sequence's end it must be the sequence's sum."""
    ends = {}
    for window in stream if windows is None else windows:
        state = carry.enter(window.token)
        total = window["x"].sum(1) + (0 if state is None else state["sum"])
        carry.leave(window.token, {"sum": total})
        for lane in np.flatnonzero(window.token.final):
            ends[int(window.token.sequence[lane])] = float(total[lane])
    return ends


def test_states_follow_their_sequences():
    stream = make_stream([7, 3, 9, 1, 4, 12], lanes=3, window=3)
    wanted = {i: sum(range(n)) + 100 * i * n for i, n in enumerate([7, 3, 9, 1, 4, 12])}
    assert running_sums(stream, ss.Carry()) == wanted
    assert running_sums(stream, ss.Carry(lane_axis=0)) == wanted
    assert running_sums(stream, ss.Carry(lane_axis={"sum": 0})) == wanted
    initial = ss.Carry(initial_state=lambda lanes: {"sum": torch.full((lanes,), 5.0, dtype=torch.float64)})
    assert running_sums(stream, initial) == {i: total + 5 for i, total in wanted.items()}


def test_an_lstm_carries_what_one_call_would_have_computed():
    stream = make_stream([11, 5, 6], lanes=2, window=4)
    torch.manual_seed(0)
    model = nn.LSTM(1, 3, batch_first=True).double()
    carry = ss.Carry()
    outputs = {}
    for window in stream:
        y, state = model(window["x"][..., None], carry.enter(window.token))
        assert y.requires_grad
        carry.leave(window.token, state)
        for lane in range(2):
            n, sequence = int(window.lengths[lane]), int(window.token.sequence[lane])
            outputs.setdefault(sequence, []).append(y[lane, :n])
    for sequence in range(3):
        x = torch.from_numpy(stream.store.read(sequence)["x"])[None, :, None]
        torch.testing.assert_close(torch.cat(outputs[sequence]), model(x)[0][0])


def test_a_module_s_initial_state_is_used():
    class Start(nn.Module):
        def initial_state(self, lanes):
            return {"sum": torch.ones(lanes, dtype=torch.float64)}

    stream = make_stream([4, 2], lanes=1, window=2)
    assert running_sums(stream, ss.Carry(Start())) == {0: 7.0, 1: 202.0}
    for wrong in (nn.Linear(1, 1), 3):
        with pytest.raises(TypeError, match="initial_state"):
            ss.Carry(wrong)


def test_a_window_that_does_not_follow_is_an_error():
    stream = make_stream([9, 9], lanes=2, window=3)
    windows = list(stream)
    for order in ([0, 2], [0, 1, 1], [1], [0, 1, 2, 2]):
        with pytest.raises(ss.ContinuityError, match="stream order"):
            running_sums(stream, ss.Carry(), [windows[t] for t in order])
    carry = ss.Carry()
    carry.enter(windows[0].token)
    carry.leave(windows[0].token, {"sum": torch.zeros(2)})
    with pytest.raises(ss.ContinuityError, match=r"window 2 of lane 0 starts at 6 .*ends at 3 of sequence 0"):
        carry.enter(windows[2].token)
    with pytest.raises(ss.ContinuityError, match="ends at 3"):
        carry.leave(windows[2].token, None)
    other = make_stream([9, 9], lanes=2, window=3, shuffle=True)
    with pytest.raises(ss.ContinuityError, match="another plan"):
        carry.enter(other[1].token)
    ended = dataclasses.replace(windows[0].token, final=np.array([True, False]))
    assert windows[1].token.follows(windows[0].token)
    assert not windows[1].token.follows(ended)
    # A lane that resets may follow anything.
    carry.enter(windows[0].token)
    carry.enter(other[0].token)


def test_a_carry_goes_on_from_its_saved_state(tmp_path):
    stream = make_stream([11, 5, 6], lanes=2, window=2)
    wanted = running_sums(stream, ss.Carry())
    for stop in range(1, len(stream)):
        carry = ss.Carry()
        windows = list(stream)
        ends = running_sums(stream, carry, windows[:stop])
        torch.save(carry.state_dict(), tmp_path / "carry")
        again = ss.Carry()
        again.load_state_dict(torch.load(tmp_path / "carry", weights_only=True))
        ends |= running_sums(stream, again, windows[stop:])
        assert ends == wanted
    with pytest.raises(ss.ResumeError, match="token and state"):
        ss.Carry().load_state_dict({"h": 1})
    empty = ss.Carry()
    empty.load_state_dict(ss.Carry().state_dict())
    assert empty.enter(windows[0].token) is None


def test_a_lane_axis_that_cannot_be_told_is_asked_for():
    stream = make_stream([5, 2, 2], lanes=2, window=2)
    windows = list(stream)
    for state, axis in ((torch.zeros(2, 2), 1), (torch.zeros(3), None)):
        carry = ss.Carry()
        carry.enter(windows[0].token)
        carry.leave(windows[0].token, state)
        with pytest.raises(ValueError, match="pass lane_axis"):
            carry.enter(windows[1].token)
        if axis is not None:
            carry = ss.Carry(lane_axis=axis)
            carry.leave(windows[0].token, state + 1)
            assert carry.enter(windows[1].token).tolist() == [[1, 0], [1, 0]]
    with pytest.raises(ValueError, match="lane_axis=1"):
        ss.Carry(lane_axis=1).leave(windows[0].token, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="tree like"):
        ss.Carry(lane_axis={"a": 0}).leave(windows[0].token, torch.zeros(2, 3))
