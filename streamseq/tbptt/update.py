"""Updates: what the engine yields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from streamseq.core.tokens import StateToken


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """One update, whose gradient is in the parameters' `.grad`.

    Args:
        loss: The mean over the update's valid timesteps, 0-dim, detached.
        num_timesteps: How many those are, over all lanes and ranks.
        token: Of the window that the update ends in.
        at_window_end: Whether nothing of that window is left for another update: the time to save a checkpoint.
        k2: Timesteps that back-propagation reached at most; None: n, or as random cuts have it.
    """

    loss: Tensor
    num_timesteps: int
    token: StateToken
    at_window_end: bool
    k2: int | None
