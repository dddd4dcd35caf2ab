"""Laying out: in which order sequences are taken, in one epoch, and which lanes they go to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamseq.core.balance import Classes, balanced_draws
from streamseq.core.layout import (
    Layout,
    Numbers,
    deal_in_turn,
    fill_lanes,
    join_lanes,
    lay_end_to_end,
    not_empty,
    number_dtype,
)
from streamseq.core.mixing import Mix
from streamseq.core.settings import PlanSettings
from streamseq.core.shuffle import random_keys, shuffled_order
from streamseq.core.splits import AsIs

Int64 = NDArray[np.int64]

# What tells random numbers of one use from those of others.
_SEED_OF_PASS, _BUCKET, _IN_BUCKET = 21, 22, 23


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Laying:
    """Lays out what lanes get as a whole, *groups*: spans, the parts that `longest` makes of them, or what lies
    between breaks.

    Args:
        lengths: int [G], timesteps of each group.
        settings: How.
        epoch: Decides random orders.
        mix: Parts with lanes of their own.
        classes: Of the spans, where they are drawn by class.
        spans: int64 [M], timesteps of each span.
        first_of: The first group of each of some spans; of M the number of groups.
    """

    lengths: Numbers
    settings: PlanSettings
    epoch: int
    mix: Mix | None
    classes: Classes | None
    spans: Int64
    first_of: Callable[[Int64], Int64]

    @property
    def _as_is(self) -> bool:
        """Whether lanes count sequences, and not their timesteps."""
        return isinstance(self.settings.split, AsIs) and self.settings.layout != "even"

    def layout(self) -> Layout:
        """The groups that each lane holds."""
        mix = self.mix
        if mix is None:
            return self._lanes_of(self.lengths, self._order(0), int(self.settings.lanes))
        borders = self.first_of(mix.rows).tolist()
        parts = [self.lengths[low:high] for low, high in pairwise(borders)]
        layouts = [
            self._lanes_of(part, self._order(number), lanes)
            for number, (part, lanes) in enumerate(zip(parts, mix.lanes, strict=True))
        ]
        ends = [self._end(layout, part) for layout, part in zip(layouts, parts, strict=True)]
        if mix.until == "first":
            layouts = [self._until(layout, min(ends), part) for layout, part in zip(layouts, parts, strict=True)]
        if mix.until == "repeat":
            for number, end in enumerate(ends):
                if end < max(ends):
                    layouts[number] = self._repeated(number, parts[number], mix.lanes[number], max(ends))
        return join_lanes(layouts, borders[:-1], number_dtype(len(self.lengths)))

    def _lanes_of(self, lengths: Numbers, order: Numbers | None, lanes: int, total: int | None = None) -> Layout:
        """Groups of some lengths, in an order, on some lanes; in the even layout `total` timesteps of them, or all."""
        split = self.settings.split
        if self.settings.layout == "even":
            return lay_end_to_end(lengths, lanes, order, total)
        if isinstance(split, AsIs):
            if split.buckets is not None:
                order = self._in_buckets(lengths, not_empty(lengths, order), int(split.buckets), lanes)
            return deal_in_turn(lengths, lanes, order)
        return fill_lanes(lengths, lanes, order)

    def _end(self, layout: Layout, lengths: Numbers) -> int:
        """What the fullest lane holds: timesteps, or sequences."""
        if self._as_is:
            return int(np.diff(layout.first).max())
        borders = layout.first.tolist()
        return max(int(layout.lengths_of(lengths, low, high).sum()) for low, high in pairwise(borders))

    def _until(self, layout: Layout, limit: int, lengths: Numbers) -> Layout:
        return layout.until(limit, None if self._as_is else lengths)

    def _repeated(self, part: int, lengths: Numbers, lanes: int, limit: int) -> Layout:
        """A part gone through again and again, until each of its lanes is full."""
        needed = limit * lanes
        if not self._as_is and self.settings.layout != "even":
            # Lanes end within one longest group of each other.
            needed += int(lengths.max()) * lanes
        passes: list[Numbers] = []
        while needed > 0:
            order = self._order(part, len(passes))
            if order is None:
                order = np.arange(len(lengths), dtype=number_dtype(len(lengths)))
            passes.append(order)
            held = lengths[order]
            needed -= int(np.count_nonzero(held)) if self._as_is else int(held.sum(dtype=np.int64))
        order = np.concatenate(passes)
        if self._as_is:
            order = not_empty(lengths, order)[: limit * lanes]
        return self._until(self._lanes_of(lengths, order, lanes, limit * lanes), limit, lengths)

    def _order(self, part: int, again: int = 0) -> Numbers | None:
        """The order in which the groups of a part are taken, the first time or again; None for as they are."""
        settings = self.settings
        low, high = (0, len(self.spans)) if self.mix is None else self.mix.rows[part : part + 2].tolist()
        seed = int(settings.seed)
        if part or again:
            seed = int(random_keys(1, seed, part, _SEED_OF_PASS, again)[0])
        if self.classes is not None:
            classes = self.classes.part(low, high)
            return self._groups_of(balanced_draws(self.spans[low:high], classes, settings.run, seed, self.epoch), low)
        if settings.shuffle:
            begin, end = self.first_of(np.array([low, high])).tolist()
            return shuffled_order(self.lengths[begin:end], settings.run, seed, self.epoch)
        return None

    def _groups_of(self, spans: Numbers, low: int) -> Numbers:
        """The groups of spans, one span after the other; both counted from those of span `low` on."""
        if len(self.lengths) == len(self.spans):
            return spans
        numbers = spans.astype(np.int64) + low
        first = self.first_of(numbers)
        counts = self.first_of(numbers + 1) - first
        begins = np.repeat(first - (np.cumsum(counts) - counts), counts)
        groups = begins + np.arange(len(begins)) - int(self.first_of(np.array([low]))[0])
        return groups.astype(number_dtype(len(self.lengths)))

    def _in_buckets(self, lengths: Numbers, order: Numbers, buckets: int, lanes: int) -> Numbers:
        """An order in which windows, of `lanes` sequences each, hold sequences of similar lengths.

        Those of `buckets` windows at a time are sorted by length. A window that is not full comes last, with the
        shortest ones. The buckets of the parts of a mix come in the same order, so that they are of similar ranks.
        """
        size = buckets * lanes
        whole = len(order) // size * size
        done = [self._sorted_windows(lengths, order[:whole].reshape(-1, size), lanes, 0)] if whole else []
        rest = order[whole:]
        rest = rest[np.argsort(lengths[rest], kind="stable")]
        short = len(rest) % lanes
        if len(rest) > short:
            done.append(self._sorted_windows(lengths, rest[short:].reshape(1, -1), lanes, whole))
        return np.concatenate([*done, rest[:short]])

    def _sorted_windows(self, lengths: Numbers, order: Numbers, lanes: int, first: int) -> Numbers:
        """Rows of sequences [Q, W x lanes], sorted by length and cut into windows: a flat order.

        Args:
            lengths: int, timesteps by sequence.
            order: int [Q, W x lanes].
            lanes: Sequences of a window.
            first: Sequences that came before them.
        """
        rows, size = order.shape
        by_length = np.take_along_axis(order, np.argsort(lengths[order], 1, kind="stable"), 1)
        windows = by_length.reshape(rows, size // lanes, lanes)
        if self.settings.shuffle or self.classes is not None:
            seed, epoch = int(self.settings.seed), self.epoch
            # Of each window of the epoch, whatever the lanes of a part, a random number.
            keys = random_keys(rows * (size // lanes), seed, epoch, _BUCKET, first // lanes).reshape(rows, -1)
            windows = np.take_along_axis(windows, np.argsort(keys, 1, kind="stable")[:, :, None], 1)
            within = random_keys(order.size, seed, epoch, _IN_BUCKET, first).reshape(windows.shape)
            windows = np.take_along_axis(windows, np.argsort(within, 2, kind="stable"), 2)
        return windows.reshape(-1)
