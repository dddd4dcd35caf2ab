"""Genomes: records of FASTA and FASTQ files as sequences of letters, or of their codes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import click

from streamseq.core.fields import Field
from streamseq.etl import Partition, Piece, Skipped
from streamseq.etl.command import ingest_command
from streamseq.etl.source import ON_ERROR

from .bad_input import BadInput
from .file_bytes import HELD_BYTES, FileError, codec_of
from .file_parts import Item, even_cuts, group, nothing_found, steady_target
from .files import InputFile, find_files
from .genome_fasta import cut_fasta, id_at, place_inside
from .genome_fastq import cut_fastq
from .genome_letters import AMBIGUOUS, LOWER, Letters
from .genome_read import GenomePart, GenomeReader

FORMATS = ("fasta", "fastq")
_SUFFIXES = {
    **dict.fromkeys((".fa", ".fasta", ".fna", ".faa", ".ffn", ".frn"), "fasta"),
    **dict.fromkeys((".fq", ".fastq"), "fastq"),
}
# What such files become when they are decoded, about.
_DECODED = 4


class GenomeSource:
    """Records of FASTA and FASTQ files as sequences: one letter a timestep, in field `x`, uint8.

    `x` holds letters as bytes, or, with an alphabet, their codes. FASTQ has the field `quality` too, uint8: Phred
    qualities. The field `mask`, bool, is there where `lower` or `ambiguous` is "mask". The id of a record is the first
    word of its header, and the rest of it its attribute `description`; `file` and `byte` say where it was. Ids are
    unique. Lines may be of any length, and records of FASTQ have four.

    Files that end in `.gz`, `.bgz` and `.zst` are decoded; they are not cut. Of plain FASTA files larger than a
    partition, records are found beforehand by reading the file once; records longer than a partition are cut over
    several, unless bad input is to be left out: then each is looked at as a whole before it is handed on.

    Args:
        paths: Files, folders and globs, as paths or fsspec URLs.
        format: "fasta" or "fastq"; None: by the suffix of the files, which are all of one of them.
        alphabet: The letters that have codes, in their order, such as "ACGTN"; None: letters stay bytes.
        lower: What becomes of lower-case letters: "keep", "upper", or "mask"; see `Letters`.
        ambiguous: What becomes of ambiguous nucleotides that the alphabet has not: "fail", "n" or "mask".
        phred: The offset of FASTQ's qualities, 33, or 64 of old files.
        whole_header: The id of a record is its whole header, as it has to be where the first words are not unique.
        patterns: Of folders, take only files whose name, or path in the folder, matches one of these globs.
        on_error: What happens at bad input: "fail", "skip" and report it, or "quarantine": hand its bytes over as well.
            What is left out is a record with a letter that is none or that is not whole, or a file that cannot be read
            or decoded. A file in several partitions that changes fails the job in any case, and so do two equal ids.

    Raises:
        TypeError: `paths` is a string.
        ValueError: There is no path, or an argument has a value that it cannot have.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.fa").write_text(">chr1 the first\\nACgt\\nN\\n")
        ...     source = GenomeSource([folder], alphabet="ACGTN", lower="mask")
        ...     [piece] = source.read(source.partitions(1000)[0])
        >>> piece.id, piece.arrays["x"].tolist(), piece.arrays["mask"].astype(int).tolist()
        ('chr1', [0, 1, 2, 3, 4], [0, 0, 1, 1, 0])
        >>> piece.attrs
        {'description': 'the first', 'file': 'a.fa', 'byte': 0}
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        format: str | None = None,
        alphabet: str | None = None,
        lower: str = "keep",
        ambiguous: str = "fail",
        phred: int = 33,
        whole_header: bool = False,
        patterns: Sequence[str] = (),
        on_error: str = "fail",
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths is a list, got {paths!r}: put it in a list")
        if not paths:
            raise ValueError("at least one file, folder or glob is named, got none")
        if format is not None and format not in FORMATS:
            raise ValueError(f"format is one of {', '.join(FORMATS)}, got {format!r}")
        if phred not in (33, 64):
            raise ValueError(f"phred is 33, or 64 of old files, got {phred}")
        self._paths = tuple(os.fspath(path) for path in paths)
        self._format = format
        self._letters = Letters(alphabet=alphabet, lower=lower, ambiguous=ambiguous)
        self._phred = phred
        self._whole_header = whole_header
        self._patterns = tuple(patterns)
        self._policy = BadInput(on_error=on_error)

    @property
    def threads(self) -> bool:
        """Whether most of its work is numpy's: that of FASTA is, reads of FASTQ are Python's, one by one."""
        return self._found_format() == "fasta"

    @property
    def on_error(self) -> str:
        """What happens at bad input: "fail", "skip" or "quarantine"."""
        return self._policy.on_error

    @property
    def settings(self) -> GenomeReader:
        """What the result depends on, beside the files."""
        return GenomeReader(
            policy=self._policy,
            letters=self._letters,
            fastq=self._found_format() == "fastq",
            phred=self._phred,
            whole_header=self._whole_header,
        )

    @property
    def fields(self) -> Mapping[str, Field]:
        """`x`, and `mask` and `quality` where there are any."""
        fields = {"x": Field("uint8")}
        if self._letters.masks:
            fields["mask"] = Field("bool")
        if self._found_format() == "fastq":
            fields["quality"] = Field("uint8")
        return fields

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Put small files together up to a partition's size, and cut large plain ones.

        A compressed file counts four times its size.

        Raises:
            FileNotFoundError: A path stands for no file.
            SourceError: Something cannot be read and is not to be skipped, two files have one id, or all are empty.
            ValueError: Files have different formats or an unknown one.
        """
        found = self._find()
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
                part = GenomePart(file=file, start=0, stop=file.size)
                items.append(Item(content=part, num_bytes=file.size, weight=weight))
            else:
                try:
                    items += self._cut(file, target)
                except FileError as error:
                    items.append(Item(content=self._policy.file(file, error)))
        return group(items, target)

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield the records of a partition, in pieces of a few MiB."""
        reader = self.settings
        for item in partition.content:
            if isinstance(item, Skipped):
                yield item
            else:
                yield from reader.read(item)

    def _cut(self, file: InputFile, target: int) -> list[Item]:
        starts = [start for start, _ in even_cuts(file.size, target)][1:]
        cuts: list[tuple[int, str | None]] = [(0, None)]
        if self._found_format() == "fastq":
            cuts += [(start, None) for start in cut_fastq(file, starts, HELD_BYTES)]
        else:
            for start, record in cut_fasta(file, starts, target // 2, not self._policy.skips):
                if record is None:
                    cuts.append((start, None))
                    continue
                head = id_at(file, record, self._whole_header)
                place = place_inside(file, record + len(head.raw), start)
                if place is not None and head.id is not None:
                    cuts.append((place, head.id))
        stops = [start for start, _ in cuts[1:]] + [file.size]
        items = []
        for (start, inside), stop in zip(cuts, stops, strict=True):
            if start < stop:
                part = GenomePart(file=file, start=start, stop=stop, whole=len(cuts) == 1, inside=inside)
                weight = max(target, stop - start)
                items.append(Item(content=part, num_bytes=stop - start, weight=weight, goes_on=inside))
        return items

    def _find(self) -> list[InputFile | Skipped]:
        return find_files(self._paths, self._patterns, skip=self._policy.skips)

    def _found_format(self) -> str:
        if self._format is None:
            kinds = {_format_of(item): item.address for item in self._find() if isinstance(item, InputFile)}
            if len(kinds) != 1 or None in kinds:
                names = " and ".join(repr(address) for address in list(kinds.values())[:2])
                raise ValueError(
                    f"the files are all FASTA or all FASTQ by their suffix, {', '.join(_SUFFIXES)}, found {names}: say "
                    "which format they have, or take only some with a pattern"
                )
            self._format = next(iter(kinds))
        assert self._format is not None, "found above"
        return self._format


def _format_of(file: InputFile) -> str | None:
    path = PurePosixPath(file.address.lower())
    return _SUFFIXES.get((path.with_suffix("") if codec_of(file.address) else path).suffix)


def _weight(item: InputFile | Skipped) -> int:
    if isinstance(item, Skipped):
        return 0
    return item.size * (_DECODED if codec_of(item.address) else 1)


@click.command("genome")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--format", type=click.Choice(FORMATS), help="The format of the files.  [default: by their suffix]")
@click.option("--alphabet", metavar="LETTERS", help="Make codes of these letters, such as ACGTN, instead of bytes.")
@click.option(
    "--lower",
    type=click.Choice(LOWER),
    default="keep",
    show_default=True,
    help="Keep lower-case letters, make them upper-case, or that with a field `mask` that says where they were.",
)
@click.option(
    "--ambiguous",
    type=click.Choice(AMBIGUOUS),
    default="fail",
    show_default=True,
    help="Ambiguous nucleotides that the alphabet has not are bad input, N, or 0 where the field `mask` is true.",
)
@click.option("--phred", type=click.Choice(["33", "64"]), default="33", show_default=True, help="FASTQ's offset.")
@click.option("--whole-header", is_flag=True, help="The id of a record is its whole header, not its first word.")
@click.option(
    "--pattern",
    "patterns",
    metavar="GLOB",
    multiple=True,
    help="Of folders, take only files whose name or path in the folder matches, such as '*.fa.gz'. Can be repeated.",
)
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="fail",
    show_default=True,
    help="What happens at a bad record, or a file that cannot be read: fail, skip and report it, or quarantine, which "
    "keeps the bytes of records in STORE.quarantine.jsonl.",
)
@ingest_command
def command(
    sources: tuple[str, ...],
    format: str | None,
    alphabet: str | None,
    lower: str,
    ambiguous: str,
    phred: str,
    whole_header: bool,
    patterns: tuple[str, ...],
    on_error: str,
) -> GenomeSource:
    """Ingest FASTA or FASTQ records as sequences of letters (field x).

    SOURCE is a file, a folder or a glob, as a path or an fsspec URL; .gz, .bgz and .zst are decoded. Each record is a
    sequence, whose id is the first word of its header.
    """
    return GenomeSource(
        sources,
        format=format,
        alphabet=alphabet,
        lower=lower,
        ambiguous=ambiguous,
        phred=int(phred),
        whole_header=whole_header,
        patterns=patterns,
        on_error=on_error,
    )
