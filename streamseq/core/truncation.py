"""Truncation: how far back-propagation reaches, fixed, random and unbiased, or adapted to a tolerated bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

#: log φ below which an influence counts as none and does not enter the slope.
LEAST_LOG = -50.0


@dataclass(frozen=True, slots=True)
class Fixed:
    """Back-propagation reaches k2 timesteps, in every update."""


@dataclass(frozen=True, slots=True)
class Random:
    """Cuts at random places, and weights that make up for them: no bias at fixed parameters, at the price of variance.

    Between two units of `every` timesteps the backward signal is cut with probability c(age), and multiplied by
    1 / (1 - c(age)) where it is not; age counts units since the last cut. With L0 = mean / every

        c(age) = (alpha - 1) / ((alpha - 2) L0 + age),

    which grows too slowly for the weights to explode: they are of the order of (age / L0)^(alpha - 1). The mean length
    between cuts is L0 units (ARTBP, Tallec & Ollivier 2017).

    Args:
        mean: The mean length between cuts, in timesteps; more than `every`, for c must be less than 1.
        alpha: More than 2, else the mean length is infinite. A larger one gives lengths closer to the mean, and
            weights that grow faster beyond it.
        every: Timesteps of a unit: cuts lie at its multiples; None: k1.
        seed: Of the cuts, in [0, 2^64).

    Raises:
        TypeError: A value is no number, or `every` or `seed` is no integer.
        ValueError: A value is out of its range.

    Example:
        >>> cuts = Random(mean=16, every=1)
        >>> [round(float(cuts.probability(age)), 3) for age in (1, 16, 64)]
        [0.077, 0.062, 0.039]
    """

    mean: float
    alpha: float = 6.0
    every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_number("mean", self.mean)
        _check_number("alpha", self.alpha)
        _check_integer("seed", self.seed, 0)
        if self.seed >= 1 << 64:
            raise ValueError(f"a seed is less than 2^64, got {self.seed}")
        if self.alpha <= 2:
            raise ValueError(
                f"alpha is more than 2, with less the mean length is infinite, got {self.alpha}: take 6, or 4 for a "
                "wider spread of lengths"
            )
        if self.every is not None:
            _check_integer("every", self.every, 1)
        if self.mean <= (self.every or 0):
            raise ValueError(
                f"the mean length is more than the {self.every or 0} timesteps between places to cut, got mean="
                f"{self.mean}: take a longer mean, or a smaller every or k1"
            )

    def with_unit(self, k1: int) -> Random:
        """The same with `every` known: k1 where it was None."""
        return self if self.every is not None else replace(self, every=k1)

    def probability(self, age: ArrayLike) -> Float64:
        """The probability c of a cut, in (0, 1).

        Args:
            age: Units since the last cut, 1, 2, …; a number or an integer array.

        Returns:
            float64 of the same shape.

        Raises:
            ValueError: An age is less than 1, or `every` is not known.
        """
        ages = np.asarray(age)
        if (ages < 1).any():
            raise ValueError(f"an age counts the units since the last cut, from 1, got {ages.min()}")
        if self.every is None:
            raise ValueError("the length of a unit is not known: give every, or take with_unit(k1)")
        units = self.mean / self.every
        return np.asarray((self.alpha - 1) / ((self.alpha - 2) * units + ages), np.float64)

    def uniform(self, epoch: int, lanes: ArrayLike, index: int) -> Float64:
        """The numbers that decide about cuts, each a function of (seed, epoch, lane, index) alone.

        They do not depend on what was drawn before or on which lanes are asked for, so that cuts are the same after a
        resume and for any number of ranks. Philox 4x64-10 (Salmon et al. 2011), keyed by seed and epoch.

        Args:
            epoch: From 0.
            lanes: int64 [B], global lane numbers.
            index: Of the place to cut, emitted timesteps / every.

        Returns:
            float64 [B], uniform in [0, 1).
        """
        numbers = np.asarray(lanes, np.int64)
        if not numbers.size:
            return np.zeros(0)
        # A value of the counter gives four words, one for each of four lanes.
        first = int(numbers.min()) // 4
        key = np.array([self.seed, epoch], np.uint64)
        counter = np.array([first, index, 0, 0], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(int(numbers.max()) + 1 - 4 * first)
        return np.asarray(words[numbers - 4 * first] >> np.uint64(11), np.float64) * 2.0**-53

    def cuts(self, epoch: int, lanes: ArrayLike, index: int, age: ArrayLike) -> tuple[NDArray[np.bool_], Float64]:
        """Which lanes are cut at a place, and by what the backward signal across it is multiplied.

        Args:
            epoch, lanes, index: As for `uniform`.
            age: int64 [B], units since the last cut of each lane.

        Returns:
            bool [B], and float64 [B]: 0 where a lane is cut, 1 / (1 - c) elsewhere.

        Example:
            >>> cut, weight = Random(mean=4, every=1).cuts(0, [0, 1, 2, 3], 7, [1, 1, 9, 9])
            >>> cut.tolist(), weight.round(2).tolist()
            ([True, True, False, False], [0.0, 0.0, 1.25, 1.25])
        """
        chance = self.probability(age)
        cut = self.uniform(epoch, lanes, index) < chance
        return cut, np.where(cut, 0.0, 1 / (1 - chance))


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The smallest k2 whose estimated relative bias is below a wish, measured anew from time to time.

    TBPTT's own k2 is the largest that is taken, also where no decay of the influence is seen (Aicher, Foti & Fox 2019).

    Args:
        bias: The relative bias δ that is tolerated, above 0. The paper's runs have 0.1 to 0.9.
        probe: Timesteps of the probe window, on which the influence is measured over lags of up to half of it; None:
            twice k2.
        every: Updates from one measurement to the next; None: one at the start of each epoch.
        tau: The lag in timesteps from which the decay is taken to be geometric; None: half the longest lag.

    Raises:
        TypeError: `bias` is no number, or another value no integer.
        ValueError: A value is out of its range.
    """

    bias: float
    probe: int | None = None
    every: int | None = None
    tau: int | None = None

    def __post_init__(self) -> None:
        _check_number("bias", self.bias)
        for name, least in (("probe", 4), ("every", 1), ("tau", 1)):
            value = getattr(self, name)
            if value is not None:
                _check_integer(name, value, least)

    def probe_length(self, k2: int | None) -> int:
        """Timesteps of the probe window.

        Args:
            k2: The largest that may be taken; None: n.

        Raises:
            ValueError: Neither says.
        """
        if self.probe is not None:
            return self.probe
        if k2 is None:
            raise ValueError("an adaptive truncation with k2=n needs the length of its probe: pass Adaptive(probe=)")
        return max(4, 2 * k2)

    def k2(self, lags: NDArray[np.int64], delta: Float64, *, k1: int, largest: int | None) -> int | None:
        """The k2 that gives every loss at least the smallest depth with δ below the wish: that depth + k1 - 1.

        Args:
            lags: int64 [M], depths in timesteps.
            delta: float64 [M], δ of each, as from `relative_bias`.
            k1: Timesteps between updates.
            largest: The largest k2 that is taken, also where no depth is enough; None: n.
        """
        index = smallest(delta, self.bias)
        if index is None:
            return largest
        wanted = int(lags[index]) + k1 - 1
        return wanted if largest is None else min(wanted, largest)


Truncation = Fixed | Random | Adaptive


def decay(phi: Sequence[float] | Float64, *, tau: int | None = None) -> float:
    """β, by which the influence shrinks from a lag to the next: exp of the least-squares slope of log φ over lag.

    Args:
        phi: float64 [M], the influence φ at lags 0, 1, …, M - 1, in any unit of lag.
        tau: Where the decay begins, in [0, M - 2]; None: at the middle. Lags before it do not count, nor do values
            below e^-50.

    Returns:
        β; 0 where fewer than two values from `tau` on are above e^-50, for then all influence is gone. 1 or more
        means that no decay was seen.

    Raises:
        ValueError: `phi` is not a list of at least two finite numbers of at least 0, or `tau` is not in it.

    Example:
        >>> round(decay([3.0, 5.0, 4.0, 2.0, 1.0], tau=2), 6)
        0.5
    """
    values, begin = _checked(phi, tau)
    lags = np.arange(len(values))
    seen = (values >= math.exp(LEAST_LOG)) & (lags >= begin)
    if seen.sum() < 2:
        return 0.0
    x = lags[seen] - lags[seen].mean()
    y = np.log(values[seen])
    return float(np.exp((x @ (y - y.mean())) / (x @ x)))


def excess(phi: Sequence[float] | Float64, beta: float, *, tau: int | None = None) -> Float64:
    """E(K), a bound on what truncation after K lags loses: what is measured up to τ, and a geometric tail after it.

        E(K) = Σ_{k=K..τ} φ_k + φ_τ / (1 - β)  for K < τ;   φ_τ β^(K - τ) / (1 - β)  for K >= τ

    (Aicher, Foti & Fox 2019.)

    Args:
        phi: float64 [M], as for `decay`.
        beta: As `decay` gives it.
        tau: As for `decay`.

    Returns:
        float64 [M], E of K = 0, 1, …, M - 1; infinite everywhere where `beta` is 1 or more.

    Raises:
        ValueError: As for `decay`; or `beta` is negative.

    Example:
        >>> excess([1.0, 1.0, 0.5, 0.25], 0.5, tau=1).tolist()
        [4.0, 2.0, 1.0, 0.5]
    """
    values, begin = _checked(phi, tau)
    if not beta >= 0:
        raise ValueError(f"a decay is at least 0, got {beta}: take what decay() returns")
    if beta >= 1:
        return np.full(len(values), np.inf)
    tail = values[begin] / (1 - beta)
    lost: Float64 = tail * np.power(float(beta), np.maximum(np.arange(len(values)) - begin, 0))
    measured = np.cumsum(values[begin::-1])[::-1]
    lost[:begin] += measured[:begin]
    return lost


def relative_bias(
    phi: Sequence[float] | Float64,
    gradient_norms: Sequence[float] | Float64,
    beta: float,
    *,
    tau: int | None = None,
) -> Float64:
    """δ(K), a bound on the bias of truncation after K lags, relative to the gradient.

        δ(K) = E(K) / max_K' (‖g_K'‖ - E(K'))

    The denominator is at most the norm of the whole gradient (Aicher, Foti & Fox 2019).

    Args:
        phi: float64 [M], as for `decay`.
        gradient_norms: float64 [M], ‖g_K‖ for K = 0, 1, …, M - 1: of the gradient truncated after K lags, in the unit
            of φ.
        beta: As `decay` gives it.
        tau: As for `decay`.

    Returns:
        float64 [M], δ of K = 0, 1, …, M - 1. Infinite where nothing can be said: no decay, or more may be lost than
        is seen. 0 where nothing is lost.

    Raises:
        ValueError: As for `excess`; or there are not as many norms as values of φ.

    Example:
        >>> phi = 0.5 ** np.arange(8)
        >>> norms = np.concatenate([[0.0], np.cumsum(phi)[:-1]])
        >>> relative_bias(phi, norms, decay(phi), tau=0).round(3).tolist()
        [1.016, 0.508, 0.254, 0.127, 0.063, 0.032, 0.016, 0.008]
    """
    lost = excess(phi, beta, tau=tau)
    norms = np.asarray(gradient_norms, np.float64)
    if norms.shape != lost.shape:
        raise ValueError(
            f"there is a gradient norm for each lag, got {len(norms)} for {len(lost)}: pass both of one probe"
        )
    if beta >= 1:
        return lost
    least = float((norms - lost).max())
    if least <= 0:
        return np.where(lost > 0, np.inf, 0.0)
    return lost / least


def smallest(delta: Sequence[float] | Float64, bias: float) -> int | None:
    """The smallest K with δ(K) below the wish, as an index; None: there is none, take the largest.

    Args:
        delta: float64 [M].
        bias: The wish.

    Example:
        >>> smallest([0.9, 0.3, 0.05], 0.1), smallest([0.9, 0.3], 0.1)
        (2, None)
    """
    below = np.flatnonzero(np.asarray(delta) < bias)
    return int(below[0]) if len(below) else None


def middle(num_lags: int) -> int:
    """The τ that is taken where none is given: half the lags, of which at least two are left."""
    return max(0, min(num_lags // 2, num_lags - 2))


def _checked(phi: Sequence[float] | Float64, tau: int | None) -> tuple[Float64, int]:
    values = np.asarray(phi, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"influences are at least two finite numbers, none below 0, got {np.array2string(values, threshold=6)}: "
            "measure on a longer probe, and with finite gradients"
        )
    begin = middle(len(values)) if tau is None else tau
    if not 0 <= begin <= len(values) - 2:
        raise ValueError(
            f"tau leaves at least two of {len(values)} lags to see the decay in, got {begin}: take at most "
            f"{len(values) - 2}"
        )
    return values, begin


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is a number, got {value!r}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} is a finite number above 0, got {value}")


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} is at least {least}, got {value}")
