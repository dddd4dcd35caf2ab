"""The folder of a prediction in its store's staging area: what it is, which tasks are done, and its end.

staging/predict/job.json        the settings, of which a resumed prediction must have the same, and the fields
staging/predict/lock            held while a process works on it
staging/predict/claim.json      there while a process works on it, so that nobody takes its shards for leftovers
staging/predict/running         gone when tasks are to stop
staging/predict/writers/<id>    one file a shard writer whose task has no receipt yet
staging/predict/receipts/<no>   one file a finished task: its shards, written as a version file without tables
staging/predict/report.json     there once the version is committed; then only this, the lock and job.json are left
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from streamseq._version import __version__
from streamseq.core.errors import CorruptionError, ResumeError, StreamseqError
from streamseq.core.fields import Field
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places import commit
from streamseq.storage.places.location import StoreFolder
from streamseq.storage.places.place import LocalPlace
from streamseq.storage.versions.claim import Claim
from streamseq.storage.versions.version import Shard, Version, format_version, parse_version


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A prediction that was begun: its settings, and the fields of the new store."""

    settings: dict[str, Any]
    fields: dict[str, Field]


class Job:
    """A prediction into one store; picklable, and the same in every process.

    Args:
        root: The root folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = StoreFolder(root)
        self.path = self._folder.staging / "predict"
        self._receipts = self.path / "receipts"
        self._writers = self.path / "writers"
        self._settings = self.path / "job.json"
        self._report = self.path / "report.json"
        self._running = self.path / "running"

    def load(self) -> Begun | None:
        """The prediction that was begun here; None where there is none.

        Raises:
            ResumeError: They cannot be read.
        """
        try:
            saved = json.loads(self._settings.read_bytes())
            fields = {name: Field(dtype, tuple(shape)) for name, dtype, shape in saved["fields"]}
            return Begun(settings=dict(saved["settings"]), fields=fields)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise ResumeError(
                f"{self._settings} is damaged ({error}): restart=True (--restart) discards what was done, or choose "
                "another address"
            ) from None

    def report(self) -> dict[str, Any] | None:
        """What the prediction reported at its end; None before."""
        try:
            report = json.loads(self._report.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return dict(report)

    @contextmanager
    def locked(self) -> Iterator[Claim]:
        """Hold the job, so that no other process works on it; the lock of one that was killed is free.

        Yields:
            What it holds in the store, to be refreshed as the work goes on.

        Raises:
            StreamseqError: Another process has it.
        """
        made = commit.make_folder(self.path)
        with (self.path / "lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StreamseqError(
                    f"another process predicts into {self.root} already: wait for it, or choose another address"
                ) from None
            claim = Claim(LocalPlace(self.root), "predict", self.path.name)
            try:
                claim.hold()
                yield claim
            finally:
                self._running.unlink(missing_ok=True)
                claim.release()
                if not self._report.exists() and not any(self._receipts.glob("*")):
                    self._discard_all(made)

    def begin(self, settings: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
        """Make the folder of a new prediction, or take up one that was begun, and remove what dead tasks left."""
        for folder in (self._receipts, self._writers):
            commit.make_folder(folder)
        if not self._settings.exists():
            content = {
                "settings": dict(settings),
                "fields": [[name, field.dtype.name, list(field.shape)] for name, field in fields.items()],
            }
            commit.put_if_absent(self._settings, json.dumps(content, indent=1).encode(), self._writers)
        self.clean()
        self._running.touch()

    def runs(self) -> bool:
        """Whether tasks should go on."""
        return self._running.exists()

    def stop(self) -> None:
        """Make running tasks stop at their next window."""
        self._running.unlink(missing_ok=True)

    def begin_writer(self, writer: str) -> None:
        """Note a shard writer, so that what it leaves is found when it is killed."""
        (self._writers / writer).touch()

    def forget_writers(self, writers: Iterable[str]) -> None:
        """Forget shard writers whose shards are in a receipt."""
        for writer in writers:
            (self._writers / writer).unlink(missing_ok=True)

    def put_receipt(self, number: int, layout: ShardLayout, shards: tuple[Shard, ...]) -> None:
        """Make a task count as finished."""
        receipt = Version(
            number=number + 1,
            writer=uuid4().hex[:16],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"streamseq {__version__}",
            operation="write",
            job="predict",
            layout=layout,
            shards=shards,
            tables=(),
            num_sequences=0,
            num_timesteps=sum(shard.num_timesteps for shard in shards),
            fingerprint="0" * 64,
        )
        commit.put_if_absent(self._receipts / f"{number:08d}", format_version(receipt), self._writers)

    def receipts(self) -> dict[int, Version]:
        """What finished tasks left, by number; those whose shards are gone do not count.

        Raises:
            ResumeError: One is damaged.
        """
        receipts = {}
        for path in sorted(self._receipts.glob("[0-9]*")):
            number = int(path.name)
            try:
                receipt = parse_version(path.read_bytes(), number + 1, f"receipt {path}")
            except CorruptionError as error:
                raise ResumeError(f"{error}; restart=True (--restart) discards what was done") from None
            if all((self._folder.shards / shard.id).is_dir() for shard in receipt.shards):
                receipts[number] = receipt
            else:
                path.unlink()
        return receipts

    def clean(self) -> None:
        """Remove what tasks left that were killed."""
        kept = {shard.id.split("-")[0] for receipt in self.receipts().values() for shard in receipt.shards}
        for path in self._writers.glob("*"):
            if path.name not in kept:
                commit.remove_tree(self._folder.staging / path.name)
                for shard in self._folder.shards.glob(f"{path.name}-*"):
                    commit.remove_tree(shard)
            path.unlink()

    def has_store(self) -> bool:
        """Whether a version of the store exists, of this prediction or not."""
        return bool(LocalPlace(self.root).version_numbers())

    def is_committed(self, num_tasks: int) -> bool:
        """Whether version 1 of the store is what the tasks wrote."""
        receipts = self.receipts()
        shards = [shard.id for number in sorted(receipts) for shard in receipts[number].shards]
        return len(receipts) == num_tasks and shards == [shard.id for shard in DiskStore(self.root, 1).snapshot.shards]

    def finish(self, report: Mapping[str, Any]) -> None:
        """Keep what the prediction reports, and remove the rest."""
        commit.put_if_absent(self._report, json.dumps(dict(report), indent=1).encode(), self._writers)
        for folder in (self._receipts, self._writers):
            commit.remove_tree(folder)

    def discard(self) -> None:
        """Remove what tasks of an unfinished prediction wrote, and its settings."""
        for path in self._receipts.glob("[0-9]*"):
            with contextlib.suppress(CorruptionError):
                for shard in parse_version(path.read_bytes(), int(path.name) + 1, str(path)).shards:
                    commit.remove_tree(self._folder.shards / shard.id)
            path.unlink()
        self._settings.unlink(missing_ok=True)
        self.clean()

    def _discard_all(self, made: Sequence[Path]) -> None:
        """Remove the folder, and those that were made for it and hold nothing else."""
        self.discard()
        commit.remove_tree(self.path)
        if LocalPlace(self.root).version_numbers():
            return
        below = (self._folder.staging, self._folder.shards, self._folder.tables, self._folder.versions)
        for folder in (*below, *reversed([path for path in made if path not in below])):
            commit.remove_empty_folder(folder, "zarr.json")
