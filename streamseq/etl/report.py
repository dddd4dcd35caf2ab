"""The report of an ETL job: what went in, what came out, how fast, and what was left out and why."""

from __future__ import annotations

import json
from dataclasses import dataclass

from streamseq.etl.source import Skipped

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a job did; `print(report)` says it in a few lines.

    Args:
        store: The path of the store.
        version: The version that was committed.
        sequences: Sequences written.
        timesteps: Timesteps written.
        bytes_in: Bytes of input read.
        bytes_out: Bytes of the shards' data on the disk.
        seconds: Wall-clock time of the job.
        startup_seconds: How much of it passed before the first task ran; all of it where none did.
        skipped: What was left out, in the order of the source; of very much that was quarantined the bytes are in the
            file only.
        partitions: The parts that the job was cut into.
        partitions_done_before: Those of them that an earlier run of the job had done.
        quarantine: The address of the file with what was quarantined, JSON lines; None where there is none.
    """

    store: str
    version: int
    sequences: int
    timesteps: int
    bytes_in: int
    bytes_out: int
    seconds: float
    skipped: tuple[Skipped, ...]
    partitions: int
    partitions_done_before: int = 0
    quarantine: str | None = None
    startup_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Bytes of input a second."""
        return self.bytes_in / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps(
            {
                "store": self.store,
                "version": self.version,
                "sequences": self.sequences,
                "timesteps": self.timesteps,
                "bytes_in": self.bytes_in,
                "bytes_out": self.bytes_out,
                "seconds": round(self.seconds, 3),
                "startup_seconds": round(self.startup_seconds, 3),
                "rate": round(self.rate, 1),
                "partitions": self.partitions,
                "partitions_done_before": self.partitions_done_before,
                "quarantine": self.quarantine,
                "skipped": [
                    {"what": skipped.what, "place": skipped.place, "reason": skipped.reason} for skipped in self.skipped
                ],
            }
        )

    def __str__(self) -> str:
        lines = [
            f"wrote {self.store} version {self.version}: {self.sequences:,} sequences, {self.timesteps:,} timesteps",
            f"{readable_bytes(self.bytes_in)} in, {readable_bytes(self.bytes_out)} out, in {self.seconds:.1f} s, "
            f"{self.startup_seconds:.1f} s of them to start: {readable_bytes(self.rate)}/s",
        ]
        if self.partitions_done_before:
            lines.append(f"{self.partitions_done_before:,} of {self.partitions:,} parts were done before")
        if self.skipped:
            shown = [str(skipped) for skipped in self.skipped[:_SHOWN]]
            if len(self.skipped) > _SHOWN:
                shown.append(f"and {len(self.skipped) - _SHOWN:,} more")
            lines.append(f"left out {len(self.skipped):,}: {', '.join(shown)}")
        if self.quarantine is not None:
            lines.append(f"what was left out is in {self.quarantine}")
        return "\n".join(lines)


def readable_bytes(num_bytes: float) -> str:
    """Say a number of bytes in decimal units.

    Example:
        >>> readable_bytes(999), readable_bytes(1234567), readable_bytes(999999)
        ('999 B', '1.2 MB', '1.0 MB')
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    value = num_bytes / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
