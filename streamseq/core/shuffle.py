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

RUN = 8
GROUP = 4


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit numbers that looks random.

    Args:
        values: uint64, any shape. Overwritten.
    """
    values += np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def random_keys(count: int, seed: int, epoch: int, salt: int) -> NDArray[np.uint64]:
    """`count` random 64-bit numbers, a pure function of the arguments: uint64 [count]."""
    key = np.array([seed & (2**64 - 1)], np.uint64)
    for part in (epoch, salt):
        key = mix(key) ^ np.uint64(part)
    return mix(mix(np.arange(count, dtype=np.uint64)) ^ mix(key))


def shuffled_order(lengths: NDArray[np.int64], run: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which shuffled sequences are taken: a permutation, int64 [N].

    Args:
        lengths: int64 [N], timesteps of each sequence in storage order.
        run: Timesteps of a run of neighbours that stay together, about those of `RUN` chunks.
        seed: Any integer.
        epoch: The epoch; each has its own order.

    Example:
        >>> sorted(shuffled_order(np.full(5, 10), run=20, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    count = len(lengths)
    run_of = (np.cumsum(lengths) - lengths) // max(1, run)
    run_of = np.cumsum(np.diff(run_of, prepend=run_of[:1]) != 0)
    num_runs = int(run_of[-1]) + 1 if count else 0
    place = np.empty(num_runs, np.int64)
    place[np.argsort(random_keys(num_runs, seed, epoch, 1), kind="stable")] = np.arange(num_runs)
    group = (place // GROUP)[run_of].astype(np.uint64)
    # One sort of (group, random, index) packed into 64 bits is several times faster than a sort by three keys, and
    # has no ties that another sorting algorithm could resolve otherwise.
    index_bits = max(1, int(count - 1).bit_length())
    group_bits = max(1, int(num_runs // GROUP).bit_length())
    random_bits = 64 - index_bits - group_bits
    keys = random_keys(count, seed, epoch, 2) >> np.uint64(64 - random_bits) << np.uint64(index_bits)
    keys |= group << np.uint64(64 - group_bits)
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << index_bits) - 1)
    return keys.view(np.int64)
