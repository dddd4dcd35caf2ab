"""`verify`: reads everything that versions of a store name, in parallel, and says what is not as it was written."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from streamseq.core.errors import StoreError
from streamseq.storage.checksum import as_bytes, crc32c, to_hex
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.interface import InFile
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.shards.decoding import Chunks
from streamseq.storage.shards.opening import open_chunks
from streamseq.storage.upkeep.findings import Problem, VerifyReport
from streamseq.storage.upkeep.leftovers import unnamed
from streamseq.storage.upkeep.verify_tables import Contents, check_attachments, check_tables
from streamseq.storage.versions.version import Version

# Work that is handed out beyond what threads are doing.
_WAITING = 2


def verify(
    uri: str | os.PathLike[str] | Place,
    version: int | None = None,
    *,
    all_versions: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> VerifyReport:
    """Read all of a store and say what is not as it was written; it does not stop at the first problem.

    Checked are the version file, the tables, the checksum of every chunk, that it decodes, the checksum of the decoded
    values of every field of every shard, and that no file is there too few or too many. Each thread holds one chunk.

    Args:
        uri: Where the store lies.
        version: The version to check; None: the newest one.
        all_versions: Check all versions there are; what several of them name is read once.
        workers: Threads that read; None: one a core.
        progress: Called with the stored bytes that are done and all there are, at the start and as it goes on.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Raises:
        StoreError: There is no store, or no such version.
        ValueError: `workers` is less than 1, or a version is given and all are asked for.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("uint8")}) as writer:
        ...         writer.write("plant-3", x=np.uint8([1, 2]))
        ...     report = ss.open(folder + "/plants.zarr").verify()
        >>> report.ok, report.problems, report.chunks
        (True, (), 1)
    """
    began = time.monotonic()
    if workers is not None and workers < 1:
        raise ValueError(f"verify takes at least 1 worker, got {workers}")
    if all_versions and version is not None:
        raise ValueError(f"one version is checked or all of them, got version {version} and all_versions=True")
    place = place_of(uri, storage_options).direct()
    if all_versions:
        _ = DiskStore(place)  # says that there is no store
        numbers = place.version_numbers()
    else:
        numbers = [DiskStore(place, version).version]
    problems: list[Problem] = []
    checked: list[Version] = []
    contents: dict[int, Contents] = {}
    for number in numbers:
        store = DiskStore(place, number)
        try:
            snapshot = store.snapshot
        except StoreError as error:
            if number not in place.version_numbers():
                raise
            problems.append(Problem(store=place.uri, versions=(number,), part="version", what=str(error)))
            continue
        contents[number], wrong = check_tables(store)
        checked.append(snapshot)
        problems += wrong
        problems += check_attachments(store)
    counter = _Counter(progress)
    for task in _tasks(checked):
        counter.expect(task)
    wrong_tasks = _run(place, _tasks(checked), workers or os.cpu_count() or 1, counter)
    problems += _problems(place, checked, wrong_tasks, contents)
    newest = checked[-1] if checked else None
    return VerifyReport(
        store=place.uri,
        versions=tuple(numbers),
        problems=tuple(_once(problems)),
        leftovers=tuple(unnamed(place)),
        sequences=newest.num_sequences if newest else 0,
        timesteps=newest.num_timesteps if newest else 0,
        shards=counter.shards,
        chunks=counter.chunks,
        bytes=counter.total,
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One field of one shard, as a version names it; or with no field the folder of a shard."""

    version: Version
    number: int
    field: str | None

    @property
    def shard(self) -> str:
        return self.version.shards[self.number].id

    @property
    def num_bytes(self) -> int:
        return 0 if self.field is None else self.version.shards[self.number].fields[self.field].num_bytes

    @property
    def said(self) -> object:
        """All that the version says of it."""
        layout, shard = self.version.layout, self.version.shards[self.number]
        if self.field is None:
            return shard.id, layout.backend, tuple(layout.fields)
        field, stored = layout.fields[self.field], shard.fields[self.field]
        how = (field.dtype, field.shape, layout.codecs[self.field], layout.chunk_timesteps[self.field])
        said = (shard.num_timesteps, stored.num_bytes, stored.crc32c, shard.manifest_crc32c)
        return shard.id, self.field, how, said


# What is wrong with a task: the number of the chunk, None for all of them; in words; and whether all that this hits is
# refused only because of the files around it.
_Wrong = tuple[int | None, str, bool]


class _StoppedError(Exception):
    """Nobody waits for the result any more."""


def _tasks(versions: Sequence[Version]) -> Iterator[_Task]:
    """What is to be read; what several versions say alike only once, as the newest of them has it."""
    known: set[object] = set()
    for version in reversed(versions):
        for number in range(len(version.shards)):
            for field in (None, *version.layout.fields):
                task = _Task(version=version, number=number, field=field)
                if len(versions) > 1:
                    if task.said in known:
                        continue
                    known.add(task.said)
                yield task


def _run(place: Place, tasks: Iterator[_Task], workers: int, counter: _Counter) -> list[tuple[_Task, list[_Wrong]]]:
    """Do all tasks, and return those with something wrong, in their order."""
    stop = threading.Event()
    found: dict[int, tuple[_Task, list[_Wrong]]] = {}
    counter.show()
    with ThreadPoolExecutor(workers, thread_name_prefix="streamseq-verify") as pool:
        running: dict[Future[list[_Wrong]], tuple[int, _Task]] = {}
        following = enumerate(tasks)
        try:
            while True:
                for number, task in islice(following, max(0, workers + _WAITING - len(running))):
                    running[pool.submit(_check, place, task, stop, counter)] = number, task
                if not running:
                    break
                ended, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in ended:
                    number, task = running.pop(future)
                    if wrong := future.result():
                        found[number] = task, wrong
                counter.show()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [found[number] for number in sorted(found)]


class _Counter:
    """What is to be read and what was, added up by threads and shown by one."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self._lock = threading.Lock()
        self._progress = progress
        self._done = 0
        self._shown = -1
        self.total = 0
        self.shards = 0
        self.chunks = 0

    def expect(self, task: _Task) -> None:
        self.total += task.num_bytes
        self.shards += task.field is None

    def add(self, num_bytes: int, chunks: int) -> None:
        with self._lock:
            self._done += num_bytes
            self.chunks += chunks

    def show(self) -> None:
        done = self._done
        if self._progress is not None and done != self._shown:
            self._progress(done, self.total)
            self._shown = done


def _check(place: Place, task: _Task, stop: threading.Event, counter: _Counter) -> list[_Wrong]:
    if task.field is None:
        return _check_folder(place, task)
    done = 0
    wrong: list[_Wrong] = []
    try:
        for portion, failed in _check_field(place, task, task.field, wrong):
            if stop.is_set():
                raise _StoppedError
            counter.add(portion - done, not failed)
            done = portion
    finally:
        counter.add(task.num_bytes - done, 0)
    return wrong


def _check_field(place: Place, task: _Task, name: str, wrong: list[_Wrong]) -> Iterator[tuple[int, bool]]:
    """Decode the chunks of a field; yield after each the bytes done so far and whether it failed."""
    version, shard = task.version, task.version.shards[task.number]
    field, steps = version.layout.fields[name], version.layout.chunk_timesteps[name]
    where = f"store {place.uri}, shard {shard.id}, field {name!r}"
    num_chunks = -(-shard.num_timesteps // steps)

    def opened(salvage: bool) -> Chunks:
        begins = np.full(num_chunks, -1, np.int64)
        return open_chunks(place, version, task.number, name, begins, salvage=salvage)

    around: str | None = None
    try:
        chunks = opened(salvage=False)
    except Exception as error:  # whatever broken bytes lead to, the rest is read
        around = _reason(error, where)
        try:
            chunks = opened(salvage=True)
        except Exception:
            wrong.append((None, around, False))
            return
    crc, failed, spare = 0, False, None
    for chunk in range(num_chunks):
        count = min(steps, shard.num_timesteps - chunk * steps)
        try:
            found = chunks.decode(chunk, spare)
            values = found.read(field.dtype, field.shape, 0, count) if isinstance(found, InFile) else found
            if values.shape != (count, *field.shape):
                raise ValueError(f"has shape {list(values.shape)} and was written with {[count, *field.shape]}")
        except Exception as error:  # as above
            wrong.append((chunk, _reason(error, f"{where}, chunk {chunk}"), False))
            failed, spare = True, None
            yield shard.fields[name].num_bytes * (chunk + 1) // num_chunks, True
            continue
        crc = crc32c(as_bytes(np.ascontiguousarray(values)), crc)
        # What is decoded next may use its memory.
        spare = values if values.flags.owndata and values.flags.writeable else None
        yield shard.fields[name].num_bytes * (chunk + 1) // num_chunks, False
    if not failed and crc != shard.fields[name].crc32c:
        said = to_hex(shard.fields[name].crc32c)
        what = f"has values of crc32c {to_hex(crc)} and was written with {said}: restore the shard"
        wrong.append((None, what, False))
    elif around is not None:
        wrong.append((None, around, True))


def _check_folder(place: Place, task: _Task) -> list[_Wrong]:
    """Look for files in the folder of a shard that nobody wrote."""
    layout = task.version.layout
    root = f"shards/{task.shard}"
    expected: dict[str, set[str]] = {}
    if layout.backend == "arrow":
        expected[root] = {"shard.json", *(f"{name}.arrow" for name in layout.fields)}
    else:
        expected[root] = {"zarr.json", *layout.fields}
        for name, field in layout.fields.items():
            path = f"{root}/{name}"
            expected[path] = {"zarr.json", "c"}
            path += "/c"
            for _ in range(1 + len(field.shape)):
                expected[path] = {"0"}
                path += "/0"
    strangers = [
        f"{folder}/{name}" for folder, names in expected.items() for name in sorted({*place.names(folder)} - names)
    ]
    return [(None, f"has a file that is none of its own, {name}: remove it", True) for name in strangers]


def _problems(
    place: Place,
    versions: Sequence[Version],
    wrong: Sequence[tuple[_Task, list[_Wrong]]],
    contents: Mapping[int, Contents],
) -> list[Problem]:
    """What is wrong with shards, with the sequences that it hits."""
    numbers = [{shard.id: number for number, shard in enumerate(version.shards)} for version in versions if wrong]
    found: list[tuple[Problem, int, tuple[int, int]]] = []
    for task, reasons in wrong:
        version, shard = task.version, task.version.shards[task.number]
        alike = [
            other.number
            for other, places in zip(versions, numbers, strict=True)
            if shard.id in places
            and task.field in (None, *other.layout.fields)
            and _Task(version=other, number=places[shard.id], field=task.field).said == task.said
        ]
        first = sum(before.num_timesteps for before in version.shards[: task.number])
        for chunk, what, salvageable in reasons:
            steps = shard.num_timesteps if chunk is None else version.layout.chunk_timesteps[task.field or ""]
            low = (chunk or 0) * steps
            rows = (first + low, first + min(low + steps, shard.num_timesteps))
            problem = Problem(
                store=place.uri,
                versions=tuple(alike),
                part="shard",
                what=what,
                shard=shard.id,
                field=task.field,
                chunk=chunk,
                salvageable=salvageable,
            )
            # A file that nobody reads hits nothing.
            found.append((problem, version.number, rows if task.field is not None else (0, 0)))
    problems = [problem for problem, _, _ in found]
    for number, tables in contents.items():
        mine = [index for index, (_, version_number, _) in enumerate(found) if version_number == number]
        for index, spans in zip(mine, tables.spans([found[index][2] for index in mine]), strict=True):
            problems[index] = replace(problems[index], spans=spans)
    return problems


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """What is wrong with a file that several versions name is said once."""
    merged: dict[object, Problem] = {}
    for problem in problems:
        key = (problem.part, problem.what, problem.shard, problem.field, problem.chunk, problem.spans)
        before = merged.get(key)
        versions = problem.versions if before is None else (*before.versions, *problem.versions)
        merged[key] = replace(problem, versions=tuple(sorted(set(versions))))
    return list(merged.values())


def _reason(error: BaseException, where: str) -> str:
    """What an error says beside where."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said.removeprefix(where).lstrip(", ") if said.startswith(where) else said
