"""Symbols of which some are those of so many timesteps before: a dependence of known length."""

import numpy as np

import streamseq as ss


def copied(lag, share, *, length=60_000, values=24, seed=0):
    """Symbols of which some are those of `lag` timesteps before."""
    random = np.random.default_rng(seed)
    x = random.integers(0, values, length).astype(np.uint8)
    again = random.random(length) < share
    for at in range(lag, length):
        if again[at]:
            x[at] = x[at - lag]
    return x


def store_of(*arrays):
    """In memory, each array a sequence."""
    return ss.from_arrays({f"{number}": {"x": array} for number, array in enumerate(arrays)})
