"""Replacing a file as a whole: readers see the old one or the new one, also after a power failure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from streamseq.storage.commit import sync_file, sync_folder


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
