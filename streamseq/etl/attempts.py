"""The attempts at the tasks of a job: who wrote anything for it, and whether it still goes on.

A job has a folder in the staging area of the store, and every attempt at a task leaves a file in it that is named after
its shard writer. So the job knows of all that was ever written for it, by workers that died too. Another file says that
the job goes on: it is removed before the attempts are listed, and an attempt looks for it after it has left its own, so
that no attempt is both missed and going on.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from streamseq.core.errors import StreamseqError
from streamseq.storage.places.place import Place
from streamseq.storage.versions.claim import noted

_OPEN_FILE = "open"
# How often a task asks a server whether its job goes on, and how often it looks on this machine: pieces may be small.
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_LOOKS_HERE = 0.1


class JobEndedError(StreamseqError):
    """The job of this task has failed or was interrupted."""


@dataclass(slots=True, kw_only=True)
class Attempts:
    """The attempts at the tasks of a job. Picklable: tasks in other processes have a copy.

    Args:
        place: Where the store lies.
        folder: The name of the folder of the job in the staging area.
    """

    place: Place
    folder: str
    _looked: float = field(default=float("-inf"), init=False)

    def open(self) -> None:
        """Let attempts begin, once the folder is there."""
        writer = uuid.uuid4().hex[:16]
        try:
            self.place.put_if_absent(f"staging/{self.folder}/{_OPEN_FILE}", b"", self.place.staging(writer))
        finally:
            self.place.end_staging(writer)

    def begin(self, writer: str) -> None:
        """Note an attempt before it writes.

        Raises:
            JobEndedError: The job has ended.
        """
        name = f"staging/{self.folder}/{writer}"
        try:
            self.place.put_if_absent(name, b"", self.place.staging(writer))
        except FileNotFoundError:  # the folder is gone
            raise JobEndedError("the job has ended") from None
        try:
            self._looked = float("-inf")
            self.check()
        except JobEndedError:
            self.place.remove(name)
            raise

    def check(self) -> None:
        """Check that the job goes on; it is looked every now and then only.

        Raises:
            JobEndedError: It has ended.
        """
        now = time.monotonic()
        if now - self._looked < (_SECONDS_BETWEEN_LOOKS if self.place.copies else _SECONDS_BETWEEN_LOOKS_HERE):
            return
        if not self.place.exists(f"staging/{self.folder}/{_OPEN_FILE}"):
            raise JobEndedError("the job has ended")
        self._looked = now

    def end(self) -> None:
        """Make attempts stop at their next piece, and those that wait at once."""
        self.place.remove(f"staging/{self.folder}/{_OPEN_FILE}")

    def writers(self) -> list[str]:
        """The shard writers of all attempts so far."""
        return noted(self.place.names(f"staging/{self.folder}"))
