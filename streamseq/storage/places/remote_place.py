"""A store in object storage: any file system of fsspec, read through copies on this machine.

Nothing here has folders, renames or locks. Files are uploaded under names that nothing names yet, and a version appears
by one conditional write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs

from streamseq.core.errors import StoreError
from streamseq.storage.places.place import FOLDERS, GROUP_FILE, Place, UnknownOutcomeError
from streamseq.storage.places.remote_ahead import Ahead
from streamseq.storage.places.retrying import (
    ExhaustedError,
    TruncatedError,
    is_passing,
    reason_of,
    retry_seconds,
    retrying,
)
from streamseq.storage.places.shard_cache import ShardCache

T = TypeVar("T")

# File systems whose `pipe_file(mode="create")` is one request that the server decides; elsewhere fsspec looks first and
# writes then, and between the two another writer may.
_CONDITIONAL = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
_HTTP = {"http", "https"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
# What a stalled server may take, in seconds; fsspec's own tries are few, for there are those of `retrying`.
_S3_CONFIG = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}
_S3_TRIES = 2
_TRANSFERS = 8
# One request takes at most so many seconds, and more by its bytes at the slowest rate that counts, in bytes a second.
_STALLED_SECONDS, _SLOWEST = 60.0, 1 << 16
_MOST_FILES = 1 << 16
_PROBE = b"streamseq looks whether a conditional write is one"

# fsspec's memory file system looks first and writes then; it is all in this process.
_memory_lock = threading.Lock()
# Folders of this machine in which writers prepare files, by process, address and writer.
_staged: dict[tuple[int, str, str], Path] = {}


class RemotePlace(Place):
    """A store at an address that fsspec knows. Picklable; every process makes connections of its own.

    Args:
        uri: The address of the root, such as `s3://bucket/plants.zarr`.
        storage_options: What fsspec's file system is made with, beside what its configuration and the environment say.
        cached: Whether copies of files are taken from the cache and kept there.

    Raises:
        StoreError: The package for this kind of address is not installed.
        ValueError: There is no such kind of address, or an environment variable is wrong.
    """

    copies = True

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None, cached: bool = True) -> None:
        self._uri = uri.rstrip("/") if not uri.endswith("://") else uri
        self._options = dict(storage_options or {})
        self._cached = cached
        self._scheme = uri.partition(":")[0].lower()
        self._seconds = retry_seconds()
        self._stalled_after = min(_STALLED_SECONDS, max(1.0, self._seconds))
        self._cache = ShardCache(self._uri)
        self._made: tuple[int, Any] | None = None
        self._ahead: tuple[int, Ahead] | None = None
        self._probed = False
        self._path = ""
        _ = self._fs

    def __reduce__(self) -> tuple[type[RemotePlace], tuple[str, dict[str, Any], bool]]:
        return RemotePlace, (self._uri, self._options, self._cached)

    @property
    def uri(self) -> str:
        """The address."""
        return self._uri

    @property
    def _fs(self) -> Any:
        """The file system, one a process: connections and the thread that serves them do not survive a fork."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), self._make()
        return self._made[1]

    def _make(self) -> Any:
        options = dict(self._options)
        if self._scheme in _EXTRAS or self._scheme in _HTTP:
            # A listing that is remembered misses the version that another machine just committed.
            options.setdefault("use_listings_cache", False)
        if _EXTRAS.get(self._scheme) == "s3":
            said = options.get("config_kwargs") or fsspec.config.conf.get("s3", {}).get("config_kwargs") or {}
            options["config_kwargs"] = {**_S3_CONFIG, **said}
        try:
            fs, self._path = url_to_fs(self._uri, **options)
        except ImportError as error:
            extra = _EXTRAS.get(self._scheme)
            remedy = f"pip install streamseq[{extra}]" if extra else reason_of(error)
            raise StoreError(
                f"addresses {self._scheme}:// need a package of their own, which is not installed: {remedy}"
            ) from error
        except ValueError as error:
            if "rotocol" not in str(error):
                raise
            raise ValueError(
                f"a store's address is a local path or a URL that fsspec knows, got {self._uri!r}: {error}"
            ) from None
        if _EXTRAS.get(self._scheme) == "s3":
            fs.retries = _S3_TRIES
        return fs

    def direct(self) -> RemotePlace:
        """See `Place.direct`: copies are fetched, and not kept."""
        return RemotePlace(self._uri, self._options, cached=False)

    # Looking

    def names(self, folder: str) -> list[str]:
        """See `Place.names`."""
        path = self._at(folder)

        def look() -> list[str]:
            try:
                found = self._listing(path)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return [name.rstrip("/") for name in found]

        below = {
            name.rpartition("/")[2] for name in self._retry(f"listing {self._named(folder)}", look) if name != path
        }
        return sorted(below - {""})

    def _listing(self, path: str) -> list[str]:
        self._fs.invalidate_cache()
        found: list[str] = self._call("ls", path, detail=False)
        return found

    def exists(self, name: str) -> bool:
        """See `Place.exists`."""

        def look() -> bool:
            self._fs.invalidate_cache()
            try:
                self._call("info", self._at(name))
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

        return self._retry(f"looking for {self._named(name)}", look)

    def modified(self, name: str) -> float:
        """See `Place.modified`: of a folder, when a file below it was last written."""

        def look() -> float:
            infos = self._find(name)
            if not infos:
                raise FileNotFoundError(f"{self._named(name)} is not there")
            return max(_modified(info) for info in infos.values())

        return self._retry(f"looking at {self._named(name)}", look)

    def _find(self, name: str) -> dict[str, dict[str, Any]]:
        """The files with a name or below it, and what is known of them."""
        self._fs.invalidate_cache()
        try:
            found = self._call("find", self._at(name), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {path: info for path, info in found.items() if info.get("type") != "directory"}

    def _size(self, name: str) -> int:
        """The size of a file, in one try."""
        size = self._call("info", self._at(name))["size"]
        if size is None:
            raise StoreError(f"the server does not say how long {self._named(name)} is: read it from another one")
        return int(size)

    def version_numbers(self) -> list[int]:
        """See `Place.version_numbers`: plain HTTP servers list nothing, there versions are looked for one by one."""
        if self._scheme not in _HTTP:
            return super().version_numbers()
        from streamseq.storage.places.remote_http import numbers_there

        return numbers_there(self.exists)

    # Reading

    def read(self, name: str) -> bytes:
        """See `Place.read`."""

        def fetch() -> bytes:
            size = self._size(name)
            content: bytes = self._call("cat_file", self._at(name), num_bytes=size)
            if len(content) != size:
                raise TruncatedError(f"{len(content)} of {size} bytes came")
            return content

        return self._retry(f"reading {self._named(name)}", fetch)

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """See `Place.file`: a copy."""
        sizes = self._sizes(name, lambda: {name: self._size(name)})
        with self._copies(sizes) as folder:
            yield folder / name

    @contextlib.contextmanager
    def shard(self, shard: str, field: str) -> Iterator[Path]:
        """See `Place.shard`: copies of what the field needs."""
        with self._copies(self._needed(shard, field)) as folder:
            below = folder / "shards" / shard
            below.mkdir(parents=True, exist_ok=True)
            yield below

    def near(self, shard: str, field: str) -> bool:
        """See `Place.near`."""
        known = self._cache.read(_index_of(f"shards/{shard}")) if self._cached else None
        if known is not None:
            with contextlib.suppress(StoreError):
                if self._cache.holds(_of_field(_parse_sizes(known), shard, field)):
                    return True
        if self._cached:
            if self._ahead is None or self._ahead[0] != os.getpid():
                self._ahead = os.getpid(), Ahead()
            self._ahead[1].begin(f"{self._uri} {shard} {field}", lambda: self._fetch_ahead(shard, field))
        return False

    def _fetch_ahead(self, shard: str, field: str) -> None:
        needed = self._needed(shard, field)
        # What would push out most of the rest, or is not kept at all, is fetched by who reads it.
        if sum(needed.values()) <= self._cache.most // 4:
            with self._copies(needed):
                pass

    def forget(self, name: str) -> None:
        """See `Place.forget`."""
        self._cache.drop(name)
        self._cache.drop(_index_of(name))

    def _needed(self, shard: str, field: str) -> dict[str, int]:
        """The files that one field of a shard is read from, and their sizes."""
        if self._scheme in _HTTP:
            from streamseq.storage.places.remote_http import files_of_field

            return self._sizes(
                f"shards/{shard}/{field}", lambda: files_of_field(self._size_of, self.read, shard, field)
            )
        name = f"shards/{shard}"

        def look() -> dict[str, int]:
            start = len(self._at("")) + 1
            found = self._find(name)
            if len(found) > _MOST_FILES:
                raise StoreError(f"a shard has few files, {self._named(name)} has {len(found)}: see who wrote it")
            return {path[start:]: int(info["size"]) for path, info in found.items()}

        return _of_field(self._sizes(name, look), shard, field)

    def _size_of(self, name: str) -> int:
        return self._retry(f"looking at {self._named(name)}", lambda: self._size(name))

    def _sizes(self, name: str, look: Callable[[], dict[str, int]]) -> dict[str, int]:
        """Sizes of files that never change, which are remembered beside the copies, so that these need no network."""
        known = self._cache.read(_index_of(name)) if self._cached else None
        if known is not None:
            with contextlib.suppress(StoreError):
                return _parse_sizes(known)
            self._cache.drop(_index_of(name))
        sizes = self._retry(f"looking at {self._named(name)}", look)
        if self._cached and sizes:
            self._cache.keep(_index_of(name), json.dumps(sizes).encode())
        return sizes

    def _copies(self, sizes: Mapping[str, int]) -> AbstractContextManager[Path]:
        return self._cache.files(sizes, self._fetch, keep=self._cached)

    def _fetch(self, name: str, size: int, path: Path) -> None:
        def fetch() -> None:
            path.unlink(missing_ok=True)
            self._call("get_file", self._at(name), str(path), num_bytes=size)
            found = path.stat().st_size
            if found != size:
                raise TruncatedError(f"{found} of {size} bytes came")

        self._retry(f"fetching {self._named(name)}", fetch)

    # Writing

    def begin(self) -> object:
        """See `Place.begin`: whether versions can be committed here is found out before anything is written."""
        self._probe()
        return None

    def undo(self, begun: object) -> None:
        """See `Place.undo`."""
        if self.version_numbers():
            return
        for folder in (*FOLDERS, ""):
            if set(self.names(folder)) == {GROUP_FILE}:
                self.remove(f"{folder}/{GROUP_FILE}".lstrip("/"))

    def staging(self, writer: str) -> Path:
        """See `Place.staging`: a folder for temporary files."""
        key = (os.getpid(), self._uri, writer)
        if key not in _staged:
            _staged[key] = Path(tempfile.mkdtemp(prefix=f"streamseq-{writer}-"))
        return _staged[key]

    def end_staging(self, writer: str) -> None:
        """See `Place.end_staging`."""
        folder = _staged.pop((os.getpid(), self._uri, writer), None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def publish_shards(self, staged: Sequence[Path]) -> None:
        """See `Place.publish_shards`."""
        files = [
            (path, f"shards/{folder.name}/{path.relative_to(folder).as_posix()}")
            for folder in staged
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        self._all(lambda pair: self._upload(*pair), files)
        for folder in staged:
            shutil.rmtree(folder, ignore_errors=True)

    def publish_table(self, staged: Path) -> None:
        """See `Place.publish_table`."""
        self._upload(staged, f"tables/{staged.name}")

    def _upload(self, path: Path, name: str) -> None:
        size = path.stat().st_size

        def upload() -> None:
            self._call("put_file", str(path), self._at(name), num_bytes=size)
            self._fs.invalidate_cache()
            found = self._size(name)
            if found != size:
                raise TruncatedError(f"{found} of {size} bytes arrived")

        try:
            self._retry(f"writing {self._named(name)}", upload)
        except FileNotFoundError as error:
            raise self._no_bucket(error) from error

    def put_if_absent(self, name: str, content: bytes, staging: Path | None = None) -> bool:
        """See `Place.put_if_absent`: a conditional write, which no folder of this machine is needed for."""
        self._probe()
        try:
            self._retry(f"writing {self._named(name)}", lambda: self._create(name, content))
        except FileExistsError:
            # A connection can be dropped after the server did it, and the next try, which may be fsspec's own, finds it
            # there.
            return self._is(name, content, "it was there, and")
        except FileNotFoundError as error:
            raise self._no_bucket(error) from error
        except ExhaustedError as error:
            return self._is(name, content, str(error))
        return True

    def _is(self, name: str, content: bytes, why: str) -> bool:
        """Whether a file has this content. Versions and claims say who wrote them; others' same bytes do as well.

        Raises:
            UnknownOutcomeError: It is not there, and may appear later; or it cannot be read.
        """
        try:
            return self.read(name) == content
        except (FileNotFoundError, ExhaustedError) as error:
            raise UnknownOutcomeError(
                f"whether {self._named(name)} was written is not known, {why} {reason_of(error)}: open the store later "
                "to see whether it is there, before you write the same again; clean removes what is not named"
            ) from error

    def undecided(self, error: BaseException | None) -> bool:
        """See `Place.undecided`: also after Ctrl-C, for the request goes on in the thread that serves connections."""
        return isinstance(error, UnknownOutcomeError) or not (error is None or isinstance(error, Exception))

    def _create(self, name: str, content: bytes) -> None:
        with _memory_lock if self._scheme == "memory" else contextlib.nullcontext():
            self._call("pipe_file", self._at(name), content, mode="create", num_bytes=len(content))

    def _probe(self) -> None:
        """Find out whether a conditional write is one here: some servers of the S3 protocol ignore the condition.

        Raises:
            StoreError: It is not.
        """
        if self._probed:
            return
        if self._scheme not in _CONDITIONAL:
            known = ", ".join(f"{scheme}://" for scheme in sorted(_CONDITIONAL))
            raise StoreError(
                f"a version is committed by a conditional write, which is known of {known}; {self._uri} can only be "
                "read: write to a local path and copy the store there"
            )
        name = f"staging/probe-{hashlib.sha256(os.urandom(16)).hexdigest()[:16]}"
        try:
            with contextlib.suppress(FileExistsError):  # done by a try whose answer was lost
                self._retry(f"writing to {self._uri}", lambda: self._create(name, _PROBE))
            try:
                self._retry(f"writing to {self._uri}", lambda: self._create(name, _PROBE))
            except FileExistsError:
                self._probed = True
        except FileNotFoundError as error:
            raise self._no_bucket(error) from error
        finally:
            with contextlib.suppress(Exception):
                self.remove(name)
        if not self._probed:
            raise StoreError(
                f"a version is committed by a conditional write, and the server of {self._uri} wrote over a file in "
                "spite of the condition: write to a local path and copy the store there, or use another server"
            )

    def make_folders(self) -> None:
        """See `Place.make_folders`: there are none."""

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        if name.startswith("staging/"):
            self.end_staging(name.partition("/")[2])

        def remove(path: str) -> None:
            def once() -> None:
                with contextlib.suppress(FileNotFoundError):
                    self._call("rm_file", path)

            self._retry(f"removing {path}", once)

        self._all(remove, self._retry(f"listing {self._named(name)}", lambda: list(self._find(name))))
        if name.startswith(("shards/", "tables/")):
            self.forget(name)

    # How

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}".rstrip("/") if name else self._path.rstrip("/")

    def _named(self, name: str) -> str:
        return f"{self._uri}/{name}".rstrip("/")

    def _call(self, method: str, *args: Any, num_bytes: int = 0, **options: Any) -> Any:
        """Ask the file system for something, in one try of a bounded time.

        A server that accepts a connection and then says nothing is not always noticed by the libraries below.
        """
        fs = self._fs
        asynchronous = getattr(fs, f"_{method}", None) if isinstance(fs, AsyncFileSystem) else None
        if asynchronous is None:
            return getattr(fs, method)(*args, **options)
        seconds = self._stalled_after + num_bytes / _SLOWEST
        try:
            return sync(fs.loop, asynchronous, *args, timeout=seconds, **options)
        except FileNotFoundError as error:
            # fsspec's HTTP says so as well of a server that it does not reach.
            if error.__cause__ is not None and is_passing(error.__cause__):
                raise error.__cause__ from None
            raise

    def _retry(self, what: str, action: Callable[[], T]) -> T:
        return retrying(what, action, self._seconds)

    def _all(self, action: Callable[[T], None], items: Iterable[T]) -> None:
        """Do something for each, several at a time; what went wrong first is raised."""
        waiting = list(items)
        if len(waiting) < 2:
            for item in waiting:
                action(item)
            return
        with ThreadPoolExecutor(min(_TRANSFERS, len(waiting))) as pool:
            try:
                for _ in pool.map(action, waiting):
                    pass
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _no_bucket(self, error: Exception) -> StoreError:
        return StoreError(f"{self._uri} cannot be written, {reason_of(error)}: create the bucket first")


def _index_of(name: str) -> str:
    """Where the sizes of the files of something are kept in the cache."""
    return f"sizes/{name}.json"


def _of_field(sizes: Mapping[str, int], shard: str, field: str) -> dict[str, int]:
    """The files of a shard that one field needs."""
    root = f"shards/{shard}/"
    common = {f"{root}{GROUP_FILE}", f"{root}shard.json", f"{root}{field}.arrow"}
    return {name: size for name, size in sizes.items() if name in common or name.startswith(f"{root}{field}/")}


def _parse_sizes(content: bytes) -> dict[str, int]:
    """Read remembered sizes.

    Raises:
        StoreError: They are damaged.
    """
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not all(type(size) is int and size >= 0 for size in document.values()):
        raise StoreError("the sizes of cached files are damaged: fetch them again")
    return document


def _modified(info: Mapping[str, Any]) -> float:
    """When a file was written, from what a file system says of it; each has a word of its own."""
    for word in ("LastModified", "last_modified", "mtime", "updated", "modified", "created"):
        time = info.get(word)
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        if isinstance(time, datetime):
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        if isinstance(time, (int, float)):
            return float(time)
    raise StoreError(f"the server does not say when {info.get('name')} was written: use another one")
