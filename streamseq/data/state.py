"""Recurrent states: any pytree of tensors with a lane axis, taken apart, merged lane by lane, and saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

LaneAxis = Any  # an int, or a pytree of ints and Nones that matches the state's


def leaves(state: Any) -> list[Any]:
    """The leaves of a state, tensors or not, in a fixed order."""
    return list(pytree.tree_leaves(state))


def map_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state with `function` of every tensor; other leaves stay as they are."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, state)


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
    flat, spec = pytree.tree_flatten(state)
    if lane_axis is None:
        return [_only_axis(leaf, lanes) if isinstance(leaf, Tensor) else None for leaf in flat]
    axes = [lane_axis] * len(flat)
    if not isinstance(lane_axis, int):
        axes, axes_spec = pytree.tree_flatten(lane_axis)
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
    flat, spec = pytree.tree_flatten(state)
    new: list[Any] = [None] * len(flat)
    if by is not None:
        new, new_spec = pytree.tree_flatten(by)
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
    return pytree.tree_unflatten(merged, spec)


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
        TypeError: A leaf is neither a tensor nor a plain number, string or None.
    """
    if state is None:
        return None
    flat, spec = pytree.tree_flatten(detach(state))
    for leaf in flat:
        if not isinstance(leaf, Tensor | int | float | str | bool | None):
            raise TypeError(f"a state that is saved holds tensors and plain numbers, got a {type(leaf).__name__}")
    return {"structure": pytree.treespec_dumps(spec), "leaves": [_own(leaf) for leaf in flat], "axes": axes}


def _own(leaf: Any) -> Any:
    # A view would be saved with all of the storage behind it.
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def unpack(packed: dict[str, Any] | None) -> Any:
    """The state that `pack` packed."""
    if packed is None:
        return None
    return pytree.tree_unflatten(list(packed["leaves"]), pytree.treespec_loads(packed["structure"]))
