"""Attachments: files that say something of a version beside its contents, such as statistics of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from streamseq.core.errors import CorruptionError, StoreError
from streamseq.storage.checksum import crc32c
from streamseq.storage.places import commit
from streamseq.storage.places.place import Place
from streamseq.storage.versions.version import MAX_ATTACHMENT_BYTES, AttachmentFile, attachment_name


def write_attachments(
    place: Place, staging: Path, commit_id: str, attachments: Mapping[str, bytes | AttachmentFile]
) -> dict[str, AttachmentFile]:
    """Write and publish those that are new; return what the version says of all.

    Args:
        place: Where the store lies.
        staging: The folder to write them in.
        commit_id: The id of the commit.
        attachments: By name, their contents; or what an earlier version says of one, which is kept.

    Raises:
        StoreError: One is too large.
        ValueError: A name is none that an attachment can have.
    """
    files = {}
    for number, (name, content) in enumerate(attachments.items()):
        attachment_name(name)
        if isinstance(content, AttachmentFile):
            files[name] = content
            continue
        if len(content) > MAX_ATTACHMENT_BYTES:
            raise StoreError(f"{name} of a version has at most {MAX_ATTACHMENT_BYTES:,} bytes, got {len(content):,}")
        path = staging / f"{commit_id}.attachment-{number}"
        commit.write_durably(path, memoryview(content))
        place.publish_table(path)
        files[name] = AttachmentFile(name=path.name, num_bytes=len(content), crc32c=_crc(content))
    return files


def read_attachment(place: Place, name: str, file: AttachmentFile) -> bytes:
    """Read one, and check it.

    Raises:
        CorruptionError: It is not what was written.
    """
    where = f"{name} of {place.uri} ({file.name})"
    try:
        content = place.read(f"tables/{file.name}")
        if place.copies and _crc(content) != file.crc32c:  # it may be the copy that is broken
            place.forget(f"tables/{file.name}")
            content = place.read(f"tables/{file.name}")
    except FileNotFoundError:
        raise CorruptionError(f"{where} is missing: restore it from a copy") from None
    if len(content) != file.num_bytes or _crc(content) != file.crc32c:
        raise CorruptionError(
            f"{where} fails its checksum: restore it from a copy, or ss.repair makes a version without"
        )
    return content


def _crc(content: bytes) -> int:
    return crc32c(np.frombuffer(content, np.uint8))
