"""What decides a plan, beside the lengths of the sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from streamseq.core.splits import AsIs, Domain, Naive, Split

LAYOUTS = ("sequences", "even")
TAILS = ("pad", "drop", "pack")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What decides a plan, beside the lengths of the sequences.

    Args:
        lanes: Number of lanes B, over all ranks.
        window: Timesteps K of a window; None with `AsIs`, whose windows are as long as their longest sequence.
        split: `Naive()`, `AsIs()` or `Domain(...)`, which says that there are boundaries and not where.
        layout: "sequences" gives whole sequences to lanes; "even" cuts the data, end to end, into B equal runs.
        tail: "pad" emits what is left of a sequence after its last whole window with padding; "drop" leaves it out;
            "pack" cuts each lane as a whole, its sequences end to end, so that only its last window has padding.
        shuffle: Whether the order of the sequences is random, another one in each epoch.
        seed: Of the shuffling.
        run: Timesteps of neighbouring sequences that shuffling keeps together, about those of a few chunks of storage.
        longest: A longer sequence is laid out as the fewest pieces of at most that many timesteps, which differ by one
            timestep at most. Each is a run of its own: its first window is a reset, its last one is final, and lanes
            may hold several pieces of a sequence at the same time. None for no limit.
        switches: `(window, step)` pairs: the epoch began with `step` windows of `window` timesteps, and so on; then the
            windows became those of the plan. `Plan.rewindowed` adds one.

    Raises:
        TypeError: A number is not an integer.
        ValueError: An argument is out of range, or does not go with the split.
    """

    lanes: int
    window: int | None
    split: Split = field(default_factory=Naive)
    layout: str = "sequences"
    tail: str = "pad"
    shuffle: bool = False
    seed: int = 0
    run: int = 1 << 20
    longest: int | None = None
    switches: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.split, Split):
            raise TypeError(f"split is ss.splits.Naive(), AsIs() or Domain(...), got {self.split!r}")
        if isinstance(self.split, AsIs):
            if self.window is not None:
                raise ValueError(f"AsIs() makes each sequence one window, got window={self.window}: pass window=None")
        elif self.window is None:
            raise ValueError(
                f"{type(self.split).__name__}() cuts windows of a given length, got window=None: pass window=256 or "
                "the like"
            )
        else:
            at_least("window", self.window, 1)
        at_least("lanes", self.lanes, 1)
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.layout == "even" and isinstance(self.split, AsIs) and self.split.buckets is not None:
            raise ValueError(
                f'buckets are of whole sequences, and layout="even" cuts them, got {self.split}: use layout="sequences"'
            )
        if self.tail not in TAILS:
            raise ValueError(f"tail is one of {', '.join(TAILS)}, got {self.tail!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer):
            raise TypeError(f"seed is an integer, got {self.seed!r}")
        if self.tail == "pack" and isinstance(self.split, AsIs):
            raise ValueError(
                'tail="pack" cuts windows of one length across the ends of sequences, got split=AsIs(), whose windows '
                'are whole sequences: use Naive() with a window, or tail="pad"'
            )
        if isinstance(self.split, Domain) and self.tail != "pad":
            raise ValueError(
                f'Domain() ends windows where the data says, with padding after that, got tail="{self.tail}", by which '
                'windows are full: use tail="pad", or Naive()'
            )
        if self.longest is not None:
            self._check_longest()
        if self.switches:
            self._check_switches()

    def _check_longest(self) -> None:
        at_least("longest", self.longest, 1)
        if isinstance(self.split, AsIs):
            raise ValueError(f"AsIs() cuts no sequence, got longest={self.longest}: use Naive() or leave longest out")
        if isinstance(self.split, Domain):
            raise ValueError(
                f"Domain() begins states anew at breaks and nowhere else, got longest={self.longest}: give a rule "
                "reset=True, or leave longest out"
            )
        if self.layout == "even":
            raise ValueError(
                f'layout="even" cuts the data into equal runs of its own, got longest={self.longest}: '
                'use layout="sequences" or leave longest out'
            )

    def _check_switches(self) -> None:
        for window, step in self.switches:
            at_least("the window of a switch", window, 1)
            at_least("the step of a switch", step, 1)
        if isinstance(self.split, AsIs):
            raise ValueError("AsIs() makes each sequence one window, whose length cannot change: use Naive()")
        if self.tail == "drop":
            raise ValueError(
                'tail="drop" leaves out what does not fill a window, which is something else for each window length, '
                f'got switches={self.switches}: use tail="pad" or tail="pack"'
            )


def at_least(name: str, value: object, least: int) -> None:
    """Refuse what is not an integer of at least `least`.

    Raises:
        TypeError, ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} is at least {least}, got {value}")
