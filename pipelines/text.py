"""Text, or any files, as bytes or tokens: a sequence for each file, line or document, or one of all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import click
import numpy as np

from streamseq.core.fields import Field
from streamseq.etl import Partition, Piece, Pieces, Skipped
from streamseq.etl.command import ingest_command
from streamseq.etl.source import ON_ERROR

from .bad_input import BadInput
from .file_bytes import FileError, codec_of, read_bytes
from .file_parts import FilePart, FileParts, Item, even_cuts, group, nothing_found, steady_target
from .file_together import TogetherReader, runs
from .files import InputFile, find_files
from .text_blocks import BLOCK_BYTES
from .text_documents import Documents
from .text_read import TextReader
from .text_tokens import Tokens

# What text becomes when it is decoded, about.
_DECODED = 4


class TextSource:
    """Files as sequences of bytes, or of tokens: field `x`, one byte or token a timestep.

    Bytes are uint8; tokens uint16, or uint32 where the tokenizer has more than 65,536. Files that end in `.gz`, `.bgz`
    and `.zst` are decoded.

    Files are taken in the order of `paths`, and within a folder or glob sorted; each file once. Its id is its path
    relative to the folder that was named, to the part of a glob before its first `*`, or, of files that were named
    themselves, to the folder that all of those have in common. Hidden files in folders are left out, and empty files
    are reported as skipped. Lines and documents are called `FILE@BYTE`, after the decoded byte at which their
    line starts, unless documents have an id; then their attributes say `file` and `byte`. Lines come without their
    `\\n` or `\\r\\n`, and empty ones are no sequences.

    Plain files that are larger than a partition are cut: anywhere where they are bytes, otherwise between lines.
    Compressed files are not cut. Files are tokenized in blocks of about 256 KiB that end with a line, so a tokenizer
    that marks the start of a text marks that of each block, and one that joins line ends to what follows may split
    otherwise there. Lines and documents are tokenized whole, up to 512 Ki characters at once. No special tokens are
    added.

    Args:
        paths: Files, folders and globs, as paths or fsspec URLs.
        lines: Each line is a sequence.
        jsonl_field: The files are JSON lines, and this field of each object is the text of a sequence.
        id_field: The field with the id of the sequence, a string or an integer.
        one_sequence: All files, or all documents, end to end are one sequence.
        id: The id of the one sequence.
        tokenizer: The path of a `tokenizer.json`; needs `streamseq[tokenizers]`.
        patterns: Of folders, take only files whose name, or path in the folder, matches one of these globs.
        longest_line: Bytes of the longest line that is held in memory, where lines matter.
        on_error: What happens at bad input: "fail", "skip" and report it, or "quarantine": hand its bytes over as well.
            What is left out is a line, where it is not UTF-8 and text is wanted, not a document, or too long; otherwise
            a file, which stays where it is: one that cannot be read, changes meanwhile or is damaged. A file in several
            partitions that changes fails the job in any case: parts of it are written.

    Raises:
        TypeError: `paths` is a string.
        ValueError: There is no path, an argument has a value that it cannot have, or some do not go together.
        ImportError: A tokenizer is wanted and the package is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_bytes(b"one\\ntwo\\n")
        ...     files, lines = TextSource([folder]), TextSource([folder], lines=True)
        ...     [whole] = files.read(files.partitions(1000)[0])
        ...     one, two = lines.read(lines.partitions(1000)[0])
        >>> whole.id, whole.arrays["x"].tobytes()
        ('a.txt', b'one\\ntwo\\n')
        >>> two.id, two.arrays["x"].tobytes()
        ('a.txt@4', b'two')
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        lines: bool = False,
        jsonl_field: str | None = None,
        id_field: str | None = None,
        one_sequence: bool = False,
        id: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        patterns: Sequence[str] = (),
        longest_line: int = 64 << 20,
        on_error: str = "fail",
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths is a list, got {paths!r}: put it in a list")
        if not paths:
            raise ValueError("at least one file, folder or glob is named, got none")
        if id is not None and not one_sequence:
            raise ValueError(f"an id names the one sequence of all files, got {id!r} for many: ask for one sequence")
        if id == "":
            raise ValueError("an id has at least one character, got an empty one")
        if lines and (one_sequence or jsonl_field is not None):
            raise ValueError("each line is a sequence, or a document, or all are one sequence: ask for one of them")
        if id_field is not None and (one_sequence or jsonl_field is None):
            raise ValueError(
                f"an id field, here {id_field!r}, names the documents of JSON lines: give their text's field"
            )
        if longest_line < 1:
            raise ValueError(f"the longest line has at least 1 byte, got {longest_line}")
        self._paths = tuple(os.fspath(path) for path in paths)
        self._patterns = tuple(patterns)
        self._policy = BadInput(on_error=on_error)
        self._reader = TextReader(
            policy=self._policy,
            lines=lines,
            documents=None if jsonl_field is None else Documents(text_field=jsonl_field, id_field=id_field),
            tokens=None if tokenizer is None else Tokens.load(tokenizer),
            one_id=(id or "text") if one_sequence else None,
            longest=longest_line,
        )

    @property
    def threads(self) -> bool:
        """Whether its work is input, or the tokenizer's; lines and documents are Python's, one by one."""
        return not self._reader.one_by_one

    @property
    def on_error(self) -> str:
        """What happens at bad input: "fail", "skip" or "quarantine"."""
        return self._policy.on_error

    @property
    def settings(self) -> TextReader:
        """What the result depends on, beside the files."""
        return self._reader

    @property
    def fields(self) -> Mapping[str, Field]:
        """One field: `x`."""
        return {"x": Field(self._reader.dtype)}

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Put small files together up to a partition's size, and cut large plain ones.

        A compressed file counts four times its size.

        Raises:
            FileNotFoundError: A path stands for no file.
            SourceError: Something cannot be read and is not to be skipped, two files have one id, or all are empty.
        """
        found = find_files(self._paths, self._patterns, skip=self._policy.skips)
        weights = [_weight(item) for item in found]
        if not any(weights):
            raise nothing_found(found)
        target = steady_target(sum(weights), target_bytes)
        items: list[Item] = []
        for file, weight in zip(found, weights, strict=True):
            if isinstance(file, Skipped):
                items.append(Item(content=file))
            elif not file.size:
                items.append(Item(content=Skipped(what=file.address, reason="empty")))
            elif weight <= target or codec_of(file.address) is not None:
                part = FilePart(file=file, start=0, stop=file.size)
                items.append(Item(content=part, num_bytes=file.size, weight=weight, id=self._reader.id_of(file)))
            else:
                items += self._cut(file, target)
        return group(items, target)

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield the sequences of a partition, in pieces of a few MiB."""
        for item in partition.content:
            if isinstance(item, Skipped):
                yield item
            else:
                yield from self._reader.read(item)

    def read_at_once(self, partition: Partition) -> Iterator[Piece | Pieces | Skipped]:
        """Yield what `read` yields, small files that are sequences of bytes together."""
        if not self._reader.in_whole_files:
            yield from self.read(partition)
            return
        content: FileParts = partition.content
        reader = TogetherReader()
        for run in runs(content):
            if isinstance(run, Skipped):
                yield run
            elif isinstance(run, FilePart):
                yield from self._reader.read(run)
            else:
                begin, end = run
                while begin < end:
                    values, done = reader.read(content, begin, end)
                    if done:
                        lengths = np.array(content.sizes[begin : begin + done], np.int64)
                        yield Pieces(ids=content.ids[begin : begin + done], lengths=lengths, arrays={"x": values})
                    del values
                    # The one that was not read is read again alone, which says what is wrong with it.
                    begin += done
                    for part in content.parts(begin, min(begin + 1, end)):
                        yield from self._reader.read(part)
                    begin += 1

    def _cut(self, file: InputFile, target: int) -> Iterator[Item]:
        """Parts of a large file, which is looked at before parts of it are written."""
        try:
            next(read_bytes(file, 0, 1))
        except FileError as error:
            yield Item(content=self._policy.file(file, error))
            return
        for start, stop in even_cuts(file.size, target, BLOCK_BYTES if self._reader.in_blocks else 1):
            part = FilePart(file=file, start=start, stop=stop, whole=stop - start == file.size)
            weight = max(target, stop - start)
            yield Item(content=part, num_bytes=stop - start, weight=weight, id=self._reader.id_of(file))


def _weight(item: InputFile | Skipped) -> int:
    if isinstance(item, Skipped):
        return 0
    return item.size * (_DECODED if codec_of(item.address) else 1)


@click.command("text")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--lines", is_flag=True, help="Each line is a sequence.")
@click.option("--jsonl-field", metavar="NAME", help="SOURCE is JSON lines; this field of each has a sequence's text.")
@click.option("--id-field", metavar="NAME", help="The field of JSON lines with the id.  [default: FILE@BYTE]")
@click.option("--one-sequence", is_flag=True, help="All files, or documents, end to end in order, are one sequence.")
@click.option("--id", metavar="NAME", help="The id of the one sequence.  [default: text]")
@click.option("--tokenizer", metavar="FILE", help="Make tokens with this tokenizer.json instead of bytes.")
@click.option(
    "--pattern",
    "patterns",
    metavar="GLOB",
    multiple=True,
    help="Of folders, take only files whose name or path in the folder matches, such as '*.py'. Can be repeated.",
)
@click.option(
    "--longest-line",
    type=click.IntRange(min=1),
    default=64 << 20,
    show_default=True,
    help="Bytes of the longest line to hold, where lines matter.",
)
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="fail",
    show_default=True,
    help="What happens at a file that cannot be read, or a line that is not text or no document: fail, skip and report "
    "it, or quarantine, which keeps the bytes of lines in STORE.quarantine.jsonl.",
)
@ingest_command
def command(
    sources: tuple[str, ...],
    lines: bool,
    jsonl_field: str | None,
    id_field: str | None,
    one_sequence: bool,
    id: str | None,
    tokenizer: str | None,
    patterns: tuple[str, ...],
    longest_line: int,
    on_error: str,
) -> TextSource:
    """Ingest files as sequences of bytes or tokens (field x).

    SOURCE is a file, a folder or a glob, as a path or an fsspec URL; .gz and .zst are decoded. Each file is a sequence,
    whose id is its path relative to the folder that was named. Hidden files in folders are left out.
    """
    try:
        return TextSource(
            sources,
            lines=lines,
            jsonl_field=jsonl_field,
            id_field=id_field,
            one_sequence=one_sequence,
            id=id,
            tokenizer=tokenizer,
            patterns=patterns,
            longest_line=longest_line,
            on_error=on_error,
        )
    except ImportError as error:
        raise click.ClickException(str(error)) from None
