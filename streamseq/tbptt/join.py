"""Joining windows that follow each other into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from streamseq.core.tokens import StateToken
from streamseq.data.window import Window


def join_windows(windows: Sequence[Window]) -> Window:
    """One window of the timesteps of several, end to end along time.

    Args:
        windows: Each goes on where the one before stopped; in none but the first a lane starts anew.
    """
    first = windows[0]
    fields = {name: torch.cat([window[name] for window in windows], first.time_axis) for name in first}
    mask = torch.cat([window.mask for window in windows], first.time_axis)
    lengths = torch.stack([window.lengths for window in windows]).sum(0)
    return Window(fields, mask, lambda: _join_tokens([window.token for window in windows]), first.batch_first, lengths)


def _join_tokens(tokens: Sequence[StateToken]) -> StateToken:
    stop, final = tokens[0].stop, tokens[0].final
    for token in tokens[1:]:
        # A lane that has ended is idle in the windows that follow.
        stop, final = np.where(token.idle, stop, token.stop), final | token.final
    return replace(tokens[0], stop=stop, final=final, num_steps=sum(token.num_steps for token in tokens))
