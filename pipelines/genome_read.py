"""What a part of a FASTA or FASTQ file yields: pieces of records, or what was left out of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamseq.etl import Piece, Skipped, SourceError

from .bad_input import BadInput
from .file_bytes import HELD_BYTES, FileError, read_bytes, read_surely
from .file_parts import FilePart
from .files import InputFile
from .genome_fasta import read_fasta
from .genome_fastq import read_fastq
from .genome_letters import Letters
from .genome_records import Bases, Head, place_of
from .text_lines import runs_of


@dataclass(frozen=True, slots=True, kw_only=True)
class GenomePart(FilePart):
    """Bytes `[start, stop)` of a file, from a record on or from inside of one.

    Args:
        inside: The id of the record that the part begins inside of; None where it begins with one.
    """

    inside: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenomeReader:
    """How records are read; picklable.

    Args:
        policy: What happens at bad input.
        letters: What letters become.
        fastq: The files are FASTQ, not FASTA.
        phred: What is taken from a character of FASTQ to get its quality.
        whole_header: The id is the whole header line.
    """

    policy: BadInput
    letters: Letters
    fastq: bool
    phred: int
    whole_header: bool

    def read(self, part: GenomePart) -> Iterator[Piece | Skipped]:
        """Yield what a part of a file holds.

        Raises:
            SourceError: It is bad and nothing is to be left out, or it changed after parts of it were handed on.
        """
        begun = False
        try:
            for item in self._read(part):
                begun = True
                yield item
        except FileError as error:
            if begun or not part.whole:
                raise  # what was handed on cannot be taken back
            yield self.policy.file(part.file, error)

    def _read(self, part: GenomePart) -> Iterator[Piece | Skipped]:
        if not self.policy.skips or self.fastq:
            yield from self._pieces(part, self._events(part), {})
            return
        # All of a record is looked at before any of it is handed on.
        held: list[Head | Bases] = []
        bad: dict[int, tuple[str, str]] = {}
        num_bytes, record = 0, -1
        for event in self._events(part):
            if isinstance(event, Head):
                record += 1
                if event.problem is not None:
                    bad.setdefault(record, (place_of(event.offset, event.line), event.problem))
            elif event.problem is not None:
                bad.setdefault(record, (event.place, event.problem))
            num_bytes += len(event.raw)
            if num_bytes <= HELD_BYTES:
                held.append(event)
            else:
                held.clear()
        yield from self._pieces(part, iter(held) if num_bytes <= HELD_BYTES else self._events(part), bad)

    def _events(self, part: GenomePart) -> Iterator[Head | Bases]:
        line = 1 if part.whole else None
        if self.fastq:
            pieces = read_surely(part.file) if self.policy.skips and part.whole else self._bytes(part)
            runs = runs_of(pieces, part.start, line, None, HELD_BYTES)
            return read_fastq(runs, self.letters, phred=self.phred, whole_header=self.whole_header)
        return read_fasta(
            self._bytes(part),
            self.letters,
            at=part.start,
            line=line,
            inside=part.inside is not None,
            whole_header=self.whole_header,
        )

    def _bytes(self, part: GenomePart) -> Iterator[NDArray[np.uint8]]:
        return read_bytes(part.file) if part.whole else read_bytes(part.file, part.start, part.stop)

    def _pieces(
        self, part: GenomePart, events: Iterator[Head | Bases], bad: dict[int, tuple[str, str]]
    ) -> Iterator[Piece | Skipped]:
        """Pieces of good records, and each bad one when it has ended.

        Args:
            part: The part of a file.
            events: What it holds.
            bad: What is wrong where with each record, by its number in the part, as far as it is known beforehand.
        """
        record = -1
        head: Head | None = None
        id = part.inside
        empty = False
        out: _Out | None = None
        for event in events:
            if isinstance(event, Head):
                yield from self._ended(part.file, head, out, empty)
                head, record, empty, out = event, record + 1, True, None
                if record in bad:
                    out = _Out(*bad[record])
                elif event.problem is not None:
                    out = _Out(place_of(event.offset, event.line), event.problem)
                elif event.id == id:
                    raise SourceError(
                        f"every record has an id of its own, {id!r} comes twice in {part.file.address!r}: rename one, "
                        "or take whole headers for ids"
                    )
                id = event.id
            elif event.problem is not None and out is None:
                out = _Out(event.place, event.problem)
                if head is not None:
                    out.add(head.raw)
            if out is not None:
                if not self.policy.skips:
                    raise SourceError(f"{part.file.address!r}, {out.place}: {out.reason}")
                out.add(event.raw)
            elif isinstance(event, Bases) and len(event.arrays["x"]):
                assert id is not None, "records without an id are bad"
                attrs = None
                if empty and head is not None:
                    place: dict[str, str | int] = {"file": part.file.id, "byte": head.offset}
                    attrs = {**({"description": head.text} if head.text else {}), **place}
                empty = False
                yield Piece(id=id, arrays=event.arrays, attrs=attrs)
        yield from self._ended(part.file, head, out, empty)

    def _ended(self, file: InputFile, head: Head | None, out: _Out | None, empty: bool) -> Iterator[Skipped]:
        if out is not None:
            yield self.policy.part(file, out.place, out.reason, out.content, out.num_bytes)
        elif empty and head is not None:
            place = place_of(head.offset, head.line)
            yield Skipped(
                what=file.address, place=place, reason=f"record {head.id!r} is empty", num_bytes=len(head.raw)
            )


class _Out:
    """A record that is left out."""

    def __init__(self, place: str, reason: str) -> None:
        self.place = place
        self.reason = reason
        self.num_bytes = 0
        self._parts: list[bytes] = []

    def add(self, raw: NDArray[np.uint8]) -> None:
        self.num_bytes += len(raw)
        if self.num_bytes <= HELD_BYTES:
            self._parts.append(raw.tobytes())

    @property
    def content(self) -> bytes | None:
        """The bytes of the record; None where there are too many to hold."""
        return b"".join(self._parts) if self.num_bytes <= HELD_BYTES else None
