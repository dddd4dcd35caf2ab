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
_BATCH = 1 << 14
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
        order[begin:low] = index.take(_shuffled_within(np.diff(ends[first:last], prepend=begin), begin, seed, epoch))
    return order


def _shuffled_within(sizes: Int64, first: int, seed: int, epoch: int) -> Int64:
    """The order that shuffles consecutive groups of some sizes, none of them 0, each in its place: int64 [sum(sizes)].

    A radix sort by 16 bits at a time, several times faster than a comparison of (group, random number). What it gives
    does not depend on the algorithm, as the sorts are stable.

    Args:
        sizes: int64 [G], G at most 2^16.
        first: How many random numbers were used before.
    """
    random = random_keys(int(sizes.sum()), seed, epoch, 2, first)
    # Equal numbers stay in order: 16 bits leave few of them in groups of some thousands, larger groups get 32.
    digits = [(random >> np.uint64(shift)).astype(np.uint16) for shift in ((0,) if sizes.max() < 2**14 else (0, 16))]
    if len(sizes) > 1:
        digits.append(np.repeat(np.arange(len(sizes), dtype=np.uint16), sizes))
    order = np.argsort(digits[0], kind="stable")
    for digit in digits[1:]:
        order = order.take(np.argsort(digit.take(order), kind="stable"))
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
        new = np.empty(len(part), np.bool_)
        new[0] = run_of[0] != before
        np.not_equal(run_of[1:], run_of[:-1], out=new[1:])
        starts.append((np.flatnonzero(new) + first).astype(dtype))
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
