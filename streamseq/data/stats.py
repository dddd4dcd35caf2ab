"""What a loader did and what its user waited for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderStats:
    """Figures of one iteration, the one that runs or ran last.

    Args:
        windows: Windows that were handed out.
        num_bytes: Bytes of the fields of their blocks.
        seconds: From the first one that was asked for until now, or until the last one.
        waited: Seconds of these that the user waited for windows, or its thread read them; the rest is the user's own.
        chunks: Chunks that were read from, each once for each block that it is in.
        decoded: Chunks that were decoded for that, or checked.
        decoded_bytes: Their size, decoded.
        decoding: Seconds that decoding took, in whatever thread.
        memory_bytes: Memory for blocks, and the most that decoded chunks may take.
    """

    windows: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    chunks: int = 0
    decoded: int = 0
    decoded_bytes: int = 0
    decoding: float = 0.0
    memory_bytes: int = 0

    @property
    def windows_per_second(self) -> float:
        """Windows a second, with what the user does between them."""
        return self.windows / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second, likewise."""
        return self.num_bytes / self.seconds if self.seconds else 0.0

    @property
    def wait_fraction(self) -> float:
        """The part of the time that the user waited, from 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    @property
    def cache_hits(self) -> float:
        """The part of the chunks that were there already, from 0 to 1."""
        return 1 - self.decoded / self.chunks if self.chunks else 0.0
