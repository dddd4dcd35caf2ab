"""Runs of whole lines out of part of a file: every line once, in the part in which it starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .file_bytes import PIECE_BYTES, read_bytes, read_surely
from .files import InputFile

_NEWLINE = 10
_RETURN = 13
_SPACES = np.isin(np.arange(256), list(b" \t\n\r\v\f"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Lines that follow each other, whole, each with its end; the last of a file may have none.

    Args:
        offset: Where the first one starts, in decoded bytes of the file.
        line: The number of the first one, from 1; None where nobody has counted.
        data: Their bytes.
    """

    offset: int
    line: int | None
    data: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class LongLine:
    """A line that is too long to be held.

    Args:
        offset: Where it starts.
        line: Its number, or None.
        num_bytes: Its bytes.
    """

    offset: int
    line: int | None
    num_bytes: int


def place_of_line(offset: int, line: int | None) -> str:
    """Say where a line is: by its number where that is known, otherwise by its first byte.

    Example:
        >>> place_of_line(1024, 17), place_of_line(1024, None)
        ('line 17', 'byte 1024')
    """
    return f"byte {offset}" if line is None else f"line {line}"


def read_lines(
    file: InputFile, start: int, stop: int, *, longest: int, sure: bool, whole: bool = True
) -> Iterator[Run | LongLine]:
    """Yield the lines that start in `[start, stop)` of a file; all of them where it is whole.

    Args:
        file: The file; a compressed one is always whole.
        start: The first byte of the part.
        stop: One past its last byte.
        longest: Bytes of the longest line that is held.
        sure: Read all of a whole file before the first line is handed on.
        whole: Whether the part is all of the file.

    Raises:
        FileError: The file cannot be read.
    """
    if whole:
        pieces = read_surely(file) if sure else read_bytes(file)
        return runs_of(pieces, 0, 1, None, longest)
    begin = max(0, start - 1)  # whether a line starts at `start` is said by the byte before
    return runs_of(_ahead(file, begin, stop), begin, None, (start, stop), longest)


def _ahead(file: InputFile, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """The bytes from `start` on; behind `stop`, where only the end of a line is looked for, in smaller pieces."""
    yield from read_bytes(file, start, stop)
    size = 1 << 16
    while stop < file.size:
        yield from read_bytes(file, stop, min(file.size, stop + size))
        stop += size
        size = min(2 * size, PIECE_BYTES)


def runs_of(
    pieces: Iterable[NDArray[np.uint8]], at: int, line: int | None, bounds: tuple[int, int] | None, longest: int
) -> Iterator[Run | LongLine]:
    """Yield the lines that start within bounds.

    Args:
        pieces: Bytes that follow each other.
        at: Where the first of them is.
        line: The number of the line that it is in; None where it is not known.
        bounds: The bytes `[start, stop)` in which the lines start, `at` being before start; None: all of them.
        longest: Bytes of the longest line that is held.
    """
    start, stop = bounds or (at, None)
    rest = np.empty(0, np.uint8)  # of a line that has begun and has not ended
    skipping = at < start  # the line before the first one that is wanted
    dropped = 0  # bytes of a line that is too long, so far
    for piece in pieces:
        data = np.concatenate([rest, piece]) if len(rest) else piece
        if skipping or dropped:
            newline = first_newline(data)
            end = len(data) if newline is None else newline + 1
            dropped += end if dropped else 0
            if newline is None:
                at += end
                rest = data[:0]
                if skipping and stop is not None and at >= stop:
                    return
                continue
            if dropped:
                yield LongLine(offset=at + end - dropped, line=line, num_bytes=dropped)
                line = None if line is None else line + 1
            at += end
            data = data[end:]
            skipping, dropped = False, 0
        if stop is not None and at >= stop:
            return
        newline = last_newline(data)
        cut = 0 if newline is None else newline + 1
        if stop is not None and at + cut > stop:
            # The line that has begun before `stop` is the last one.
            cut = stop - at if data[stop - at - 1] == _NEWLINE else _next_start(data, stop - at)
        if cut:
            yield from _without_long(Run(offset=at, line=line, data=data[:cut]), longest)
            if line is not None:
                line += int(np.count_nonzero(data[:cut] == _NEWLINE))
            at += cut
        if stop is not None and at >= stop:
            return
        rest = data[cut:]
        if len(rest) > longest:
            dropped, at, rest = len(rest), at + len(rest), rest[:0]
    if dropped:
        yield LongLine(offset=at - dropped, line=line, num_bytes=dropped)
    elif len(rest) and not skipping:
        yield Run(offset=at, line=line, data=rest)


def starts_of(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where the lines of a run start, and its length: int64 [lines + 1].

    Example:
        >>> starts_of(np.frombuffer(b"ab\\n\\nc", np.uint8))
        array([0, 3, 4, 5])
    """
    borders = np.flatnonzero(data == _NEWLINE) + 1
    ends = borders if len(borders) and borders[-1] == len(data) else np.append(borders, len(data))
    return np.concatenate([np.zeros(1, np.int64), ends]).astype(np.int64, copy=False)


def ends_of(data: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the lines of a run end without their `\\n` or `\\r\\n`: int64 [lines].

    Example:
        >>> data = np.frombuffer(b"ab\\r\\n\\nc", np.uint8)
        >>> ends_of(data, starts_of(data))
        array([2, 4, 6])
    """
    first, after = starts[:-1], starts[1:]
    ends = after - (data[after - 1] == _NEWLINE)
    returns = (ends > first) & (ends < after) & (data[ends - 1] == _RETURN)
    return np.asarray(ends - returns, np.int64)


def first_newline(data: NDArray[np.uint8]) -> int | None:
    """Where the first newline is; None where there is none."""
    for start in range(0, len(data), 1 << 16):
        found = np.flatnonzero(data[start : start + (1 << 16)] == _NEWLINE)
        if len(found):
            return start + int(found[0])
    return None


def last_newline(data: NDArray[np.uint8]) -> int | None:
    """Where the last newline is; None where there is none."""
    for stop in range(len(data), 0, -(1 << 16)):
        start = max(0, stop - (1 << 16))
        found = np.flatnonzero(data[start:stop] == _NEWLINE)
        if len(found):
            return start + int(found[-1])
    return None


def paragraph_start(data: NDArray[np.uint8]) -> int:
    """Where in a run text is best cut: before a line that starts with no space, after one that ends with none.

    There most tokenizers split whatever comes before and after. It is the first such line but the very first of the
    run; 0 where there is none.

    Example:
        >>> paragraph_start(np.frombuffer(b"a\\n  b\\n\\nc\\nd\\n", np.uint8))
        9
    """
    starts = starts_of(data)[1:-1]
    if not len(starts):
        return 0
    before = np.maximum(starts - 2, 0)
    returns = (data[before] == _RETURN) & (starts > 2)
    before = np.where(returns, np.maximum(starts - 3, 0), before)
    fit = ~_SPACES[data[starts]] & ~_SPACES[data[before]] & (starts > 1)
    return int(starts[np.argmax(fit)]) if fit.any() else 0


def _without_long(run: Run, longest: int) -> Iterator[Run | LongLine]:
    """The lines of a run, those that are too long apart: whichever pieces the file is read in."""
    if len(run.data) <= longest:
        yield run
        return
    starts = starts_of(run.data)
    begin = 0
    for number in [*np.flatnonzero(np.diff(starts) > longest), len(starts) - 1]:
        if number > begin:
            data = run.data[starts[begin] : starts[number]]
            yield Run(offset=run.offset + int(starts[begin]), line=_after(run.line, begin), data=data)
        if number < len(starts) - 1:
            size = int(starts[number + 1] - starts[number])
            yield LongLine(offset=run.offset + int(starts[number]), line=_after(run.line, int(number)), num_bytes=size)
        begin = int(number) + 1


def _after(line: int | None, count: int) -> int | None:
    return None if line is None else line + count


def _next_start(data: NDArray[np.uint8], position: int) -> int:
    newline = first_newline(data[position:])
    assert newline is not None, "asked only where a line ends behind"
    return position + newline + 1
