"""The influence of earlier states on a loss, measured on a probe: how fast a gradient fades with the lag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamseq.core import truncation
from streamseq.data import state as states
from streamseq.data.carry import check_follows
from streamseq.data.window import Window
from streamseq.tbptt.model import Inputs, StatefulModel
from streamseq.tbptt.ranks import unwrapped
from streamseq.tbptt.replay import Replay
from streamseq.tbptt.stretches import inner_borders, resets_at, stopped

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Influence:
    """How much states matter to losses `lags` timesteps later, and what a truncation there loses at most.

    Entry i is about the depth K = lags[i], with which back-propagation from a loss at timestep t runs over the K
    timesteps up to t, and the state before them is a constant: states at lags K and more are what is lost.

    Args:
        lags: int64 [M], in timesteps: stride, 2 stride, …
        phi: float64 [M], the mean over losses and lanes of φ_k = ‖∂L_s/∂s_{s-k}‖, over all leaves of the state
            together.
        gradient_norms: float64 [M], the mean over losses and lanes of ‖g_K‖ = ‖Σ_{k<K} ∂L_s/∂s_{s-k}‖, over the lags
            measured: the gradient of a vector that is added to every state, truncated at depth K.
        num_losses: int64 [M], how many losses a mean is over: those of lanes that have no reset within the lag.
        num_timesteps: Timesteps of the probe.
        tau: The lag in timesteps from which the decay is taken to be geometric.
        beta: β, the decay from a lag to the next; 1 or more: no decay was seen.
        excess: float64 [M], E(K), see `streamseq.core.truncation.excess`.
        delta: float64 [M], δ(K), see `streamseq.core.truncation.relative_bias`.
    """

    lags: Int64
    phi: Float64
    gradient_norms: Float64
    num_losses: Int64
    num_timesteps: int
    tau: int
    beta: float
    excess: Float64
    delta: Float64

    @property
    def decays(self) -> bool:
        """Whether a decay was seen, without which nothing bounds what is lost."""
        return self.beta < 1

    def smallest(self, bias: float) -> int | None:
        """The smallest depth K in timesteps with δ(K) below the wish; None: there is none, take the largest.

        With an update every k1 timesteps, k2 = K + k1 - 1 gives every loss at least this depth.
        """
        index = truncation.smallest(self.delta, bias)
        return None if index is None else int(self.lags[index])

    def index(self, depth: int) -> int:
        """The place of a depth in the arrays, or of the next smaller one that was measured."""
        return max(0, int(np.searchsorted(self.lags, depth, side="right")) - 1)


def measure_influence(
    model: Callable[..., Any],
    loss: Callable[[Any, Window], Tensor],
    windows: Window | Iterable[Window],
    *,
    inputs: Inputs = "x",
    state: Any = None,
    stride: int = 1,
    lags: int | None = None,
    ends: int = 8,
    tau: int | None = None,
    lane_axis: Any = None,
    autocast: torch.dtype | None = None,
) -> Influence:
    """Back-propagate a few losses of a probe through all of its states before them (Aicher, Foti & Fox 2019).

    The probe's timesteps are run with one graph, whose activations live at once. Gradients in `.grad`, buffers and
    random generators are afterwards as they were. The model stays in its mode: take eval mode where noise, such as
    dropout, is not to be measured with it.

    Args:
        model: `model(inputs, state) -> (outputs, state)`, as for `TBPTT`.
        loss: `loss(outputs, window) -> [B, K]`, as for `TBPTT`.
        windows: The probe: a window, or several in stream order.
        inputs: A field's name, several (the model gets a tuple), or a function of the window.
        state: Before the first timestep; None: the initial one.
        stride: Timesteps from a lag to the next, run at once: less to compute, and a coarser picture. Divides the
            windows.
        lags: The longest lag in timesteps; None: half the probe.
        ends: How many timesteps of the probe the losses are taken at, evenly spaced where all lags are there.
        tau: The lag in timesteps from which the decay is taken to be geometric; None: half the longest one.
        lane_axis: See `streamseq.Carry`.
        autocast: As for `TBPTT`.

    Raises:
        ContinuityError: A window does not follow the one before.
        ValueError: The probe is too short, has no loss with two lags before it, or `stride` does not fit it; or an
            influence is not finite.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.ones((12, 1), np.float32)}})
        >>> halve = lambda x, s: ((s := x[:, 0] if s is None else s / 2 + x[:, 0]), s)
        >>> probe = next(iter(ss.StreamDataset(store, lanes=1, window=12)))
        >>> influence = measure_influence(halve, lambda y, w: y, probe)
        >>> influence.lags.tolist(), influence.phi.round(3).tolist(), round(influence.beta, 6)
        ([1, 2, 3, 4, 5, 6], [0.5, 0.25, 0.125, 0.062, 0.031, 0.016], 0.5)
        >>> influence.smallest(bias=0.1)
        5
    """
    probe = [windows] if isinstance(windows, Window) else list(windows)
    total = _checked_length(probe, stride)
    most = total // 2 if lags is None else lags
    if not 2 * stride <= most <= total:
        raise ValueError(
            f"a decay shows over at least two lags of stride={stride} within the probe, got lags={most} of {total} "
            f"timesteps: take lags in [{2 * stride}, {total}], or a longer probe"
        )
    if ends < 1:
        raise ValueError(f"an influence is measured from at least one loss, got ends={ends}")
    units = [_Unit(w, low, low + stride) for w in probe for low in range(0, w.num_steps, stride)]
    sums = _Sums(most // stride)
    model = unwrapped(model)
    replay = Replay(model)
    moment = replay.moment()
    try:
        with torch.enable_grad(), replay.without_effect():
            graph = _Graph(StatefulModel(model, loss, inputs, lane_axis, autocast), state)
            chosen = _choose_ends(units, sums.num_lags, ends)
            for number, unit in enumerate(units):
                graph.run(unit, with_loss=number in chosen)
            for end in chosen:
                graph.back_propagate(end, sums)
    finally:
        replay.set_noise(moment.noise)
    return sums.influence(stride, total, tau)


@dataclass(frozen=True, slots=True)
class _Unit:
    """The timesteps `[low, high)` of a window, run at once."""

    window: Window
    low: int
    high: int

    def counts(self) -> Bool:
        """bool [B]: whether the last timestep has a loss."""
        window = self.window
        valid: Bool = window.mask.select(window.time_axis, self.high - 1).cpu().numpy()
        return valid


def _checked_length(probe: list[Window], stride: int) -> int:
    """Timesteps of the probe."""
    if not probe:
        raise ValueError("a probe has at least one window, got none: pass a window, or windows in stream order")
    if isinstance(stride, bool) or not isinstance(stride, int):
        raise TypeError(f"stride is an integer, got {stride!r}")
    for previous, window in pairwise(probe):
        check_follows(window.token, previous.token)
    borders = {border for w in probe for border in (w.num_steps, *inner_borders(w, resets=True))}
    if stride < 1 or any(border % stride for border in borders):
        raise ValueError(
            f"stride divides the windows, and where sequences begin or stop inside them, got {stride} for "
            f"{', '.join(map(str, sorted(borders)))}: take stride=1, or another window"
        )
    return sum(window.num_steps for window in probe)


def _choose_ends(units: list[_Unit], num_lags: int, number: int) -> list[int]:
    """Units whose last timestep has a loss, evenly spaced; where possible with all lags before them."""
    valid = [index for index, unit in enumerate(units) if unit.counts().any()]
    whole = [index for index in valid if index >= num_lags - 1]
    eligible = whole or valid[-number:]
    places = np.linspace(len(eligible) - 1, 0, min(number, len(eligible))).round().astype(np.int64)
    return [eligible[place] for place in np.unique(places)]


class _Graph:
    """The probe, run with its graph: the states before its units, and the losses at the ends of some."""

    def __init__(self, model: StatefulModel, state: Any) -> None:
        self._model = model
        self._state = state
        self._known = state is not None
        self._units: list[_Unit] = []
        #: For each unit the tensors of the state before it, and their lane axes.
        self._before: list[list[tuple[Tensor, int]]] = []
        #: For each unit int64 [B]: the unit before which the lane's state was last an initial one; -1: there is none.
        self._began: list[Int64] = []
        self._losses: dict[int, Tensor] = {}

    def run(self, unit: _Unit, *, with_loss: bool) -> None:
        """Run the next unit."""
        window, low = unit.window, unit.low
        number = len(self._units)
        anew = resets_at(window, low) | (number == 0 and not self._known)
        earlier = self._began[-1] if number else np.full(len(anew), -1)
        state = self._mark(window, self._enter(window, anew))
        outputs, after = self._model.forward(window.cut(low, unit.high), state)
        held = stopped(window, low)
        self._state = self._model.replace(window, after, held, state) if held.any() and state is not None else after
        self._units.append(unit)
        self._began.append(np.where(anew, number, earlier))
        if with_loss:
            part = window.cut(low, unit.high)
            last = torch.zeros_like(part.mask)
            last.select(part.time_axis, -1).copy_(part.mask.select(part.time_axis, -1))
            self._losses[number] = self._model.loss_sum(outputs, part, last)

    def _enter(self, window: Window, anew: Bool) -> Any:
        if self._state is None or anew.all():
            return self._model.initial(len(anew))
        if not anew.any():
            return self._state
        return self._model.replace(window, self._state, anew, self._model.initial(len(anew)))

    def _mark(self, window: Window, state: Any) -> Any:
        """The same state, in tensors of its own with respect to which losses are differentiated."""
        self._before.append([])
        if state is None:
            return None
        flat, spec = states.flatten(state)
        marked = []
        for leaf, axis in zip(flat, self._model.lane_axes(window, state), strict=True):
            own = leaf
            if axis is not None and (leaf.is_floating_point() or leaf.is_complex()):
                # A node of its own: the model may have computed one leaf from another.
                own = leaf.clone()
                if not own.requires_grad:
                    own.requires_grad_()
                self._before[-1].append((own, axis))
            marked.append(own)
        return states.unflatten(marked, spec)

    def back_propagate(self, end: int, sums: _Sums) -> None:
        """Back-propagate the losses at the end of a unit, and add the norms of what arrives at the states before."""
        numbers = range(end, max(-1, end - sums.num_lags), -1)
        marked = [tensor for number in numbers for tensor, _ in self._before[number]]
        grads = self._gradients(self._losses[end], marked)
        counts = self._units[end].counts()
        so_far: Tensor | None = None
        for lag, number in enumerate(numbers):
            parts = [_by_lane(next(grads), tensor, axis) for tensor, axis in self._before[number]]
            lanes = counts & (self._began[end] < number)
            if not parts or not lanes.any():
                return
            gradient = torch.cat(parts, 1)
            so_far = torch.zeros_like(gradient) if so_far is None else so_far
            sums.add(lag, _norms(gradient)[lanes], _norms(so_far)[lanes])
            so_far = so_far + gradient

    @staticmethod
    def _gradients(loss: Tensor, tensors: list[Tensor]) -> Iterator[Tensor | None]:
        if not loss.requires_grad or not tensors:
            return iter([None] * len(tensors))
        return iter(torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True))


def _by_lane(grad: Tensor | None, tensor: Tensor, axis: int) -> Tensor:
    """A gradient as float64 [B, *]; None is zeros."""
    values = torch.zeros_like(tensor) if grad is None else grad.detach()
    values = values.movedim(axis, 0)
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    return values.reshape(values.shape[0], -1).double()


def _norms(by_lane: Tensor) -> Float64:
    norms: Float64 = by_lane.norm(dim=1).cpu().numpy()
    return norms


class _Sums:
    """Sums over losses and lanes, for each lag."""

    def __init__(self, num_lags: int) -> None:
        self.num_lags = num_lags
        self._phi = np.zeros(num_lags)
        self._gradient_norms = np.zeros(num_lags)
        self._count = np.zeros(num_lags, np.int64)

    def add(self, lag: int, phi: Float64, gradient_norms: Float64) -> None:
        """Add the norms of some lanes at a lag, in units from 0."""
        self._phi[lag] += phi.sum()
        self._gradient_norms[lag] += gradient_norms.sum()
        self._count[lag] += len(phi)

    def influence(self, stride: int, num_timesteps: int, tau: int | None) -> Influence:
        """What the sums say, up to the longest lag that was seen."""
        seen = int((self._count > 0).sum())
        if seen < 2:
            raise ValueError(
                f"a decay shows over at least two lags, and no loss of the probe of {num_timesteps} timesteps has "
                f"states at {2 * stride} timesteps before it in its own sequence: pass longer sequences"
            )
        lags = stride * np.arange(1, seen + 1)
        if tau is not None and not stride <= tau <= lags[-2]:
            raise ValueError(
                f"tau is a lag with another one after it, in [{stride}, {lags[-2]}] here, got {tau}: take one of "
                "these, or a longer probe"
            )
        begin = truncation.middle(seen) if tau is None else tau // stride - 1
        phi = self._phi[:seen] / self._count[:seen]
        norms = self._gradient_norms[:seen] / self._count[:seen]
        beta = truncation.decay(phi, tau=begin)
        return Influence(
            lags=lags,
            phi=phi,
            gradient_norms=norms,
            num_losses=self._count[:seen],
            num_timesteps=num_timesteps,
            tau=int(lags[begin]),
            beta=beta,
            excess=truncation.excess(phi, beta, tau=begin),
            delta=truncation.relative_bias(phi, norms, beta, tau=begin),
        )
