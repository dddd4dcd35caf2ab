"""Adapted models: TBPTT for those that take and return caches, as in flash-linear-attention and Mamba."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from streamseq.data import state as states
from streamseq.integrations.cache import Skeleton, take_apart
from streamseq.integrations.saved_apart import saved_apart
from streamseq.tbptt.replay import Replay

# By the name of the argument that takes the state: the one that asks for it back, and what it may be called then.
_CONVENTIONS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "past_key_values": ("use_cache", ("past_key_values",)),
    "cache_params": ("use_cache", ("cache_params",)),
    "initial_state": ("output_final_state", ("final_state",)),
    "cache": (None, ("cache",)),
}
# What stands for the outputs in a result with names, first come first taken.
_OUTPUTS = ("logits", "last_hidden_state")


def adapt(
    model: Callable[..., Any],
    *,
    state: str | None = None,
    flag: str | None = None,
    outputs: Callable[[Any], Any] | None = None,
    new_state: Callable[[int], Any] | None = None,
    **fixed: Any,
) -> Adapted:
    """A model that keeps its state in a cache, as `model(inputs, state) -> (outputs, state)` for `TBPTT` and `Carry`.

    It is called as it is: `model(inputs, past_key_values=cache, use_cache=True)`, `model(inputs, cache_params=cache,
    use_cache=True)` or `model(inputs, initial_state=state, output_final_state=True)`, whichever arguments it has, with
    None at a start. It returns something with names, of which `logits` (or `last_hidden_state`) are the outputs and
    the state has the argument's name (or `final_state`); or a tuple, the first of which are the outputs and the last is
    the state.

    A cache may be any tree of lists, dicts, tuples and objects that hold tensors, and may be changed in place by the
    model: each call gets a cache of its own with copies of the tensors, through which gradients pass. Numbers in it
    (such as timesteps seen) go along. The sizes of its tensors must not grow: a cache of keys and values does.

    The state of a lane whose sequence starts is zeros, unless `new_state` says otherwise.

    Args:
        model: The model; of an `nn.Module` parameters and buffers are found through the adapted one.
        state: The name of the argument that takes the state; None: the one that it has of those above.
        flag: The name of the argument that is True where the state is wanted back; None: the one that goes with it.
        outputs: From what the model returns to its outputs; None: as above.
        new_state: From B to the cache before a sequence, where it is not zeros or the model does not take None.
        fixed: Further arguments of every call.

    Raises:
        TypeError: The model has none of these arguments.

    Example:
        >>> import torch, streamseq as ss
        >>> def scan(x, initial_state=None, output_final_state=False):
        ...     o = x.cumsum(1) if initial_state is None else x.cumsum(1) + initial_state[:, None]
        ...     return o, o[:, -1]
        >>> model = ss.adapt(scan)
        >>> y, state = model(torch.ones(2, 3, 1), None)
        >>> y, state = model(torch.ones(2, 3, 1), state)
        >>> y[0, :, 0].tolist()
        [4.0, 5.0, 6.0]
    """
    taken, takes_any = _arguments(model)
    if state is None:
        state = next((name for name in _CONVENTIONS if name in taken), None)
        if state is None:
            raise TypeError(
                f"a model that is adapted takes its state as one of {', '.join(_CONVENTIONS)}, got the arguments "
                f"{', '.join(taken) or 'none'}: name the one by state="
            )
    usual, names = _CONVENTIONS.get(state, (None, (state,)))
    if flag is None and (usual in taken or takes_any):
        flag = usual
    return Adapted(model, state, flag, names, outputs, new_state, fixed)


def _arguments(model: Callable[..., Any]) -> tuple[list[str], bool]:
    """The names of a model's arguments, and whether it takes any others."""
    parameters = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters
    return list(parameters), any(each.kind is each.VAR_KEYWORD for each in parameters.values())


class Adapted(nn.Module):
    """What `adapt` returns: a module whose `forward(inputs, state)` gives `(outputs, state)`.

    The state is a tuple of the tensors and numbers in the cache. Inputs that are a tuple or a dict are several
    arguments.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        state: str,
        flag: str | None,
        names: tuple[str, ...],
        outputs: Callable[[Any], Any] | None,
        new_state: Callable[[int], Any] | None,
        fixed: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self._argument = state
        self._names = (*names, state)
        self._outputs = outputs
        self._fixed = {**fixed, **({} if flag is None else {flag: True})}
        # What the cache is beside its tensors and numbers; None: no call has shown it yet.
        self._skeleton: Skeleton | None = None
        # Whether the model changes the tensors of a cache in place; None: not seen yet.
        self._in_place: bool | None = None
        if new_state is not None:
            self.initial_state = self._starting_with(new_state)

    def _starting_with(self, new_state: Callable[[int], Any]) -> Callable[[int], tuple[Any, ...]]:
        def initial_state(lanes: int) -> tuple[Any, ...]:
            leaves, self._skeleton = take_apart(new_state(lanes))
            return leaves

        return initial_state

    def forward(self, inputs: Any, state: tuple[Any, ...] | None) -> tuple[Any, tuple[Any, ...]]:
        """Outputs and state of some timesteps.

        Args:
            inputs: The model's first argument; a tuple: its first ones; a dict: by name.
            state: What an earlier call returned; None: at a start.

        Raises:
            TypeError: The model returns no state.
            ValueError: Its state has grown.
        """
        result = self._call(inputs, None) if state is None else self._call_from(inputs, state)
        leaves, skeleton = self._state_of(result)
        if state is not None:
            _check_same_size(state, leaves)
        self._skeleton = skeleton
        return self._outputs_of(result), leaves

    def _call(self, inputs: Any, cache: Any) -> Any:
        options = {**self._fixed, self._argument: cache}
        if isinstance(inputs, dict):
            return self.model(**inputs, **options)
        if isinstance(inputs, tuple | list):
            return self.model(*inputs, **options)
        return self.model(inputs, **options)

    def _call_from(self, inputs: Any, state: tuple[Any, ...]) -> Any:
        """Call the model with a cache of its own, which it may change."""
        # Not the tensors themselves: they are kept for the next update, or are leaves, which nothing changes in place.
        own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in state]
        tensors = [leaf for leaf in own if isinstance(leaf, Tensor)]
        if self._in_place is None:
            self._learn(inputs, state)
        assert self._skeleton is not None
        cache = self._skeleton.put_together(own)
        with saved_apart(tensors) if self._in_place and torch.is_grad_enabled() else nullcontext():
            return self._call(inputs, cache)

    def _learn(self, inputs: Any, state: tuple[Any, ...]) -> None:
        """See what a cache looks like, where the state comes from another process, and whether the model changes it."""
        replay = Replay(self.model)
        noise = replay.noise()
        with torch.no_grad(), replay.without_effect():
            if self._skeleton is None:
                _, self._skeleton = self._state_of(self._call(inputs, None))
            own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in state]
            versions = [leaf._version for leaf in own if isinstance(leaf, Tensor)]
            self._call(inputs, self._skeleton.put_together(own))
            self._in_place = versions != [leaf._version for leaf in own if isinstance(leaf, Tensor)]
        replay.set_noise(noise)

    def _state_of(self, result: Any) -> tuple[tuple[Any, ...], Skeleton]:
        found = next((value for name in self._names if (value := _named(result, name)) is not None), None)
        if found is None and type(result) is tuple and len(result) > 1:
            found = result[-1]
        if found is None:
            raise TypeError(
                f"an adapted model returns its state as {' or '.join(dict.fromkeys(self._names))}, or last in a tuple, "
                f"got a {type(result).__name__} without: name the argument that takes it by state=, and the one that "
                "asks for it by flag="
            )
        leaves, skeleton = take_apart(found)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            raise TypeError(f"a state holds tensors, got a {type(found).__name__} without one: name the right argument")
        return leaves, skeleton

    def _outputs_of(self, result: Any) -> Any:
        if self._outputs is not None:
            return self._outputs(result)
        named = next((value for name in _OUTPUTS if (value := _named(result, name)) is not None), None)
        if named is not None:
            return named
        if isinstance(result, tuple):
            return result[0]
        raise TypeError(
            f"an adapted model returns its outputs as {' or '.join(_OUTPUTS)}, or first in a tuple, got a "
            f"{type(result).__name__}: pass outputs=, a function of it"
        )


def _named(result: Any, name: str) -> Any:
    return result.get(name) if isinstance(result, dict) else getattr(result, name, None)


def _check_same_size(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    shapes = [[tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)] for leaves in (before, after)]
    if shapes[0] != shapes[1]:
        changed = [pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1]]
        what = f"{changed[0][0]} became {changed[0][1]}" if changed else f"{len(shapes[0])} tensors {len(shapes[1])}"
        raise ValueError(
            f"a state that is carried keeps its size, and of this cache {what}: the keys and values of attention grow "
            "with the sequence: take a model whose layers are recurrent"
        )


def check_state(model: Callable[..., Any], inputs: Tensor, *, tolerance: float = 1e-4, time_axis: int = 1) -> None:
    """Check that a model goes on from its state: two halves give what the whole gives, and gradients pass between them.

    Not every model does: some take a cache for one timestep at a time only, and leave it out of account, without a
    word, where several timesteps are given; some detach it.

    Args:
        model: `model(inputs, state) -> (outputs, state)`, adapted or not; without dropout, or in eval mode.
        inputs: At least two timesteps, [B, K, ...] (or [K, B, ...]).
        tolerance: The largest difference of outputs, beside the largest output.
        time_axis: The axis that counts timesteps.

    Raises:
        ValueError: It does not.

    Example:
        >>> def forgets(x, initial_state=None):
        ...     return x.cumsum(1), x.sum(1)
        >>> check_state(adapt(forgets), torch.ones(2, 4, 1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: a model goes on from its state, and after 2 of 4 timesteps outputs differ by 0.5 of the largest: ...
    """
    length = inputs.shape[time_axis]
    half = length // 2
    first, rest = inputs.narrow(time_axis, 0, half), inputs.narrow(time_axis, half, length - half)
    with torch.no_grad():
        whole, _ = model(inputs, None)
    with torch.enable_grad():
        # Where the model has no parameters, gradients are those of its inputs.
        early, state = model(first.detach().requires_grad_() if first.is_floating_point() else first, None)
        late, _ = model(rest, state)
    both = torch.cat([early.detach(), late.detach()], time_axis)
    difference = float((both - whole).abs().max() / whole.abs().max().clamp(min=1e-30))
    if difference > tolerance:
        raise ValueError(
            f"a model goes on from its state, and after {half} of {length} timesteps outputs differ by "
            f"{difference:.3g} of the largest: it may take a cache for one timestep at a time only"
        )
    leaves = [leaf for leaf in states.leaves(state) if isinstance(leaf, Tensor) and leaf.requires_grad]
    gradients: tuple[Tensor | None, ...] = ()
    if leaves and late.requires_grad:
        gradients = torch.autograd.grad(late.square().sum(), leaves, allow_unused=True)
    if not any(each is not None and bool((each != 0).any()) for each in gradients):
        raise ValueError(
            "gradients pass through a state, and none reached the one that this model was given: it may detach it, or "
            "copy its data"
        )
