"""What may be left on a disk after a power failure: what was synced, and any part of what was not."""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.file_layer import Do, Operation


@dataclass(slots=True)
class _Kept:
    """What the disk is sure to have of one file or folder."""

    content: bytes | None = None  # of a file
    names: dict[str, int] = field(default_factory=dict)  # of a folder


class Disk:
    """An `act` that notes what is put on the disk: a file's bytes by an fsync of it, its name by one of its folder.

    What is not may be there after a power failure or not, each byte and each name for itself: the bytes of a file only
    up to some place, a name without the file's bytes, the later of two renames without the earlier. File systems keep
    more order than that; a protocol that asks for what it needs does not lean on it.

    Args:
        folder: The folder that is watched, and is on the disk as it is now.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[int, _Kept] = {}
        for path in [folder, *folder.rglob("*")]:
            self._sync(path)

    def __call__(self, operation: Operation, do: Do) -> Any:
        path = self._folder / operation.path
        new = operation.kind in ("open", "mkdir") and not path.exists()
        result = do()
        if new:
            # An inode's number may have been another file's.
            self._kept[path.stat().st_ino] = _Kept(content=b"" if path.is_file() else None)
        elif operation.kind == "fsync":
            self._sync(path)
        return result

    def _sync(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            with os.scandir(path) as found:
                self._kept[inode] = _Kept(names={entry.name: entry.inode() for entry in found})
        else:
            self._kept[inode] = _Kept(content=path.read_bytes())

    def after_power_failure(self, chance: random.Random | None) -> dict[str, bytes | None]:
        """What may be there if the power failed now: files by name with their bytes, folders with None.

        Args:
            chance: Decides about what was not synced; None: all of it is gone.
        """
        now = {path.stat().st_ino: path for path in [self._folder, *self._folder.rglob("*")]}
        left: dict[str, bytes | None] = {}
        self._leave(self._folder.stat().st_ino, "", now, chance, left)
        return left

    def _leave(
        self,
        inode: int,
        name: str,
        now: dict[int, Path],
        chance: random.Random | None,
        left: dict[str, bytes | None],
    ) -> None:
        kept, path = self._kept.get(inode, _Kept()), now.get(inode)
        if kept.content is not None or (path is not None and path.is_file()):
            # Of a file that was removed, which the disk need not know, all that was synced is there.
            before = kept.content or b""
            left[name] = before if path is None else _some_bytes(before, path.read_bytes(), chance)
            return
        left[name] = None
        names: dict[str, int] = dict(kept.names)
        if path is not None and chance is not None:
            with os.scandir(path) as found:
                current = {entry.name: entry.inode() for entry in found}
            for changed in sorted(kept.names.keys() | current.keys()):
                if current.get(changed) != kept.names.get(changed) and chance.random() < 0.5:
                    names.pop(changed, None)
                    if changed in current:
                        names[changed] = current[changed]
        for below, number in names.items():
            self._leave(number, f"{name}/{below}".lstrip("/"), now, chance, left)


def _some_bytes(kept: bytes, current: bytes, chance: random.Random | None) -> bytes:
    if chance is None or kept == current:
        return kept
    # Room may be given to a file before its bytes are there.
    stop = chance.randint(0, len(current))
    return chance.choice([kept, current, current[:stop], current[:stop] + bytes(len(current) - stop)])


def lay_out(left: dict[str, bytes | None], folder: Path) -> None:
    """Make the files and folders that were left, below a folder that is not there yet."""
    for name, content in left.items():
        if content is None:
            (folder / name).mkdir(parents=True)
        else:
            (folder / name).write_bytes(content)
