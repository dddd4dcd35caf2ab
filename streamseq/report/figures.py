"""Numbers as a page shows them."""

from __future__ import annotations

import math


def count(value: int) -> str:
    """A whole number.

    Example:
        >>> count(1234567)
        '1,234,567'
    """
    return f"{value:,}"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many digits that count; a dash for none.

    Example:
        >>> number(1234.5678), number(0.000123456), number(None), number(3)
        ('1,235', '0.0001235', '–', '3')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if 1e-4 <= abs(value) < 1e15:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """A share as a percentage.

    Example:
        >>> share(0.1234), share(1), share(0.00001), share(None)
        ('12.3 %', '100 %', '< 0.1 %', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    """A length of time.

    Example:
        >>> duration(0.0025), duration(75), duration(7_260), duration(None)
        ('2.5 ms', '1 min 15 s', '2 h 1 min', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if 0 < seconds < 0.1:
        return f"{number(1000 * seconds, 3)} ms"
    if seconds < 60:
        return f"{number(seconds, 3)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600:,} h {whole % 3600 // 60} min"
    return f"{whole // 86_400:,} d {whole % 86_400 // 3600} h"


def plural(value: int, one: str, many: str = "") -> str:
    """A number of things.

    Example:
        >>> plural(1, "version"), plural(3, "version")
        ('1 version', '3 versions')
    """
    return f"{value:,} {one if value == 1 else many or one + 's'}"
