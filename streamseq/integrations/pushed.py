"""Pushed updates: TBPTT for loops that hand over one window at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import lcm
from typing import Any

import torch

from streamseq.core.errors import ResumeError
from streamseq.core.truncation import Adaptive
from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.data.window import Window
from streamseq.integrations.across_ranks import gather, of_this_rank
from streamseq.tbptt.engine import TBPTT
from streamseq.tbptt.past import KEPT_BYTES
from streamseq.tbptt.update import Update


class PushedUpdates:
    """The updates of windows that somebody else's loop takes from a stream, the same as `tbptt.updates(stream)` gives.

    Windows are put aside until updates end with one of them: with k1 of several windows (or `accumulate`) those of as
    many, with k1=n those until every lane has ended. Then all their updates come at once. What lies further back, for
    k2, is read from the stream again where it is not kept.

    States may be saved after any window: windows that are put aside are saved by their number.

    Args:
        tbptt: The engine. Take `segment=` rather than `memory=`, whose probe would run again and again:
            `segment=tbptt.memory(stream).segment`.
        stream: Where the windows come from, on its epoch.

    Raises:
        ValueError: Updates of the as-is split are accumulated, the numbers of which differ from window to window.

    Example:
        >>> import numpy as np, torch, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.ones((10, 3), np.float32)}})
        >>> stream = ss.StreamDataset(store, lanes=1, window=2)
        >>> tbptt = ss.TBPTT(torch.nn.GRU(3, 2, batch_first=True), lambda y, w: y.square(), k1=4, k2=8)
        >>> updates = PushedUpdates(tbptt, stream)
        >>> [[update.num_timesteps for update in updates.take(window)] for window in stream]
        [[], [4], [], [4], [2]]
    """

    def __init__(self, tbptt: TBPTT, stream: StreamDataset) -> None:
        if stream.window is None and tbptt.accumulate > 1:
            raise ValueError(
                f"updates of whole sequences cannot be put together here, got accumulate={tbptt.accumulate}: iterate "
                "updates() of the engine yourself, or take accumulate=1"
            )
        self.tbptt = tbptt
        self.stream = stream
        self._again: _Again | None = None
        # The first step of the windows that are put aside.
        self._first: int | None = None

    @property
    def pending(self) -> bool:
        """Whether windows are put aside."""
        return self._first is not None

    def take(self, window: Window, *, last: bool = False) -> Iterator[Update]:
        """Take a window; yield the updates that end with it, none or more.

        As with `updates`, step the optimizer and clear the gradients before taking the next one.

        Args:
            window: The next one in stream order, on the model's device.
            last: Whether the epoch ends with it, though the stream has more.

        Raises:
            ContinuityError, ValueError: As `updates` does.
        """
        step = window.token.step
        again = self._again
        if again is None or again.device != window.mask.device:
            again = self._again = _Again(self.stream, window.mask.device)
        again.keep(window)
        first = step if self._first is None else self._first
        if not (last or step + 1 == len(self.stream) or self._completes(window)):
            self._first = first
            return
        self._first = None
        again.steps = range(first, step + 1)
        if first and isinstance(self.tbptt.truncation, Adaptive):
            # What it measured holds: the epoch goes on.
            self.tbptt.load_state_dict(self.tbptt.state_dict())
        with _one_cohort_is_meant():
            yield from self.tbptt.updates(again)

    def _completes(self, window: Window) -> bool:
        """Whether updates end with a window."""
        token, tbptt = window.token, self.tbptt
        k1 = tbptt.grid_of(token.window, self.stream.plan.longest).k1
        if k1 is None:
            several = len(token.lane) < self.stream.lanes
            return tbptt.ranks_of(several=several).everywhere(bool((token.final | token.idle).all()))
        if token.window is None:
            return True
        return (token.step + 1) * token.window % lcm(token.window, k1 * tbptt.accumulate) == 0

    def state_dict(self) -> dict[str, Any]:
        """What the next window goes on from, of all ranks, for `torch.load(weights_only=True)`.

        Where there are several ranks all of them call it. The stream's position is saved beside it.
        """
        return {"engines": gather(self.tbptt.state_dict()), "first": self._first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, with any number of ranks.

        Raises:
            ResumeError: It is something else, or of another k1, k2, losses or truncation.
        """
        if not isinstance(state, Mapping) or set(state) != {"engines", "first"}:
            raise ResumeError("pushed updates go on from engines and first: pass what state_dict() returned")
        self.tbptt.load_state_dict(of_this_rank(state["engines"]))
        self._first = state["first"]


class _Again(StreamLoader):
    """Gives windows to the engine: those that were kept, others from the stream."""

    def __init__(self, stream: StreamDataset, device: torch.device) -> None:
        super().__init__(stream, device=device)
        self.steps = range(0)
        self._kept: dict[int, Window] = {}
        self._bytes = 0
        self._epoch: object = None

    def keep(self, window: Window) -> None:
        token = window.token
        epoch = (token.fingerprint, token.epoch, token.switches)
        if epoch != self._epoch:
            self._kept.clear()
            self._epoch, self._bytes = epoch, 0
        self._kept[token.step] = window
        self._bytes += _num_bytes(window)
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= _num_bytes(self._kept.pop(next(iter(self._kept))))

    def __iter__(self) -> Iterator[Window]:
        return (self[step] for step in self.steps)

    def __getitem__(self, step: int) -> Window:
        kept = self._kept.get(step)
        return super().__getitem__(step) if kept is None else kept


def _num_bytes(window: Window) -> int:
    return sum(window[name].nbytes for name in window)


@contextmanager
def _one_cohort_is_meant() -> Iterator[None]:
    # The engine warns where all windows that it is given are one update, which is what is given here.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "k1=n makes one update", UserWarning)
        yield
