"""Where a store lies, behind one interface: what is read there, and how it is written so that nothing is lost.

Names are relative to the root of the store, with `/` between folders: `versions/00000001.json`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from streamseq.core.errors import StoreError
from streamseq.storage.places import commit
from streamseq.storage.places.location import StoreFolder, is_remote, local_path, version_of
from streamseq.storage.places.plain_file import check_folder_inside, open_inside, read_inside
from streamseq.storage.versions.version import MAX_VERSION_BYTES

#: The folders of a store, and the file that makes each a Zarr group.
FOLDERS = ("versions", "tables", "shards", "staging")
GROUP_FILE = "zarr.json"


class UnknownOutcomeError(StoreError):
    """Nobody knows whether a file was made, or is going to be: a server was asked to, and does not answer."""


class Place(ABC):
    """Where a store lies. Picklable."""

    #: Whether the files that are handed out are copies, which others than the store's owner may have changed.
    copies = False

    @property
    @abstractmethod
    def uri(self) -> str:
        """The address of the root."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of what is in a folder now, "" for the root, in no order; empty where it is not there."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file of at most `MAX_VERSION_BYTES`.

        Raises:
            FileNotFoundError: There is none.
            CorruptionError: It is larger, or no plain file.
        """

    @abstractmethod
    def file(self, name: str) -> AbstractContextManager[Path]:
        """A file of this machine that has the content of a file of the store; it can be opened in the block.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def shard(self, shard: str, field: str) -> AbstractContextManager[Path]:
        """A folder of this machine in which the files of one field of a shard lie; they can be opened in the block.

        Where there is no such shard, files are missing in the folder.

        Raises:
            CorruptionError: There is something else than a folder.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file or folder, which may be empty."""

    @abstractmethod
    def modified(self, name: str) -> float:
        """When a file or folder was last changed, in seconds, by the clock of where the store lies.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def begin(self) -> object:
        """Prepare to write; what is returned is handed to `undo` if no version comes of it."""

    @abstractmethod
    def undo(self, begun: object) -> None:
        """Remove what `begin` and the writing made, where there is still no version; what others have stays."""

    @abstractmethod
    def staging(self, writer: str) -> Path:
        """The folder of this machine in which a writer prepares its files; made where it is missing."""

    @abstractmethod
    def end_staging(self, writer: str) -> None:
        """Remove the folder of a writer and what is in it."""

    @abstractmethod
    def publish_shards(self, staged: Sequence[Path]) -> None:
        """Give finished shards, folders in a staging folder whose files are on the disk, their names."""

    @abstractmethod
    def publish_table(self, staged: Path) -> None:
        """Give a finished table, a file in a staging folder that is on the disk, its name."""

    @abstractmethod
    def put_if_absent(self, name: str, content: bytes, staging: Path) -> bool:
        """Make a file appear with all of its content, unless it exists; return whether this call made it appear.

        The folder is there already. Of any number of callers exactly one makes the file, and it is there for good when
        this returns.

        Args:
            name: Its name.
            content: What is in it.
            staging: A staging folder of the caller.

        Raises:
            UnknownOutcomeError: It may be done, or be done later.
            StoreError: This cannot be done where the store lies.
        """

    def undecided(self, error: BaseException | None) -> bool:
        """Whether a file that `put_if_absent` was to make may still appear, where a commit ended with this error.

        What such a version names must stay.
        """
        return False

    @abstractmethod
    def make_folders(self) -> None:
        """Make the folders of a store where they are missing."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder and what is in it, if it is there."""

    def near(self, shard: str, field: str) -> bool:
        """Whether `shard` returns at once; where it would have to fetch something, that is begun in the background."""
        return True

    def forget(self, name: str) -> None:  # noqa: B027
        """Drop this machine's copies of a file or folder, if there are any: they are fetched again when needed."""

    def direct(self) -> Place:
        """The same place, with nothing taken from copies that were made before."""
        return self

    def version_numbers(self) -> list[int]:
        """The numbers of the versions committed here, ascending; empty where there is no store."""
        numbers = (version_of(name) for name in self.names("versions"))
        return sorted(number for number in numbers if number is not None)

    def holds_only_leftovers(self) -> bool:
        """Whether there is nothing at the root, or no more than what writers that never committed leave behind."""
        return set(self.names("")) <= {*FOLDERS, GROUP_FILE} and not self.version_numbers()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


class LocalPlace(Place):
    """A folder of this machine, or one that is mounted.

    Args:
        root: The absolute path of the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        """The path."""
        return str(self.root)

    def names(self, folder: str) -> list[str]:
        """See `Place.names`."""
        try:
            return os.listdir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str) -> bytes:
        """See `Place.read`."""
        if not self.root.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))
        return read_inside(self.root, name, MAX_VERSION_BYTES)

    def file(self, name: str) -> AbstractContextManager[Path]:
        """See `Place.file`: the file itself, a plain one to which no link leads."""
        os.close(open_inside(self.root, name))
        return contextlib.nullcontext(self.root / name)

    def shard(self, shard: str, field: str) -> AbstractContextManager[Path]:
        """See `Place.shard`: the folder itself, to which no link leads."""
        check_folder_inside(self.root, f"shards/{shard}")
        return contextlib.nullcontext(self.root / "shards" / shard)

    def exists(self, name: str) -> bool:
        """See `Place.exists`."""
        return (self.root / name).exists()

    def modified(self, name: str) -> float:
        """See `Place.modified`."""
        return (self.root / name).stat().st_mtime

    def begin(self) -> list[Path]:
        """See `Place.begin`: the folders that were made."""
        return commit.make_folder(self.root / "staging")

    def undo(self, begun: object) -> None:
        """See `Place.undo`."""
        assert isinstance(begun, list)
        if self.version_numbers():
            return
        below = [self.root / name for name in reversed(FOLDERS)]
        for path in (*below, *(path for path in reversed(begun) if path not in below)):
            commit.remove_empty_folder(path, GROUP_FILE)

    def staging(self, writer: str) -> Path:
        """See `Place.staging`: a folder in the store, so that publishing is renaming."""
        folder = self.root / "staging" / writer
        commit.make_folder(folder)
        return folder

    def end_staging(self, writer: str) -> None:
        """See `Place.end_staging`."""
        commit.remove_tree(self.root / "staging" / writer)

    def publish_shards(self, staged: Sequence[Path]) -> None:
        """See `Place.publish_shards`."""
        if staged:
            commit.make_folder(self.root / "shards")
            commit.publish_folders(list(staged), self.root / "shards")

    def publish_table(self, staged: Path) -> None:
        """See `Place.publish_table`."""
        commit.publish_file(staged, self.root / "tables")

    def put_if_absent(self, name: str, content: bytes, staging: Path) -> bool:
        """See `Place.put_if_absent`."""
        return commit.put_if_absent(self.root / name, content, staging)

    def make_folders(self) -> None:
        """See `Place.make_folders`."""
        for name in FOLDERS:
            commit.make_folder(self.root / name)

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        path = self.root / name
        if path.is_dir() and not path.is_symlink():
            commit.remove_tree(path)
        else:
            path.unlink(missing_ok=True)

    @property
    def folder(self) -> StoreFolder:
        """Its folders as paths."""
        return StoreFolder(self.root)


def place_of(uri: str | os.PathLike[str] | Place, storage_options: Mapping[str, Any] | None = None) -> Place:
    """Return the place that an address names.

    Args:
        uri: A local path, a `file://` URL, or another URL that fsspec knows; or a place, which is returned as it is.
        storage_options: What fsspec's file system is made with, beside what its configuration and the environment say.

    Raises:
        StoreError: The package for this kind of address is not installed.
        TypeError: `uri` is neither text nor a path.
        ValueError: The address is empty, or of a kind that nobody knows; or there are options for a local path.

    Example:
        >>> place_of("file:///data/plants.zarr").uri
        '/data/plants.zarr'
        >>> place_of("memory://plants.zarr").uri
        'memory://plants.zarr'
    """
    if isinstance(uri, Place):
        return uri
    if is_remote(uri):
        # fsspec is imported by who needs it.
        from streamseq.storage.places.remote_place import RemotePlace

        return RemotePlace(str(uri), storage_options)
    if storage_options:
        raise ValueError(f"storage options are for object stores, {os.fspath(uri)!r} is a local path: leave them out")
    return LocalPlace(local_path(uri))


def version_name(version: int) -> str:
    """The name of the file of a version.

    Example:
        >>> version_name(3)
        'versions/00000003.json'
    """
    return f"versions/{version:08d}.json"
