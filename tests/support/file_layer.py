"""A layer over the calls that change files: it numbers them, and they can be recorded, made to fail, or never end."""

import builtins
import contextlib
import io
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Flags of files that are opened to be changed.
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call that changes files.

    Args:
        number: Counted from 0 through all operations below the folder that is watched.
        kind: "open" (a file that is written to), "open folder", "write", "fsync", "rename", "replace", "link",
            "unlink", "mkdir", "rmdir" or "truncate".
        path: What it changes; of a rename or link the new name. Relative to the folder that is watched.
    """

    number: int
    kind: str
    path: str

    def __str__(self) -> str:
        return f"{self.number} {self.kind} {self.path}"


Do = Callable[..., Any]
"""Performs the operation. `do(0.5)` performs half of a write; for any other operation the share means nothing."""

Act = Callable[[Operation, Do], Any]
"""Called instead of each operation: it returns `do()`, raises or kills the process."""


@contextlib.contextmanager
def file_layer(folder: Path, act: Act) -> Iterator[None]:
    """Have `act` decide about every operation at or below a folder, of this process, while the block lasts."""
    layer = _Layer(Path(os.path.abspath(folder)), act)
    with contextlib.ExitStack() as undo:
        for module, name, replacement in layer.replacements():
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, replacement)
        yield


class _Layer:
    def __init__(self, folder: Path, act: Act) -> None:
        self._folder = folder
        self._act = act
        self._numbers = itertools.count()
        #: What each descriptor that was opened here is open on.
        self._opened: dict[int, str] = {}

    def replacements(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        yield os, "open", self._os_open(os.open)
        yield os, "fsync", self._of_descriptor("fsync", os.fsync)
        yield os, "fdatasync", self._of_descriptor("fsync", os.fdatasync)
        yield os, "ftruncate", self._of_descriptor("truncate", os.ftruncate)
        yield os, "write", self._os_write(os.write)
        for name in ("unlink", "rmdir", "mkdir", "truncate"):
            yield os, name, self._of_path(name, getattr(os, name))
        yield os, "remove", self._of_path("unlink", os.remove)
        for name in ("rename", "replace", "link"):
            yield os, name, self._of_two_paths(name, getattr(os, name))
        opened = self._file_open(io.open)
        yield io, "open", opened
        yield builtins, "open", opened

    def perform(self, kind: str, path: str | None, do: Do) -> Any:
        below = None if path is None else self._below(path)
        if below is None:
            return do()
        return self._act(Operation(number=next(self._numbers), kind=kind, path=below), do)

    def _below(self, path: str) -> str | None:
        path = os.path.abspath(path)
        if not Path(path).is_relative_to(self._folder):
            return None
        return Path(path).relative_to(self._folder).as_posix()

    def _path(self, path: Any, dir_fd: int | None = None) -> str | None:
        if isinstance(path, int):
            return self._opened.get(path)
        text = os.fsdecode(path)
        if dir_fd is None:
            return text
        above = self._opened.get(dir_fd)
        return None if above is None else os.path.join(above, text)

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            where = self._path(path, dir_fd)

            def do(share: float = 1.0) -> int:
                return real(path, flags, mode, dir_fd=dir_fd)

            if flags & _WRITING:
                descriptor: int = self.perform("open", where, do)
            elif where is not None and os.path.isdir(where):
                descriptor = self.perform("open folder", where, do)
            else:
                descriptor = do()
            self._note(descriptor, where)
            return descriptor

        return opened

    def _note(self, descriptor: int, path: str | None) -> None:
        if path is None:
            self._opened.pop(descriptor, None)
        else:
            self._opened[descriptor] = os.path.abspath(path)

    def _of_descriptor(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(descriptor: Any, *args: Any) -> Any:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            return self.perform(kind, self._opened.get(number), lambda share=1.0: real(descriptor, *args))

        return called

    def _os_write(self, real: Callable[..., int]) -> Callable[..., int]:
        def written(descriptor: int, data: Any) -> int:
            def do(share: float = 1.0) -> int:
                return real(descriptor, memoryview(data).cast("B")[: int(share * memoryview(data).nbytes)])

            count: int = self.perform("write", self._opened.get(descriptor), do)
            return count

        return written

    def _of_path(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, *args: Any, dir_fd: int | None = None) -> Any:
            named = {} if dir_fd is None else {"dir_fd": dir_fd}
            return self.perform(kind, self._path(path, dir_fd), lambda share=1.0: real(path, *args, **named))

        return called

    def _of_two_paths(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(source: Any, target: Any, **named: Any) -> Any:
            where = self._path(target, named.get("dst_dir_fd"))
            return self.perform(kind, where, lambda share=1.0: real(source, target, **named))

        return called

    def _file_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **named: Any) -> Any:
            path = None if isinstance(file, int) else self._path(file)
            if path is None or self._below(path) is None or not set(mode) & set("wxa+"):
                return real(file, mode, buffering, *args, **named)
            raw = self.perform("open", path, lambda share=1.0: _WatchedFile(file, mode.replace("b", ""), self))
            self._note(raw.fileno(), path)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **named)

        return opened


class _WatchedFile(io.FileIO):
    """A file whose writes go through a layer."""

    def __init__(self, file: Any, mode: str, layer: _Layer) -> None:
        super().__init__(file, mode.replace("t", ""))
        self._layer = layer

    def write(self, data: Any) -> int:
        def do(share: float = 1.0) -> int:
            bytes_of = memoryview(data).cast("B")
            return super(_WatchedFile, self).write(bytes_of[: int(share * len(bytes_of))])

        count: int = self._layer.perform("write", os.fsdecode(self.name), do)
        return count

    def truncate(self, size: int | None = None) -> int:
        def do(share: float = 1.0) -> int:
            return super(_WatchedFile, self).truncate(size)

        length: int = self._layer.perform("truncate", os.fsdecode(self.name), do)
        return length
