"""What a task of a job hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamseq.etl.source import Skipped

if TYPE_CHECKING:
    # Here, for sources name what tasks hand back, and a command's help needs no pyarrow.
    from streamseq.storage.shards.shard_writer import Receipt

Times = tuple[str, float, str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What a task hands back; picklable.

    Args:
        receipt: What it wrote.
        skipped: What it left out.
        bytes_in: The bytes of input that went in.
        seconds: How long it took; 0.0 where an earlier run did it.
        times: Of rows that have to be in the order of a column: the id and the time of the first, and of the last.
    """

    receipt: Receipt
    skipped: tuple[Skipped, ...]
    bytes_in: int
    seconds: float = 0.0
    times: Times | None = None
