"""Splits: how long sequences are cut into the windows that a stream emits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AsIs:
    """Every sequence is one window, as long as the longest over all lanes; nothing is cut and no state is carried."""


@dataclass(frozen=True, slots=True)
class Naive:
    """Contiguous windows of `window` timesteps: the state is kept between them and reset at the sequence's true end."""


Split = AsIs | Naive
