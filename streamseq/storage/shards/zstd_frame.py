"""What a zstd frame says it decodes to: the decoder fills that much, and leaves what follows in a buffer as it was."""

from __future__ import annotations


def zstd_content_bytes(data: memoryview) -> int | None:
    """The content size in the header of a zstd frame (RFC 8878, section 3.1.1.1); None where it is none or says none.

    Example:
        >>> from numcodecs import zstd
        >>> zstd_content_bytes(memoryview(zstd.compress(bytes(300)))), zstd_content_bytes(memoryview(b"none"))
        (300, None)
    """
    if len(data) < 5 or bytes(data[:4]) != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    if size == 0 or len(data) < start + size:
        return None
    return int.from_bytes(data[start : start + size], "little") + (256 if size == 2 else 0)
