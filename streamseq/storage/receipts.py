"""From receipts to a version: the one place where what was written becomes visible."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from streamseq._version import __version__
from streamseq.core.errors import StoreError, VersionConflictError
from streamseq.storage import commit
from streamseq.storage.checksum import to_hex
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.layout import ShardLayout
from streamseq.storage.location import StoreFolder, local_path
from streamseq.storage.rows import Pieces, merge_pieces
from streamseq.storage.shard_writer import Receipt, agreed_attrs
from streamseq.storage.table import PIECES, SEQUENCES, write_table
from streamseq.storage.version import Shard, Tables, Version, format_version
from streamseq.storage.zarr_shard import GROUP_DOCUMENT


def commit_receipts(
    root: str | os.PathLike[str],
    layout: ShardLayout,
    receipts: Sequence[Receipt],
    base_version: int = 0,
    job: str | None = None,
) -> int:
    """Make what the receipts say the next version of a store.

    Args:
        root: The root folder of the store.
        layout: The layout that all of it was written with.
        receipts: The receipts, in the order that their timesteps have. An id in several of them is one sequence, whose
            pieces follow each other in this order; an id that the base version has goes on.
        base_version: The version that is added to, 0 where there is none yet. Without receipts of anything it stays
            as it is.
        job: What wrote it, for the log; None: the name of the program.

    Returns:
        The number of the version that was committed.

    Raises:
        VersionConflictError: Another writer committed that version first. Nothing was changed.
        StoreError: The base version is not there, or a shard is not.
        ValueError: The layout is not that of the base version, a receipt is there twice, or the attributes of one
            sequence differ.
    """
    folder = StoreFolder(local_path(root))
    base = DiskStore(folder.root, base_version) if base_version else None
    if base is not None and base.layout != layout:
        raise ValueError(f"what is added to {folder.root} has its layout, got another one: take it from store.layout")
    shards = tuple(shard for receipt in receipts for shard in receipt.shards)
    if len({receipt.writer for receipt in receipts}) != len(receipts):
        raise ValueError("every receipt is committed once, got one twice")
    for shard in shards:
        if not (folder.shards / shard.id).is_dir():
            raise StoreError(f"shard {shard.id} of a receipt is not in {folder.shards}: write it again")
    if base is not None and not any(receipt.ids for receipt in receipts):
        return base_version
    ids, attrs, pieces = _collect(receipts, base)
    commit_id = uuid.uuid4().hex[:16]
    staging = folder.staging / commit_id
    for needed in (folder.shards, folder.tables, folder.versions, staging):
        commit.make_folder(needed)
    number = base_version + 1
    try:
        if layout.backend == "zarr":
            _make_groups(folder, staging)
        version = Version(
            number=number,
            writer=commit_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"streamseq {__version__}",
            operation="write",
            job=program() if job is None else job,
            layout=layout,
            shards=(() if base is None else base.snapshot.shards) + shards,
            tables=(
                *(() if base is None else base.snapshot.tables),
                _write_tables(folder, commit_id, ids, attrs, pieces),
            ),
            num_sequences=(0 if base is None else len(base)) + len(ids),
            num_timesteps=(0 if base is None else base.num_timesteps) + sum(shard.num_timesteps for shard in shards),
            fingerprint=_fingerprint("" if base is None else base.fingerprint, layout, shards, ids, attrs, pieces),
        )
        if not commit.put_if_absent(folder.version_file(number), format_version(version), staging):
            raise VersionConflictError(
                f"version {number} of {folder.root} was committed by another writer meanwhile, nothing of this one is "
                "visible: write it again with ss.append, which goes on from the newest version"
            )
    except BaseException:
        if not _is_committed(folder, number, commit_id):
            for kind in ("sequences", "pieces"):
                (folder.tables / f"{commit_id}.{kind}.arrow").unlink(missing_ok=True)
        raise
    finally:
        commit.remove_tree(staging)
    return number


def program() -> str:
    """The name of the running program, as the log of a store has it."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return "python" if name in ("", "-", "-c") else name


def abandon_receipts(root: str | os.PathLike[str], receipts: Sequence[Receipt]) -> None:
    """Remove the shards of receipts that are not going to be committed; shards that a version has are kept.

    Args:
        root: The root folder of the store.
        receipts: The receipts.
    """
    folder = StoreFolder(local_path(root))
    committed = set()
    if folder.version_numbers():
        # Shards are only ever added to the list, so the newest version has all of them.
        committed = {shard.id for shard in DiskStore(folder.root).snapshot.shards}
    for receipt in receipts:
        for shard in receipt.shards:
            if shard.id not in committed:
                commit.remove_tree(folder.shards / shard.id)


def _collect(receipts: Sequence[Receipt], base: DiskStore | None) -> tuple[list[str], list[str], Pieces]:
    """The sequences that are new, their attributes, and all pieces, numbered as the new version numbers them."""
    new: dict[str, str | None] = {}
    numbers: dict[str, int] = {}
    first_new = 0 if base is None else len(base)
    first_row = 0 if base is None else base.num_timesteps
    pieces = [np.empty((0, 3), np.int64)]
    for receipt in receipts:
        for id, attrs in zip(receipt.ids, receipt.attrs, strict=True):
            known = base.find(id) if base is not None else None
            if base is not None and known is not None:
                numbers[id] = known
                if attrs is not None:
                    agreed_attrs(id, base.attrs_json(known), attrs)
                continue
            if id not in new:
                numbers[id] = first_new + len(new)
                new[id] = attrs
            elif attrs is not None:
                new[id] = agreed_attrs(id, new[id], attrs)
        moved = receipt.pieces.copy()
        moved[:, 0] = np.array([numbers[id] for id in receipt.ids], np.int64)[moved[:, 0]]
        moved[:, 1] += first_row
        pieces.append(moved)
        first_row += receipt.num_timesteps
    return list(new), [attrs or "{}" for attrs in new.values()], merge_pieces(np.concatenate(pieces))


def _write_tables(folder: StoreFolder, commit_id: str, ids: list[str], attrs: list[str], pieces: Pieces) -> Tables:
    staging = folder.staging / commit_id
    text = pa.large_string()
    sequences = pa.record_batch([pa.array(ids, text), pa.array(attrs, text)], schema=SEQUENCES)
    lying = pa.record_batch([pa.array(np.ascontiguousarray(column)) for column in pieces.T], schema=PIECES)
    return Tables(
        sequences=write_table(sequences, f"{commit_id}.sequences.arrow", staging, folder.tables),
        pieces=write_table(lying, f"{commit_id}.pieces.arrow", staging, folder.tables),
    )


def _fingerprint(
    before: str, layout: ShardLayout, shards: Sequence[Shard], ids: list[str], attrs: list[str], pieces: Pieces
) -> str:
    """The digest of a version: of the digest before it, and of what it adds."""
    document = {
        "before": before,
        "fields": [[name, field.dtype.name, field.shape] for name, field in layout.fields.items()],
        "shards": [
            [shard.num_timesteps, {name: to_hex(stored.crc32c) for name, stored in shard.fields.items()}]
            for shard in shards
        ],
        "ids": _text_digest(ids),
        "attrs": _text_digest(attrs),
        "pieces": hashlib.sha256(pieces.astype("<i8").tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _text_digest(texts: list[str]) -> str:
    encoded = [text.encode() for text in texts]
    digest = hashlib.sha256(np.array([len(text) for text in encoded], "<i8").tobytes())
    for text in encoded:
        digest.update(text)
    return digest.hexdigest()


def _is_committed(folder: StoreFolder, number: int, commit_id: str) -> bool:
    """Whether the version is there and this commit made it: an interrupt can come after that."""
    try:
        return DiskStore(folder.root, number).snapshot.writer == commit_id
    except StoreError:
        return False


def _make_groups(folder: StoreFolder, staging: Path) -> None:
    """Let plain Zarr open the store: every folder that it would list is a group."""
    for group in (folder.root, folder.shards, folder.tables, folder.versions, folder.staging):
        path = group / "zarr.json"
        if not path.exists():
            commit.put_if_absent(path, GROUP_DOCUMENT, staging)
