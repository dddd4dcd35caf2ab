"""The spill: a sweep's boundaries and progress in files, checksummed, each written as a whole."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamseq.core.errors import CorruptionError
from streamseq.storage.checksum import crc32c
from streamseq.storage.places.commit import make_folder, replace_file

_HEADER = struct.Struct("<8sI")
_MAGIC = b"streamsq"
_KEY, _PROGRESS = "sweep.json", "progress.pt"


def checksum(tensors: Iterable[Tensor]) -> int:
    """The crc32c of the values of tensors, in order."""
    crc = 0
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous().reshape(-1)
        crc = crc32c(values.view(torch.uint8).numpy(), crc)
    return crc


class Spill:
    """A folder of files that hold groups of boundaries, and how far a backward sweep has come.

    Args:
        folder: Where files outlive the process, for a sweep that may be taken up again; None: a temporary folder, made
            when it is needed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._given = folder
        self._folder = folder
        #: Numbers `[first, stop)` of the boundaries in each file, in order.
        self.groups: list[tuple[int, int]] = []

    @property
    def lasting(self) -> bool:
        """Whether files outlive the process."""
        return self._given is not None

    def begin(self, key: Mapping[str, Any]) -> bool:
        """Begin a sweep; return whether files of the same one are there, which then count as written.

        Args:
            key: What makes it the same sweep, plain values.
        """
        if self._given is None:
            return False
        make_folder(self._given)
        path = self._given / _KEY
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            found = None
        if found == json.loads(json.dumps(key)):
            self.groups = self._written()
            return True
        self.clear()
        make_folder(self._given)
        replace_file(path, lambda file: file.write(json.dumps(key).encode()))
        return False

    def _written(self) -> list[tuple[int, int]]:
        """The groups that lie in the folder, from 0 on without a gap."""
        assert self._given is not None
        groups: list[tuple[int, int]] = []
        for path in sorted(self._given.glob("states-*.pt")):
            first, stop = map(int, path.stem.split("-")[1:])
            if first == (groups[-1][1] if groups else 0):
                groups.append((first, stop))
        return groups

    def write_group(self, first: int, entries: list[Any]) -> None:
        """Write the boundaries from number `first` on."""
        group = (first, first + len(entries))
        self._write(self._path(group), entries)
        self.groups.append(group)

    def read_group(self, group: tuple[int, int]) -> list[Any]:
        """The boundaries of a group.

        Raises:
            CorruptionError: The file is not what was written.
        """
        entries: list[Any] = self._read(self._path(group))
        return entries

    def drop_group(self) -> None:
        """Remove the last group."""
        self._path(self.groups.pop()).unlink(missing_ok=True)

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Write how far the backward sweep has come."""
        assert self._given is not None
        self._write(self._given / _PROGRESS, dict(progress))

    def read_progress(self) -> dict[str, Any] | None:
        """How far it had come; None: it had not begun.

        Raises:
            CorruptionError: The file is not what was written.
        """
        if self._given is None or not (self._given / _PROGRESS).exists():
            return None
        progress: dict[str, Any] = self._read(self._given / _PROGRESS)
        return progress

    def clear(self) -> None:
        """Remove the files, and the folder if nothing else lies in it."""
        self.groups = []
        if self._folder is None:
            return
        if self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            return
        for pattern in ("states-*.pt", _PROGRESS, _KEY, ".*.tmp"):
            for path in self._given.glob(pattern):
                path.unlink(missing_ok=True)
        if self._given.is_dir() and not any(self._given.iterdir()):
            self._given.rmdir()

    def _path(self, group: tuple[int, int]) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="streamseq-sweep-"))
        return self._folder / f"states-{group[0]:012d}-{group[1]:012d}.pt"

    def _write(self, path: Path, content: Any) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()

        def write(file: Any) -> None:
            file.write(_HEADER.pack(_MAGIC, crc32c(data)))
            file.write(data)

        if self.lasting:
            replace_file(path, write)
        else:
            with path.open("wb") as file:
                write(file)

    @staticmethod
    def _read(path: Path) -> Any:
        data = path.read_bytes()
        head, body = data[: _HEADER.size], data[_HEADER.size :]
        if len(head) < _HEADER.size or _HEADER.unpack(head) != (_MAGIC, crc32c(body)):
            raise CorruptionError(
                f"a state that was spilled is read as it was written, and {path} is not: remove the folder "
                f"{path.parent} to begin the update anew"
            )
        load = partial(torch.load, weights_only=True)
        return load(io.BytesIO(body))
