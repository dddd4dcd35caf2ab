"""From receipts to a version: what shard writers wrote becomes the next one, also where others committed meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from streamseq.core.errors import CorruptionError, StoreError, VersionConflictError
from streamseq.storage.boundaries.kept import PREFIX
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.shards.shard_writer import Receipt, agreed_attrs
from streamseq.storage.statistics.kept import NAME, merge_statistics
from streamseq.storage.versions.new_version import Added, commit_version, fingerprint_of
from streamseq.storage.versions.rows import merge_pieces, sort_pieces
from streamseq.storage.versions.version import AttachmentFile, Shard


def commit_receipts(
    root: str | os.PathLike[str] | Place,
    layout: ShardLayout,
    receipts: Sequence[Receipt],
    base_version: int = 0,
    job: str | None = None,
) -> int:
    """Make what the receipts say the next version of a store.

    Where other writers committed after the base version, it is added to the newest version instead, unless they wrote
    the same sequences.

    Args:
        root: Where the store lies.
        layout: The layout that all of it was written with.
        receipts: The receipts, in the order that their timesteps have. An id in several of them is one sequence, whose
            pieces follow each other in this order; an id that the base version has goes on.
        base_version: The version that the writers saw, 0 where there was none. Without receipts of anything it stays
            as it is.
        job: What wrote it, for the log; None: the name of the program.

    Returns:
        The number of the version that was committed.

    Raises:
        VersionConflictError: Another writer created the store, or wrote one of the sequences, after the base version.
            Nothing was changed.
        StoreError: The base version is not there, or a shard is not.
        ValueError: The layout is not that of the base version, a receipt is there twice, or the attributes of one
            sequence differ.
    """
    place = place_of(root)
    base = DiskStore(place, base_version) if base_version else None
    if base is not None and base.layout != layout:
        raise ValueError(f"what is added to {place.uri} has its layout, got another one: take it from store.layout")
    shards = [shard for receipt in receipts for shard in receipt.shards]
    if len({receipt.writer for receipt in receipts}) != len(receipts):
        raise ValueError("every receipt is committed once, got one twice")
    if base is not None and not any(receipt.ids for receipt in receipts):
        return base_version
    newest = base
    while True:
        _check_shards(place, shards)
        added = _collect(receipts, newest)
        number = 1 if newest is None else newest.version + 1
        if commit_version(
            place,
            number,
            layout,
            [*(() if newest is None else newest.snapshot.shards), *shards],
            () if newest is None else newest.snapshot.tables,
            added,
            fingerprint=fingerprint_of("" if newest is None else newest.fingerprint, layout, shards, added),
            operation="write",
            job=job,
            attachments={
                **({} if newest is None else _boundaries_of(newest)),
                **_statistics_of(receipts, newest, layout),
            },
        ):
            return number
        if base is None:
            raise VersionConflictError(
                f"{place.uri} was created by another writer meanwhile, nothing of this one is visible: add to it with "
                "ss.append, or choose another address"
            )
        newest = DiskStore(place)
        _check_same_sequences(receipts, base, newest)


def replace_by_receipts(before: DiskStore, receipts: Sequence[Receipt], job: str | None = None) -> int:
    """Make what the receipts say, and nothing else, the version after one; older versions stay as they are.

    Args:
        before: The newest version.
        receipts: The receipts, as for `commit_receipts`; their shards may be those of versions before.
        job: What wrote it, for the log; None: the name of the program.

    Returns:
        The number of the version: that of `before` where it holds just this already.

    Raises:
        VersionConflictError: Another writer committed a version meanwhile. Nothing was changed.
        StoreError: A shard is not there.
    """
    place, layout = before.place, before.layout
    shards = [shard for receipt in receipts for shard in receipt.shards]
    added = _collect(receipts, None)
    fingerprint = fingerprint_of("", layout, shards, added)
    if fingerprint == before.fingerprint and shards == list(before.snapshot.shards):
        return before.version
    _check_shards(place, shards)
    number = before.version + 1
    if not commit_version(
        place,
        number,
        layout,
        shards,
        (),
        added,
        fingerprint=fingerprint,
        operation="replace",
        job=job,
        attachments=_statistics_of(receipts, None, layout),
    ):
        raise VersionConflictError(
            f"version {number} of {place.uri} was committed by another writer meanwhile, nothing of this job is "
            "visible: run it again on the newest version, or into another store"
        )
    return number


def _boundaries_of(base: DiskStore) -> dict[str, AttachmentFile]:
    """What a version says of boundaries: where they were found they stay, whatever is added."""
    return {name: file for name, file in base.snapshot.attachments.items() if name.startswith(PREFIX)}


def _statistics_of(receipts: Sequence[Receipt], before: DiskStore | None, layout: ShardLayout) -> dict[str, bytes]:
    """Statistics of a version that adds receipts, in their order, to another one, where all of them have some."""
    contents = [receipt.statistics for receipt in receipts]
    if before is not None:
        contents.insert(0, before.attachment(NAME))
    try:
        merged = merge_statistics(contents, layout.fields)
    except ValueError as error:
        whose = "receipts" if before is None else f"{before.uri} version {before.version} or of receipts"
        raise CorruptionError(f"statistics of {whose} cannot be read: {error}") from None
    return {} if merged is None else {NAME: merged}


def _check_shards(place: Place, shards: Sequence[Shard]) -> None:
    for shard in shards:
        if not place.exists(f"shards/{shard.id}"):
            raise StoreError(f"shard {shard.id} of a receipt is not in {place.uri}: write it again")


def abandon_receipts(root: str | os.PathLike[str] | Place, receipts: Sequence[Receipt]) -> None:
    """Remove the shards of receipts that are not going to be committed; shards that a version has are kept.

    What cannot be removed stays as a leftover, for `clean`: an error that led here is not hidden by another one.

    Args:
        root: Where the store lies.
        receipts: The receipts.
    """
    place = place_of(root)
    with contextlib.suppress(OSError, StoreError):
        committed = {
            shard.id for number in place.version_numbers() for shard in DiskStore(place, number).snapshot.shards
        }
        for receipt in receipts:
            for shard in receipt.shards:
                if shard.id not in committed:
                    place.remove(f"shards/{shard.id}")


def _check_same_sequences(receipts: Sequence[Receipt], base: DiskStore, newest: DiskStore) -> None:
    """Check that what the receipts go on with is in the newest version as it was in the base version.

    Raises:
        VersionConflictError: It is not.
    """
    for receipt in receipts:
        before, now = (
            [-1 if index < 0 else store.length(index) for index in store.catalogue.find_all(receipt.ids).tolist()]
            for store in (base, newest)
        )
        if before != now:
            id = next(id for id, *lengths in zip(receipt.ids, before, now, strict=True) if lengths[0] != lengths[1])
            raise VersionConflictError(
                f"a sequence is written by one writer at a time, and {id!r} was changed by version {newest.version} of "
                f"{newest.uri} after this writer began with version {base.version}; nothing of it is visible: write "
                "it again with ss.append, which goes on from the newest version"
            )


def _collect(receipts: Sequence[Receipt], base: DiskStore | None) -> Added:
    """The sequences that are new, their attributes, and all pieces, numbered as the new version numbers them."""
    new: dict[str, str | None] = {}
    numbers: dict[str, int] = {}
    first_new = 0 if base is None else len(base)
    first_row = 0 if base is None else base.num_timesteps
    pieces = [np.empty((0, 3), np.int64)]
    for receipt in receipts:
        there = [-1] * len(receipt.ids) if base is None else base.catalogue.find_all(receipt.ids).tolist()
        for id, attrs, known in zip(receipt.ids, receipt.attrs, there, strict=True):
            if base is not None and known >= 0:
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
    text = pa.large_string()
    return Added(
        ids=pa.array(list(new), text),
        attrs=pa.array([attrs or "{}" for attrs in new.values()], text),
        pieces=merge_pieces(sort_pieces(np.concatenate(pieces))),
    )
