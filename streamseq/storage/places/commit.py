"""Making files durable and visible: the only module that links, renames and fsyncs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from streamseq.core.errors import StoreError


def sync_file(file: IO[bytes]) -> None:
    """Put everything written to an open file on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a new file and put its bytes, not yet its name, on the disk."""
    with path.open("xb") as file:
        file.write(content)
        sync_file(file)


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a new file beside `path`, put it on the disk, and give it the name `path`.

    Args:
        path: The file that is there afterwards; its folder exists.
        write: Writes the content to an open binary file. What it raises leaves the old file as it was.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            write(file)
            sync_file(file)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it that are missing; return the ones made, the uppermost first."""
    missing = [folder, *folder.parents]
    missing = missing[: next((i for i, path in enumerate(missing) if path.is_dir()), len(missing))]
    made = []
    for path in reversed(missing):
        try:
            path.mkdir()
        except FileExistsError:  # another writer was faster
            if not path.is_dir():
                raise
            continue
        sync_folder(path.parent)
        made.append(path)
    return made


def publish_folders(staged: list[Path], target: Path) -> None:
    """Move finished folders, whose files are on the disk already, into `target` under the names they have."""
    if not staged:
        return
    for folder in staged:
        for below, _, _ in os.walk(folder, topdown=False):
            sync_folder(Path(below))
        os.rename(folder, target / folder.name)
    sync_folder(target)


def publish_file(staged: Path, target: Path) -> None:
    """Move a finished file, whose bytes are on the disk already, into the folder `target`."""
    os.rename(staged, target / staged.name)
    sync_folder(target)


def put_if_absent(path: Path, content: bytes, staging: Path) -> bool:
    """Make `path` appear with all of `content`, unless it exists; return whether this call made it appear.

    The bytes are on the disk before the name exists, and the name is on the disk when this returns. Of any number of
    callers exactly one makes the file.

    Raises:
        StoreError: The file system has no hard links, without which this cannot be done; or the file is there, but the
            disk failed to keep its name. Others may have read it already, so that it stays, and the caller is told.
    """
    staged = staging / path.name
    staged.unlink(missing_ok=True)
    write_durably(staged, content)
    try:
        os.link(staged, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        raise StoreError(f"a store lies on a file system with hard links, {path} is not on one: move it") from error
    finally:
        # Where it cannot be removed it is a leftover, and what was decided stays.
        with contextlib.suppress(OSError):
            staged.unlink()
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path} is there, but the disk failed to keep its name ({error.strerror}), so that a power failure may "
            "undo it: check the disk, and look whether it is still there before you write the same again"
        ) from error
    return True


def remove_tree(folder: Path) -> None:
    """Remove a folder of this writer's own, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_empty_folder(folder: Path, but_for: str) -> None:
    """Remove a folder, if it is there and holds nothing but perhaps a file of one name."""
    with contextlib.suppress(OSError):
        if set(os.listdir(folder)) <= {but_for}:
            (folder / but_for).unlink(missing_ok=True)
            folder.rmdir()


def share_file(path: Path, name: Path) -> None:
    """Give a file that never changes a second name, which is not put on the disk; where there are no links, copy it.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: The name is taken.
    """
    try:
        os.link(path, name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK):
            raise
        shutil.copyfile(path, name)
