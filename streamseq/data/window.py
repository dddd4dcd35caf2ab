"""Windows: what one iteration of a stream emits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from streamseq.core.tokens import StateToken


class Window:
    """Lanes x K timesteps of each field, a mask and a token.

    Args:
        fields: Tensors [B, K, *D], or [K, B, *D] where not `batch_first`.
        mask: bool [B, K] or [K, B], the timesteps whose loss counts.
        token: Whose state each lane continues.
        batch_first: Whether lanes come before timesteps.
    """

    __slots__ = ("_fields", "_token", "batch_first", "lengths", "mask")

    def __init__(
        self,
        fields: Mapping[str, Tensor],
        mask: Tensor,
        token: StateToken | Callable[[], StateToken],
        batch_first: bool = True,
        lengths: Tensor | None = None,
    ) -> None:
        self._fields = dict(fields)
        self.mask = mask
        self._token = token
        self.batch_first = batch_first
        #: int64 [B], timesteps of input of each lane; what follows is padding. Stays on the CPU.
        self.lengths = torch.from_numpy(self.token.stop - self.token.start) if lengths is None else lengths

    @property
    def token(self) -> StateToken:
        """Whose state each lane continues."""
        # Most loops look at few tokens, so a stream makes one only when it is asked for.
        if not isinstance(self._token, StateToken):
            self._token = self._token()
        return self._token

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._fields[name]
        except KeyError:
            raise KeyError(f"the window has {', '.join(self._fields)}, not {name!r}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def keys(self) -> list[str]:
        """The names of the fields and lookaheads."""
        return list(self._fields)

    @property
    def time_axis(self) -> int:
        """The axis that counts timesteps."""
        return 1 if self.batch_first else 0

    @property
    def num_steps(self) -> int:
        """K: timesteps of the window, padding included."""
        return self.mask.shape[self.time_axis]

    @property
    def num_lanes(self) -> int:
        """B: lanes of the window."""
        return self.mask.shape[1 - self.time_axis]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Window:
        """The window with fields and mask on another device; lengths and token stay on the CPU."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Window:
        """The window with fields and mask in page-locked memory, from which copies to a GPU run beside computation."""
        return self._map(Tensor.pin_memory)

    def cut(self, start: int, stop: int) -> Window:
        """The timesteps `[start, stop)` of the window, as views."""
        if start == 0 and stop == self.num_steps:
            return self
        lengths = (self.lengths - start).clamp(0, stop - start)
        cut = self._map(lambda tensor: tensor.narrow(self.time_axis, start, stop - start))
        return Window(cut._fields, cut.mask, lambda: self.token.cut(start, stop), self.batch_first, lengths)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Window:
        fields = {name: function(tensor) for name, tensor in self._fields.items()}
        return Window(fields, function(self.mask), self._token, self.batch_first, self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        return Window, (self._fields, self.mask, self.token, self.batch_first, self.lengths)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self._fields.items())
        return f"Window(step {self.token.step} of epoch {self.token.epoch}: {shapes})"
