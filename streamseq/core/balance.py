"""Balance: sequences drawn by class, so that each class comes as often as it should."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import PlanError
from streamseq.core.layout import Numbers, number_dtype
from streamseq.core.shuffle import random_keys, shuffled_order

Int64 = NDArray[np.int64]

# A class of which an epoch takes more passes than this has few sequences: they are drawn for all passes at once.
_PASSES = 64
# What tells random numbers of one use from those of others.
_SEED_OF_CLASS, _PASS, _PLACE = 11, 12, 13


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """Sequences are drawn so that classes come equally often, or in given ratios.

    An epoch has as many draws as there are sequences. Each class is gone through in a random order of its own, again
    and again, over all epochs: within a class every sequence is drawn equally often, one more at most. A rare class is
    repeated; of a frequent one an epoch takes a part, and the next epoch goes on after it. Any stretch of an epoch has
    the classes in their ratios. Sequences without a timestep are not drawn.

    Args:
        by: The name of an attribute of the sequences; or their classes, an array of whole numbers [M], one for each of
            `sequences`, in order.
        weights: How often each class comes, by the value of the attribute or the number of the class: only ratios
            matter. None: all equally often.

    Raises:
        TypeError: `by` is neither.
        ValueError: A weight is negative or no finite number, or none is above 0.

    Example:
        >>> Balance("label", {"cat": 2, "dog": 1}).by
        'label'
    """

    by: Any
    weights: Mapping[Any, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.by, str):
            classes = np.asarray(self.by)
            if classes.ndim != 1 or classes.dtype.kind not in "iu":
                raise TypeError(
                    f"balance is by the name of an attribute, or an array of a class number for each sequence, got "
                    f"{self.by!r}"
                )
        if self.weights is not None:
            numbers = list(self.weights.values())
            if not all(isinstance(each, int | float | np.number) and 0 <= each < np.inf for each in numbers):
                raise ValueError(f"a weight is a finite number of at least 0, got {dict(self.weights)}")
            if not any(numbers):
                raise ValueError(f"the weight of some class is above 0, got {dict(self.weights)}: name those to draw")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classes:
    """The class of each span of a selection, and how often classes come.

    Args:
        number: int64 [M], from 0.
        weights: float64 [C], of each class.
    """

    number: Int64
    weights: NDArray[np.float64]

    @property
    def fingerprint(self) -> str:
        """A hash of both."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.ascontiguousarray(self.number, "<i8").data)
        digest.update(np.ascontiguousarray(self.weights, "<f8").data)
        return digest.hexdigest()

    def part(self, low: int, high: int) -> Classes:
        """Those of the spans `[low, high)`."""
        return Classes(number=self.number[low:high], weights=self.weights)


def balanced_draws(lengths: Int64, classes: Classes, run: int, seed: int, epoch: int) -> Numbers:
    """The spans that an epoch draws, in order: as many as are not empty.

    Args:
        lengths: int64 [M], timesteps of each span.
        classes: Of the spans.
        run: Timesteps of neighbours that are kept together where all classes are shuffled, as for `shuffled_order`.
        seed: Any integer.
        epoch: The epoch.

    Raises:
        PlanError: There is nothing to draw.

    Example:
        >>> classes = Classes(number=np.array([0, 0, 0, 0, 0, 1]), weights=np.ones(2))
        >>> draws = balanced_draws(np.full(6, 9), classes, run=9, seed=0, epoch=0)
        >>> (draws == 5).sum().item(), len(set(draws.tolist()))
        (3, 4)
    """
    held = np.flatnonzero(lengths)
    # The spans of each class lie together, in order.
    order = np.argsort(classes.number[held], kind="stable")
    members = held[order].astype(number_dtype(len(lengths)))
    sizes = np.bincount(classes.number[held], minlength=len(classes.weights))
    weights = np.where(sizes > 0, classes.weights, 0.0)
    if not weights.any():
        raise PlanError(
            f"balance draws sequences of classes whose weight is above 0, and none of {len(lengths)} has a timestep "
            "and such a class: choose other sequences, or give their classes a weight"
        )
    counts = _counts(weights, len(held))
    begins = np.cumsum(sizes) - sizes
    total, there = int(lengths.sum()), np.flatnonzero(counts)
    drawn, place = [], []
    done = 0
    for number in there.tolist():
        part = members[begins[number] : begins[number] + sizes[number]]
        count = int(counts[number])
        # Classes are read side by side: together they need the chunks that one shuffled order needs.
        own_run = max(1, run * int(lengths[part].sum()) // (total * len(there)))
        own_seed = int(random_keys(1, seed, number, _SEED_OF_CLASS)[0])
        drawn.append(part[_passes(lengths[part], epoch * count, count, own_run, own_seed)])
        # Spread over the epoch, each draw somewhere in a stretch of its own.
        jitter = (random_keys(count, seed, epoch, _PLACE, done) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        place.append((np.arange(count) + jitter) / count)
        done += count
    together: Numbers = np.concatenate(drawn)[np.argsort(np.concatenate(place), kind="stable")]
    return together


def _passes(lengths: Int64, first: int, count: int, run: int, seed: int) -> Numbers:
    """Draws `[first, first + count)` of a class of these lengths: permutations of it, one pass after the other."""
    size = len(lengths)
    begin, end = first // size, -(-(first + count) // size)
    if end - begin > _PASSES:
        keys = random_keys((end - begin) * size, seed, 0, _PASS, begin * size).reshape(-1, size)
        order: Numbers = np.argsort(keys, 1, kind="stable").reshape(-1)
    else:
        order = np.concatenate([shuffled_order(lengths, run, seed, number) for number in range(begin, end)])
    part: Numbers = order[first - begin * size :][:count]
    return part


def _counts(weights: NDArray[np.float64], total: int) -> Int64:
    """`total` draws shared out by weight, by largest remainder."""
    quotas = weights / weights.sum() * total
    counts: Int64 = np.floor(quotas).astype(np.int64)
    rest = total - int(counts.sum())
    counts[np.argsort(counts - quotas, kind="stable")[:rest]] += 1
    return counts
