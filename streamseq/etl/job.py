"""`ingest`: the Dask job that writes a source into a new store, one task a partition, one version at the end."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamseq.core.errors import StoreError
from streamseq.etl.attempts import Attempts
from streamseq.etl.collections import prepared
from streamseq.etl.collections_frame import check_times
from streamseq.etl.collections_run import block_tasks, gone_through_again, is_collection
from streamseq.etl.identity import job_key, partition_keys
from streamseq.etl.ledger import Ledger
from streamseq.etl.quarantine import Quarantine
from streamseq.etl.report import Report
from streamseq.etl.source import Partition, Source, SourceError
from streamseq.etl.task import Writing, duplicate_id, run_task
from streamseq.etl.task_result import TaskResult
from streamseq.etl.transformed_source import TransformedSource
from streamseq.etl.workers import Workers
from streamseq.storage.boundaries.mark import check_marks, mark_all
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.layout import plan_layout
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.shards.shard_writer import Receipt
from streamseq.storage.store import create
from streamseq.storage.versions.claim import Claim
from streamseq.storage.versions.new_version import program
from streamseq.storage.versions.receipts import commit_receipts, replace_by_receipts

if TYPE_CHECKING:
    import dask.array
    import dask.bag
    import dask.dataframe
    from distributed import Client, Future

    DaskCollection = dask.array.Array | Mapping[str, dask.array.Array] | dask.bag.Bag | dask.dataframe.DataFrame


def ingest(
    source: Source | DaskCollection,
    uri: str | os.PathLike[str],
    transforms: Iterable[object] = (),
    *,
    client: Client | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    backend: str | None = None,
    chunk_bytes: int | None = None,
    shard_bytes: int | None = None,
    job: str | None = None,
    boundaries: Mapping[str, Any] | None = None,
    statistics: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Report:
    """Write a source into a new store, in parallel; the store is the same for any number of workers.

    The version is committed when all of it is written. A job that fails, is interrupted or killed leaves nothing that
    can be read; run again, it does only what is not done, and where data changed after it was committed it reads what
    changed and makes the next version. For that a source says its `settings`: one without them begins anew each time.

    What a source leaves out is in the report. Where its `on_error` is "quarantine", or it hands over the bytes that it
    left out, all of that is also in a file of JSON lines beside the store, `<store>.quarantine.jsonl`: what, place,
    reason, num_bytes, and the bytes as `content`, or as `content_base64` where they are not UTF-8.

    Args:
        source: Where the data comes from: see `streamseq.etl.source`; or a Dask array, bag or dataframe, or a dict of
            arrays by field, with options as `ArrayCollection`, `BagCollection` or `FrameCollection` of `ss.etl`.
        uri: Where to put the store: a local path that all workers have, or a URL that fsspec knows such as
            `s3://bucket/plants.zarr`.
        transforms: What is done to the data on the way, in order: `streamseq.etl.transforms`, or functions of a dict of
            arrays.
        client: A Dask client, whose workers do the work. None: for Dask collections, the current one, if any.
        workers: Without a client, the number of workers on this machine, at most one a task: threads of this process,
            or processes where the source or a transform holds Python's lock (`source.threads`). None: one a core.
        scheduler: The address of a Dask scheduler to use instead.
        backend: "zarr" or "arrow"; None: by the suffix of the path, `.zarr` or `.arrow`.
        chunk_bytes: Decoded bytes a chunk of one field; None: 1 MiB.
        shard_bytes: Decoded bytes a shard; None: 64 MiB.
        job: What writes it, for the log; None: the name of the program.
        boundaries: By name, rules as `ss.splits.Domain` takes them: what they find in the store, once it is written, is
            stored beside the sequences; see `ss.mark`.
        statistics: Whether statistics of the values are gathered on the way and kept with the version.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say; sent to the workers.
        progress: Called with the bytes of input done and of all, at the start, after every partition and every few
            seconds.
        note: Called with what is good to know while the job runs: the address of the dashboard of the user's cluster.

    Raises:
        StoreError: There is a store already, or something else that is not an empty folder.
        SourceError: The data is not what it has to be, or there is none.
        StreamseqError: The workers died, or there are none.
        TypeError, ValueError: An argument is wrong.

    Example:
        >>> import tempfile, streamseq as ss
        >>> from pathlib import Path
        >>> from streamseq_pipelines.text import TextSource
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_bytes(b"one")
        ...     report = ss.ingest(TextSource([folder + "/a.txt"]), folder + "/texts.zarr")
        ...     ss.open(report.store).read("a.txt")["x"].tobytes()
        b'one'
    """
    began = time.monotonic()
    asked = getattr(source, "on_error", None) == "quarantine"
    chosen = Workers(client=client, threads=workers, scheduler=scheduler)
    source, chosen = prepared(source, list(transforms), chosen)
    place = place_of(uri, storage_options)
    quarantine = Quarantine(place, storage_options, asked=asked)
    suffix = PurePosixPath(place.uri).suffix
    if place.version_numbers():
        layout = DiskStore(place).layout
    else:
        create(place, source.fields, backend, chunk_bytes, shard_bytes)  # refuses what cannot become a store
        layout = plan_layout(source.fields, backend or suffix.removeprefix("."), chunk_bytes, shard_bytes)
    marked = check_marks(boundaries or {}, layout.fields)
    key = job_key(source, layout)
    ledger = None if key is None else Ledger(place=place, key=key, layout=layout)
    before = _newest_of(ledger, place)
    shard_size = layout.shard_timesteps * sum(field.step_bytes for field in layout.fields.values())
    partitions = list(source.partitions(shard_size))
    if not partitions:
        raise SourceError("a source has at least one partition, got none: there is nothing to write")
    with _StagedJob(place, program() if job is None else job, ledger, quarantine) as staged:
        keys = None if key is None else partition_keys(key if statistics else f"{key} bare", partitions)
        if keys is None:
            keys, staged.ledger = [""] * len(partitions), None
        writing = Writing(
            place=place, layout=layout, attempts=staged.attempts, ledger=staged.ledger, statistics=statistics
        )
        results = _run(source, partitions, keys, writing, staged, chosen, progress, note)
        receipts = [result.receipt for result in results]
        _check_order(receipts)
        check_times(results)
        if isinstance(source, TransformedSource):
            source.check_ids(partitions, [receipt.ids for receipt in receipts])
        if not any(receipt.num_timesteps for receipt in receipts):
            left_out = [skipped for result in results for skipped in result.skipped]
            why = f", {left_out[0].what} was left out ({left_out[0].reason})" if left_out else ""
            raise SourceError(
                f"a store holds at least one timestep, the source has none{why}: there is nothing to write"
            )
        # Before the version, so that nothing that a version leaves out can be lost.
        quarantined = quarantine.publish()
        staged.commits = True
        if before is None:
            version = commit_receipts(place, layout, receipts, job=job)
        else:
            version = replace_by_receipts(before, receipts, job=job)
    if marked:
        # A job that is killed here finds them when it is run again.
        version = mark_all(place, marked, job=job)
    return Report(
        store=place.uri,
        version=version,
        sequences=len({id for receipt in receipts for id in receipt.ids}),
        timesteps=sum(receipt.num_timesteps for receipt in receipts),
        bytes_in=sum(result.bytes_in for result in results),
        bytes_out=sum(
            stored.num_bytes for receipt in receipts for shard in receipt.shards for stored in shard.fields.values()
        ),
        seconds=time.monotonic() - began,
        startup_seconds=(staged.first_task or time.monotonic()) - began,
        skipped=tuple(skipped for result in results for skipped in result.skipped),
        partitions=len(partitions),
        partitions_done_before=staged.done_before,
        quarantine=quarantined,
    )


def _newest_of(ledger: Ledger | None, place: Place) -> DiskStore | None:
    """The newest version, where this job and nobody else wrote it; None where there is no version.

    Raises:
        StoreError: There is a store, and something else wrote it.
    """
    if not place.version_numbers():
        return None
    newest = DiskStore(place)
    own = set() if ledger is None else {shard.id for done in ledger.all() for shard in done.receipt.shards}
    if not own or not {shard.id for shard in newest.snapshot.shards} <= own:
        raise StoreError(
            f"{place.uri} is a store already, and not one that this job wrote: add to it with ss.append, or choose "
            "another address"
        )
    return newest


class _StagedJob:
    """The folder of a job in the staging area; leaving the block removes all that was not committed."""

    def __init__(self, place: Place, what: str, ledger: Ledger | None, quarantine: Quarantine) -> None:
        self.place = place
        self.quarantine = quarantine
        self.attempts = Attempts(place=place, folder=f"job-{uuid.uuid4().hex[:16]}")
        self.claim = Claim(place, what, self.attempts.folder)
        #: Where the receipts of finished tasks are; None where the job has no key.
        self.ledger = ledger
        #: Tasks that an earlier run has done.
        self.done_before = 0
        self._begun: object = None
        #: When the first task began, by `time.monotonic`.
        self.first_task: float | None = None
        #: Whether a version may have been made.
        self.commits = False

    def __enter__(self) -> _StagedJob:
        self._begun = self.place.begin()
        try:
            self.claim.hold()
            self.attempts.open()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # What cannot be removed is a leftover; an error that led here is not hidden by another one.
            with contextlib.suppress(OSError, StoreError):
                self._remove_left(error)
        finally:
            self._end()

    def ended(self, number: int, result: TaskResult) -> TaskResult:
        """Note when a task that has ended just now began, and keep what it left out."""
        # Not by its own clock, which may be another machine's.
        began = time.monotonic() - result.seconds
        self.first_task = began if self.first_task is None else min(began, self.first_task)
        return self.keep(number, result)

    def keep(self, number: int, result: TaskResult) -> TaskResult:
        """Keep what a task left out for the quarantine; return its result, without the bytes where those are many."""
        return replace(result, skipped=self.quarantine.take(number, result.skipped))

    def _remove_left(self, error: BaseException | None) -> None:
        """Remove what tasks wrote and no version has."""
        self.attempts.end()
        if self.commits and self.place.undecided(error):
            return
        # Of all versions: the newest may have been compacted already.
        committed = {
            shard.id.split("-")[0]
            for number in self.place.version_numbers()
            for shard in DiskStore(self.place, number).snapshot.shards
        }
        # Finished tasks are not done again by the next run.
        finished = set() if self.ledger is None else {done.receipt.writer for done in self.ledger.all()}
        # Those of workers that died are among them, which nobody else would remove.
        written = set(self.attempts.writers())
        left = written - committed - finished
        if not committed & (written | finished):
            self.quarantine.withdraw()
        for writer in left:
            self.place.remove(f"staging/{writer}")
        for shard in self.place.names("shards"):
            if shard.split("-")[0] in left:
                self.place.remove(f"shards/{shard}")

    def _end(self) -> None:
        """Give up the claim, and what was made for a store that does not come to be."""
        self.quarantine.end()
        if self.ledger is not None:
            self.ledger.close()
        self.claim.release()
        with contextlib.suppress(OSError, StoreError):
            self.place.remove(f"staging/{self.attempts.folder}")
            self.place.undo(self._begun)


def _run(
    source: Source,
    partitions: Sequence[Partition],
    keys: Sequence[str],
    writing: Writing,
    job: _StagedJob,
    workers: Workers,
    progress: Callable[[int, int], None] | None,
    note: Callable[[str], None] | None,
) -> list[TaskResult]:
    """Run a task for each partition that has no receipt; return what all hand back, in the order of the partitions."""
    total = sum(partition.num_bytes for partition in partitions)
    results: dict[int, TaskResult] = {}
    numbers = {key: number for number, key in enumerate(keys)}
    for key, result in () if job.ledger is None else job.ledger.find(keys):
        results[numbers[key]] = job.keep(numbers[key], result)
    for number in gone_through_again(source, partitions, results):
        del results[number]
    job.done_before = len(results)
    done = sum(partitions[number].num_bytes for number in results)
    open_ = [number for number in range(len(partitions)) if number not in results]
    if not open_:
        if progress is not None:
            progress(done, total)
        return [results[number] for number in range(len(partitions))]
    # Here, for a source that is refused should be so at once: importing this takes longer than anything before it.
    from streamseq.etl.cluster import connect

    tasks = None if is_collection(source) else len(open_)
    with connect(workers, threads=getattr(source, "threads", True), tasks=tasks) as pool:
        flying: dict[Future[TaskResult], int] = {}
        theirs = workers.client is not None or workers.scheduler is not None
        if note is not None and theirs and pool.dashboard is not None:
            note(f"Dask's dashboard is at {pool.dashboard}")
        if job.ledger is not None:
            job.ledger.open()
        blocks = block_tasks(pool, source, partitions, keys, open_, writing)
        following = iter(open_ if blocks is None else blocks.order)
        if progress is not None:
            progress(done, total)
        try:
            while len(results) < len(partitions):
                job.claim.refresh()
                for number in islice(following, max(0, pool.capacity() - len(flying))):
                    if blocks is not None:
                        flying[blocks.submit(number)] = number
                        continue
                    flying[pool.submit(run_task, source, partitions[number], writing, keys[number])] = number
                ended = pool.wait(list(flying))
                for future in ended:
                    number = flying[future]
                    results[number] = job.ended(number, pool.result(future))
                    del flying[future]
                    if blocks is not None:
                        blocks.done(number)
                    done += partitions[number].num_bytes
                    if progress is not None:
                        progress(done, total)
                if progress is not None and not ended:
                    progress(done, total)
        except BaseException:
            job.attempts.end()
            pool.let_end(list(flying))
            raise
    return [results[number] for number in range(len(partitions))]


def _check_order(receipts: Sequence[Receipt]) -> None:
    """Check that an id in several partitions is one sequence: the last of one and the first of the next."""
    seen: set[str] = set()
    last: str | None = None
    for receipt in receipts:
        for id in receipt.ids:
            if id in seen and id != last:
                raise duplicate_id(id)
            seen.add(id)
            last = id
