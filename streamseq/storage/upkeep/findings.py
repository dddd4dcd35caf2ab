"""What was found wrong with a store: problems, the sequences and timesteps that they hit, and the report of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

# Problems, and sequences of a problem, that are printed; the report has all of them.
_SHOWN = 20
_SHOWN_SPANS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Timesteps `[start, stop)` of one sequence.

    Args:
        id: The id of the sequence; None where the table of ids cannot be read.
        sequence: Its number in the version.
        start: The first timestep.
        stop: The timestep after the last one.
    """

    id: str | None
    sequence: int
    start: int
    stop: int

    def __str__(self) -> str:
        name = f"sequence {self.sequence}" if self.id is None else repr(self.id)
        return f"{name} [{self.start:,}, {self.stop:,})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it was written.

    Args:
        store: Where the store lies.
        versions: The versions that have it.
        part: What is wrong: the "version" file, a "table", an "attachment", or the data in a "shard".
        what: What is wrong with it, in words.
        shard: The id of the shard.
        field: The field.
        chunk: The number of the chunk in its shard; None: all of the field.
        spans: The sequences and timesteps that cannot be read, in the newest of the versions.
        salvageable: Whether they are only refused because the files around them are broken: a repair saves them.

    Example:
        >>> hit = (Span(id="plant-3", sequence=3, start=0, stop=512),)
        >>> where = {"store": "p.zarr", "shard": "0123456789abcdef-000000", "field": "x", "chunk": 0}
        >>> print(Problem(**where, versions=(1,), part="shard", what="fails its checksum", spans=hit))
        store p.zarr, shard 0123456789abcdef-000000, field 'x', chunk 0: fails its checksum; hits 'plant-3' [0, 512)
    """

    store: str
    versions: tuple[int, ...]
    part: Literal["version", "table", "attachment", "shard"]
    what: str
    shard: str | None = None
    field: str | None = None
    chunk: int | None = None
    spans: tuple[Span, ...] = ()
    salvageable: bool = False

    @property
    def where(self) -> str:
        """Store, shard, field and chunk."""
        place = f"store {self.store}"
        if self.shard is not None:
            place += f", shard {self.shard}"
        if self.field is not None:
            place += f", field {self.field!r}"
        return place if self.chunk is None else f"{place}, chunk {self.chunk}"

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, as JSON holds them."""
        return {**asdict(self), "versions": list(self.versions), "spans": [asdict(span) for span in self.spans]}

    def __str__(self) -> str:
        verb = "until it is repaired, nobody reads" if self.salvageable else "hits"
        return f"{self.where}: {self.what}" + (f"; {verb} {some(self.spans, _SHOWN_SPANS)}" if self.spans else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify` found; `print(report)` says it.

    Args:
        store: Where the store lies.
        versions: The versions that were checked.
        problems: What is not as it was written.
        leftovers: What writers that died left, which harms nobody: names in the store.
        sequences: Sequences of the newest of the versions, as far as its file can be read.
        timesteps: Their timesteps.
        shards: Shards that were checked.
        chunks: Chunks that were decoded.
        bytes: Their size as they are stored.
        seconds: What it took.
    """

    store: str
    versions: tuple[int, ...]
    problems: tuple[Problem, ...] = ()
    leftovers: tuple[str, ...] = ()
    sequences: int = 0
    timesteps: int = 0
    shards: int = 0
    chunks: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all of it is as it was written."""
        return not self.problems

    @property
    def spans(self) -> list[Span]:
        """What cannot be read, in the order of the sequences, every timestep once."""
        return merge_spans(span for problem in self.problems for span in problem.spans)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, as JSON holds them."""
        return {
            "store": self.store,
            "ok": self.ok,
            "versions": list(self.versions),
            "problems": [problem.as_dict() for problem in self.problems],
            "spans": [asdict(span) for span in self.spans],
            "leftovers": list(self.leftovers),
            "sequences": self.sequences,
            "timesteps": self.timesteps,
            "shards": self.shards,
            "chunks": self.chunks,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        version = ", ".join(str(number) for number in self.versions)
        lines = [
            f"{self.store} version {version}: {self.sequences:,} sequences, {self.timesteps:,} timesteps, "
            f"{self.shards:,} shards, {self.chunks:,} chunks, {self.bytes:,} bytes"
        ]
        lines += [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"and {len(self.problems) - _SHOWN:,} more problems: --json lists them")
        hit = self.spans
        if hit:
            timesteps = sum(span.stop - span.start for span in hit)
            lines.append(
                f"{len({span.sequence for span in hit}):,} sequences are hit, {timesteps:,} timesteps: restore the "
                "shards from a copy, or make a version without these sequences with streamseq repair"
            )
        if self.leftovers:
            lines.append(f"{len(self.leftovers):,} leftovers of writers that died: streamseq clean removes them")
        number = len(self.problems)
        lines.append("it is well" if self.ok else f"it is not well: {number:,} problem{'s' if number > 1 else ''}")
        return "\n".join(lines)


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Join spans of one sequence that touch or overlap, in the order of the sequences.

    Example:
        >>> spans = [Span(id="b", sequence=1, start=3, stop=5), Span(id="a", sequence=0, start=0, stop=2)]
        >>> [str(span) for span in merge_spans([*spans, Span(id="b", sequence=1, start=0, stop=4)])]
        ["'a' [0, 2)", "'b' [0, 5)"]
    """
    merged: dict[str | int, list[Span]] = {}
    # By id, for another version may number the sequences otherwise.
    for span in sorted(spans, key=lambda span: (span.sequence, span.start, span.stop)):
        of_one = merged.setdefault(span.sequence if span.id is None else span.id, [])
        if of_one and of_one[-1].start <= span.start <= of_one[-1].stop:
            last = of_one.pop()
            span = replace(last, stop=max(last.stop, span.stop))
        of_one.append(span)
    return [span for of_one in merged.values() for span in of_one]


def some(things: Iterable[object], shown: int) -> str:
    """Say the first few things, and how many more there are."""
    texts = [str(thing) for thing in things]
    more = [f"and {len(texts) - shown:,} more"] if len(texts) > shown else []
    return ", ".join(texts[:shown] + more)
