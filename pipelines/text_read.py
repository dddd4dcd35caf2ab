"""What a part of a text file yields: pieces of bytes or tokens, by file, line or document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamseq.etl import Piece, Skipped, SourceError

from .bad_input import BadInput
from .file_bytes import FileError, read_bytes, read_small, read_surely
from .file_parts import FilePart
from .files import InputFile
from .text_blocks import BLOCK_BYTES, blocks_of
from .text_documents import DocumentError, Documents
from .text_lines import LongLine, Run, ends_of, place_of_line, read_lines, starts_of
from .text_tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A line without its end."""

    offset: int
    number: int | None
    data: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """Text that becomes a piece."""

    id: str
    text: str
    attrs: dict[str, str | int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReader:
    """How text is read; picklable.

    Args:
        policy: What happens at bad input.
        lines: Each line is a sequence.
        documents: Each line is a document, whose text is a sequence; None: it is not.
        tokens: The tokenizer; None: bytes.
        one_id: The id of the one sequence of all; None: there are many.
        longest: Bytes of the longest line that is held.
    """

    policy: BadInput
    lines: bool
    documents: Documents | None
    tokens: Tokens | None
    one_id: str | None
    longest: int

    @property
    def dtype(self) -> str:
        """The dtype of the timesteps."""
        return "uint8" if self.tokens is None else self.tokens.dtype

    @property
    def one_by_one(self) -> bool:
        """Whether Python sees every line."""
        return self.lines or self.documents is not None

    @property
    def in_blocks(self) -> bool:
        """Whether files are read block by block."""
        return self.tokens is not None and not self.one_by_one

    @property
    def in_whole_files(self) -> bool:
        """Whether each file is a sequence of its bytes."""
        return self.tokens is None and not self.one_by_one and self.one_id is None

    def id_of(self, file: InputFile) -> str | None:
        """The id of the sequence that a file is of; None where it has many."""
        return self.one_id or (None if self.one_by_one else file.id)

    def read(self, part: FilePart) -> Iterator[Piece | Skipped]:
        """Yield what a part of a file holds.

        Raises:
            SourceError: It is bad and nothing is to be left out, or it changed after parts of it were handed on.
        """
        begun = False
        try:
            if part.whole and self.tokens is None and not self.one_by_one:
                # There may be very many small files.
                values = read_small(part.file)
                if values is not None:
                    yield Piece(id=self.one_id or part.file.id, arrays={"x": values})
                    return
            for item in self._read(part):
                begun = True
                yield item
        except FileError as error:
            if begun or not part.whole:
                raise  # what was handed on cannot be taken back
            yield self.policy.file(part.file, error)

    def _read(self, part: FilePart) -> Iterator[Piece | Skipped]:
        if self.one_by_one:
            return self._read_lines(part)
        if self.tokens is not None:
            return self._read_blocks(part, self.tokens)
        return self._read_bytes(part)

    def _read_bytes(self, part: FilePart) -> Iterator[Piece | Skipped]:
        id = self.id_of(part.file)
        assert id is not None, "read as a sequence"
        surely = self.policy.skips and part.whole
        for values in read_surely(part.file) if surely else self._bytes_of(part):
            yield Piece(id=id, arrays={"x": values})

    def _bytes_of(self, part: FilePart) -> Iterator[NDArray[np.uint8]]:
        return read_bytes(part.file) if part.whole else read_bytes(part.file, part.start, part.stop)

    def _lines_of(self, part: FilePart, ahead: int = 0) -> Iterator[Run | LongLine]:
        stop = min(part.file.size, part.stop + ahead)
        sure = self.policy.skips and part.whole
        return read_lines(part.file, part.start, stop, longest=self.longest, sure=sure, whole=part.whole)

    def _read_blocks(self, part: FilePart, tokens: Tokens) -> Iterator[Piece | Skipped]:
        id = self.id_of(part.file)
        assert id is not None, "read as a sequence"
        stop = part.stop if part.stop < part.file.size else None
        ahead = 0 if part.whole else BLOCK_BYTES
        for block in blocks_of(self._lines_of(part, ahead), part.start, stop):
            for item in block:
                for text in self._decoded(part.file, item):
                    if isinstance(text, Skipped):
                        yield text
                    else:
                        yield Piece(id=id, arrays={"x": tokens.encode([text])[0]})

    def _decoded(self, file: InputFile, item: Run | LongLine) -> Iterator[str | Skipped]:
        """The text of lines, in as few strings as there are bad lines in between."""
        if isinstance(item, LongLine):
            yield self._too_long(file, item)
            return
        data, offset, line = item.data.tobytes(), item.offset, item.line
        while data:
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                start = data.rfind(b"\n", 0, error.start) + 1
                stop = data.find(b"\n", error.start) + 1 or len(data)
                if start:
                    yield data[:start].decode()
                number = None if line is None else line + data.count(b"\n", 0, start)
                bad = data[start:stop]
                yield self.policy.part(
                    file, place_of_line(offset + start, number), _not_utf8(bad, error.start - start), bad, len(bad)
                )
                data, offset, line = data[stop:], offset + stop, None if number is None else number + 1
            else:
                yield text
                return

    def _read_lines(self, part: FilePart) -> Iterator[Piece | Skipped]:
        last: str | None = None
        for item in self._lines_of(part):
            if isinstance(item, LongLine):
                yield self._too_long(part.file, item)
                continue
            waiting: list[_Text] = []
            size = 0
            for found in self._sequences(part.file, item):
                if isinstance(found, _Text):
                    if self.one_id is None and found.id == last:
                        raise SourceError(
                            f"every document has an id of its own, {last!r} comes twice in {part.file.address!r}: make "
                            "them unique, or leave the id field out"
                        )
                    last = found.id
                    waiting.append(found)
                    size += len(found.text)
                    if size < BLOCK_BYTES:
                        continue
                yield from self._pieces(waiting)
                waiting, size = [], 0
                if not isinstance(found, _Text):
                    yield found
            yield from self._pieces(waiting)

    def _sequences(self, file: InputFile, run: Run) -> Iterator[_Text | Piece | Skipped]:
        for line in _split(run):
            place = place_of_line(line.offset, line.number)
            id = self.one_id or f"{file.id}@{line.offset}"
            if self.documents is None and self.tokens is None:
                yield Piece(id=id, arrays={"x": line.data})
                continue
            data = line.data.tobytes()
            if self.documents is None:
                try:
                    yield _Text(id=id, text=data.decode())
                except UnicodeDecodeError as error:
                    yield self.policy.part(file, place, _not_utf8(data, error.start), data, len(data))
                continue
            try:
                own, text = self.documents.parse(data)
            except DocumentError as error:
                yield self.policy.part(file, place, str(error), data, len(data))
                continue
            if not text:
                yield Skipped(what=file.address, place=place, reason="the text is empty", num_bytes=len(data))
                continue
            attrs: dict[str, str | int] | None = None if own is None else {"file": file.id, "byte": line.offset}
            yield _Text(id=own or id, text=text, attrs=attrs)

    def _pieces(self, texts: Sequence[_Text]) -> Iterator[Piece]:
        if not texts:
            return
        if self.tokens is None:
            values: Sequence[NDArray[np.unsignedinteger]] = [
                np.frombuffer(item.text.encode(), np.uint8) for item in texts
            ]
        else:
            values = self.tokens.encode([item.text for item in texts])
        for item, array in zip(texts, values, strict=True):
            yield Piece(id=item.id, arrays={"x": array}, attrs=item.attrs)

    def _too_long(self, file: InputFile, line: LongLine) -> Skipped:
        reason = f"the line has {line.num_bytes} bytes, and at most {self.longest} are held: raise the longest line"
        return self.policy.part(file, place_of_line(line.offset, line.line), reason, None, line.num_bytes)


def _split(run: Run) -> Iterator[_Line]:
    """The lines of a run that are not empty."""
    starts = starts_of(run.data)
    ends = ends_of(run.data, starts)
    filled = np.flatnonzero(ends > starts[:-1])
    for number, start, end in zip(filled.tolist(), starts[filled].tolist(), ends[filled].tolist(), strict=True):
        yield _Line(
            offset=run.offset + start,
            number=None if run.line is None else run.line + number,
            data=run.data[start:end],
        )


def _not_utf8(data: bytes, at: int) -> str:
    return f"not UTF-8: byte {at} of the line is 0x{data[at]:02x}"
