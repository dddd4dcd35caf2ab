"""Finding files and Zarr folders of arrays, and what tells them from others of the same name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from hashlib import blake2b

import fsspec.core

from streamseq.etl import Skipped, SourceError

from .array_formats import FORMATS, ArrayFile, format_of, patterns
from .files import InputFile, find_files

_MARKS = ("zarr.json", ".zarray", ".zgroup")


def find_arrays(
    names: Sequence[str], globs: Sequence[str], format: str | None, *, skip: bool
) -> list[ArrayFile | Skipped]:
    """Find the files of arrays that the names stand for, each once, in the order of the names, and in each name sorted.

    Args:
        names: Files, folders, Zarr folders and globs, as paths or fsspec URLs.
        globs: Of folders, take only files that match one of these; none: those whose format shows in their suffix.
        format: The format of all; None: by suffix.
        skip: Return what cannot be read as `Skipped`.

    Raises:
        FileNotFoundError: A name stands for no file.
        SourceError: Something cannot be read and is not to be skipped, or a format is not known.
    """
    found: dict[str, ArrayFile | Skipped] = {}
    plain: list[str] = []
    for name in names:
        stores = list(_stores(name))
        for path, id in stores:
            found.setdefault(path, _zarr(path, id))
        if not stores or not _only(name, stores):
            plain.append(name)
    if plain:
        try:
            for item in find_files(plain, globs or patterns(), skip=skip):
                if isinstance(item, Skipped):
                    found.setdefault(item.what, item)
                elif not _inside(item.address, found):
                    found.setdefault(item.address, ArrayFile(input=item, format=_format(item, format)))
        except FileNotFoundError:
            if not found:
                raise
    return list(found.values())


def _format(item: InputFile, format: str | None) -> str:
    kind = format or format_of(item.address)
    if kind is None:
        raise SourceError(
            f"the format of {item.address!r} does not show in its name: say which of {', '.join(FORMATS)}"
        )
    if kind == "zarr":
        raise SourceError(f"{item.address!r} is no Zarr array or group: a folder with zarr.json, .zarray or .zgroup")
    return kind


def _inside(address: str, found: dict[str, ArrayFile | Skipped]) -> bool:
    """Whether a file is part of a Zarr folder that was found."""
    parent = os.path.dirname(address)
    while parent not in ("", os.path.dirname(parent)):
        if parent in found:
            return True
        parent = os.path.dirname(parent)
    return False


def _stores(name: str) -> Iterator[tuple[str, str]]:
    """The Zarr folders that a name stands for, with ids."""
    if "://" in name and not name.startswith("file://"):
        if format_of(name) == "zarr":
            yield name, os.path.basename(name.rstrip("/"))
        return
    path = os.path.abspath(name.removeprefix("file://"))
    if _is_store(path):
        yield path, os.path.basename(path)
    elif os.path.isdir(path):
        yield from _walk(path)
    elif has_magic(name):
        for each in sorted(glob(path, recursive=True)):
            if _is_store(each):
                yield each, os.path.basename(each)


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    for above, folders, _ in os.walk(folder):
        folders.sort()
        stores = [name for name in folders if _is_store(os.path.join(above, name))]
        folders[:] = [name for name in folders if name not in stores and not name.startswith(".")]
        for name in stores:
            path = os.path.join(above, name)
            yield path, os.path.relpath(path, folder)


def _only(name: str, stores: Sequence[tuple[str, str]]) -> bool:
    """Whether a name stands for Zarr folders only."""
    path = os.path.abspath(name.removeprefix("file://"))
    return "://" in name or path == stores[0][0] or (has_magic(name) and format_of(name) == "zarr")


def _is_store(path: str) -> bool:
    return os.path.isdir(path) and any(os.path.exists(os.path.join(path, mark)) for mark in _MARKS)


def _zarr(path: str, id: str) -> ArrayFile:
    size = 0
    stamp = blake2b(digest_size=16)
    modified = None
    if "://" in path:
        system, inner = fsspec.core.url_to_fs(path)
        for name, info in sorted(system.find(inner, detail=True).items()):
            size += info.get("size") or 0
            stamp.update(f"{name}\0{info.get('size')}\0{info.get('ETag') or info.get('mtime') or ''}\n".encode())
    else:
        modified = 0
        for above, folders, files in os.walk(path):
            folders.sort()
            for file in sorted(files):
                found = os.stat(os.path.join(above, file))
                size += found.st_size
                modified = max(modified, found.st_mtime_ns)
                where = os.path.relpath(os.path.join(above, file), path)
                stamp.update(f"{where}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    input = InputFile(address=path, id=id, size=size, modified=modified)
    return ArrayFile(input=input, format="zarr", stamp=stamp.hexdigest())


def stem_of(id: str) -> str:
    """The id of a file without the suffix that says its format.

    Example:
        >>> stem_of("north/2024.npy"), stem_of("v1.2")
        ('north/2024', 'v1.2')
    """
    return os.path.splitext(id)[0] if format_of(id) is not None else id


def check_ids(files: Sequence[ArrayFile]) -> None:
    """Check that each file is a sequence of its own name.

    Raises:
        SourceError: Two have one id.
    """
    owners: dict[str, str] = {}
    for file in files:
        id = stem_of(file.input.id)
        if owners.setdefault(id, file.address) != file.address:
            raise SourceError(
                f"every file has an id of its own, {owners[id]!r} and {file.address!r} are both {id!r}: rename one, or "
                "name the folder that has both"
            )
