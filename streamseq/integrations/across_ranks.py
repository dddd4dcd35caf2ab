"""States of all ranks in a checkpoint that one of them writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed

from streamseq.core.errors import ResumeError
from streamseq.data import state as states
from streamseq.training.redistribute import redistribute


class _Carries(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


def rank_and_world_size() -> tuple[int, int]:
    """This process and how many there are, as `torch.distributed` has it; (0, 1) without."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all ranks, on the CPU; all of them call it."""
    _, world_size = rank_and_world_size()
    here: dict[str, Any] = states.map_tensors(torch.Tensor.cpu, state)
    if world_size == 1:
        return [here]
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, here)
    return gathered


def of_this_rank(gathered: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The state of this rank; where the number of ranks is another, put together from the lanes of all.

    Raises:
        ResumeError: A lane is missing or there twice.
    """
    rank, world_size = rank_and_world_size()
    if len(gathered) == world_size:
        return gathered[rank]
    return redistribute(gathered, rank=rank, world_size=world_size)


class AcrossRanks:
    """Saves and restores a `TBPTT` or `Carry` with the parts of all ranks, for tools whose main process alone writes.

    Args:
        part: The engine or carry of this rank.

    Example:
        >>> import streamseq as ss
        >>> carry = AcrossRanks(ss.Carry())
        >>> carry.load_state_dict(carry.state_dict())
        >>> carry.state_dict()
        {'ranks': [{'token': None, 'state': None}]}
    """

    def __init__(self, part: _Carries) -> None:
        self.part = part

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks, which all call it."""
        return {"ranks": gather(self.part.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore that of this rank, with any number of ranks.

        Raises:
            ResumeError: It is something else.
        """
        if not isinstance(state, Mapping) or set(state) != {"ranks"}:
            raise ResumeError("the states of ranks are a dict with ranks: pass what state_dict() returned")
        self.part.load_state_dict(of_this_rank(state["ranks"]))
