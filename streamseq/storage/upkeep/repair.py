"""`repair`: a new version without the sequences that cannot be read any more."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from streamseq.core.errors import CorruptionError, VersionConflictError
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.upkeep.findings import Span, VerifyReport, merge_spans
from streamseq.storage.upkeep.rewrite import Copy, Step, Stretch, Whole, carry_out, moved_pieces, pieces_of, stretches
from streamseq.storage.upkeep.verify import verify
from streamseq.storage.versions.attachments import read_attachment
from streamseq.storage.versions.claim import Claim
from streamseq.storage.versions.new_version import Added, commit_version, fingerprint_of, program
from streamseq.storage.versions.receipts import abandon_receipts
from streamseq.storage.versions.version import AttachmentFile

_TRIES = 3
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A sequence that the new version does not have.

    Args:
        id: Its id.
        timesteps: Its length.
        hit: Those of its timesteps that cannot be read.
    """

    id: str
    timesteps: int
    hit: tuple[Span, ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, as JSON holds them."""
        return {"id": self.id, "timesteps": self.timesteps, "hit": [[span.start, span.stop] for span in self.hit]}

    def __str__(self) -> str:
        spans = ", ".join(f"[{span.start:,}, {span.stop:,})" for span in self.hit)
        return f"{self.id!r} ({self.timesteps:,} timesteps, of which {spans} cannot be read)"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What a repair did; `print(report)` says it.

    Args:
        store: Where the store lies.
        version: The version that was committed; None: none was.
        base: The version that was repaired.
        problems: Problems that it has.
        left_out: The sequences that the new version does not have, or with `dry_run` would not have.
        sequences: Sequences that it has.
        timesteps: Their timesteps.
        kept: Shards that are as they were.
        written: Timesteps that were written anew: what could be read in shards that were hit.
        dry_run: Whether nothing was written.
        seconds: What it took.
    """

    store: str
    version: int | None
    base: int
    problems: int
    left_out: tuple[LeftOut, ...]
    sequences: int
    timesteps: int
    kept: int
    written: int
    dry_run: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the newest version can be read now, all of it."""
        return self.version is not None or not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, as JSON holds them."""
        left_out = [each.as_dict() for each in self.left_out]
        return {**asdict(self), "ok": self.ok, "left_out": left_out, "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        name = f"{self.store} version {self.base}"
        if not self.problems:
            return f"{name} is well: no version was made"
        if self.version is None and not self.left_out and not self.written:
            return f"{name} has {self.problems:,} problems, none of which hits a sequence: see streamseq verify"
        lost = sum(each.timesteps for each in self.left_out)
        number = len(self.left_out)
        what = f"leaving out {number:,} sequences, {lost:,} timesteps" if number else "leaving out nothing"
        if self.dry_run:
            head = f"{name} would be repaired by"
        else:
            head = f"wrote {self.store} version {self.version}, which is version {self.base},"
        lines = [
            f"{head} {what}; {self.sequences:,} sequences, {self.timesteps:,} timesteps are left",
            *(f"left out: {each}" for each in self.left_out[:_SHOWN]),
        ]
        if len(self.left_out) > _SHOWN:
            lines.append(f"and {len(self.left_out) - _SHOWN:,} more: --json lists them")
        if not self.dry_run:
            lines.append(f"{self.kept:,} shards are as they were, {self.written:,} timesteps were written anew")
        return "\n".join(lines)


def repair(
    uri: str | os.PathLike[str] | Place,
    *,
    dry_run: bool = False,
    job: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> RepairReport:
    """Make a new version without the sequences that `verify` finds hit, and say which they are.

    What can be read of shards that are hit is written into new ones, all others are kept. A store that is well gets no
    new version. Older versions stay as they are: those that are hit remain so.

    Args:
        uri: Where the store lies.
        dry_run: Only say what would be left out.
        job: What the log of the store says did it; None: the name of the program.
        workers: Threads that verify; None: one a core.
        progress: Called while it is verified with the stored bytes that are done and all there are.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Raises:
        StoreError: There is no store.
        CorruptionError: The version file or its tables are broken, or every sequence is hit. Nothing was changed.
        VersionConflictError: Others commit all the time. Nothing was changed.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("uint8")}) as writer:
        ...         writer.write("plant-3", x=np.uint8([1, 2]))
        ...     print(ss.repair(folder + "/plants.zarr").version)
        None
    """
    began = time.monotonic()
    place = place_of(uri, storage_options)
    what = program() if job is None else job
    for _ in range(_TRIES):
        base = DiskStore(place)
        found = verify(place, base.version, workers=workers, progress=progress)
        _refuse(base, found)
        report = _repaired(base, found, dry_run, what)
        if report is not None:
            return replace(report, seconds=time.monotonic() - began)
        # Another version is the newest now, and may go on with what is to be left out.
    raise VersionConflictError(
        f"{place.uri} got a new version each of {_TRIES} times while it was repaired; nothing was changed: repair it "
        "when no writer is at work"
    )


def _refuse(base: DiskStore, found: VerifyReport) -> None:
    """Refuse what cannot be repaired by leaving out sequences."""
    broken = [problem for problem in found.problems if problem.part not in ("shard", "attachment")]
    if not broken:
        return
    older = [number for number in base.versions if number < base.version]
    name = f"versions/{base.version:08d}.json"
    remedy = f", or remove {name} to go back to version {older[-1]}, if verify finds that well" if older else ""
    raise CorruptionError(
        f"a repair leaves out sequences, and what says which there are is broken itself: {broken[0]}. Restore it "
        f"from a copy{remedy}"
    )


def _repaired(base: DiskStore, found: VerifyReport, dry_run: bool, job: str) -> RepairReport | None:
    """Leave out what was found; None where another version was committed meanwhile."""
    hit = merge_spans(span for problem in found.problems if not problem.salvageable for span in problem.spans)
    lost = np.unique(np.array([span.sequence for span in hit], np.int64))
    broken = {problem.shard for problem in found.problems if problem.field is not None}
    report = RepairReport(
        store=base.uri,
        version=None,
        base=base.version,
        problems=len(found.problems),
        left_out=tuple(_left_out(base, hit)),
        sequences=len(base) - len(lost),
        timesteps=base.num_timesteps - int(base.lengths[lost].sum()),
        kept=len(base.snapshot.shards),
        written=0,
        dry_run=dry_run,
        seconds=0.0,
    )
    attachments = {} if len(lost) else _well_attached(base)
    if not broken and len(attachments) == len(base.snapshot.attachments):
        return report
    if not report.timesteps:
        raise CorruptionError(
            f"a version holds at least one timestep, and every sequence of {base.uri} version {base.version} that has "
            "any is hit: restore it from a copy"
        )
    pieces = pieces_of(base)
    pieces = pieces[~np.isin(pieces[:, 0], lost)]
    pieces = pieces[np.argsort(pieces[:, 1], kind="stable")]
    numbers = {number for number, shard in enumerate(base.snapshot.shards) if shard.id in broken}
    steps = list(_steps(stretches(pieces, base.snapshot.shards), numbers))
    report = replace(
        report,
        kept=sum(isinstance(step, Whole) for step in steps),
        written=sum(step.num_timesteps for step in steps if isinstance(step, Copy)),
    )
    if dry_run:
        return report
    survives = np.ones(len(base), bool)
    survives[lost] = False
    pieces = moved_pieces(pieces)
    pieces[:, 0] = (np.cumsum(survives) - 1)[pieces[:, 0]]
    with Claim(base.place, job) as claim:
        shards, receipts = carry_out(base, steps, claim, None, salvage=True)
        committed = False
        try:
            added = Added(
                ids=base.ids.filter(pa.array(survives)),
                attrs=base.catalogue.attrs.filter(pa.array(survives)),
                pieces=pieces,
            )
            committed = commit_version(
                base.place,
                base.version + 1,
                base.layout,
                shards,
                (),
                added,
                fingerprint=fingerprint_of("", base.layout, shards, added),
                operation="repair",
                job=job,
                attachments=attachments,
            )
        finally:
            if not (committed or base.place.undecided(sys.exception())):
                abandon_receipts(base.place, receipts)
    return replace(report, version=base.version + 1) if committed else None


def _well_attached(base: DiskStore) -> dict[str, AttachmentFile]:
    """What is said of a version beside its contents, without what cannot be read."""
    well = {}
    for name, file in base.snapshot.attachments.items():
        with contextlib.suppress(CorruptionError):
            read_attachment(base.place, name, file)
            well[name] = file
    return well


def _left_out(base: DiskStore, spans: Sequence[Span]) -> Iterator[LeftOut]:
    for sequence, hit in groupby(spans, key=lambda span: span.sequence):
        yield LeftOut(id=base.id_of(sequence), timesteps=base.length(sequence), hit=tuple(hit))


def _steps(stretches: Iterable[Stretch], broken: set[int]) -> Iterator[Step]:
    """Whole shards are kept but for broken ones; these, and what lies between them, are copied."""
    waiting: list[Stretch] = []
    for stretch in stretches:
        if not isinstance(stretch, Whole) or stretch.number in broken:
            waiting.append(stretch)
            continue
        if waiting:
            yield Copy(waiting)
            waiting = []
        yield stretch
    if waiting:
        yield Copy(waiting)
