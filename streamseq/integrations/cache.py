"""Caches: any tree of containers and objects, taken apart into tensors and numbers, and put together again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (str, bytes, torch.Size, torch.dtype, torch.device, torch.Generator, type, nn.Parameter)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor or a number of the state stands."""

    index: int


@dataclass(frozen=True, slots=True)
class _Node:
    """A container or object: the trees of its parts by name, and what makes a new one of parts."""

    parts: dict[Any, Any]
    make: Callable[[dict[Any, Any]], Any]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A cache without its tensors and numbers."""

    tree: Any

    def put_together(self, leaves: list[Any]) -> Any:
        """A new cache with these tensors and numbers; what is neither is that of the cache that was taken apart."""
        return _fill(self.tree, leaves)


def take_apart(cache: Any) -> tuple[tuple[Any, ...], Skeleton]:
    """The tensors and numbers in a cache, in a fixed order, and what is left of it.

    Lists, tuples, dicts and objects with attributes are looked through. Parameters, modules that have some, types,
    text and functions are not, and stay as they are.

    Args:
        cache: Any tree.

    Raises:
        ValueError: It contains itself.

    Example:
        >>> class Cache:
        ...     def __init__(self):
        ...         self.states, self.seen, self.name = [torch.ones(2), None], 7, "a"
        >>> leaves, skeleton = take_apart(Cache())
        >>> leaves
        (tensor([1., 1.]), 7)
        >>> vars(skeleton.put_together([torch.zeros(2), 8]))
        {'states': [tensor([0., 0.]), None], 'seen': 8, 'name': 'a'}
    """
    leaves: list[Any] = []
    tree = _strip(cache, leaves, ())
    return tuple(leaves), Skeleton(tree)


def _strip(value: Any, leaves: list[Any], above: tuple[int, ...]) -> Any:
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor | int | float):
        leaves.append(value)
        return _Place(len(leaves) - 1)
    node = _node(value)
    if node is None:
        return value
    if id(value) in above:
        raise ValueError(
            f"a cache is a tree of containers and objects, got a {type(value).__name__} that contains itself: pass a "
            "function that returns the tensors only, or a cache without the reference"
        )
    return _Node({name: _strip(part, leaves, (*above, id(value))) for name, part in node.parts.items()}, node.make)


def _node(value: Any) -> _Node | None:
    """The parts of a container or an object; None where it is neither."""
    if value is None or isinstance(value, _PLAIN) or (callable(value) and not hasattr(value, "__dict__")):
        return None
    kind = type(value)
    if isinstance(value, tuple):
        make: Any = kind._make if hasattr(kind, "_make") else kind
        return _Node(dict(enumerate(value)), lambda parts: make(parts.values()))
    if isinstance(value, list):
        return _Node(dict(enumerate(value)), lambda parts: kind(parts.values()))
    if isinstance(value, dict):
        empty = copy.copy(value)
        empty.clear()
        return _Node(dict(value), lambda parts: _filled_dict(empty, parts))
    if isinstance(value, nn.Module) and any(True for _ in value.parameters()):
        return None
    names = _attributes(value)
    if not names or (callable(value) and not isinstance(value, nn.Module)):
        return None
    # Without what it holds, or the graph of a call would live until the next one.
    blank = _blank(value, names)
    return _Node({name: getattr(value, name) for name in names}, lambda parts: _filled_object(blank, parts))


def _attributes(value: Any) -> list[str]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}), *(name for name in slots if not name.startswith("__"))]


def _blank(value: Any, names: list[str]) -> Any:
    blank = copy.copy(value)
    for name in names:
        object.__delattr__(blank, name)
    return blank


def _filled_dict(empty: Any, parts: dict[Any, Any]) -> Any:
    new = copy.copy(empty)
    new.update(parts)
    return new


def _filled_object(blank: Any, parts: dict[Any, Any]) -> Any:
    new = copy.copy(blank)
    for name, part in parts.items():
        object.__setattr__(new, name, part)
    return new


def _fill(tree: Any, leaves: list[Any]) -> Any:
    if isinstance(tree, _Place):
        return leaves[tree.index]
    if isinstance(tree, _Node):
        return tree.make({name: _fill(part, leaves) for name, part in tree.parts.items()})
    return tree
