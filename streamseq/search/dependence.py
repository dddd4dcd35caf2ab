"""How far back a timestep depends on others, as far as the data alone tells: by lag, without a model.

Of whole numbers the mutual information of two timesteps, I(x_t; x_{t-lag}) = sum p(a, b) ln(p(a, b) / (p(a) p(b))), in
nats, less what is left of it between timesteps of a piece that are farther apart than the largest lag: what few samples
make of none, and what the pieces differ in, which no state has to carry. It is counted at some lags, and at those where
random codes of the values are correlated, which are found at all lags at once. Of other numbers the autocorrelation,
the mean over channels of its absolute value, with the standard error of Bartlett (1946). Both see pairs only: a
dependence of three timesteps on each other may show in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.storage.interface import Store

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

#: Timesteps that are looked at.
USUAL_TIMESTEPS = 1 << 20
USUAL_LAG = 4096
# Lags are all up to the first number, and then as many to each doubling.
_EVERY, _PER_OCTAVE = 64, 16
# Values of a field of whole numbers that are told apart; of more each has a cell of several.
_VALUES = 256
# A dependence is seen where it is so many times as large as chance makes it.
_SIGMAS = 5.0
_TURNS = 8
# Timesteps of a piece at least, where there are as many, for some that lie far apart.
_SMALLEST = 1 << 14
# Channels of a field that are looked at, evenly spaced.
_CHANNELS = 64
# A dependence counts for the memory from this share of the strongest one, and where shorter lags hand on less than so
# much of it.
_STRONG, _HANDED_ON = 0.05, 0.5
# How many shorter lags are looked at to hand one on.
_LINKS = 6
# Of what a linear forecast gains in all; and the largest order of one.
_GAINED, _ORDER = 0.95, 512
# The largest partial correlation, for what can be forecast exactly has no logarithm.
_MOST_PARTIAL = 0.9999
# Random codes of the values, the lags they add, and the neighbours that a lag has to stand out of.
_CODES, _FOUND, _AROUND = 8, 64, 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dependence:
    """What two timesteps know of each other.

    Args:
        field: The field.
        kind: "mutual information", in nats, or "autocorrelation".
        lags: int64 [L], ascending from 1.
        weight: int64 [L], how many lags each stands for.
        values: float64 [L], at each lag; 0 is none.
        chance: float64 [L], how large it is by chance where there is none (5 standard deviations).
        timesteps: Those that were looked at.
        memory: How many timesteps back one has to look, as far as pairs tell; 0: there is no dependence. Of whole
            numbers the largest lag with at least a 20th of the strongest dependence, more than half of which chains
            through shorter lags do not hand on: where x_t depends on x_{t-j} alone, and that on x_{t-lag}, the joint
            distribution is known from theirs. Of other numbers the order of the linear forecast, channel by channel,
            that gains 95 % of what any gains (Levinson-Durbin, in ln of the error).
    """

    field: str
    kind: str
    lags: Int64
    weight: Int64
    values: Float64
    chance: Float64
    timesteps: int
    memory: int

    @property
    def reach(self) -> int:
        """The largest lag at which a dependence is seen; 0 where there is none."""
        seen = np.flatnonzero(self.values > self.chance)
        return int(self.lags[seen[-1]]) if len(seen) else 0

    def within(self, share: float) -> int:
        """The smallest lag up to which a share of all dependence lies, summed over lags; 0 where there is none.

        Args:
            share: In (0, 1].
        """
        mass = np.cumsum(np.where(self.values > self.chance, self.values, 0.0) * self.weight)
        if not mass[-1]:
            return 0
        return int(self.lags[int(np.searchsorted(mass, share * mass[-1] * (1 - 1e-12)))])


def measure_dependence(
    store: Store, field: str, *, longest: int = USUAL_LAG, timesteps: int = USUAL_TIMESTEPS
) -> Dependence:
    """Measure by lag what two timesteps of one sequence know of each other.

    Args:
        store: Of which pieces are read, from all over the store, each longer than the largest lag where sequences are.
        field: The field.
        longest: The largest lag.
        timesteps: How many timesteps are looked at, at most.

    Raises:
        KeyError: There is no such field.
        ValueError: No sequence has two timesteps.

    Example:
        >>> import streamseq as ss
        >>> bits = np.random.default_rng(0).integers(0, 2, 20_000).astype(np.uint8)
        >>> twice = np.repeat(bits.reshape(-1, 50), 2, axis=0).reshape(-1)
        >>> measure_dependence(ss.from_arrays({"a": {"x": twice}}), "x", longest=200).reach
        50
    """
    if field not in store.fields:
        raise KeyError(f"the store has fields {', '.join(store.fields)}, not {field!r}")
    pieces = _pieces(store, field, longest, timesteps)
    if not pieces:
        raise ValueError(f"a dependence is one of two timesteps, and no sequence of {store.uri} has two")
    most = max(len(piece) for piece in pieces) - 1
    lags = lags_up_to(min(longest, most))
    whole = store.fields[field].dtype.kind in "iub" and not store.fields[field].shape
    weight = np.diff(lags, prepend=0)
    if whole:
        spaced, (lags, values, chance, memory) = lags, _information(pieces, lags)
        # One that stands out stands for itself.
        weight = np.where(
            np.isin(lags, spaced), np.diff(spaced, prepend=0)[np.searchsorted(spaced, lags) % len(spaced)], 1
        )
    else:
        every = np.arange(1, int(lags[-1]) + 1)
        correlation, number = _correlation(pieces, every)
        values = np.abs(correlation).mean(1)
        spread = 1 + 2 * np.cumsum(values**2)
        chance = _SIGMAS * np.sqrt(spread / np.maximum(number, 1))
        memory = _order(correlation[:_ORDER], number[:_ORDER]) if (values > chance).any() else 0
        values, chance = values[lags - 1], chance[lags - 1]
    return Dependence(
        field=field,
        kind="mutual information" if whole else "autocorrelation",
        lags=lags,
        weight=weight,
        values=values,
        chance=chance,
        timesteps=sum(len(piece) for piece in pieces),
        memory=memory,
    )


def lags_up_to(longest: int) -> Int64:
    """All small lags, and 16 to each doubling above: int64, ascending.

    Example:
        >>> lags_up_to(3).tolist(), len(lags_up_to(4096))
        ([1, 2, 3], 160)
    """
    every = np.arange(1, min(longest, _EVERY) + 1)
    octaves = max(0.0, np.log2(max(1, longest) / _EVERY))
    more = np.round(_EVERY * 2 ** (np.arange(1, int(octaves * _PER_OCTAVE) + 1) / _PER_OCTAVE)).astype(np.int64)
    return np.unique(np.concatenate([every, more[more <= longest]]))


def _pieces(store: Store, field: str, longest: int, timesteps: int) -> list[NDArray[Any]]:
    """Pieces of sequences spread over the store, of several times the largest lag each where sequences are as long."""
    lengths = store.lengths
    chosen = np.flatnonzero(lengths >= 2)
    if not len(chosen):
        return []
    size = max(8 * longest, _SMALLEST)
    count = max(1, timesteps // size)
    total = np.cumsum(lengths[chosen])
    # By timesteps, so that long sequences have more pieces.
    at = (np.arange(count) * 2 + 1) * int(total[-1]) // (2 * count)
    found: list[NDArray[Any]] = []
    ends: dict[int, int] = {}
    left = timesteps
    for place in np.searchsorted(total, at, "right").tolist() + list(range(len(chosen))):
        if left <= 1:
            break
        sequence = int(chosen[place])
        start = ends.get(sequence, 0)
        stop = min(int(lengths[sequence]), start + min(size, left))
        if stop - start < 2:
            continue
        found.append(store.read(sequence, start, stop, [field])[field])
        ends[sequence] = stop
        left -= stop - start
    return found


def _information(pieces: list[NDArray[Any]], lags: Int64) -> tuple[Int64, Float64, Float64, int]:
    """Lags, more than were asked for, the mutual information at each, what chance makes of none, and the memory."""
    known = np.unique(np.concatenate([np.unique(piece) for piece in pieces]))
    cells = min(len(known), _VALUES)
    coded = [(np.searchsorted(known, piece) * cells // len(known)).astype(np.int64) for piece in pieces]
    lags = np.union1d(lags, _standing_out(coded, cells, int(lags[-1])))
    nothing = np.array(_far_apart(coded, int(lags[-1]), cells))
    values, chance = np.zeros(len(lags)), np.zeros(len(lags))
    whole = sum(len(piece) for piece in coded)
    for index, lag in enumerate(lags.tolist()):
        found, number, free = _shared(coded, lag, cells)
        if number:
            # Of none, 2 n I is about chi-squared, whose tail Laurent & Massart (2000) bound; of fewer pairs there is
            # more of it.
            values[index] = max(0.0, found - float(nothing.mean()) * whole / number)
            tail = _SIGMAS * np.sqrt(2 * max(1, free)) + _SIGMAS**2
            chance[index] = tail / (2 * number) + _SIGMAS * float(nothing.std())
    return lags, values, chance, _memory(coded, cells, lags, np.where(values > chance, values, 0.0))


def _memory(coded: list[Int64], cells: int, lags: Int64, values: Float64) -> int:
    """The largest strong lag that no chain through shorter ones hands on."""
    strong = np.flatnonzero(values >= max(_STRONG * values.max(initial=0.0), np.finfo(np.float64).tiny)).tolist()
    if not strong:
        return 0
    table: dict[int, Float64] = {}

    def joint(lag: int) -> Float64:
        if lag not in table:
            pairs = [(piece[lag:], piece[:-lag]) for piece in coded if len(piece) > lag]
            table[lag] = _joint(pairs, cells).astype(np.float64)
        return table[lag]

    direct: list[int] = []
    for place in strong:
        lag = int(lags[place])
        links = sorted(direct, key=lambda other: -values[np.searchsorted(lags, other)])[:_LINKS]
        handed_on = 0.0
        for link in links:
            # What is before, given what is between, given what is now.
            now_between, between_before = joint(link), joint(lag - link)
            between = np.maximum(now_between.sum(0), 1)
            made = (now_between / between) @ between_before
            handed_on = max(handed_on, _mutual(made))
        if handed_on < _HANDED_ON * values[place]:
            direct.append(lag)
    return direct[-1]


def _order(correlation: Float64, number: Float64) -> int:
    """The order of the linear forecast that gains nearly all that any does; 0: none gains anything.

    Args:
        correlation: Of all lags from 1, [L, C].
        number: Of pairs at each, [L].
    """
    orders = len(correlation)
    gained = np.zeros(orders)
    for channel in correlation.T:
        rho = np.concatenate([[1.0], channel])
        weights, error = np.zeros(orders), 1.0
        for order in range(orders):
            partial = (rho[order + 1] - weights[:order] @ rho[order:0:-1]) / error
            # What chance makes of a partial correlation that is not there.
            if abs(partial) > _SIGMAS / np.sqrt(max(1.0, number[order])):
                # No more is to be explained; or, where values are missing, these are no correlations of one process.
                ended = abs(partial) > _MOST_PARTIAL
                partial = float(np.clip(partial, -_MOST_PARTIAL, _MOST_PARTIAL))
                weights[:order] -= partial * weights[:order][::-1].copy()
                weights[order] = partial
                error *= 1 - partial**2
                if ended:
                    gained[order:] -= np.log(error)
                    break
            gained[order] -= np.log(error)
    return 0 if not gained[-1] else 1 + int(np.searchsorted(gained, _GAINED * gained[-1]))


def _shared(coded: list[Int64], lag: int, cells: int) -> tuple[float, int, int]:
    """Mutual information at one lag as it is counted, the number of pairs, and the degrees of freedom."""
    return _counted([(piece[lag:], piece[:-lag]) for piece in coded if len(piece) > lag], cells)


def _far_apart(coded: list[Int64], longest: int, cells: int) -> list[float]:
    """Mutual information as it is counted between each piece and itself, turned by more than the largest lag."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(_TURNS):
        pairs = []
        for piece in coded:
            least = min(longest + 1, len(piece) // 3)
            pairs.append((piece, np.roll(piece, int(random.integers(least, max(least + 1, len(piece) - least))))))
        found.append(_counted(pairs, cells)[0])
    return found


def _counted(pairs: list[tuple[Int64, Int64]], cells: int) -> tuple[float, int, int]:
    table = _joint(pairs, cells)
    number = int(table.sum())
    if not number:
        return 0.0, 0, 0
    free = int(np.count_nonzero(table.sum(1)) - 1) * int(np.count_nonzero(table.sum(0)) - 1)
    return _mutual(table), number, free


def _joint(pairs: list[tuple[Int64, Int64]], cells: int) -> Int64:
    """How often each pair of values is there, [cells, cells]."""
    joint = np.zeros(cells * cells, np.int64)
    for one, other in pairs:
        joint += np.bincount(one * cells + other, minlength=cells * cells)
    return joint.reshape(cells, cells)


def _mutual(table: NDArray[Any]) -> float:
    """The mutual information of a table of counts, [cells, cells]."""
    number = table.sum()
    expected = np.outer(table.sum(1), table.sum(0)) / number
    seen = table > 0
    return float((table[seen] * np.log(table[seen] / expected[seen])).sum() / number)


def _standing_out(coded: list[Int64], cells: int, longest: int) -> Int64:
    """Lags at which a code of +1 and -1 for each value is correlated the most: int64, at most `_FOUND`."""
    codes = np.random.default_rng(1).choice([-1.0, 1.0], (_CODES, cells))
    every = np.arange(1, longest + 1)
    strength = np.zeros(longest)
    for code in codes:
        correlation, _ = _correlation([code[piece][:, None] for piece in coded], every)
        strength += np.abs(correlation[:, 0])
    # The decay that most data has is seen by the other lags.
    rough = strength - np.convolve(
        np.pad(strength, _AROUND, "edge"), np.full(2 * _AROUND + 1, 1 / (2 * _AROUND + 1)), "valid"
    )
    order = np.argsort(rough)[::-1][:_FOUND]
    return every[np.sort(order[rough[order] > 0])]


def _correlation(pieces: list[NDArray[Any]], lags: Int64) -> tuple[Float64, Float64]:
    """The autocorrelation by lag of each channel, [L, C], and the numbers of pairs, [L]."""
    flat = [piece.reshape(len(piece), -1) for piece in pieces]
    channels = flat[0].shape[1]
    chosen = np.arange(min(channels, _CHANNELS)) * channels // min(channels, _CHANNELS)
    flat = [piece[:, chosen].astype(np.float64) for piece in flat]
    flat = [np.where(np.isfinite(piece), piece, np.nan) for piece in flat]
    everything = np.concatenate(flat)
    mean, std = np.nanmean(everything, 0), np.nanstd(everything, 0)
    scaled = [np.nan_to_num((piece - mean) / np.where(std > 0, std, 1)) for piece in flat]
    sums = np.zeros((len(lags), everything.shape[1]))
    number = np.zeros(len(lags))
    for piece in scaled:
        size = 1 << (2 * len(piece) - 1).bit_length()
        power = np.abs(np.fft.rfft(piece, size, axis=0)) ** 2
        lagged = np.fft.irfft(power, size, axis=0)
        held = lags < len(piece)
        sums[held] += lagged[lags[held]]
        number[held] += len(piece) - lags[held]
    return sums / np.maximum(number, 1)[:, None], number
