"""The version file: everything that a version is, as one checksummed JSON document; writing, reading, validating."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, TypeVar

import numpy as np

from streamseq.core.errors import CorruptionError, StoreError
from streamseq.core.fields import CODECS, Field, check_fields
from streamseq.storage.checksum import crc32c, to_hex
from streamseq.storage.layout import BACKENDS, MAX_CHUNK_BYTES, MAX_SHARD_CHUNKS, ShardLayout
from streamseq.storage.strict_json import is_text, parse_json

FORMAT = "streamseq"
FORMAT_VERSION = 1
OPERATIONS = ("write", "replace", "compact", "repair", "attach")

#: Bytes that a version file has at most: it is held in memory.
MAX_VERSION_BYTES = 1 << 28
#: Bytes that an attachment has at most: it is held in memory, too.
MAX_ATTACHMENT_BYTES = MAX_VERSION_BYTES
#: Bytes of a table's file that have a checksum of their own; the last block has what is left.
BLOCK_BYTES = 1 << 16

_INT64_MAX = 2**63 - 1
_WRITER_ID = re.compile(r"[0-9a-f]{16}")
_SHARD_ID = re.compile(r"[0-9a-f]{16}-[0-9]{6,12}")
_TABLE_FILE = re.compile(r"[0-9a-f]{16}\.(sequences|pieces|index)\.arrow")
_ATTACHMENT = re.compile(r"[a-z][a-z0-9._ -]*", re.IGNORECASE)
_ATTACHMENT_FILE = re.compile(r"[0-9a-f]{16}\.attachment-[0-9]{1,6}")
_CRCS = re.compile(r"([0-9a-f]{8})*")
# What a row of a table takes at least.
_ROW_BYTES = {"sequences": 16, "pieces": 24, "index": 12}
_CRC = re.compile(r"[0-9a-f]{8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPES = {np.dtype(kind).name for kind in "?bBhHiIqQefd"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredField:
    """One field of one shard: the size of its file, and the checksum of all its values, decoded."""

    num_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard: its id, which names its folder, its timesteps and what its fields hold.

    `manifest_crc32c` is the checksum of the file that says where the chunks lie.
    """

    id: str
    num_timesteps: int
    fields: Mapping[str, StoredField]
    manifest_crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """One table: its name in the folder of tables, its rows, its bytes and the checksum of each block of them."""

    name: str
    num_rows: int
    num_bytes: int
    crc32c: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables that one version added.

    Args:
        sequences: Its new sequences: ids and attributes.
        pieces: Pieces of new and older sequences, sorted by the number of the sequence.
        index: The new sequences again, sorted by the hash of their ids.
    """

    sequences: TableFile
    pieces: TableFile
    index: TableFile

    @property
    def files(self) -> dict[str, TableFile]:
        """The three by their names."""
        return {"sequences": self.sequences, "pieces": self.pieces, "index": self.index}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentFile:
    """A file that says something of a version beside its contents: its name in the folder of tables, size, checksum."""

    name: str
    num_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An immutable snapshot of a store: which sequences exist, and in which shards their pieces lie.

    Rows are positions in the concatenation of the shards in order. A version that is written to adds shards at the
    end; one that is compacted or repaired may have others, so that a row means something in its version only.

    Args:
        number: From 1.
        writer: The id of the commit.
        created: When, UTC.
        software: What wrote it.
        operation: How it came to be: "write", "replace" (a job wrote again what it had written), "compact",
            "repair" or "attach" (something was said of it).
        job: What wrote it, in the words of whoever did.
        layout: How its shards are cut and encoded.
        shards: Its shards, in order.
        tables: Its tables, in order.
        num_sequences: N.
        num_timesteps: Timesteps of all shards together.
        fingerprint: The digest of its contents.
        attachments: What is said of the version beside its contents, such as statistics of them, by name.
    """

    number: int
    writer: str
    created: str
    software: str
    operation: str
    job: str
    layout: ShardLayout
    shards: tuple[Shard, ...]
    tables: tuple[Tables, ...]
    num_sequences: int
    num_timesteps: int
    fingerprint: str
    attachments: Mapping[str, AttachmentFile] = dataclass_field(default_factory=dict)


def format_version(version: Version) -> bytes:
    """Write a version as the bytes of its file.

    Raises:
        StoreError: It has more shards than a version file has room for.
    """
    layout = version.layout
    document: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": version.number,
        "writer": version.writer,
        "created": version.created,
        "software": version.software,
        "operation": version.operation,
        "job": version.job,
        "backend": layout.backend,
        "fields": [
            {
                "name": name,
                "dtype": field.dtype.name,
                "shape": list(field.shape),
                "codec": field.codec,
                "stored_codec": layout.codecs[name],
                "chunk_timesteps": layout.chunk_timesteps[name],
            }
            for name, field in layout.fields.items()
        ],
        "shard_timesteps": layout.shard_timesteps,
        "shards": [shard_document(shard) for shard in version.shards],
        "tables": [
            {
                kind: {
                    "file": file.name,
                    "rows": file.num_rows,
                    "bytes": file.num_bytes,
                    "crc32c": "".join(map(to_hex, file.crc32c)),
                }
                for kind, file in tables.files.items()
            }
            for tables in version.tables
        ],
        "sequences": version.num_sequences,
        "timesteps": version.num_timesteps,
        "fingerprint": version.fingerprint,
    }
    if version.attachments:
        document["attachments"] = {
            name: {"file": file.name, "bytes": file.num_bytes, "crc32c": to_hex(file.crc32c)}
            for name, file in version.attachments.items()
        }
    document["crc32c"] = to_hex(_document_crc(document))
    content = json.dumps(document, indent=1).encode()
    if len(content) > MAX_VERSION_BYTES:
        raise StoreError(
            f"a version file has at most {MAX_VERSION_BYTES} bytes, that of {len(version.shards)} shards has "
            f"{len(content)}: write larger shards (shard_bytes)"
        )
    return content


def shard_document(shard: Shard) -> dict[str, Any]:
    """Return what a version file says of a shard."""
    return {
        "id": shard.id,
        "timesteps": shard.num_timesteps,
        "fields": {
            name: {"bytes": stored.num_bytes, "crc32c": to_hex(stored.crc32c)} for name, stored in shard.fields.items()
        },
        "manifest_crc32c": to_hex(shard.manifest_crc32c),
    }


def parse_version(content: bytes, number: int, where: str) -> Version:
    """Read the bytes of a version file, believing nothing that was not checked.

    Args:
        content: The bytes of the file.
        number: The version it is the file of.
        where: What to call it in an error.

    Raises:
        CorruptionError: The checksum does not fit, or the content breaks a rule of the format.
        StoreError: It is not a file of this format, or of a later version of the format.
    """
    try:
        document = parse_json(content)
        found = to_hex(_document_crc(document)) if isinstance(document, dict) else ""
    except ValueError as error:
        raise CorruptionError(
            f"{where} is not JSON: {error}; restore it from a copy, or open another version"
        ) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StoreError(f"{where} does not describe a streamseq store: check the address")
    if document.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{where} has format version {document.get('format_version')!r}, this software reads {FORMAT_VERSION}: "
            f"install the software that wrote it, {document.get('software')!r}, or a later one"
        )
    claimed = document.pop("crc32c", None)
    if claimed != found:
        raise CorruptionError(
            f"{where} has crc32c {found} and says {claimed!r}: restore it from a copy, or open another version"
        )
    try:
        return _version(document, number)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CorruptionError(f"{where} breaks the format: {reason}; it was not written by streamseq") from None


def _document_crc(document: Mapping[str, Any]) -> int:
    """The crc32c of the document without its own, in the one spelling that depends on nothing but the content.

    Raises:
        ValueError: It is nested too deeply to be one of ours.
    """
    content = {name: value for name, value in document.items() if name != "crc32c"}
    try:
        return crc32c(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _version(document: dict[str, Any], number: int) -> Version:
    layout = _layout(document)
    _require(document["version"] == number, f"it is the file of version {document['version']!r}")
    shards = tuple(parse_shard(entry, layout) for entry in _list(document["shards"]))
    tables = tuple(
        Tables(**{kind: _table(entry[kind], kind) for kind in _ROW_BYTES}) for entry in _list(document["tables"])
    )
    num_sequences = _count(document["sequences"])
    num_timesteps = _count(document["timesteps"])
    _require(len({shard.id for shard in shards}) == len(shards), "a shard is listed twice")
    _require(sum(shard.num_timesteps for shard in shards) == num_timesteps, "timesteps and shards disagree")
    _require(sum(entry.sequences.num_rows for entry in tables) == num_sequences, "sequences and tables disagree")
    for entry in tables:
        _require(entry.index.num_rows == entry.sequences.num_rows, "an index has not the sequences of its table")
    return Version(
        number=number,
        writer=_match(_WRITER_ID, document["writer"]),
        created=_text(document["created"]),
        software=_text(document["software"]),
        operation=_operation(document["operation"]),
        job=_text(document["job"]),
        layout=layout,
        shards=shards,
        tables=tables,
        num_sequences=num_sequences,
        num_timesteps=num_timesteps,
        fingerprint=_match(_SHA256, document["fingerprint"]),
        attachments={
            attachment_name(name): _attachment(entry) for name, entry in document.get("attachments", {}).items()
        },
    )


def attachment_name(name: str) -> str:
    """Return a name that an attachment can have.

    Raises:
        ValueError: It is none.
    """
    return _match(_ATTACHMENT, name)


def _attachment(entry: dict[str, Any]) -> AttachmentFile:
    name, num_bytes = _match(_ATTACHMENT_FILE, entry["file"]), _count(entry["bytes"])
    _require(num_bytes <= MAX_ATTACHMENT_BYTES, f"attachment {name} has {num_bytes} bytes")
    return AttachmentFile(name=name, num_bytes=num_bytes, crc32c=_crc(entry["crc32c"]))


def _dtype(value: object) -> str:
    return _checked(str, value, lambda text: text in _DTYPES, f"one of {', '.join(sorted(_DTYPES))}")


def _operation(value: object) -> str:
    return _checked(str, value, lambda text: text in OPERATIONS, f"one of {', '.join(OPERATIONS)}")


def _layout(document: dict[str, Any]) -> ShardLayout:
    backend = document["backend"]
    _require(backend in BACKENDS, f"backend {backend!r}")
    entries = _list(document["fields"])
    names = [_text(entry["name"]) for entry in entries]
    _require(len(set(names)) == len(names), "a field is listed twice")
    fields = check_fields(
        {
            name: Field(_dtype(entry["dtype"]), tuple(_count(size) for size in _list(entry["shape"])), entry["codec"])
            for name, entry in zip(names, entries, strict=True)
        }
    )
    shard_timesteps = _positive(document["shard_timesteps"])
    codecs, chunk_timesteps = {}, {}
    for name, entry in zip(names, entries, strict=True):
        codec = _text(entry["stored_codec"])
        _require(codec in CODECS and (backend, codec) != ("arrow", "bitshuffle"), f"stored codec {codec!r}")
        steps = _positive(entry["chunk_timesteps"])
        _require(steps <= shard_timesteps, f"chunks of {steps} timesteps in shards of {shard_timesteps}")
        _require(steps * fields[name].step_bytes <= MAX_CHUNK_BYTES, f"chunks of {steps} timesteps of field {name!r}")
        codecs[name], chunk_timesteps[name] = codec, steps
    return ShardLayout(
        backend=backend, fields=fields, codecs=codecs, chunk_timesteps=chunk_timesteps, shard_timesteps=shard_timesteps
    )


def parse_shard(entry: dict[str, Any], layout: ShardLayout) -> Shard:
    """Read what a version file says of a shard, believing nothing that was not checked.

    Raises:
        KeyError, TypeError, ValueError: It breaks a rule of the format.
    """
    stored = {
        name: StoredField(num_bytes=_count(value["bytes"]), crc32c=_crc(value["crc32c"]))
        for name, value in entry["fields"].items()
    }
    shard = Shard(
        id=_match(_SHARD_ID, entry["id"]),
        num_timesteps=_positive(entry["timesteps"]),
        fields=stored,
        manifest_crc32c=_crc(entry["manifest_crc32c"]),
    )
    _require(shard.num_timesteps <= layout.shard_timesteps, f"shard {shard.id} is longer than a shard")
    _require(stored.keys() == layout.fields.keys(), f"shard {shard.id} has other fields than the store")
    chunks = sum(-(-shard.num_timesteps // steps) for steps in layout.chunk_timesteps.values())
    _require(chunks <= max(MAX_SHARD_CHUNKS, len(stored)), f"shard {shard.id} has {chunks} chunks")
    return shard


def _table(entry: dict[str, Any], kind: str) -> TableFile:
    name = _match(_TABLE_FILE, entry["file"])
    _require(f".{kind}." in name, f"table {name} is not one of {kind}")
    num_rows, num_bytes = _count(entry["rows"]), _count(entry["bytes"])
    _require(num_rows <= num_bytes // _ROW_BYTES[kind], f"table {name} has {num_rows} rows in {num_bytes} bytes")
    checksums = _match(_CRCS, entry["crc32c"])
    _require(len(checksums) == 8 * -(-num_bytes // BLOCK_BYTES), f"table {name} has not a checksum for each block")
    return TableFile(
        name=name,
        num_rows=num_rows,
        num_bytes=num_bytes,
        crc32c=tuple(np.frombuffer(bytes.fromhex(checksums), ">u4").tolist()),
    )


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


def _checked(kind: type[T], value: object, holds: Callable[[T], bool], rule: str) -> T:
    if type(value) is not kind or not holds(value):
        raise ValueError(f"{value!r} is not {rule}")
    return value


def _list(value: object) -> list[Any]:
    return _checked(list, value, lambda _: True, "a list")


def _text(value: object) -> str:
    return _checked(str, value, is_text, "text")


def _count(value: object) -> int:
    return _checked(int, value, lambda count: 0 <= count <= _INT64_MAX, "a count")


def _positive(value: object) -> int:
    return _checked(int, value, lambda count: 1 <= count <= _INT64_MAX, "a positive count")


def _match(pattern: re.Pattern[str], value: object) -> str:
    return _checked(str, value, lambda text: pattern.fullmatch(text) is not None, f"of the form {pattern.pattern}")


def _crc(value: object) -> int:
    return int(_match(_CRC, value), 16)
