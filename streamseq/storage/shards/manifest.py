"""The manifest of a shard: where the chunks of each field lie in its file, and their checksums; one for both backends.

Its own checksum is in the version file: a chunk, or a whole file, that was swapped with an intact other one is found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamseq.core.errors import CorruptionError
from streamseq.storage.checksum import crc32c, to_hex
from streamseq.storage.layout import ShardLayout
from streamseq.storage.strict_json import parse_json
from streamseq.storage.versions.version import Shard

_CRC = re.compile(r"[0-9a-f]{8}")
# What an entry of a chunk takes at most in the file, a field beside its chunks, and the rest.
_CHUNK_BYTES, _FIELD_BYTES, _DOCUMENT_BYTES = 64, 256, 1024
# Before and after the chunks of a file: its schema, and a table that says where they lie.
_ENDS_BYTES = 1 << 16
# What a chunk takes at most beside its values, and how often the bytes of its values go into those that are stored.
_FRAME_BYTES = 1 << 16
_MOST_COMPRESSED = {"none": 1, "lz4": 256, "bitshuffle": 256, "zstd": 1 << 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldManifest:
    """Where the chunks of one field lie in its file.

    Args:
        chunks: Of each chunk, in order: its offset, its bytes, and their crc32c.
        ends_crc32c: The crc32c of what lies before the first chunk and after the last one.

    Where a chunk, and the end of the file, are followed by their crc32c, that is part of neither.
    """

    chunks: tuple[tuple[int, int, int], ...]
    ends_crc32c: int


def manifest_document(fields: Mapping[str, FieldManifest]) -> dict[str, Any]:
    """Return a manifest as it is written down.

    Example:
        >>> manifest_document({"x": FieldManifest(chunks=((0, 12, 5),), ends_crc32c=7)})
        {'chunks': {'x': [[0, 12, '00000005']]}, 'ends_crc32c': {'x': '00000007'}}
    """
    return {
        "chunks": {
            name: [[offset, size, to_hex(crc)] for offset, size, crc in field.chunks] for name, field in fields.items()
        },
        "ends_crc32c": {name: to_hex(field.ends_crc32c) for name, field in fields.items()},
    }


def manifest_bytes(document: Mapping[str, Any]) -> bytes:
    """Return a document that holds a manifest as the content of its file."""
    return json.dumps(document, separators=(",", ":")).encode()


def max_manifest_bytes(layout: ShardLayout, shard: Shard) -> int:
    """Bytes that the file with the manifest of a shard has at most."""
    chunks = sum(-(-shard.num_timesteps // steps) for steps in layout.chunk_timesteps.values())
    return _DOCUMENT_BYTES + len(layout.fields) * _FIELD_BYTES + chunks * _CHUNK_BYTES


def parse_manifest(
    content: bytes, keys: tuple[str, ...], gap: int, layout: ShardLayout, shard: Shard, where: str
) -> dict[str, FieldManifest]:
    """Read the file with a manifest, believing nothing that was not checked.

    Args:
        content: The content of the file, no longer than `max_manifest_bytes`.
        keys: What leads to the manifest in the document.
        gap: Bytes after each chunk and at the end of the file that are a crc32c.
        layout: How the shards of the store are cut.
        shard: What the version file says of the shard.
        where: What to call the shard in an error.

    Raises:
        CorruptionError: The checksum is not that of the version file, or the content breaks a rule of the format.
    """
    found = crc32c(content)
    if found != shard.manifest_crc32c:
        raise CorruptionError(
            f"{where} has a manifest with crc32c {to_hex(found)} and was written with "
            f"{to_hex(shard.manifest_crc32c)}: restore the shard"
        )
    try:
        document = parse_json(content)
        for key in keys:
            document = document[key]
        return {
            name: _field(document["chunks"][name], document["ends_crc32c"][name], gap, name, layout, shard)
            for name in layout.fields
        }
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CorruptionError(
            f"{where} has a manifest that breaks the format: {reason}; it was not written by streamseq"
        ) from None


def _field(entries: Any, ends: Any, gap: int, name: str, layout: ShardLayout, shard: Shard) -> FieldManifest:
    steps = layout.chunk_timesteps[name]
    num_chunks, num_bytes = -(-shard.num_timesteps // steps), shard.fields[name].num_bytes
    _require(isinstance(entries, list) and len(entries) == num_chunks, f"field {name!r} has {num_chunks} chunks")
    chunks = tuple((_count(offset), _count(size), _crc(crc)) for offset, size, crc in entries)
    whole = min(steps, shard.num_timesteps) * layout.fields[name].step_bytes
    most, times = whole + whole // 64 + _FRAME_BYTES, _MOST_COMPRESSED[layout.codecs[name]]
    # A bool can be a bit, and the last chunk can be short.
    least, end = whole // 8 // times, chunks[0][0]
    for number, (offset, size, _) in enumerate(chunks):
        _require(
            offset == end and 1 <= size <= most, f"chunk {number} of field {name!r} lies at {offset}, {size} bytes"
        )
        _require(
            size >= least or number == num_chunks - 1,
            f"chunk {number} of field {name!r} has {size} bytes for {whole} of values",
        )
        end = offset + size + gap
    outside = num_bytes - sum(size + gap for _, size, _ in chunks)
    _require(end + gap <= num_bytes, f"field {name!r} ends at {end} in a file of {num_bytes} bytes")
    _require(
        outside <= _ENDS_BYTES + num_chunks * _CHUNK_BYTES, f"field {name!r} has {outside} bytes beside its chunks"
    )
    return FieldManifest(chunks=chunks, ends_crc32c=_crc(ends))


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is not a count")
    return value


def _crc(value: object) -> int:
    if not isinstance(value, str) or not _CRC.fullmatch(value):
        raise ValueError(f"{value!r} is not a crc32c")
    return int(value, 16)
