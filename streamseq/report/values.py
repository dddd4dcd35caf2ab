"""Values of settings as a page shows them."""

from __future__ import annotations

from streamseq.report.figures import number
from streamseq.report.markup import shown


def said(name: str, value: object) -> str:
    """A setting as text.

    Args:
        name: Of the setting.
        value: Its value.

    Example:
        >>> said("k2", None), said("shuffle", True), said("learning_rate", 0.004)
        ('n', 'yes', '0.004')
    """
    if value is None:
        return "n" if name in ("k1", "k2") else "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "store_fingerprint":
        return str(value)[:16]
    return number(value) if isinstance(value, int | float) and name != "seed" else shown(value, 120)
