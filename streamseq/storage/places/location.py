"""Where a store lies: from the address a user gives to the folders and files below its root."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_VERSION_FILE = re.compile(r"[0-9]{8,15}\.json")


@dataclass(frozen=True, slots=True)
class StoreFolder:
    """The folders and files of one store.

    Example:
        >>> StoreFolder(Path("plants.zarr")).shards.as_posix()
        'plants.zarr/shards'
    """

    root: Path

    @property
    def versions(self) -> Path:
        """One JSON file a version; a version exists when its file does."""
        return self.root / "versions"

    @property
    def shards(self) -> Path:
        """One folder a shard, never changed."""
        return self.root / "shards"

    @property
    def tables(self) -> Path:
        """Which sequences a version added, and where their pieces lie."""
        return self.root / "tables"

    @property
    def staging(self) -> Path:
        """One folder a writer, for what is not published yet."""
        return self.root / "staging"


def version_of(name: str) -> int | None:
    """The version whose file has this name; None where it is no version file.

    Example:
        >>> version_of("00000003.json"), version_of("00000003.json.tmp")
        (3, None)
    """
    return int(name.removesuffix(".json")) if _VERSION_FILE.fullmatch(name) else None


def is_remote(uri: object) -> bool:
    """Whether an address is a URL of something else than a file of this machine.

    Example:
        >>> is_remote("s3://bucket/plants.zarr"), is_remote("file:///data/plants.zarr"), is_remote("plants.zarr")
        (True, False, False)
    """
    return isinstance(uri, str) and bool(_SCHEME.match(uri)) and urlsplit(uri).scheme.lower() != "file"


def local_path(uri: str | os.PathLike[str]) -> Path:
    """Return the absolute path that an address names.

    Args:
        uri: A local path or a `file://` URL.

    Raises:
        TypeError: `uri` is neither text nor a path.
        ValueError: The address is empty, or a URL of another scheme.

    Example:
        >>> local_path("file:///data/plants.zarr").as_posix()
        '/data/plants.zarr'
    """
    text = os.fspath(uri)
    if not isinstance(text, str):
        raise TypeError(f"a store's address is text or a path, got {type(text).__name__}")
    if not text:
        raise ValueError("a store's address is a path, got an empty one")
    if _SCHEME.match(text):
        parts = urlsplit(text)
        if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
            raise ValueError(f"a store's address is a local path or file:// URL, got {text!r}: copy it to a local path")
        text = url2pathname(parts.path)
    return Path(os.path.abspath(text))
