"""State tokens: lane by lane, whose state a window continues; and the position of a stream after a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import ResumeError
from streamseq.core.segments import Segments, cut_segments, segments_at

if TYPE_CHECKING:
    from streamseq.core.runs import Cells

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a stream goes on: what `state_dict` holds.

    Args:
        fingerprint: Of the plan.
        version: Of the store, as its number.
        epoch: The epoch.
        step: The next window of that epoch, from 0.
        window: Timesteps of a window; None where each sequence is one.
        switches: `(window, step)` pairs: the epoch began with `step` windows of `window` timesteps, and so on; the
            windows that `step` counts came after them.
    """

    fingerprint: str
    version: int
    epoch: int
    step: int
    window: int | None
    switches: tuple[tuple[int, int], ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """The position as plain strings, integers and lists; without `switches` where there are none."""
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "version": self.version,
            "epoch": self.epoch,
            "step": self.step,
            "window": self.window,
        }
        return {**state, "switches": [list(each) for each in self.switches]} if self.switches else state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Position:
        """The position that `state_dict` gave.

        Raises:
            ResumeError: `state` is something else.
        """
        names = [name for name in cls.__slots__ if name != "switches"]
        whole = isinstance(state, Mapping) and set(state) >= set(names)
        if not whole or not all(_is_count(state[name]) for name in ("version", "epoch", "step")):
            raise ResumeError(
                "a stream's position holds fingerprint, version, epoch, step and window, got "
                f"{sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__}: "
                "pass what state_dict() of a stream, loader or token returned"
            )
        return cls(**{name: state[name] for name in names}, switches=_switches(state.get("switches", ())))


def _switches(saved: object) -> tuple[tuple[int, int], ...]:
    pairs = [tuple(each) if isinstance(each, list | tuple) else () for each in _listed(saved)]
    if any(len(pair) != 2 or not all(_is_count(number) and number for number in pair) for pair in pairs):
        raise ResumeError(
            f"switches of a position are pairs of a window length and a number of windows, got {saved!r}: "
            "pass what state_dict() of a stream, loader or token returned"
        )
    return tuple((window, step) for window, step in pairs)


def _listed(saved: object) -> list[object]:
    return list(saved) if isinstance(saved, list | tuple) else [saved]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(kw_only=True)
class TokenRows:
    """What the tokens of consecutive windows are made of; each token takes out of it what somebody looks at.

    Args:
        cells: Makes the arrays [W, B] that the arrays of the tokens are rows of.
        lane: int64 [B], lane numbers over all ranks.
        epoch, step: Of the first window.
        fingerprint: Of the plan.
        version: Of the store.
        window: Timesteps of a window; None where each sequence is one.
        num_steps: Timesteps K of these windows, padding included.
        switches: Windows of other lengths with which the epoch began, as in `Position`.
    """

    cells: Callable[[], Cells]
    lane: Int64
    epoch: int
    step: int
    fingerprint: str
    version: int
    window: int | None
    num_steps: int
    switches: tuple[tuple[int, int], ...] = ()

    @cached_property
    def _cells(self) -> Cells:
        return self.cells()

    def tokens(self, first: int, stop: int) -> list[StateToken]:
        """The tokens of the windows `[first, stop)`, counted from the first."""
        tokens = []
        for row in range(first, stop):
            token = object.__new__(StateToken)
            token._rows = self  # type: ignore[misc]
            token._row = row  # type: ignore[misc]
            tokens.append(token)
        return tokens

    def value(self, name: str, row: int) -> Any:
        """What the token of a window has under a name."""
        if name == "step":
            return self.step + row
        if name in _ROWS:
            return getattr(self._cells, name)[row]
        if name == "segments":
            return self._cells.segments_of(row)
        return getattr(self, name)


_ROWS = frozenset(["sequence", "start", "stop", "reset", "final"])


class _FromRows:
    """What a token that is made of rows keeps of them."""

    __slots__ = ("_row", "_rows")

    _rows: TokenRows
    _row: int


# Not frozen, and what it holds found when it is asked for: a stream makes one for every window.
@dataclass(slots=True, eq=False)
class StateToken(_FromRows):
    """Lane by lane, whose state a window of B lanes continues.

    A lane holds timesteps of one sequence, or of none (it is idle). With tail="pack" it may hold several *segments*:
    the end of a sequence, whole ones, the begin of another. Then `sequence`, `start` and `reset` are those of the
    lane's first segment, `stop` and `final` those of its last one.

    Args:
        sequence: int64 [B], an index into `store.ids`; -1 for an idle lane.
        start, stop: int64 [B], positions in the sequence, `[start, stop)`.
        reset: bool [B], whether the state before the window's first timestep is the initial state.
        final: bool [B], whether the lane's state ends with this window.
        lane: int64 [B], lane numbers over all ranks.
        epoch, step: Of the window; steps count from 0 in every epoch.
        fingerprint: Of the plan.
        version: Of the store.
        window: Timesteps of a window of the stream; None where each sequence is one.
        num_steps: Timesteps K of this window, or of what was cut from it, padding included.
        switches: Windows of other lengths with which the epoch began, as in `Position`.
        segments: With tail="pack" a structured array with a row for each segment, sorted by lane, then offset: `lane`,
            the place in [0, B) of its lane (`token.lane[place]` is the number over all ranks), `offset`, the timestep
            of the window at which it begins, `sequence`, `start`, `stop` (int64 each), and `reset` (bool), whether the
            state before it is the initial one. Idle lanes have no row. None with other tails.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.arange(5)}, "b": {"x": np.arange(4)}})
        >>> token = ss.StreamDataset(store, lanes=1, window=8, tail="pack")[0].token
        >>> token.segments.tolist()
        [(0, 0, 0, 0, 5, True), (0, 5, 1, 0, 3, True)]
        >>> token.sequence.tolist(), token.start.tolist(), token.stop.tolist(), token.final.tolist()
        ([0], [0], [3], [False])
    """

    sequence: Int64
    start: Int64
    stop: Int64
    reset: Bool
    final: Bool
    lane: Int64
    epoch: int
    step: int
    fingerprint: str
    version: int
    window: int | None
    num_steps: int
    switches: tuple[tuple[int, int], ...] = ()
    segments: Segments | None = None

    def __getattr__(self, name: str) -> Any:
        # Called where a slot has no value yet.
        if name not in TOKEN_NAMES:
            raise AttributeError(f"a StateToken has {', '.join(TOKEN_NAMES)}, not {name!r}")
        value = self._rows.value(name, self._row)
        setattr(self, name, value)
        return value

    def __reduce__(self) -> tuple[type[StateToken], tuple[Any, ...]]:
        return StateToken, tuple(getattr(self, name) for name in TOKEN_NAMES)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StateToken):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in TOKEN_NAMES)

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

    @property
    def idle(self) -> Bool:
        """bool [B], lanes that hold no sequence."""
        return self.sequence < 0

    @property
    def starts_anew(self) -> Bool:
        """bool [B], lanes that continue no state: they reset or are idle."""
        return self.reset | (self.sequence < 0)

    @property
    def last_sequence(self) -> Int64:
        """int64 [B], the sequence that `stop` and `final` are of: that of the lane's last segment."""
        if self.segments is None:
            return self.sequence
        held, last = self._last_segments(self.segments)
        sequence = self.sequence.copy()
        sequence[held] = last["sequence"]
        return sequence

    @property
    def lengths(self) -> Int64:
        """int64 [B], timesteps of input of each lane, over all its segments; padding follows."""
        if self.segments is None:
            return self.stop - self.start
        held, last = self._last_segments(self.segments)
        lengths = np.zeros(len(held), np.int64)
        lengths[held] = last["offset"] + last["stop"] - last["start"]
        return lengths

    def _last_segments(self, segments: Segments) -> tuple[Bool, Segments]:
        """Which lanes hold segments, bool [B], and the last segment of each that does."""
        place = segments_at(segments, len(self.sequence), self.num_steps)
        return place >= 0, segments[place[place >= 0]]

    @property
    def resets(self) -> Bool:
        """bool [B, K], the timesteps before which a lane's state is the initial one.

        Example:
            >>> import numpy as np, streamseq as ss
            >>> store = ss.from_arrays({"a": {"x": np.arange(3)}, "b": {"x": np.arange(4)}})
            >>> window = ss.StreamDataset(store, lanes=1, window=6, tail="pack")[0]
            >>> window["x"].tolist(), window.token.resets.astype(int).tolist()
            ([[0, 1, 2, 0, 1, 2]], [[1, 0, 0, 1, 0, 0]])
        """
        resets = np.zeros((len(self.reset), self.num_steps), np.bool_)
        if self.segments is None:
            resets[self.reset, :1] = True
        else:
            rows = self.segments[self.segments["reset"]]
            resets[rows["lane"], rows["offset"]] = True
        return resets

    @property
    def cu_seqlens(self) -> NDArray[np.int32]:
        """int32 [S + 1], the borders of all segments where the lanes lie end to end.

        Timestep t of lane b is at b K + t. The first border is 0, the last B K. Padding is a segment of its own, and so
        is an idle lane. Variable-length kernels, such as those of FlashAttention and Mamba, have an argument of that
        name. Whether a lane's first segment goes on with a state, `reset` says.

        Raises:
            ValueError: The window has more timesteps than int32 counts.

        Example:
            >>> import numpy as np, streamseq as ss
            >>> store = ss.from_arrays({name: {"x": np.arange(n)} for name, n in [("a", 3), ("b", 4), ("c", 6)]})
            >>> stream = ss.StreamDataset(store, lanes=2, window=4, tail="pack")
            >>> [window.token.cu_seqlens.tolist() for window in stream]
            [[0, 3, 4, 8], [0, 4, 8], [0, 1, 4, 8]]
        """
        lanes, length = len(self.sequence), self.num_steps
        if lanes * length >= 2**31:
            raise ValueError(
                f"cu_seqlens counts timesteps with 32 bits, got {lanes} lanes of {length} timesteps: cut the window"
            )
        begins = np.arange(lanes + 1) * length
        parts = [begins, begins[:-1] + self.lengths]
        if self.segments is not None:
            parts.append(begins[self.segments["lane"]] + self.segments["offset"])
        return np.unique(np.concatenate(parts)).astype(np.int32)

    def follows(self, previous: StateToken) -> bool:
        """Whether every lane that does not start anew goes on exactly where it stopped in `previous`."""
        return self.broken_lane(previous) is None

    def broken_lane(self, previous: StateToken) -> int | None:
        """The first place in [0, B) whose lane does not follow `previous`, or None."""
        if self._all_go_on_from(previous):
            return None
        if self.lane.shape != previous.lane.shape or self.fingerprint != previous.fingerprint:
            joined = self.starts_anew
        else:
            joined = (
                (self.lane == previous.lane)
                & (self.sequence == previous.last_sequence)
                & (self.start == previous.stop)
                & ~previous.final
            )
            joined |= self.starts_anew
        return None if joined.all() else int(np.argmin(joined))

    def _all_go_on_from(self, previous: StateToken) -> bool:
        """Whether every lane goes on in the sequence it was in, which is usual and seen at once."""
        return (
            self.segments is None
            and self.fingerprint == previous.fingerprint
            and self.start.tobytes() == previous.stop.tobytes()
            and self.sequence.tobytes() == previous.sequence.tobytes()
            and (self.lane is previous.lane or self.lane.tobytes() == previous.lane.tobytes())
            and not previous.final.any()
        )

    def state_dict(self) -> dict[str, Any]:
        """The position of a stream that goes on after this window: the same as the stream's own `state_dict()`."""
        return Position(
            fingerprint=self.fingerprint,
            version=self.version,
            epoch=self.epoch,
            step=self.step + 1,
            window=self.window,
            switches=self.switches,
        ).state_dict()

    def cut(self, start: int, stop: int) -> StateToken:
        """The token of the timesteps `[start, stop)` of the window.

        A lane resets in it where the state before its timestep `start` is the initial one, and is final in it where its
        state ends with what is cut: at the end of a final window, or with a segment that a reset follows.

        Args:
            start, stop: Offsets in the window; a lane that ends before `start` has an empty span at its stop.
        """
        low = np.minimum(self.start + start, self.stop)
        high = np.minimum(self.start + stop, self.stop)
        cut = replace(
            self,
            start=low,
            stop=high,
            reset=self.reset if start == 0 else np.zeros_like(self.reset),
            final=self.final & (high == self.stop),
            num_steps=stop - start,
        )
        return cut if self.segments is None else self._cut_segments(cut, self.segments, start, stop)

    def _cut_segments(self, cut: StateToken, segments: Segments, start: int, stop: int) -> StateToken:
        """`cut`, with what it says of the lanes that hold segments."""
        lanes = len(self.sequence)
        place, last = segments_at(segments, lanes, start), segments_at(segments, lanes, max(start, stop - 1))
        held = place >= 0
        begins, ends = segments[place[held]], segments[last[held]]
        # A segment that another one follows ends with its state, as that one resets.
        followed = segments["lane"][1:] == segments["lane"][:-1]
        ended = np.append(followed, False)[last[held]] | self.final[held]
        values = {name: getattr(cut, name).copy() for name in ("sequence", "start", "stop", "reset", "final")}
        values["sequence"][held] = begins["sequence"]
        values["start"][held] = np.minimum(begins["start"] + start - begins["offset"], begins["stop"])
        values["stop"][held] = np.minimum(ends["start"] + stop - ends["offset"], ends["stop"])
        values["reset"][held] = begins["reset"] & (begins["offset"] == start)
        values["final"][held] = ended & (values["stop"][held] == ends["stop"])
        return replace(cut, segments=cut_segments(segments, start, stop), **values)


TOKEN_NAMES = tuple(each.name for each in fields(StateToken))
