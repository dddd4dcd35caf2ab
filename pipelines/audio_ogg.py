"""Whether an OGG file is whole: libsndfile passes over damaged pages, and takes the last one there is for the end."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from .file_bytes import FileError
from .files import InputFile

# A page has a header of 27 bytes, a table of the lengths of up to 255 segments, and these segments (RFC 3533).
_HEADER = 27
_CHECKSUM = slice(22, 26)
_LAST_PAGE = 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_ogg(file: InputFile, opened: BinaryIO) -> None:
    """Check the checksum of every page, and that the last one says that it is.

    Args:
        file: The file.
        opened: It, at its start.

    Raises:
        FileError: A page is damaged or missing.
        OSError: It cannot be read.
    """
    at = 0
    last = False
    while at < file.size:
        header = _exactly(opened, _HEADER)
        table = _exactly(opened, header[26]) if len(header) == _HEADER else b""
        body = _exactly(opened, sum(table))
        page = header + table + body
        if len(header) == _HEADER and header[:4] != b"OggS":
            raise FileError(file, "the OGG data is damaged: no page starts here", f"byte {at}")
        if len(header) < _HEADER or len(page) < _HEADER + header[26] + sum(table):
            raise FileError(file, "the OGG data ends early, within a page", f"byte {file.size}")
        blank = page[: _CHECKSUM.start] + bytes(4) + page[_CHECKSUM.stop :]
        if checksum(blank) != int.from_bytes(page[_CHECKSUM], "little"):
            raise FileError(
                file, "the OGG data is damaged: the page that starts here has another checksum", f"byte {at}"
            )
        last = bool(header[5] & _LAST_PAGE)
        at += len(page)
    if not last:
        raise FileError(file, "the OGG data ends early: its last page is missing", f"byte {file.size}")


def checksum(data: bytes) -> int:
    """The checksum of RFC 3533: a CRC of 32 bits with zlib's polynomial, the other way round and starting from 0.

    Example:
        >>> hex(checksum(b"\\x01"))
        '0x4c11db7'
    """
    reflected = zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def _exactly(opened: BinaryIO, size: int) -> bytes:
    """So many bytes, less only at the end of the file."""
    parts = []
    while size and (part := opened.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
