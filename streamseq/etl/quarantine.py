"""The quarantine of a job: what it left out, as lines of JSON in a file beside its store.

    plants.zarr.quarantine.jsonl
    {"what": "/in/a.csv", "place": "line 7", "reason": "2 cells, the header has 3", "num_bytes": 4, "content": "1,2\\n"}

It lies beside the store, not in it, so that whatever reads the folder of a store finds only a store there. The bytes
are `content` where they are UTF-8 and `content_base64` otherwise; of a whole file, which stays where it is, there are
none. Lines are in the order of the source, and the file is replaced as a whole.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import fsspec.core

from streamseq.core.errors import StoreError
from streamseq.etl.source import Skipped
from streamseq.storage.places import commit
from streamseq.storage.places.location import is_remote
from streamseq.storage.places.place import Place
from streamseq.storage.places.retrying import retry_seconds, retrying

SUFFIX = ".quarantine.jsonl"
# Bytes of what is left out that a report holds; what is more is in the file only.
_HELD_BYTES = 64 << 20


class Quarantine:
    """Collects what the tasks of a job left out, in a file of this machine, and puts it beside the store.

    Args:
        place: Where the store lies.
        storage_options: What fsspec's file system is made with.
        asked: Whether the source was told to quarantine. Then whatever is left out is listed, and a file that an
            earlier run left is removed where there is nothing to list; otherwise there is a file only where a source
            hands over bytes that it left out.

    Raises:
        ValueError: The store is all of a bucket, so that nothing can lie beside it.
    """

    def __init__(self, place: Place, storage_options: Mapping[str, Any] | None = None, *, asked: bool = False) -> None:
        self.address = place.uri + SUFFIX
        self._place = place
        self._options = dict(storage_options or {})
        self._asked = asked
        self._writer = uuid.uuid4().hex[:16]
        self._spool: IO[bytes] | None = None
        #: By number of the partition, where its lines begin and end.
        self._spans: dict[int, tuple[int, int]] = {}
        self._held = 0
        self._has_content = False
        self._existed = False
        self._published = False
        if asked and is_remote(place.uri) and "/" not in self._remote()[1]:
            raise ValueError(
                f"what is quarantined is put beside the store, and beside {place.uri} there is nothing: put the store "
                "into a folder"
            )

    def take(self, number: int, skipped: Sequence[Skipped]) -> tuple[Skipped, ...]:
        """Keep what a partition left out; return it, without the bytes where a report would hold too many.

        Args:
            number: The number of the partition; what is kept of it counts once.
            skipped: What it left out.
        """
        if not skipped or number in self._spans:
            return tuple(skipped)
        if self._spool is None:
            self._spool = (self._place.staging(self._writer) / "spool").open("w+b")
        start = self._spool.tell()
        kept = []
        for item in skipped:
            self._spool.write(line_of(item))
            if item.content is not None:
                self._has_content = True
                self._held += len(item.content)
            kept.append(item if item.content is None or self._held <= _HELD_BYTES else replace(item, content=None))
        self._spans[number] = start, self._spool.tell()
        return tuple(kept)

    def publish(self) -> str | None:
        """Replace the file beside the store; return its address, or None where nothing was quarantined.

        Raises:
            StoreError, OSError: It cannot be written.
        """
        if self._spool is None or not (self._asked or self._has_content):
            if self._asked:
                self.remove()
            return None
        self._existed = self._exists()
        staged = self._place.staging(self._writer) / self.address.rpartition("/")[2]
        self._spool.flush()
        with staged.open("wb") as file:
            for _, (start, stop) in sorted(self._spans.items()):
                self._spool.seek(start)
                _copy(self._spool, file, stop - start)
            commit.sync_file(file)
        if is_remote(self.address):
            self._upload(staged)
        else:
            _publish(staged, Path(self.address))
        self._published = True
        return self.address

    def withdraw(self) -> None:
        """Remove the file of a job that no version comes of, where there was none before."""
        if self._published and not self._existed:
            self.remove()

    def _exists(self) -> bool:
        if not is_remote(self.address):
            return os.path.exists(self.address)
        fs, path = self._remote()
        return retrying(f"looking for {self.address}", lambda: bool(fs.exists(path)), retry_seconds())

    def remove(self) -> None:
        """Remove the file beside the store, if there is one."""
        if not is_remote(self.address):
            Path(self.address).unlink(missing_ok=True)
            return
        fs, path = self._remote()

        def remove() -> None:
            if fs.exists(path):
                fs.rm_file(path)

        retrying(f"removing {self.address}", remove, retry_seconds())

    def end(self) -> None:
        """Remove what was collected on this machine."""
        if self._spool is not None:
            self._spool.close()
            self._place.end_staging(self._writer)

    def _remote(self) -> tuple[Any, str]:
        # What another machine wrote or removed meanwhile is not in a listing that is remembered.
        fs, path = fsspec.core.url_to_fs(self.address, **{"use_listings_cache": False, **self._options})
        return fs, str(path)

    def _upload(self, staged: Path) -> None:
        fs, path = self._remote()
        try:
            retrying(f"writing {self.address}", lambda: fs.put_file(str(staged), path), retry_seconds())
        except FileNotFoundError as error:
            raise StoreError(f"{self.address} cannot be written, {error}: create the bucket first") from error


def line_of(skipped: Skipped) -> bytes:
    r"""One thing that was left out as a line of JSON.

    Example:
        >>> line_of(Skipped(what="a.csv", place="line 2", reason="odd", num_bytes=4, content=b"1,2\n"))
        b'{"what": "a.csv", "place": "line 2", "reason": "odd", "num_bytes": 4, "content": "1,2\\n"}\n'
        >>> json.loads(line_of(Skipped(what="a.txt", place="line 2", reason="odd", content=b"\xff")))["content_base64"]
        '/w=='
    """
    line: dict[str, object] = {
        "what": skipped.what,
        "place": skipped.place,
        "reason": skipped.reason,
        "num_bytes": skipped.num_bytes,
    }
    if skipped.content is not None:
        try:
            line["content"] = skipped.content.decode()
        except UnicodeDecodeError:
            line["content_base64"] = base64.b64encode(skipped.content).decode()
    return json.dumps(line).encode() + b"\n"


def _publish(staged: Path, path: Path) -> None:
    try:
        commit.publish_file(staged, path.parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The store is on a disk of its own, and beside it is another one.
        with staged.open("rb") as file:
            commit.replace_file(path, lambda target: shutil.copyfileobj(file, target))


def _copy(source: IO[bytes], target: IO[bytes], num_bytes: int) -> None:
    while num_bytes:
        block = source.read(min(num_bytes, 1 << 20))
        target.write(block)
        num_bytes -= len(block)
