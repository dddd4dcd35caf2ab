"""Windows on their way to a CUDA device, one ahead. Written with care, and not run on one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from streamseq.data.window import Window


def copied_ahead(windows: Iterator[Window], device: torch.device) -> Iterator[Window]:
    """The windows on a CUDA device; while one is worked on, the next one is copied on a stream of its own.

    They pass through page-locked memory, in the dtype that they are stored in.

    Args:
        windows: On the CPU.
        device: A CUDA device.
    """
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[Window, torch.cuda.Event] | None = None
    for window in windows:
        with torch.cuda.stream(side):
            moved = window.pin_memory().to(device, non_blocking=True)
            event = side.record_event()
        if waiting is not None:
            yield _arrived(*waiting, device)
        waiting = moved, event
    if waiting is not None:
        yield _arrived(*waiting, device)


def _arrived(window: Window, event: torch.cuda.Event, device: torch.device) -> Window:
    """The window, once the stream that works on it waits for its copy."""
    current = torch.cuda.current_stream(device)
    current.wait_event(event)
    # Its memory was allocated on the side stream, and must not be used again there before this one is done.
    for tensor in (window.mask, *(window[name] for name in window)):
        tensor.record_stream(current)
    return window
