"""Opening files that somebody else may have put there: regular ones inside a folder, and nothing else.

A path of names is walked folder by folder, and no symbolic link is followed: no path leaves the folder. A named pipe or
a device in place of a file is neither waited for nor read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from streamseq.core.errors import CorruptionError, StoreError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A named pipe would be waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def open_inside(folder: Path, name: str) -> int:
    """Open a regular file in a folder, or below it, for reading; return its descriptor.

    Args:
        folder: The folder, a path that is trusted.
        name: The path of the file in it, with `/` between names.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptionError: There is something else, or a symbolic link on the way.
        StoreError: It cannot be opened.
    """
    descriptor = _open(folder, name, _FILE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptionError(f"a store holds plain files, {folder / name} is none: restore it from a copy")
    return descriptor


def check_folder_inside(folder: Path, name: str) -> None:
    """Check that what is below a folder under a name, if there is anything, is a folder to which no link leads.

    Args:
        folder: The folder, a path that is trusted.
        name: The path of the folder in it, with `/` between names.

    Raises:
        CorruptionError: There is something else, or a symbolic link on the way.
        StoreError: It cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError):
        os.close(_open(folder, name, _FOLDER))


def read_inside(folder: Path, name: str, limit: int) -> bytes:
    """Return the content of a regular file in a folder, or below it.

    Args:
        folder: The folder, a path that is trusted.
        name: The path of the file in it, with `/` between names.
        limit: Bytes that it has at most.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptionError: There is something else, a symbolic link on the way, or a larger file.
        StoreError: It cannot be read.
    """
    descriptor = open_inside(folder, name)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CorruptionError(f"{folder / name} has {size} bytes and can have {limit}: restore it from a copy")
        parts = []
        # One byte more than there should be: the end of the file is seen and not believed.
        while part := os.read(descriptor, size + 1):
            parts.append(part)
            size -= len(part)
            if size < 0:
                raise CorruptionError(f"{folder / name} changes while it is read: nothing may write to a store's files")
        return b"".join(parts)
    except OSError as error:
        raise StoreError(f"{folder / name} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _open(folder: Path, name: str, flags: int) -> int:
    """Open what is below a folder under a path of names, one name after the other."""
    names = name.split("/")
    held, opened = -1, -1
    try:
        held = os.open(folder, _FOLDER & ~os.O_NOFOLLOW)
        for opened, each in enumerate(names):
            inner = os.open(each, flags if opened == len(names) - 1 else _FOLDER, dir_fd=held)
            os.close(held)
            held = inner
    except OSError as error:
        if held >= 0:
            os.close(held)
        path = str(folder.joinpath(*names[: opened + 1]))
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(error.errno, error.strerror, str(folder / name)) from None
        # ENXIO: a socket. Linux says ENOTDIR or ELOOP of a link, depending on the flags.
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EMLINK):
            raise CorruptionError(
                f"a store holds plain files and folders, and {path} is something else or a link, which is not "
                "followed: restore it from a copy"
            ) from None
        raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
    return held
