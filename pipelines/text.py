"""Text, or any files, as bytes: each file a sequence of timesteps of one byte, or all of them one sequence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import click
import fsspec.core
import numpy as np
from numpy.typing import NDArray

from streamseq.core.fields import Field
from streamseq.etl import Partition, Piece, Skipped, SourceError, partition_bytes
from streamseq.etl.command import ingest_command
from streamseq.etl.source import ON_ERROR

from .files import InputFile, find_files

# Large files are read in pieces of this size: what a task holds in memory.
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """Bytes `[start, stop)` of a file."""

    file: InputFile
    start: int
    stop: int


class TextSource:
    """Files as sequences of bytes: field `x`, uint8, one byte a timestep.

    Files are taken in the order of `paths`, and within a folder or glob sorted; each file once. Its id is its path
    relative to the folder that was named, to the part of a glob before its first `*`, or, of files that were named
    themselves, to the folder that all of those have in common. Hidden files in folders are left out, and empty files
    are reported as skipped.

    Args:
        paths: Files, folders and globs, as paths or fsspec URLs.
        one_sequence: All files end to end are one sequence.
        id: The id of the one sequence.
        patterns: Of folders, take only files whose name, or path in the folder, matches one of these globs.
        on_error: What happens at a file that cannot be read, or that changes while it is read: "fail", or "skip" and
            report it. "quarantine" is the same: a whole file stays where it is. A file larger than a partition that
            changes fails the job in any case: parts of it are written.

    Raises:
        TypeError: `paths` is a string.
        ValueError: There is no path, `on_error` has another value, or an id is given for many sequences.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_bytes(b"one")
        ...     source = TextSource([folder])
        ...     [piece] = source.read(source.partitions(1000)[0])
        >>> piece.id, piece.arrays["x"].tobytes()
        ('a.txt', b'one')
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        one_sequence: bool = False,
        id: str | None = None,
        patterns: Sequence[str] = (),
        on_error: str = "fail",
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths is a list, got {paths!r}: put it in a list")
        if not paths:
            raise ValueError("at least one file, folder or glob is named, got none")
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if id is not None and not one_sequence:
            raise ValueError(f"an id names the one sequence of all files, got {id!r} for many: ask for one sequence")
        if id == "":
            raise ValueError("an id has at least one character, got an empty one")
        self._paths = tuple(os.fspath(path) for path in paths)
        self._id = (id or "text") if one_sequence else None
        self._patterns = tuple(patterns)
        self._skip = on_error != "fail"

    @property
    def threads(self) -> bool:
        """True: its work is input."""
        return True

    @property
    def fields(self) -> Mapping[str, Field]:
        """One field: `x`, uint8."""
        return {"x": Field("uint8")}

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Put files together up to a partition's size; a file that fits in one is not cut.

        Raises:
            FileNotFoundError: A path stands for no file.
            SourceError: Something cannot be read and is not to be skipped, two files have one id, or all are empty.
        """
        found = find_files(self._paths, self._patterns, skip=self._skip)
        sizes = [item.size for item in found if isinstance(item, InputFile)]
        if not any(sizes):
            raise SourceError(_nothing(found))
        target = partition_bytes(sum(sizes), target_bytes)
        packed: list[Partition] = []
        content: list[_Span | Skipped] = []
        filled = 0
        begun = False

        def close() -> None:
            nonlocal filled, begun
            first = next((item for item in content if isinstance(item, _Span)), None)
            goes_on = first is not None and (begun if self._id else first.start > 0)
            continues = (self._id or first.file.id) if first is not None and goes_on else None
            begun = begun or first is not None
            packed.append(Partition(num_bytes=filled, content=tuple(content), continues=continues))
            content.clear()
            filled = 0

        for item in found:
            if isinstance(item, Skipped):
                content.append(item)
                continue
            problem = _unreadable(item) if item.size > target else None
            if problem is not None and not self._skip:
                raise SourceError(problem)
            if problem is not None or not item.size:
                content.append(Skipped(what=item.address, reason=problem or "empty"))
                continue
            start = 0
            while start < item.size:
                if filled and filled + item.size - start > target:
                    close()
                stop = min(item.size, start + target)
                content.append(_Span(file=item, start=start, stop=stop))
                filled += stop - start
                start = stop
        if content:
            close()
        return packed

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield the bytes of a partition, in pieces of a few MiB."""
        for item in partition.content:
            if isinstance(item, Skipped):
                yield item
                continue
            id = self._id or item.file.id
            whole = item.stop - item.start == item.file.size
            if not (self._skip and whole):
                for values in _read(item):
                    yield Piece(id=id, arrays={"x": values})
                continue
            try:
                # All of the file before any of it is handed on, for what is handed on cannot be taken back.
                pieces = list(_read(item))
            except SourceError as error:
                yield Skipped(what=item.file.address, reason=str(error), num_bytes=item.file.size)
                continue
            for values in pieces:
                yield Piece(id=id, arrays={"x": values})


def _read(span: _Span) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a span in pieces, sure that they are those of the file that was found."""
    address = span.file.address
    try:
        yield from _read_here(span) if span.file.modified is not None else _read_there(span)
    except OSError as error:
        raise SourceError(f"{address!r} cannot be read: {error.strerror or error}") from error


def _read_here(span: _Span) -> Iterator[NDArray[np.uint8]]:
    with open(span.file.address, "rb", buffering=0) as file:
        if span.start:
            file.seek(span.start)
        position = span.start
        while position < span.stop:
            values = np.empty(min(_PIECE_BYTES, span.stop - position), np.uint8)
            count = file.readinto(values.data)
            if not count:
                raise _changed(span.file)
            position += count
            if position == span.stop:
                _check_same(span.file, os.fstat(file.fileno()))
            yield values[:count]


def _read_there(span: _Span) -> Iterator[NDArray[np.uint8]]:
    system, path = fsspec.core.url_to_fs(span.file.address)
    for start in range(span.start, span.stop, _PIECE_BYTES):
        stop = min(span.stop, start + _PIECE_BYTES)
        values = np.frombuffer(system.cat_file(path, start=start, end=stop), np.uint8)
        if len(values) != stop - start:
            raise _changed(span.file)
        yield values


def _check_same(file: InputFile, found: os.stat_result) -> None:
    if (found.st_size, found.st_mtime_ns) != (file.size, file.modified):
        raise _changed(file)


def _changed(file: InputFile) -> SourceError:
    return SourceError(f"{file.address!r} changed while it was ingested: run it again when nobody writes to it")


def _unreadable(file: InputFile) -> str | None:
    """What is wrong with a large file, found before parts of it are written."""
    try:
        next(_read(_Span(file=file, start=0, stop=1)))
    except SourceError as error:
        return str(error)
    return None


def _nothing(found: Sequence[InputFile | Skipped]) -> str:
    empty = [item.address for item in found if isinstance(item, InputFile)]
    if not empty:
        reasons = ", ".join(f"{item.what}: {item.reason}" for item in found[:1] if isinstance(item, Skipped))
        return f"no file can be read ({reasons}): there is nothing to ingest"
    if len(found) == 1:
        return f"{empty[0]!r} is empty: there is nothing to ingest"
    return (
        f"all files that can be read are empty, {empty[0]!r} is the first of {len(empty)}: there is nothing to ingest"
    )


@click.command("text")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--one-sequence", is_flag=True, help="All files, end to end in order, are one sequence.")
@click.option("--id", metavar="NAME", help="The id of the one sequence.  [default: text]")
@click.option(
    "--pattern",
    "patterns",
    metavar="GLOB",
    multiple=True,
    help="Of folders, take only files whose name or path in the folder matches, such as '*.py'. Can be repeated.",
)
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="fail",
    show_default=True,
    help="What happens at a file that cannot be read: fail, or skip and report it; quarantine does the same.",
)
@ingest_command
def command(
    sources: tuple[str, ...], one_sequence: bool, id: str | None, patterns: tuple[str, ...], on_error: str
) -> TextSource:
    """Ingest files as sequences of bytes (field x, uint8).

    SOURCE is a file, a folder or a glob, as a path or an fsspec URL. Each file is a sequence, whose id is its path
    relative to the folder that was named. Hidden files in folders are left out.
    """
    return TextSource(sources, one_sequence=one_sequence, id=id, patterns=patterns, on_error=on_error)
