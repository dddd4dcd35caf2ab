"""Adaptive truncation: k2 follows the influence of earlier states, measured on the timesteps that were run last."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from streamseq.core import truncation
from streamseq.core.grid import Grid
from streamseq.data.window import Window
from streamseq.tbptt.history import GridHistory, Moment
from streamseq.tbptt.influence import Influence
from streamseq.tbptt.past import Past
from streamseq.tbptt.ranks import Ranks

# More lags than these show nothing more.
_MOST_LAGS = 128

_log = logging.getLogger("streamseq.tbptt")


class AdaptiveHistory(GridHistory):
    """Back-propagation reaches the smallest k2 whose estimated bias is below a wish (Aicher, Foti & Fox 2019).

    k2 is a multiple of k1, so that every state from which an update may start is that at the end of another one; they
    are all kept as far back as the largest k2 and the probe reach.

    Args:
        policy: The wish, and when and on what it is measured.
        grid: With the largest k2.
        measure: Measures a probe: windows, the state before them, the stride and the longest lag.
    """

    def __init__(
        self, policy: truncation.Adaptive, grid: Grid, measure: Callable[[list[Window], Any, int, int], Influence]
    ) -> None:
        assert grid.k1 is not None
        super().__init__(grid, to_grid=False)
        self._policy = policy
        self._measure = measure
        #: What was measured last.
        self.influence: Influence | None = None
        # The k2 that was chosen; None: none yet, and the largest is taken.
        self._chosen: int | None = None
        self._largest = self._probe = grid.k1
        self._updates = 0
        self._measured_in: int | None = None
        self._resumed = False

    def fit(self, grid: Grid, *, anew: bool) -> None:
        """Take the largest k2 for the windows that there are.

        Args:
            grid: With it.
            anew: Whether windows are iterated anew, which are measured once, or again and again, as the policy says.

        Raises:
            ValueError: It is not known, as k2 is n.
        """
        k1, largest = grid.k1, grid.k2
        assert k1 is not None
        if largest is None:
            raise ValueError(
                "adaptive truncation takes k2 as the largest that it may choose, got n of a source that does not say "
                "what n is: pass a number for k2"
            )
        self._largest = largest // k1 * k1
        self._probe = -(-self._policy.probe_length(self._largest) // k1) * k1
        self._reach = max(self._largest, self._probe + k1)
        self.grid = Grid(k1=k1, k2=self._chosen or self._largest)
        if anew and not self._resumed and self._policy.every is None:
            self._measured_in = None
        self._resumed = False

    def due(self, moment: Moment) -> bool:
        """Whether k2 is to be measured anew after an update."""
        self._updates += 1
        if moment.stop < self._probe or moment.stop % int(self.grid.k1 or 1):
            return False
        every = self._policy.every
        if every is None or self._measured_in is None:
            return self._measured_in != moment.epoch
        return self._updates >= every

    def end(self) -> None:
        """The windows have ended: say so where they were too few to measure anything."""
        if self.influence is None and self._measured_in is None:
            _log.warning(
                "k2 stays %s, nothing was measured: windows ended before the %d timesteps of a probe, take a shorter "
                "probe=",
                self.grid.k2,
                self._probe,
            )

    def adapt(self, moment: Moment, past: Past, origin: int, length: int, ranks: Ranks) -> None:
        """Measure on the timesteps before `moment.stop`, and choose k2 for the updates to come.

        Args:
            moment: Of the last update.
            past: Where the windows are.
            origin: The step of the window at time 0.
            length: Timesteps of a window.
            ranks: Whose measurements are put together.
        """
        k1 = int(self.grid.k1 or 1)
        start, stop = moment.stop - self._probe, moment.stop
        steps = range(start // length, -(-stop // length))
        probe = [
            past[origin + step].cut(max(0, start - step * length), min(length, stop - step * length)) for step in steps
        ]
        plain = ranks.everywhere(not any(past.marks(origin + step).borders for step in steps))
        stride = _stride(math.gcd(k1, length), self._probe // 2) if plain else 1
        lags = self._probe // 2 // stride * stride
        try:
            here: Influence | None = self._measure(probe, self._kept.get(start), stride, lags)
        except ValueError as error:
            here, reason = None, str(error)
        influence = here if ranks.alone else combine(here, stride, lags, self._policy.tau, ranks)
        self._updates, self._measured_in = 0, moment.epoch
        if influence is None:
            _log.warning("k2 stays %s: %s", self.grid.k2, reason if here is None else "no other rank could measure")
            return
        wanted = self._policy.k2(influence.lags, influence.delta, k1=k1, largest=self._largest)
        k2 = min(self._largest, -(-int(wanted or self._largest) // k1) * k1)
        index = influence.index(k2 - k1 + 1)
        _log.info(
            "k2 is %d, was %s: a relative bias of %.3g at depth %d, decay %.4f a lag of %d, measured on %d timesteps",
            k2,
            self.grid.k2,
            influence.delta[index],
            influence.lags[index],
            influence.beta,
            stride,
            self._probe,
        )
        self.influence, self._chosen, self.grid = influence, k2, Grid(k1=k1, k2=k2)

    def state_dict(self, axes: Callable[[Any], Any], lanes: int) -> dict[str, Any]:
        """See `History`."""
        return {
            **super().state_dict(axes, lanes),
            "k2": self._chosen,
            "updates": self._updates,
            "measured_in": self._measured_in,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `History`."""
        super().load_state_dict(state)
        self._chosen, self._updates, self._measured_in = state["k2"], state["updates"], state["measured_in"]
        self._resumed = True


def _stride(most: int, lags: int) -> int:
    """The smallest divisor of `most` with which there are not too many lags."""
    divisors = [stride for stride in range(1, most + 1) if most % stride == 0]
    return next((stride for stride in divisors if lags // stride <= _MOST_LAGS), divisors[-1])


def combine(here: Influence | None, stride: int, lags: int, tau: int | None, ranks: Ranks) -> Influence | None:
    """The influence over the lanes of all ranks; None where none of them could measure."""
    number = lags // stride
    sums = np.zeros((3, number))
    if here is not None:
        count = here.num_losses.astype(np.float64)
        sums[:, : len(count)] = count, here.phi * count, here.gradient_norms * count
    count, phi, norms = ranks.total(sums)
    seen = int((count > 0).sum())
    if seen < 2:
        return None
    phi, norms = phi[:seen] / count[:seen], norms[:seen] / count[:seen]
    begin = truncation.middle(seen) if tau is None else tau // stride - 1
    beta = truncation.decay(phi, tau=begin)
    return Influence(
        lags=stride * np.arange(1, seen + 1),
        phi=phi,
        gradient_norms=norms,
        num_losses=count[:seen].astype(np.int64),
        num_timesteps=0 if here is None else here.num_timesteps,
        tau=stride * (begin + 1),
        beta=beta,
        excess=truncation.excess(phi, beta, tau=begin),
        delta=truncation.relative_bias(phi, norms, beta, tau=begin),
    )
