"""Ranks: what the processes that train one model agree on, and the one reduction of gradients in an update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Number = TypeVar("Number", np.int64, np.float64)

# Gradients are reduced in pieces of about so many bytes, which are copied together.
BUCKET_BYTES = 64 << 20


class Ranks:
    """The processes of a group that each hold some lanes; or this process alone.

    Args:
        group: A `torch.distributed` process group; None: this process is alone.
        device: Where collectives take their tensors: a GPU for NCCL.
    """

    def __init__(self, group: Any = None, device: torch.device | None = None) -> None:
        self._group = group
        self._device = device or torch.device("cpu")
        self.alone = group is None or torch.distributed.get_world_size(group) == 1

    def total(self, numbers: NDArray[Number]) -> NDArray[Number]:
        """The sum over all ranks of numbers, in an array of the same shape on each."""
        if self.alone:
            return numbers
        # On the device of the collectives, and not changed in place: it may be a view of somebody else's.
        tensor = torch.from_numpy(numbers.copy()).to(self._device)
        torch.distributed.all_reduce(tensor, group=self._group)
        summed: NDArray[Number] = tensor.cpu().numpy()
        return summed

    def everywhere(self, here: bool) -> bool:
        """Whether something is so on every rank."""
        if self.alone:
            return here
        return not self.total(np.array([not here], np.int64))[0]

    def add_up(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Add up `.grad` of the parameters over all ranks, in place; a rank without one takes part with zeros.

        Args:
            parameters: The same on all ranks, in the same order.
            loss: 0-dim, added up too.

        Returns:
            The loss of all ranks.
        """
        if self.alone:
            return loss
        there = self.total(np.array([parameter.grad is not None for parameter in parameters], np.int64))
        reduced = [parameter for parameter, ranks in zip(parameters, there, strict=True) if ranks]
        for parameter in reduced:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        total = loss.detach().to(self._device, torch.float64, copy=True)
        torch.distributed.all_reduce(total, group=self._group)
        for bucket in _buckets([parameter.grad for parameter in reduced if parameter.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            torch.distributed.all_reduce(flat, group=self._group)
            at = 0
            for gradient in bucket:
                gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
                at += gradient.numel()
        # A rank without a loss has a zero of no dtype in particular.
        dtype = torch.promote_types(loss.dtype, parameters[0].dtype) if parameters else loss.dtype
        return total.to(loss.device, dtype)


def _buckets(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gradients of one dtype and device together, up to a number of bytes."""
    full: list[list[Tensor]] = []
    open_ones: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for gradient in gradients:
        if gradient.layout != torch.strided:
            raise ValueError(
                f"gradients of ranks are dense, got layout {gradient.layout}: use sparse=False in embeddings"
            )
        kind = (gradient.dtype, gradient.device)
        bucket = open_ones.setdefault(kind, [])
        bucket.append(gradient)
        if sum(each.nbytes for each in bucket) >= BUCKET_BYTES:
            full.append(open_ones.pop(kind))
    return full + list(open_ones.values())


def ranks_of(model: object, *, several: bool, group: Any) -> Ranks:
    """The ranks that train a model together.

    Args:
        model: Wrapped in `DistributedDataParallel`, or not.
        several: Whether the windows are those of one of several ranks.
        group: A process group; None: that of the wrapper, or the default one where there is one and the windows are
            those of several ranks; False: this process alone.
    """
    if group is False:
        return Ranks()
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    if group is None and isinstance(model, DistributedDataParallel):
        group = model.process_group
    if group is None and several and torch.distributed.is_available() and torch.distributed.is_initialized():
        group = torch.distributed.group.WORLD
    if group is None:
        return Ranks()
    nccl = torch.distributed.get_backend(group) == "nccl"
    device = next((parameter.device for parameter in parameters if parameter.is_cuda), torch.device("cuda"))
    return Ranks(group, device if nccl else None)


def unwrapped(model: Any) -> Any:
    """The model that computes: without `DistributedDataParallel`, whose own reductions would come once a segment.

    Raises:
        TypeError: The model's parameters are sharded over ranks.
    """
    kinds = {type(module).__name__ for module in model.modules()} if isinstance(model, nn.Module) else set()
    sharded = sorted(kind for kind in kinds if kind.startswith(("FSDP", "FullyShardedDataParallel")))
    if sharded:
        raise TypeError(
            f"TBPTT adds up gradients itself, for which every rank holds all parameters, got a {sharded[0]}: wrap the "
            "model in DistributedDataParallel, or pass it as it is"
        )
    return model.module if isinstance(model, DistributedDataParallel) else model
