"""FASTQ: records of four lines out of bytes, and where a large file is best cut."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .file_bytes import HELD_BYTES, read_bytes
from .files import InputFile
from .genome_letters import LETTER, Letters
from .genome_records import Bases, Head, place_of, read_header, strange
from .text_lines import LongLine, Run, ends_of, starts_of

_NOTHING = np.empty(0, np.uint8)
_AT, _PLUS = ord("@"), ord("+")
# Phred qualities are the characters ! to ~, less the offset.
_LAST_QUALITY = 126


def read_fastq(
    runs: Iterable[Run | LongLine], letters: Letters, *, phred: int, whole_header: bool
) -> Iterator[Head | Bases]:
    """Yield records, each a `Head` and its `Bases`; after a broken one, from the next that looks like one.

    Args:
        runs: Whole lines, the first of which starts a record.
        letters: What letters become.
        phred: What is taken from a character to get its quality: 33, or 64 of old files.
        whole_header: Take the whole header line for the id.
    """
    rest: Run | None = None
    for item in runs:
        if isinstance(item, LongLine):
            if rest is not None:
                yield from _broken(rest, "a line of it is too long")
                rest = None
            yield from _broken(Run(offset=item.offset, line=item.line, data=_NOTHING), "a line is too long")
            continue
        if rest is not None:
            data = np.concatenate([rest.data, item.data])
            item = Run(offset=rest.offset, line=rest.line, data=data)
        rest = yield from _records(item, letters, phred, whole_header)
        if rest is not None and len(rest.data) > HELD_BYTES:
            starts = starts_of(rest.data)
            line = max(0, len(starts) - 4)  # the last three lines may be those of a record
            yield from _broken(_part(rest, starts, 0, line), _why_not(rest))
            rest = _part(rest, starts, line, len(starts) - 1)
    if rest is not None and (rest.data > 32).any():
        yield from _broken(rest, _why_not(rest))


def next_record(data: NDArray[np.uint8], start: int = 0) -> int | None:
    """Where, in whole lines, the first line is that looks like the start of a record; None where there is none.

    A quality may start with `@`, too, but then no `+` is two lines behind.

    Example:
        >>> next_record(np.frombuffer(b"@@@\\n@b\\nACG\\n+\\n@@@\\n", np.uint8))
        4
    """
    starts = starts_of(data)
    fit = _looks_like_records(data, starts, ends_of(data, starts))
    found = np.flatnonzero(fit & (starts[: len(fit)] >= start))
    return int(starts[found[0]]) if len(found) else None


def cut_fastq(file: InputFile, starts: Iterable[int], longest: int) -> list[int]:
    """Find the first record behind each of the starts, in a plain file.

    Args:
        file: The file.
        starts: Where it should be cut, increasing.
        longest: How far behind to look.
    """
    cuts = set()
    for start in starts:
        size = 1 << 16
        while True:
            stop = min(file.size, start - 1 + size)
            data = np.concatenate(list(read_bytes(file, start - 1, stop)))
            newlines = np.flatnonzero(data == 10)
            if len(newlines):
                last = len(data) if stop == file.size else newlines[-1] + 1
                whole = data[newlines[0] + 1 : last]
                found = next_record(whole) if len(whole) else None
                if found is not None:
                    cuts.add(start + int(newlines[0]) + found)
                    break
            if stop == file.size or size > 4 * longest:
                break
            size *= 4
    return sorted(cuts)


def _looks_like_records(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which lines start four that are a record: bool [lines - 3]."""
    first = starts[:-1]
    lengths = ends - first
    count = max(0, len(first) - 3)
    if not count:
        return np.zeros(0, np.bool_)
    # An empty line has no first byte: that of the next line is not its own.
    begins = np.where(lengths > 0, data[np.minimum(first, len(data) - 1)], 0)
    return np.asarray(
        (begins[:count] == _AT) & (begins[2 : count + 2] == _PLUS) & (lengths[1 : count + 1] == lengths[3 : count + 3]),
        np.bool_,
    )


def _records(run: Run, letters: Letters, phred: int, whole_header: bool) -> Generator[Head | Bases, None, Run | None]:
    """The records of a run; returns the lines behind the last whole one, or None."""
    data = run.data
    starts = starts_of(data)
    ends = ends_of(data, starts)
    fit = _looks_like_records(data, starts, ends)
    kinds = letters.tables[2][data]
    wrong_letters = np.concatenate([np.zeros(1, np.int64), np.cumsum(kinds != LETTER)])
    wrong_quality = np.concatenate([np.zeros(1, np.int64), np.cumsum((data < phred) | (data > _LAST_QUALITY))])
    fields = letters.numbers(data)
    line = 0
    while line < len(fit):
        if not fit[line]:
            later = np.flatnonzero(fit[line:])
            if not len(later):
                break
            until = line + int(later[0])
            part = _part(run, starts, line, until)
            if (part.data > 32).any():
                yield from _broken(part, _why_not(part))
            line = until
        begin, bases, bases_end = (int(starts[line]), int(starts[line + 1]), int(ends[line + 1]))
        quality, quality_end = int(starts[line + 3]), int(ends[line + 3])
        number = None if run.line is None else run.line + line
        yield read_header(data[begin:bases], run.offset + begin, number, whole_header)
        place, problem = "", None
        if wrong_letters[bases_end] > wrong_letters[bases]:
            at = bases + int(np.argmax(kinds[bases:bases_end] != LETTER))
            place = place_of(run.offset + at, None if number is None else number + 1)
            problem = strange(int(data[at]))
        elif wrong_quality[quality_end] > wrong_quality[quality]:
            values = data[quality:quality_end]
            at = quality + int(np.argmax((values < phred) | (values > _LAST_QUALITY)))
            place = place_of(run.offset + at, None if number is None else number + 3)
            problem = f"0x{int(data[at]):02x} is no quality, which is {chr(phred)} to ~"
        yield Bases(
            arrays={
                **{name: values[bases:bases_end] for name, values in fields.items()},
                "quality": data[quality:quality_end] - np.uint8(phred) if problem is None else data[:0],
            },
            raw=data[bases : int(starts[line + 4])],
            place=place,
            problem=problem,
        )
        line += 4
    return _part(run, starts, line, len(starts) - 1) if line < len(starts) - 1 else None


def _part(run: Run, starts: NDArray[np.int64], line: int, until: int) -> Run:
    return Run(
        offset=run.offset + int(starts[line]),
        line=None if run.line is None else run.line + line,
        data=run.data[starts[line] : starts[until]],
    )


def _broken(part: Run, problem: str) -> Iterator[Head | Bases]:
    yield Head(id=None, text="", offset=part.offset, line=part.line, raw=part.data, problem=problem)


def _why_not(part: Run) -> str:
    """Why lines are no record."""
    starts = starts_of(part.data)
    lengths = ends_of(part.data, starts) - starts[:-1]
    if part.data[0] != _AT:
        return "it does not begin with a record, whose first line starts with '@'"
    if len(lengths) < 4:
        return f"the record ends after {len(lengths)} of its 4 lines"
    if not lengths[2] or part.data[starts[2]] != _PLUS:
        return "the third line of the record does not start with '+': records have 4 lines"
    return f"the record has {lengths[1]} letters and {lengths[3]} qualities"
