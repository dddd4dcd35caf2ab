"""The split into what is trained on and what is held out: by sequences, from their ids alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from streamseq.storage.interface import Store

Span = tuple[str, int, int]

SPREAD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """What is trained on and what is held out, as spans `(id, start, stop)` in the order of the store."""

    train: list[Span]
    held_out: list[Span]


def hold_out(store: Store, *, share: float, seed: int, limit: int, least: int = 2) -> Holdout:
    """Split the sequences of a store by a hash of seed and id, so that the same id always falls on the same side.

    Of more than one sequence at least one is held out and at least one is not. Of a single one the last `share` of
    its timesteps is held out. Sequences of too few timesteps have nothing to predict and are in neither part.

    Args:
        store: With the sequences.
        share: About how many of the sequences are held out; 0 for none.
        seed: Another one gives another split.
        limit: At most so many timesteps are held out: first parts of sequences, taken in the order of their hashes,
            each at most a 64th of the limit long, or longer where fewer are held out.
        least: Timesteps of the shortest sequence that has something to predict.

    Raises:
        ValueError: There are too few timesteps for two parts.
    """
    lengths = {
        id: int(length) for id, length in zip(store.ids.to_pylist(), store.lengths, strict=True) if length >= least
    }
    if not lengths:
        raise ValueError(
            f"learning to predict a timestep {least - 1:,} ahead takes a sequence of at least {least:,}, the longest "
            f"of {store.uri} has {int(store.lengths.max(initial=0)):,}"
        )
    whole = [(id, 0, length) for id, length in lengths.items()]
    if share == 0:
        return Holdout(train=whole, held_out=[])
    if len(lengths) == 1:
        return _cut_last_part(whole[0], share, limit, least)
    place = {id: _hash(seed, id) for id in lengths}
    order = sorted(lengths, key=place.__getitem__)
    count = int(np.searchsorted([place[id] for id in order], share))
    held = order[: min(max(count, 1), len(order) - 1)]
    cap = max(least, limit // min(SPREAD, len(held)))
    left = max(least, limit)
    stops = {}
    for id in held:
        if left < least:
            break
        stops[id] = min(lengths[id], cap, left)
        left -= stops[id]
    out = set(held)
    return Holdout(
        train=[span for span in whole if span[0] not in out],
        held_out=[(id, 0, stops[id]) for id in lengths if id in stops],
    )


def _cut_last_part(span: Span, share: float, limit: int, least: int) -> Holdout:
    id, start, stop = span
    cut = stop - max(least, round(share * stop))
    if cut < least:
        raise ValueError(
            f"a single sequence is cut into a part to train on and one to hold out, of at least {least:,} timesteps "
            f"each, got {stop} timesteps of {id!r} and held_out={share}: add sequences, or hold out less"
        )
    return Holdout(train=[(id, start, cut)], held_out=[(id, cut, min(stop, cut + max(least, limit)))])


def _hash(seed: int, id: str) -> float:
    """A number in [0, 1)."""
    digest = hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
