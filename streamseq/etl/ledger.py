"""The receipts of finished tasks, in the store's staging area: what a job that is run again need not do again.

    staging/jobs/<key of the job>/<key of the partition>.json

A receipt is put there whole and once, by the task that wrote the shards it names, after they are on the disk. It stays
when the version is committed, so that a job whose data changed reads only that again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamseq.core.errors import StoreError
from streamseq.etl.source import Skipped
from streamseq.etl.task_result import TaskResult
from streamseq.storage.checksum import crc32c, to_hex
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.place import Place
from streamseq.storage.shards.shard_writer import Receipt
from streamseq.storage.statistics.kept import parse_statistics
from streamseq.storage.strict_json import parse_json
from streamseq.storage.versions.version import parse_shard, shard_document

FOLDER = "jobs"
# What ends a receipt, whose text has a checksum before it.
_TAIL = b"}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The receipts of one job. Picklable: tasks in other processes have a copy.

    Args:
        place: Where the store lies.
        key: The key of the job.
        layout: How its shards are cut and encoded.
    """

    place: Place
    key: str
    layout: ShardLayout

    @property
    def folder(self) -> str:
        """The name of its folder in the store."""
        return f"staging/{FOLDER}/{self.key}"

    def open(self) -> None:
        """Let receipts be put there."""
        if not self.place.copies:  # elsewhere there are no folders
            self.place.staging(f"{FOLDER}/{self.key}")

    def close(self) -> None:
        """Remove the folder where there is no receipt in it."""
        for folder in (self.folder, f"staging/{FOLDER}"):
            if not self.place.names(folder):
                self.place.remove(folder)

    def put(self, partition: str, result: TaskResult) -> TaskResult:
        """Put the receipt of a task; return it, or that of another attempt at the task that was faster."""
        staging = self.place.staging(result.receipt.writer)
        try:
            if self.place.put_if_absent(f"{self.folder}/{partition}.json", _content(result), staging):
                return result
        finally:
            self.place.end_staging(result.receipt.writer)
        return dict(self.find([partition])).get(partition, result)

    def find(self, partitions: Iterable[str]) -> Iterator[tuple[str, TaskResult]]:
        """Yield the receipts that there are of some partitions, whose shards are there; damaged ones are removed."""
        there = set(self.place.names(self.folder))
        shards = set(self.place.names("shards"))
        for partition in partitions:
            name = f"{partition}.json"
            if name not in there:
                continue
            try:
                result = _parse(self.place.read(f"{self.folder}/{name}"), self.layout)
            except (ValueError, StoreError, FileNotFoundError):
                self.place.remove(f"{self.folder}/{name}")
                continue
            if all(shard.id in shards for shard in result.receipt.shards):
                yield partition, result
            else:
                self.place.remove(f"{self.folder}/{name}")

    def all(self) -> Iterator[TaskResult]:
        """All receipts that there are, also of partitions as they were before."""
        names = self.place.names(self.folder)
        for _, result in self.find(name.removesuffix(".json") for name in names if name.endswith(".json")):
            yield result


def _content(result: TaskResult) -> bytes:
    receipt = result.receipt
    document: dict[str, Any] = {
        "writer": receipt.writer,
        "shards": [shard_document(shard) for shard in receipt.shards],
        "ids": receipt.ids,
        "attrs": receipt.attrs,
        "pieces": base64.b64encode(receipt.pieces.astype("<i8").tobytes()).decode(),
        "statistics": None if receipt.statistics is None else receipt.statistics.decode(),
        "bytes_in": result.bytes_in,
        "times": result.times,
        "skipped": [
            {
                "what": item.what,
                "place": item.place,
                "reason": item.reason,
                "num_bytes": item.num_bytes,
                "content": None if item.content is None else base64.b64encode(item.content).decode(),
            }
            for item in result.skipped
        ],
    }
    # Written once, for the document may be large: the checksum is that of the text.
    text = json.dumps(document).encode()
    return _head(text) + text + _TAIL


def _head(text: bytes) -> bytes:
    return f'{{"crc32c": "{to_hex(crc32c(text))}", "receipt": '.encode()


def _checked(content: bytes) -> dict[str, Any]:
    text = content[len(_head(b"")) : -len(_TAIL)]
    if content != _head(text) + text + _TAIL:
        raise ValueError("it fails its checksum")
    document = parse_json(text)
    if not isinstance(document, dict):
        raise ValueError("it is no object")
    return document


def _parse(content: bytes, layout: ShardLayout) -> TaskResult:
    """Read a receipt.

    Raises:
        ValueError: It is none.
    """
    try:
        document = _checked(content)
        receipt = Receipt(
            writer=str(document["writer"]),
            shards=tuple(parse_shard(shard, layout) for shard in document["shards"]),
            ids=tuple(document["ids"]),
            attrs=tuple(document["attrs"]),
            pieces=np.frombuffer(base64.b64decode(document["pieces"]), "<i8").astype(np.int64).reshape(-1, 3),
            statistics=_statistics(document["statistics"], layout),
        )
        skipped = tuple(
            Skipped(**{**item, "content": None if item["content"] is None else base64.b64decode(item["content"])})
            for item in document["skipped"]
        )
        times = document["times"]
        return TaskResult(
            receipt=receipt,
            skipped=skipped,
            bytes_in=int(document["bytes_in"]),
            times=None if times is None else tuple(times),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is no receipt: {error}") from None


def _statistics(text: str | None, layout: ShardLayout) -> bytes | None:
    if text is None:
        return None
    content = text.encode()
    parse_statistics(content, layout.fields)
    return content
