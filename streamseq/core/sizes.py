"""Numbers of bytes, as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(size: int | str) -> int:
    """The number of bytes that `size` says.

    Args:
        size: An integer, or text such as "500MB" or "1.5 GiB".

    Raises:
        TypeError: It is neither.
        ValueError: It is negative, or text of another form.

    Example:
        >>> parse_bytes("500MB"), parse_bytes("1.5 GiB"), parse_bytes(1024)
        (500000000, 1610612736, 1024)
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(f'a size is a number of bytes or text such as "500MB", got {size!r}')
    if isinstance(size, str):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt]i?)?b?\s*", size, re.IGNORECASE)
        if found is None:
            raise ValueError(f'a size is a number of bytes or text such as "500MB" or "2 GiB", got {size!r}')
        size = round(float(found[1]) * _UNITS[(found[2] or "").lower()])
    if size < 0:
        raise ValueError(f"a size is at least 0 bytes, got {size}")
    return size


def format_bytes(size: float) -> str:
    """A number of bytes for people.

    Example:
        >>> format_bytes(1_610_612_736), format_bytes(999)
        ('1.6 GB', '999 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
