"""Putting files together into partitions, such that a change of one file changes few of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from streamseq.etl import Partition, Skipped, SourceError, partition_bytes

from .files import InputFile


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """Part `[start, stop)` of a file, in bytes or in what the format counts in.

    Args:
        file: The file.
        start: Where the part begins.
        stop: Where it ends.
        whole: Whether it is all of the file.
    """

    file: InputFile
    start: int
    stop: int
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FileParts:
    """What a partition holds, in columns: a job may have very many files, and each is a few values.

    Args:
        addresses: As of `InputFile`, for each part.
        ids: The same.
        sizes: The same.
        modified: The same.
        marks: The same; empty where all are.
        spans: Of those parts that are not `[0, size)` and whole: position, start, stop, and whether it is whole.
        others: What was left out, and parts of which a format knows more: position among all items, and item.
    """

    addresses: tuple[str, ...]
    ids: tuple[str, ...]
    sizes: tuple[int, ...]
    modified: tuple[int | None, ...]
    marks: tuple[str, ...]
    spans: tuple[tuple[int, int, int, bool], ...]
    others: tuple[tuple[int, FilePart | Skipped], ...]

    @classmethod
    def of(cls, items: Iterable[FilePart | Skipped]) -> FileParts:
        """Put items into columns."""
        files: list[InputFile] = []
        spans: list[tuple[int, int, int, bool]] = []
        others: list[tuple[int, FilePart | Skipped]] = []
        for number, item in enumerate(items):
            if type(item) is not FilePart:
                others.append((number, item))
                continue
            if not (item.whole and item.start == 0 and item.stop == item.file.size):
                spans.append((len(files), item.start, item.stop, item.whole))
            files.append(item.file)
        marks = tuple(file.mark for file in files)
        return cls(
            addresses=tuple(file.address for file in files),
            ids=tuple(file.id for file in files),
            sizes=tuple(file.size for file in files),
            modified=tuple(file.modified for file in files),
            marks=marks if any(marks) else (),
            spans=tuple(spans),
            others=tuple(others),
        )

    def __len__(self) -> int:
        return len(self.addresses) + len(self.others)

    def __iter__(self) -> Iterator[FilePart | Skipped]:
        """Yield the items, in order."""
        begin = 0
        for behind, (number, item) in enumerate(self.others):
            yield from self.parts(begin, number - behind)
            begin = number - behind
            yield item
        yield from self.parts(begin, len(self.addresses))

    def parts(self, begin: int, end: int) -> Iterator[FilePart]:
        """Yield parts `[begin, end)` of those that are in columns."""
        spans = {number: (start, stop, whole) for number, start, stop, whole in self.spans}
        for number in range(begin, end):
            size = self.sizes[number]
            file = InputFile(
                address=self.addresses[number],
                id=self.ids[number],
                size=size,
                modified=self.modified[number],
                mark=self.marks[number] if self.marks else "",
            )
            start, stop, whole = spans.get(number, (0, size, True))
            yield FilePart(file=file, start=start, stop=stop, whole=whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something to put into a partition.

    Args:
        content: A part of a file, or what was left out.
        num_bytes: Its bytes of input.
        weight: Its decoded bytes, about.
        id: The id of its sequence; None where it holds many, or nothing.
        goes_on: The id of the sequence that it begins inside of, where that is not `id`.
    """

    content: FilePart | Skipped
    num_bytes: int = 0
    weight: int = 0
    id: str | None = None
    goes_on: str | None = None


def steady_target(total_bytes: int, target_bytes: int) -> int:
    """How large partitions are: a shard, or less where there would be too few for many workers.

    Less is a power of two, so that a little more data does not move all borders.

    Args:
        total_bytes: Decoded bytes of all the data, about.
        target_bytes: Bytes of a shard.

    Example:
        >>> [steady_target(total, 64 << 20) >> 20 for total in (10**12, 10**9, 1)]
        [64, 16, 4]
    """
    wanted = partition_bytes(total_bytes, target_bytes)
    return wanted if wanted == target_bytes else 1 << (wanted.bit_length() - 1)


def even_cuts(size: int, target: int, unit: int = 1) -> list[tuple[int, int]]:
    """Cut `[0, size)` into equal parts of at most about `target`, at multiples of `unit`.

    Example:
        >>> even_cuts(10, 4), even_cuts(100, 40, 16), even_cuts(3, 4)
        ([(0, 3), (3, 6), (6, 10)], [(0, 32), (32, 64), (64, 100)], [(0, 3)])
    """
    count = max(1, -(-size // max(1, target)))
    starts = sorted({number * size // count // unit * unit for number in range(count)})
    return list(zip(starts, [*starts[1:], size], strict=True))


def group(items: Sequence[Item], target: int) -> list[Partition]:
    """Put items together, in order, into partitions of `target` bytes or less; a heavier one is alone.

    A group ends between half of `target` and all of it, before the item with the smallest hash of its id. So the
    borders behind a file that is new, gone or grown are soon the same again.

    Args:
        items: What to put together.
        target: The weight of a partition.
    """
    hashes = [_hash(item) for item in items]
    partitions: list[Partition] = []
    begin = 0
    last: str | None = None
    while begin < len(items):
        end = _end(items, hashes, begin, target)
        chosen = items[begin:end]
        ids = [item.id for item in chosen if item.id is not None]
        partitions.append(
            Partition(
                num_bytes=sum(item.num_bytes for item in chosen),
                content=FileParts.of(item.content for item in chosen),
                continues=chosen[0].goes_on or (last if ids and ids[0] == last else None),
            )
        )
        begin, last = end, ids[-1] if ids else None
    return partitions


def nothing_found(found: Sequence[InputFile | Skipped]) -> SourceError:
    """The error about files that have nothing in them."""
    empty = [item.address for item in found if isinstance(item, InputFile)]
    if not empty:
        reasons = ", ".join(f"{item.what}: {item.reason}" for item in found[:1] if isinstance(item, Skipped))
        return SourceError(f"no file can be read ({reasons}): there is nothing to ingest")
    if len(found) == 1:
        return SourceError(f"{empty[0]!r} is empty: there is nothing to ingest")
    return SourceError(
        f"all files that can be read are empty, {empty[0]!r} is the first of {len(empty)}: there is nothing to ingest"
    )


def _end(items: Sequence[Item], hashes: Sequence[bytes], begin: int, target: int) -> int:
    filled = items[begin].weight
    best: int | None = None
    for number in range(begin + 1, len(items)):
        if not items[number].weight:
            continue
        if 2 * filled >= target and (best is None or hashes[number] < hashes[best]):
            best = number
        if filled and filled + items[number].weight > target:
            return number if best is None else best
        filled += items[number].weight
    return len(items)


def _hash(item: Item) -> bytes:
    if isinstance(item.content, Skipped):
        return b""
    return blake2b(item.content.file.id.encode(), digest_size=8).digest()
