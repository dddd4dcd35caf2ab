"""Copies of a remote store's files on the disk of this machine: bounded, shared by processes, the oldest dropped first.

What is cached never changes where it comes from, so that a copy is the file. A copy that is handed out has a second
name in a folder of its own: whoever drops it from the cache meanwhile, in this process or another, takes nothing away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from streamseq.core.errors import StoreError
from streamseq.storage.places import commit

#: Where the copies lie, and how many bytes they take at most; the environment may say otherwise.
CACHE_VARIABLE, BYTES_VARIABLE = "STREAMSEQ_CACHE", "STREAMSEQ_CACHE_BYTES"
CACHE_BYTES = 10 << 30

_LOCKS = 256
# A folder of copies that were handed out is removed at once, unless its process was killed.
_ABANDONED_SECONDS = 86400.0

Fetch = Callable[[str, int, Path], None]
"""Fetches a file, given its name, its size and the path to write."""


class ShardCache:
    """The copies of one store's files. Picklable; every process may have its own object for the same folder.

    Args:
        store: The address of the store.
        root: The folder of the cache, of all stores; None: what STREAMSEQ_CACHE says, or the user's cache folder.
        most: Bytes that it holds at most; None: what STREAMSEQ_CACHE_BYTES says, or 10 GiB. Never more than what is
            there already and half of what is free on the disk.

    Raises:
        ValueError: The number of bytes is none.
    """

    def __init__(self, store: str, root: Path | None = None, most: int | None = None) -> None:
        self.root = _root() if root is None else root
        self.most = _most() if most is None else most
        self._store = hashlib.sha256(store.encode()).hexdigest()[:16]

    def path(self, name: str) -> Path:
        """Where the copy of a file lies if there is one.

        Raises:
            StoreError: The name leads out of the store.
        """
        if not name or any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
            raise StoreError(
                f"the names of a store's files lead nowhere else, got {name!r}: it was not written by streamseq"
            )
        return self.root / "files" / self._store / name

    def holds(self, files: Mapping[str, int]) -> bool:
        """Whether there are copies of all files, given by name with their sizes."""
        try:
            return all(self.path(name).stat().st_size == size for name, size in files.items())
        except OSError:
            return False

    def read(self, name: str) -> bytes | None:
        """The content of a small copy; None where there is none."""
        path = self.path(name)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return content

    def keep(self, name: str, content: bytes) -> None:
        """Keep a small copy."""
        with self._held() as folder:
            (folder / "kept").write_bytes(content)
            self._keep(folder / "kept", name, len(content))

    @contextlib.contextmanager
    def files(self, files: Mapping[str, int], fetch: Fetch, keep: bool = True) -> Iterator[Path]:
        """A folder with some files of the store, under their names; they can be opened in the block.

        Args:
            files: Their sizes in bytes, by name.
            fetch: Fetches those of which there is no copy.
            keep: Whether copies are used and kept; else all of them are fetched, and dropped after the block.

        Raises:
            StoreError: There is no room on the disk.
        """
        with self._held() as folder:
            for name, size in files.items():
                path = folder / name
                self.path(name)  # refuses a name that leads elsewhere
                path.parent.mkdir(parents=True, exist_ok=True)
                if not keep:
                    fetch(name, size, path)
                    continue
                if self._share(name, size, path):
                    continue
                # Who comes second waits, and finds the copy.
                with self._lock(f"fetch-{int(hashlib.sha256(name.encode()).hexdigest(), 16) % _LOCKS}"):
                    if not self._share(name, size, path):
                        self._make_room(size)
                        fetch(name, size, path)
                        self._keep(path, name, size)
            yield folder

    def drop(self, name: str) -> None:
        """Drop the copy of a file, or of all files in a folder."""
        path = self.path(name)
        with contextlib.suppress(OSError):
            path.unlink()
        commit.remove_tree(path)

    @contextlib.contextmanager
    def _held(self) -> Iterator[Path]:
        """A folder for files that are handed out or on their way."""
        folder = self.root / "held" / f"{os.getpid()}-{uuid.uuid4().hex[:16]}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(
                f"copies of remote files lie in {self.root}, which cannot be written ({error.strerror}): set "
                f"{CACHE_VARIABLE} to another folder"
            ) from error
        try:
            yield folder
        finally:
            commit.remove_tree(folder)

    def _share(self, name: str, size: int, path: Path) -> bool:
        """Give a copy a second name; False where there is none, or not a whole one."""
        cached = self.path(name)
        try:
            commit.share_file(cached, path)
            os.utime(cached)
        except OSError:
            path.unlink(missing_ok=True)
            return False
        if path.stat().st_size == size:
            return True
        path.unlink()
        return False

    def _keep(self, path: Path, name: str, size: int) -> None:
        """Make a fetched file a copy of the cache, unless it is larger than all of it may be."""
        cached = self.path(name)
        with self._lock("room"):
            if self._drop_oldest(size) < size:
                return
            cached.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                cached.unlink()
            # Its age is when it was used, and a fetched file may have another.
            os.utime(path)
            # Without a copy it is fetched again.
            with contextlib.suppress(OSError):
                commit.share_file(path, cached)

    def _make_room(self, size: int) -> None:
        """Make room for a file on the disk, before it is fetched."""
        with self._lock("room"):
            self._drop_oldest(size)
            free = shutil.disk_usage(self.root).free
        if size > free:
            raise StoreError(
                f"a file of {size} bytes is fetched to {self.root}, which has {free} bytes left: set {CACHE_VARIABLE} "
                "to a folder of a larger disk"
            )

    def _drop_oldest(self, size: int) -> int:
        """Drop what was not used for the longest time, so that `size` bytes fit; return how many do."""
        self._drop_abandoned()
        found = []
        for folder, _, names in os.walk(self.root / "files"):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    entry = os.stat(path)
                    found.append((entry.st_mtime_ns, entry.st_size, path))
        total = sum(entry[1] for entry in found)
        most = min(self.most, total + shutil.disk_usage(self.root).free // 2)
        if size > most:
            # It does not fit in any case: what is there stays.
            return most
        for _, num_bytes, path in sorted(found):
            if total + size <= most:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            with contextlib.suppress(OSError):
                os.removedirs(os.path.dirname(path))
            total -= num_bytes
        return most - total

    def _drop_abandoned(self) -> None:
        """Remove what killed processes left."""
        with contextlib.suppress(OSError), os.scandir(self.root / "held") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                        commit.remove_tree(Path(entry.path))

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold a lock that other processes and threads respect, where there are locks."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _root() -> Path:
    said = os.environ.get(CACHE_VARIABLE)
    if said:
        return Path(os.path.abspath(os.path.expanduser(said)))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute() / "streamseq"


def _most() -> int:
    text = os.environ.get(BYTES_VARIABLE)
    if text is None:
        return CACHE_BYTES
    if not text.isdecimal():
        raise ValueError(f"{BYTES_VARIABLE} is a number of bytes, got {text!r}")
    return int(text)
