"""Gradients: what one update adds to `.grad`, put together from several back-propagations and several ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamseq.tbptt.ranks import Ranks


class Gradients:
    """Adds up the gradients of `accumulate` back-propagations over all ranks, as the gradient of one mean.

    Args:
        parameters: Whose `.grad` is meant; None where they are not known, which is enough for one back-propagation of
            one rank.
        ranks: That add up theirs.
        accumulate: Back-propagations of an update.

    Raises:
        ValueError: The parameters are needed and not known.
    """

    def __init__(self, parameters: Sequence[Tensor] | None, ranks: Ranks, accumulate: int = 1) -> None:
        self._apart = not ranks.alone or accumulate > 1
        if self._apart and parameters is None:
            raise ValueError(
                "gradients of several ranks or back-propagations are put together parameter by parameter, and a model "
                "that is a function does not say which there are: pass parameters="
            )
        self._parameters = [each for each in parameters or () if each.requires_grad]
        self._ranks = ranks
        self._accumulate = accumulate
        self._before: list[Tensor | None] | None = None
        self._number = self._count = self._divisor = 0
        self._loss: Tensor | None = None

    def divisor(self, count: int) -> int:
        """Begin a back-propagation of so many timesteps, over all ranks; by what its losses are to be divided."""
        if not self._number:
            # How many timesteps the others have is not known yet: what is off is put right in the end.
            self._divisor = count * self._accumulate
            if self._apart:
                self._before = [parameter.grad for parameter in self._parameters]
                for parameter in self._parameters:
                    parameter.grad = None
        return self._divisor

    def add(self, loss: Tensor, count: int) -> tuple[Tensor, int] | None:
        """End it; the update's mean loss and number of timesteps where that was the last one of it."""
        self._loss = loss if self._loss is None else self._loss + loss
        self._number += 1
        self._count += count
        return self.finish() if self._number == self._accumulate else None

    def restore(self) -> None:
        """Give back the gradients that were there, where an update was begun and not ended."""
        if self._before is None:
            return
        for parameter, before in zip(self._parameters, self._before, strict=True):
            parameter.grad = before
        self._number = self._count = 0
        self._loss = self._before = None

    def finish(self) -> tuple[Tensor, int] | None:
        """The update's mean loss and number of timesteps, of what there is so far; None where there is nothing."""
        if self._loss is None:
            return None
        loss, count = self._ranks.add_up(self._parameters, self._loss), self._count
        if self._divisor != count:
            factor = self._divisor / count
            loss = loss * factor
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        if self._before is not None:
            for parameter, before in zip(self._parameters, self._before, strict=True):
                if before is not None:
                    parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)
        self._number = self._count = 0
        self._loss = self._before = None
        return loss, count


def parameters_of(model: Any, given: Iterable[Tensor] | None) -> list[Tensor] | None:
    """The parameters that are trained: those that were given, or those of a module; None where they are not known."""
    if given is not None:
        return list(given)
    if isinstance(model, nn.Module):
        return list(model.parameters())
    return None


def check_scaler(scaler: Any) -> Any:
    """A `torch.amp.GradScaler`, or None.

    Raises:
        TypeError: It is something else.
    """
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"scaler is a torch.amp.GradScaler, got a {type(scaler).__name__}")
    return scaler
