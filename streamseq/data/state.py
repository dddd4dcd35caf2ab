"""Recurrent states: any pytree of tensors with a lane axis, taken apart, merged lane by lane, and saved."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from streamseq.core.errors import ResumeError

LaneAxis = Any  # an int, or a pytree of ints and Nones that matches the state's


def flatten(state: Any) -> tuple[list[Any], Any]:
    """The leaves of a state, tensors or not, in a fixed order, and its structure.

    Raises:
        TypeError: A dataclass in it has a field that its constructor does not take.
    """
    flat, spec = pytree.tree_flatten(state)
    unknown = {type(leaf) for leaf in flat if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)}
    if not unknown:
        return flat, spec
    # torch's trees go into the dataclasses that they know.
    for kind in unknown:
        hidden = [field.name for field in dataclasses.fields(kind) if not field.init]
        if hidden:
            raise TypeError(
                f"a state that is a dataclass is made anew from its fields, got {kind.__name__} with {hidden[0]!r}, "
                "which its constructor does not take: use init=True, or a dict"
            )
        pytree.register_dataclass(kind, serialized_type_name=_free_name(kind))
    return flatten(state)


def unflatten(flat: list[Any], spec: Any) -> Any:
    """The state of these leaves and this structure."""
    return pytree.tree_unflatten(flat, spec)


def leaves(state: Any) -> list[Any]:
    """The leaves of a state, tensors or not, in a fixed order."""
    if isinstance(state, Tensor):
        return [state]
    return list(state) if _is_pair(state) else flatten(state)[0]


def _is_pair(state: Any) -> bool:
    # The usual states are told at once: a tree takes tens of microseconds, several times an update.
    return type(state) is tuple and all(isinstance(leaf, Tensor) for leaf in state)


def map_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state with `function` of every tensor; other leaves stay as they are."""
    if isinstance(state, Tensor):
        return function(state)
    if _is_pair(state):
        return tuple(map(function, state))
    flat, spec = flatten(state)
    return unflatten([function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in flat], spec)


def detach(state: Any) -> Any:
    """The same values, without the graph that computed them."""
    return map_tensors(Tensor.detach, state)


def lane_axes(state: Any, lanes: int, lane_axis: LaneAxis = None) -> list[int | None]:
    """The lane axis of each leaf, None for leaves that are no tensors or have none.

    Args:
        state: A pytree.
        lanes: Number of lanes B.
        lane_axis: An int for every leaf, a pytree that matches the state's (None where a leaf has no lane axis), or
            None: the only axis of size B.

    Raises:
        ValueError: A leaf has no such axis, or `lane_axis` is None and not exactly one axis has size B.
    """
    flat, spec = flatten(state)
    if lane_axis is None:
        return [_only_axis(leaf, lanes) if isinstance(leaf, Tensor) else None for leaf in flat]
    axes = [lane_axis] * len(flat)
    if not isinstance(lane_axis, int):
        axes, axes_spec = flatten(lane_axis)
        if axes_spec != spec:
            raise ValueError(f"lane_axis is an int or a tree like the state's, got {axes_spec} for a state of {spec}")
    for leaf, axis in zip(flat, axes, strict=True):
        if isinstance(leaf, Tensor) and axis is not None:
            inside = -leaf.ndim <= axis < leaf.ndim
            if not inside or leaf.shape[axis] != lanes:
                raise ValueError(
                    f"a state's lane axis has one entry a lane, got lane_axis={axis} for a leaf of shape "
                    f"{tuple(leaf.shape)} and {lanes} lanes: pass the axis that counts the lanes"
                )
    return [axis if isinstance(leaf, Tensor) else None for leaf, axis in zip(flat, axes, strict=True)]


def _only_axis(leaf: Tensor, lanes: int) -> int:
    axes = [axis for axis, size in enumerate(leaf.shape) if size == lanes]
    if len(axes) != 1:
        raise ValueError(
            f"the lane axis of a state is found only where one axis has the size of the lanes, got a leaf of shape "
            f"{tuple(leaf.shape)} and {lanes} lanes: pass lane_axis, an int or a tree like the state's"
        )
    return axes[0]


def replace_lanes(state: Any, replaced: NDArray[np.bool_], by: Any, axes: list[int | None]) -> Any:
    """The state, but that of `by` on the lanes in `replaced`.

    Args:
        state: A pytree of tensors.
        replaced: bool [B].
        by: A pytree of the same structure; None: zeros.
        axes: The lane axis of each leaf, from `lane_axes`.

    Raises:
        ValueError: `by` has another structure or shape.
    """
    flat, spec = flatten(state)
    new: list[Any] = [None] * len(flat)
    if by is not None:
        new, new_spec = flatten(by)
        if new_spec != spec:
            raise ValueError(f"the initial state has the structure of the state, got {new_spec} for {spec}")
    mask = torch.from_numpy(replaced)
    merged = []
    for old, fresh, axis in zip(flat, new, axes, strict=True):
        if axis is None:
            merged.append(old)
            continue
        shape = [1] * old.ndim
        shape[axis] = -1
        chosen = mask.to(old.device, non_blocking=True).view(shape)
        merged.append(torch.where(chosen, old.new_zeros(()) if fresh is None else fresh, old))
    return unflatten(merged, spec)


def known_lane_axes(state: Any, lanes: int, lane_axis: LaneAxis = None) -> list[int | None] | None:
    """The same as `lane_axes`, but None where they cannot be told."""
    try:
        return lane_axes(state, lanes, lane_axis)
    except ValueError:
        return None


def pack(state: Any, axes: list[int | None] | None = None) -> dict[str, Any] | None:
    """The state as a dict that `torch.save` writes and `torch.load(weights_only=True)` reads; None for None.

    Args:
        state: A pytree.
        axes: The lane axis of each leaf, which goes with the state; None where they are not known.

    Raises:
        TypeError: A leaf is neither a tensor nor a plain number, string or None, or the structure has no name.
    """
    if state is None:
        return None
    flat, spec = flatten(detach(state))
    for leaf in flat:
        if not isinstance(leaf, Tensor | int | float | str | bool | None):
            raise TypeError(f"a state that is saved holds tensors and plain numbers, got a {type(leaf).__name__}")
    for kind in _named_tuples(spec):
        if kind not in pytree.SUPPORTED_SERIALIZED_TYPES and (name := _free_name(kind)) is not None:
            pytree._register_namedtuple(kind, serialized_type_name=name)
    try:
        structure = pytree.treespec_dumps(spec)
    except (NotImplementedError, TypeError) as error:
        raise TypeError(f"a state that is saved is a tree of kinds that have a name, got {spec}: {error}") from None
    return {"structure": structure, "leaves": [_own(leaf) for leaf in flat], "axes": axes}


def _own(leaf: Any) -> Any:
    # A view would be saved with all of the storage behind it.
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _free_name(kind: type) -> str | None:
    """The name under which a class is saved; None where another one has it, defined in the same place."""
    name = f"{kind.__module__}:{kind.__qualname__}"
    return None if name in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE else name


def _named_tuples(spec: Any) -> Iterator[type]:
    kind = spec.context
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        yield kind
    for child in spec.children():
        yield from _named_tuples(child)


def unpack(packed: dict[str, Any] | None) -> Any:
    """The state that `pack` packed.

    Raises:
        ResumeError: It has a dataclass or named tuple that this process does not know.
    """
    if packed is None:
        return None
    _, schema = json.loads(packed["structure"])
    for name in _saved_names(schema):
        if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
            _register_by_name(name)
    return unflatten(list(packed["leaves"]), pytree.treespec_loads(packed["structure"]))


def _saved_names(schema: dict[str, Any]) -> Iterator[str]:
    """The names of classes in a saved structure that were given by `pack`."""
    for name in (schema["type"], schema["context"]):
        if isinstance(name, str) and ":" in name:
            found = name.strip('"')
            if " " not in found and "[" not in found and "{" not in found:
                yield found
    for child in schema["children_spec"]:
        yield from _saved_names(child)


def _register_by_name(name: str) -> None:
    """Make a class known that the state of another process had; nothing is imported for it."""
    module, _, path = name.partition(":")
    try:
        kind: Any = reduce(getattr, path.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        raise ResumeError(
            f"the state that was saved has a {path} of {module}, which this process has not imported: import it before "
            "loading"
        ) from None
    if dataclasses.is_dataclass(kind):
        pytree.register_dataclass(kind, serialized_type_name=name)  # type: ignore[arg-type]
    else:
        pytree._register_namedtuple(kind, serialized_type_name=name)
