"""Small jobs that commit one version after another, and what a store holds after each."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import streamseq as ss
from streamseq.etl.source import Partition, Piece
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.upkeep.verify import verify

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64", codec="none")}
# Two or three chunks a shard, two shards a commit.
CUT = {"chunk_bytes": 80, "shard_bytes": 320}

Arrays = dict[str, NDArray[Any]]
Acknowledge = Callable[[Path, int], None]
"""Told of each commit that has returned: the store and its version."""


def values(id: str, first: int, steps: int) -> Arrays:
    """Timesteps of a sequence, which tell the sequence and the timestep apart from all others."""
    key = zlib.crc32(id.encode()) % 4096 * 4096
    timesteps = np.arange(first, first + steps)
    x = (key + 2 * timesteps[:, None] + np.arange(2)).astype(np.float32)
    return {"x": x, "y": (np.int64(key) << 30) + timesteps}


def pieces(commit: int) -> list[tuple[str, int, int]]:
    """What one commit writes: ids, first timesteps and numbers of timesteps. The first makes the store."""
    old = sum(_steps_of_old(before) for before in range(1, commit))
    wrote = [("old", old, _steps_of_old(commit)), (f"new {commit}", 0, 9 + commit % 4)]
    return [*wrote, (f"empty {commit}", 0, 0)] if commit == 1 else wrote


def _steps_of_old(commit: int) -> int:
    return 15 + commit % 3


def contents(commits: int) -> dict[str, Arrays]:
    """What a store holds after so many commits, by id, in order."""
    steps: dict[str, int] = {}
    for commit in range(1, commits + 1):
        for id, _, count in pieces(commit):
            steps[id] = steps.get(id, 0) + count
    return {id: values(id, 0, count) for id, count in steps.items()}


def commits_of(address: Path, version: int) -> int:
    """How many commits wrote what a version holds: not those that compacted it."""
    return sum(DiskStore(address, number).snapshot.operation == "write" for number in range(1, version + 1))


def commit_next(address: Path, backend: str) -> int:
    """Commit the next version of a store, new or not, and return its number."""
    version = ss.open(address).version if is_store(address) else 0
    with ss.append(address) if version else ss.create(address, FIELDS, backend, **CUT) as writer:
        for id, first, steps in pieces(commits_of(address, version) + 1):
            writer.append(id, attrs={"made for": id}, **values(id, first, steps))
    return version + 1


class Pieces:
    """The source of what the first commit writes, in as many partitions as pieces."""

    fields = FIELDS

    def partitions(self, target_bytes: int) -> Sequence[Partition]:
        return [Partition(num_bytes=1, content=number) for number in range(len(pieces(1)))]

    def read(self, partition: Partition) -> Iterator[Piece]:
        id, first, steps = pieces(1)[partition.content]
        yield Piece(id=id, arrays=values(id, first, steps), attrs={"made for": id})


def create(folder: Path, backend: str, commits: int, acknowledge: Acknowledge) -> None:
    """Create one store after another."""
    for number in range(commits):
        address = folder / f"store-{number}"
        acknowledge(address, commit_next(address, backend))


def append(folder: Path, backend: str, commits: int, acknowledge: Acknowledge) -> None:
    """Add to new and old sequences of `store-0`, which is there."""
    for _ in range(commits):
        acknowledge(folder / "store-0", commit_next(folder / "store-0", backend))


def ingest(folder: Path, backend: str, commits: int, acknowledge: Acknowledge) -> None:
    """Write one store after another by a job."""
    for number in range(commits):
        address = folder / f"store-{number}"
        report = ss.ingest(Pieces(), address, workers=2, backend=backend, **CUT)
        acknowledge(address, report.version)


def compact(folder: Path, backend: str, commits: int, acknowledge: Acknowledge) -> None:
    """Put the shards of `store-0`, which is there, together, and after each time add to it."""
    for number in range(commits):
        if number % 2:
            version: int | None = commit_next(folder / "store-0", backend)
        else:
            version = ss.compact(folder / "store-0").version
        assert version is not None
        acknowledge(folder / "store-0", version)


JOBS = {"create": create, "append": append, "ingest": ingest, "compact": compact}
_COMMITS_BEFORE = {"append": 1, "compact": 3}


def prepare(job: str, folder: Path, backend: str) -> int:
    """Make the folder of a job and what it needs; return the version of `store-0` that is there then, 0 for none."""
    folder.mkdir(parents=True, exist_ok=True)
    version = 0
    for _ in range(_COMMITS_BEFORE.get(job, 0)):
        version = commit_next(folder / "store-0", backend)
    return version


def is_store(address: Path) -> bool:
    try:
        ss.open(address)
    except ss.CorruptionError:
        raise
    except ss.StoreError:
        return False
    return True


def check_store(address: Path, versions: set[int]) -> None:
    """Assert that a store has just these versions, and that each reads back exactly."""
    if not versions:
        assert not is_store(address)
        return
    assert set(ss.open(address).versions) == versions
    for version in sorted(versions):
        check_version(address, version)


def check_version(address: Path, version: int) -> None:
    """Assert that a version reads back exactly."""
    store = ss.open(address, version)
    wanted = contents(commits_of(address, version))
    assert store.ids.to_pylist() == list(wanted)
    assert store.fields == FIELDS
    assert store.lengths.tolist() == [len(arrays["y"]) for arrays in wanted.values()]
    for id, arrays in wanted.items():
        assert store.attrs(id) == {"made for": id}
        got = store.read(id)
        assert got.keys() == arrays.keys()
        for name, expected in arrays.items():
            assert got[name].dtype == expected.dtype
            assert got[name].tobytes() == expected.tobytes(), (version, id, name)


def check_outcome(address: Path, backend: str, acknowledged: int, may_be: int) -> set[int]:
    """Assert what holds after a job was stopped, however; return the versions that are there.

    All versions up to the acknowledged one are there, perhaps the one after it, which nobody was told of, and no other.
    They read back exactly, the next writer succeeds beside what was left, and `clean` then finds all of that.
    """
    versions = set(ss.open(address).versions) if is_store(address) else set()
    assert set(range(1, acknowledged + 1)) <= versions <= set(range(1, may_be + 1))
    check_store(address, versions)
    assert commit_next(address, backend) == len(versions) + 1
    ss.clean(address)
    check_version(address, len(versions) + 1)
    assert verify(address, all_versions=True, workers=1).problems == ()
    assert set(entries(address)) ^ set(named(address)) == set()
    return versions


def named(address: Path) -> list[str]:
    """The names of all files that the versions of a store name, and of the Zarr groups that its folders are."""
    names = {"zarr.json", *(f"{folder}/zarr.json" for folder in ("shards", "staging", "tables", "versions"))}
    if ss.open(address).backend == "arrow":
        names.clear()
    for version in ss.open(address).versions:
        snapshot = DiskStore(address, version).snapshot
        names.add(f"versions/{version:08d}.json")
        for tables in snapshot.tables:
            names |= {f"tables/{file.name}" for file in (tables.sequences, tables.pieces, tables.index)}
        names |= {f"tables/{file.name}" for file in snapshot.attachments.values()}
        for shard in snapshot.shards:
            names |= {f"shards/{shard.id}/{name}" for name in entries(address / "shards" / shard.id)}
    return sorted(names)


def entries(folder: Path) -> list[str]:
    """The names of all files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
