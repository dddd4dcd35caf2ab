"""The columns of a table, and which become which field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamseq.core.fields import Field, check_fields

ALL = "*"
UNITS = ("s", "ms", "us", "ns")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that make one field.

    Args:
        names: A column, whose field has step shape `()`; or several, which are stacked to a field of shape `[D]`. `"*"`
            is all columns of numbers that nothing else takes.
        dtype: The dtype of the field.

    Raises:
        TypeError: `names` is neither text nor a list of text, or the dtype is none of a field.
        ValueError: There is no column, or one comes twice.

    Example:
        >>> Columns(["wind", "rain"]).field
        Field(dtype=dtype('float32'), shape=(2,), codec=None)
    """

    names: tuple[str, ...]
    dtype: str
    stacked: bool

    def __init__(self, names: str | Sequence[str], dtype: str = "float32") -> None:
        several = (names,) if isinstance(names, str) else tuple(names)
        if not several or not all(isinstance(name, str) and name for name in several):
            raise ValueError(f"a field is made of at least one column, each with a name, got {names!r}")
        if len(set(several)) < len(several):
            raise ValueError(f"a column is in a field once, got {', '.join(several)}")
        object.__setattr__(self, "names", several)
        object.__setattr__(self, "dtype", str(Field(dtype).dtype))
        object.__setattr__(self, "stacked", not isinstance(names, str) or names == ALL)

    @property
    def field(self) -> Field:
        """The field, once `"*"` is resolved."""
        return Field(self.dtype, (len(self.names),) if self.stacked else ())

    def resolved(self, names: Sequence[str]) -> Columns:
        """The same with the columns that `"*"` stands for."""
        return Columns(list(names), self.dtype) if self.names == (ALL,) else self


def parse_field(text: str) -> tuple[str, Columns]:
    """Read `NAME[=COLUMN,...][:DTYPE]`, as on the command line. A comma at the end makes one column a `[1]`.

    Raises:
        TypeError: The dtype is none of a field.
        ValueError: There is no name or no column.

    Example:
        >>> parse_field("x=wind,rain:float64")
        ('x', Columns(names=('wind', 'rain'), dtype='float64', stacked=True))
        >>> parse_field("wind")
        ('wind', Columns(names=('wind',), dtype='float32', stacked=False))
    """
    left, colon, dtype = text.rpartition(":")
    name, equals, columns = (left if colon else text).partition("=")
    if not name or (equals and not columns):
        raise ValueError(f"a field is NAME, NAME=COLUMN or NAME=COLUMN,COLUMN, with :DTYPE after it, got {text!r}")
    wanted = columns if equals else name
    names: str | list[str] = wanted
    if "," in wanted:
        names = wanted.removesuffix(",").split(",")
    return name, Columns(names, dtype) if colon else Columns(names)


def check_columns(fields: Mapping[str, Any]) -> dict[str, Columns]:
    """Return the columns of each field, after checking names and kinds.

    Raises:
        TypeError: A value is neither `Columns`, nor text, nor a list of text.
        ValueError: A field has a name that no field has.
    """
    found = {name: given if isinstance(given, Columns) else Columns(given) for name, given in fields.items()}
    check_fields({name: Field(columns.dtype) for name, columns in found.items()})
    return found
