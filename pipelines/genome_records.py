"""What the readers of FASTA and FASTQ hand on: records, their bases, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A header line that is longer is none.
LONGEST_HEADER = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A record begins.

    Args:
        id: Its id; None where it has none.
        text: The rest of its header line.
        offset: Where it starts, in decoded bytes of the file.
        line: The number of its header line, from 1; None in a part of a file.
        raw: The bytes of the header line.
        problem: Why the header is none; None where it is fine.
    """

    id: str | None
    text: str
    offset: int
    line: int | None
    raw: NDArray[np.uint8]
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bases:
    """More letters of the record that began last.

    Args:
        arrays: The fields.
        raw: The bytes that they were.
        place: Where the first bad one is; empty where there is none.
        problem: What is wrong there.
    """

    arrays: Mapping[str, NDArray[Any]]
    raw: NDArray[np.uint8]
    place: str = ""
    problem: str | None = None


def place_of(offset: int, line: int | None) -> str:
    """Say where something is: the line where lines are counted, otherwise the byte."""
    return f"byte {offset}" if line is None else f"line {line}"


def read_header(raw: NDArray[np.uint8], offset: int, line: int | None, whole_header: bool) -> Head:
    """Take a header line apart: `>id text`, or `@id text`.

    Args:
        raw: The line, with its end.
        offset: Where it starts.
        line: Its number.
        whole_header: Take all of it for the id.
    """
    problem = None
    try:
        header = raw[1:].tobytes().decode().strip()
    except UnicodeDecodeError as error:
        header, problem = (
            "",
            f"the header is not UTF-8: its byte {error.start + 1} is 0x{int(raw[1 + error.start]):02x}",
        )
    id, text = header, ""
    if not whole_header:
        id, _, text = header.partition(" ") if "\t" not in header else header.replace("\t", " ").partition(" ")
    if not id and problem is None:
        problem = "the header has no id"
    return Head(id=id or None, text=text.strip(), offset=offset, line=line, raw=raw, problem=problem)


def strange(byte: int) -> str:
    """Say what a bad letter is.

    Example:
        >>> strange(ord("!")), strange(0)
        ("'!' is no letter of the alphabet", '0x00 is no letter of the alphabet')
    """
    shown = repr(chr(byte)) if 32 <= byte < 127 else f"0x{byte:02x}"
    return f"{shown} is no letter of the alphabet"
