"""The timeline: the emitted timesteps of an epoch, when each lane's sequence began, and whether windows follow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamseq.core.tokens import StateToken
from streamseq.data.carry import check_follows
from streamseq.data.window import Window

Int64 = NDArray[np.int64]


class Timeline:
    """Times are emitted timesteps of a lane, padding included; time 0 is the start of window `origin`."""

    def __init__(self) -> None:
        self.origin = 0
        #: int64 [B], when what each lane holds at the start of the newest window began: its latest reset until then.
        self.began: Int64 = np.zeros(0, np.int64)
        #: Of the newest window; None before the first one.
        self.token: StateToken | None = None
        #: The newest window; None also after a resume.
        self.window: Window | None = None
        #: When the newest window starts in the times of those before it, where it has another length; now that is 0.
        self.changed_at: int | None = None

    def arrive(self, window: Window) -> tuple[int, bool, bool]:
        """Take a window up: check that it follows.

        Returns:
            The time of its start; whether all lanes start anew; and whether it is the next one of the same epoch.

        Raises:
            ContinuityError: It does not follow the window before on some lane.
        """
        token = window.token
        anew = token.starts_anew
        all_anew = bool(anew.all())
        if not all_anew:
            check_follows(token, self.token)
        began = self._began_after()
        self.changed_at = None
        if self.token is not None and token.switches != self.token.switches and not all_anew:
            self.changed_at = (self.token.step + 1 - self.origin) * int(self.token.num_steps)
            began = began - self.changed_at
        self.origin = token.step if token.window is None else 0
        time = (token.step - self.origin) * window.num_steps
        if all_anew:
            self.began = np.full(len(anew), time)
        else:
            self.began = np.where(anew, time, began) if anew.any() else began
        before = self.token
        next_one = before is not None and (before.fingerprint, before.epoch, before.step + 1) == (
            token.fingerprint,
            token.epoch,
            token.step,
        )
        self.token, self.window = token, window
        return time, all_anew, next_one

    def _began_after(self) -> Int64:
        token = self.token
        if token is None or token.segments is None:
            return self.began
        return self.began_at(token, int(token.num_steps))

    def began_at(self, token: StateToken, offset: int) -> Int64:
        """int64 [B], each lane's latest reset until an offset of the newest window."""
        if token.segments is None or not offset:
            return self.began
        rows = token.segments
        rows = rows[rows["reset"] & (rows["offset"] > 0) & (rows["offset"] <= offset)]
        began = self.began.copy()
        start = (token.step - self.origin) * int(token.num_steps)
        # Rows of a lane come in order: the latest one stays.
        began[rows["lane"]] = start + rows["offset"]
        return began
