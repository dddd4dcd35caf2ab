"""`attach`: a version that is the one before, with more said of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from streamseq.core.errors import VersionConflictError
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.places.place import Place
from streamseq.storage.versions.new_version import Added, commit_version

_NO_TEXT = pa.array([], pa.large_string())
_NOTHING = Added(ids=_NO_TEXT, attrs=_NO_TEXT, pieces=np.empty((0, 3), np.int64))


def attach(place: Place, base: int, attachments: Mapping[str, bytes | None], job: str | None = None) -> int:
    """Commit the version after one: the same contents and fingerprint, and something said of them.

    Args:
        place: Where the store lies.
        base: The newest version, which is spoken of.
        attachments: What is said, by name; None: no longer what was said under the name.
        job: What the log of the store says did it; None: the name of the program.

    Returns:
        The number of the version.

    Raises:
        StoreError: There is no such version.
        VersionConflictError: There is a newer version. Nothing was changed.
    """
    version = DiskStore(place, base).snapshot
    said = {**version.attachments, **attachments}
    if not commit_version(
        place,
        base + 1,
        version.layout,
        version.shards,
        version.tables,
        _NOTHING,
        fingerprint=version.fingerprint,
        operation="attach",
        job=job,
        attachments={name: content for name, content in said.items() if content is not None},
    ):
        raise VersionConflictError(
            f"something is said of the newest version, and {place.uri} has one after {base}: look at that one"
        )
    return base + 1
