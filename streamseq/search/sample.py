"""A sample of a store, in memory: pieces of its timeline from all over, so that what is measured is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.storage.interface import Store
from streamseq.storage.memory import from_arrays

Span = tuple[str, int, int]

#: What is read at most.
USUAL_TIMESTEPS = 1 << 21
USUAL_BYTES = 64 << 20
# Places that a large store is read at, and pieces of sequences at most: each is one read.
_PLACES, _PIECES = 64, 8192
# One piece in so many is held out of the probe training.
_HELD_OUT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was read of a store.

    Args:
        store: In memory, of pieces of at least two timesteps each, with the fields that were asked for.
        whole: Whether it is all of it.
        train: Spans of `store` to train on.
        held_out: Others, to evaluate on.
    """

    store: Store
    whole: bool
    train: tuple[Span, ...]
    held_out: tuple[Span, ...]


def draw_sample(
    store: Store, fields: Sequence[str], *, timesteps: int = USUAL_TIMESTEPS, max_bytes: int = USUAL_BYTES
) -> Sample:
    """Read pieces of a store from 64 places, evenly spaced in its timeline, or all of it where that is small.

    Args:
        store: Any store.
        fields: Those that are read.
        timesteps: How many are read at most.
        max_bytes: How many bytes of them.

    Raises:
        ValueError: No sequence has two timesteps.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({f"{i}": {"x": np.arange(100)} for i in range(1000)})
        >>> sample = draw_sample(store, ["x"], timesteps=6400)
        >>> len(sample.store), sample.store.num_timesteps, sample.whole
        (120, 6400, False)
    """
    lengths = store.lengths
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    per_timestep = sum(store.fields[name].dtype.itemsize * int(np.prod(store.fields[name].shape)) for name in fields)
    most = max(2, min(timesteps, max_bytes // max(1, per_timestep)))
    whole = total <= most and len(lengths) <= _PIECES
    places = 1 if whole else _PLACES
    quota = total if whole else max(2, most // places)
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    stop = 0
    for place in range(places):
        # What a place begins with is at least half of a quota away from the place before, or its sequence's start.
        start = max(stop, total * place // places)
        stop = min(total, start + quota)
        first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop, "left"))
        for sequence in range(first, min(last + 1, len(lengths), first + (_PIECES if whole else _PIECES // _PLACES))):
            begin = int(ends[sequence] - lengths[sequence])
            low, high = max(start - begin, 0), min(stop - begin, int(lengths[sequence]))
            if high - low >= 2:
                name = f"{sequence:012d} from {low:012d}"
                arrays[name] = store.read(sequence, low, high, fields)
    if not arrays:
        longest = int(lengths.max(initial=0))
        raise ValueError(f"advice is on sequences of at least 2 timesteps, the longest of {store.uri} has {longest}")
    sample = from_arrays(arrays, {name: store.fields[name] for name in fields})
    train, held_out = _parts(sample)
    return Sample(store=sample, whole=whole, train=train, held_out=held_out)


def _parts(sample: Store) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Every eighth piece is held out; of few the last eighth of each."""
    spans = [(id, 0, int(length)) for id, length in zip(sample.ids.to_pylist(), sample.lengths, strict=True)]
    if len(spans) >= _HELD_OUT:
        held = [span for number, span in enumerate(spans) if number % _HELD_OUT == _HELD_OUT - 1]
        return tuple(span for number, span in enumerate(spans) if number % _HELD_OUT != _HELD_OUT - 1), tuple(held)
    cuts = [(id, stop - stop // _HELD_OUT, stop) for id, _, stop in spans]
    train = tuple((id, 0, cut) for id, cut, _ in cuts if cut >= 2)
    return train, tuple((id, cut, stop) for id, cut, stop in cuts if stop - cut >= 2)
