"""`clean`: finds and removes what writers that died left in a store; never what a version names or a live writer has.

The order is what makes it safe beside writers. First is listed what might be a leftover; then which writers live; then
what all versions name. A writer that begins later has nothing in the list. One that was at work when the list was made
either still holds its claim, and all that is younger than the oldest live claim stays, or it has let go of it, which it
does after its version is there, whose names are read last.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

from streamseq.core.errors import CorruptionError, StoreError
from streamseq.storage.places.place import Place, place_of, version_name
from streamseq.storage.strict_json import parse_json
from streamseq.storage.upkeep.findings import some
from streamseq.storage.versions.claim import CLAIM_FILE, Claim, Holder, holders, taken
from streamseq.storage.versions.version import parse_version

#: How long the claim of another machine counts as live without a sign of life.
OLDER_THAN = timedelta(days=1)

# A folder in the staging area that is not a leftover: an unfinished prediction goes on with what lies there.
_RESUMABLE = "predict"
# Where the receipts of ingestions lie, one folder a job.
_JOBS = "staging/jobs"
_STAGED = re.compile(r"(probe-)?[0-9a-f]{16}|job-[0-9a-f]{16}(-stopped)?")
_SHARD = re.compile(r"([0-9a-f]{16})-[0-9]{6,12}")
_TABLE = re.compile(r"([0-9a-f]{16})\.([a-z]+\.arrow|attachment-[0-9]+)")
_SHOWN = 10

Kind = Literal["staging", "shard", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something that no version names.

    Args:
        name: Its name in the store.
        kind: A folder of the "staging" area, a "shard" or a "table".
        kept: Why it is not removed; "" where it is.
    """

    name: str
    kind: Kind
    kept: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanReport:
    """What `clean` did; `print(report)` says it.

    Args:
        store: Where the store lies.
        removed: What was removed; with `dry_run` what would be.
        kept: What no version names and was kept, with why.
        writers: Writers that are at work, or may be.
        dry_run: Whether nothing was removed.
    """

    store: str
    removed: tuple[Leftover, ...]
    kept: tuple[Leftover, ...]
    writers: tuple[str, ...]
    dry_run: bool

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, as JSON holds them."""
        return {
            "store": self.store,
            "removed": [{"name": found.name, "kind": found.kind} for found in self.removed],
            "kept": [asdict(found) for found in self.kept],
            "writers": list(self.writers),
            "dry_run": self.dry_run,
        }

    def __str__(self) -> str:
        lines = []
        for writer in self.writers:
            lines.append(f"at work: {writer}")
        for why in dict.fromkeys(found.kept for found in self.kept):
            names = [found.name for found in self.kept if found.kept == why]
            lines.append(f"kept, {why}: {some(names, _SHOWN)}")
        if self.removed:
            verb = "would remove" if self.dry_run else "removed"
            shown = some((found.name for found in self.removed), _SHOWN)
            lines.append(f"{verb} {len(self.removed):,} leftovers: {shown}")
        else:
            lines.append(f"{self.store} has no leftovers to remove")
        return "\n".join(lines)


def clean(
    uri: str | os.PathLike[str] | Place,
    *,
    dry_run: bool = False,
    older_than: timedelta | float = OLDER_THAN,
    jobs: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> CleanReport:
    """Remove what writers that died left in a store: unnamed shards and tables, and folders of the staging area.

    Writers may be at work meanwhile. Kept is whatever a version names, what belongs to a writer that lives, what is
    younger than the oldest live writer and nobody's in particular, and what an unfinished `ss.predict` or `ss.ingest`
    goes on with.

    Args:
        uri: Where the store lies.
        dry_run: Only say what would be removed.
        older_than: A `timedelta` or seconds: how long a writer on another machine counts as live without a sign of
            life. A writer of this machine is known to live or not.
        jobs: Remove as well what an `ss.ingest` that is run again need not do again, where no writer is at work: it
            then begins anew.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Raises:
        StoreError: There is no store, nor what a writer of one left.
        CorruptionError: A version file cannot be read, so that nobody knows what it names.
        ValueError: `older_than` is negative.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("uint8")}) as writer:
        ...         writer.write("plant-3", x=np.uint8([1, 2]))
        ...     ss.clean(folder + "/plants.zarr").removed
        ()
    """
    place = place_of(uri, storage_options)
    seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else float(older_than)
    if not seconds >= 0:
        raise ValueError(f"an age is 0 seconds or more, got older_than {older_than}")
    if not place.version_numbers() and not (set(place.names("")) and place.holds_only_leftovers()):
        raise StoreError(f"{place.uri} is not a store, and holds nothing of one: check the address")
    if dry_run:
        found, writers = _find(place, time.time(), seconds, jobs=jobs)
    else:
        with Claim(place, "streamseq clean") as own:
            # The time by the clock of where the store lies, which may be another machine's.
            found, writers = _find(
                place, place.modified(f"staging/{own.folder}/{CLAIM_FILE}"), seconds, own.folder, jobs
            )
    removed: list[Leftover] = []
    kept: list[Leftover] = []
    for leftover in found:
        if not leftover.kept and not dry_run and not _remove(place, leftover):
            leftover = Leftover(name=leftover.name, kind=leftover.kind, kept="its writer is at work")
        (kept if leftover.kept else removed).append(leftover)
    return CleanReport(
        store=place.uri, removed=tuple(removed), kept=tuple(kept), writers=tuple(writers), dry_run=dry_run
    )


def unnamed(place: Place) -> list[str]:
    """The names of what `clean` would remove; empty where that cannot be said."""
    try:
        found, _ = _find(place, time.time(), OLDER_THAN.total_seconds())
    except StoreError:
        return []
    return [leftover.name for leftover in found if not leftover.kept]


def _find(
    place: Place, now: float, older_than: float, own: str = "", jobs: bool = False
) -> tuple[list[Leftover], list[str]]:
    """What no version names, and the writers that are at work. The order of the steps matters: see the module."""
    staged = [name for name in place.names("staging") if _STAGED.fullmatch(name) and name != own]
    shards = [name for name in place.names("shards") if _SHARD.fullmatch(name)]
    tables = [name for name in place.names("tables") if _TABLE.fullmatch(name)]
    claims = [claim for claim in holders(place, now, older_than) if claim.folder != own]
    rule = _Rule(claims)
    found: list[Leftover] = []
    jobs = jobs and not any(claim.live for claim in claims)
    if jobs and place.names(_JOBS):
        found.append(Leftover(name=_JOBS, kind="staging"))
    named, resumable = _named(place), _resumable(place, jobs=not jobs)

    def add(name: str, kind: Kind, writer: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # its writer was faster
            modified = place.modified(name)
            found.append(Leftover(name=name, kind=kind, kept=rule.kept(writer, modified)))

    for name in sorted(staged):
        add(f"staging/{name}", "staging", name)
    for name in sorted(set(shards) - named):
        if resumable is None:
            found.append(Leftover(name=f"shards/{name}", kind="shard", kept="receipts of a prediction are damaged"))
        elif name in resumable:
            found.append(Leftover(name=f"shards/{name}", kind="shard", kept=resumable[name]))
        else:
            add(f"shards/{name}", "shard", name.split("-")[0])
    for name in sorted(set(tables) - named):
        add(f"tables/{name}", "table", name.split(".")[0])
    return found, [claim.who for claim in claims if claim.live]


class _Rule:
    """Who is at work, and what may be theirs."""

    def __init__(self, claims: Iterable[Holder]) -> None:
        self._live = {name for claim in claims if claim.live for name in (claim.folder, *claim.writers)}
        self._dead = {name for claim in claims if not claim.live for name in (claim.folder, *claim.writers)}
        self._since = min((claim.since for claim in claims if claim.live), default=float("inf"))

    def kept(self, writer: str, modified: float) -> str:
        """Why something of a writer, last changed then, is kept; "" where it is not."""
        if writer in self._live:
            return "its writer is at work"
        if writer in self._dead or modified < self._since:
            return ""
        return "it may be of a writer that is at work"


def _named(place: Place) -> set[str]:
    """The shards and tables of all versions."""
    named: set[str] = set()
    for number in place.version_numbers():
        name = version_name(number)
        try:
            version = parse_version(place.read(name), number, f"version file {name} of {place.uri}")
        except (StoreError, OSError) as error:
            raise CorruptionError(f"nothing is cleaned where a version cannot say what it names: {error}") from error
        named.update(shard.id for shard in version.shards)
        for tables in version.tables:
            named.update(file.name for file in (tables.sequences, tables.pieces, tables.index))
        named.update(file.name for file in version.attachments.values())
    return named


def _resumable(place: Place, jobs: bool) -> dict[str, str] | None:
    """The shards that something goes on with, and what; None where the receipt of a prediction cannot be read."""
    shards = _job_shards(place) if jobs else {}
    folder = f"staging/{_RESUMABLE}/receipts"
    for name in place.names(folder):
        if not name.isdecimal():
            continue
        try:
            receipt = parse_version(place.read(f"{folder}/{name}"), int(name) + 1, f"receipt {name}")
        except FileNotFoundError:
            continue
        except StoreError:
            return None
        shards.update((shard.id, "an unfinished prediction goes on with it") for shard in receipt.shards)
    return shards


def _job_shards(place: Place) -> dict[str, str]:
    """The shards of finished tasks of ingestions. A receipt that cannot be read is of no use to them either."""
    shards = {}
    for job in place.names(_JOBS):
        for name in place.names(f"{_JOBS}/{job}"):
            with contextlib.suppress(FileNotFoundError, StoreError, ValueError, KeyError, TypeError):
                for shard in parse_json(place.read(f"{_JOBS}/{job}/{name}"))["receipt"]["shards"]:
                    shards[shard["id"]] = (
                        "an ingestion that is run again goes on with it (jobs=True, --jobs removes it)"
                    )
    return shards


def _remove(place: Place, leftover: Leftover) -> bool:
    """Remove it, unless it is the folder of a claim whose holder lives after all."""
    if leftover.kind != "staging":
        place.remove(leftover.name)
        return True
    with taken(place, leftover.name.split("/")[1]) as dead:
        if dead:
            place.remove(leftover.name)
    return dead
