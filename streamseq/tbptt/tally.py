"""Tallies: how many bytes autograd holds, and how many the storages take that operations make."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class HeldBytes:
    """Counts the bytes that autograd holds; its `pack` and `unpack` are hooks of saved tensors.

    Args:
        shared: Addresses of storages that do not count. Any other counts once.
    """

    def __init__(self, shared: frozenset[int] = frozenset()) -> None:
        self.now = self.peak = 0
        self._shared = shared
        self._times: Counter[int] = Counter()

    @property
    def storages(self) -> frozenset[int]:
        """Addresses of those that are held now."""
        return frozenset(self._times)

    def pack(self, tensor: Tensor) -> Tensor | _Box:
        """Take a tensor that is saved."""
        # What is not strided, such as a sparse matrix, has no storage of its own; models have few of those.
        if tensor.layout is not torch.strided:
            return tensor
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._shared:
            return _Box(tensor)
        self._times[key] += 1
        if self._times[key] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)
        box = _Box(tensor)
        weakref.finalize(box, self._free, key, size)
        return box

    def _free(self, key: int, size: int) -> None:
        self._times[key] -= 1
        if not self._times[key]:
            del self._times[key]
            self.now -= size

    @staticmethod
    def unpack(box: Tensor | _Box) -> Tensor:
        """Give it back."""
        return box.tensor if isinstance(box, _Box) else box


class _Box:
    """Keeps a tensor for as long as the graph wants it."""

    def __init__(self, tensor: Tensor) -> None:
        # An output knows its operation, which would hold this box: a cycle that nothing frees without a backward pass.
        self.tensor = tensor.detach()


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of its __init_subclass__
    """Counts the bytes of the storages that operations make, while they live.

    Args:
        left_out: Sorted shapes of parameters. Tensors that are shaped so are their gradients, which do not grow with
            the timesteps, but would hide what does in a short call.
    """

    def __init__(self, left_out: Collection[tuple[int, ...]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._left_out = left_out
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = {key: storage for key, storage in _storages(result, self._left_out) if key not in self._known}
        if made:
            # A view, or an operation in place, makes nothing.
            for key, _ in _storages((args, kwargs)):
                made.pop(key, None)
        for key, storage in made.items():
            self._known.add(key)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler for the first call, which takes seconds.
        return False

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(tree: Any, left_out: Collection[tuple[int, ...]] = ()) -> list[tuple[int, torch.UntypedStorage]]:
    found = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and tuple(sorted(leaf.shape)) not in left_out:
            storage = leaf.untyped_storage()
            found.append((storage._cdata, storage))
    return found
