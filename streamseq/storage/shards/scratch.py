"""Memory of each thread's own for bytes that are read before they are decoded."""

from __future__ import annotations

import threading

_scratches = threading.local()


def scratch(size: int) -> memoryview:
    """`size` bytes with any contents, valid until this thread asks again. Fresh memory costs more than the reading."""
    held: bytearray | None = getattr(_scratches, "held", None)
    if held is None or len(held) < size:
        held = _scratches.held = bytearray(size)
    return memoryview(held)[:size]
