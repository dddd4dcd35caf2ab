"""Windows: what one iteration of a stream emits, each a view of the block that it was read in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamseq.core.tokens import StateToken


@dataclass(frozen=True, slots=True)
class Block:
    """Windows that were read together.

    Args:
        fields: By name a tensor [W, B, K, *D], or [W, K, B, *D] where not `batch_first`.
        num_windows: W.
        together: Windows of which tensors are made at a time.
        masks: Makes the masks of the first so many windows, of the next ones, ...: bool [B, K] or [K, B] each.
        tokens: Makes the tokens of the windows `[first, stop)`.
        batch_first: Whether lanes come before timesteps.
    """

    fields: Mapping[str, Tensor]
    num_windows: int
    together: int
    masks: Callable[[int], Sequence[Tensor]]
    tokens: Callable[[int, int], Sequence[StateToken]]
    batch_first: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the fields."""
        return sum(tensor.nbytes for tensor in self.fields.values())

    def windows(self) -> Iterator[Window]:
        """The windows, views of the block."""
        for number, first in enumerate(range(0, self.num_windows, self.together)):
            stop = min(self.num_windows, first + self.together)
            views = Views(
                {name: tensor[first:stop].unbind(0) for name, tensor in self.fields.items()},
                partial(self.masks, number),
                partial(self.tokens, first, stop),
                self.batch_first,
            )
            for index in range(stop - first):
                # Not through __init__: a stream makes hundreds of thousands a second.
                window = object.__new__(Window)
                window._views = views
                window._index = index
                yield window


@dataclass(slots=True)
class Views:
    """What a few windows show; arguments by window.

    Args:
        fields: By name a tensor [B, K, *D], or [K, B, *D] where not `batch_first`, for each window.
        masks: bool [B, K] or [K, B] for each window, or what makes them.
        tokens: The tokens, or what makes them.
        batch_first: Whether lanes come before timesteps.
        lengths: int64 [B] for each window; None: as the tokens say.
    """

    fields: Mapping[str, Sequence[Tensor]]
    masks: Sequence[Tensor] | Callable[[], Sequence[Tensor]]
    tokens: Sequence[StateToken] | Callable[[], Sequence[StateToken]]
    batch_first: bool
    lengths: Sequence[Tensor] | None = None

    def all_masks(self) -> Sequence[Tensor]:
        """The masks, made at the first call."""
        masks = self.masks
        if callable(masks):
            masks = self.masks = masks()
        return masks

    def all_tokens(self) -> Sequence[StateToken]:
        """The tokens, made at the first call."""
        tokens = self.tokens
        if callable(tokens):
            tokens = self.tokens = tokens()
        return tokens

    def all_lengths(self) -> Sequence[Tensor]:
        """Timesteps of input of each lane, for each window."""
        if self.lengths is None:
            self.lengths = [torch.from_numpy(token.lengths) for token in self.all_tokens()]
        return self.lengths


class Window:
    """Lanes x K timesteps of each field, a mask and a token.

    Args:
        fields: Tensors [B, K, *D], or [K, B, *D] where not `batch_first`.
        mask: bool [B, K] or [K, B], the timesteps whose loss counts.
        token: Whose state each lane continues.
        batch_first: Whether lanes come before timesteps.
    """

    __slots__ = ("_index", "_views")

    _views: Views
    _index: int

    def __init__(
        self,
        fields: Mapping[str, Tensor],
        mask: Tensor,
        token: StateToken | Callable[[], StateToken],
        batch_first: bool = True,
        lengths: Tensor | None = None,
    ) -> None:
        self._index = 0
        self._views = Views(
            fields={name: (tensor,) for name, tensor in fields.items()},
            masks=(mask,),
            tokens=(token,) if isinstance(token, StateToken) else lambda: (token(),),
            batch_first=batch_first,
            lengths=None if lengths is None else (lengths,),
        )

    @property
    def token(self) -> StateToken:
        """Whose state each lane continues."""
        return self._views.all_tokens()[self._index]

    @property
    def mask(self) -> Tensor:
        """bool [B, K] or [K, B]: the timesteps whose loss counts."""
        return self._views.all_masks()[self._index]

    @property
    def lengths(self) -> Tensor:
        """int64 [B]: timesteps of input of each lane; what follows is padding. Stays on the CPU."""
        return self._views.all_lengths()[self._index]

    @property
    def batch_first(self) -> bool:
        """Whether lanes come before timesteps."""
        return self._views.batch_first

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._views.fields[name][self._index]
        except KeyError:
            raise KeyError(f"the window has {', '.join(self._views.fields)}, not {name!r}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._views.fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._views.fields)

    def keys(self) -> list[str]:
        """The names of the fields and lookaheads."""
        return list(self._views.fields)

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
        fields = {name: self[name].narrow(self.time_axis, start, stop - start) for name in self}
        mask = self.mask.narrow(self.time_axis, start, stop - start)
        lengths = (self.lengths - start).clamp(0, stop - start)
        return Window(fields, mask, lambda: self.token.cut(start, stop), self.batch_first, lengths)

    def parts(self) -> Iterator[Window]:
        """The window, cut where the states of lanes are not those of the timestep before.

        That is where a lane stops inside its sequence and goes on in the next window (domain splits), and where a
        sequence starts inside the window (tail="pack"). In each part a lane holds timesteps up to its end, or ends for
        good, or holds none: a model may run over whole parts, and `Carry` does the rest.

        Their tokens are of the parts. Save the position from the token of the window.

        Yields:
            Windows of fewer timesteps, without those that are padding in all lanes; the window itself where there is
            nothing to cut.

        Example:
            >>> import numpy as np, streamseq as ss
            >>> store = ss.from_arrays({name: {"x": np.arange(5)} for name in "ab"})
            >>> stream = ss.StreamDataset(store, lanes=2, window=3, split=ss.splits.Domain({"a": [1]}))
            >>> [(part["x"].tolist(), part.lengths.tolist()) for part in stream[0].parts()]
            [([[0], [0]], [1, 1]), ([[0, 0], [1, 2]], [0, 2])]
        """
        token, lengths = self.token, self.lengths.numpy()
        borders = set(lengths[~(token.final | token.idle)].tolist())
        if token.segments is not None:
            borders.update(token.segments["offset"][token.segments["reset"]].tolist())
        borders -= {0, self.num_steps}
        if not borders:
            yield self
            return
        for low, high in pairwise(sorted({0, *borders, int(lengths.max())})):
            part = self.cut(low, high)
            part._views.tokens = (_without_ended(part.token, token.final & (lengths <= low)),)
            yield part

    def _map(self, function: Callable[[Tensor], Tensor]) -> Window:
        fields = {name: function(self[name]) for name in self}
        return Window(fields, function(self.mask), lambda: self.token, self.batch_first, self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: self[name] for name in self}
        return Window, (fields, self.mask, self.token, self.batch_first, self.lengths)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(self[name].shape)}" for name in self)
        return f"Window(step {self.token.step} of epoch {self.token.epoch}: {shapes})"


def _without_ended(token: StateToken, ended: np.ndarray[Any, np.dtype[np.bool_]]) -> StateToken:
    """A token in which lanes that have ended are idle."""
    if not ended.any():
        return token
    return replace(
        token,
        sequence=np.where(ended, -1, token.sequence),
        start=np.where(ended, 0, token.start),
        stop=np.where(ended, 0, token.stop),
        reset=token.reset & ~ended,
        final=token.final & ~ended,
    )
