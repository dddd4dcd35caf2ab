"""What a writer holds while it lives, so that nobody takes what it has written and not yet committed for a leftover.

A claim is a folder in the staging area with a file that says who holds it, locked (flock) for as long as the process
lives; the kernel lets go of it however the process ends. Beside it lie empty files that are named after the shard
writers it stands for. Where there are no locks, and for other machines, a claim counts as live while it was refreshed
lately.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamseq.core.errors import StoreError
from streamseq.storage.places import commit
from streamseq.storage.places.place import LocalPlace, Place
from streamseq.storage.strict_json import parse_json

CLAIM_FILE = "claim.json"
_ALIVE_FILE = "alive"
_WRITER = re.compile(r"[0-9a-f]{16}")
_REFRESH_SECONDS = 600.0
_TRIES, _PAUSE_SECONDS = 100, 0.01


class Claim:
    """Held by everything that writes to a store: `with Claim(place, "ingest") as claim`.

    Args:
        place: Where the store lies.
        job: What holds it, for people.
        folder: The name of a folder in the staging area that only the caller makes claims in, and that stays when the
            claim is released; None: one of its own.

    Raises:
        StoreError: The claim could not be made.
    """

    def __init__(self, place: Place, job: str, folder: str | None = None) -> None:
        self._place = place
        self._job = job
        self._given = folder
        self.folder = ""
        self._descriptor: int | None = None
        self._refreshed = 0.0
        self._beats = 0

    def hold(self) -> None:
        """Make the claim; it is there, and live, when this returns."""
        for _ in range(_TRIES):
            self.folder = self._given or uuid.uuid4().hex[:16]
            self._remove_files()
            if self._made():
                self._refreshed = time.monotonic()
                return
            time.sleep(_PAUSE_SECONDS)
        raise StoreError(f"no claim could be made in {self._place.uri}/staging: see who removes files there")

    def note(self, writer: str) -> None:
        """Say that the claim stands for a shard writer as well, before that writes."""
        name = f"staging/{self.folder}/{writer}"
        if isinstance(self._place, LocalPlace):
            (self._place.root / name).touch()
        else:
            self._put(name, b"")

    def refresh(self) -> None:
        """Show other machines that the holder is at work; costs nothing where it was done lately."""
        now = time.monotonic()
        if now - self._refreshed < _REFRESH_SECONDS:
            return
        self._refreshed = now
        if isinstance(self._place, LocalPlace):
            # The file's own clock: that of the machine where it lies.
            with contextlib.suppress(FileNotFoundError):
                (self._place.root / "staging" / self.folder / _ALIVE_FILE).touch()
        else:
            self._beats += 1
            self._put(f"staging/{self.folder}/{_ALIVE_FILE}-{self._beats}", b"")
            self._place.remove(f"staging/{self.folder}/{_ALIVE_FILE}-{self._beats - 1}")

    def release(self) -> None:
        """Remove the claim, once what was written is committed or removed."""
        try:
            # What cannot be removed is a leftover: nothing is undone or left locked because of it.
            with contextlib.suppress(OSError, StoreError):
                if self._given is None and self.folder:
                    self._place.remove(f"staging/{self.folder}")
                self._remove_files()
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor, self.folder = None, ""

    def __enter__(self) -> Self:
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _remove_files(self) -> None:
        """Remove the files of a claim from a folder that stays: this one, or that of a holder before who was killed."""
        if self._given is not None:
            for name in self._place.names(f"staging/{self._given}"):
                if name == CLAIM_FILE or name.startswith(_ALIVE_FILE):
                    self._place.remove(f"staging/{self._given}/{name}")

    def _made(self) -> bool:
        if not isinstance(self._place, LocalPlace):
            return self._put(f"staging/{self.folder}/{CLAIM_FILE}", self._content(locked=False))
        # Whoever cleans may take the folder or the file for a leftover until it is locked: then there is another try.
        path = self._place.root / "staging" / self.folder / CLAIM_FILE
        commit.make_folder(path.parent)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except (FileNotFoundError, FileExistsError):
            return False
        held = False
        try:
            locked = _lock(descriptor)
            if locked is False:
                return False
            os.write(descriptor, self._content(locked=bool(locked)))
            with contextlib.suppress(FileNotFoundError):
                held = os.path.samestat(os.stat(path), os.fstat(descriptor))
        finally:
            if held:
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        return held

    def _content(self, locked: bool) -> bytes:
        said = {
            "host": socket.gethostname(),
            "boot": boot_id(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": self._job,
            "locked": locked,
        }
        return json.dumps(said, indent=1).encode()

    def _put(self, name: str, content: bytes) -> bool:
        staging = self._place.staging(self.folder)
        return self._place.put_if_absent(name, content, staging)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A claim that was found in a store.

    Args:
        folder: The name of its folder in the staging area.
        live: Whether its holder is at work, or may be.
        since: When the claim was made, by the clock of where the store lies.
        who: Its holder, in words.
        writers: The ids of the shard writers it stands for.
    """

    folder: str
    live: bool
    since: float
    who: str
    writers: tuple[str, ...]


def holders(place: Place, now: float, older_than: float) -> Iterator[Holder]:
    """The claims in a store.

    Args:
        place: Where the store lies.
        now: The time, by the clock of where the store lies.
        older_than: Seconds without a sign of life after which the claim of another machine is dead.
    """
    for folder in sorted(place.names("staging")):
        names = place.names(f"staging/{folder}")
        if CLAIM_FILE not in names:
            continue
        beats = [name for name in names if name.startswith(_ALIVE_FILE)]
        try:
            since = place.modified(f"staging/{folder}/{CLAIM_FILE}")
            said = _said(place.read(f"staging/{folder}/{CLAIM_FILE}"))
            seen = max([since, *(place.modified(f"staging/{folder}/{name}") for name in beats)])
        except FileNotFoundError:  # it was released meanwhile
            continue
        live = _lives(place, folder, said, now - seen < older_than)
        # Those of a prediction have a folder of their own.
        writers = noted([*names, *place.names(f"staging/{folder}/writers")])
        yield Holder(folder=folder, live=live, since=since, who=_who(said), writers=tuple(writers))


def noted(names: Iterable[str]) -> list[str]:
    """Of the names in a claim's folder those of shard writers that it stands for.

    Example:
        >>> noted(["claim.json", "0123456789abcdef", "alive"])
        ['0123456789abcdef']
    """
    return sorted(name for name in names if _WRITER.fullmatch(name))


@contextlib.contextmanager
def taken(place: Place, folder: str) -> Iterator[bool]:
    """Hold the lock of a dead claim's folder while it is removed; False where its holder lives after all."""
    if not isinstance(place, LocalPlace):
        yield True
        return
    path = place.root / "staging" / folder / CLAIM_FILE
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _lock(descriptor) is not False
    finally:
        os.close(descriptor)


def boot_id() -> str:
    """What is another one after each start of the machine, and the same for all containers on it; "" if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _said(content: bytes) -> dict[str, Any]:
    try:
        said = parse_json(content)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _lives(place: Place, folder: str, said: dict[str, Any], lately: bool) -> bool:
    if isinstance(place, LocalPlace) and said.get("locked") is not False:
        try:
            descriptor = _open(place.root / "staging" / folder / CLAIM_FILE)
        except FileNotFoundError:
            return False
        try:
            if _lock(descriptor) is False:
                return True
        finally:
            os.close(descriptor)
        # Without content its holder died, or is about to lock it. A lock of another machine is not seen everywhere.
        return bool(said) and not _is_here(said) and lately
    return _runs(said) if _is_here(said) else lately


def _is_here(said: dict[str, Any]) -> bool:
    """Whether the claim was made under this kernel, whose locks are seen here, and whose processes as well."""
    return bool(boot_id()) and said.get("boot") == boot_id()


def _runs(said: dict[str, Any]) -> bool:
    """Whether the process runs, or another of its number; in another container its number says nothing."""
    pid = said.get("pid")
    if said.get("host") != socket.gethostname() or not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _who(said: dict[str, Any]) -> str:
    return (
        f"{said.get('job', 'a writer')} (process {said.get('pid', '?')} on {said.get('host', '?')}, since "
        f"{said.get('started', '?')})"
    )


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _lock(descriptor: int) -> bool | None:
    """Lock a file; False where somebody else has, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF):
            raise
        return None
    return True
