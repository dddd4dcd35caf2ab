"""The probe: what a model's timesteps cost in bytes and seconds, measured on a few of them, without a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from streamseq.data import state as states
from streamseq.data.window import Window
from streamseq.tbptt.model import StatefulModel
from streamseq.tbptt.replay import Replay
from streamseq.tbptt.tally import HeldBytes, LiveBytes

#: Timesteps of the calls of which autograd's bytes are measured. Fused kernels have a constant beside their slope,
#: which shows in two of them; the one between tells whether the bytes are linear.
LENGTHS = (8, 16, 32)
# Of those of which all bytes are. Primes, so that what grows is shaped like no parameter.
_ODD_LENGTHS = (7, 13, 31)
# How far the bytes of the call in the middle may lie from the line through the others.
_STRAIGHT = 0.03
_REPEATS = 4
# What an operation of a graph and the tensors that it saves take beside their data: 0.8 to 1.4 kB with torch 2.13.
_NODE_BYTES = 1000

_Roots = tuple[list[Tensor], list[Tensor | None]]
_Run = Callable[[int], _Roots]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How bytes grow with the timesteps of one call.

    Args:
        lengths: Timesteps of the calls that were measured, ascending, at least two.
        sizes: Bytes of each.

    Example:
        >>> Growth(lengths=(16, 32), sizes=(1100, 2100)).at(64)
        4100
    """

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]

    def at(self, timesteps: int) -> int:
        """Bytes of a call of so many timesteps: on the line between its neighbours, or on through the last two."""
        above = next((index for index, length in enumerate(self.lengths) if length >= timesteps), len(self.lengths) - 1)
        index = max(1, above)
        (x0, x1), (y0, y1) = self.lengths[index - 1 : index + 1], self.sizes[index - 1 : index + 1]
        return max(0, round(y0 + (y1 - y0) * (timesteps - x0) / (x1 - x0)))

    @property
    def per_timestep(self) -> float:
        """The slope between the two longest calls."""
        return (self.sizes[-1] - self.sizes[-2]) / (self.lengths[-1] - self.lengths[-2])

    @property
    def straight(self) -> bool:
        """Whether all lengths lie on one line."""
        (x0, *inner, x1), (y0, *between, y1) = self.lengths, self.sizes
        lines = (y0 + (y1 - y0) * (x - x0) / (x1 - x0) for x in inner)
        return all(abs(line - y) <= _STRAIGHT * y for line, y in zip(lines, between, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What timesteps of one kind cost, all lanes together.

    Args:
        held: The most that autograd holds of a call, in bytes.
        kept: What is left of that until the backward pass when the outputs of past timesteps have gone.
        graph: What the graph itself takes until then, beside the tensors' data: estimated, so much for each operation.
        workspace: What a forward and backward pass uses for a moment beside what is held: outputs, and gradients
            but those of parameters.
        forward: Seconds a timestep without a graph.
        gradient: Seconds a timestep with one, forward and backward.
    """

    held: Growth
    kept: Growth
    graph: Growth
    workspace: Growth
    forward: float
    gradient: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a model on windows of one kind costs.

    Args:
        new: Timesteps whose loss counts.
        past: Timesteps of which only the state is wanted.
        state_bytes: The state at one timestep.
        moment_bytes: The random generators and the buffers, as far as running the model changes them.
        input_bytes: Fields and mask of a timestep.
    """

    new: Cost
    past: Cost
    state_bytes: int
    moment_bytes: int
    input_bytes: float


def probe(model: StatefulModel, replay: Replay, window: Window) -> Probe:
    """Measure what timesteps cost, by running the model forward and backward on a few.

    Bytes are those of tensors that a call makes: parameters, buffers, the window's own memory and whatever else
    outlives the call is not counted, and a storage counts once. Random generators, buffers and `.grad` stay as they
    are.

    Args:
        model: The model and loss.
        replay: Of the same model.
        window: Any window as the model is going to get them; on the model's device.

    Raises:
        TypeError, ValueError: The model or the loss does not return what `TBPTT` needs.
    """
    moment = replay.moment()
    try:
        with replay.without_effect(), torch.enable_grad():
            calls = _Calls(model, window)
            new, past = _costs(calls)
            after = replay.moment(moment)
    finally:
        replay.set_noise(moment.noise)
    changed = [b for a, b in zip(moment.buffers, after.buffers, strict=True) if b is not a]
    if after.noise is not moment.noise:
        changed += [after.noise.cpu, *(state for _, state in after.noise.cuda)]
    return Probe(
        new=new,
        past=past,
        state_bytes=sum(leaf.nbytes for leaf in calls.state_leaves),
        moment_bytes=sum(tensor.nbytes for tensor in changed),
        input_bytes=sum(tensor.nbytes for tensor in _tensors(window)) / window.num_steps,
    )


class _Calls:
    """Calls of a model on the first timesteps of a window, all from one state in the middle of a sequence."""

    def __init__(self, model: StatefulModel, window: Window) -> None:
        self._model = model
        self._window = window
        self._parts: dict[int, Window] = {}
        self.window_length = window.num_steps
        with torch.no_grad():
            state = model.advance(self._part(LENGTHS[0]), model.initial(window.num_lanes))
        self._state = states.map_tensors(_leaf, state)
        self.state_leaves: list[Tensor] = [leaf for leaf in states.leaves(self._state) if isinstance(leaf, Tensor)]
        self.cuda = any(tensor.is_cuda for tensor in (*self.state_leaves, window.mask))

    def _part(self, length: int) -> Window:
        if length not in self._parts:
            self._parts[length] = _first(self._window, length)
        return self._parts[length]

    def input_storages(self, length: int) -> frozenset[int]:
        """Those of the window's tensors."""
        return frozenset(tensor.untyped_storage().data_ptr() for tensor in _tensors(self._part(length)))

    def run(self, length: int, *, counts: bool) -> _Roots:
        """What a backward pass starts from: the loss, and the state after the call with gradients of one."""
        part = self._part(length)
        roots: list[Tensor] = []
        if counts:
            outputs, state = self._model.forward(part, self._state)
            roots.append(self._model.loss_sum(outputs, part))
        else:
            state = self._model.advance(part, self._state)
        seeds: list[Tensor | None] = [None] * len(roots)
        for leaf in states.leaves(state):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                roots.append(leaf)
                seeds.append(torch.ones_like(leaf))
        pairs = [(root, seed) for root, seed in zip(roots, seeds, strict=True) if root.requires_grad]
        return [root for root, _ in pairs], [seed for _, seed in pairs]


def _first(window: Window, length: int) -> Window:
    """The first timesteps of a window; of a shorter one again and again."""
    if length <= window.num_steps:
        return window.cut(0, length)
    times = -(-length // window.num_steps)
    axis = window.time_axis

    def repeat(tensor: Tensor) -> Tensor:
        return torch.cat([tensor] * times, axis).narrow(axis, 0, length)

    fields = {name: repeat(window[name]) for name in window}
    return Window(fields, repeat(window.mask), window.token, window.batch_first, window.lengths)


def _leaf(tensor: Tensor) -> Tensor:
    alone = tensor.detach()
    return alone.requires_grad_() if alone.is_floating_point() or alone.is_complex() else alone


def _tensors(window: Window) -> list[Tensor]:
    return [window.mask, *(window[name] for name in window)]


def _costs(calls: _Calls) -> tuple[Cost, Cost]:
    """Of new timesteps, and of past ones."""
    sizes = [_measure(calls, counts=counts) for counts in (True, False)]
    length = LENGTHS[-1]
    forward, gradient = [inf, inf], [inf, inf]
    # In turns, for a machine that others use too is slower at times; the shortest is the right one.
    for _ in range(_REPEATS):
        for kind, (counts, (_, leaves)) in enumerate(zip((True, False), sizes, strict=True)):
            run = partial(calls.run, length, counts=counts)
            with torch.no_grad():
                forward[kind] = min(forward[kind], _seconds(run, cuda=calls.cuda) / length)
            taken = _seconds(partial(_forward_and_backward, run, leaves), cuda=calls.cuda)
            gradient[kind] = min(gradient[kind], taken / length)
    new, past = (
        Cost(held=s.held, kept=s.kept, graph=s.graph, workspace=s.workspace, forward=f, gradient=g)
        for (s, _), f, g in zip(sizes, forward, gradient, strict=True)
    )
    return new, past


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bytes:
    held: Growth
    kept: Growth
    graph: Growth
    workspace: Growth


def _measure(calls: _Calls, *, counts: bool) -> tuple[_Bytes, list[Tensor]]:
    """The bytes of timesteps of one kind, and the leaves that a backward pass reaches."""
    run = partial(calls.run, counts=counts)
    # What two graphs hold together, or what was there before, no call adds: parameters, inputs, the state.
    first, second = HeldBytes(), HeldBytes()
    with saved_tensors_hooks(first.pack, first.unpack):
        one = run(LENGTHS[0])
    with saved_tensors_hooks(second.pack, second.unpack):
        other = run(LENGTHS[0])
    shared = first.storages & second.storages
    leaves = [node.variable for node in _nodes(one[0]) if hasattr(node, "variable")]
    del one, other

    def held(length: int) -> _Sizes:
        # Some calls see the window's own memory, others copy it.
        return _held(run, length, shared | calls.input_storages(length))

    lengths = list(LENGTHS)
    sizes = [held(length) for length in lengths]
    while not _growth(lengths, (size.held for size in sizes)).straight and lengths[-1] < calls.window_length:
        lengths.append(min(2 * lengths[-1], calls.window_length))
        sizes.append(held(lengths[-1]))
    parameters = [leaf for leaf in leaves if all(leaf is not state for state in calls.state_leaves)]
    odd = (*_ODD_LENGTHS, *lengths[len(LENGTHS) :])
    workspaces = [_peak(run, leaves, parameters, length) - held(length).held for length in odd]
    found = _Bytes(
        held=_growth(lengths, (size.held for size in sizes)),
        kept=_growth(lengths, (size.kept for size in sizes)),
        graph=_growth(lengths, (size.graph for size in sizes)),
        workspace=_growth(odd, (max(0, size) for size in workspaces)),
    )
    return found, leaves


def _growth(lengths: Iterable[int], sizes: Iterable[int]) -> Growth:
    return Growth(lengths=tuple(lengths), sizes=tuple(sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Bytes of one call, see `Cost`."""

    held: int
    kept: int
    graph: int


def _held(run: _Run, length: int, shared: frozenset[int]) -> _Sizes:
    hooks = HeldBytes(shared)
    with saved_tensors_hooks(hooks.pack, hooks.unpack):
        roots, _ = run(length)
    return _Sizes(held=hooks.peak, kept=hooks.now, graph=_NODE_BYTES * len(_nodes(roots)))


def _peak(run: _Run, leaves: Sequence[Tensor], parameters: Iterable[Tensor], length: int) -> int:
    """The most that is alive at a time of what a forward and backward pass makes, gradients of parameters apart."""
    live = LiveBytes({tuple(sorted(leaf.shape)) for leaf in parameters})
    with live:
        roots = run(length)
        gradients = _backward(*roots, leaves)
    del roots, gradients
    return live.peak


def _forward_and_backward(run: Callable[[], _Roots], leaves: Sequence[Tensor]) -> None:
    _backward(*run(), leaves)


def _backward(roots: list[Tensor], seeds: list[Tensor | None], leaves: Sequence[Tensor]) -> tuple[Any, ...]:
    """A backward pass whose gradients go nowhere."""
    if not roots or not leaves:
        return ()
    return torch.autograd.grad(roots, leaves, seeds, allow_unused=True)


def _nodes(roots: list[Tensor]) -> set[Any]:
    """The operations of a graph; the `variable` of some is a leaf, a parameter or a state."""
    seen: set[Any] = set()
    nodes: list[Any] = [root.grad_fn for root in roots]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(following for following, _ in node.next_functions)
    return seen


def _seconds(call: Callable[[], object], *, cuda: bool) -> float:
    began = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
