"""A source that takes its time, for jobs that are killed while they run, and the client of such a job as a process.

python -c "from support.slow_source import main; main()" STORE MARKS PARTITIONS SCHEDULER
"""

import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import streamseq as ss
from streamseq.etl.source import Partition, Piece, Skipped

#: Three chunks a shard, one or two shards a partition.
CUT = {"chunk_bytes": 80, "shard_bytes": 240}
_PIECES = 4
_STEPS = 9


class SlowSource:
    """Consecutive numbers in sequences that go over borders of partitions; every reading of one leaves a mark.

    Args:
        marks: A folder for a file for each time that a partition is read.
        count: The number of partitions.
        seconds: How long a piece takes.
    """

    fields = {"x": ss.Field("int64", codec="none")}  # noqa: RUF012 - as a user would write it
    threads = True
    on_error = "quarantine"

    def __init__(self, marks: Path, count: int, seconds: float = 0.01) -> None:
        self.marks = marks
        self.count = count
        self.seconds = seconds
        self.settings = {"count": count}

    def partitions(self, target_bytes: int) -> Sequence[Partition]:
        return [Partition(num_bytes=10, content=number) for number in range(self.count)]

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        number = partition.content
        (self.marks / f"{number}-{uuid.uuid4().hex}").touch()
        for piece in range(_PIECES):
            time.sleep(self.seconds)
            # Three partitions and a half are a sequence.
            place = number * _PIECES + piece
            first = place * _STEPS
            yield Piece(
                id=f"sequence {place // 14}", arrays={"x": np.arange(first, first + _STEPS)}, attrs={"of": place // 14}
            )
        if number % 5 == 0:
            yield Skipped(what=f"{number}", place="line 1", reason="odd", num_bytes=1, content=b"%d" % number)


def main() -> None:
    """Run the job as a client of a scheduler, and tell how many bytes are done after each partition."""
    address, marks, count, scheduler = sys.argv[1:]
    report = ss.ingest(
        SlowSource(Path(marks), int(count)),
        address,
        scheduler=scheduler,
        progress=lambda done, total: print(done, flush=True),
        **CUT,
    )
    print(report.to_json(), flush=True)
    # Dask's threads would take their time.
    sys.stdout.flush()
    os._exit(0)
