"""Where the values lie in the message of an Arrow record batch of one column, without a call into Arrow for it.

A message is the mark 0xFFFFFFFF, the size of its metadata, the metadata, and the body; the metadata is a flatbuffer of
the tables `Message` and `RecordBatch` (Arrow columnar format, "Encapsulated message format", Message.fbs). What is read
here was checked against a checksum, and still every position is checked before it is followed.
"""

from __future__ import annotations

import struct

_CONTINUES = 0xFFFFFFFF
_PREFIX_BYTES = 8
# Numbers of fields in their tables.
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _BATCH_LENGTH, _BATCH_BUFFERS, _BATCH_COMPRESSION = 1, 2, 0, 2, 3
_RECORD_BATCH = 3


def record_batch_values(message: memoryview) -> tuple[int, int, memoryview]:
    """Rows of a record batch of one column, and where its last buffer, which holds the values, begins, and its bytes.

    Raises:
        ValueError, struct.error: It is not such a message.
    """
    mark, metadata_bytes = struct.unpack_from("<Ii", message)
    if mark != _CONTINUES or not 0 < metadata_bytes <= len(message) - _PREFIX_BYTES:
        raise ValueError("it is not an Arrow message")
    metadata = message[_PREFIX_BYTES : _PREFIX_BYTES + metadata_bytes]
    batch = _record_batch(metadata)
    length = _field(metadata, batch, _BATCH_LENGTH)
    buffers = _field(metadata, batch, _BATCH_BUFFERS)
    if buffers is None:
        raise ValueError("it has no values")
    table = _follow(metadata, buffers)
    (count,) = struct.unpack_from("<I", metadata, table)
    if not count:
        raise ValueError("it has no values")
    offset, size = struct.unpack_from("<qq", metadata, table + 4 + 16 * (count - 1))
    body = message[_PREFIX_BYTES + metadata_bytes :]
    if offset < 0 or size < 0 or offset + size > len(body):
        raise ValueError("it has values outside its body")
    rows = 0 if length is None else struct.unpack_from("<q", metadata, length)[0]
    return rows, _PREFIX_BYTES + metadata_bytes + offset, body[offset : offset + size]


def batch_header(metadata: memoryview) -> tuple[int, bool]:
    """Rows of a record batch, and whether it is compressed, from the metadata of its message.

    Raises:
        ValueError: It is not such metadata.
    """
    try:
        batch = _record_batch(metadata)
        length = _field(metadata, batch, _BATCH_LENGTH)
        rows = 0 if length is None else struct.unpack_from("<q", metadata, length)[0]
        return int(rows), _field(metadata, batch, _BATCH_COMPRESSION) is not None
    except struct.error:
        raise ValueError("its metadata is not a flatbuffer") from None


def _record_batch(metadata: memoryview) -> int:
    """The position of the record batch in the metadata of a message."""
    root = _follow(metadata, 0)
    kind = _field(metadata, root, _MESSAGE_HEADER_TYPE)
    header = _field(metadata, root, _MESSAGE_HEADER)
    # unpack_from, like an index, but with an error of its own beyond the end.
    if kind is None or header is None or struct.unpack_from("<B", metadata, kind)[0] != _RECORD_BATCH:
        raise ValueError("it is not a record batch")
    return _follow(metadata, header)


def _follow(metadata: memoryview, place: int) -> int:
    """The position that an offset at `place` points to."""
    (distance,) = struct.unpack_from("<I", metadata, place)
    return place + int(distance)


def _field(metadata: memoryview, table: int, number: int) -> int | None:
    """The position of a field of a table; None where it has its default."""
    (back,) = struct.unpack_from("<i", metadata, table)
    entries = table - back
    if entries < 0:
        raise ValueError("its metadata is not a flatbuffer")
    size, _ = struct.unpack_from("<HH", metadata, entries)
    entry = 4 + 2 * number
    if entry + 2 > size:
        return None
    (distance,) = struct.unpack_from("<H", metadata, entries + entry)
    return table + distance if distance else None
