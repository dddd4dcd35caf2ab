"""What lies before a window in its sequences, whatever the plan does with it: to find a state in the middle of one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamseq.core.segments import make_segments, segments_at
from streamseq.core.settings import at_least
from streamseq.data.normalization import emitted_dtype, normaliser
from streamseq.data.window import Window

if TYPE_CHECKING:
    from streamseq.data.dataset import StreamDataset


def read_before(stream: StreamDataset, window: Window, timesteps: int, offset: int = 0) -> Window:
    """The timesteps before a timestep of a window in the sequence that each lane holds there.

    They end where that timestep begins. A sequence that has fewer before it starts later in the window that is
    returned, at the offset that its row in `token.segments` says; lanes that are idle, or hold the first timestep of
    their sequence, are idle in it. No loss counts: the mask is off. Timesteps outside chosen spans are shown too, those
    before a break of the data (`ss.splits.Domain`) are not.

    Args:
        stream: Of which the window is; its fields and lookaheads are read.
        window: [B, K, ...] or [K, B, ...].
        timesteps: How many, at most.
        offset: The timestep of the window.

    Raises:
        TypeError, ValueError: `timesteps` is not an integer of at least 1.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> stream = ss.StreamDataset(ss.from_arrays({"a": {"x": np.arange(6)}}), lanes=2, window=3, layout="even")
        >>> before = read_before(stream, stream[0], 4)
        >>> before["x"].tolist(), before.token.segments.tolist()
        ([[0, 0, 0, 0], [0, 0, 1, 2]], [(1, 1, 0, 0, 3, True)])
    """
    at_least("timesteps", timesteps, 1)
    token, store = window.token, stream.store
    sequence, position = token.sequence, token.start + offset
    if token.segments is not None:
        place = segments_at(token.segments, len(sequence), offset)
        there = token.segments[place]
        sequence = np.where(place < 0, -1, there["sequence"])
        position = there["start"] + offset - there["offset"]
    boundaries = stream.plan.boundaries
    broken = np.zeros_like(position) if boundaries is None else boundaries.last_break(sequence, position)
    lanes = np.flatnonzero((sequence >= 0) & (position > broken))
    arrays, applied = {}, {}
    for name, each in stream.emitted.items():
        field, scale = store.fields[each.field], stream.normalization.get(each.field)
        arrays[name] = np.zeros((len(sequence), timesteps, *field.shape), emitted_dtype(field, scale))
        applied[name] = normaliser(field, scale)
    counts = np.minimum((position - broken)[lanes], timesteps)
    for lane, count in zip(lanes.tolist(), counts.tolist(), strict=True):
        index, stop = int(sequence[lane]), int(position[lane])
        for name, each in stream.emitted.items():
            low, high = stop - count + each.offset, stop + each.offset
            first, last = max(low, 0), min(high, int(store.lengths[index]))
            if last > first:
                at = timesteps - count + first - low
                values = store.read(index, first, last, [each.field])[each.field]
                arrays[name][lane, at : at + last - first] = applied[name](values)
    held = np.full(len(sequence), -1)
    held[lanes] = sequence[lanes]
    begins, ends = np.zeros_like(position), np.zeros_like(position)
    begins[lanes], ends[lanes] = position[lanes] - counts, position[lanes]
    resets = np.zeros(len(sequence), np.bool_)
    resets[lanes] = counts == timesteps
    segments = make_segments(
        lane=lanes,
        offset=timesteps - counts,
        sequence=sequence[lanes],
        start=begins[lanes],
        stop=ends[lanes],
        reset=np.ones(len(lanes), np.bool_),
    )
    before = replace(
        token,
        sequence=held,
        start=begins,
        stop=ends,
        reset=resets,
        final=held < 0,
        num_steps=timesteps,
        segments=segments,
    )
    fields = {name: torch.from_numpy(values) for name, values in arrays.items()}
    mask = torch.zeros(len(sequence), timesteps, dtype=torch.bool)
    if not window.batch_first:
        fields = {name: tensor.transpose(0, 1).contiguous() for name, tensor in fields.items()}
        mask = mask.t().contiguous()
    return Window(fields, mask, before, window.batch_first).to(window.mask.device)
