"""State tokens: lane by lane, whose state a window continues; and the position of a stream after a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import ResumeError

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
        switches: Windows of other lengths with which the epoch began, as in `Position`.
    """

    cells: Callable[[], Cells]
    lane: Int64
    epoch: int
    step: int
    fingerprint: str
    version: int
    window: int | None
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

    Args:
        sequence: int64 [B], an index into `store.ids`; -1 for an idle lane.
        start, stop: int64 [B], positions in the sequence, `[start, stop)`.
        reset: bool [B], whether the state before the window is the initial state.
        final: bool [B], whether the lane's state ends with this window.
        lane: int64 [B], lane numbers over all ranks.
        epoch, step: Of the window; steps count from 0 in every epoch.
        fingerprint: Of the plan.
        version: Of the store.
        window: Timesteps of a window; None where each sequence is one.
        switches: Windows of other lengths with which the epoch began, as in `Position`.
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
    switches: tuple[tuple[int, int], ...] = ()

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

    def follows(self, previous: StateToken) -> bool:
        """Whether every lane that does not start anew goes on exactly where it stopped in `previous`."""
        return self.broken_lane(previous) is None

    def broken_lane(self, previous: StateToken) -> int | None:
        """The first place in [0, B) whose lane does not follow `previous`, or None."""
        if self.lane.shape != previous.lane.shape or self.fingerprint != previous.fingerprint:
            joined = self.starts_anew
        else:
            joined = (
                (self.lane == previous.lane)
                & (self.sequence == previous.sequence)
                & (self.start == previous.stop)
                & ~previous.final
            )
            joined |= self.starts_anew
        return None if joined.all() else int(np.argmin(joined))

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
        """The token of the timesteps `[start, stop)` of the window; only what holds the last timestep is final.

        Args:
            start, stop: Offsets in the window; a lane that ends before `start` has an empty span at its stop.
        """
        low = np.minimum(self.start + start, self.stop)
        high = np.minimum(self.start + stop, self.stop)
        return replace(
            self,
            start=low,
            stop=high,
            reset=self.reset if start == 0 else np.zeros_like(self.reset),
            final=self.final & (high == self.stop),
        )


TOKEN_NAMES = tuple(each.name for each in fields(StateToken))
