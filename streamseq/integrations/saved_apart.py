"""Tensors saved for the backward pass apart from those that a model changes in place after it has used them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def saved_apart(changed: Iterable[Tensor]) -> Iterator[None]:
    """Save copies of some tensors for the backward pass, so that they may be changed in place.

    Autograd refuses a backward pass through a tensor that was changed after it was saved. That is the usual way of
    caches: the state goes into a product, and the new one is then copied over it.

    Args:
        changed: The tensors; views of them are copied too.

    Raises:
        RuntimeError: In the backward pass, another tensor was changed after it was saved.

    Example:
        >>> import torch
        >>> w, s = torch.ones(2, requires_grad=True), torch.full((2,), 3.0)
        >>> with saved_apart([s]):
        ...     y = w * s
        >>> s.zero_().tolist(), y.sum().backward(), w.grad.tolist()
        ([0.0, 0.0], None, [3.0, 3.0])
    """
    storages = {tensor.untyped_storage().data_ptr() for tensor in changed}

    def pack(tensor: Tensor) -> tuple[Tensor, int]:
        # Detached: an output that is saved would hold its own graph.
        alone = tensor.detach()
        alone = alone.clone() if tensor.untyped_storage().data_ptr() in storages else alone
        return alone, alone._version

    def unpack(saved: tuple[Tensor, int]) -> Tensor:
        tensor, version = saved
        if tensor._version != version:
            raise RuntimeError(
                f"a tensor of shape {tuple(tensor.shape)} that is needed for the gradient was changed in place after "
                "it was used: only the tensors of the cache may be"
            )
        return tensor

    with saved_tensors_hooks(pack, unpack):
        yield
