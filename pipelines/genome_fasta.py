"""FASTA: records out of bytes, in pieces of bounded size, and where a large file is best cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .file_bytes import read_bytes
from .files import InputFile
from .genome_letters import BAD, LETTER, LINE_END, Letters
from .genome_records import LONGEST_HEADER, Bases, Head, place_of, read_header, strange

_HEADER = ord(">")
_NEWLINE = 10
# How much of a record is looked at to see whether it has letters there.
_AROUND = 1 << 16


def read_fasta(
    pieces: Iterable[NDArray[np.uint8]],
    letters: Letters,
    *,
    at: int,
    line: int | None,
    inside: bool,
    whole_header: bool,
) -> Iterator[Head | Bases]:
    """Yield records as they come.

    Args:
        pieces: Bytes that follow each other.
        letters: What letters become.
        at: Where the first byte is.
        line: The number of its line; None where lines are not counted.
        inside: Whether the first bytes belong to a record that has begun before.
        whole_header: Take the whole header line for the id.
    """
    rest = np.empty(0, np.uint8)
    fresh = not inside  # whether a line starts with the next byte; a part that starts in a record has no header there
    for piece in pieces:
        data = np.concatenate([rest, piece]) if len(rest) else piece
        heads = header_starts(data, fresh)
        cut = len(data)
        if len(heads) and not (data[heads[-1] :] == _NEWLINE).any() and cut - heads[-1] <= LONGEST_HEADER:
            cut = int(heads[-1])
            heads = heads[:-1]
        yield from _read(data[:cut], heads, letters, at, line, inside, whole_header)
        if line is not None:
            line += int(np.count_nonzero(data[:cut] == _NEWLINE))
        inside = inside or len(heads) > 0 or bool((data[:cut] > 32).any())
        at += cut
        rest = data[cut:]
        fresh = bool(len(rest)) or (bool(data[cut - 1] == _NEWLINE) if cut else fresh)
    if len(rest):
        yield from _read(rest, np.zeros(1, np.int64), letters, at, line, inside, whole_header)


def header_starts(data: NDArray[np.uint8], fresh: bool) -> NDArray[np.int64]:
    """Where header lines start.

    Args:
        data: Bytes.
        fresh: Whether a line starts with the first one.

    Example:
        >>> header_starts(np.frombuffer(b">a\\nC>G\\n>b", np.uint8), True)
        array([0, 7])
    """
    found = np.flatnonzero(data == _HEADER)
    first = found[:1] == 0
    after_end = data[found - 1] == _NEWLINE
    after_end[:1] = np.where(first, fresh, after_end[:1])
    return np.asarray(found[after_end], np.int64)


def cut_fasta(file: InputFile, starts: Iterable[int], slack: int, inside: bool) -> list[tuple[int, int | None]]:
    """Find where a file is cut, reading it once: at a record near each of the starts, or inside a long record.

    Args:
        file: A plain file.
        starts: Where it should be cut, increasing.
        slack: How far behind that a record is near.
        inside: Whether records may be cut; otherwise any next record is near.

    Returns:
        The cuts, each with the start of the header of the record that it is inside of; None where a record starts.
    """
    wanted = list(starts)
    waiting: list[tuple[int, int | None]] = []  # with the record that each is inside of
    cuts: list[tuple[int, int | None]] = []
    last: int | None = None
    at, fresh = 0, True
    for data in read_bytes(file):
        heads = header_starts(data, fresh) + at
        while wanted and wanted[0] < at + len(data):
            before = heads[heads <= wanted[0]]
            waiting.append((wanted.pop(0), int(before[-1]) if len(before) else last))
        left = []
        for start, record in waiting:
            behind = heads[heads >= start]
            near = len(behind) > 0 and (not inside or behind[0] < start + slack)
            if near:
                cuts.append((int(behind[0]), None))
            elif inside and record is not None and (len(behind) or at + len(data) >= start + slack):
                cuts.append((start, record))
            else:
                left.append((start, record))
        waiting = left
        last = int(heads[-1]) if len(heads) else last
        at += len(data)
        fresh = bool(data[-1] == _NEWLINE)
    cuts += [(start, record) for start, record in waiting if inside and record is not None]
    return sorted(dict(cuts).items())


def place_inside(file: InputFile, header_end: int, start: int) -> int | None:
    """Where a record is cut such that both parts have letters of it, about at a byte; None where that is not seen.

    Args:
        file: A plain file.
        header_end: Where the first line behind the header starts.
        start: The byte, behind the start of the header.
    """
    start = max(start, header_end)
    before = [piece for piece in read_bytes(file, max(header_end, start - _AROUND), start) if (piece > 32).any()]
    after = np.concatenate([*read_bytes(file, start - 1, min(file.size, start + _AROUND))])
    letters = np.flatnonzero(after[1:] > 32)
    if not before or not len(letters):
        return None
    first = 1 + int(letters[0])
    return None if after[first] == _HEADER and after[first - 1] == _NEWLINE else start + first - 1


def id_at(file: InputFile, start: int, whole_header: bool) -> Head:
    """The header of the record that starts at a byte of a plain file."""
    data = np.concatenate(list(read_bytes(file, start, min(file.size, start + LONGEST_HEADER))))
    ends = np.flatnonzero(data == _NEWLINE)
    return read_header(data[: ends[0] + 1] if len(ends) else data, start, None, whole_header)


def _read(
    data: NDArray[np.uint8],
    heads: NDArray[np.int64],
    letters: Letters,
    at: int,
    line: int | None,
    inside: bool,
    whole_header: bool,
) -> Iterator[Head | Bases]:
    """Records of bytes, of which the last may go on behind them."""
    values, mask, table = letters.tables
    kinds = table[data]
    newlines = np.flatnonzero(data == _NEWLINE) if len(heads) else np.empty(0, np.int64)
    ends = np.append(newlines, len(data) - 1)[np.searchsorted(newlines, heads)] + 1
    for head, end in zip(heads.tolist(), ends.tolist(), strict=True):
        kinds[head:end] = LINE_END
    bad = np.flatnonzero(kinds == BAD)
    kept = kinds == LETTER
    arrays = {"x": values[data[kept]]}
    if letters.masks:
        arrays["mask"] = mask[data[kept]]
    bounds = np.concatenate([np.zeros(1, np.int64), heads, np.full(1, len(data), np.int64)])
    counts = [int(np.count_nonzero(kept[start:stop])) for start, stop in pairwise(bounds)]
    taken = 0
    for number, (start, stop, count) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), counts, strict=True)):
        body = start
        if number:
            body = int(ends[number - 1])
            own = None if line is None else line + int(np.searchsorted(newlines, start))
            yield read_header(data[start:body], at + start, own, whole_header)
        elif not inside and (data[:stop] > 32).any():
            body = int(np.argmax(data[:stop] > 32))
            yield Head(
                id=None,
                text="",
                offset=at + body,
                line=None if line is None else line + int(np.count_nonzero(data[:body] == _NEWLINE)),
                raw=data[:0],
                problem="it does not begin with a record, whose first line starts with '>'",
            )
        elif not inside:
            continue
        first = int(np.searchsorted(bad, body))
        place, problem = "", None
        if first < len(bad) and bad[first] < stop:
            position = int(bad[first])
            own = None if line is None else line + int(np.count_nonzero(data[:position] == _NEWLINE))
            place, problem = place_of(at + position, own), strange(int(data[position]))
        yield Bases(
            arrays={name: values[taken : taken + count] for name, values in arrays.items()},
            raw=data[body:stop],
            place=place,
            problem=problem,
        )
        taken += count
