"""Which sequences each task of a prediction takes: pure, so that any number of workers has the same tasks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamseq.etl.source import partition_bytes

Int64 = NDArray[np.int64]

# However small its outputs: what is computed again after a kill must not be too much.
_MOST_TIMESTEPS = 1 << 24


def plan_tasks(lengths: Int64, *, lanes: int, step_bytes: int, shard_bytes: int, chunk_timesteps: int) -> list[Int64]:
    """Put sequences together to tasks, each of which runs through the model on lanes of its own.

    A task ends when its outputs fill a shard (less where there would be few tasks, or they have more than 16 million
    timesteps), but not before it has a sequence for every lane. Sequences of a chunk or more come first, the longest
    first, so that lanes side by side end at about the same time; the others follow in the order of the store, in which
    they share chunks. Sequences without timesteps are in no task.

    Args:
        lengths: int64 [N], timesteps of each sequence.
        lanes: Number of lanes B.
        step_bytes: Bytes of a timestep's outputs.
        shard_bytes: Bytes of a shard.
        chunk_timesteps: Timesteps of the inputs that are decoded at once.

    Returns:
        For each task its sequences, as indices into `lengths`.

    Example:
        >>> tasks = plan_tasks(np.array([3, 0, 9, 3, 3]), lanes=2, step_bytes=1, shard_bytes=4, chunk_timesteps=5)
        >>> [task.tolist() for task in tasks]
        [[2, 0], [3, 4]]
    """
    held = np.flatnonzero(lengths)
    if not len(held):
        return []
    long = lengths[held] >= chunk_timesteps
    order = np.concatenate([held[long][np.argsort(-lengths[held[long]], kind="stable")], held[~long]])
    ends = np.cumsum(lengths[order])
    wanted = partition_bytes(int(ends[-1]) * step_bytes, shard_bytes) // step_bytes
    wanted = min(max(1, wanted), _MOST_TIMESTEPS)
    tasks, start = [], 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + lanes, int(np.searchsorted(ends, before + wanted)) + 1)
        # A rump would leave lanes idle.
        stop = len(order) if len(order) - stop < lanes else stop
        tasks.append(order[start:stop])
        start = stop
    return tasks
