"""Making a version: its tables, its fingerprint and its file. The one place where what was written becomes visible."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from streamseq._version import __version__
from streamseq.core.errors import StoreError
from streamseq.storage.checksum import to_hex
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.place import FOLDERS, GROUP_FILE, Place, version_name
from streamseq.storage.shards.zarr_shard import GROUP_DOCUMENT
from streamseq.storage.versions.attachments import write_attachments
from streamseq.storage.versions.rows import Pieces
from streamseq.storage.versions.table import write_tables
from streamseq.storage.versions.version import AttachmentFile, Shard, Tables, Version, format_version, parse_version


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Added:
    """What a version adds to the tables before it.

    Args:
        ids: The ids of the new sequences, a large string array `[M]`.
        attrs: Their attributes as JSON text, a large string array `[M]`.
        pieces: int64 `[P, 3]`, pieces of new and older sequences: the number of the sequence in the version, the first
            row, the length; sorted by sequence, those of one in the order of its timesteps.
    """

    ids: pa.Array
    attrs: pa.Array
    pieces: Pieces


def commit_version(
    place: Place,
    number: int,
    layout: ShardLayout,
    shards: Sequence[Shard],
    tables: Sequence[Tables],
    added: Added,
    *,
    fingerprint: str,
    operation: str,
    job: str | None,
    attachments: Mapping[str, bytes | AttachmentFile] | None = None,
) -> bool:
    """Make a version appear, unless there is one of that number; return whether it did.

    Everything the version names is on the disk before it, and the version is when this returns True.

    Args:
        place: Where the store lies.
        number: The number of the version.
        layout: How its shards are cut and encoded.
        shards: All its shards, published.
        tables: The tables of versions before that it goes on with.
        added: What it adds to them.
        fingerprint: The digest of its contents.
        operation: One of `OPERATIONS`.
        job: What wrote it, for the log; None: the name of the program.
        attachments: What is said of it beside, by name: contents, or the files of a version before that are kept.

    Raises:
        StoreError: This cannot be done where the store lies.
    """
    commit_id = uuid.uuid4().hex[:16]
    place.make_folders()
    staging = place.staging(commit_id)
    committed = False
    try:
        if layout.backend == "zarr":
            _make_groups(place, staging)
        new = write_tables(place, staging, commit_id, added.ids, added.attrs, added.pieces, _count(tables))
        attached = write_attachments(place, staging, commit_id, attachments or {})
        version = Version(
            number=number,
            writer=commit_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"streamseq {__version__}",
            operation=operation,
            job=program() if job is None else job,
            layout=layout,
            shards=tuple(shards),
            tables=(*tables, new),
            num_sequences=_count(tables) + len(added.ids),
            num_timesteps=sum(shard.num_timesteps for shard in shards),
            fingerprint=fingerprint,
            attachments=attached,
        )
        committed = place.put_if_absent(version_name(number), format_version(version), staging)
    finally:
        # An interrupt, or a disk that fails, can come after the version is there.
        if not (committed or place.undecided(sys.exception()) or _may_be_committed(place, number, commit_id)):
            for kind in ("sequences", "pieces", "index"):
                place.remove(f"tables/{commit_id}.{kind}.arrow")
            for number in range(len(attachments or {})):
                place.remove(f"tables/{commit_id}.attachment-{number}")
        place.end_staging(commit_id)
    return committed


def fingerprint_of(before: str, layout: ShardLayout, shards: Sequence[Shard], added: Added) -> str:
    """The digest of a version: of the digest before it ("" where there is none), and of what it adds."""
    document = {
        "before": before,
        "fields": [[name, field.dtype.name, field.shape] for name, field in layout.fields.items()],
        "shards": [
            [shard.num_timesteps, {name: to_hex(stored.crc32c) for name, stored in shard.fields.items()}]
            for shard in shards
        ],
        "ids": _text_digest(added.ids),
        "attrs": _text_digest(added.attrs),
        "pieces": hashlib.sha256(added.pieces.astype("<i8").tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def program() -> str:
    """The name of the running program, as the log of a store has it."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return "python" if name in ("", "-", "-c") else name


def _count(tables: Sequence[Tables]) -> int:
    return sum(entry.sequences.num_rows for entry in tables)


def _text_digest(texts: pa.Array) -> str:
    """SHA-256 of the lengths in bytes of all texts, and of the texts."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts):
        return hashlib.sha256().hexdigest()
    digest = hashlib.sha256(np.diff(offsets).astype("<i8").tobytes())
    digest.update(memoryview(texts.buffers()[2] or b"")[offsets[0] : offsets[-1]])
    return digest.hexdigest()


def _may_be_committed(place: Place, number: int, commit_id: str) -> bool:
    """Whether the version is there and this commit made it, or that cannot be found out."""
    name = version_name(number)
    try:
        return parse_version(place.read(name), number, f"version file {name} of {place.uri}").writer == commit_id
    except FileNotFoundError:
        return False
    except (StoreError, OSError):
        return True


def _make_groups(place: Place, staging: Path) -> None:
    """Let plain Zarr open the store: every folder that it would list is a group."""
    for folder in ("", *FOLDERS):
        name = f"{folder}/{GROUP_FILE}".lstrip("/")
        if not place.exists(name):
            place.put_if_absent(name, GROUP_DOCUMENT, staging)
