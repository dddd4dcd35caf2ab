"""Finding the files that a user names: files, folders and globs, on this machine or behind any fsspec URL."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import takewhile
from typing import Any

import fsspec
import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from streamseq.etl import Skipped, SourceError

# What the filesystems of fsspec call it, the surest first.
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
_MISSING = "it is a symbolic link to nothing, or was removed meanwhile"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of input, as it was when it was found.

    Args:
        address: The absolute path, or the URL.
        id: Its path relative to what the user named, with `/` between the parts.
        size: Its bytes.
        modified: When it was last modified, in nanoseconds; None behind a URL.
        mark: Behind a URL, what the server says that changes with the contents, such as an ETag; empty where it has
            none.
    """

    address: str
    id: str
    size: int
    modified: int | None
    mark: str = ""


def find_files(names: Sequence[str], patterns: Sequence[str] = (), *, skip: bool = False) -> list[InputFile | Skipped]:
    """Find the files that the names stand for, each once, in the order of the names, and in each name sorted.

    The id of a file is its path relative to the folder that was named, to the part of a glob before its first `*`, or,
    of files that were named themselves, to the folder that all of those have in common. Hidden files and folders, and
    symbolic links to folders, are left out of folders; so are hidden ones of globs that do not say `.`.

    Args:
        names: Files, folders and globs, as paths or fsspec URLs. What exists is not taken for a glob.
        patterns: Of folders, take only files whose name, or path in the folder, matches one of these globs.
        skip: Return what cannot be read as `Skipped`.

    Raises:
        FileNotFoundError: A name stands for no file.
        SourceError: Something cannot be read and is not to be skipped, or two files have one id.
        ValueError: There is no name, or no fsspec filesystem for a URL.
    """
    if isinstance(names, str):
        raise TypeError(f"names is a list of paths, got the string {names!r}: put it in a list")
    if not names:
        raise ValueError("at least one file, folder or glob is named, got none")
    groups = [_look(os.fspath(name), patterns, skip) for name in names]
    bases = _common_folder([group.address for group in groups if group.alone])
    found: dict[str, InputFile | Skipped] = {}
    by_id: dict[str, str] = {}
    for group in groups:
        base = bases if group.alone else group.address
        for entry in group.entries:
            if entry.address in found:
                continue
            id = _relative(entry.address, base)
            problem = entry.problem or _unfit(id)
            if problem is not None:
                if not skip:
                    raise SourceError(f"{entry.address!r} cannot be read: {problem}")
                found[entry.address] = Skipped(what=entry.address, reason=problem)
                continue
            if id in by_id:
                raise SourceError(
                    f"every file has an id of its own, {by_id[id]!r} and {entry.address!r} are both {id!r}: name the "
                    "folder that has both, or ingest them apart"
                )
            by_id[id] = entry.address
            found[entry.address] = InputFile(
                address=entry.address, id=id, size=entry.size, modified=entry.modified, mark=entry.mark
            )
    return list(found.values())


def mark_of(info: Mapping[str, Any]) -> str:
    """What changes with the contents of a file behind a URL, out of what fsspec says of it.

    Example:
        >>> mark_of({"name": "a", "size": 3, "ETag": "5d41"}), mark_of({"name": "a", "size": 3})
        ('5d41', '')
    """
    mark = next((info[key] for key in _MARKS if info.get(key)), "")
    # Of one file, some filesystems say a number in a list of files and a date otherwise.
    return str(mark.timestamp() if isinstance(mark, datetime) else mark)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    address: str
    size: int = 0
    modified: int | None = None
    mark: str = ""
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """What one name stands for: `address` is what ids are relative to, or the file itself where it is `alone`."""

    address: str
    entries: list[_Entry]
    alone: bool = False


def _look(name: str, patterns: Sequence[str], skip: bool) -> _Group:
    if not name:
        raise ValueError("a file, folder or glob has a name, got an empty one")
    try:
        system, path = fsspec.core.url_to_fs(name)
    except ImportError as error:
        raise ValueError(f"{name!r} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise ValueError(f"{name!r} is neither a path nor a URL that fsspec knows: {error}") from None
    if isinstance(system, LocalFileSystem):
        return _look_here(name, os.path.abspath(path), patterns, skip)
    return _look_there(name, system, path, patterns)


def _look_here(name: str, path: str, patterns: Sequence[str], skip: bool) -> _Group:
    if os.path.isdir(path):
        files, unreadable = _walk(path)
        if unreadable and not skip:
            raise SourceError(f"{unreadable[0].address!r} cannot be read: {unreadable[0].problem}")
        entries = [_entry(file) for file in sorted(files) if _matches(_relative(file, path), patterns)]
        return _checked(name, path, entries + unreadable, "folder", patterns)
    if os.path.lexists(path) or not has_magic(name):
        entry = _entry(path)
        if entry.problem == _MISSING:
            raise FileNotFoundError(f"there is no file or folder {name!r}: check the address")
        return _Group(address=path, entries=[entry], alone=True)
    base, pattern = _split_glob(path)
    matches = sorted(LocalFileSystem().glob(path))
    entries = [_entry(file) for file in matches if _shown(_relative(file, base), pattern) and not os.path.isdir(file)]
    return _checked(name, base, entries, "glob", ())


def _look_there(name: str, system: fsspec.AbstractFileSystem, path: str, patterns: Sequence[str]) -> _Group:
    try:
        if system.isdir(path):
            base, kind = path, "folder"
            infos = system.find(path, detail=True)
            infos = {
                file: info
                for file, info in infos.items()
                if _shown(_relative(file, base), "") and _matches(_relative(file, base), patterns)
            }
        elif system.exists(path) or not has_magic(path):
            info = system.info(path)
            address = system.unstrip_protocol(info["name"])
            return _Group(address=address, entries=[_there(address, info)], alone=True)
        else:
            (base, pattern), kind = _split_glob(path), "glob"
            infos = system.glob(path, detail=True)
            infos = {file: info for file, info in infos.items() if _shown(_relative(file, base), pattern)}
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file or folder {name!r}: check the address") from None
    entries = [
        _there(system.unstrip_protocol(file), info) for file, info in sorted(infos.items()) if info["type"] == "file"
    ]
    return _checked(name, system.unstrip_protocol(base), entries, kind, patterns)


def _checked(name: str, base: str, entries: list[_Entry], kind: str, patterns: Sequence[str]) -> _Group:
    if not entries:
        having = f" like {' or '.join(patterns)}" if patterns else ""
        raise FileNotFoundError(f"{kind} {name!r} has no files{having}: check the address; hidden files are left out")
    return _Group(address=base, entries=entries)


def _walk(folder: str) -> tuple[list[str], list[_Entry]]:
    """The paths of the files below a folder, hidden ones left out, and the folders that cannot be listed."""
    unreadable: list[_Entry] = []

    def note(error: OSError) -> None:
        unreadable.append(_Entry(address=str(error.filename), problem=error.strerror or str(error)))

    files: list[str] = []
    for above, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(above, name) for name in names if not name.startswith(".")]
    return files, unreadable


def _entry(path: str) -> _Entry:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return _Entry(address=path, problem=_MISSING)
    except OSError as error:
        return _Entry(address=path, problem=error.strerror or str(error))
    if not stat.S_ISREG(found.st_mode):
        return _Entry(address=path, problem="it is not a regular file")
    return _Entry(address=path, size=found.st_size, modified=found.st_mtime_ns)


def _there(address: str, info: Mapping[str, Any]) -> _Entry:
    size = info.get("size")
    if not isinstance(size, int):
        raise SourceError(f"the size of {address!r} is not known beforehand: copy it to a disk first")
    return _Entry(address=address, size=size, mark=mark_of(info))


def _matches(relative: str, patterns: Sequence[str]) -> bool:
    name = relative.rpartition("/")[2]
    return not patterns or any(fnmatchcase(name, glob) or fnmatchcase(relative, glob) for glob in patterns)


def _shown(relative: str, pattern: str) -> bool:
    """Whether no part is hidden, or the pattern asks for hidden ones."""
    asked = any(part.startswith(".") for part in pattern.split("/"))
    return asked or not any(part.startswith(".") for part in relative.split("/"))


def _split_glob(path: str) -> tuple[str, str]:
    """The folder before the first part that is a glob, and the rest."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _common_folder(addresses: Iterable[str]) -> str:
    levels = zip(*(address.split("/")[:-1] for address in addresses), strict=False)
    return "/".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _relative(address: str, base: str) -> str:
    return address.removeprefix(base.rstrip("/") + "/")


def _unfit(id: str) -> str | None:
    try:
        id.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    return None
