"""The grid: where updates happen in the emitted timesteps, and where back-propagation starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """An update every `k1` emitted timesteps, back-propagated through the last `k2` (Williams & Peng 1990).

    Times are emitted timesteps of a lane, padding included, counted from the start of the epoch; they are the same
    for all lanes and go on across sequences.

    Args:
        k1: Timesteps between updates; None: n, one update for each whole sequence.
        k2: Timesteps that back-propagation reaches, from the end of a whole update; None: to the lane's reset.

    Raises:
        TypeError: A number is not an integer.
        ValueError: Not `1 <= k1 <= k2`.

    Example:
        >>> [Grid(k1=4, k2=10).start(time) for time in (0, 4, 8, 12)]
        [-6, -2, 2, 6]
    """

    k1: int | None
    k2: int | None

    def __post_init__(self) -> None:
        for name, value in (("k1", self.k1), ("k2", self.k2)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} is an integer, or None for n, got {value!r}")
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        if self.k1 is not None and self.k2 is not None and self.k2 < self.k1:
            raise ValueError(
                f"back-propagation covers what is new, k2 >= k1, got k1={self.k1}, k2={self.k2}: "
                f"take k2={self.k1} or more"
            )

    def fit(self, window: int | None, longest: int | None) -> Grid:
        """The grid for windows of a given length: n is None, for k1 as for k2.

        Args:
            window: Timesteps K of a window; None where each sequence is one.
            longest: Timesteps n of the longest sequence, None where it is not known.

        Raises:
            ValueError: `k1` neither divides the window nor is a multiple of it nor is n, or `k2` is less than n and
                `k1` is n.
        """
        k1, k2 = self.k1, self.k2
        if k2 is not None and longest is not None and k2 >= longest:
            k2 = None
        if k1 is not None and window is not None and window % k1 and k1 % window:
            if k1 != longest:
                fitting = ", ".join(str(k) for k in range(1, window + 1) if window % k == 0)
                raise ValueError(
                    f"k1 divides the window, is a multiple of it, or is n, got k1={k1} for windows of {window}: "
                    f"take one of {fitting}, a multiple of {window}, or None for n"
                )
            k1 = None
        if k1 is None and k2 is not None:
            raise ValueError(
                f"k1=n needs k2=n, got k2={k2}{'' if longest is None else f' for sequences of up to {longest}'}: "
                "pass k2=None, or a k1 of at most k2"
            )
        return Grid(k1=k1, k2=k2)

    def start(self, time: int) -> int:
        """Where back-propagation starts at the earliest in the update of what follows `time`, T' on the grid.

        Negative where it is before the epoch; far so where k2 is n.
        """
        assert self.k1 is not None
        if self.k2 is None:
            return -1
        return time // self.k1 * self.k1 + self.k1 - self.k2
