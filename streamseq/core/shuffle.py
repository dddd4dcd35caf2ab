"""Shuffling: an order of sequences that is random yet reads every chunk of storage about once.

Neighbouring sequences lie in the same chunks. So what is shuffled first is *runs* of neighbours, each about `RUN`
chunks long; then `GROUP` consecutive runs are thrown together and the sequences within are shuffled. At any time a
reader needs the chunks of one group only, and those at the ends of runs, which two groups share, are decoded twice: one
in `RUN`.

The randomness is SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), a few
lines that give the same order in any numpy and any language.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamseq.core.layout import Numbers, number_dtype

RUN = 8
GROUP = 4
# Groups are shuffled together until there are so many sequences: few enough for the cache.
_BATCH = 1 << 16
_GAMMA = np.uint64(0x9E3779B97F4A7C15)

Int64 = NDArray[np.int64]


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit numbers that looks random.

    Args:
        values: uint64, any shape. Overwritten.
    """
    values += _GAMMA
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def random_keys(count: int, seed: int, epoch: int, salt: int, first: int = 0) -> NDArray[np.uint64]:
    """Numbers `[first, first + count)` of a random sequence, a pure function of the arguments: uint64 [count]."""
    key = np.array([seed & (2**64 - 1)], np.uint64)
    for part in (epoch, salt):
        key = mix(key) ^ np.uint64(part)
    keys = np.arange(first, first + count, dtype=np.uint64)
    keys *= _GAMMA
    keys += mix(key)
    return mix(keys)


def shuffled_order(lengths: Numbers, run: int, seed: int, epoch: int) -> Numbers:
    """The order in which shuffled sequences are taken: a permutation, int32 [N], or int64 from 2^31 sequences on.

    Args:
        lengths: int [N], timesteps of each sequence in storage order.
        run: Timesteps of a run of neighbours that stay together, about those of `RUN` chunks.
        seed: Any integer.
        epoch: The epoch; each has its own order.

    Example:
        >>> sorted(shuffled_order(np.full(5, 10), run=20, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    count = len(lengths)
    order = np.empty(count, number_dtype(count))
    starts = _run_starts(lengths, max(1, run))
    taken = _shuffled(len(starts), seed, epoch)
    number = np.diff(starts, append=order.dtype.type(count))[taken]
    starts = starts[taken]
    # Where each group ends, and the groups that are shuffled together.
    ends = np.cumsum(np.add.reduceat(number, np.arange(0, len(number), GROUP), dtype=np.int64)) if count else starts
    last = low = 0
    while last < len(ends):
        first, begin = last, low
        last = max(first + 1, int(np.searchsorted(ends, begin + _BATCH, "right")))
        low = int(ends[last - 1])
        part = slice(first * GROUP, last * GROUP)
        sizes = number[part]
        index = np.repeat(starts[part] - (np.cumsum(sizes, dtype=order.dtype) - sizes), sizes)
        index += np.arange(low - begin, dtype=order.dtype)
        # One sort of (group, random, place) packed into 64 bits is several times faster than a sort by three keys,
        # and has no ties that another sorting algorithm could resolve otherwise.
        place_bits = max(1, (low - begin - 1).bit_length())
        group_bits = (last - first - 1).bit_length()
        keys = random_keys(low - begin, seed, epoch, 2, begin)
        keys >>= np.uint64(group_bits + place_bits)
        keys <<= np.uint64(place_bits)
        keys |= np.arange(low - begin, dtype=np.uint64)
        if group_bits:
            group = np.arange(last - first, dtype=np.uint64) << np.uint64(64 - group_bits)
            keys |= np.repeat(group, np.diff(ends[first:last], prepend=begin))
        keys.sort()
        keys &= np.uint64((1 << place_bits) - 1)
        order[begin:low] = index[keys.view(np.int64)]
    return order


def _run_starts(lengths: Numbers, run: int) -> Numbers:
    """The first sequence of each run: where a multiple of `run` timesteps is passed."""
    count = len(lengths)
    dtype = number_dtype(count)
    starts = []
    done, before = 0, -1
    for first in range(0, count, _BATCH):
        part = lengths[first : first + _BATCH]
        run_of = np.cumsum(part, dtype=np.int64)
        total = int(run_of[-1])
        run_of -= part
        run_of += done
        run_of //= run
        starts.append((np.flatnonzero(np.diff(run_of, prepend=before)) + first).astype(dtype))
        done, before = done + total, int(run_of[-1])
    return np.concatenate(starts) if starts else np.empty(0, dtype)


def _shuffled(count: int, seed: int, epoch: int) -> Int64:
    """A random permutation of few numbers: int64 [count]."""
    bits = max(1, (count - 1).bit_length())
    keys = random_keys(count, seed, epoch, 1)
    keys >>= np.uint64(bits)
    keys <<= np.uint64(bits)
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << bits) - 1)
    return keys.view(np.int64)
