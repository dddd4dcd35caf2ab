"""Reading the bytes of one file in pieces, plain, gzip or Zstandard, sure that it is the file that was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import fsspec
import fsspec.core
import numpy as np
from numpy.typing import NDArray

from streamseq.etl import SourceError

from .files import InputFile, mark_of

# What is read and decoded at once.
PIECE_BYTES = 4 << 20
# What is kept of a file that is read to its end before any of it is handed on; a larger one is read twice.
HELD_BYTES = 64 << 20

_CODECS = {".gz": "gzip", ".bgz": "gzip", ".zst": "zstd"}
#: How the names of compressed files end, in small letters.
CODEC_ENDS = tuple(_CODECS)


class FileError(SourceError):
    """A file that cannot be read as it should.

    Args:
        file: The file.
        reason: Why, in a few words.
        place: Where in it, such as "byte 1024"; empty where it is about the whole file.

    Example:
        >>> from streamseq_pipelines.files import InputFile
        >>> file = InputFile(address="/logs/a.gz", id="a.gz", size=90, modified=1)
        >>> str(FileError(file, "the gzip data ends early", "byte 90"))
        "'/logs/a.gz', byte 90: the gzip data ends early"
    """

    def __init__(self, file: InputFile, reason: str, place: str = "") -> None:
        super().__init__(f"{file.address!r}, {place}: {reason}" if place else f"{file.address!r} {reason}")
        self.reason = reason
        self.place = place


def codec_of(name: str) -> str | None:
    """How a file is compressed, by the end of its name: `.gz`, `.bgz` and `.zst`; None where it is plain.

    Example:
        >>> [codec_of(name) for name in ("a.txt", "a.txt.gz", "A.ZST")]
        [None, 'gzip', 'zstd']
    """
    codec = _CODECS.get(name[name.rfind(".") :].lower())
    # A hidden file that is called nothing else has no ending.
    return codec if codec is None or os.path.splitext(name)[1] else None


def read_bytes(file: InputFile, start: int = 0, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes `[start, stop)` of a plain file, or all decoded ones of a compressed one, in pieces.

    Args:
        file: The file.
        start: The first byte; 0 for a compressed file.
        stop: One past the last byte; None: the end.

    Raises:
        FileError: It cannot be read or decoded, or is not the file that was found any more. What was yielded before
            is what it says.
    """
    try:
        if codec_of(file.address) is not None:
            yield from _decoded(file)
        elif file.modified is not None:
            yield from _plain_here(file, start, file.size if stop is None else stop)
        else:
            yield from _plain_there(file, start, file.size if stop is None else stop)
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror or error}") from error


def read_small(file: InputFile) -> NDArray[np.uint8] | None:
    """All bytes of a small plain file of this machine; None of any other, which `read_bytes` reads.

    Raises:
        FileError: It cannot be read, or is not the file that was found any more.
    """
    if file.modified is None or file.size > PIECE_BYTES or codec_of(file.address) is not None:
        return None
    values = np.empty(file.size, np.uint8)
    try:
        opened = os.open(file.address, os.O_RDONLY | os.O_CLOEXEC)
        try:
            count = os.readv(opened, [values.data])
            found = os.fstat(opened)
        finally:
            os.close(opened)
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror or error}") from error
    if (count, found.st_size, found.st_mtime_ns) != (file.size, file.size, file.modified):
        raise _changed(file)
    return values


def read_surely(file: InputFile) -> Iterator[NDArray[np.uint8]]:
    """Yield all bytes of a file in pieces, after it was read to its end once.

    Raises:
        FileError: As `read_bytes`, but before anything is yielded, unless the file changes in this moment.
    """
    return surely(lambda: read_bytes(file))


def surely(read: Callable[[], Iterator[NDArray[Any]]]) -> Iterator[NDArray[Any]]:
    """Yield what a reader yields, after it has come to its end once: what is large is read twice.

    Raises:
        FileError: What the reader raises, but before anything is yielded.
    """
    held: list[NDArray[Any]] = []
    num_bytes = 0
    for piece in read():
        num_bytes += piece.nbytes
        if num_bytes <= HELD_BYTES:
            held.append(piece)
        else:
            held.clear()
    yield from held if num_bytes <= HELD_BYTES else read()


def open_file(file: InputFile) -> BinaryIO:
    """Open a file for reading and seeking, wherever it lies.

    Raises:
        OSError: It cannot be opened.
    """
    if file.modified is not None:
        return open(file.address, "rb", buffering=0)
    return cast("BinaryIO", fsspec.open(file.address, "rb").open())


def check_unchanged(file: InputFile) -> None:
    """Check that a file is still the one that was found.

    Raises:
        FileError: Its size or its time of modification is another one.
        OSError: It is gone.
    """
    if file.modified is not None:
        found = os.stat(file.address)
        same = (found.st_size, found.st_mtime_ns) == (file.size, file.modified)
    else:
        system, path = fsspec.core.url_to_fs(file.address)
        system.invalidate_cache(path)
        info = system.info(path)
        same = (info.get("size"), mark_of(info)) == (file.size, file.mark)
    if not same:
        raise _changed(file)


def _plain_here(file: InputFile, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    with open(file.address, "rb", buffering=0) as opened:
        if start:
            opened.seek(start)
        position = start
        while position < stop:
            values = np.empty(min(PIECE_BYTES, stop - position), np.uint8)
            count = opened.readinto(values.data)
            if not count:
                raise _changed(file)
            position += count
            found = os.fstat(opened.fileno())
            if (found.st_size, found.st_mtime_ns) != (file.size, file.modified):
                raise _changed(file)
            yield values[:count]


def _plain_there(file: InputFile, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    system, path = fsspec.core.url_to_fs(file.address)
    for begin in range(start, stop, PIECE_BYTES):
        end = min(stop, begin + PIECE_BYTES)
        values = np.frombuffer(system.cat_file(path, start=begin, end=end), np.uint8)
        if len(values) != end - begin:
            raise _changed(file)
        if end == stop:
            check_unchanged(file)
        yield values


def _decoded(file: InputFile) -> Iterator[NDArray[np.uint8]]:
    """The decoded bytes of all members, or frames, of a file."""
    import pyarrow as pa  # here, for it takes longer than a command's help

    codec = codec_of(file.address)
    with open_file(file) as opened, pa.PythonFile(opened, mode="r") as raw:
        stream = pa.CompressedInputStream(raw, codec)
        while True:
            try:
                decoded = stream.read_buffer(PIECE_BYTES)
            except OSError as error:
                raise _damaged(file, opened, str(error)) from error
            if file.modified is not None or not decoded.size:
                check_unchanged(file)
            if not decoded.size:
                return
            yield np.frombuffer(decoded, np.uint8)


def _damaged(file: InputFile, opened: BinaryIO, what: str) -> FileError:
    codec = codec_of(file.address)
    if "runcated" in what:
        return FileError(file, f"the {codec} data ends early: it was cut off", f"byte {file.size}")
    return FileError(file, f"the {codec} data is damaged here or before ({what})", f"byte {opened.tell()}")


def _changed(file: InputFile) -> FileError:
    return FileError(file, "changed while it was ingested: run it again when nobody writes to it")
